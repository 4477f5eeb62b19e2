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
//! # Features
//!
//! All are on by default. Without any, an engine runs as with all of them, on ONNX Runtime's CPU provider and its plugins,
//! and gives latents and pixels.
//!
//! * `media` writes pictures and videos to files (PNG, GIF, and MP4 or WebM by ffmpeg), and reads PNG files. Pixels in memory
//!   ([`Image`], [`Video`]) need no feature, because they are what a decoder gives; a host that encodes them itself saves two
//!   crates.
//! * `setup` fetches ONNX Runtime ([`setup`]). A library that was fetched before is found, and checked, without it.
//! * `cli` builds the command and the crates that only it needs. It needs `media` and `setup`.
//! * `mpi` runs one generation over the processes that an MPI has started. Its library is loaded when that is asked for.
//! * `cuda` and `tensorrt` let those providers of ONNX Runtime's GPU build be used. They are only code, and need nothing of
//!   NVIDIA to build.

// Bad input never panics: what cannot fail says why beside an `#[expect]`.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![deny(unsafe_code)]

mod cancel;
mod collective;
mod contain;
mod engine;
mod error;
#[expect(unsafe_code, reason = "the end of the process is only told to C functions")]
mod exit;
mod files;
mod folders;
mod generate;
mod info;
#[cfg(feature = "media")]
mod media;
mod model;
mod nearest;
mod packages;
mod pixels;
mod plan;
mod request;
mod runtime;
mod text;
mod threads;
mod units;
mod words;

pub mod cache;
#[cfg(feature = "setup")]
pub mod setup;
pub mod trace;

pub use cancel::CancelToken;
#[cfg(feature = "mpi")]
pub use collective::Mpi;
pub use collective::{Collective, ContextParallel, Method};
pub use engine::{BuildCounts, Builder, Engine, ModelPart, PlannedBuild, StagesChoice};
pub use error::{Error, ErrorKind, Result};
pub use generate::denoiser::Denoiser;
pub use generate::observer::{Observer, Phase, Progress};
pub use generate::request::{Output, Request};
pub use info::{DryRun, EngineInfo, Model, StageInfo};
#[cfg(feature = "media")]
pub use media::video::VideoFormat;
pub use model::cache_dtype::CacheDType;
pub use model::compute_choice::ComputeChoice;
pub use pixels::{Image, Video};
pub use request::cache_place::CachePlace;
pub use request::engine_options::{ArithmeticChoice, BuildCache, EngineOptions, OtherPlan, WeightsChoice};
pub use request::inputs::{Inputs, read_tensors, write_tensors};
pub use request::options::{GuidanceBy, RequestOptions};
pub use request::profile::Profile;
pub use runtime::foreign::{FloatType, ForeignTensor, MemoryKind};
pub use runtime::library::{FoundBy, LibraryInfo, LibraryOptions, info as library_info, load as load_library};
pub use runtime::provider::{ProviderKind, ProviderReport, ProviderSpec, Providers, provider_reports};

// What follows is for the other faces of this library, the command and the C library: it may change in any version.
#[doc(hidden)]
pub mod options;

#[doc(hidden)]
pub use engine::{StageFile, write_stages};
#[doc(hidden)]
pub use exit::{lock, outside};
#[doc(hidden)]
pub use packages::FILE_NAME;
#[doc(hidden)]
pub use request::inputs::write_json;
#[doc(hidden)]
pub use runtime::build_cache::{BuildState, BuildStore, GcOptions, GcReport, Removed, StoredBuild};
#[doc(hidden)]
pub use runtime::library::{OLDEST as OLDEST_RUNTIME, Place, places as library_places};
#[doc(hidden)]
pub use units::bytes_in_words;
