//! Runs diffusion transformers block by block on ONNX Runtime, and skips the blocks that dual block caching proves
//! unnecessary.
//!
//! An [`Engine`] is loaded from an *engine directory*, which the exporter writes (models/README.md). It is immutable and
//! shared. A [`Request`] is one generation and owns everything that changes; requests on one engine may run on several
//! threads. What a request does with its cache is a [`cache::PolicyConfig`]; what it did is a [`trace::Trace`].
//!
//! ```
//! use dbcache_trt::{Engine, EngineOptions, Inputs, RequestOptions};
//!
//! let engine = Engine::load("models/emoji", &EngineOptions::default())?;
//! let options = RequestOptions { cache: "f8b16".parse()?, ..RequestOptions::default() };
//! let output = engine.request(&Inputs::prompt("lemon"), &options)?.run(&mut ())?;
//! println!("{}", output.trace.summary());
//! assert_eq!(output.images[0].width, 64);
//! # Ok::<(), dbcache_trt::Error>(())
//! ```
//!
//! Without text or decode graphs, an engine takes tensors and gives latents:
//!
//! ```
//! # use dbcache_trt::{Engine, EngineOptions, Inputs, RequestOptions};
//! use ndarray::ArrayD;
//!
//! let engine = Engine::load("tests/data/tiny-flux", &EngineOptions::default())?;
//! let mut inputs = Inputs::default();
//! inputs.tensors.insert("prompt_embeds".into(), ArrayD::zeros(vec![1, 12, 32])); // [batch, text, width]
//! inputs.tensors.insert("pooled_projections".into(), ArrayD::zeros(vec![1, 24])); // [batch, width]
//! let options = RequestOptions { steps: Some(4), cache: "f1b0w2r0.3".parse()?, ..RequestOptions::default() };
//! let output = engine.request(&inputs, &options)?.run(&mut ())?;
//! assert_eq!(output.latents.shape(), [1, 64, 16]); // [batch, tokens, features]
//! # Ok::<(), dbcache_trt::Error>(())
//! ```
//!
//! ONNX Runtime's library is found at run time; [`setup`] installs it. The library prints nothing: it logs through
//! `tracing`, and reports steps to an [`Observer`].
//!
//! Features, all default: `cli` builds the command and the crates that only it needs; `cuda` and `tensorrt` let those
//! providers of ONNX Runtime's GPU build be used (they are only code, and need nothing of NVIDIA to build).

// Bad input never panics: what cannot fail says why beside an `#[expect]`.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![deny(unsafe_code)]

mod cancel;
mod contain;
mod engine;
mod error;
#[expect(unsafe_code, reason = "the end of the process is only told to C functions")]
mod exit;
mod files;
mod generate;
mod info;
mod media;
mod model;
mod nearest;
mod plan;
mod request;
mod runtime;
mod text;
mod threads;
mod units;
mod words;

pub mod cache;
pub mod options;
pub mod setup;
pub mod trace;

pub use cancel::CancelToken;
pub use engine::{Engine, EngineBuild, EngineCounts, ModelPart, PlannedEngine, StageFile, StagesChoice, write_stages};
pub use error::{Error, ErrorKind, Result};
#[doc(hidden)] // For other faces of this library, which call back by themselves.
pub use exit::{lock, outside};
pub use generate::denoiser::Denoiser;
pub use generate::observer::{Observer, Phase, Progress};
pub use generate::request::{Output, Request};
pub use info::{DryRun, EngineInfo, Model, StageInfo};
pub use media::image::Image;
pub use media::video::{Video, VideoFormat};
pub use model::cache_dtype::CacheDType;
pub use model::compute_choice::ComputeChoice;
pub use request::cache_place::CachePlace;
pub use request::engine_options::{ArithmeticChoice, EngineCache, EngineOptions, OtherPlan, WeightsChoice};
pub use request::inputs::{Inputs, read_tensors, write_json, write_tensors};
pub use request::options::{GuidanceBy, RequestOptions};
pub use request::profile::Profile;
pub use runtime::engine_cache::{EngineEntry, EngineState, EngineStore, GcOptions, GcReport, Removed};
pub use runtime::foreign::{FloatType, ForeignTensor, MemoryKind};
pub use runtime::library::{
    FoundBy, LibraryInfo, LibraryOptions, OLDEST as OLDEST_RUNTIME, PATH_VARIABLE, Place, info as library_info,
    load as load_library, places as library_places,
};
pub use runtime::provider::{ProviderKind, ProviderReport, ProviderSpec, Providers, provider_reports};
pub use setup::FILE_NAME;
