//! Names that there are not, of providers and of their options: the nearest one, and what to do instead.

use super::kind::ProviderKind;
use crate::error::{Error, Result};
use crate::nearest::did_you_mean;

/// Where a precision is asked for by a name that there is not.
pub(crate) const BY_COMPUTE: &str = "the dtype in which graphs compute is chosen by the option `compute` (fp32, fp16 or bf16): of this \
                                     engine's options for models exported in fp32, else of dbcache-export";

/// Whether a word asks for a precision.
pub(crate) fn is_precision(option: &str) -> bool {
    ["fp32", "fp16", "bf16", "f32", "f16", "int8", "fp8", "precision", "compute", "dtype"].contains(&option)
}

/// The place of an option in the table of its provider.
///
/// # Errors
/// `Usage` that names the nearest.
pub(super) fn find(provider: ProviderKind, name: &str) -> Result<usize> {
    let options = provider.defs();
    if let Some(index) = options.iter().position(|option| option.name == name) {
        return Ok(index);
    }
    let remedy = if is_precision(name) { format!("; {BY_COMPUTE}") } else { by_captures(provider, name) };
    if options.is_empty() {
        return Err(Error::usage(format!(
            "the option `provider={provider}`: there is no option `{name}`; this provider has none{remedy}"
        )));
    }
    let near = did_you_mean(name, options.iter().map(|option| option.name));
    let all: Vec<&str> = options.iter().map(|option| option.name).collect();
    let all = all.join(", ");
    Err(Error::usage(format!(
        "the option `provider={provider}`: there is no option `{name}`{near}; it has {all}{remedy}"
    )))
}

/// What to do where recordings are asked for by another name, or of a provider that makes none.
fn by_captures(provider: ProviderKind, option: &str) -> String {
    if !option.contains("graph") && !option.contains("captur") {
        return String::new();
    }
    match provider {
        ProviderKind::TensorRt => {
            "; its provider keeps one recording a session, and replays it whatever is bound: use `cuda` with \
                                   graph-captures=N"
                .to_owned()
        }
        ProviderKind::Cuda | ProviderKind::WebGpu => {
            "; runs are recorded and replayed with `graph-captures=N`".to_owned()
        }
        ProviderKind::TensorRtRtx => {
            "; its recordings were not tried yet, and are not offered: use `cuda` with graph-captures=N".to_owned()
        }
        ProviderKind::Cpu | ProviderKind::OpenVino => String::new(),
    }
}

/// A name that no provider has.
pub(super) fn unknown_provider(name: &str) -> Error {
    let near = did_you_mean(name, ProviderKind::ALL.map(ProviderKind::as_str));
    Error::usage(format!("there is no provider `{name}`{near}; there are {}", names()))
}

/// The names of all providers, for errors.
pub(super) fn names() -> String {
    ProviderKind::ALL.map(|kind| format!("`{kind}`")).join(", ")
}
