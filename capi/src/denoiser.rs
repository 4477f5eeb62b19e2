//! Step-wise use: a session that stands where the transformer was in a host's own loop.

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use dbcache::cache::Branch;
use dbcache::{CancelToken, Denoiser, GuidanceBy, Inputs, Observer};
use ndarray::ArrayD;

use crate::callbacks::{Callbacks, Teller};
use crate::cast;
use crate::error::{Failure, Outcome, dbcache_error, guard, release};
use crate::job::Stage;
use crate::log::{listening, not_while_telling};
use crate::request::{dbcache_request, job};
use crate::result::dbcache_result;

/// The library combines the guidance branches: one call a step, with DBCACHE_BRANCH_BOTH.
pub const DBCACHE_GUIDANCE_LIBRARY: i32 = 0;
/// The host combines them: one call a branch and step.
pub const DBCACHE_GUIDANCE_HOST: i32 = 1;

/// The branch with the prompt.
pub const DBCACHE_BRANCH_COND: i32 = 0;
/// The branch without it, or with the negative prompt.
pub const DBCACHE_BRANCH_UNCOND: i32 = 1;
/// All branches of a step, combined by the library.
pub const DBCACHE_BRANCH_BOTH: i32 = 2;

/// One generation, driven by the host call by call. The cache lives in it.
pub struct dbcache_denoiser {
    session: Mutex<Denoiser>,
    cancel: CancelToken,
    callbacks: Callbacks,
    inputs: Inputs,
    steps: usize,
    shape: Vec<i64>,
}

impl dbcache_denoiser {
    /// The session, unless another thread has it.
    fn session(&self) -> Outcome<MutexGuard<'_, Denoiser>> {
        match self.session.try_lock() {
            Ok(session) => Ok(session),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(Failure::state("another thread uses this session; one at a time")),
        }
    }

    /// A host's latents as a tensor.
    ///
    /// # Safety
    /// As [`cast::array`].
    unsafe fn tensor(&self, latents: *const f32, count: usize) -> Outcome<ArrayD<f32>> {
        let extents: Vec<usize> = self.shape.iter().map(|extent| *extent as usize).collect();
        let expected = extents.iter().product::<usize>();
        let misfit = || {
            let problem = format!("holds {count} numbers; expected {expected} of the shape {:?}", self.shape);
            Failure::argument("latents", &problem)
        };
        if latents.is_null() {
            return Err(Failure::null("latents"));
        }
        // Before anything is read: what lies beyond the session's numbers may be nobody's.
        if count != expected {
            return Err(misfit());
        }
        // SAFETY: the caller's promise.
        let numbers = unsafe { cast::array(latents, count, "latents") }?;
        ArrayD::from_shape_vec(extents, numbers.to_vec()).map_err(|_| misfit())
    }
}

/// Opens a session with the engine, options, inputs and callbacks (step and log) of a request that has not run, and that
/// stays as it is. `guidance` is one of DBCACHE_GUIDANCE_….
///
/// Errors: USAGE, LIBRARY, ENGINE_DIRECTORY, INPUT, RUNTIME, NUMERIC, IO, PROVIDER, NOT_BUILT, RESOURCES, ARGUMENT,
/// STATE, CANCELLED.
/// Threads: any. Ownership: the request may be freed before the session; the caller owns `*out`, and frees it with
/// dbcache_denoiser_free.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_denoiser_new(
    request: *const dbcache_request,
    guidance: i32,
    out: *mut *mut dbcache_denoiser,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (job, out) = unsafe { (job(request)?, cast::place(out, "out")?) };
        not_while_telling()?;
        let by = match guidance {
            DBCACHE_GUIDANCE_LIBRARY => GuidanceBy::Library,
            DBCACHE_GUIDANCE_HOST => GuidanceBy::Host,
            _ => {
                let problem = format!("is {guidance}; expected a DBCACHE_GUIDANCE_ constant");
                return Err(Failure::argument("guidance", &problem));
            }
        };
        if job.stage() != Stage::New {
            return Err(Failure::state("this request has run or runs; make another one for a session"));
        }
        let setup = job.setup();
        let cancel = CancelToken::default();
        let options = dbcache::RequestOptions { cancel: cancel.clone(), ..job.options.clone() };
        let session = listening(setup.callbacks.log.as_ref(), &cancel, &Arc::default(), || {
            job.engine.denoiser(&setup.inputs, &options, by)
        })?;
        let steps = session.steps();
        let shape = session.latents()?.shape().iter().map(|extent| *extent as i64).collect();
        let (callbacks, inputs) = (setup.callbacks, setup.inputs);
        out.put_new(dbcache_denoiser { session: Mutex::new(session), cancel, callbacks, inputs, steps, shape });
        Ok(())
    })
}

/// How many steps the session has, and the shape of its latents (`[batch, tokens, features]`, or as the engine has them).
///
/// Errors: ARGUMENT.
/// Threads: any. Ownership: `*shape` is the session's and lives as long.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_denoiser_shape(
    denoiser: *const dbcache_denoiser,
    steps: *mut usize,
    shape: *mut *const i64,
    rank: *mut usize,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (denoiser, steps, shape, rank) = unsafe {
            (
                cast::shared(denoiser, "denoiser")?,
                cast::place(steps, "steps")?,
                cast::place(shape, "shape")?,
                cast::place(rank, "rank")?,
            )
        };
        steps.put(denoiser.steps);
        shape.put(denoiser.shape.as_ptr());
        rank.put(denoiser.shape.len());
        Ok(())
    })
}

/// The branches of each step in the order in which they must be called, DBCACHE_BRANCH_…: at most two to `branches`, how
/// many to `*count`.
///
/// Errors: ARGUMENT, STATE.
/// Threads: any. Ownership: the numbers are copied.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_denoiser_branches(
    denoiser: *const dbcache_denoiser,
    branches: *mut i32,
    count: *mut usize,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (denoiser, count) = unsafe { (cast::shared(denoiser, "denoiser")?, cast::place(count, "count")?) };
        let numbers: Vec<i32> = denoiser.session()?.branches().into_iter().map(number).collect();
        // SAFETY: C's promise: room for two numbers.
        unsafe { cast::copy_array(&numbers, branches, numbers.len(), "branches") }?;
        count.put(numbers.len());
        Ok(())
    })
}

fn number(branch: Option<Branch>) -> i32 {
    match branch {
        None => DBCACHE_BRANCH_BOTH,
        Some(Branch::Cond) => DBCACHE_BRANCH_COND,
        Some(Branch::Uncond) => DBCACHE_BRANCH_UNCOND,
    }
}

/// The noise levels of the engine's own scheduler: exactly steps + 1 numbers. A host may use others.
///
/// Errors: ARGUMENT, STATE.
/// Threads: any. Ownership: the numbers are copied.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_denoiser_sigmas(
    denoiser: *const dbcache_denoiser,
    sigmas: *mut f32,
    count: usize,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let denoiser = unsafe { cast::shared(denoiser, "denoiser") }?;
        let session = denoiser.session()?;
        // SAFETY: C's promise.
        unsafe { cast::copy_array(session.sigmas(), sigmas, count, "sigmas") }
    })
}

/// The latents that the session starts with: the noise of the request's seed, or its tensor `latents`. Exactly as many
/// numbers as dbcache_denoiser_shape says.
///
/// Errors: LIBRARY, RUNTIME, RESOURCES, ARGUMENT, STATE, CANCELLED.
/// Threads: any, before the first step. Ownership: the numbers are copied.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_denoiser_latents(
    denoiser: *const dbcache_denoiser,
    latents: *mut f32,
    count: usize,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let denoiser = unsafe { cast::shared(denoiser, "denoiser") }?;
        let numbers: Vec<f32> = denoiser.session()?.latents()?.iter().copied().collect();
        // SAFETY: C's promise.
        unsafe { cast::copy_array(&numbers, latents, count, "latents") }
    })
}

/// The velocity for latents at the noise level `sigma` (1 noise … 0 picture; a timestep of flow matching is 1000 sigma):
/// Euler's step is `latents += (next sigma - sigma) * velocity`. `branch` is the next one of dbcache_denoiser_branches;
/// the last one ends the step. Both arrays have `count` numbers; that they overlap is an error.
///
/// Errors: USAGE, LIBRARY, INPUT, RUNTIME, NUMERIC, RESOURCES, ARGUMENT, STATE, CANCELLED.
/// Threads: one at a time, else an error; callbacks are called on it. Ownership: the numbers are copied.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_denoiser_velocity(
    denoiser: *const dbcache_denoiser,
    branch: i32,
    sigma: f32,
    latents: *const f32,
    velocity: *mut f32,
    count: usize,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let denoiser = unsafe { cast::shared(denoiser, "denoiser") }?;
        let branch = match branch {
            DBCACHE_BRANCH_BOTH => None,
            DBCACHE_BRANCH_COND => Some(Branch::Cond),
            DBCACHE_BRANCH_UNCOND => Some(Branch::Uncond),
            _ => {
                let problem = format!("is {branch}; expected a DBCACHE_BRANCH_ constant");
                return Err(Failure::argument("branch", &problem));
            }
        };
        if velocity.is_null() {
            return Err(Failure::null("velocity"));
        }
        not_while_telling()?;
        // SAFETY: C's promise.
        let numbers = unsafe { denoiser.tensor(latents, count) }?;
        if latents.addr().abs_diff(velocity.addr()) < count * size_of::<f32>() {
            return Err(Failure::argument("velocity", "overlaps `latents`; give it numbers of its own"));
        }
        let latents = numbers;
        let mut session = denoiser.session()?;
        let (numbers, records) = listening(denoiser.callbacks.log.as_ref(), &denoiser.cancel, &Arc::default(), || {
            session.velocity(branch, &latents, sigma)
        })?;
        drop(session);
        let mut teller = Teller { callbacks: &denoiser.callbacks, is_freed: &AtomicBool::new(false) };
        if let ControlFlow::Break(()) = records.iter().try_for_each(|record| teller.on_step(record)) {
            denoiser.cancel.cancel();
            return Err(Failure::cancelled());
        }
        let numbers: Vec<f32> = numbers.iter().copied().collect();
        // SAFETY: C's promise.
        unsafe { cast::copy_array(&numbers, velocity, count, "velocity") }
    })
}

/// A result of a host's final latents: decoded, with the trace and statistics of the session. The session goes on.
///
/// Errors: LIBRARY, RUNTIME, NUMERIC, RESOURCES, ARGUMENT, STATE, CANCELLED.
/// Threads: one at a time, else an error. Ownership: the numbers are copied; the caller owns `*out`, and frees it with
/// dbcache_result_free.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_denoiser_result(
    denoiser: *const dbcache_denoiser,
    latents: *const f32,
    count: usize,
    out: *mut *mut dbcache_result,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (denoiser, out) = unsafe { (cast::shared(denoiser, "denoiser")?, cast::place(out, "out")?) };
        not_while_telling()?;
        // SAFETY: C's promise.
        let latents = unsafe { denoiser.tensor(latents, count) }?;
        let mut session = denoiser.session()?;
        let output =
            listening(denoiser.callbacks.log.as_ref(), &denoiser.cancel, &Arc::default(), || session.output(&latents))?;
        drop(session);
        out.put_new(dbcache_result::new(output, denoiser.inputs.clone()));
        Ok(())
    })
}

/// Asks a call of dbcache_denoiser_velocity to stop within one block of the model; later calls fail, too.
///
/// Errors: ARGUMENT.
/// Threads: any, also signal handlers and callbacks. Ownership: none changes.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_denoiser_cancel(denoiser: *const dbcache_denoiser) -> Option<Box<dbcache_error>> {
    // SAFETY: C's promise.
    match unsafe { denoiser.as_ref() } {
        // Nothing here allocates or can panic, which a signal handler relies on.
        Some(denoiser) => denoiser.cancel.cancel(),
        None => return guard(|| Err(Failure::null("denoiser"))),
    }
    None
}

/// Frees a session. NULL is allowed.
///
/// Threads: one, when no other uses the session; not in its own callbacks. Ownership: takes the session; results stay.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dbcache_denoiser_free(denoiser: *mut dbcache_denoiser) {
    // SAFETY: C's promise.
    release(|| unsafe { cast::take(denoiser) });
}
