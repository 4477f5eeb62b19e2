//! Runs programs for at most so long, and writes what they said into a report: anew after every stage, so that an end in the
//! middle loses only what was under way.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

pub struct Report {
    /// The Markdown file.
    pub path: PathBuf,
    /// The folder of all that the stages print.
    pub logs: PathBuf,
    text: String,
    start: Instant,
    /// How long all stages may take together.
    budget: Duration,
    pub count: usize,
    pub failed: usize,
}

/// How a stage ended.
pub enum End {
    Passed(String),
    Failed(String),
    /// It was ended at its limit.
    Late(String),
    /// What it needs is not there, which is no failure.
    LeftOut(String),
}

impl End {
    fn text(&self) -> &str {
        match self {
            Self::Passed(text) | Self::Failed(text) | Self::Late(text) | Self::LeftOut(text) => text,
        }
    }

    /// In one line, of which a program that succeeded is asked for the last one that begins with a word.
    pub fn line(&self, word: &str) -> String {
        match self {
            Self::Passed(text) => {
                text.lines().rfind(|line| line.starts_with(word)).unwrap_or("says nothing").to_owned()
            }
            Self::Failed(text) => format!("failed: {}", text.lines().last().unwrap_or_default()),
            Self::Late(_) => "ended at its time limit".to_owned(),
            Self::LeftOut(text) => format!("left out: {text}"),
        }
    }

    pub fn has_passed(&self) -> bool {
        matches!(self, Self::Passed(_))
    }
}

impl Report {
    pub fn new(logs: &Path, budget: Duration) -> Result<Self> {
        fs::create_dir_all(logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let text = "# Report of `cargo xtask check-gpu`\n".to_owned();
        // Programs run in another folder than this one.
        let logs = logs.canonicalize()?;
        let path = logs.join("report.md");
        Ok(Self { path, logs, text, start: Instant::now(), budget, count: 0, failed: 0 })
    }

    /// Runs a program for at most so many seconds, and not beyond the whole budget.
    pub fn run(&self, name: &str, command: &mut Command, limit: u64) -> Result<End> {
        let left = self.budget.saturating_sub(self.start.elapsed());
        let limit = Duration::from_secs(limit).min(left);
        let log = self.logs.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        eprintln!("\n$ {command:?}");
        let status = match wait(command, limit) {
            Ok(status) => status,
            // The other stages may still say something.
            Err(error) => return Ok(End::Failed(format!("{error:#}"))),
        };
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        Ok(match status {
            None => End::Late(text),
            Some(status) if status.success() => End::Passed(text),
            Some(_) => End::Failed(text),
        })
    }

    /// Writes the report with a part of a stage, of which the rest is under way.
    pub fn show(&self, name: &str, lines: &str) -> Result<()> {
        self.write(&format!("{}\n## {name}\n\nunder way\n\n```\n{lines}```\n", self.text))
    }

    /// Adds a stage, and writes all of the report.
    pub fn add(&mut self, name: &str, end: &End) -> Result<()> {
        self.count += 1;
        let outcome = match end {
            End::Passed(_) => "passed",
            End::Failed(_) => "FAILED",
            End::Late(_) => "ENDED AT ITS TIME LIMIT",
            End::LeftOut(_) => "left out",
        };
        self.failed += usize::from(matches!(end, End::Failed(_) | End::Late(_)));
        let (seconds, text) = (self.start.elapsed().as_secs(), last_lines(end.text()));
        self.text += &format!("\n## {name}\n\n{outcome}, {seconds} s after the start\n\n```\n{text}\n```\n");
        eprintln!("{outcome}: {name}");
        self.write(&self.text)
    }

    fn write(&self, text: &str) -> Result<()> {
        let new = self.path.with_extension("new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, &self.path)).context("cannot write the report")
    }
}

/// Waits for the end of a program; at its limit it is ended, and there is no status.
fn wait(command: &mut Command, limit: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        sleep(Duration::from_millis(50));
    }
}

/// A report needs no more of what a stage has printed; the rest is in its log.
fn last_lines(text: &str) -> String {
    const LINES: usize = 60;
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_fails_or_is_late_does_not_stop_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = Report::new(folder.path(), Duration::from_secs(60)).unwrap();
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        for (name, mut command, limit) in [
            ("bad", shell("echo no; exit 1"), 10),
            ("late", shell("sleep 10"), 0),
            ("none", Command::new("/no/such/program"), 10),
            ("good", shell("echo time 5"), 10),
        ] {
            let end = report.run(name, &mut command, limit).unwrap();
            report.add(name, &end).unwrap();
        }
        report.add("more", &End::LeftOut("no PyTorch".to_owned())).unwrap();
        assert_eq!((report.count, report.failed), (5, 3));
        let text = fs::read_to_string(&report.path).unwrap();
        for words in
            ["## bad\n\nFAILED", "## late\n\nENDED AT ITS", "cannot run", "## good\n\npassed", "left out", "no PyTorch"]
        {
            assert!(text.contains(words), "{words} is missing: {text}");
        }
    }
}
