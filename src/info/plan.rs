//! What an engine and its requests will take, known before anything is loaded.

use std::path::Path;

use serde_json::{Value, json};

use super::{EngineInfo, StageInfo};
use crate::engine::{EngineOptions, WeightsChoice, choose_weights};
use crate::error::Result;
use crate::generate::request::RequestOptions;
use crate::model::directory::EngineDirectory;
use crate::runtime::session::WeightsMode;
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
    /// The sessions of the blocks.
    pub stages: Vec<StageInfo>,
    /// Sessions besides those: embed, final, text and decode graphs.
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
}

impl EngineInfo {
    /// What [`Engine::load`](crate::Engine::load) and a request with these options will do: nothing is loaded, not even
    /// ONNX Runtime. `text_length` as in [`cache_bytes`](Self::cache_bytes).
    ///
    /// # Errors
    /// `EngineDirectory`, as when it is loaded; `Usage` and `Input` for options that do not fit.
    pub fn dry_run(
        directory: &Path,
        load: &EngineOptions,
        options: &RequestOptions,
        text_length: Option<u64>,
    ) -> Result<DryRun> {
        let cache_bytes = Self::cache_bytes(directory, load, options, text_length)?;
        let load = EngineOptions { cache: options.cache.clone(), ..load.clone() };
        let stages = Self::stages(directory, &load)?;
        let directory = EngineDirectory::open(directory, load.weights_folder.as_deref())?;
        let info = Self::new(&directory);
        let is_mapped = choose_weights(load.weights, &directory) == WeightsMode::Mapped;
        Ok(DryRun {
            cache: options.cache.to_string(),
            stages,
            other_sessions: 2 + directory.text.len() + usize::from(directory.decode.is_some()),
            weight_bytes: info.weight_bytes,
            packed_bytes: if is_mapped { 0 } else { 4 * info.parameters },
            graph_bytes: info.graph_bytes,
            cache_bytes,
            is_mapped,
            engine: info.name,
        })
    }
}

impl DryRun {
    /// Versioned JSON. New members may come without a new version.
    pub fn to_json(&self) -> Value {
        let Self {
            engine,
            cache,
            stages,
            other_sessions,
            weight_bytes,
            packed_bytes,
            graph_bytes,
            cache_bytes,
            is_mapped,
        } = self;
        let mut of_cache = cache_bytes.to_json();
        of_cache["total"] = json!(cache_bytes.total());
        json!({
            "version": VERSION,
            "engine": engine,
            "cache": cache,
            "sessions": stages.len() + other_sessions,
            "stages": stages.iter().map(StageInfo::to_json).collect::<Vec<_>>(),
            "weights_mode": WeightsChoice::NAMES[if *is_mapped { 2 } else { 1 }],
            "bytes": {
                "weights": weight_bytes,
                "packed_weights": packed_bytes,
                "graphs": graph_bytes,
                "cache": of_cache,
            },
        })
    }
}
