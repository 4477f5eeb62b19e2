//! GPUs through Vulkan, Metal or Direct3D: the WebGPU plugin. Nodes are shaders, compiled when they first run.
//!
//! The plugin is a library of its own, which ONNX Runtime loads at run time. Its tensors lie on the device.

use super::options::{Form, OptionDef};
use super::shared::{CAPTURES, LIBRARY_OPTION};

/// ONNX Runtime's name.
pub(super) const NAME: &str = "WebGpuExecutionProvider";

/// The plugin's library file.
pub(super) const LIBRARY: &str = "libonnxruntime_providers_webgpu.so";

/// The package that carries it.
pub(super) const PACKAGE: &str = "onnxruntime-ep-webgpu";

pub(super) const OPTIONS: &[OptionDef] = &[
    LIBRARY_OPTION,
    OptionDef {
        name: "power",
        form: Form::Choice(&[("high-performance", "high-performance"), ("low-power", "low-power")]),
        key: Some("powerPreference"),
        about: "which of several GPUs",
    },
    OptionDef {
        name: "validation",
        form: Form::Choice(&[
            ("disabled", "disabled"),
            ("wgpu-only", "wgpuOnly"),
            ("basic", "basic"),
            ("full", "full"),
        ]),
        key: Some("validationMode"),
        about: "how much of each call is checked",
    },
    OptionDef {
        name: "layout",
        form: Form::Choice(&[("nchw", "NCHW"), ("nhwc", "NHWC")]),
        key: Some("preferredLayout"),
        about: "where channels lie in convolutions",
    },
    CAPTURES,
];
