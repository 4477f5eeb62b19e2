//! What computes: one file for each provider, and how each is written, checked and registered.

#[expect(unsafe_code, reason = "the assignment of nodes is only to be had through raw calls")]
pub(crate) mod assignment;
mod capture;
pub(crate) mod compile;
mod cpu;
mod cuda;
mod failure;
mod openvino;
mod options;
mod precision;
#[expect(unsafe_code, reason = "what a plugin tells of its devices is only to be had through raw calls")]
mod register;
mod report;
mod spec;
mod tensorrt;
mod webgpu;

pub(crate) use self::failure::refused;
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
    about: "the plugin's library file; looked for beside ONNX Runtime's library and beside the program unless given",
};
