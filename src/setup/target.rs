//! What setup can be asked for: the words of `--provider`.

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::words::{Word, words};

/// A provider to set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Target {
    /// ONNX Runtime itself, which computes on the CPU.
    Cpu,
    /// ONNX Runtime's build for NVIDIA's GPUs, with CUDA and cuDNN.
    Cuda,
    /// The same, and TensorRT, which is left to the user: no package tool can fetch it.
    TensorRt,
    /// The plugin of TensorRT for RTX, and ONNX Runtime itself.
    TensorRtRtx,
    /// Intel's plugin, and ONNX Runtime itself.
    OpenVino,
    /// The plugin for Vulkan, and ONNX Runtime itself.
    WebGpu,
}

words!(Target, "provider", {
    Cpu = "cpu",
    Cuda = "cuda",
    TensorRt = "tensorrt",
    TensorRtRtx = "tensorrt-rtx",
    OpenVino = "openvino",
    WebGpu = "webgpu",
});

/// Several providers, in the order in which they are set up: `cuda,openvino`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets(Vec<Target>);

impl Targets {
    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = Target> + '_ {
        self.0.iter().copied()
    }
}

impl From<Target> for Targets {
    fn from(target: Target) -> Self {
        Self(vec![target])
    }
}

impl FromStr for Targets {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut targets = Vec::new();
        for word in text.split(',') {
            let target = read(word.trim())?;
            if targets.contains(&target) {
                return Err(Error::option("provider", format!("names `{target}` twice; leave one out")));
            }
            targets.push(target);
        }
        Ok(Self(targets))
    }
}

fn read(word: &str) -> Result<Target> {
    if word.contains(':') {
        return Err(Error::option(
            "provider",
            format!("is `{word}`: options of a provider have no effect on setup; leave them out"),
        ));
    }
    Target::read(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_providers() {
        let parsed: Targets = "cuda, OpenVINO,tensorrt-rtx".parse().unwrap();
        assert_eq!(parsed.iter().collect::<Vec<_>>(), [Target::Cuda, Target::OpenVino, Target::TensorRtRtx]);
        for (text, words) in [
            ("", "expected `cpu`, `cuda`, `tensorrt`, `tensorrt-rtx`, `openvino` or `webgpu`"),
            ("cuda,cuda", "names `cuda` twice"),
            ("cuda:device=1", "have no effect on setup"),
            ("cuda,rocm", "unknown provider `rocm`"),
            ("cdua", "unknown provider `cdua` (did you mean `cuda`?); expected"),
        ] {
            let error = text.parse::<Targets>().unwrap_err();
            assert!(error.to_string().contains(words), "{text}: {error}");
        }
    }
}
