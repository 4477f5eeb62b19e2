//! What the keys of builds know of NVIDIA's GPU.
//!
//! A compiled engine of TensorRT fits one version of TensorRT and one model of GPU; with hardware compatibility it fits every
//! GPU of compute capability 8.0 or newer, except on Jetson. NVIDIA's page on the compatibility of engines names these two,
//! and no release of the driver (<https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-compatibility.html>,
//! read in November 2026). So neither the driver nor the other GPUs of a machine are in the key, and builds move to another
//! machine with the same GPU.

use std::ffi::c_int;

use crate::runtime::driver::Gpu;

/// The oldest GPUs that share builds.
const OLDEST_SHARED: (c_int, c_int) = (8, 0);
/// Jetson Orin, on which ONNX Runtime's provider ignores the option.
const JETSON_ORIN: (c_int, c_int) = (8, 7);

/// For which GPUs a build is compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GpuTarget {
    /// Those that may run it.
    pub(crate) device: String,
    /// The one that compiles it, and times its kernels.
    pub(crate) timed_on: String,
}

impl GpuTarget {
    /// `None` where the driver does not tell the GPU's compute capability.
    pub(crate) fn of(gpu: &Gpu, is_hardware_compatible: bool) -> Option<Self> {
        let capability = gpu.compute_capability?;
        let text = |(major, minor): (c_int, c_int)| format!("compute capability {major}.{minor}");
        let timed_on = format!("{}, {}", gpu.name, text(capability));
        let is_shared = is_hardware_compatible && capability >= OLDEST_SHARED && capability != JETSON_ORIN;
        let device = if is_shared { format!("any GPU of {} or newer", text(OLDEST_SHARED)) } else { timed_on.clone() };
        Some(Self { device, timed_on })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gpu_in_use_decides() {
        for (name, capability, is_hardware_compatible, device) in [
            ("NVIDIA H200", Some((9, 0)), false, Some("NVIDIA H200, compute capability 9.0")),
            ("NVIDIA H200", Some((9, 0)), true, Some("any GPU of compute capability 8.0 or newer")),
            ("NVIDIA A100-SXM4-40GB", Some((8, 0)), true, Some("any GPU of compute capability 8.0 or newer")),
            ("Orin", Some((8, 7)), true, Some("Orin, compute capability 8.7")),
            ("NVIDIA T4", Some((7, 5)), true, Some("NVIDIA T4, compute capability 7.5")),
            ("NVIDIA T4", None, false, None),
        ] {
            let gpu = Gpu { name: name.into(), memory_bytes: None, compute_capability: capability };
            let target = GpuTarget::of(&gpu, is_hardware_compatible);
            assert_eq!(target.as_ref().map(|target| target.device.as_str()), device, "{name}");
            assert!(target.is_none_or(|target| target.timed_on.starts_with(name)), "timings are those of one GPU");
        }
    }
}
