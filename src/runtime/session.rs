//! One graph on one provider, with buffers bound to its ports.

use std::ffi::{CStr, CString};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use ort::AsPointer;
use ort::memory::{Allocator, MemoryInfo};
use ort::session::builder::SessionBuilder;
use ort::session::{NoSelectedOutputs, RunOptions};

use super::capture::{Capture, Captures, State};
use super::cuda_stream::Stream;
use super::device::Device;
use super::errors::runtime_error;
use super::held::Held;
use super::provider::Role;
use super::provider::compile::Extra;
use super::tensor::{BufferId, Buffers, Runs};
use super::turn::turn;
use crate::contain::contain;
use crate::error::{At, Error, Result};
use crate::exit::{come_first, enter, lock};

/// Where the weights live once a graph is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightsMode {
    /// ONNX Runtime folds casts and packs matrices: fastest to run, a private f32 copy of all weights.
    Packed,
    /// Weights stay in the page cache and are converted while running: no private copy, slower steps.
    Mapped,
}

/// The option of a run that ends before what it launched does.
const NO_WAIT: (&str, &str) = ("disable_synchronize_execution_providers", "1");

/// The ONNX Runtime option that names the folder of external data for a model loaded from bytes.
const EXTERNAL_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// A graph to be loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionSource<'g> {
    /// For errors.
    pub name: &'g str,
    /// The ONNX file.
    pub model: &'g [u8],
    /// Where its external data lies.
    pub folder: Option<&'g Path>,
    pub weights: WeightsMode,
    /// Whether nodes convert parameters.
    pub casts_weights: bool,
    /// Dimensions of which the extent is known.
    pub fixed: &'g [(String, u64)],
    pub role: Role,
}

/// A graph ready to run. Running needs it exclusively, so requests that share it take turns.
pub(crate) struct Session {
    name: String,
    /// Whether its provider is only used by one thread at a time.
    takes_turns: bool,
    /// Where runs are recorded.
    captures: Option<Captures>,
    /// A stage of which ONNX Runtime cannot record all nodes: its runs are counted.
    is_unrecorded: bool,
    /// Where runs that stay on the device need not be waited for.
    unwaited: Option<Stream>,
    session: Mutex<Held<ort::session::Session>>,
}

/// Which buffers a session reads and writes. Made once, used at each step.
pub(crate) struct Binding {
    binding: Held<ort::session::IoBinding>,
    outputs: Vec<BufferId>,
    /// Inputs in other memory than the session reads from: ONNX Runtime copies them when they are bound, so they are bound
    /// again for each run.
    copied: Vec<CopiedInput>,
    /// The stream to wait for before each run: runs before this one may be unfinished, and this one reads or writes host
    /// memory.
    first: Option<Stream>,
    /// Options of its runs, if there are any.
    options: Option<RunOptions<NoSelectedOutputs>>,
    /// How it is recorded, where runs are.
    capture: Option<Capture>,
    /// Counts the runs of the request whose buffers these are.
    runs: Arc<Runs>,
}

impl Binding {
    /// Whether the next run would replay a recording that is not trusted yet.
    pub(super) fn untrusted(&self) -> Option<(&Capture, &[BufferId])> {
        let capture = self.capture.as_ref().filter(|capture| capture.state() == State::Recorded)?;
        Some((capture, &self.outputs))
    }
}

struct CopiedInput {
    port: CString,
    /// Kept alive by the binding.
    value: *const ort::sys::OrtValue,
}

// SAFETY: the value belongs to the binding, which may be sent; it is read by the thread that runs the binding only.
unsafe impl Send for CopiedInput {}

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

    /// Binds buffers to ports by name. A buffer may be bound to several sessions and, for element-wise graphs, to an
    /// input and an output at once.
    pub(crate) fn bind<S: AsRef<str>>(
        &self,
        buffers: &mut Buffers,
        inputs: &[(S, BufferId)],
        outputs: &[(S, BufferId)],
    ) -> Result<Binding> {
        let fail = |error| runtime_error(error).at(&self.name);
        let _turn = turn(self.takes_turns);
        let session = lock(&self.session);
        let mut binding = session.create_binding().map_err(fail)?;
        let wanted = wanted_memory(&session).map_err(fail)?;
        let stays = inputs.iter().chain(outputs).all(|(_, id)| !buffers.is_host(*id));
        let (first, unwaited) = waiting(self.unwaited, stays);
        first.map_or(Ok(()), Stream::wait)?;
        let mut copied = Vec::new();
        for (port, id) in inputs {
            let value = buffers.value(*id);
            binding.bind_input(port.as_ref(), value).map_err(fail)?;
            let (lies, reads) = (value.memory_info(), wanted.iter().find(|(name, ..)| name == port.as_ref()));
            let is_there = |name: &str, id: i32| lies.allocation_device().as_str() == name && lies.device_id() == id;
            if !reads.is_some_and(|(_, name, id)| is_there(name, *id)) {
                let port = CString::new(port.as_ref()).map_err(|_| Error::internal("a port's name holds a zero"))?;
                copied.push(CopiedInput { port, value: value.ptr() });
            }
        }
        for (port, id) in outputs {
            binding.bind_output(port.as_ref(), buffers.value_mut(*id)).map_err(fail)?;
        }
        let written: Vec<BufferId> = outputs.iter().map(|(_, id)| *id).collect();
        let capture = match &self.captures {
            Some(captures) => {
                let inputs: Vec<BufferId> = inputs.iter().map(|(_, id)| *id).collect();
                let (capture, refused) = captures.of(buffers.recordable(&inputs, &written), unwaited)?;
                match refused {
                    Some(why) => buffers.refuse_capture(format!("{}: {why}", self.name)),
                    None => buffers.note_capture(),
                }
                Some(capture)
            }
            None => None,
        };
        let options = if unwaited.is_empty() { None } else { Some(run_options(unwaited)?) };
        let runs = buffers.run_counter();
        Ok(Binding {
            binding: Held::new(binding, self.takes_turns),
            outputs: written,
            copied,
            first,
            options,
            capture,
            runs,
        })
    }

    /// Runs once over bound buffers.
    pub(crate) fn run(&self, binding: &Binding) -> Result<()> {
        self.run_as(binding, State::Refused)
    }

    /// Runs once over bound buffers. The run is recorded, or replays a recording, if it can.
    pub(super) fn replay(&self, binding: &Binding) -> Result<()> {
        self.run_as(binding, binding.capture.as_ref().map_or(State::Refused, Capture::state))
    }

    fn run_as(&self, binding: &Binding, state: State) -> Result<()> {
        let _turn = turn(self.takes_turns);
        let mut session = lock(&self.session);
        let fail = |error| runtime_error(error).at(&self.name);
        binding.first.map_or(Ok(()), Stream::wait)?;
        for input in &binding.copied {
            let place = binding.binding.ptr().cast_mut();
            // SAFETY: the binding holds the value under this port, so both are alive; only this thread uses the binding.
            let status = unsafe { (ort::api().BindInput)(place, input.port.as_ptr(), input.value) };
            // SAFETY: the status comes from ONNX Runtime and is used once.
            unsafe { ort::Error::result_from_status(status) }.map_err(fail)?;
        }
        binding.runs.all.fetch_add(1, Ordering::Relaxed);
        let Some(capture) = &binding.capture else {
            binding.runs.plain.fetch_add(usize::from(self.is_unrecorded), Ordering::Relaxed);
            let options = binding.options.as_ref().map_or(std::ptr::null(), AsPointer::ptr);
            return run_binding(&mut session, &binding.binding, options).map_err(fail);
        };
        let options = capture.options(state == State::Refused);
        run_binding(&mut session, &binding.binding, options.ptr()).map_err(|error| match state {
            State::New => fail(error).at("recording a run; leave out the provider's option `graph-captures`"),
            _ => fail(error),
        })?;
        let runs = match state {
            State::New => {
                capture.settle(State::Recorded);
                &binding.runs.recorded
            }
            State::Recorded | State::Trusted => &binding.runs.replayed,
            State::Refused => &binding.runs.plain,
        };
        runs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// For errors.
    pub(super) fn name(&self) -> &str {
        &self.name
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
fn run_binding(
    session: &mut ort::session::Session,
    binding: &ort::session::IoBinding,
    options: *const ort::sys::OrtRunOptions,
) -> ort::Result<()> {
    // SAFETY: all are alive, and the session is ours alone; no options are the default ones.
    let status = unsafe { (ort::api().RunWithBinding)(session.ptr().cast_mut(), options, binding.ptr()) };
    // SAFETY: the status comes from ONNX Runtime and is used once.
    unsafe { ort::Error::result_from_status(status) }
}

/// For each input the memory that the session reads it from: ONNX Runtime's name, and which of several.
fn wanted_memory(session: &ort::session::Session) -> ort::Result<Vec<(String, String, i32)>> {
    let api = ort::api();
    let names: Vec<&str> = session.inputs().iter().map(|input| input.name()).collect();
    let mut infos = vec![std::ptr::null(); names.len()];
    // SAFETY: the session is alive; the list has a place for each of its inputs.
    let status = unsafe { (api.SessionGetMemoryInfoForInputs)(session.ptr(), infos.as_mut_ptr(), infos.len()) };
    // SAFETY: the status comes from ONNX Runtime and is used once.
    unsafe { ort::Error::result_from_status(status) }?;
    let mut wanted = Vec::with_capacity(names.len());
    for (port, info) in names.into_iter().zip(infos) {
        let (mut name, mut id) = (std::ptr::null(), 0);
        // SAFETY: the description belongs to the session; the place is ours to write.
        let status = unsafe { (api.MemoryInfoGetName)(info, &mut name) };
        // SAFETY: the status comes from ONNX Runtime and is used once.
        unsafe { ort::Error::result_from_status(status) }?;
        // SAFETY: as for the name.
        let status = unsafe { (api.MemoryInfoGetId)(info, &mut id) };
        // SAFETY: the status comes from ONNX Runtime and is used once.
        unsafe { ort::Error::result_from_status(status) }?;
        // SAFETY: ONNX Runtime's name ends with a zero and lives as long as the description.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        wanted.push((port.to_owned(), name, id));
    }
    Ok(wanted)
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

/// What a run waits for before it begins, and its options: where runs may be left unfinished on a stream, those that stay on the
/// device end before what they launched does, and the others wait for all that was launched.
fn waiting(stream: Option<Stream>, stays: bool) -> (Option<Stream>, &'static [(&'static str, &'static str)]) {
    match stream {
        Some(_) if stays => (None, &[NO_WAIT]),
        stream => (stream, &[]),
    }
}

/// Options of a run by ONNX Runtime's keys.
pub(super) fn run_options(pairs: &[(&str, &str)]) -> Result<RunOptions<NoSelectedOutputs>> {
    let mut options = RunOptions::new().map_err(runtime_error)?;
    for (key, value) in pairs {
        options.set(key, value).map_err(runtime_error)?;
    }
    Ok(options)
}

/// Makes a session. `ort` panics where ONNX Runtime gives an output an impossible shape.
fn commit(make: impl FnOnce() -> ort::Result<ort::session::Session>) -> Result<ort::session::Session> {
    contain(make).unwrap_or_else(|panic| Err(ort::Error::new(panic))).map_err(runtime_error)
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;
    use crate::model::manifest::DType;
    use crate::runtime::library::{self, LibraryOptions};
    use crate::runtime::measure::StreamType;
    use crate::runtime::ops::residuals;
    use crate::runtime::provider::ProviderSpec;
    use crate::runtime::tensor::TensorPlace;

    /// Where runs may be left unfinished, the host's tensors are read and written only after a wait.
    #[test]
    fn runs_that_touch_the_host_are_waited_for() {
        let library = library::environment(&LibraryOptions::default()).unwrap();
        let device = Device::open(&library, &ProviderSpec::default(), false).unwrap();
        let mut buffers = Buffers::new(&device, TensorPlace::Device).unwrap();
        let [a, b] = [(); 2].map(|()| buffers.add(DType::F32, &[1, 4]).unwrap());
        let name = "residual";
        let graph = residuals(&[StreamType { dtype: DType::F32, kept: DType::F32, rank: 2 }]);
        let source = SessionSource {
            name,
            model: &graph,
            folder: None,
            weights: WeightsMode::Packed,
            casts_weights: false,
            fixed: &[],
            role: Role::Arithmetic,
        };
        for (handle, fails) in [(0, false), (700, true)] {
            let mut session = Session::load(&device, &source).unwrap();
            session.unwaited = Some(Stream::of_test(handle));
            let bound = session.bind(&mut buffers, &[("ran0", a), ("from0", a)], &[("residual0", b)]);
            match bound {
                Ok(binding) => {
                    assert!(!fails && binding.first.is_some() && binding.options.is_none());
                    session.run(&binding).unwrap();
                }
                Err(error) => assert!(fails && error.to_string().contains("CUDA's error 700"), "{error}"),
            }
        }
    }

    #[test]
    fn only_runs_that_stay_on_the_device_are_left_unfinished() {
        for (is_async, stays, waits_first, is_left) in [
            (false, true, false, false),
            (false, false, false, false),
            (true, true, false, true),
            (true, false, true, false),
        ] {
            let (first, options) = waiting(is_async.then(|| Stream::of_test(0)), stays);
            assert_eq!((first.is_some(), options == [NO_WAIT]), (waits_first, is_left), "{is_async} {stays}");
        }
    }

    #[test]
    fn options_reach_onnx_runtime() {
        library::environment(&LibraryOptions::default()).unwrap();
        let mut options = run_options(&[NO_WAIT, ("gpu_graph_id", "7")]).unwrap();
        for (key, value) in [NO_WAIT, ("gpu_graph_id", "7")] {
            assert_eq!(options.get(key).as_deref(), Some(value));
        }
    }
}
