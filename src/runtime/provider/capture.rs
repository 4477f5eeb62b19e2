//! Graph capture: a provider records what one run launches on its device, and replays it at the next.
//!
//! CUDA's graphs, and the recorded commands of WebGPU. TensorRT's provider is not told of it: it keeps one recording a
//! session, and replays that whatever is bound to the session.

use super::kind::ProviderKind;
use super::shared::CAPTURES;
use super::spec::ProviderSpec;

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
            ProviderKind::Cpu | ProviderKind::TensorRt | ProviderKind::TensorRtRtx | ProviderKind::OpenVino => {
                return None;
            }
        };
        Some((key.to_owned(), "1".to_owned()))
    }
}
