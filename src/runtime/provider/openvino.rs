//! CPUs, GPUs and NPUs of Intel through the OpenVINO plugin: each graph is compiled when it is loaded.
//!
//! The plugin is a library of its own, which ONNX Runtime loads at run time. Its tensors lie in host memory.

use super::options::{Form, OptionDef};

/// ONNX Runtime's name.
pub(super) const NAME: &str = "OpenVINOExecutionProvider";

/// The plugin's library file.
pub(super) const LIBRARY: &str = "libonnxruntime_providers_openvino_plugin.so";

/// The package that carries it.
pub(super) const PACKAGE: &str = "onnxruntime-ep-openvino";

/// Which device.
pub(super) const DEVICE: &str = "device";

/// OpenVINO's own cache.
pub(super) const CACHE: &str = "cache";

/// What the plugin calls a device in its metadata.
pub(super) const DEVICE_METADATA: &str = "ov_device";

pub(super) const OPTIONS: &[OptionDef] = &[
    super::LIBRARY_OPTION,
    OptionDef {
        name: DEVICE,
        form: Form::Choice(&[("cpu", "CPU"), ("gpu", "GPU"), ("npu", "NPU")]),
        key: None,
        about: "on which kind of device; the CPU unless asked for",
    },
    OptionDef {
        name: "precision",
        form: Form::Choice(&[("fp32", "FP32"), ("fp16", "FP16")]),
        key: Some("precision"),
        about: "in which precision the device computes; f32 unless asked for",
    },
    OptionDef {
        name: "threads",
        form: Form::Number { min: 1, max: 1024 },
        key: Some("num_of_threads"),
        about: "threads of each session",
    },
    OptionDef {
        name: "streams",
        form: Form::Number { min: 1, max: 64 },
        key: Some("num_streams"),
        about: "runs of one session that OpenVINO prepares for at once",
    },
    OptionDef { name: CACHE, form: Form::Text, key: Some("cache_dir"), about: "folder of compiled graphs" },
];

/// What is set whether the user asks or not: a changed precision must be asked for by name.
pub(super) const FIXED: &[(&str, &str)] = &[("precision", "FP32")];
