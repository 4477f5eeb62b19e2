//! What an input may cost, and how that is measured.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::targets::{Bench, Target};

/// Most bytes beside those of the input.
const MEMORY: usize = 100 << 20;
/// Longest time of one input. Debug builds take up to twenty times as long as release builds.
const TIME: Duration = Duration::from_secs(if cfg!(debug_assertions) { 20 } else { 1 });
/// When nothing is waited for any more.
const HANG: Duration = Duration::from_secs(if cfg!(debug_assertions) { 120 } else { 20 });

/// Counts what is allocated. A program that judges names it as its allocator.
pub struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn count(bytes: usize) {
    MOST.fetch_max(NOW.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: all work is the system's allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// What an input of a target costs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Time that was computed.
    pub time: Duration,
    /// Most bytes at once.
    pub bytes: usize,
}

/// Runs one input.
///
/// # Errors
/// What is wrong: a panic, a hang, too much time or memory, or what the target itself finds.
pub fn judge(target: &Target, bench: &Bench, input: &[u8]) -> Result<Cost, String> {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    let (done, outcome) = mpsc::channel();
    let cost = std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            let started = Clock::start();
            let verdict = (target.run)(bench, input);
            let time = started.elapsed();
            let _ = done.send(());
            verdict.map(|()| time)
        });
        if let Err(mpsc::RecvTimeoutError::Timeout) = outcome.recv_timeout(HANG) {
            // A thread cannot be stopped, so the process is; whoever started it keeps the input.
            eprintln!("it hangs");
            std::process::exit(3);
        }
        let time = worker.join().map_err(|panic| format!("panics: {}", text(panic.as_ref())))??;
        Ok::<_, String>(Cost { time, bytes: MOST.load(Relaxed) - before })
    })?;
    if cost.time > TIME {
        return Err(format!("takes {:.1} s", cost.time.as_secs_f64()));
    }
    if cost.bytes > MEMORY + input.len() {
        return Err(format!("takes {} MB for an input of {} bytes", cost.bytes >> 20, input.len()));
    }
    Ok(cost)
}

fn text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// The time that this thread computes, so that a busy machine changes no verdict.
struct Clock {
    thread: Option<Duration>,
    wall: Instant,
}

impl Clock {
    fn start() -> Self {
        Self { thread: thread_time(), wall: Instant::now() }
    }

    fn elapsed(&self) -> Duration {
        match (self.thread, thread_time()) {
            (Some(start), Some(end)) => end.saturating_sub(start),
            _ => self.wall.elapsed(),
        }
    }
}

#[cfg(unix)]
fn thread_time() -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a place for what is written.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    (failed == 0).then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

#[cfg(not(unix))]
fn thread_time() -> Option<Duration> {
    None
}
