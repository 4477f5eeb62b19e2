//! ONNX Runtime, and nothing that decides.

pub(crate) mod library;
pub(crate) mod ops;
pub(crate) mod session;
pub(crate) mod tensor;
