//! A graph with the buffers that are bound to its ports: bound once, run at each step.

use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ort::AsPointer;
use ort::session::{NoSelectedOutputs, RunOptions};

use super::capture::{Capture, State, run_options};
use super::cuda_stream::Stream;
use super::errors::runtime_error;
use super::held::Held;
use super::session::{Session, run_binding};
use super::tensor::{BufferId, Buffers, Runs};
use super::turn::turn;
use crate::error::{Error, Result};
use crate::exit::lock;

/// The option of a run that ends before what it launched does.
const NO_WAIT: (&str, &str) = ("disable_synchronize_execution_providers", "1");

/// A graph with its buffers.
pub(crate) struct Op {
    session: Arc<Session>,
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

struct CopiedInput {
    port: CString,
    /// Kept alive by the binding.
    value: *const ort::sys::OrtValue,
}

// SAFETY: the value belongs to the binding, which may be sent; it is read by the thread that runs the binding only.
unsafe impl Send for CopiedInput {}

impl Op {
    /// Binds buffers to ports by name. A buffer may be bound to several sessions and, for element-wise graphs, to an
    /// input and an output at once.
    pub(crate) fn bind<S: AsRef<str>>(
        session: &Arc<Session>,
        buffers: &mut Buffers,
        inputs: &[(S, BufferId)],
        outputs: &[(S, BufferId)],
    ) -> Result<Self> {
        let fail = |error| runtime_error(error).at(&session.name);
        let _turn = turn(session.takes_turns);
        let inner = lock(&session.session);
        let mut binding = inner.create_binding().map_err(fail)?;
        let wanted = wanted_memory(&inner).map_err(fail)?;
        let stays = inputs.iter().chain(outputs).all(|(_, id)| !buffers.is_host(*id));
        let (first, unwaited) = waiting(session.unwaited, stays);
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
        let capture = match &session.captures {
            Some(captures) => {
                let inputs: Vec<BufferId> = inputs.iter().map(|(_, id)| *id).collect();
                let (capture, refused) = captures.of(buffers.recordable(&inputs, &written), unwaited)?;
                match refused {
                    Some(why) => buffers.refuse_capture(format!("{}: {why}", session.name)),
                    None => buffers.note_capture(),
                }
                Some(capture)
            }
            None => None,
        };
        let options = if unwaited.is_empty() { None } else { Some(run_options(unwaited)?) };
        let runs = buffers.run_counter();
        let binding = Held::new(binding, session.takes_turns);
        let session = Arc::clone(session);
        Ok(Self { session, binding, outputs: written, copied, first, options, capture, runs })
    }

    /// Runs once.
    pub(crate) fn run(&self) -> Result<()> {
        self.run_as(State::Refused)
    }

    /// Runs a stage of the model. The first replay of a recording is held against a plain run, whose numbers then count.
    pub(crate) fn run_stage(&self, buffers: &mut Buffers) -> Result<()> {
        let state = self.capture.as_ref().map_or(State::Refused, Capture::state);
        // The next run would replay a recording that is not trusted yet.
        let untrusted = self.capture.as_ref().filter(|_| state == State::Recorded);
        let Some(capture) = untrusted else { return self.run_as(state) };
        let outputs = &self.outputs;
        // A replay that leaves out a copy would find there what the run before it wrote.
        outputs.iter().try_for_each(|id| buffers.clear(*id))?;
        self.run_as(state)?;
        let replayed = outputs.iter().map(|id| buffers.read(*id)).collect::<Result<Vec<_>>>()?;
        self.run()?;
        let mut difference = 0.0_f64;
        for (id, replayed) in outputs.iter().zip(&replayed) {
            difference = difference.max(relative(&buffers.read(*id)?, replayed));
        }
        let is_same = difference <= SAME_RUN;
        capture.settle(if is_same { State::Trusted } else { State::Refused });
        if !is_same {
            buffers.refuse_capture(format!(
                "{}: a replay differs from a run by {difference:.1e} of its numbers",
                self.session.name
            ));
        }
        Ok(())
    }

    fn run_as(&self, state: State) -> Result<()> {
        let _turn = turn(self.session.takes_turns);
        let mut session = lock(&self.session.session);
        let fail = |error| runtime_error(error).at(&self.session.name);
        self.first.map_or(Ok(()), Stream::wait)?;
        for input in &self.copied {
            let place = self.binding.ptr().cast_mut();
            // SAFETY: the binding holds the value under this port, so both are alive; only this thread uses the self.
            let status = unsafe { (ort::api().BindInput)(place, input.port.as_ptr(), input.value) };
            // SAFETY: the status comes from ONNX Runtime and is used once.
            unsafe { ort::Error::result_from_status(status) }.map_err(fail)?;
        }
        self.runs.all.fetch_add(1, Ordering::Relaxed);
        let Some(capture) = &self.capture else {
            self.runs.plain.fetch_add(usize::from(self.session.is_unrecorded), Ordering::Relaxed);
            let options = self.options.as_ref().map_or(std::ptr::null(), AsPointer::ptr);
            return run_binding(&mut session, &self.binding, options).map_err(fail);
        };
        let options = capture.options(state == State::Refused);
        run_binding(&mut session, &self.binding, options.ptr()).map_err(|error| match state {
            State::New => fail(error).at("recording a run; leave out the provider's option `graph-captures`"),
            _ => fail(error),
        })?;
        let runs = match state {
            State::New => {
                capture.settle(State::Recorded);
                &self.runs.recorded
            }
            State::Recorded | State::Trusted => &self.runs.replayed,
            State::Refused => &self.runs.plain,
        };
        runs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Two runs over the same numbers differ by no more, relative L1: kernels may add in any order.
const SAME_RUN: f64 = 1e-5;

/// mean(abs(a − b)) / mean(abs(a)).
fn relative(a: &[f32], b: &[f32]) -> f64 {
    let sum = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(f64::abs).sum::<f64>();
    let difference = sum(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let all = sum(&mut a.iter().map(|a| f64::from(*a)));
    if difference == 0.0 { 0.0 } else { difference / all }
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

/// What a run waits for before it begins, and its options: where runs may be left unfinished on a stream, those that stay on the
/// device end before what they launched does, and the others wait for all that was launched.
fn waiting(stream: Option<Stream>, stays: bool) -> (Option<Stream>, &'static [(&'static str, &'static str)]) {
    match stream {
        Some(_) if stays => (None, &[NO_WAIT]),
        stream => (stream, &[]),
    }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;
    use crate::model::manifest::DType;
    use crate::runtime::device::Device;
    use crate::runtime::device_memory::DeviceMemory;
    use crate::runtime::graphs::{StreamType, residuals};
    use crate::runtime::library::{self, LibraryOptions};
    use crate::runtime::provider::{ProviderSpec, Role};
    use crate::runtime::source::{SessionSource, WeightsMode};
    use crate::runtime::tensor::TensorPlace;

    /// Where runs may be left unfinished, the host's tensors are read and written only after a wait.
    #[test]
    fn runs_that_touch_the_host_are_waited_for() {
        let library = library::environment(&LibraryOptions::default()).unwrap();
        let device = Device::open(&library, &ProviderSpec::default(), false, None).unwrap();
        let memory = Arc::new(DeviceMemory::new(Arc::clone(&device)));
        let mut buffers = Buffers::new(&memory, TensorPlace::Device).unwrap();
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
            let bound = Op::bind(&Arc::new(session), &mut buffers, &[("ran0", a), ("from0", a)], &[("residual0", b)]);
            match bound {
                Ok(op) => {
                    assert!(!fails && op.first.is_some() && op.options.is_none());
                    op.run().unwrap();
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
