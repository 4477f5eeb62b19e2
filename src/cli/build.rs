//! `dbcache-trt build`: makes builds ahead of time. Each is made by a process of its own, which gives back all its
//! memory; this process only plans, starts and reports.

mod outcomes;
mod process;
mod schedule;

use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use dbcache_trt::{Builder, CancelToken, EngineOptions, Error, ErrorKind, bytes_in_words};

use self::outcomes::{BuildOutcome, Done, Outcomes};
use self::process::{PATIENCE, compile};
use self::schedule::{Schedule, Start, Waiting};
use super::args::{BuildArgs, BuildOneArgs};
use super::builds::tell_of_older;
use super::print::{line, note};
use super::signals::cancel_token;

pub fn run(args: &BuildArgs) -> anyhow::Result<()> {
    check(args)?;
    let options = args.options()?;
    if options.require_built {
        anyhow::bail!(usage("--require-built has no effect on a build; leave it out"));
    }
    if let Some(folder) = options.build_cache.folder()? {
        tell_of_older(&folder);
    }
    let cancel = cancel_token()?;
    let builder = Builder::plan(&args.engine, &options)?;
    let start = Instant::now();
    let report = Outcomes::new(&builder, args.json);
    for refused in builder.refused() {
        note(format_args!("warning: {refused}"));
    }
    for held_for in builder.held_for() {
        note(format_args!("note: {held_for}"));
    }
    let mut waiting = VecDeque::new();
    for (index, build) in builder.builds().iter().enumerate() {
        if build.is_built && builder.is_whole(index)? {
            report.add(Done { index, outcome: BuildOutcome::Found, peak_bytes: None })?
        } else {
            waiting.push_back(Waiting { index, weight_bytes: build.weight_bytes })
        }
    }
    let workers = Workers {
        builder: &builder,
        report: &report,
        cancel: &cancel,
        bound: args.build_memory,
        schedule: Mutex::new(Schedule::new(args.build_memory, waiting)),
        has_ended: Condvar::new(),
    };
    let worked = workers.run(args.jobs);
    if cancel.is_cancelled() {
        builder.clean()?;
        let message = "cancelled; what is compiled stays, and the same command goes on from there";
        anyhow::bail!(Error::with_kind(ErrorKind::Cancelled, message));
    }
    worked?;
    report.finish(start.elapsed())
}

/// # Errors
/// `Usage` for numbers that mean nothing.
fn check(args: &BuildArgs) -> anyhow::Result<()> {
    if args.build_memory == Some(0) {
        anyhow::bail!(usage("--build-memory is 0, in which no build fits; give the memory that there is, such as 16G"));
    }
    if args.build_memory.is_some() && args.jobs == 1 {
        anyhow::bail!(usage(
            "--build-memory has no effect with --jobs 1, which makes one build at a time; give --jobs 2 or more, or leave it out"
        ));
    }
    Ok(())
}

/// The hidden command behind each process: makes one build, and says so in one line of JSON.
pub fn one(args: &BuildOneArgs) -> anyhow::Result<()> {
    // The builder of a command that was killed has nobody to build for: its standard input ends.
    let watch = thread::Builder::new().spawn(|| {
        let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
        // At once: what is being compiled may take minutes more.
        signal_hook::low_level::exit(ErrorKind::Cancelled.exit_code().into());
    });
    watch.map_err(|error| Error::with_kind(ErrorKind::Resources, format!("no thread is to be had: {error}")))?;
    // The command that started this one has verified the weights, if that was asked for.
    let options = EngineOptions { verify: false, ..args.build.options()? };
    let builder = Builder::plan(&args.build.engine, &options)?;
    let planned = builder.builds().get(args.index);
    if planned.is_none_or(|build| build.key != args.key) {
        let message = "the model or the machine changed since the build was planned; start it again";
        anyhow::bail!(Error::with_kind(ErrorKind::EngineDirectory, message));
    }
    line(builder.compile(args.index)?.to_json())
}

/// Threads that each wait for one process at a time.
struct Workers<'w> {
    builder: &'w Builder,
    report: &'w Outcomes<'w>,
    cancel: &'w CancelToken,
    /// Bytes that all running builds together may take.
    bound: Option<u64>,
    schedule: Mutex<Schedule>,
    has_ended: Condvar,
}

impl Workers<'_> {
    fn run(&self, jobs: usize) -> anyhow::Result<()> {
        let jobs = jobs.min(self.schedule().waiting());
        thread::scope(|scope| {
            let start = |_| thread::Builder::new().spawn_scoped(scope, || self.work());
            let others: Vec<_> = (1..jobs).map(start).map_while(Result::ok).collect();
            // Where the system gives no more threads, this one does everything.
            let own = self.work();
            let results = others.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err(lost())));
            std::iter::once(own).chain(results).collect()
        })
    }

    /// Makes builds until none waits.
    fn work(&self) -> anyhow::Result<()> {
        while let Some(start) = self.next() {
            let made = self.make(start);
            let measured = made.as_ref().ok().and_then(Option::as_ref).filter(|done| done.outcome.is_built());
            self.schedule().end(start.index, measured.and_then(|done| done.peak_bytes));
            self.has_ended.notify_all();
            if let Some(done) = made? {
                self.report.add(done)?;
            }
        }
        Ok(())
    }

    /// Waits until a build may start beside those that run; `None` if none waits.
    fn next(&self) -> Option<Start> {
        let mut schedule = self.schedule();
        loop {
            if self.cancel.is_cancelled() || schedule.waiting() == 0 {
                return None;
            }
            if let Some(start) = schedule.start() {
                return Some(start);
            }
            let waited = self.has_ended.wait_timeout(schedule, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            schedule = waited.0;
        }
    }

    fn make(&self, start: Start) -> anyhow::Result<Option<Done>> {
        let Start { index, above_bound } = start;
        let Some(build) = self.builder.builds().get(index) else { return Ok(None) };
        if let Some(expected) = above_bound {
            self.say(&build.name, "is expected to take", expected, "so it runs alone");
        }
        let Some(ended) = compile(index, &build.key, self.cancel)? else { return Ok(None) };
        let peak_bytes = ended.exit.peak_bytes;
        let is_surprise = |peak: &u64| above_bound.is_none() && self.bound.is_some_and(|bound| *peak > bound);
        if let Some(peak) = peak_bytes.filter(is_surprise) {
            self.say(&build.name, "took", peak, "less was expected");
        }
        Ok(Some(Done { index, outcome: BuildOutcome::of(&ended), peak_bytes }))
    }

    /// Tells of a build that is larger than the bound.
    fn say(&self, name: &str, takes: &str, bytes: u64, then: &str) {
        let (bytes, bound) = (bytes_in_words(bytes), bytes_in_words(self.bound.unwrap_or_default()));
        note(format_args!(
            "warning: {name} {takes} {bytes} of memory, more than the {bound} of --build-memory; {then}"
        ));
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn usage(message: impl Into<String>) -> Error {
    Error::with_kind(ErrorKind::Usage, message)
}

fn lost() -> anyhow::Error {
    Error::with_kind(ErrorKind::Internal, "a thread that builds was lost").into()
}
