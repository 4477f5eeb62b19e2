//! Loads the sessions of an engine, on one provider: compiled ones through the build cache.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::dispatcher::{self, Dispatch};

use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind, Result};
use crate::model::directory::EngineDirectory;
use crate::model::graph::Graph;
use crate::model::manifest::Extents;
use crate::request::engine_options::EngineOptions;
use crate::request::profile::{Extremes, Profile, check, shapes};
use crate::runtime::build_cache::BuildStore;
use crate::runtime::build_cache::differences::MissingBuilds;
use crate::runtime::compiler::{BuildCounts, Compiler, Job};
use crate::runtime::device::Device;
use crate::runtime::provider::Role;
use crate::runtime::session::Session;
use crate::runtime::source::{SessionSource, WeightsMode};
use crate::threads::on_threads;

/// Makes sessions of graphs.
pub(crate) struct Loader {
    weights: WeightsMode,
    /// Where the provider compiles.
    compiler: Option<Compiler>,
    /// The shapes that graphs are compiled for, or fixed to; none for any.
    extremes: Option<Extremes>,
    /// Dimensions of one extent, which stages are fixed to so that their runs can be captured.
    fixed: Vec<(String, u64)>,
    /// The engine directory, and the SHA-256 of its manifest.
    directory: (PathBuf, String),
}

impl Loader {
    /// # Errors
    /// `Usage`, `Input` for a profile that the model does not have; `Io` if the cache cannot be opened.
    pub(crate) fn new(
        directory: &EngineDirectory,
        options: &EngineOptions,
        device: &Device,
        weights: WeightsMode,
    ) -> Result<Self> {
        let kind = device.spec().kind();
        let mut extremes = None;
        let mut compiler = None;
        if kind.compiles() {
            let profile = options.profile.clone().or_else(|| kind.needs_shapes().then(Profile::default));
            extremes = profile.map(|profile| profile.resolve(&directory.manifest)).transpose()?;
            let store = options.build_cache.folder()?.map(BuildStore::open).transpose()?;
            let profiles = extremes.clone().unwrap_or_default();
            compiler = Some(Compiler::new(device, store, profiles, !options.require_built)?);
        } else if let Some(profile) = &options.profile {
            extremes = Some(profile.resolve_for_stages(&directory.manifest)?);
        }
        let is_fixed = |(name, [least, _, most]): (&String, &[u64; 3])| (least == most).then(|| (name.clone(), *least));
        let fixed = extremes.iter().filter(|_| compiler.is_none()).flatten().filter_map(is_fixed).collect();
        let directory = (directory.path.clone(), directory.hash.clone());
        Ok(Self { weights, compiler, extremes, fixed, directory })
    }

    /// What became of the builds; `None` if the provider does not compile.
    pub(crate) fn counts(&self) -> Option<BuildCounts> {
        self.compiler.as_ref().map(Compiler::counts)
    }

    /// Where the provider compiles.
    pub(super) fn compiler(&self) -> Option<&Compiler> {
        self.compiler.as_ref()
    }

    /// Refuses extents for which the builds were not made.
    ///
    /// # Errors
    /// `Input` with what to do.
    pub(crate) fn check_extents(&self, extents: &Extents) -> Result<()> {
        let Some(extremes) = &self.extremes else { return Ok(()) };
        let remedy = match self.compiler {
            Some(_) => "compile others with a profile that holds it, and give the same profile here",
            None => "load the engine with a profile that holds it, or without one",
        };
        check(extremes, extents, remedy)
    }

    /// What is to be compiled for these graphs; nothing where the provider does not compile.
    pub(super) fn jobs<'g>(&'g self, device: &Device, graphs: &[&'g Graph]) -> Result<Vec<Job<'g>>> {
        let Some(compiler) = &self.compiler else { return Ok(Vec::new()) };
        let mut with_shapes = Vec::new();
        for graph in graphs {
            let shapes = self.extremes.as_ref().map(|extremes| shapes(graph, extremes)).transpose()?;
            with_shapes.push((*graph, self.source(Role::Model, graph), shapes.map(Vec::into_boxed_slice)));
        }
        compiler.jobs(device, &with_shapes)
    }

    fn source<'g>(&'g self, role: Role, graph: &'g Graph) -> SessionSource<'g> {
        SessionSource {
            name: &graph.file,
            model: &graph.bytes,
            folder: graph.weights_folder.as_deref(),
            weights: self.weights,
            casts_weights: graph.casts_weights,
            fixed: if role == Role::Stage { &self.fixed } else { &[] },
            role,
        }
    }

    /// A session for each graph: stages of the model, or other parts of it.
    ///
    /// # Errors
    /// `Runtime`, `Provider`; `Cancelled` between two sessions; `NotBuilt` where a build is missing and none may be
    /// compiled.
    pub(crate) fn sessions(
        &self,
        device: &Device,
        role: Role,
        graphs: &[&Graph],
        cancel: &CancelToken,
    ) -> Result<Vec<Arc<Session>>> {
        let Some(compiler) = &self.compiler else {
            return in_parallel(graphs.len(), cancel, |index| Session::load(device, &self.source(role, graphs[index])));
        };
        self.check_built(device, graphs)?;
        let jobs = self.jobs(device, graphs)?;
        compiler.note_missing(device, &jobs)?;
        let sessions = in_parallel(jobs.len(), cancel, |index| compiler.session(device, &jobs[index]));
        let sessions = sessions?;
        self.refer(&jobs)?;
        Ok(sessions)
    }

    /// Refuses graphs without builds where none may be compiled.
    ///
    /// # Errors
    /// `NotBuilt` with their names.
    pub(super) fn check_built(&self, device: &Device, graphs: &[&Graph]) -> Result<()> {
        let Some(compiler) = self.compiler.as_ref().filter(|compiler| !compiler.may_build()) else { return Ok(()) };
        let jobs = self.jobs(device, graphs)?;
        let missing = compiler.missing(&jobs)?;
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = missing.iter().map(|job| job.name()).collect();
        let mut others = MissingBuilds::default();
        for held_for in compiler.held_for(device, &missing)? {
            others.add(held_for.as_deref());
        }
        let held: String = others.held().map(|held| format!("; {held}")).collect();
        Err(Error::new(
            ErrorKind::NotBuilt,
            format!(
                "{} of {} builds are missing ({}){held}; compile them first, or leave out the option `require-built`",
                names.len(),
                jobs.len(),
                names.join(", ")
            ),
        ))
    }

    /// Remembers in the cache that this engine directory uses these builds.
    pub(super) fn refer(&self, jobs: &[Job<'_>]) -> Result<()> {
        let Some(store) = self.compiler.as_ref().and_then(Compiler::store) else { return Ok(()) };
        let mut keys = Vec::new();
        for job in jobs {
            keys.extend(job.key()?);
        }
        let (directory, hash) = &self.directory;
        // A cache that may only be read serves all the same.
        if let Err(error) = store.refer(directory, hash, keys) {
            tracing::warn!(%error, "cannot remember which builds are used");
        }
        Ok(())
    }
}

/// Loads on as many threads as the machine offers: most of a load is ONNX Runtime's graph optimiser.
fn in_parallel(
    count: usize,
    cancel: &CancelToken,
    load: impl Fn(usize) -> Result<Session> + Sync,
) -> Result<Vec<Arc<Session>>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            let session = cancel.check().and_then(|()| load(index));
            let failed = session.is_err();
            done.lock().unwrap_or_else(PoisonError::into_inner).insert(index, session);
            if failed {
                next.store(count, Ordering::Relaxed);
            }
        }
    };
    // Whoever listens to this thread alone hears the others as well.
    let listener = dispatcher::get_default(Dispatch::clone);
    on_threads(threads, || dispatcher::with_default(&listener, work));
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let sessions: Vec<Arc<Session>> = done.into_values().map(|s| s.map(Arc::new)).collect::<Result<_>>()?;
    if sessions.len() == count { Ok(sessions) } else { Err(Error::internal("a loading thread was lost")) }
}
