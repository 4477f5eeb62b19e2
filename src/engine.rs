//! A loaded model: immutable, and shared by all requests.

mod arithmetic;
mod build;
mod files;
mod loader;
mod opening;
mod probe;
mod stages;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ndarray::ArrayD;

pub use self::build::{Builder, PlannedBuild};
pub use self::files::{StageFile, write_stages};
use self::loader::Loader;
pub(crate) use self::opening::{check_provider, choose_weights, open, planned};
use self::opening::{copies_weights, verify, work};
pub use self::probe::ModelPart;
pub(crate) use self::stages::{LoadedPlan, LoadedStage, Loading, Stages, sizes};
use crate::cancel::CancelToken;
use crate::collective::ContextParallel;
use crate::error::Result;
use crate::exit::enter;
use crate::model::directory::EngineDirectory;
use crate::model::graph::Graph;
use crate::model::manifest::DType;
pub use crate::plan::StagesChoice;
use crate::plan::{Cuts, Limits, Plan};
use crate::request::cuts;
use crate::request::engine_options::{ArithmeticChoice, EngineOptions};
pub use crate::runtime::compiler::BuildCounts;
use crate::runtime::compiler::Compiler;
use crate::runtime::device::Device;
use crate::runtime::device_memory::DeviceMemory;
use crate::runtime::foreign::{self, ForeignTensor};
use crate::runtime::kernels::Kernels;
use crate::runtime::library::{self, LibraryInfo};
use crate::runtime::provider::{ProviderSpec, Role};
use crate::runtime::session::Session;
use crate::runtime::source::WeightsMode;
use crate::text::{PromptReader, TextEncoder};

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
    pub memory: Arc<DeviceMemory>,
    /// Providers that were asked for before the one that is used, and why they are not.
    pub refused: Vec<String>,
    pub weights: WeightsMode,
    pub arithmetic_choice: ArithmeticChoice,
    /// The other processes that make the same generations.
    pub context_parallel: Option<ContextParallel>,
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
        let directory = open(directory.as_ref(), options)?;
        let reader = PromptReader::load(&directory)?.map(Arc::new);
        Self::of(directory, reader, options, start)
    }

    /// As [`load`](Self::load), of a directory that [`open`] has given for these options, since `start`. `reader` is that of
    /// its prompts.
    pub(crate) fn of(
        mut directory: EngineDirectory,
        reader: Option<Arc<PromptReader>>,
        options: &EngineOptions,
        start: Instant,
    ) -> Result<Self> {
        let _inside = enter()?;
        if options.verify {
            verify(&directory)?;
        }
        if let Some(parallel) = &options.context_parallel {
            parallel.agree("version of this program", &env!("CARGO_PKG_VERSION"))?;
            parallel.agree("engine directory", &directory.hash)?;
            parallel.agree("method", &parallel.method.as_str())?;
            parallel.agree("dtype (the option `compute`)", &format!("{:?}", directory.manifest.compute_dtype))?;
        }
        let cuts = cuts::of_engine(&directory.manifest, options)?;
        let library = library::environment_for(&options.library, &options.provider, work(&directory))?;
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
        let context_parallel = options.context_parallel.as_ref().map(ContextParallel::metered);
        let group = context_parallel.as_ref().map(|parallel| &parallel.group);
        let (device, (loader, stages, sessions), refused) =
            Device::first(&library, &options.provider, options.allow_fallback, group, load)?;
        let mut sessions = sessions.into_iter();
        let text_sessions = sessions.by_ref().take(directory.text.len()).collect();
        let decode = sessions.next();
        let text = reader.map(|reader| TextEncoder::new(reader, text_sessions));
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
            memory: Arc::new(DeviceMemory::new(Arc::clone(&device))),
            device,
            refused,
            weights,
            arithmetic_choice: options.arithmetic,
            context_parallel,
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
        foreign::read(&self.0.memory, tensor)
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
        self.0.text.as_ref().and_then(|text| text.reader.words())
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
        let compiled = self.loader.compiler().map(Compiler::warnings).unwrap_or_default();
        let fallbacks = self.device.fallbacks().into_iter().map(|graph| format!("not on the provider: {graph}"));
        let unrecorded = self.device.unrecorded().into_iter().map(|stage| format!("not captured: {stage}"));
        self.refused.clone().into_iter().chain(fallbacks).chain(unrecorded).chain(damaged).chain(compiled)
    }
}
