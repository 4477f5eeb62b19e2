//! What became of the builds, as they end and at the end.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dbcache_trt::{Builder, Error, ErrorKind, PlannedBuild, bytes_in_words};
use serde_json::{Value, json};

use super::process::Ended;
use crate::cli::print::{line, note};

/// What became of one build.
pub enum BuildOutcome {
    /// It was there.
    Found,
    /// By a process that said this.
    Built(Value),
    /// With the exit code and the last words of the process.
    Failed(Option<i32>, String),
}

impl BuildOutcome {
    /// Of a process that ended.
    pub fn of(ended: &Ended) -> Self {
        let Ended { exit, stdout, stderr } = ended;
        if !exit.status.success() {
            return Self::Failed(exit.status.code(), stderr.clone());
        }
        match serde_json::from_str(stdout.lines().last().unwrap_or_default()) {
            Ok(said) => Self::Built(said),
            Err(_) => {
                Self::Failed(exit.status.code(), format!("the process said nothing of its result\n{stdout}{stderr}"))
            }
        }
    }

    /// Whether it was compiled now.
    pub fn is_built(&self) -> bool {
        matches!(self, Self::Built(said) if said["built"] == 1)
    }
}

/// One build with what became of it.
pub struct Done {
    pub index: usize,
    pub outcome: BuildOutcome,
    /// The most memory that its process had, if it had one.
    pub peak_bytes: Option<u64>,
}

impl Done {
    fn text(&self) -> String {
        let text = match &self.outcome {
            BuildOutcome::Found => "is there".to_owned(),
            BuildOutcome::Built(said) if self.outcome.is_built() => {
                format!("compiled in {:.1} s", said["build_seconds"].as_f64().unwrap_or_default())
            }
            BuildOutcome::Built(_) => "was compiled by another process".to_owned(),
            BuildOutcome::Failed(_, words) => {
                format!("FAILED: {}", words.trim().lines().last().unwrap_or("without a word"))
            }
        };
        match self.peak_bytes {
            Some(bytes) => format!("{text}, peak memory {}", bytes_in_words(bytes)),
            None => text,
        }
    }

    fn damage(&self) -> Option<&Value> {
        let BuildOutcome::Built(said) = &self.outcome else { return None };
        said["damaged"].as_array()?.first()
    }

    /// The exit code and the last words of a process that failed.
    fn failure(&self) -> Option<Failure<'_>> {
        let BuildOutcome::Failed(code, words) = &self.outcome else { return None };
        Some(Failure { index: self.index, code: *code, words })
    }
}

struct Failure<'d> {
    index: usize,
    code: Option<i32>,
    words: &'d str,
}

/// Tells of each build when it ends, and of all at the end.
pub struct Outcomes<'b> {
    builder: &'b Builder,
    prints_json: bool,
    done: Mutex<Vec<Done>>,
}

impl<'b> Outcomes<'b> {
    pub fn new(builder: &'b Builder, prints_json: bool) -> Self {
        Self { builder, prints_json, done: Mutex::default() }
    }

    fn name(&self, index: usize) -> &'b str {
        self.builder.builds().get(index).map_or("", |build| build.name.as_str())
    }

    pub fn add(&self, one: Done) -> anyhow::Result<()> {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(damage) = one.damage() {
            note(format_args!("warning: a build was damaged, and was made again: {damage}"));
        }
        let (name, text) = (self.name(one.index), one.text());
        done.push(one);
        let total = self.builder.builds().len();
        if self.prints_json { Ok(()) } else { line(format_args!("[{}/{total}] {name} {text}", done.len())) }
    }

    /// # Errors
    /// Of the first build that failed, with the words of all.
    pub fn finish(self, elapsed: Duration) -> anyhow::Result<()> {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let built = done.iter().filter(|done| done.outcome.is_built()).count();
        let failed: Vec<Failure<'_>> = done.iter().filter_map(Done::failure).collect();
        let found = done.len() - built - failed.len();
        let (provider, seconds) = (self.builder.provider(), elapsed.as_secs_f64());
        if self.prints_json {
            line(serde_json::to_string_pretty(&json!({
                "version": 1,
                "provider": provider,
                "builds": builds_json(self.builder.builds(), &done),
                "built": built,
                "found": found,
                "failed": failed.iter().map(|failure| self.name(failure.index)).collect::<Vec<_>>(),
                "seconds": seconds,
            }))?)?;
        } else {
            let failed = failed.len();
            line(format_args!("{built} compiled in {seconds:.1} s, {found} found, {failed} failed; {provider}"))?;
        }
        self.refuse(&failed)
    }

    fn refuse(&self, failed: &[Failure<'_>]) -> anyhow::Result<()> {
        let Some(first) = failed.first() else { return Ok(()) };
        let mut message = format!("{} of {} builds could not be made:", failed.len(), self.builder.builds().len());
        for Failure { index, code, words } in failed {
            let code = code.map_or("killed by a signal".to_owned(), |code| format!("exit code {code}"));
            message += &format!("\n{} ({code}): {}", self.name(*index), words.trim());
        }
        let of_code = |kind: &&ErrorKind| first.code == Some(kind.exit_code().into());
        let kind = ErrorKind::ALL.iter().find(of_code).copied().unwrap_or(ErrorKind::Runtime);
        anyhow::bail!(Error::with_kind(kind, message))
    }
}

fn builds_json(planned: &[PlannedBuild], done: &[Done]) -> Vec<Value> {
    let one = |(index, build): (usize, &PlannedBuild)| {
        let of_build = done.iter().find(|done| done.index == index);
        json!({
            "name": build.name,
            "key": build.key,
            "weight_bytes": build.weight_bytes,
            "peak_bytes": of_build.and_then(|done| done.peak_bytes),
            "held_for": build.held_for,
        })
    };
    planned.iter().enumerate().map(one).collect()
}
