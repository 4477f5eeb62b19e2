//! Graph capture: a provider records what one run launches on its device, and replays it at the next.
//!
//! CUDA's graphs, and the recorded commands of WebGPU. TensorRT's provider is not told of it: it keeps one recording a
//! session, and replays that whatever is bound to the session.

use super::options::{Form, OptionDef};
use super::spec::{ProviderKind, ProviderSpec};

/// How many.
pub(super) const CAPTURES: OptionDef = OptionDef {
    name: "graph-captures",
    form: Form::Number { min: 1, max: 1000 },
    key: None,
    about: "most runs that each stage records and replays, each with tensors that stay; none unless asked for",
};

impl ProviderKind {
    /// Whether it records runs where its option says so.
    pub(crate) fn can_capture(self) -> bool {
        matches!(self, Self::Cuda | Self::WebGpu)
    }
}

impl ProviderSpec {
    /// How many runs each stage records at most; `None` if it records none.
    pub(crate) fn captures(&self) -> Option<usize> {
        self.raw(CAPTURES.name)?.parse().ok()
    }

    /// What the sessions of stages are told, so that they record.
    pub(super) fn capture_pair(&self) -> Option<(String, String)> {
        self.captures()?;
        let key = match self.kind() {
            ProviderKind::Cuda => "enable_cuda_graph",
            ProviderKind::WebGpu => "enableGraphCapture",
            ProviderKind::Cpu | ProviderKind::TensorRt | ProviderKind::OpenVino => return None,
        };
        Some((key.to_owned(), "1".to_owned()))
    }
}

/// What to do where recordings are asked for by another name, or of a provider that makes none.
pub(super) fn remedy(provider: &str, option: &str) -> String {
    if !option.contains("graph") && !option.contains("captur") {
        return String::new();
    }
    let has = |kind: ProviderKind| kind.as_str() == provider;
    if has(ProviderKind::TensorRt) {
        return "; its provider keeps one recording a session, and replays it whatever is bound: use `cuda` with \
                graph-captures=N"
            .to_owned();
    }
    if has(ProviderKind::Cuda) || has(ProviderKind::WebGpu) {
        return "; runs are recorded and replayed with `graph-captures=N`".to_owned();
    }
    String::new()
}
