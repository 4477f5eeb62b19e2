//! What a user decides when an engine is loaded.

use std::path::PathBuf;
use std::str::FromStr;

use super::profile::Profile;
use crate::cache::PolicyConfig;
use crate::cancel::CancelToken;
use crate::collective::ContextParallel;
use crate::error::{Error, Result};
use crate::folders::build_folder;
use crate::model::cache_dtype::CacheDType;
use crate::model::compute_choice::ComputeChoice;
use crate::plan::StagesChoice;
use crate::runtime::library::LibraryOptions;
use crate::runtime::provider::Providers;
use crate::words::words;

/// How an engine is loaded.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// ONNX Runtime's library and its thread pool.
    pub library: LibraryOptions,
    /// How the blocks are divided into ONNX Runtime sessions.
    pub stages: StagesChoice,
    /// Most bytes of weights and graph of one stage. Default: no limit.
    pub stage_bytes: Option<u64>,
    /// The policy that requests will use: its stages are loaded at once. Default: none.
    pub cache: PolicyConfig,
    /// In which dtype these requests keep the tensors of the cache: with [`ArithmeticChoice::Stages`], a part of the stages.
    pub cache_dtype: CacheDType,
    /// What happens when a request's policy needs other stages.
    pub other_plan: OtherPlan,
    /// How residuals and diffs are computed.
    pub arithmetic: ArithmeticChoice,
    /// In which dtype the transformers compute. Default: as exported.
    pub compute: ComputeChoice,
    /// Where the weights live while the engine is loaded. Default: by size.
    pub weights: WeightsChoice,
    /// What computes: the first of the list that can be used for all graphs. Default: the CPU.
    pub provider: Providers,
    /// Whether nodes that the provider cannot run may run elsewhere; then they are listed among the warnings of each
    /// trace. Nodes that only compute shapes are no fallback.
    pub allow_fallback: bool,
    /// Where the builds are kept, which are what the provider compiles.
    pub build_cache: BuildCache,
    /// Compile nothing: a build that is not in the cache is an error, which names the command that compiles it.
    pub require_built: bool,
    /// The shapes for which builds are made; with a provider's `graph-captures`, those that stages are fixed to where a
    /// dimension has one extent. Default: any, where the provider has builds for any; else the default size
    /// and a batch of 1.
    pub profile: Option<Profile>,
    /// Where the model is now, if not where the manifest says: the folder of the pipeline, of a component, of a repository or
    /// a snapshot in a Hugging Face cache, or one with the manifest's names. Files are known by size and header; links are
    /// followed, and two levels of folders are searched.
    pub weights_folder: Option<PathBuf>,
    /// Compare the content hash of every weights file, not only its size and header: reads all weights once.
    pub verify: bool,
    /// The other processes that make the same generation, each with a share of the tokens. Requests of such an engine run one
    /// at a time, and in the same order in all processes: otherwise their exchanges would not meet. Default: none.
    pub context_parallel: Option<ContextParallel>,
    /// Stops the load from another thread, between two sessions. An engine that is loaded does not heed it.
    pub cancel: CancelToken,
}

/// How residuals are kept and applied, and how diffs are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ArithmeticChoice {
    /// As loops where the provider computes in host memory and the dtypes allow it, else as graphs: several times cheaper
    /// for small blocks, the same decisions.
    #[default]
    Auto,
    /// Always as ONNX graphs on the provider.
    Graphs,
    /// As parts of the stages: a computed step of DBCache is a run of head, middle and tail, a skipped one of head and tail.
    /// Only for policies that keep plain residuals of one middle.
    Stages,
}

words!(ArithmeticChoice, "arithmetic", { Auto = "auto", Graphs = "graphs", Stages = "stages" });

/// Packed or mapped weights, or by size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightsChoice {
    /// Packed if the f32 copy of all parameters fits into the memory that is free now, else mapped.
    #[default]
    Auto,
    /// ONNX Runtime converts and packs the weights: fastest steps, slow load, 4 bytes of memory a parameter.
    Packed,
    /// Weights stay in the page cache: no private copy, slower steps. For models that do not fit as f32.
    Mapped,
}

words!(WeightsChoice, "weights mode", { Auto = "auto", Packed = "packed", Mapped = "mapped" });

/// Where builds are kept, which are what a provider compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BuildCache {
    /// In the user's cache folder, which `DBCACHE_TRT_HOME` moves.
    #[default]
    User,
    /// In this folder.
    Folder(PathBuf),
    /// Nowhere: each process compiles for itself.
    None,
}

impl BuildCache {
    /// The folder, if builds are kept at all.
    ///
    /// # Errors
    /// `Usage` if the user has no home folder.
    pub fn folder(&self) -> Result<Option<PathBuf>> {
        match self {
            Self::User => build_folder().map(Some),
            Self::Folder(folder) => Ok(Some(folder.clone())),
            Self::None => Ok(None),
        }
    }
}

/// A path, or `none`.
impl FromStr for BuildCache {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "" => Err(Error::option("build-cache", "is empty; expected a folder, or `none`")),
            "none" => Ok(Self::None),
            folder => Ok(Self::Folder(folder.into())),
        }
    }
}

/// What happens when a request's policy needs cuts that no loaded plan has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OtherPlan {
    /// The stages that are missing are loaded, and stay. Where the provider compiles nothing, they take the place of a
    /// stage that holds the same blocks: weights are in memory once, and later requests run that stage in parts.
    #[default]
    Load,
    /// The stages that are missing are loaded beside the others: each policy runs in the longest stages, and a block's
    /// weights are in memory once for each stage that it is part of.
    Add,
    /// The request is refused with `Usage`: for services that must not load, or compile, while they serve.
    Refuse,
}

words!(OtherPlan, "other plan", { Load = "load", Add = "add", Refuse = "refuse" });
