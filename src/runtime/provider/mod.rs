//! What computes: one file for each provider, and how each is written, checked and registered.

#[expect(unsafe_code, reason = "the assignment of nodes is only to be had through raw calls")]
pub(crate) mod assignment;
mod capture;
pub(crate) mod compile;
mod cpu;
mod cuda;
mod failure;
#[expect(
    unsafe_code,
    reason = "libraries that a provider needs are loaded, and CUDA's runtime is asked for its version"
)]
mod nvidia;
mod openvino;
mod options;
mod precision;
#[expect(unsafe_code, reason = "what a plugin tells of its devices is only to be had through raw calls")]
mod register;
mod report;
mod spec;
mod tensorrt;
mod webgpu;

#[cfg(feature = "cuda")]
pub(crate) use self::failure::INSTALL_CUDA;
pub(crate) use self::failure::refused;
#[cfg(feature = "cuda")]
pub(crate) use self::nvidia::CUDA_RUNTIMES;
pub(crate) use self::precision::{BY_COMPUTE, is_precision};
pub(crate) use self::register::{Provider, Role};
pub use self::report::{ProviderReport, provider_reports};
pub use self::spec::{ProviderKind, ProviderSpec, Providers};

use self::options::{Form, OptionDef};

/// Plugins are libraries of their own.
const LIBRARY_OPTION: OptionDef = OptionDef {
    name: "library",
    form: Form::Text,
    key: None,
    about: "the plugin's library file; unless given, looked for where setup puts it, beside ONNX Runtime's library and beside the program",
};
