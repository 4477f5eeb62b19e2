//! What an engine and its requests will take, known before anything is loaded.

use serde_json::{Value, json};

use super::{Model, StageInfo};
use crate::engine::{Builder, PlannedBuild, check_provider, choose_weights};
use crate::error::Result;
use crate::model::directory::EngineDirectory;
use crate::request::engine_options::{EngineOptions, WeightsChoice};
use crate::request::options::RequestOptions;
use crate::runtime::source::WeightsMode;
use crate::trace::CacheBytes;

/// The version of the JSON that [`DryRun::to_json`] gives.
const VERSION: u32 = 1;

/// A plan, and its bytes by kind.
#[derive(Clone, Debug)]
pub struct DryRun {
    /// Name of the engine.
    pub engine: String,
    /// The policy, as a tag.
    pub cache: String,
    /// In which dtype the transformers will compute: `f32`, `f16` or `bf16`.
    pub compute_dtype: String,
    /// The sessions of embed, blocks and final.
    pub stages: Vec<StageInfo>,
    /// Sessions besides those: text and decode graphs.
    pub other_sessions: usize,
    /// Bytes of all parameters as stored; mapped weights stay there.
    pub weight_bytes: u64,
    /// Bytes of a packed copy of all parameters, as f32; 0 for mapped weights.
    pub packed_bytes: u64,
    /// Bytes of all graphs.
    pub graph_bytes: u64,
    /// What the policy will keep, at most.
    pub cache_bytes: CacheBytes,
    /// Whether weights will be mapped rather than packed; where the options leave it open, by the memory that is free now.
    pub is_mapped: bool,
    /// The builds that the provider needs, and which of them the build cache has; `None` if nothing is compiled.
    pub builds: Option<Vec<PlannedBuild>>,
}

impl Model {
    /// What [`load`](Model::load) and a request with these options will do: no model is loaded, and ONNX Runtime only for a
    /// provider that compiles, whose builds have its version in their keys. `text_length` as in
    /// [`cache_bytes`](Model::cache_bytes).
    ///
    /// # Errors
    /// `Usage` and `Input` for options that do not fit; for a provider that compiles, those of [`Builder::plan`].
    pub fn dry_run(&self, options: &RequestOptions, text_length: Option<u64>) -> Result<DryRun> {
        let Self { directory, load, .. } = self;
        let cache_bytes = self.cache_bytes(options, text_length)?;
        let stages = self.stages_for(&options.cache)?;
        let builds = builds(directory, &EngineOptions { cache: options.cache.clone(), ..load.clone() })?;
        check_provider(load, directory)?;
        let info = self.info();
        let is_mapped = choose_weights(load.weights, directory) == WeightsMode::Mapped;
        Ok(DryRun {
            cache: options.cache.to_string(),
            stages,
            other_sessions: directory.text.len() + usize::from(directory.decode.is_some()),
            weight_bytes: info.weight_bytes,
            packed_bytes: if is_mapped { 0 } else { 4 * info.parameters },
            graph_bytes: info.graph_bytes,
            cache_bytes,
            is_mapped,
            builds,
            compute_dtype: info.compute_dtype,
            engine: info.name,
        })
    }
}

fn builds(directory: &EngineDirectory, load: &EngineOptions) -> Result<Option<Vec<PlannedBuild>>> {
    let compiles = load.provider.iter().any(|spec| spec.kind().compiles());
    if !compiles || load.build_cache.folder()?.is_none() {
        return Ok(None);
    }
    // Of a list of providers the first that works may compile nothing.
    let builder = Builder::of(directory.clone(), load)?.ok();
    Ok(builder.map(|builder| builder.builds().to_vec()))
}

impl DryRun {
    /// Versioned JSON. New members may come without a new version.
    pub fn to_json(&self) -> Value {
        let Self { engine, cache, stages, other_sessions, weight_bytes, packed_bytes, graph_bytes, .. } = self;
        let Self { cache_bytes, compute_dtype, is_mapped, builds, .. } = self;
        let build_json = |build: &PlannedBuild| {
            let PlannedBuild { name, key, is_built, weight_bytes, held_for } = build;
            json!({ "name": name, "key": key, "is_built": is_built, "weight_bytes": weight_bytes, "held_for": held_for })
        };
        let build_cache = builds.as_ref().map(|builds| {
            let hits = builds.iter().filter(|build| build.is_built).count();
            json!({
                "hits": hits,
                "misses": builds.len() - hits,
                "builds": builds.iter().map(build_json).collect::<Vec<_>>(),
            })
        });
        let mut of_cache = cache_bytes.to_json();
        of_cache["total"] = json!(cache_bytes.total());
        json!({
            "version": VERSION,
            "engine": engine,
            "cache": cache,
            "compute_dtype": compute_dtype,
            "sessions": stages.len() + other_sessions,
            "stages": stages.iter().map(StageInfo::to_json).collect::<Vec<_>>(),
            "weights_mode": if *is_mapped { WeightsChoice::Mapped } else { WeightsChoice::Packed }.as_str(),
            "bytes": {
                "weights": weight_bytes,
                "packed_weights": packed_bytes,
                "graphs": graph_bytes,
                "cache": of_cache,
            },
            "build_cache": build_cache,
        })
    }
}
