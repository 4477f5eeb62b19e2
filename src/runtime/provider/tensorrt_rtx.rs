//! NVIDIA's GPUs of workstations through the plugin of TensorRT for RTX: each graph is compiled for the GPU of this machine.
//!
//! The plugin is a library of its own, which ONNX Runtime loads at run time, and it comes with its compiler. Its tensors lie in
//! CUDA's memory, under a name of the plugin's own. Graphs are strongly typed: the plugin has no option for a precision.
//!
//! Not offered: CUDA graphs, since runs choose among their recordings by another option than the one that ONNX Runtime has for
//! that, and what a recording does with other tensors was not seen; a stream for all sessions, since the plugin counts only the
//! GPUs that it takes, and so one number may name two GPUs.

use super::cuda;
use super::options::{Form, OptionDef};
use super::shared::LIBRARY_OPTION;

/// ONNX Runtime's name.
pub(super) const NAME: &str = "NvTensorRTRTXExecutionProvider";

/// The plugin's library file.
pub(super) const LIBRARY: &str = "libonnxruntime_providers_nv_tensorrt_rtx.so";

/// The package that carries it.
pub(super) const PACKAGE: &str = "onnxruntime-ep-nv-tensorrt-rtx-cu13";

/// What the names of the libraries begin with on which a build depends.
pub(super) const LIBRARIES: &[&str] =
    &["libonnxruntime_providers_nv_tensorrt_rtx", "libtensorrt_rtx", "libtensorrt_onnxparser_rtx", "libcudart"];

/// The GPUs that the plugin takes, in words.
pub(super) const TAKES: &str = "8.6, 8.9, and 12.0 or newer";

/// Whether the plugin takes a GPU of this compute capability (its header `tensorrt_rtx_provider_options.h` says so).
pub(super) fn takes(compute_capability: (i32, i32)) -> bool {
    matches!(compute_capability, (8, 6 | 9) | (12.., _))
}

pub(super) const OPTIONS: &[OptionDef] = &[
    LIBRARY_OPTION,
    OptionDef {
        name: cuda::DEVICE,
        form: Form::Number { min: 0, max: 63 },
        key: None,
        about: "which of the GPUs that the plugin takes, counted from 0",
    },
    OptionDef {
        name: "workspace",
        form: Form::Bytes { min: 1 << 20 },
        key: Some("nv_max_workspace_size"),
        about: "most scratch bytes that the builder may take",
    },
    OptionDef {
        name: "weights-memory",
        form: Form::Bytes { min: 1 << 20 },
        key: Some("nv_weight_streaming_budget"),
        about: "most bytes of each stage's weights that stay on the GPU; the others come from the host at each run",
    },
    OptionDef {
        name: "keep-scratch",
        form: Form::Flag,
        key: Some("nv_persistent_context_memory"),
        about: "sessions keep their scratch memory between runs, each its own",
    },
    OptionDef {
        name: "runtime-cache",
        form: Form::Text,
        key: Some(RUNTIME_CACHE_KEY),
        about: "folder of the kernels that are compiled when a build is loaded",
    },
    OptionDef {
        name: "build-log",
        form: Form::Flag,
        key: Some("nv_detailed_build_log"),
        about: "log each step of the builder",
    },
];

/// ONNX Runtime's name of an option that names a place.
pub(super) const RUNTIME_CACHE_KEY: &str = "nv_runtime_cache_path";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_of_the_data_centre_before_blackwell_are_not_taken() {
        for capability in [(8, 6), (8, 9), (12, 0), (12, 1), (13, 0)] {
            assert!(takes(capability), "{capability:?}");
        }
        for capability in [(7, 5), (8, 0), (8, 7), (9, 0), (10, 0), (11, 0)] {
            assert!(!takes(capability), "{capability:?}");
        }
    }
}
