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
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

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

/// Asks the system to call [`end`] when the process ends, before everything that was registered until now. ONNX Runtime
/// registers what it destroys when it first needs it, so this is called again whenever it may have made more.
pub(crate) fn come_first() {
    /// Each takes some bytes for ever; by then there is nothing that ONNX Runtime has not needed.
    const MOST: usize = 4096;
    static TIMES: Mutex<usize> = Mutex::new(0);
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    if *times < MOST {
        register(*times == 0);
        *times += 1;
    }
}

/// Runs what makes ONNX Runtime make much at once, so that nothing else says when: a thread keeps [`end`] first meanwhile.
pub(crate) fn coming_first<T>(body: impl FnOnce() -> T) -> T {
    const PAUSE: Duration = Duration::from_micros(50);
    let is_done = Arc::new(AtomicBool::new(false));
    let done = Arc::clone(&is_done);
    // Without a thread there is a moment in which the process should not end. Nothing waits for this one.
    let keeper = std::thread::Builder::new().spawn(move || {
        while !done.load(Ordering::Relaxed) {
            come_first();
            std::thread::sleep(PAUSE);
        }
    });
    drop(keeper);
    come_first();
    let made = catch_unwind(AssertUnwindSafe(body));
    come_first();
    is_done.store(true, Ordering::Relaxed);
    made.unwrap_or_else(|panic| resume_unwind(panic))
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
