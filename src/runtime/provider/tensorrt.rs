//! NVIDIA GPUs through ONNX Runtime's TensorRT provider: each graph is compiled for one kind of GPU. This program
//! calls the result a build; TensorRT calls it an engine, and so do the options here, which are its own.
//!
//! `fp16`, `bf16` and `int8` let TensorRT 10 choose kernels of lower precision for graphs exported as f32. TensorRT 11 has
//! no such choice: there, and wherever the numbers must be known, the graph itself carries its types (strongly typed):
//! export with `--compute fp16`, and leave these flags out.
//!
//! Not offered: CUDA graphs. ONNX Runtime's provider keeps one recording a session, and replays it whatever is bound.

use super::cuda;
use super::options::{Form, OptionDef};

/// ONNX Runtime's name.
pub(super) const NAME: &str = "TensorrtExecutionProvider";

/// Names of options that this library sets or reads itself.
pub(super) const TIMING_CACHE: &str = "timing-cache";
pub(super) const ENGINE_CACHE: &str = "engine-cache";
pub(super) const ENGINE_PREFIX: &str = "engine-prefix";
pub(super) const HARDWARE_COMPATIBLE: &str = "hardware-compatible";

pub(super) const OPTIONS: &[OptionDef] = &[
    OptionDef {
        name: cuda::DEVICE,
        form: Form::Number { min: 0, max: 63 },
        key: Some(cuda::DEVICE_KEY),
        about: "which GPU, counted from 0",
    },
    OptionDef {
        name: "fp16",
        form: Form::Flag,
        key: Some("trt_fp16_enable"),
        about: "allow f16 kernels in f32 graphs (TensorRT 10; strongly typed graphs need no flag)",
    },
    OptionDef {
        name: "bf16",
        form: Form::Flag,
        key: Some("trt_bf16_enable"),
        about: "allow bf16 kernels in f32 graphs (TensorRT 10)",
    },
    OptionDef {
        name: "int8",
        form: Form::Flag,
        key: Some("trt_int8_enable"),
        about: "allow i8 kernels for graphs with quantise nodes (TensorRT 10)",
    },
    OptionDef {
        name: "norm-fp32",
        form: Form::Flag,
        key: Some("trt_layer_norm_fp32_fallback"),
        about: "layer normalisation in f32 whatever the precision; on with fp16 and bf16 unless switched off",
    },
    OptionDef {
        name: "workspace",
        form: Form::Bytes { min: 1 << 20 },
        key: Some("trt_max_workspace_size"),
        about: "most scratch bytes that a kernel may take",
    },
    OptionDef {
        name: "level",
        form: Form::Number { min: 0, max: 5 },
        key: Some("trt_builder_optimization_level"),
        about: "how long the builder searches",
    },
    OptionDef {
        name: "aux-streams",
        form: Form::Number { min: -1, max: 16 },
        key: Some("trt_auxiliary_streams"),
        about: "streams beside the main one; -1 lets TensorRT choose, 0 uses least memory",
    },
    OptionDef {
        name: TIMING_CACHE,
        form: Form::Text,
        key: Some("trt_timing_cache_path"),
        about: "folder of kernel timings, shared by builds",
    },
    OptionDef {
        name: "force-timing-cache",
        form: Form::Flag,
        key: Some("trt_force_timing_cache"),
        about: "take timings of a GPU of the same compute capability, if not the same model",
    },
    OptionDef {
        name: ENGINE_CACHE,
        form: Form::Text,
        key: Some("trt_engine_cache_path"),
        about: "folder of built engines, keyed by file names only: one for each model",
    },
    OptionDef {
        name: ENGINE_PREFIX,
        form: Form::Text,
        key: Some("trt_engine_cache_prefix"),
        about: "what names of cached engines begin with",
    },
    OptionDef {
        name: HARDWARE_COMPATIBLE,
        form: Form::Flag,
        key: Some("trt_engine_hw_compatible"),
        about: "engines for every GPU from Ampere on, at some loss of speed",
    },
    OptionDef {
        name: "share-context",
        form: Form::Flag,
        key: Some("trt_context_memory_sharing_enable"),
        about: "parts of one graph share their scratch memory",
    },
    cuda::STREAM,
    cuda::ASYNC,
    OptionDef {
        name: "sequential",
        form: Form::Flag,
        key: Some("trt_force_sequential_engine_build"),
        about: "build one engine at a time where several GPUs could build at once",
    },
    OptionDef {
        name: "min-subgraph",
        form: Form::Number { min: 1, max: 10_000 },
        key: Some("trt_min_subgraph_size"),
        about: "fewest nodes that become an engine",
    },
    OptionDef {
        name: "sparsity",
        form: Form::Flag,
        key: Some("trt_sparsity_enable"),
        about: "kernels for weights with 2:4 zeros",
    },
    OptionDef {
        name: "build-log",
        form: Form::Flag,
        key: Some("trt_detailed_build_log"),
        about: "log each step of the builder",
    },
];

/// Options that ONNX Runtime has twice: a switch, and the folder that alone means nothing.
pub(super) const IMPLIED: &[(&str, &str)] =
    &[(TIMING_CACHE, "trt_timing_cache_enable"), (ENGINE_CACHE, "trt_engine_cache_enable")];
