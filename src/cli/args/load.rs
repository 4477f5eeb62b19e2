//! How an engine is loaded.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use dbcache_trt::cache::PolicyConfig;
use dbcache_trt::options::{parse_bytes, parse_value};
use dbcache_trt::{
    ArithmeticChoice, BuildCache, ComputeChoice, EngineOptions, LibraryOptions, Profile, Providers, StagesChoice,
    WeightsChoice,
};

/// How the engine is loaded.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine options")]
pub struct LoadArgs {
    /// Threads that compute [default: physical cores; 1 where blocks are too small to share]
    #[arg(long, value_name = "N", value_parser = parse_value::<usize>)]
    threads: Option<usize>,
    /// Let idle threads spin: faster on a quiet machine, much slower on a busy one
    #[arg(long)]
    spin: bool,
    /// ONNX Runtime's library file [default: ORT_DYLIB_PATH, beside the program, where setup puts it, the system's]
    #[arg(long, value_name = "FILE")]
    ort_library: Option<PathBuf>,
    /// Where the model is now: its folder, a component's, or one of a Hugging Face cache [default: where the engine says]
    #[arg(long, value_name = "DIR")]
    weights: Option<PathBuf>,
    /// Where the weights live: packed (fast steps), mapped (no f32 copy; for models that do not fit) [default: by size]
    #[arg(long, value_name = "MODE", value_parser = choice::<WeightsChoice>(WeightsChoice::NAMES))]
    weights_mode: Option<WeightsChoice>,
    #[command(flatten)]
    stages: StagesArgs,
    /// How residuals and diffs are computed: loops where possible, always ONNX graphs, or as parts of the stages
    /// [default: auto]
    #[arg(long, value_name = "WAY", value_parser = choice::<ArithmeticChoice>(ArithmeticChoice::NAMES), hide_short_help = true)]
    arithmetic: Option<ArithmeticChoice>,
    /// In which dtype the transformer computes: fp32, fp16 or bf16; normalisations, softmax and the streams stay f32
    /// [default: as exported]
    #[arg(long, value_name = "DTYPE", value_parser = choice::<ComputeChoice>(ComputeChoice::NAMES))]
    compute: Option<ComputeChoice>,
    /// What computes: cpu, cuda, tensorrt, tensorrt-rtx, openvino or webgpu, with options (tensorrt:device=0,workspace=4G); or
    /// a list, of which the first that can be used runs everything [default: cpu]. `dbcache-trt providers` explains them
    #[arg(long, value_name = "LIST")]
    provider: Option<Providers>,
    /// Let nodes that the provider cannot run run elsewhere; they are listed as warnings
    #[arg(long)]
    allow_fallback: bool,
    /// Where the builds are kept, which are what tensorrt, tensorrt-rtx and openvino compile: a folder, or `none` [default: in
    /// the user's cache folder]
    #[arg(long, value_name = "DIR")]
    build_cache: Option<BuildCache>,
    /// What --build-cache was called
    #[arg(long, value_name = "DIR", hide = true, conflicts_with = "build_cache")]
    engine_cache: Option<BuildCache>,
    /// Compile nothing: a build that is missing is an error, which names the command that makes it
    #[arg(long)]
    require_built: bool,
    /// For which sizes and dimensions builds are made, or graphs are fixed where runs are captured:
    /// 512..1024,batch=1..2 [default: any; for tensorrt the engine's size and a batch of 1]
    #[arg(long, value_name = "RANGES")]
    profile: Option<Profile>,
    /// Compare the content hash of all weights before anything runs
    #[arg(long)]
    verify: bool,
}

/// One of a few texts, as the library reads them.
pub(super) fn choice<T: FromStr<Err = dbcache_trt::Error> + Clone + Send + Sync + 'static>(
    names: impl IntoIterator<Item = &'static str>,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(names).try_map(|text| text.parse::<T>())
}

/// How blocks become ONNX Runtime sessions.
#[derive(Debug, Args)]
pub struct StagesArgs {
    /// How many blocks run as one session: auto, per-block, fused, or N at most; a session ends wherever the cache looks
    /// [default: auto]
    #[arg(long, value_name = "PLAN")]
    pub stages: Option<StagesChoice>,
    /// Most bytes of weights and graph of one session: bytes, or with K, M or G (powers of 1024)
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub stage_bytes: Option<u64>,
}

impl LoadArgs {
    /// Whether the build cache is named by what its flag was called.
    pub fn has_old_flag(&self) -> bool {
        self.engine_cache.is_some()
    }

    /// To serve requests with this policy.
    pub fn options(&self, cache: &PolicyConfig) -> EngineOptions {
        EngineOptions {
            library: LibraryOptions { path: self.ort_library.clone(), threads: self.threads, spin: self.spin },
            weights: self.weights_mode.unwrap_or_default(),
            stages: self.stages.stages.unwrap_or_default(),
            stage_bytes: self.stages.stage_bytes,
            cache: cache.clone(),
            arithmetic: self.arithmetic.unwrap_or_default(),
            compute: self.compute.unwrap_or_default(),
            provider: self.provider.clone().unwrap_or_default(),
            allow_fallback: self.allow_fallback,
            build_cache: self.build_cache.as_ref().or(self.engine_cache.as_ref()).cloned().unwrap_or_default(),
            require_built: self.require_built,
            profile: self.profile.clone(),
            weights_folder: self.weights.clone(),
            verify: self.verify,
            ..EngineOptions::default()
        }
    }
}
