//! One generation: set up, run or started, waited for, cancelled.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use crate::callbacks::{Callback, dbcache_log_fn, dbcache_preview_fn, dbcache_progress_fn, dbcache_step_fn};
use crate::cast;
use crate::engine::dbcache_engine;
use crate::error::{Failure, Outcome, dbcache_error, guard, release};
use crate::job::{Job, Stage};
use crate::log::{hears, not_while_telling};
use crate::options::{dbcache_options, or_none};
use crate::result::dbcache_result;
use crate::tensor::dbcache_tensor;

/// It can still be set up.
pub const DBCACHE_STATE_NEW: i32 = 0;
/// It runs.
pub const DBCACHE_STATE_RUNNING: i32 = 1;
/// It has a result or an error, which dbcache_request_wait gives at once.
pub const DBCACHE_STATE_ENDED: i32 = 2;
/// The caller has its result or error.
pub const DBCACHE_STATE_TAKEN: i32 = 3;

/// One generation. It runs once.
pub struct dbcache_request {
    pub(crate) job: Arc<Job>,
}

/// The job of a request. It outlives the handle, so that a request can be freed while it runs.
///
/// # Safety
/// As [`cast::shared`], until this returns.
pub(crate) unsafe fn job(request: *const dbcache_request) -> Outcome<Arc<Job>> {
    // SAFETY: the caller's promise.
    Ok(Arc::clone(&unsafe { cast::shared(request, "request") }?.job))
}

/// Makes a request. Of the options those of requests are read, NULL is none; options of engines must be those with which
/// the engine was loaded.
///
/// Errors: USAGE, ARGUMENT.
/// Threads: any; one at a time for the options. Ownership: the options are copied, the engine may be freed before the
/// request; the caller owns `*out`, and frees it with dbcache_request_free.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_request_new(
    engine: *const dbcache_engine,
    options: *const dbcache_options,
    out: *mut *mut dbcache_request,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (engine, options, out) =
            unsafe { (cast::shared(engine, "engine")?, or_none(options).options, cast::place(out, "out")?) };
        options.check_loaded(&engine.options)?;
        let job = Job::new(engine.engine.clone(), options.request()?);
        out.put_new(dbcache_request { job: Arc::new(job) });
        Ok(())
    })
}

/// Says what to make; for engines with text graphs.
///
/// Errors: ARGUMENT, STATE.
/// Threads: any. Ownership: the text is copied.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_request_set_prompt(
    request: *mut dbcache_request,
    prompt: *const c_char,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (job, prompt) = unsafe { (job(request)?, cast::text(prompt, "prompt")?) };
        job.set(|setup| setup.inputs.prompt = Some(prompt))
    })
}

/// Says what to keep away from; needs classifier-free guidance.
///
/// Errors: ARGUMENT, STATE.
/// Threads: any. Ownership: the text is copied.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_request_set_negative_prompt(
    request: *mut dbcache_request,
    prompt: *const c_char,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (job, prompt) = unsafe { (job(request)?, cast::text(prompt, "prompt")?) };
        job.set(|setup| setup.inputs.negative_prompt = Some(prompt))
    })
}

/// Gives a tensor instead of what the engine would compute: a text input by the name in the manifest (with `negative_` in
/// front for the uncond branch), `latents` `[batch, tokens, features]`, or `sigmas` `[steps + 1]`.
///
/// Errors: ARGUMENT, STATE.
/// Threads: any. Ownership: the tensor may be freed afterwards.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_request_set_tensor(
    request: *mut dbcache_request,
    name: *const c_char,
    tensor: *const dbcache_tensor,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (job, name, tensor) =
            unsafe { (job(request)?, cast::text(name, "name")?, cast::shared(tensor, "tensor")?) };
        let numbers = tensor.numbers.as_ref().clone();
        job.set(|setup| {
            setup.inputs.tensors.insert(name, numbers);
        })
    })
}

/// Reports phases and steps; NULL for no longer.
///
/// Errors: ARGUMENT, STATE.
/// Threads: any; the callback is called on the thread that runs the request, which is that of dbcache_request_run, or one
/// of the library after dbcache_request_start. It may call any function, but not wait for its own request. Ownership:
/// `user` is handed back, and must live until the request has ended.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_request_on_progress(
    request: *mut dbcache_request,
    callback: dbcache_progress_fn,
    user: *mut c_void,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        unsafe { job(request) }?.set(|setup| setup.callbacks.progress = Callback::new(callback, user))
    })
}

/// Reports every decision; NULL for no longer.
///
/// Errors: ARGUMENT, STATE.
/// Threads and ownership: as dbcache_request_on_progress.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_request_on_step(
    request: *mut dbcache_request,
    callback: dbcache_step_fn,
    user: *mut c_void,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        unsafe { job(request) }?.set(|setup| setup.callbacks.step = Callback::new(callback, user))
    })
}

/// Shows what the picture will be after each `every` steps; each costs a decode. NULL for no longer. Engines without a
/// decode graph show nothing.
///
/// Errors: ARGUMENT, STATE.
/// Threads and ownership: as dbcache_request_on_progress.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_request_on_preview(
    request: *mut dbcache_request,
    every: usize,
    callback: dbcache_preview_fn,
    user: *mut c_void,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let job = unsafe { job(request) }?;
        if every == 0 {
            return Err(Failure::argument("every", "is 0; expected at least 1"));
        }
        job.set(|setup| setup.callbacks.preview = Callback::new(callback, user).map(|callback| (callback, every)))
    })
}

/// Hands on the messages that the library and ONNX Runtime give on the thread of the request, up to the level `most`
/// (DBCACHE_LOG_ERROR … DBCACHE_LOG_TRACE); NULL for no longer. For what an engine says while it is loaded:
/// dbcache_options_on_log.
///
/// Errors: ARGUMENT, STATE.
/// Threads and ownership: as dbcache_request_on_progress; where a request loads more of an engine, on the threads that do
/// so as well, one at a time. It may cancel and poll, but not load, run or wait.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_request_on_log(
    request: *mut dbcache_request,
    most: i32,
    callback: dbcache_log_fn,
    user: *mut c_void,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let job = unsafe { job(request) }?;
        let hears = hears(most, callback, user)?;
        job.set(|setup| setup.callbacks.log = hears)
    })
}

/// Runs a request on this thread until it has ended.
///
/// Errors: USAGE, LIBRARY, ENGINE_DIRECTORY, INPUT, RUNTIME, NUMERIC, IO, PROVIDER, NOT_BUILT, RESOURCES, ARGUMENT,
/// STATE, CANCELLED.
/// Threads: any; requests of one engine run at the same time. Ownership: the caller owns `*out`, and frees it with
/// dbcache_result_free.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_request_run(
    request: *mut dbcache_request,
    out: *mut *mut dbcache_result,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (job, out) = unsafe { (job(request)?, cast::place(out, "out")?) };
        not_while_telling()?;
        out.put_new(job.run()?);
        Ok(())
    })
}

/// Starts a request on a thread of the library, and returns at once.
///
/// Errors: RESOURCES, ARGUMENT, STATE.
/// Threads: any. Ownership: none changes.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_request_start(request: *mut dbcache_request) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        unsafe { job(request) }?.start()
    })
}

/// What a request is doing, one of DBCACHE_STATE_…; does not wait.
///
/// Errors: ARGUMENT.
/// Threads: any. Ownership: none changes.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_request_poll(
    request: *const dbcache_request,
    state: *mut i32,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (job, state) = unsafe { (job(request)?, cast::place(state, "state")?) };
        state.put(match job.stage() {
            Stage::New => DBCACHE_STATE_NEW,
            Stage::Running => DBCACHE_STATE_RUNNING,
            Stage::Ended => DBCACHE_STATE_ENDED,
            Stage::Taken => DBCACHE_STATE_TAKEN,
        });
        Ok(())
    })
}

/// Waits until a started request has ended, and gives its result or its error, once.
///
/// Errors: USAGE, LIBRARY, ENGINE_DIRECTORY, INPUT, RUNTIME, NUMERIC, IO, PROVIDER, NOT_BUILT, RESOURCES, ARGUMENT,
/// STATE, CANCELLED.
/// Threads: any but the request's own callbacks, where it is an error. Ownership: the caller owns `*out`, and frees it
/// with dbcache_result_free.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_request_wait(
    request: *mut dbcache_request,
    out: *mut *mut dbcache_result,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (job, out) = unsafe { (job(request)?, cast::place(out, "out")?) };
        not_while_telling()?;
        out.put_new(job.wait()?);
        Ok(())
    })
}

/// Asks a request to stop: it ends with DBCACHE_ERROR_CANCELLED within one block of the model, unless it has ended. Does
/// not wait, can be repeated, and cancels a request that was not started, too.
///
/// Errors: ARGUMENT.
/// Threads: any, also signal handlers and callbacks. Ownership: none changes.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_request_cancel(request: *const dbcache_request) -> Option<Box<dbcache_error>> {
    // SAFETY: C's promise.
    match unsafe { request.as_ref() } {
        // Nothing here allocates or can panic, which a signal handler relies on.
        Some(request) => request.job.cancel.cancel(),
        None => return guard(|| Err(Failure::null("request"))),
    }
    None
}

/// Frees a request. NULL is allowed. One that runs is cancelled and waited for: afterwards no callback is made any more. In
/// one of its own callbacks it does not wait: that callback is the last one, and the rest goes when it has returned. Nor
/// does it wait in a log callback of another one.
///
/// Threads: one, when no other call begins with the handle; a thread in dbcache_request_run or dbcache_request_wait gets
/// its error. Ownership: takes the request; results stay.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dbcache_request_free(request: *mut dbcache_request) {
    release(|| {
        // SAFETY: C's promise.
        let request = unsafe { cast::take(request) };
        if let Some(request) = &request {
            request.job.stop();
        }
        request
    });
}
