//! Starts the loaded library: its environment, and who computes in it.
//!
//! A host may have started the same library before. Its environment is then ours as well, with its log and, if it made
//! one, its thread pool; if it made none, each session has threads of its own.

use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use ort::AsPointer;
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Metadata, Subscriber, dispatcher};

use super::cores::physical_cores;
use super::{LibraryInfo, LibraryOptions, Loaded, Place, Work, reports};
use crate::error::{Error, ErrorKind, Result};
use crate::model::onnx::{GraphProto, build, element};
use crate::runtime::errors::wants_more;
use crate::runtime::graphs::encode;

/// ONNX Runtime's word for an arena that grows by what is asked of it, not by powers of two.
const SAME_AS_REQUESTED: i32 = 1;

/// Whose threads compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    /// One pool for all sessions of the process: ours.
    Shared,
    /// One pool for all sessions of the process: that of a host, which started ONNX Runtime first.
    OfHost,
    /// Each session has its own, because a host that started ONNX Runtime first made no pool.
    PerSession,
}

pub(super) fn build_environment(library: Place, options: &LibraryOptions, work: Work) -> Result<Loaded> {
    // Without spinning, one thread hands small work over at a loss; with it, the user expects several.
    let is_small = work == Work::Small && !options.spin;
    let threads = options.threads.unwrap_or_else(|| if is_small { 1 } else { physical_cores() });
    // The library is loaded already; this only makes the builder.
    let builder = ort::init_from(&library.path)
        .map_err(|error| Error::new(ErrorKind::Library, "cannot start ONNX Runtime").with_source(error))?;
    let pool = GlobalThreadPoolOptions::default()
        .with_intra_threads(threads)
        .and_then(|pool| pool.with_inter_threads(1))
        .and_then(|pool| pool.with_spin_control(options.spin))
        .map_err(|error| not_started(error, threads))?;
    reports::forbid();
    let environment = builder
        .with_name("dbcache-trt")
        .with_telemetry(false)
        .with_global_thread_pool(pool)
        .build()
        .map_err(|error| not_started(error, threads))?;
    if let Err(error) = share_scratch(&environment) {
        tracing::warn!(%error, "sessions have scratch memory of their own, or that of the host");
    }
    let pool = pool_of(&environment);
    let threads = if pool == Pool::OfHost { 0 } else { threads };
    let info = LibraryInfo {
        path: library.path,
        found_by: library.found_by,
        version: version(&environment),
        build: ort::info().trim_start_matches("ORT Build Info: ").to_owned(),
        threads,
        spin: options.spin,
    };
    Ok(Loaded { environment, info, pool, plugins: Mutex::default() })
}

/// Why ONNX Runtime does not start with so many threads.
fn not_started(error: ort::Error, threads: usize) -> Error {
    if !wants_more(&error.to_string()) {
        return Error::new(ErrorKind::Library, "cannot start ONNX Runtime").with_source(error);
    }
    let message = format!(
        "ONNX Runtime's {threads} thread(s) are not to be had; ask for fewer with the option `threads`, or raise the limit"
    );
    Error::new(ErrorKind::Resources, message).about("threads").with_source(error)
}

impl Loaded {
    /// The options of a session, on the threads that it computes with.
    pub(crate) fn session_builder(&self) -> ort::Result<SessionBuilder> {
        let builder = Session::builder(&self.environment)?;
        if self.pool != Pool::PerSession {
            return Ok(builder);
        }
        let builder = builder.with_independent_thread_pool()?.with_inter_threads(1)?;
        Ok(builder.with_intra_threads(self.info.threads)?.with_intra_op_spinning(self.info.spin)?)
    }
}

/// Finds out whose threads compute, by a session of one node. It also makes ONNX Runtime make what all sessions need, before
/// several threads load.
fn pool_of(environment: &Environment) -> Pool {
    let axes = &["n"];
    let model = encode(GraphProto {
        name: Some("first".into()),
        node: vec![build::node("Identity", &["in"], "out")],
        input: vec![build::port("in", element::FLOAT, axes)],
        output: vec![build::port("out", element::FLOAT, axes)],
        ..GraphProto::default()
    });
    let ear = Ear::default();
    let has_spoken = Arc::clone(&ear.0);
    let shared = dispatcher::with_default(&Dispatch::new(ear), || {
        Session::builder(environment).and_then(|mut builder| builder.commit_from_memory(&model))
    });
    match shared {
        Ok(_) if has_spoken.load(Ordering::Relaxed) => Pool::Shared,
        Ok(_) => Pool::OfHost,
        Err(error) => {
            let own = Session::builder(environment)
                .and_then(|builder| Ok(builder.with_independent_thread_pool()?))
                .and_then(|mut builder| builder.commit_from_memory(&model));
            tracing::debug!(%error, own = own.is_ok(), "no thread pool that sessions could share");
            // Where neither works something else is wrong, which the engine that is loaded next tells.
            if own.is_ok() { Pool::PerSession } else { Pool::Shared }
        }
    }
}

/// Notes that ONNX Runtime speaks to us, as it does while it makes a session: unless a host started it, and listens.
#[derive(Default)]
struct Ear(Arc<AtomicBool>);

impl Subscriber for Ear {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target() == "ort::logging"
    }

    fn event(&self, _: &Event<'_>) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Registers the arena in which the intermediate results of all sessions on the CPU lie. Sessions of one block each give
/// that memory back after every run: to the system, which has to fill it with zeros again, or to this arena.
fn share_scratch(environment: &Environment) -> ort::Result<()> {
    let api = ort::api();
    let info = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default)?;
    let mut arena = std::ptr::null_mut();
    // SAFETY: the place is ours to write.
    let status = unsafe { (api.CreateArenaCfg)(0, SAME_AS_REQUESTED, -1, -1, &mut arena) };
    // SAFETY: the status comes from ONNX Runtime and is used once.
    unsafe { ort::Error::result_from_status(status) }?;
    // SAFETY: all three are alive; the environment is read only by us so far.
    let status = unsafe { (api.CreateAndRegisterAllocator)(environment.ptr().cast_mut(), info.ptr(), arena) };
    // SAFETY: the settings were made above and are used no more.
    unsafe { (api.ReleaseArenaCfg)(arena) };
    // SAFETY: the status comes from ONNX Runtime and is used once.
    unsafe { ort::Error::result_from_status(status) }
}

/// The version of the loaded library. Neither `ort` nor the library's table of functions tells it, but every provider
/// that is built into the library carries it.
fn version(environment: &Environment) -> String {
    let built_in = environment.devices().next();
    let Some(device) = built_in else { return "unknown".to_owned() };
    let api = ort::api();
    // SAFETY: the device belongs to the environment, which lives longer than this function.
    let metadata = unsafe { (api.EpDevice_EpMetadata)(device.ptr()) };
    // SAFETY: the metadata belongs to the device; the key ends with a zero.
    let version = unsafe { (api.GetKeyValue)(metadata, c"version".as_ptr()) };
    if version.is_null() {
        return "unknown".to_owned();
    }
    // SAFETY: not null, ends with a zero, and lives as long as the device's metadata.
    unsafe { CStr::from_ptr(version) }.to_string_lossy().into_owned()
}
