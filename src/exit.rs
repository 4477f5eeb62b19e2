//! The end of the process, which must not find ONNX Runtime at work.
//!
//! `exit` destroys what ONNX Runtime keeps for the whole process, such as its tables of operators, while other threads go
//! on. So threads that use it are counted. A handler that `exit` calls before it destroys them lets nobody in any more,
//! makes every [`CancelToken`](crate::CancelToken) say that it is cancelled, and waits until all are out. What somebody
//! frees afterwards, such as an engine in a static variable of the host, is left where it is.
//!
//! A child of `fork` has the memory of its parent but none of its threads: it is let in nowhere, and its end waits for
//! nobody.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};

use crate::error::{Error, ErrorKind, Result};

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod destructors;

/// Threads may use ONNX Runtime.
const OPEN: u8 = 0;
/// The process ends: nobody begins, and who is inside leaves.
const OVER: u8 = 1;
/// All are out, and ONNX Runtime is being destroyed.
const GONE: u8 = 2;
/// This process is a copy of the one that loaded ONNX Runtime.
const FORKED: u8 = 3;

static STATE: AtomicU8 = AtomicU8::new(OPEN);
/// How many threads use ONNX Runtime.
static THREADS: Mutex<usize> = Mutex::new(0);
static LEFT: Condvar = Condvar::new();

thread_local! {
    /// How often this thread has entered and not left again.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

fn threads() -> MutexGuard<'static, usize> {
    THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the process ends, so that whatever runs has to stop.
pub(crate) fn is_over() -> bool {
    matches!(STATE.load(Ordering::Relaxed), OVER | GONE)
}

/// Kept by a thread for as long as it uses ONNX Runtime.
pub(crate) struct Inside(PhantomData<*const ()>);

/// Says that this thread begins to use ONNX Runtime; it may have said so already.
///
/// # Errors
/// `Cancelled` once the process ends; `Library` in a child of `fork`.
pub(crate) fn enter() -> Result<Inside> {
    if STATE.load(Ordering::Acquire) == FORKED {
        return Err(Error::new(
            ErrorKind::Library,
            "this process is a fork of one that has loaded ONNX Runtime, whose threads stayed behind; fork before the \
             first engine is loaded, or start a program of its own (exec, posix_spawn)",
        ));
    }
    if DEPTH.get() == 0 {
        let mut threads = threads();
        // Under the lock: the handler has looked at the number after it has changed the state.
        if is_over() {
            return Err(Error::cancelled());
        }
        *threads += 1;
    }
    DEPTH.set(DEPTH.get() + 1);
    Ok(Inside(PhantomData))
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get().saturating_sub(1));
        if DEPTH.get() == 0 {
            leave();
        }
    }
}

fn leave() {
    // In a fork a thread that is not there may have locked the number.
    if STATE.load(Ordering::Acquire) != FORKED {
        let mut threads = threads();
        *threads = threads.saturating_sub(1);
        LEFT.notify_all();
    }
}

/// Runs what is not ours, such as a callback of the host, or what waits for other threads: the end of the process does not
/// wait for it. When all are out, it does not come back.
pub fn outside<T>(body: impl FnOnce() -> T) -> T {
    let _away = Away::new();
    body()
}

/// Waits for a lock. Whoever has it may be in a log callback that ends the process, and never give it back.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => outside(|| mutex.lock().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// A thread that has left for a while.
struct Away(usize);

impl Away {
    fn new() -> Self {
        let depth = DEPTH.replace(0);
        if depth > 0 {
            leave();
        }
        Self(depth)
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        if self.0 > 0 && STATE.load(Ordering::Acquire) != FORKED {
            let mut threads = threads();
            while STATE.load(Ordering::Acquire) == GONE {
                drop(threads);
                // Nothing that this thread could still do is safe, and the process is about to be gone.
                std::thread::park();
                threads = self::threads();
            }
            *threads += 1;
        }
        DEPTH.set(self.0);
    }
}

/// Asks the system to call [`end`] when the process ends, before everything that was registered until now: called before
/// and after what loads a library.
pub(crate) fn come_first() {
    /// Each takes some bytes for ever; by then there is nothing that a provider of ONNX Runtime has not needed.
    const MOST: usize = 4096;
    static TIMES: Mutex<usize> = Mutex::new(0);
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    if *times < MOST {
        register(*times == 0);
        *times += 1;
    }
}

/// Makes [`end`] come before all that ONNX Runtime destroys, whenever it registers that. `address` is that of any function of
/// the loaded library.
///
/// Only systems with GNU's C library have the means. On others, and for providers in libraries of their own, `end` comes
/// before what was there at the last [`come_first`]: there are moments in which the process should not end.
pub(crate) fn come_before_destructors(address: usize) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if !destructors::replace_import(address) {
        tracing::debug!("ONNX Runtime registers what it destroys in a way of its own");
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = address;
    come_first();
}

#[cfg(unix)]
fn register(is_first: bool) {
    extern "C" fn at_exit() {
        end();
    }
    extern "C" fn in_child() {
        STATE.store(FORKED, Ordering::Release);
    }
    // SAFETY: both take any function that does not unwind, at any time. Where they fail there is no memory left for a list
    // entry, and the process ends as it would without.
    unsafe {
        if is_first {
            libc::pthread_atfork(None, None, Some(in_child));
        }
        libc::atexit(at_exit);
    }
}

#[cfg(not(unix))]
fn register(_: bool) {}

/// Lets nobody in any more, and waits until all threads but this one are out.
#[cfg(unix)]
fn end() {
    if matches!(STATE.load(Ordering::Acquire), GONE | FORKED) {
        return;
    }
    let mut threads = threads();
    STATE.store(OVER, Ordering::Release);
    // A thread that calls `exit` in the middle of something never goes on with it.
    let own = usize::from(DEPTH.get() > 0);
    while *threads > own {
        threads = LEFT.wait(threads).unwrap_or_else(PoisonError::into_inner);
    }
    STATE.store(GONE, Ordering::Release);
}

/// How much ONNX Runtime has registered that is destroyed after [`end`].
#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
pub(crate) fn destructors() -> usize {
    destructors::count()
}
