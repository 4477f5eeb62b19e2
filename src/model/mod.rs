//! What is on disk, and nothing that runs.

mod amounts;
mod attention;
pub(crate) mod boundary;
pub(crate) mod cache_dtype;
mod casts;
pub(crate) mod compute;
pub(crate) mod compute_choice;
pub(crate) mod directory;
pub(crate) mod graph;
pub(crate) mod join;
pub(crate) mod manifest;
mod moved;
pub(crate) mod onnx;
mod operators;
mod rules;
pub(crate) mod shard;
mod token_by_token;
pub(crate) mod weights;
