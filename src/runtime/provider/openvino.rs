//! CPUs, GPUs and NPUs of Intel through the OpenVINO plugin: each graph is compiled when it is loaded.
//!
//! The plugin is a library of its own, which ONNX Runtime loads at run time. Its tensors lie in memory that the host
//! shares. All that OpenVINO itself is told goes into one option, `load_config`: a JSON object for each device. What it
//! does not know there is an error; the plugin's older options (`precision`, `num_of_threads`) are passed over.

use super::options::{Form, OptionDef};
use super::shared::LIBRARY_OPTION;

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
    LIBRARY_OPTION,
    OptionDef {
        name: DEVICE,
        form: Form::Choice(&[("cpu", "CPU"), ("gpu", "GPU"), ("npu", "NPU")]),
        key: None,
        about: "on which kind of device; cpu unless asked for",
    },
    OptionDef {
        name: "precision",
        form: Form::Choice(&[("fp32", "f32"), ("fp16", "f16"), ("bf16", "bf16")]),
        key: Some(PRECISION),
        about: "in which precision the device computes; fp32 unless asked for, where OpenVINO would take bf16 if it could",
    },
    OptionDef {
        name: "threads",
        form: Form::Number { min: 1, max: 1024 },
        key: Some("INFERENCE_NUM_THREADS"),
        about: "threads of each session",
    },
    OptionDef {
        name: "streams",
        form: Form::Number { min: 1, max: 64 },
        key: Some("NUM_STREAMS"),
        about: "runs of one session that OpenVINO prepares for at once",
    },
    OptionDef { name: CACHE, form: Form::Text, key: Some("CACHE_DIR"), about: "folder of compiled graphs" },
];

const PRECISION: &str = "INFERENCE_PRECISION_HINT";

/// What is set whether the user asks or not: a changed precision must be asked for by name.
pub(super) const FIXED: &[(&str, &str)] = &[(PRECISION, "f32")];

/// The plugin's one option, from OpenVINO's own.
pub(super) fn load_config(device: &str, pairs: Vec<(String, String)>) -> (String, String) {
    let options: serde_json::Map<String, serde_json::Value> =
        pairs.into_iter().map(|(key, value)| (key, value.into())).collect();
    ("load_config".to_owned(), serde_json::json!({ device: options }).to_string())
}
