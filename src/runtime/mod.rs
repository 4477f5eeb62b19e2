//! ONNX Runtime, and nothing that decides.

pub(crate) mod build_cache;
mod cached;
pub(crate) mod capture;
pub(crate) mod compiler;
#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "CUDA's functions are found in a library by their names")]
pub(crate) mod cuda_stream;
#[cfg(not(feature = "cuda"))]
#[path = "no_cuda_stream.rs"]
pub(crate) mod cuda_stream;
pub(crate) mod device;
pub(crate) mod device_memory;
#[expect(unsafe_code, reason = "the driver's functions are found in a library by their names")]
pub(crate) mod driver;
pub(crate) mod errors;
#[expect(unsafe_code, reason = "numbers of all types travel as bytes")]
mod exchange;
#[expect(unsafe_code, reason = "the memory is a host's, who promises what it holds")]
pub(crate) mod foreign;
pub(crate) mod graphs;
pub(crate) mod guidance;
#[expect(unsafe_code, reason = "the C library's heap is only to be had through a raw call")]
pub(crate) mod heap;
#[expect(unsafe_code, reason = "a value is taken out of what is being dropped")]
mod held;
pub(crate) mod host;
pub(crate) mod items;
pub(crate) mod kernels;
#[expect(unsafe_code, reason = "the library's version is only to be had through a raw call")]
pub(crate) mod library;
pub(crate) mod measure;
#[expect(unsafe_code, reason = "tensors in a plugin's memory are only to be had through raw calls")]
pub(crate) mod memory;
#[expect(unsafe_code, reason = "binding an input again is only to be had through a raw call")]
pub(crate) mod op;
pub(crate) mod ops;
pub(crate) mod provider;
#[expect(unsafe_code, reason = "a run that makes no values of its outputs is only to be had through a raw call")]
pub(crate) mod session;
mod shelf;
pub(crate) mod source;
pub(crate) mod sums;
pub(crate) mod tensor;
mod turn;
