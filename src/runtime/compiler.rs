//! The sessions of a provider that compiles: found in the store of builds, or compiled into it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

use super::build_cache::differences::MissingBuilds;
use super::build_cache::key::{Ingredients, Key, KeyProfile, KeyTarget, ranges};
use super::build_cache::parameters::digests;
use super::build_cache::timing::Timing;
use super::build_cache::{BuildStore, StoreOutcome};
use super::device::Device;
use super::provider::compile::{Extra, MODEL, Shapes, check_places, shape_options, writing};
use super::session::Session;
use super::source::SessionSource;
use crate::error::{Error, ErrorKind, Result};
use crate::model::graph::Graph;

/// What became of the builds of a provider that compiles.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BuildCounts {
    /// Compiled by this process.
    pub built: usize,
    /// Found in the cache.
    pub loaded: usize,
    /// How long compiling took, all builds together.
    pub build_seconds: f64,
    /// Builds that were damaged, and made again: which, and what was wrong.
    pub damaged: Vec<String>,
}

impl BuildCounts {
    /// As a part of traces and of the engine's facts.
    pub fn to_json(&self) -> Value {
        let Self { built, loaded, build_seconds, damaged } = self;
        json!({ "built": built, "loaded": loaded, "build_seconds": build_seconds, "damaged": damaged })
    }
}

/// Such as `2 compiled in 12.5 s, 12 loaded from the cache`.
impl fmt::Display for BuildCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { built, loaded, build_seconds, .. } = self;
        write!(f, "{built} compiled in {build_seconds:.1} s, {loaded} loaded from the cache")
    }
}

/// Gives the sessions of one engine, on one provider.
pub(crate) struct Compiler {
    /// None: builds are compiled for this process alone.
    store: Option<BuildStore>,
    target: KeyTarget,
    /// For which the timings of kernels hold.
    timing: KeyTarget,
    profiles: BTreeMap<String, KeyProfile>,
    may_build: bool,
    counts: Mutex<BuildCounts>,
    /// Builds that had to be compiled.
    compiled: Mutex<MissingBuilds>,
}

/// A graph with everything that its build depends on.
pub(crate) struct Job<'g> {
    graph: &'g Graph,
    source: SessionSource<'g>,
    /// Options that bound its shapes.
    shapes: Vec<(String, String)>,
    /// Only where there is a store.
    ingredients: Option<Ingredients>,
}

impl<'g> Job<'g> {
    /// What it is called.
    pub(crate) fn name(&self) -> &'g str {
        self.source.name
    }

    /// The key of its build; none without a store.
    pub(crate) fn key(&self) -> Result<Option<Key>> {
        self.ingredients.as_ref().map(Ingredients::key).transpose()
    }
}

impl Compiler {
    /// `profiles` are the extents for which builds are compiled; none for any.
    ///
    /// # Errors
    /// `Usage` if the provider is told to keep builds elsewhere as well.
    pub(crate) fn new(
        device: &Device,
        store: Option<BuildStore>,
        profiles: BTreeMap<String, KeyProfile>,
        may_build: bool,
    ) -> Result<Self> {
        if store.is_some() {
            check_places(device.spec())?;
        }
        let [target, timing] = [device.target(), device.timing_target()];
        Ok(Self { store, target, timing, profiles, may_build, counts: Mutex::default(), compiled: Mutex::default() })
    }

    pub(crate) fn store(&self) -> Option<&BuildStore> {
        self.store.as_ref()
    }

    pub(crate) fn may_build(&self) -> bool {
        self.may_build
    }

    /// So far.
    pub(crate) fn counts(&self) -> BuildCounts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Finds out what the builds of these graphs depend on: parameters that were not read before are.
    ///
    /// # Errors
    /// `Io`; `Internal`.
    pub(crate) fn jobs<'g>(
        &self,
        device: &Device,
        graphs: &[(&'g Graph, SessionSource<'g>, Option<Box<Shapes>>)],
    ) -> Result<Vec<Job<'g>>> {
        let kind = device.spec().kind();
        let all: Vec<&Graph> = graphs.iter().map(|(graph, ..)| *graph).collect();
        let mut ingredients = self.ingredients(&all)?.into_iter();
        let job = |(graph, source, shapes): &(&'g Graph, SessionSource<'g>, Option<Box<Shapes>>)| {
            let shapes = shapes.as_deref().map(|shapes| shape_options(kind, shapes)).unwrap_or_default();
            Job { graph, source: *source, shapes, ingredients: ingredients.next() }
        };
        Ok(graphs.iter().map(job).collect())
    }

    /// One for each graph, or none without a store.
    fn ingredients(&self, graphs: &[&Graph]) -> Result<Vec<Ingredients>> {
        let Some(store) = &self.store else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for graph in graphs {
            all.extend(ranges(graph)?);
        }
        let digests = digests(all, Some(&store.weights()))?;
        let one = |graph: &&Graph| Ingredients::new(graph, &digests, self.profiles.clone(), self.target.clone());
        graphs.iter().map(one).collect()
    }

    /// The jobs that would have to be compiled, as far as is known without reading the builds.
    pub(crate) fn missing<'j, 'g>(&self, jobs: &'j [Job<'g>]) -> Result<Vec<&'j Job<'g>>> {
        let Some(store) = &self.store else { return Ok(jobs.iter().collect()) };
        let mut missing = Vec::new();
        for job in jobs {
            if job.key()?.is_none_or(|key| !store.seems_built(&key)) {
                missing.push(job);
            }
        }
        Ok(missing)
    }

    /// For each of these jobs, for what else the store holds a build of the same graph: ``for the GPU `A`; this one is `B` ``.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn held_for(&self, device: &Device, jobs: &[&Job<'_>]) -> Result<Vec<Option<String>>> {
        let Some(store) = self.store.as_ref().filter(|_| !jobs.is_empty()) else { return Ok(vec![None; jobs.len()]) };
        let wanted: Vec<&Ingredients> = jobs.iter().filter_map(|job| job.ingredients.as_ref()).collect();
        let similar = store.similar(&wanted, device.spec().kind().device_word())?;
        Ok(similar.into_iter().map(|found| found.map(|differences| differences.to_string())).collect())
    }

    /// Remembers which builds are about to be compiled, and what the store holds instead.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn note_missing(&self, device: &Device, jobs: &[Job<'_>]) -> Result<()> {
        let held_for = self.held_for(device, &self.missing(jobs)?)?;
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        held_for.iter().for_each(|held_for| compiled.add(held_for.as_deref()));
        Ok(())
    }

    /// What the user should know of builds that were compiled although the store holds others of their graphs.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        compiled.lines().into_iter().map(|line| format!("{line}; compiled anew")).collect()
    }

    /// The session of a graph, compiled only if it must be.
    ///
    /// # Errors
    /// `Runtime`; `Provider` when a part of the graph would run elsewhere; `NotBuilt`; `Io`.
    pub(crate) fn session(&self, device: &Device, job: &Job<'_>) -> Result<Session> {
        let (Some(store), Some(ingredients)) = (&self.store, &job.ingredients) else {
            let start = Instant::now();
            let extra = Extra { provider: job.shapes.clone(), ..Extra::default() };
            let session = Session::load_with(device, &job.source, &extra)?;
            self.count(job, &StoreOutcome::Built { seconds: start.elapsed().as_secs_f64(), damaged: None });
            return Ok(session);
        };
        let build = |folder: &Path| self.write(device, store, job, ingredients, folder);
        let (found, outcome) = store.find_or_build(job.name(), ingredients, self.may_build, build)?;
        let session = Session::load_build(device, &job.source, &found.model()).map_err(|error| {
            let key = &found.record.key;
            error.at(format!(
                "the build {key} is whole, but the provider refuses it (if that does not pass, remove it from the \
                 cache)"
            ))
        })?;
        self.count(job, &outcome);
        Ok(session)
    }

    /// Compiles a graph into the store, unless it is there.
    ///
    /// # Errors
    /// As [`session`](Self::session); `Usage` without a store.
    pub(crate) fn compile(&self, device: &Device, job: &Job<'_>) -> Result<()> {
        let (Some(store), Some(ingredients)) = (&self.store, &job.ingredients) else {
            return Err(Error::option("build-cache", "is `none`: there is no place for what would be compiled"));
        };
        let build = |folder: &Path| self.write(device, store, job, ingredients, folder);
        let (_, outcome) = store.find_or_build(job.name(), ingredients, self.may_build, build)?;
        self.count(job, &outcome);
        Ok(())
    }

    /// Compiles a graph into a folder.
    fn write(
        &self,
        device: &Device,
        store: &BuildStore,
        job: &Job<'_>,
        ingredients: &Ingredients,
        folder: &Path,
    ) -> Result<String> {
        let kind = device.spec().kind();
        let key = ingredients.key()?;
        let timing = if kind.times_kernels() { Some(Timing::take(store, &key, &self.timing)?) } else { None };
        let mut extra = writing(kind, folder, &key.as_str()[..16], timing.as_ref().map(Timing::folder));
        extra.provider.extend(job.shapes.iter().cloned());
        drop(Session::load_with(device, &job.source, &extra)?);
        // What was compiled in must be what the key speaks of.
        if self.ingredients(&[job.graph])?.first() != Some(ingredients) {
            let message = "the weights changed while they were compiled; start again when nothing writes to them";
            return Err(Error::new(ErrorKind::Io, message).at(job.name()));
        }
        timing.map_or(Ok(()), |timing| timing.give_back())?;
        Ok(MODEL.to_owned())
    }

    fn count(&self, job: &Job<'_>, outcome: &StoreOutcome) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            StoreOutcome::Loaded => counts.loaded += 1,
            StoreOutcome::Built { seconds, damaged } => {
                counts.built += 1;
                counts.build_seconds += seconds;
                let name = job.name();
                counts.damaged.extend(damaged.iter().map(|reason| format!("{name}: {reason}")));
            }
        }
    }
}
