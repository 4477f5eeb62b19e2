//! What computes: one file for each provider, and how each is written, checked and registered.

#[expect(unsafe_code, reason = "the assignment of nodes is only to be had through raw calls")]
pub(crate) mod assignment;
mod capture;
pub(crate) mod compile;
mod cpu;
mod cuda;
pub(super) mod failure;
pub(crate) mod gpu_target;
pub(super) mod kind;
#[expect(
    unsafe_code,
    reason = "libraries that a provider needs are loaded, and CUDA's runtime is asked for its version"
)]
pub(super) mod nvidia;
mod openvino;
mod options;
mod precision;
#[expect(unsafe_code, reason = "what a plugin tells of its devices is only to be had through raw calls")]
mod register;
mod report;
mod shared;
pub(super) mod spec;
mod tensorrt;
mod tensorrt_rtx;
mod unknown;
mod webgpu;

pub use self::kind::ProviderKind;
pub(crate) use self::register::{Provider, Role};
pub use self::report::{ProviderReport, provider_reports};
pub use self::spec::{ProviderSpec, Providers};
pub(crate) use self::unknown::{BY_COMPUTE, is_precision};
