//! One graph on one provider.

use std::path::Path;
use std::sync::Mutex;

use ort::AsPointer;
use ort::memory::{Allocator, MemoryInfo};
use ort::session::builder::SessionBuilder;

use super::capture::Captures;
use super::cuda_stream::Stream;
use super::device::Device;
use super::errors::runtime_error;
use super::held::Held;
use super::provider::Role;
use super::provider::compile::Extra;
use super::source::{SessionSource, WeightsMode};
use super::turn::turn;
use crate::contain::contain;
use crate::error::{At, Result};
use crate::exit::{come_first, enter, lock};

/// The ONNX Runtime option that names the folder of external data for a model loaded from bytes.
const EXTERNAL_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// A graph ready to run. Running needs it exclusively, so requests that share it take turns.
pub(crate) struct Session {
    /// For errors.
    pub(super) name: String,
    /// Whether its provider is only used by one thread at a time.
    pub(super) takes_turns: bool,
    /// Where runs are recorded.
    pub(super) captures: Option<Captures>,
    /// A stage of which ONNX Runtime cannot record all nodes: its runs are counted.
    pub(super) is_unrecorded: bool,
    /// Where runs that stay on the device need not be waited for.
    pub(super) unwaited: Option<Stream>,
    pub(super) session: Mutex<Held<ort::session::Session>>,
}

impl Session {
    /// Loads a model from bytes.
    ///
    /// # Errors
    /// `Runtime` with ONNX Runtime's text; `Provider` when a part of the graph would run elsewhere.
    pub(crate) fn load(device: &Device, source: &SessionSource<'_>) -> Result<Self> {
        Self::load_with(device, source, &Extra::default())
    }

    /// As [`load`](Self::load), with more options.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub(super) fn load_with(device: &Device, source: &SessionSource<'_>, extra: &Extra) -> Result<Self> {
        let load = |source: &SessionSource<'_>| {
            let builder = device.builder(source.role, extra)?;
            let mut builder = configure(builder, source, device.is_foreign(source.role)).map_err(runtime_error)?;
            commit(|| builder.commit_from_memory(source.model))
        };
        let _inside = enter()?;
        let _turn = turn(device.takes_turns());
        let mut source = *source;
        let mut loaded = load(&source);
        let mut is_unrecorded = false;
        if let Err(error) = &loaded
            && device.refuses_capture(&source, error)
        {
            source.role = Role::Model;
            is_unrecorded = true;
            loaded = load(&source);
        }
        Ok(Self { is_unrecorded, ..Self::new(device, &source, loaded.at(source.name)?)? })
    }

    fn new(device: &Device, source: &SessionSource<'_>, session: ort::session::Session) -> Result<Self> {
        come_first();
        device.check(&session, source)?;
        let captures = device.captures(source.role).map(Captures::new);
        let (name, takes_turns) = (source.name.to_owned(), device.takes_turns());
        let unwaited = device.unwaited();
        Ok(Self {
            name,
            takes_turns,
            captures,
            is_unrecorded: false,
            unwaited,
            session: Mutex::new(Held::new(session, takes_turns)),
        })
    }

    /// Loads what a provider has compiled of a source: a model that refers to files beside it.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub(super) fn load_build(device: &Device, source: &SessionSource<'_>, model: &Path) -> Result<Self> {
        let _inside = enter()?;
        let mut builder = device.builder(source.role, &Extra::default()).map_err(|error| error.at(source.name))?;
        let session = commit(|| builder.commit_from_file(model)).map_err(|error| error.at(source.name))?;
        Self::new(device, source, session)
    }

    /// Runs once over tensors that are bound for this run only.
    pub(super) fn run_once(
        &self,
        input_port: &str,
        input: &ort::value::DynTensor,
        output_port: &str,
        output: &mut ort::value::DynTensor,
    ) -> Result<()> {
        let fail = |error| runtime_error(error).at(&self.name);
        let _turn = turn(self.takes_turns);
        let mut session = lock(&self.session);
        self.unwaited.map_or(Ok(()), Stream::wait)?;
        let mut binding = session.create_binding().map_err(fail)?;
        binding.bind_input(input_port, input).map_err(fail)?;
        binding.bind_output(output_port, output).map_err(fail)?;
        run_binding(&mut session, &binding, std::ptr::null()).map_err(fail)
    }

    /// Allocates where the session's provider computes.
    pub(super) fn allocator(&self, memory: MemoryInfo<'_>) -> Result<Allocator> {
        let _turn = turn(self.takes_turns);
        let session = lock(&self.session);
        Allocator::new(&session, memory).map_err(|error| runtime_error(error).at(&self.name))
    }
}

/// Runs over bound tensors. `ort`'s own function makes a value of each output as well, which costs time, and panics where an
/// output lies in memory that the session does not allocate itself.
pub(super) fn run_binding(
    session: &mut ort::session::Session,
    binding: &ort::session::IoBinding,
    options: *const ort::sys::OrtRunOptions,
) -> ort::Result<()> {
    // SAFETY: all are alive, and the session is ours alone; no options are the default ones.
    let status = unsafe { (ort::api().RunWithBinding)(session.ptr().cast_mut(), options, binding.ptr()) };
    // SAFETY: the status comes from ONNX Runtime and is used once.
    unsafe { ort::Error::result_from_status(status) }
}

fn configure(builder: SessionBuilder, source: &SessionSource<'_>, is_foreign: bool) -> ort::Result<SessionBuilder> {
    let mut builder = builder;
    if let Some(folder) = source.folder {
        builder = builder.with_config_entry(EXTERNAL_FOLDER, folder.to_string_lossy())?;
    }
    for (dimension, extent) in source.fixed {
        builder = builder.with_dimension_override(dimension, *extent as i64)?;
    }
    // Other providers take the weights as they need them.
    if is_foreign {
        return Ok(builder);
    }
    // Intermediate results lie in the arena that all sessions share; weights, which stay, do not.
    builder = builder.with_env_allocators()?.with_device_allocated_initializers()?;
    // Folding constants copies every transposed weight. It pays only where a cast is folded too: a graph over f32
    // weights runs bit-identically without it, because ONNX Runtime fuses the transposition into the product.
    if source.weights == WeightsMode::Mapped || !source.casts_weights {
        builder = builder.with_disabled_optimizers("ConstantFolding")?;
    }
    if source.weights == WeightsMode::Mapped {
        builder = builder.with_prepacking(false)?;
    }
    Ok(builder)
}

/// Makes a session. `ort` panics where ONNX Runtime gives an output an impossible shape.
fn commit(make: impl FnOnce() -> ort::Result<ort::session::Session>) -> Result<ort::session::Session> {
    contain(make).unwrap_or_else(|panic| Err(ort::Error::new(panic))).map_err(runtime_error)
}
