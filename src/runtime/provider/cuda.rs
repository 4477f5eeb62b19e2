//! NVIDIA GPUs through ONNX Runtime's CUDA provider: every node a kernel, nothing is compiled ahead.
//!
//! The provider is a part of ONNX Runtime's GPU build, locked to its version, and needs CUDA 13 and cuDNN 9.

use super::options::{Form, OptionDef};
use super::shared::CAPTURES;

/// ONNX Runtime's name.
pub(super) const NAME: &str = "CUDAExecutionProvider";

/// ONNX Runtime's name of the option [`DEVICE`].
pub(super) const DEVICE_KEY: &str = "device_id";

/// Which GPU.
pub(super) const DEVICE: &str = "device";

/// On which stream.
pub(super) const STREAM: OptionDef = OptionDef {
    name: "stream",
    form: Form::Choice(&[("shared", SHARED), ("own", "own")]),
    key: None,
    about: "one stream for all sessions of the process, or one of each session; shared unless asked for",
};
pub(super) const SHARED: &str = "shared";

/// Whether each run waits for its end.
pub(super) const ASYNC: OptionDef = OptionDef {
    name: "async",
    form: Form::Flag,
    key: None,
    about: "runs that stay on the device do not wait for their end; times by part are then those of launching",
};

pub(super) const OPTIONS: &[OptionDef] = &[
    OptionDef {
        name: DEVICE,
        form: Form::Number { min: 0, max: 63 },
        key: Some(DEVICE_KEY),
        about: "which GPU, counted from 0",
    },
    OptionDef {
        name: "memory",
        form: Form::Bytes { min: 64 << 20 },
        key: Some("gpu_mem_limit"),
        about: "most bytes of each session's arena",
    },
    OptionDef {
        name: "arena",
        form: Form::Choice(&[("power-of-two", "kNextPowerOfTwo"), ("as-requested", "kSameAsRequested")]),
        key: Some("arena_extend_strategy"),
        about: "by how much an arena grows",
    },
    OptionDef {
        name: "tf32",
        form: Form::Flag,
        key: Some("use_tf32"),
        about: "f32 products with 10 bits of mantissa: faster, and other numbers; off unless asked for",
    },
    OptionDef {
        name: "conv-search",
        form: Form::Choice(&[("exhaustive", "EXHAUSTIVE"), ("heuristic", "HEURISTIC"), ("default", "DEFAULT")]),
        key: Some("cudnn_conv_algo_search"),
        about: "how convolution kernels are chosen",
    },
    STREAM,
    ASYNC,
    CAPTURES,
    OptionDef { name: "nhwc", form: Form::Flag, key: Some("prefer_nhwc"), about: "channels last in convolutions" },
];

/// What is set whether the user asks or not: a changed precision must be asked for by name.
pub(super) const FIXED: &[(&str, &str)] = &[("use_tf32", "0"), ("enable_skip_layer_norm_strict_mode", "1")];
