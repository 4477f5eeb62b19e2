//! The providers, by their names.

use super::options::OptionDef;
use super::{cpu, cuda, openvino, tensorrt, tensorrt_rtx, webgpu};
use crate::words::words;

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ProviderKind {
    /// ONNX Runtime's own kernels in host memory.
    #[default]
    Cpu,
    /// NVIDIA GPUs, a kernel for each node.
    Cuda,
    /// NVIDIA GPUs, a build for each graph.
    TensorRt,
    /// NVIDIA's GPUs of workstations, a build for each graph, through a plugin.
    TensorRtRtx,
    /// Intel's compiler, through a plugin.
    OpenVino,
    /// Vulkan, Metal and Direct3D, through a plugin.
    WebGpu,
}

words!(ProviderKind, "provider", {
    Cpu = "cpu",
    Cuda = "cuda",
    TensorRt = "tensorrt",
    TensorRtRtx = "tensorrt-rtx",
    OpenVino = "openvino",
    WebGpu = "webgpu",
});

impl ProviderKind {
    /// ONNX Runtime's name.
    pub fn ort_name(self) -> &'static str {
        match self {
            Self::Cpu => cpu::NAME,
            Self::Cuda => cuda::NAME,
            Self::TensorRt => tensorrt::NAME,
            Self::TensorRtRtx => tensorrt_rtx::NAME,
            Self::OpenVino => openvino::NAME,
            Self::WebGpu => webgpu::NAME,
        }
    }

    /// Its options: name, what is expected, and what it does.
    pub fn options(self) -> impl Iterator<Item = (&'static str, String, &'static str)> {
        self.defs().iter().map(|option| (option.name, option.form.to_string(), option.about))
    }

    /// The part of ONNX Runtime's GPU build that holds the provider; none where it is no such part.
    pub(crate) fn built_in_file(self) -> Option<&'static str> {
        match self {
            Self::Cuda => Some("libonnxruntime_providers_cuda.so"),
            Self::TensorRt => Some("libonnxruntime_providers_tensorrt.so"),
            Self::Cpu | Self::TensorRtRtx | Self::OpenVino | Self::WebGpu => None,
        }
    }

    /// Whether it computes on NVIDIA's GPUs, in CUDA's memory, and so needs NVIDIA's driver.
    pub(crate) fn is_of_nvidia(self) -> bool {
        matches!(self, Self::Cuda | Self::TensorRt | Self::TensorRtRtx)
    }

    /// The word for what it computes on.
    pub(crate) fn device_word(self) -> &'static str {
        match self {
            Self::Cuda | Self::TensorRt | Self::TensorRtRtx | Self::WebGpu => "GPU",
            Self::Cpu | Self::OpenVino => "device",
        }
    }

    /// The table of its options.
    pub(super) fn defs(self) -> &'static [OptionDef] {
        match self {
            Self::Cpu => cpu::OPTIONS,
            Self::Cuda => cuda::OPTIONS,
            Self::TensorRt => tensorrt::OPTIONS,
            Self::TensorRtRtx => tensorrt_rtx::OPTIONS,
            Self::OpenVino => openvino::OPTIONS,
            Self::WebGpu => webgpu::OPTIONS,
        }
    }
}
