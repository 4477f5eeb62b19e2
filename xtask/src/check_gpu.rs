//! Everything that needs a GPU, in one go (docs/gpu.md): stages in the order of their worth, each with a time limit. The report
//! is written anew after every stage, so that an end in the middle loses only what was under way.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::run::{cargo, root, step, target_folder};

/// What a machine that is lent for a quarter of an hour leaves, after its start.
const BUDGET: Duration = Duration::from_secs(14 * 60);

/// What the speed of a provider is measured with.
const POLICIES: [&str; 4] = ["none", "f1b0", "f8b8", "f8b16"];
/// How a provider can run otherwise, behind a colon.
const WAYS: [&str; 4] = ["", "async", "graph-captures=8", "stream=own"];

/// How long the parts may take, in seconds.
const CONFORMANCE_LIMIT: u64 = 240;
const RUN_LIMIT: u64 = 60;
const FIGURES_LIMIT: u64 = 300;

pub fn check_gpu(arguments: &[String]) -> Result<()> {
    let (mut providers, mut engine, mut profile) = (Vec::new(), root().join("models/emoji"), "release");
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--engine" => engine = words.next().context("--engine lacks its value")?.into(),
            // For trying this task itself: its figures are worth nothing.
            "--debug" => profile = "dev",
            option if option.starts_with('-') => bail!("check-gpu takes --engine DIR, --debug and providers: {option}"),
            provider => providers.push(provider.to_owned()),
        }
    }
    if providers.is_empty() {
        providers.push("cuda".to_owned());
    }
    let programs = Programs::build(profile)?;
    programs.set_up(&providers)?;
    let mut report = Report::new()?;
    for provider in &providers {
        report.stages(&programs, provider, &engine)?;
    }
    println!("\n{}", fs::read_to_string(&report.path)?);
    match report.failed {
        0 => Ok(()),
        failed => bail!("{failed} of {} stages failed; the report is {}", report.count, report.path.display()),
    }
}

/// Built before the first stage, so that building takes no time of any.
struct Programs {
    command: PathBuf,
    tests: PathBuf,
    figures: PathBuf,
}

impl Programs {
    fn build(profile: &str) -> Result<Self> {
        let mut build = cargo(&["build", "--example", "figures", "--bin", "dbcache-trt", "--test", "providers"]);
        build.args(["--profile", profile]);
        step(&mut build)?;
        // Cargo's own names of the programs: one line of JSON for each that it has built.
        let output = build.arg("--message-format=json").output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let program = |part: &str| {
            let paths = text.lines().filter_map(|line| line.split("\"executable\":\"").nth(1)?.split('"').next());
            let path = paths.map(PathBuf::from).find(|path| path.to_string_lossy().contains(part));
            path.with_context(|| format!("cargo does not tell where {part} is"))
        };
        Ok(Self { command: program("/dbcache-trt")?, tests: program("/providers-")?, figures: program("/figures")? })
    }

    /// Fetches what the providers need, unless it is there or the environment names another ONNX Runtime.
    fn set_up(&self, providers: &[String]) -> Result<()> {
        if env::var_os("ORT_DYLIB_PATH").is_some_and(|path| !path.is_empty()) {
            return Ok(());
        }
        for provider in providers {
            let name = match provider.split(':').next().unwrap_or_default() {
                // The same packages; what else it needs, its first stage tells.
                "tensorrt" => "cuda",
                name => name,
            };
            step(Command::new(&self.command).args(["setup", "--provider", name]))?;
        }
        Ok(())
    }
}

struct Report {
    /// The Markdown file.
    path: PathBuf,
    /// The folder of all that the stages print.
    logs: PathBuf,
    text: String,
    start: Instant,
    count: usize,
    failed: usize,
}

/// How a stage ended.
enum End {
    Passed(String),
    Failed(String),
    /// It was ended at its limit.
    Late(String),
}

impl Report {
    fn new() -> Result<Self> {
        let logs = target_folder()?.join("check-gpu");
        fs::create_dir_all(&logs)?;
        let text = "# Report of `cargo xtask check-gpu`\n".to_owned();
        Ok(Self { path: logs.join("report.md"), logs, text, start: Instant::now(), count: 0, failed: 0 })
    }

    fn stages(&mut self, programs: &Programs, provider: &str, engine: &Path) -> Result<()> {
        let kind = provider.split(':').next().unwrap_or_default();
        let mut doctor = Command::new(&programs.command);
        doctor.args(["providers", "--provider", provider]);
        let found = self.run("providers", &mut doctor, RUN_LIMIT)?;
        let is_usable = |text: &str| text.lines().any(|line| line.starts_with(&format!("{kind:<9} usable")));
        let found = match found {
            End::Passed(text) if !is_usable(&text) => End::Failed(text),
            end => end,
        };
        let is_ready = matches!(found, End::Passed(_));
        self.add(&format!("{provider}: libraries and device"), &found)?;
        if !is_ready {
            // Nothing that follows could say more.
            return Ok(());
        }
        let mut conformance = Command::new(&programs.tests);
        conformance.arg("conformance::").current_dir(root());
        // Without a name, the tests hold the CPU's graphs against its loops.
        if provider != "cpu" {
            conformance.env("DBCACHE_TEST_PROVIDER", provider);
        }
        let end = self.run("conformance", &mut conformance, CONFORMANCE_LIMIT)?;
        self.add(&format!("{provider}: the decisions of the CPU, for eight policies and all families"), &end)?;

        self.speed(programs, provider, engine)?;

        let mut figures = Command::new(&programs.figures);
        figures.args(["--provider", provider]).current_dir(root());
        let end = self.run("figures", &mut figures, FIGURES_LIMIT)?;
        self.add(&format!("{provider}: figures"), &end)
    }

    /// One line for each way and policy, written as soon as it is known.
    fn speed(&mut self, programs: &Programs, provider: &str, engine: &Path) -> Result<()> {
        let name = format!("{provider}: steps of {}", engine.file_name().unwrap_or_default().to_string_lossy());
        let ways: &[&str] = if provider == "cuda" { &WAYS } else { &WAYS[..1] };
        let (mut lines, mut has_failed) = (String::new(), false);
        let before = self.text.clone();
        for way in ways {
            let spec = if way.is_empty() { provider.to_owned() } else { format!("{provider}:{way}") };
            for policy in POLICIES {
                let mut run = Command::new(&programs.command);
                run.arg("--engine").arg(engine).args(["--prompt", "lemon", "--provider", &spec, "--cache", policy]);
                // The second picture is measured: the first one pays for what is prepared once.
                run.args(["--count", "2", "--output"]).arg(self.logs.join("picture.png"));
                let end = self.run("speed", &mut run, RUN_LIMIT)?;
                let told = |text: &str| text.lines().rfind(|line| line.starts_with("time ")).map(str::to_owned);
                let line = match &end {
                    End::Passed(text) => told(text).unwrap_or_else(|| "no times".to_owned()),
                    End::Failed(text) => format!("failed: {}", text.lines().last().unwrap_or_default()),
                    End::Late(_) => format!("ended after {RUN_LIMIT} s"),
                };
                has_failed |= !matches!(end, End::Passed(_));
                lines += &format!("{spec:<24} {policy:<6} {line}\n");
                self.text = format!("{before}\n## {name}\n\nunder way\n\n```\n{lines}```\n");
                self.write()?;
            }
        }
        self.text = before;
        let end = if has_failed { End::Failed(lines) } else { End::Passed(lines) };
        self.add(&name, &end)
    }

    /// Runs a program for at most so many seconds, and not beyond the whole budget.
    fn run(&self, name: &str, command: &mut Command, limit: u64) -> Result<End> {
        let left = BUDGET.saturating_sub(self.start.elapsed());
        let limit = Duration::from_secs(limit).min(left);
        let log = self.logs.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        eprintln!("\n$ {command:?}");
        let status = wait(command, limit)?;
        let text = fs::read_to_string(&log)?;
        Ok(match status {
            None => End::Late(text),
            Some(status) if status.success() => End::Passed(text),
            Some(_) => End::Failed(text),
        })
    }

    /// Adds a stage, and writes all of the report.
    fn add(&mut self, name: &str, end: &End) -> Result<()> {
        self.count += 1;
        let (outcome, text) = match end {
            End::Passed(text) => ("passed", text),
            End::Failed(text) => ("FAILED", text),
            End::Late(text) => ("ENDED AT ITS TIME LIMIT", text),
        };
        self.failed += usize::from(!matches!(end, End::Passed(_)));
        let seconds = self.start.elapsed().as_secs();
        self.text +=
            &format!("\n## {name}\n\n{outcome}, {seconds} s after the start\n\n```\n{}\n```\n", last_lines(text));
        eprintln!("{outcome}: {name}");
        self.write()
    }

    fn write(&self) -> Result<()> {
        let new = self.path.with_extension("new");
        fs::write(&new, &self.text).and_then(|()| fs::rename(&new, &self.path)).context("cannot write the report")
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
