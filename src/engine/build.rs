//! Makes the builds of a model ahead of time, one by one, so that a host can give each a process of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::loader::Loader;
use super::opening::{check_provider, choose_weights, open, verify, work};
use super::stages::{Stages, sizes};
use crate::error::{Error, ErrorKind, Result};
use crate::exit::enter;
use crate::model::cache_dtype::CacheDType;
use crate::model::directory::EngineDirectory;
use crate::model::graph::Graph;
use crate::plan::Limits;
use crate::request::cuts;
use crate::request::engine_options::{ArithmeticChoice, EngineOptions};
use crate::runtime::build_cache::differences::MissingBuilds;
use crate::runtime::build_cache::key::weight_bytes;
use crate::runtime::compiler::{BuildCounts, Compiler, Job};
use crate::runtime::device::Device;
use crate::runtime::library;
use crate::runtime::provider::ProviderKind;

/// Makes ahead of time what loading an engine with these options would compile: a build for each graph.
///
/// ```no_run
/// use dbcache_trt::{Builder, EngineOptions};
///
/// let options = EngineOptions { provider: "openvino".parse()?, ..EngineOptions::default() };
/// let builder = Builder::plan("models/emoji", &options)?;
/// for index in 0..builder.builds().len() {
///     builder.compile(index)?;
/// }
/// # Ok::<(), dbcache_trt::Error>(())
/// ```
pub struct Builder {
    directory: EngineDirectory,
    device: Arc<Device>,
    loader: Loader,
    /// Joined graphs; the others are those of the directory.
    stages: Vec<Graph>,
    planned: Vec<PlannedBuild>,
    refused: Vec<String>,
}

/// One build that an engine needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedBuild {
    /// The graph, or the blocks of a stage.
    pub name: String,
    /// Its key in the cache.
    pub key: String,
    /// Whether it seems to be there: its files are not read for that.
    pub is_built: bool,
    /// Bytes of the parameters that it compiles, as stored. The memory that compiling takes grows with them.
    pub weight_bytes: u64,
    /// If it is not there: for what else the cache holds a build of the same graph and parameters, such as ``for the GPU
    /// `A`; this one is `B` ``.
    pub held_for: Option<String>,
}

impl Builder {
    /// Finds out which builds there must be; nothing is compiled.
    ///
    /// # Errors
    /// As [`Engine::load`](crate::Engine::load); `Usage` if the provider does not compile, or there is no cache; `Provider` if
    /// those of a list that compile cannot be used.
    pub fn plan(directory: impl AsRef<Path>, options: &EngineOptions) -> Result<Self> {
        Self::of(open(directory.as_ref(), options)?, options)?
    }

    /// As [`plan`](Self::plan), of a directory that [`open`] has given for these options; the inner error says why nothing is
    /// compiled where all is well.
    pub(crate) fn of(directory: EngineDirectory, options: &EngineOptions) -> Result<Result<Self>> {
        let _inside = enter()?;
        check_provider(options, &directory)?;
        if options.verify {
            verify(&directory)?;
        }
        if options.build_cache.folder()?.is_none() {
            return Err(Error::option("build-cache", "is `none`: there is no place for what would be compiled"));
        }
        let cuts = cuts::of_engine(&directory.manifest, options)?;
        let holds_arithmetic = cuts.arithmetic.is_some();
        if options.arithmetic == ArithmeticChoice::Stages && !holds_arithmetic {
            let cache = &options.cache;
            return Err(Error::option(
                "arithmetic",
                format!(
                    "is `stages`, which refuses requests with the policy `{cache}`; give another cache, or leave it out"
                ),
            ));
        }
        if options.cache_dtype != CacheDType::Stream && !holds_arithmetic {
            let message = "has no effect on a build without the option `arithmetic=stages`: no stage holds what the cache keeps; leave it out";
            return Err(Error::option("cache-dtype", message));
        }
        // Before any provider is asked for: that could send the user to fetch one that is of no use here.
        if let Some(spec) = options.provider.iter().next()
            && !options.provider.iter().any(|spec| spec.kind().compiles())
        {
            return Ok(Err(Error::usage(compiles_nothing(spec.kind())).about("provider")));
        }
        let library = library::environment_for(&options.library, &options.provider, work(&directory))?;
        let weights = choose_weights(options.weights, &directory);
        let open = |device: &Device| Loader::new(&directory, options, device, weights);
        let (device, loader, refused) = Device::first(&library, &options.provider, options.allow_fallback, None, open)?;
        if loader.compiler().is_none() {
            // Why those of the list that could have compiled were passed over.
            let nothing = compiles_nothing(device.spec().kind());
            let message = format!("{}; and then: {nothing}", refused.join("; and then: "));
            return Ok(Err(Error::new(ErrorKind::Provider, message)));
        }
        let limits = Limits::new(options.stages, options.stage_bytes, &sizes(&directory))?;
        let mut stages = Vec::new();
        for of_expert in Stages::of_experts(&directory, limits, options.other_plan, false) {
            stages.extend(of_expert.graphs(&directory, &cuts)?);
        }
        let mut builder = Self { directory, device, loader, stages, planned: Vec::new(), refused };
        builder.planned = builder.look()?;
        Ok(Ok(builder))
    }

    /// The builds, in the order of the model: text, the stages, decode.
    pub fn builds(&self) -> &[PlannedBuild] {
        &self.planned
    }

    /// The provider that compiles, with its options.
    pub fn provider(&self) -> String {
        self.device.spec().to_string()
    }

    /// Providers that come first in the list, and why they are not used.
    pub fn refused(&self) -> &[String] {
        &self.refused
    }

    /// For what else the cache holds builds that are missing, a line for each reason.
    pub fn held_for(&self) -> Vec<String> {
        let mut missing = MissingBuilds::default();
        self.planned.iter().filter(|build| !build.is_built).for_each(|build| missing.add(build.held_for.as_deref()));
        missing.lines()
    }

    /// Whether a build that seems to be there is whole: reads its files.
    ///
    /// # Errors
    /// `Usage` for an index that is too large.
    pub fn is_whole(&self, index: usize) -> Result<bool> {
        let planned = self.planned.get(index).ok_or_else(|| Error::usage(format!("there is no build {index}")))?;
        let store = self.compiler()?.store();
        let graphs = self.graphs();
        let jobs = self.loader.jobs(&self.device, &graphs[index..=index])?;
        let key = jobs.first().map(|job| job.key()).transpose()?.flatten();
        Ok(planned.is_built && store.zip(key).is_some_and(|(store, key)| store.is_whole(&key)))
    }

    /// Compiles one build into the cache, unless it is there and whole.
    ///
    /// # Errors
    /// `Runtime`; `Provider` when a part of the graph would run elsewhere; `Io`; `Usage` for an index that is too large.
    pub fn compile(&self, index: usize) -> Result<BuildCounts> {
        let _inside = enter()?;
        let graphs = self.graphs();
        let graph = graphs.get(index).ok_or_else(|| Error::usage(format!("there is no build {index}")))?;
        let jobs = self.loader.jobs(&self.device, &[graph])?;
        let compiler = self.compiler()?;
        let before = compiler.counts();
        for job in &jobs {
            compiler.compile(&self.device, job)?;
        }
        let mut counts = compiler.counts();
        counts.built -= before.built;
        counts.loaded -= before.loaded;
        counts.build_seconds -= before.build_seconds;
        counts.damaged.drain(..before.damaged.len());
        Ok(counts)
    }

    /// Removes what killed builders of these builds left in the cache.
    ///
    /// # Errors
    /// `Io`.
    pub fn clean(&self) -> Result<()> {
        self.compiler()?.store().map_or(Ok(()), |store| store.remove_leftovers().map(drop))
    }

    fn compiler(&self) -> Result<&Compiler> {
        self.loader.compiler().ok_or_else(|| Error::internal("a build without a compiler"))
    }

    fn graphs(&self) -> Vec<&Graph> {
        self.directory.text.iter().chain(&self.stages).chain(&self.directory.decode).collect()
    }

    fn look(&self) -> Result<Vec<PlannedBuild>> {
        let graphs = self.graphs();
        let jobs = self.loader.jobs(&self.device, &graphs)?;
        let compiler = self.compiler()?;
        let missing = compiler.missing(&jobs)?;
        let held_for = compiler.held_for(&self.device, &missing)?;
        let held_for: BTreeMap<&str, Option<String>> = missing.iter().map(|job| job.name()).zip(held_for).collect();
        self.loader.refer(&jobs)?;
        let planned = |(job, graph): (&Job<'_>, &&Graph)| {
            Ok(PlannedBuild {
                name: job.name().to_owned(),
                key: job.key()?.map(String::from).unwrap_or_default(),
                is_built: !held_for.contains_key(job.name()),
                weight_bytes: weight_bytes(graph)?,
                held_for: held_for.get(job.name()).cloned().flatten(),
            })
        };
        jobs.iter().zip(&graphs).map(planned).collect()
    }
}

fn compiles_nothing(kind: ProviderKind) -> String {
    let compile: Vec<String> =
        ProviderKind::ALL.into_iter().filter(|kind| kind.compiles()).map(|kind| format!("`{kind}`")).collect();
    format!(
        "the option `provider` is `{kind}`, which compiles nothing: there is nothing to build; those that compile are {}",
        compile.join(", ")
    )
}
