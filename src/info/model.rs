//! A model on the disk, opened: what it is, what a run of it would be, and the engine that runs it.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::{EngineInfo, StageInfo};
use crate::cache::PolicyConfig;
use crate::engine::{Engine, check_provider, open, planned};
use crate::error::Result;
use crate::generate::prompts;
use crate::model::directory::EngineDirectory;
use crate::request::engine_options::EngineOptions;
use crate::request::inputs::Inputs;
use crate::request::options::{GuidanceBy, RequestOptions};
use crate::request::{Asked, memory};
use crate::text::PromptReader;
use crate::trace::CacheBytes;

/// An engine directory that was opened: each file but the weights was read, and compared with its hash, once. No library is
/// loaded, and nothing runs.
///
/// ```no_run
/// use dbcache_trt::{EngineOptions, Inputs, Model, RequestOptions};
///
/// let model = Model::open("models/emoji", &EngineOptions::default())?;
/// let (inputs, options) = (Inputs::prompt("lemon"), RequestOptions::default());
/// println!("{}", model.info());
/// model.check(&inputs, &options)?; // before a load that may take minutes
/// let engine = model.load()?;
/// # Ok::<(), dbcache_trt::Error>(())
/// ```
#[derive(Debug)]
pub struct Model {
    pub(super) directory: EngineDirectory,
    pub(super) load: EngineOptions,
    /// Made when it is needed first, and then handed to the engine.
    reader: OnceLock<Arc<PromptReader>>,
    start: Instant,
}

impl Model {
    /// Opens a directory for engines with these options.
    ///
    /// # Errors
    /// `EngineDirectory` for what is missing or damaged; `Usage` for options that do not fit; `Io`.
    pub fn open(directory: impl AsRef<Path>, load: &EngineOptions) -> Result<Self> {
        let start = Instant::now();
        let directory = open(directory.as_ref(), load)?;
        Ok(Self { directory, load: load.clone(), reader: OnceLock::new(), start })
    }

    /// Loads it.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn load(self) -> Result<Engine> {
        let reader = self.reader()?.cloned();
        Engine::of(self.directory, reader, &self.load, self.start)
    }

    /// What it is: blocks, parameters, bytes, defaults, licence.
    pub fn info(&self) -> EngineInfo {
        EngineInfo::new(&self.directory)
    }

    /// Compares the content hash of every weights file, which reads them whole. Gives the names of those whose hash the
    /// manifest does not know.
    ///
    /// # Errors
    /// `EngineDirectory` with the file that was changed.
    pub fn verify(&self) -> Result<Vec<String>> {
        self.directory.verify()
    }

    /// The words that the model knows; none for a model that takes free text or no text.
    ///
    /// # Errors
    /// `EngineDirectory` for a damaged tokenizer.
    pub fn words(&self) -> Result<Option<Vec<String>>> {
        Ok(self.reader()?.and_then(|reader| reader.words()))
    }

    /// What reads prompts; none for a model that takes no text.
    fn reader(&self) -> Result<Option<&Arc<PromptReader>>> {
        if self.reader.get().is_none()
            && let Some(reader) = PromptReader::load(&self.directory)?
        {
            // Another thread may have made the same one meanwhile.
            let _ = self.reader.set(Arc::new(reader));
        }
        Ok(self.reader.get())
    }

    /// Refuses a request that its options, its inputs and the manifest show to be impossible, or whose prompts the model cannot
    /// read: a model may take minutes to load, and a typing error should not. What passes can still be refused by
    /// [`Engine::request`], which knows the provider.
    ///
    /// # Errors
    /// `Usage` and `Input` for options and inputs that do not fit; `EngineDirectory` for a damaged tokenizer.
    pub fn check(&self, inputs: &Inputs, options: &RequestOptions) -> Result<()> {
        check_provider(&self.load, &self.directory)?;
        let asked = Asked::new(&self.directory.manifest, inputs, options, GuidanceBy::Library)?;
        match self.reader()? {
            Some(reader) => prompts::check(reader, inputs, &asked.guidance),
            None => Ok(()),
        }
    }

    /// As [`Engine::cache_bytes`].
    ///
    /// # Errors
    /// `Usage` and `Input` for options that do not fit.
    pub fn cache_bytes(&self, options: &RequestOptions, text_length: Option<u64>) -> Result<CacheBytes> {
        let plan = planned(&self.directory, &self.load, &options.cache)?;
        let plain = planned(&self.directory, &self.load, &PolicyConfig::None)?;
        memory::of_options(&self.directory.manifest, &plan, &plain, options, text_length)
    }

    /// The stages that the engine will have: the options `cache`, `stages` and `stage_bytes` count.
    ///
    /// # Errors
    /// `Usage` for options that do not fit.
    pub fn stages(&self) -> Result<Vec<StageInfo>> {
        self.stages_for(&self.load.cache)
    }

    /// The stages that the engine would have if it were loaded for this policy.
    pub(super) fn stages_for(&self, cache: &PolicyConfig) -> Result<Vec<StageInfo>> {
        let plan = planned(&self.directory, &self.load, cache)?;
        let stages = |expert| plan.stages().iter().map(move |stage| StageInfo::new(&self.directory, expert, stage));
        Ok((0..self.directory.experts.len()).flat_map(stages).collect())
    }
}
