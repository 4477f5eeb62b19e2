//! What a host is told while a request runs. Structs that cross begin with their size: a newer library appends members,
//! and an older program reads those that it knows.

use std::ffi::{CString, c_char, c_void};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use dbcache::cache::Action;
use dbcache::trace::StepRecord;
use dbcache::{Image, Observer, Phase, Progress};

use crate::log::Hears;

/// The prompt is encoded, and tensors are allocated.
pub const DBCACHE_PHASE_PREPARE: i32 = 1;
/// Denoising steps.
pub const DBCACHE_PHASE_STEPS: i32 = 2;
/// Latents become pixels.
pub const DBCACHE_PHASE_DECODE: i32 = 3;

/// Blocks ran.
pub const DBCACHE_DECISION_COMPUTE: i32 = 0;
/// What was kept of blocks was used again.
pub const DBCACHE_DECISION_SKIP: i32 = 1;
/// Single blocks decided, and at least one was skipped.
pub const DBCACHE_DECISION_PER_BLOCK: i32 = 2;

/// Something failed.
pub const DBCACHE_LOG_ERROR: i32 = 1;
/// Something is suspicious, such as a cache that never skips.
pub const DBCACHE_LOG_WARN: i32 = 2;
/// What happens, now and then.
pub const DBCACHE_LOG_INFO: i32 = 3;
/// Every step.
pub const DBCACHE_LOG_DEBUG: i32 = 4;
/// Everything.
pub const DBCACHE_LOG_TRACE: i32 = 5;

/// How far a request is.
#[repr(C)]
pub struct dbcache_progress {
    /// Of this struct, in bytes.
    pub struct_size: usize,
    /// One of DBCACHE_PHASE_….
    pub phase: i32,
    /// Steps that are done.
    pub done: usize,
    /// Steps of the request; 0 while it is prepared.
    pub steps: usize,
    /// Wall time since the first step began.
    pub elapsed_ms: f64,
}

/// One decision: what one branch of one step did.
#[repr(C)]
pub struct dbcache_step {
    /// Of this struct, in bytes.
    pub struct_size: usize,
    /// From 0.
    pub step: usize,
    /// Steps of the request.
    pub steps: usize,
    /// `cond` or `uncond`.
    pub branch: *const c_char,
    /// The picture of the batch that decided, from 0; -1 where the batch decides as one.
    pub sample: i64,
    /// One of DBCACHE_DECISION_….
    pub decision: i32,
    /// The rule that decided, such as `warmup` or `below`; docs/json.md names all.
    pub reason: *const c_char,
    /// Noise level, 1 … 0, dimensionless.
    pub sigma: f64,
    /// Relative L1 change against the last computed step, dimensionless; NaN where no diff was taken.
    pub diff: f64,
    /// What the diff was compared with; NaN where no diff was taken.
    pub threshold: f64,
    /// How many blocks ran.
    pub blocks_run: usize,
    /// Wall time of this branch of the step.
    pub elapsed_ms: f64,
    /// Which blocks ran: `blocks_run` numbers in rising order, counted from the start of the model. NULL where none did.
    pub blocks: *const usize,
    /// The list of blocks that was decided on, from 0; -1 where all blocks are one list.
    pub list: i64,
    /// Runs of ONNX Runtime sessions for this branch and list of the step.
    pub session_runs: usize,
}

/// One picture as the model expects it after a step.
#[repr(C)]
pub struct dbcache_preview {
    /// Of this struct, in bytes.
    pub struct_size: usize,
    /// From 0.
    pub step: usize,
    /// The picture or video of the batch, from 0; of a video the frame in its middle is shown.
    pub index: usize,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// `height * width * 3` bytes, row by row, red green blue.
    pub rgb: *const u8,
    /// How many they are.
    pub bytes: usize,
}

/// One message of the library or of ONNX Runtime.
#[repr(C)]
pub struct dbcache_log {
    /// Of this struct, in bytes.
    pub struct_size: usize,
    /// One of DBCACHE_LOG_….
    pub level: i32,
    /// The part of the library that speaks.
    pub target: *const c_char,
    /// One line of UTF-8.
    pub message: *const c_char,
}

/// Called when a phase begins and after each step. It must return; not 0 cancels. What `progress` points to lives until it returns.
pub type dbcache_progress_fn =
    Option<unsafe extern "C" fn(progress: *const dbcache_progress, user: *mut c_void) -> i32>;
/// Called after each branch of each step (and list of blocks and picture that decides for itself). It must return; not 0
/// cancels. What
/// `step` and its members point to lives until it returns.
pub type dbcache_step_fn = Option<unsafe extern "C" fn(step: *const dbcache_step, user: *mut c_void) -> i32>;
/// Called with each picture of the batch. It must return; not 0 cancels. What `preview` points to lives until it returns.
pub type dbcache_preview_fn = Option<unsafe extern "C" fn(preview: *const dbcache_preview, user: *mut c_void) -> i32>;
/// Called with each message, one at a time. It must return; not 0 cancels. What `log` points to lives until it returns. It may cancel and
/// poll requests; loading, running and waiting are errors, because what speaks may hold a lock.
pub type dbcache_log_fn = Option<unsafe extern "C" fn(log: *const dbcache_log, user: *mut c_void) -> i32>;

/// What the caller gave for its callbacks; never followed here.
#[derive(Clone, Copy)]
pub(crate) struct User(*mut c_void);

// SAFETY: the pointer is only handed back; the header says on which thread.
unsafe impl Send for User {}
// SAFETY: as above.
unsafe impl Sync for User {}

type Function<T> = unsafe extern "C" fn(*const T, *mut c_void) -> i32;

/// A function of the host and what it wants to get back.
pub(crate) struct Callback<T> {
    function: Function<T>,
    user: User,
}

impl<T> Clone for Callback<T> {
    fn clone(&self) -> Self {
        Self { function: self.function, user: self.user }
    }
}

impl<T> Callback<T> {
    /// None for a NULL function.
    pub(crate) fn new(function: Option<Function<T>>, user: *mut c_void) -> Option<Self> {
        function.map(|function| Self { function, user: User(user) })
    }

    pub(crate) fn call(&self, told: &T) -> ControlFlow<()> {
        // SAFETY: the host gave the function for this; `told` lives until it returns.
        let answer = unsafe { (self.function)(told, self.user.0) };
        if answer == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

/// All callbacks of a request.
#[derive(Clone, Default)]
pub(crate) struct Callbacks {
    pub(crate) progress: Option<Callback<dbcache_progress>>,
    pub(crate) step: Option<Callback<dbcache_step>>,
    /// With how many steps lie between two previews.
    pub(crate) preview: Option<(Callback<dbcache_preview>, usize)>,
    pub(crate) log: Option<Hears>,
}

/// Hands what the library tells to the callbacks; to none once the request is freed.
pub(crate) struct Teller<'a> {
    pub(crate) callbacks: &'a Callbacks,
    pub(crate) is_freed: &'a AtomicBool,
}

impl Teller<'_> {
    fn tell<T>(&self, callback: Option<&Callback<T>>, told: impl FnOnce() -> T) -> ControlFlow<()> {
        match callback {
            Some(_) if self.is_freed.load(Ordering::Acquire) => ControlFlow::Break(()),
            Some(callback) => callback.call(&told()),
            None => ControlFlow::Continue(()),
        }
    }

    pub(crate) fn phase(&self, phase: i32) -> ControlFlow<()> {
        let struct_size = size_of::<dbcache_progress>();
        self.tell(self.callbacks.progress.as_ref(), || dbcache_progress {
            struct_size,
            phase,
            done: 0,
            steps: 0,
            elapsed_ms: 0.0,
        })
    }
}

impl Observer for Teller<'_> {
    fn on_step(&mut self, record: &StepRecord) -> ControlFlow<()> {
        let Some(callback) = &self.callbacks.step else { return ControlFlow::Continue(()) };
        let text = |text: &str| CString::new(text).unwrap_or_default();
        let (branch, reason) = (text(record.branch.as_str()), text(record.decision.reason.as_str()));
        let decision = match record.letter() {
            'P' => DBCACHE_DECISION_PER_BLOCK,
            _ if record.decision.action == Action::Skip => DBCACHE_DECISION_SKIP,
            _ => DBCACHE_DECISION_COMPUTE,
        };
        let blocks: Vec<usize> = record.ran.iter().cloned().flatten().collect();
        let blocks_run = blocks.len();
        let number = |number: Option<usize>| number.map_or(-1, |number| number as i64);
        self.tell(Some(callback), || dbcache_step {
            struct_size: size_of::<dbcache_step>(),
            step: record.step,
            steps: record.steps,
            branch: branch.as_ptr(),
            sample: number(record.sample),
            decision,
            reason: reason.as_ptr(),
            sigma: record.sigma.into(),
            diff: record.diff.map_or(f64::NAN, f64::from),
            threshold: record.threshold.unwrap_or(f64::NAN),
            blocks_run,
            elapsed_ms: record.elapsed_ms,
            blocks: if blocks.is_empty() { std::ptr::null() } else { blocks.as_ptr() },
            list: number(record.list),
            session_runs: record.session_runs,
        })
    }

    fn on_progress(&mut self, progress: Progress) -> ControlFlow<()> {
        self.tell(self.callbacks.progress.as_ref(), || dbcache_progress {
            struct_size: size_of::<dbcache_progress>(),
            phase: if progress.phase == Phase::Decode { DBCACHE_PHASE_DECODE } else { DBCACHE_PHASE_STEPS },
            done: progress.done,
            steps: progress.steps,
            elapsed_ms: progress.elapsed_ms,
        })
    }

    fn wants_preview(&mut self, step: usize) -> bool {
        self.callbacks.preview.as_ref().is_some_and(|(_, every)| (step + 1).is_multiple_of(*every))
    }

    fn on_preview(&mut self, step: usize, images: &[Image]) -> ControlFlow<()> {
        let callback = self.callbacks.preview.as_ref().map(|(callback, _)| callback);
        images.iter().enumerate().try_for_each(|(index, image)| {
            self.tell(callback, || dbcache_preview {
                struct_size: size_of::<dbcache_preview>(),
                step,
                index,
                width: image.width,
                height: image.height,
                rgb: image.rgb.as_ptr(),
                bytes: image.rgb.len(),
            })
        })
    }
}
