//! One graph on one provider, with buffers bound to its ports.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use ort::ep;
use ort::session::builder::SessionBuilder;

use super::library::Loaded;
use super::tensor::{BufferId, Buffers};
use crate::error::{Error, ErrorKind, Result};

/// Where the weights live once a graph is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightsMode {
    /// ONNX Runtime folds casts and packs matrices: fastest to run, a private f32 copy of all weights.
    Packed,
    /// Weights stay in the page cache and are converted while running: no private copy, slower steps.
    Mapped,
}

/// The ONNX Runtime option that names the folder of external data for a model loaded from bytes.
const EXTERNAL_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// A graph ready to run. Running needs it exclusively, so requests that share it take turns.
pub(crate) struct Session {
    name: String,
    session: Mutex<ort::session::Session>,
}

/// Which buffers a session reads and writes. Made once, used at each step.
pub(crate) struct Binding(ort::session::IoBinding);

impl Session {
    /// Loads a model from bytes; its external data lies in `folder`.
    ///
    /// # Errors
    /// `Runtime` with ONNX Runtime's text.
    pub(crate) fn load(
        library: &Loaded,
        name: &str,
        model: &[u8],
        folder: Option<&Path>,
        mode: WeightsMode,
        casts_weights: bool,
    ) -> Result<Self> {
        let load = || -> ort::Result<ort::session::Session> {
            let builder = ort::session::Session::builder(&library.environment)?;
            let mut builder = configure(builder, folder, mode, casts_weights)?;
            builder.commit_from_memory(model)
        };
        let session = load().map_err(|error| runtime_error(error).at(name))?;
        Ok(Self { name: name.to_owned(), session: Mutex::new(session) })
    }

    /// Binds buffers to ports by name. A buffer may be bound to several sessions and, for element-wise graphs, to an
    /// input and an output at once.
    pub(crate) fn bind<S: AsRef<str>>(
        &self,
        buffers: &mut Buffers,
        inputs: &[(S, BufferId)],
        outputs: &[(S, BufferId)],
    ) -> Result<Binding> {
        let fail = |error| runtime_error(error).at(&self.name);
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let mut binding = session.create_binding().map_err(fail)?;
        for (port, id) in inputs {
            binding.bind_input(port.as_ref(), buffers.value(*id)).map_err(fail)?;
        }
        for (port, id) in outputs {
            binding.bind_output(port.as_ref(), buffers.value_mut(*id)).map_err(fail)?;
        }
        Ok(Binding(binding))
    }

    /// Runs once over bound buffers.
    pub(crate) fn run(&self, binding: &Binding) -> Result<()> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        session.run_binding(&binding.0).map(drop).map_err(|error| runtime_error(error).at(&self.name))
    }
}

fn configure(
    builder: SessionBuilder,
    folder: Option<&Path>,
    mode: WeightsMode,
    casts_weights: bool,
) -> ort::Result<SessionBuilder> {
    // Without arenas 57 sessions keep about 0.6 MB less each, at the same speed (docs/performance.md).
    let cpu = ep::CPU::default().with_arena_allocator(false).build().error_on_failure();
    let mut builder = builder.with_execution_providers([cpu])?;
    if let Some(folder) = folder {
        builder = builder.with_config_entry(EXTERNAL_FOLDER, folder.to_string_lossy())?;
    }
    // Folding constants copies every transposed weight. It pays only where a cast is folded too: a graph over f32
    // weights runs bit-identically without it, because ONNX Runtime fuses the transposition into the product.
    if mode == WeightsMode::Mapped || !casts_weights {
        builder = builder.with_disabled_optimizers("ConstantFolding")?;
    }
    if mode == WeightsMode::Mapped {
        builder = builder.with_prepacking(false)?;
    }
    Ok(builder)
}

/// ONNX Runtime's error as ours.
pub(crate) fn runtime_error(error: ort::Error) -> Error {
    Error::new(ErrorKind::Runtime, error.to_string().replace('\n', " "))
}
