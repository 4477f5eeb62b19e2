//! A loaded model: immutable, and shared by all requests.

mod arithmetic;
mod build;
mod files;
mod loader;
mod probe;
mod stages;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ndarray::ArrayD;

pub use self::build::{Builder, PlannedBuild};
pub use self::files::{StageFile, write_stages};
use self::loader::Loader;
pub use self::probe::ModelPart;
pub(crate) use self::stages::{LoadedPlan, LoadedStage, Loading, Stages, sizes};
use crate::cache::PolicyConfig;
use crate::cancel::CancelToken;
use crate::error::{At, Error, Result};
use crate::exit::enter;
use crate::model::compute::Attention;
use crate::model::directory::{EngineDirectory, ExpertGraphs};
use crate::model::graph::Graph;
use crate::model::manifest::DType;
pub use crate::plan::StagesChoice;
use crate::plan::{Cuts, Limits, Plan};
use crate::request::cuts;
use crate::request::engine_options::{ArithmeticChoice, BuildCache, EngineOptions, WeightsChoice};
pub use crate::runtime::compiler::BuildCounts;
use crate::runtime::device::Device;
use crate::runtime::foreign::{self, ForeignTensor};
use crate::runtime::kernels::Kernels;
use crate::runtime::library::{self, LibraryInfo, Work};
use crate::runtime::provider::{ProviderKind, ProviderSpec, Role};
use crate::runtime::session::{Session, WeightsMode};
use crate::text::TextEncoder;

/// A loaded model. Cloning gives another handle to the same engine; requests may run on several threads at once.
#[derive(Clone)]
pub struct Engine(Arc<LoadedEngine>);

/// Everything that requests share.
pub(crate) struct LoadedEngine {
    pub directory: EngineDirectory,
    pub loader: Loader,
    /// Of each transformer.
    pub stages: Vec<Stages>,
    pub text: Option<TextEncoder>,
    pub decode: Option<Arc<Session>>,
    pub device: Arc<Device>,
    /// Providers that were asked for before the one that is used, and why they are not.
    pub refused: Vec<String>,
    pub weights: WeightsMode,
    pub arithmetic_choice: ArithmeticChoice,
    pub load_ms: f64,
    /// The small graphs of the cache, the scheduler and guidance.
    pub kernels: Kernels,
}

impl Engine {
    /// Loads an engine directory: checks every file, then makes one ONNX Runtime session per graph.
    ///
    /// # Errors
    /// `EngineDirectory`, `Runtime`, `Cancelled`, `Library`; `Usage` for other threads than the process has already.
    pub fn load(directory: impl AsRef<Path>, options: &EngineOptions) -> Result<Self> {
        let start = Instant::now();
        Self::of(open(directory.as_ref(), options)?, options, start)
    }

    /// As [`load`](Self::load), of a directory that [`open`] has given for these options, since `start`.
    pub(crate) fn of(mut directory: EngineDirectory, options: &EngineOptions, start: Instant) -> Result<Self> {
        let _inside = enter()?;
        if options.verify {
            verify(&directory)?;
        }
        let cuts = cuts::of_engine(&directory.manifest, options)?;
        let library = library::environment_for(&options.library, work(&directory))?;
        let weights = choose_weights(options.weights, &directory);
        let graphs: Vec<&Graph> = directory.text.iter().chain(&directory.decode).collect();
        check_provider(options, &directory)?;
        let load = |device: &Device| {
            let loader = Loader::new(&directory, options, device, weights)?;
            let limits = Limits::new(options.stages, options.stage_bytes, &sizes(&directory))?;
            let copies_weights = copies_weights(device.spec().kind(), weights, options.arithmetic);
            let stages = Stages::of_experts(&directory, limits, options.other_plan, copies_weights);
            if options.require_built {
                let joined =
                    stages.iter().map(|stages| stages.graphs(&directory, &cuts)).collect::<Result<Vec<_>>>()?;
                let all: Vec<&Graph> = graphs.iter().copied().chain(joined.iter().flatten()).collect();
                loader.check_built(device, &all)?;
            }
            for stages in &stages {
                stages.load(&directory, Loading { device, loader: &loader }, &cuts, &options.cancel)?;
            }
            let sessions = loader.sessions(device, Role::Model, &graphs, &options.cancel)?;
            Ok((loader, stages, sessions))
        };
        let (device, (loader, stages, sessions), refused) =
            Device::first(&library, &options.provider, options.allow_fallback, load)?;
        let mut sessions = sessions.into_iter();
        let text_sessions = sessions.by_ref().take(directory.text.len()).collect();
        let decode = sessions.next();
        let text = match &directory.manifest.text {
            Some(spec) => Some(TextEncoder::load(&directory, spec, text_sessions)?),
            None => None,
        };
        directory.tokenizers.clear();
        let kernels = Kernels::new(Arc::clone(&device));
        let load_ms = start.elapsed().as_secs_f64() * 1e3;
        tracing::info!(load_ms, ?weights, "engine loaded");
        Ok(Self(Arc::new(LoadedEngine {
            directory,
            loader,
            stages,
            text,
            decode,
            device,
            refused,
            weights,
            arithmetic_choice: options.arithmetic,
            load_ms,
            kernels,
        })))
    }

    /// Copies a tensor from memory that a host has made by itself, for [`Inputs::tensors`](crate::Inputs::tensors).
    ///
    /// # Errors
    /// `Usage` where the engine's provider does not know that memory; `Input` for an impossible shape; `Runtime`.
    pub fn import(&self, tensor: &ForeignTensor) -> Result<ArrayD<f32>> {
        let _inside = enter()?;
        foreign::read(&self.0.device, tensor)
    }

    /// What its requests share.
    pub(crate) fn loaded(&self) -> Arc<LoadedEngine> {
        Arc::clone(&self.0)
    }

    /// The ONNX Runtime that runs it.
    pub fn library(&self) -> &LibraryInfo {
        &self.0.device.library.info
    }

    /// The provider that runs it, with its options.
    pub fn provider(&self) -> &ProviderSpec {
        self.0.device.spec()
    }

    /// Whether the weights are mapped rather than packed.
    pub fn is_mapped(&self) -> bool {
        self.0.weights == WeightsMode::Mapped
    }

    /// How long loading took.
    pub fn load_ms(&self) -> f64 {
        self.0.load_ms
    }

    /// The words of a model that knows words rather than text.
    pub fn words(&self) -> Option<Vec<String>> {
        self.0.text.as_ref().and_then(TextEncoder::words)
    }
}

impl LoadedEngine {
    /// The stages of each transformer for a policy that wants to see these cuts. All are divided at once, also where a
    /// request runs one alone, so that they stay alike.
    ///
    /// # Errors
    /// `Usage` where they are not loaded and may not be; `Runtime`, `Cancelled`.
    pub(crate) fn load_plans(&self, cuts: &Cuts, cancel: &CancelToken) -> Result<Vec<Arc<LoadedPlan>>> {
        let on = Loading { device: &self.device, loader: &self.loader };
        let load = |stages: &Stages| stages.for_request(&self.directory, on, cuts, cancel).map(Arc::new);
        self.stages.iter().map(load).collect()
    }

    /// The plan for these cuts, which is that of each transformer. Nothing is loaded.
    pub(crate) fn plan(&self, cuts: &Cuts) -> Plan {
        self.stages[0].plan(&self.directory, cuts)
    }

    /// Whether loops over host memory serve tensors of these dtypes.
    pub(crate) fn computes_on_host(&self, dtypes: &[DType]) -> bool {
        let is_host = self.device.is_host() && self.arithmetic_choice == ArithmeticChoice::Auto;
        is_host && dtypes.iter().all(|dtype| *dtype == DType::F32)
    }

    /// What the user should know of where the engine computes.
    pub(crate) fn provider_warnings(&self) -> impl Iterator<Item = String> {
        let damaged = self.loader.counts().unwrap_or_default().damaged.into_iter();
        let damaged = damaged.map(|build| format!("a build was damaged, and was made again: {build}"));
        let fallbacks = self.device.fallbacks().into_iter().map(|graph| format!("not on the provider: {graph}"));
        let unrecorded = self.device.unrecorded().into_iter().map(|stage| format!("not captured: {stage}"));
        self.refused.clone().into_iter().chain(fallbacks).chain(unrecorded).chain(damaged)
    }
}

/// The plan that an engine would have for a policy; nothing is loaded.
pub(crate) fn planned(directory: &EngineDirectory, load: &EngineOptions, cache: &PolicyConfig) -> Result<Plan> {
    let sizes = sizes(directory);
    let limits = Limits::new(load.stages, load.stage_bytes, &sizes)?;
    let cuts = cuts::of_policy(&directory.manifest, cache, load.arithmetic)?;
    Ok(Plan::new(&sizes, limits, &cuts))
}

/// Opens a directory for the providers of these options: all of them can run what it gives.
///
/// # Errors
/// `EngineDirectory`; `Usage` for a dtype that its graphs cannot compute in, or a precision that has no effect on them.
pub(crate) fn open(directory: &Path, options: &EngineOptions) -> Result<EngineDirectory> {
    let path = directory;
    let takes_softmax = options.provider.iter().all(|spec| spec.kind().takes_softmax_precision());
    let attention = if takes_softmax { Attention::SoftmaxInF32 } else { Attention::ByProvider };
    let directory = EngineDirectory::open(path, options.weights_folder.as_deref())?;
    let directory = match options.compute.dtype() {
        Some(dtype) => directory.computing_in(dtype, attention).at(format!("engine {}", path.display()))?,
        None => directory,
    };
    let blocks = || directory.experts.iter().flat_map(|expert| &expert.blocks);
    let is_quantised = || blocks().any(|block| block.runs(&["QuantizeLinear", "DequantizeLinear"]));
    for spec in options.provider.iter() {
        spec.check_precision(directory.manifest.compute_dtype, is_quantised)?;
    }
    let takes_bf16 = options.provider.iter().all(|spec| spec.kind().takes_bf16_ports());
    if takes_bf16 { Ok(directory) } else { directory.without_bf16_ports() }
}

/// Refuses what no provider of the list obeys, and a dtype in which one of them does not compute.
pub(crate) fn check_provider(options: &EngineOptions, directory: &EngineDirectory) -> Result<()> {
    let (computes, exported) = (directory.manifest.compute_dtype, directory.exported_dtype);
    options.provider.iter().try_for_each(|spec| spec.kind().check_dtype(computes, computes != exported))?;
    let is_cpu = |spec: &ProviderSpec| spec.kind() == ProviderKind::Cpu;
    if options.allow_fallback && options.provider.iter().all(is_cpu) {
        return Err(Error::usage(
            "the option `allow-fallback` has no effect: the provider `cpu` runs everything; leave it out",
        ));
    }
    let compiles = options.provider.iter().any(|spec| spec.kind().compiles());
    let captures = options.provider.iter().any(|spec| spec.captures().is_some());
    let compiled = [
        ("build-cache", options.build_cache != BuildCache::User && !compiles),
        ("require-built", options.require_built && !compiles),
        ("profile", options.profile.is_some() && !compiles && !captures),
    ];
    if let Some((name, _)) = compiled.iter().find(|(_, is_idle)| *is_idle) {
        let provider = &options.provider;
        let recorder = provider.iter().map(ProviderSpec::kind).find(|kind| *name == "profile" && kind.can_capture());
        let other = recorder.map_or(String::new(), |kind| {
            format!(", or set the option `graph-captures` of `{kind}`, with which it takes effect")
        });
        return Err(Error::option(
            name,
            format!("has no effect: the provider `{provider}` compiles nothing; leave it out{other}"),
        ));
    }
    if options.require_built && options.build_cache == BuildCache::None {
        return Err(Error::option(
            "require-built",
            "and the option `build-cache=none` exclude each other: nothing could be built before",
        ));
    }
    if options.weights == WeightsChoice::Mapped && !options.provider.iter().all(is_cpu) {
        let message = "the option `weights-mode=mapped` has no effect: only the provider `cpu` runs from mapped weights; leave it out";
        return Err(Error::usage(message));
    }
    Ok(())
}

/// Compares the weights with the manifest's hashes.
fn verify(directory: &EngineDirectory) -> Result<()> {
    let unknown = directory.verify()?;
    if unknown.is_empty() {
        return Ok(());
    }
    Err(Error::directory(format!(
        "cannot verify {}: the manifest has no content hash; export again, and keep the content hash",
        unknown.join(", ")
    )))
}

/// Whether a block that is part of two stages would have its weights twice, and may run in parts of them instead: not
/// where they are mapped, where builds are made for one division, or where stages hold a policy's arithmetic.
fn copies_weights(kind: ProviderKind, weights: WeightsMode, arithmetic: ArithmeticChoice) -> bool {
    let is_mapped = kind == ProviderKind::Cpu && weights == WeightsMode::Mapped;
    !is_mapped && !kind.compiles() && arithmetic != ArithmeticChoice::Stages
}

/// A block that multiplies less than this at the default size gains nothing from a second thread (docs/speed-log.md):
/// about 3 ms on one core.
const LARGE_WORK: u64 = 200_000_000;

fn work(directory: &EngineDirectory) -> Work {
    let manifest = &directory.manifest;
    let cell = manifest.latents.downscale * manifest.latents.patch;
    let frames = manifest.video.map_or(1, |video| (video.frames.default - 1) / video.temporal_downscale + 1);
    let tokens: u64 = frames * manifest.size.default.iter().map(|side| side / cell).product::<u64>();
    let blocks = directory.experts.iter().flat_map(|expert| &expert.blocks);
    let largest = blocks.map(|block| block.parameters).max().unwrap_or_default();
    let operations = largest.saturating_mul(2).saturating_mul(tokens);
    if operations < LARGE_WORK { Work::Small } else { Work::Large }
}

pub(crate) fn choose_weights(choice: WeightsChoice, directory: &EngineDirectory) -> WeightsMode {
    match choice {
        WeightsChoice::Packed => WeightsMode::Packed,
        WeightsChoice::Mapped => WeightsMode::Mapped,
        WeightsChoice::Auto => {
            let graphs = directory.experts.iter().flat_map(ExpertGraphs::all).chain(&directory.text);
            let needed = 4 * graphs.chain(&directory.decode).map(|graph| graph.parameters).sum::<u64>();
            match available_memory() {
                // Packing holds two copies for a moment, and a request needs room as well.
                Some(available) if needed > available / 4 * 3 => WeightsMode::Mapped,
                _ => WeightsMode::Packed,
            }
        }
    }
}

/// Bytes that can be had without swapping; unknown where the system has no /proc.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
