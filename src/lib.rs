//! Runs diffusion transformers block by block on ONNX Runtime, and skips the blocks that dual block caching proves
//! unnecessary.

// Bad input never panics: what cannot fail says why beside an `#[expect]`.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod engine;
mod error;
mod generate;
mod info;
mod model;
mod plan;
mod runtime;

pub mod cache;
pub mod setup;
pub mod trace;

pub use engine::{Engine, EngineOptions, StagesChoice, WeightsChoice};
pub use error::{Error, ErrorKind, Result};
pub use generate::cancel::CancelToken;
pub use generate::image::Image;
pub use generate::inputs::{Inputs, read_tensors, write_json, write_tensors};
pub use generate::request::{Observer, Output, Request, RequestOptions};
pub use info::EngineInfo;
pub use runtime::library::{
    FILE_NAME, FoundBy, LibraryInfo, LibraryOptions, PATH_VARIABLE, Place, info as library_info,
    places as library_places,
};
