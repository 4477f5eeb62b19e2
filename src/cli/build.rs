//! `dbcache-trt build`: makes builds ahead of time. Each is made by a process of its own, which gives back all its
//! memory; this process only plans, starts and reports.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use dbcache_trt::{Builder, CancelToken, EngineOptions, Error, ErrorKind};
use serde_json::{Value, json};

use super::args::{BuildArgs, BuildOneArgs};
use super::builds::tell_of_older;
use super::print::{line, note};
use super::signals::cancel_token;

/// More processes than any machine has GPUs or cores for; a typing error should not start them.
const MAX_JOBS: usize = 256;

/// How often a running build is looked at.
const PATIENCE: Duration = Duration::from_millis(20);

pub fn run(args: &BuildArgs) -> anyhow::Result<()> {
    if !(1..=MAX_JOBS).contains(&args.jobs) {
        anyhow::bail!(usage(format!("--jobs is {}; expected 1 to {MAX_JOBS}", args.jobs)));
    }
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
    let report = Report { total: builder.builds().len(), is_quiet: args.json, done: Mutex::default() };
    for refused in builder.refused() {
        note(format_args!("warning: {refused}"));
    }
    let mut queue = VecDeque::new();
    for (index, build) in builder.builds().iter().enumerate() {
        if build.is_built && builder.is_whole(index)? {
            report.add(&build.name, BuildOutcome::Found)?
        } else {
            queue.push_back(index)
        }
    }
    let jobs = args.jobs.min(queue.len());
    let queue = Mutex::new(queue);
    let worked = thread::scope(|scope| {
        let work = || work(&builder, &queue, &report, &cancel);
        let start = |_| thread::Builder::new().spawn_scoped(scope, work);
        let others: Vec<_> = (1..jobs).map(start).map_while(Result::ok).collect();
        // Where the system gives no more threads, this one does everything.
        let own = work();
        let results = others.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err(lost())));
        std::iter::once(own).chain(results).collect::<anyhow::Result<Vec<()>>>()
    });
    if cancel.is_cancelled() {
        builder.clean()?;
        let message = "cancelled; what is compiled stays, and the same command goes on from there";
        anyhow::bail!(Error::with_kind(ErrorKind::Cancelled, message));
    }
    worked?;
    report.finish(args, &builder, start.elapsed())
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

/// What became of one build.
enum BuildOutcome {
    /// It was there.
    Found,
    /// By a process that said this.
    Built(Value),
    /// With the exit code and the last words of the process.
    Failed(Option<i32>, String),
}

/// Takes builds from the queue until there are none.
fn work(
    builder: &Builder,
    queue: &Mutex<VecDeque<usize>>,
    report: &Report,
    cancel: &CancelToken,
) -> anyhow::Result<()> {
    loop {
        let index = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(index) = index.filter(|_| !cancel.is_cancelled()) else { return Ok(()) };
        let Some(build) = builder.builds().get(index) else { return Ok(()) };
        if let Some(outcome) = compile(index, &build.key, cancel)? {
            report.add(&build.name, outcome)?;
        }
    }
}

/// Makes one build in a process of its own; `None` if that was cancelled.
fn compile(index: usize, key: &str, cancel: &CancelToken) -> anyhow::Result<Option<BuildOutcome>> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let mut command = Command::new(program);
    command.args(["build-one", "--index", &index.to_string(), "--key", key]).args(own_arguments());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start a process that builds")?;
    let listeners = listen(child.stdout.take()).and_then(|out| Ok((out, listen(child.stderr.take())?)));
    let (out, err) = match listeners {
        Ok(listeners) => listeners,
        Err(error) => {
            // It may have ended by itself meanwhile.
            let _ = child.kill();
            child.wait()?;
            let message = format!("a process that builds needs two threads, and the system gives none ({error})");
            anyhow::bail!(Error::with_kind(ErrorKind::Resources, message));
        }
    };
    let Some(status) = wait(&mut child, cancel)? else { return Ok(None) };
    let text = |listener: thread::JoinHandle<String>| listener.join().unwrap_or_default();
    let (out, err) = (text(out), text(err));
    if !status.success() {
        return Ok(Some(BuildOutcome::Failed(status.code(), err)));
    }
    let last = out.lines().last().unwrap_or_default();
    Ok(Some(match serde_json::from_str(last) {
        Ok(said) => BuildOutcome::Built(said),
        Err(_) => BuildOutcome::Failed(status.code(), format!("the process said nothing of its result\n{out}{err}")),
    }))
}

/// The arguments of this command, without its name.
fn own_arguments() -> impl Iterator<Item = OsString> {
    let mut is_named = false;
    std::env::args_os().skip(1).filter(move |argument| std::mem::replace(&mut is_named, true) || argument != "build")
}

/// Waits for a process, or kills it when the user cancels.
fn wait(child: &mut Child, cancel: &CancelToken) -> anyhow::Result<Option<std::process::ExitStatus>> {
    loop {
        if cancel.is_cancelled() {
            // It may have ended by itself meanwhile.
            let _ = child.kill();
            child.wait()?;
            return Ok(None);
        }
        match child.try_wait()? {
            Some(status) => return Ok(Some(status)),
            None => thread::sleep(PATIENCE),
        }
    }
}

/// Reads a pipe to its end, so that the process never waits for a reader.
fn listen(pipe: Option<impl Read + Send + 'static>) -> std::io::Result<thread::JoinHandle<String>> {
    thread::Builder::new().spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

struct Report {
    total: usize,
    is_quiet: bool,
    done: Mutex<Vec<(String, BuildOutcome)>>,
}

impl Report {
    fn add(&self, name: &str, outcome: BuildOutcome) -> anyhow::Result<()> {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let text = match &outcome {
            BuildOutcome::Found => "is there".to_owned(),
            BuildOutcome::Built(said) if said["built"] == 1 => {
                format!("compiled in {:.1} s", said["build_seconds"].as_f64().unwrap_or_default())
            }
            BuildOutcome::Built(_) => "was compiled by another process".to_owned(),
            BuildOutcome::Failed(_, words) => {
                format!("FAILED: {}", words.trim().lines().last().unwrap_or("without a word"))
            }
        };
        let is_damage = |said: &Value| said["damaged"].as_array().is_some_and(|damaged| !damaged.is_empty());
        if let BuildOutcome::Built(said) = &outcome
            && is_damage(said)
        {
            note(format_args!("warning: a build was damaged, and was made again: {}", said["damaged"][0]));
        }
        done.push((name.to_owned(), outcome));
        if self.is_quiet { Ok(()) } else { line(format_args!("[{}/{}] {name} {text}", done.len(), self.total)) }
    }

    fn finish(self, args: &BuildArgs, builder: &Builder, elapsed: Duration) -> anyhow::Result<()> {
        let done = self.done.into_inner().unwrap_or_else(PoisonError::into_inner);
        let is_built = |outcome: &BuildOutcome| matches!(outcome, BuildOutcome::Built(said) if said["built"] == 1);
        let built = done.iter().filter(|(_, outcome)| is_built(outcome)).count();
        let failed: Vec<(&str, Option<i32>, &str)> = done
            .iter()
            .filter_map(|(name, outcome)| match outcome {
                BuildOutcome::Failed(code, words) => Some((name.as_str(), *code, words.as_str())),
                _ => None,
            })
            .collect();
        let found = done.len() - built - failed.len();
        if args.json {
            let builds = builder.builds().iter().map(|build| json!({ "name": build.name, "key": build.key }));
            line(serde_json::to_string_pretty(&json!({
                "version": 1,
                "provider": builder.provider(),
                "builds": builds.collect::<Vec<_>>(),
                "built": built,
                "found": found,
                "failed": failed.iter().map(|(name, ..)| name).collect::<Vec<_>>(),
                "seconds": elapsed.as_secs_f64(),
            }))?)?;
        } else {
            let provider = builder.provider();
            let seconds = elapsed.as_secs_f64();
            line(format_args!(
                "{built} compiled in {seconds:.1} s, {found} found, {} failed; {provider}",
                failed.len()
            ))?;
        }
        let Some((_, code, _)) = failed.first() else { return Ok(()) };
        let mut message = format!("{} of {} builds could not be made:", failed.len(), self.total);
        for (name, code, words) in &failed {
            let code = code.map_or("killed by a signal".to_owned(), |code| format!("exit code {code}"));
            message += &format!("\n{name} ({code}): {}", words.trim());
        }
        let of_code = |kind: &&ErrorKind| *code == Some(kind.exit_code().into());
        let kind = ErrorKind::ALL.iter().find(of_code).copied().unwrap_or(ErrorKind::Runtime);
        anyhow::bail!(Error::with_kind(kind, message))
    }
}

fn usage(message: impl Into<String>) -> Error {
    Error::with_kind(ErrorKind::Usage, message)
}

fn lost() -> anyhow::Error {
    Error::with_kind(ErrorKind::Internal, "a thread that builds was lost").into()
}
