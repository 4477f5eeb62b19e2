//! Calls the package tools: uv, pip and npm.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::arrival::{Arrival, Content};
use super::event::SetupEvent;
use super::via::Via;
use crate::packages::{Package, Registry, Wheel};

/// Lets a tool unpack a package in a folder; returns the library in it, or why there is none.
pub(super) fn fetch(
    via: Via,
    package: &Package,
    staging: &Path,
    notify: &mut dyn FnMut(SetupEvent),
) -> Result<PathBuf, String> {
    if via == Via::Npm {
        return fetch_with_npm(package, staging, notify);
    }
    let wanted = Wanted {
        name: "onnxruntime",
        version: package.version,
        platform: wheel_platform(package),
        uv_platform: uv_platform(package),
        bytes: package.archive,
        folder: "onnxruntime/capi",
        contents: vec![Content { name: package.file, bytes: package.bytes }],
    };
    unpack(via, &wanted, staging, notify)?;
    Ok(staging.join(wanted.folder).join(package.file))
}

/// Lets a tool unpack a wheel in a folder; returns the folder in it that holds the pinned files, or why there is none.
pub(super) fn fetch_wheel(
    via: Via,
    wheel: &Wheel,
    staging: &Path,
    notify: &mut dyn FnMut(SetupEvent),
) -> Result<PathBuf, String> {
    let wanted = Wanted {
        name: wheel.package,
        version: wheel.version,
        platform: wheel.platform,
        // The newest of which all wheels for it are; the version that is pinned has no other wheel for it.
        uv_platform: "x86_64-manylinux_2_28",
        bytes: wheel.bytes,
        folder: wheel.folder,
        contents: wheel.files.iter().map(|file| Content { name: file.name, bytes: file.bytes }).collect(),
    };
    unpack(via, &wanted, staging, notify)?;
    Ok(staging.join(wheel.folder))
}

/// A wheel of the Python registry.
struct Wanted {
    name: &'static str,
    version: &'static str,
    /// The wheel's platform tag, by which pip asks for it.
    platform: &'static str,
    /// The platform as uv names it.
    uv_platform: &'static str,
    /// About how much is downloaded.
    bytes: u64,
    /// Where its files lie in it.
    folder: &'static str,
    /// The files in it whose arrival is watched.
    contents: Vec<Content>,
}

impl Wanted {
    /// What tells how much of it has arrived.
    fn arrival(&self, staging: &Path, cache: Option<PathBuf>) -> Arrival {
        Arrival::new(self.bytes, self.folder, self.contents.clone(), staging, cache)
    }

    fn requirement(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }

    /// A download that takes longer is stuck: a quarter of an hour, and longer for what is large.
    fn time_limit(&self) -> Duration {
        const SLOW_BYTES_A_SECOND: u64 = 100_000;
        Duration::from_secs(15 * 60).max(Duration::from_secs(self.bytes / SLOW_BYTES_A_SECOND))
    }
}

fn unpack(via: Via, wanted: &Wanted, staging: &Path, notify: &mut dyn FnMut(SetupEvent)) -> Result<(), String> {
    match via {
        Via::Uv => unpack_with_uv(wanted, staging, notify),
        Via::Pip => unpack_with_pip(wanted, staging, notify),
        Via::Npm => Err("it has no packages of Python".to_owned()),
    }
}

/// Whether the tool fetches from the registry that has the package.
pub(super) fn is_fetched_by(package: &Package, via: Via) -> bool {
    let registry = match via {
        Via::Uv | Via::Pip => Registry::PyPi,
        Via::Npm => Registry::Npm,
    };
    package.registry == registry
}

/// The wheel's platform tag.
fn wheel_platform(package: &Package) -> &'static str {
    match (package.os, package.arch) {
        ("linux", "x86_64") => "manylinux_2_28_x86_64",
        ("linux", _) => "manylinux_2_28_aarch64",
        ("macos", _) => "macosx_14_0_arm64",
        (_, "x86_64") => "win_amd64",
        (..) => "win_arm64",
    }
}

/// The platform as uv names it.
fn uv_platform(package: &Package) -> &'static str {
    match (package.os, package.arch) {
        ("linux", "x86_64") => "x86_64-manylinux_2_28",
        ("linux", _) => "aarch64-manylinux_2_28",
        ("macos", _) => "aarch64-apple-darwin",
        (_, "x86_64") => "x86_64-pc-windows-msvc",
        (..) => "aarch64-pc-windows-msvc",
    }
}

// The library belongs to no Python, but wheels do. Both commands ask for the wheel for Python 3.12, whatever Python the
// tool itself runs on: pip spells the version so that old releases understand it.

fn unpack_with_uv(wanted: &Wanted, staging: &Path, notify: &mut dyn FnMut(SetupEvent)) -> Result<(), String> {
    let mut command = Command::new("uv");
    command.args(["pip", "install", "--no-progress", "--no-deps", "--only-binary", ":all:"]);
    // A link into uv's cache would be one file in two places: damage here would be damage there.
    command.args(["--link-mode", "copy"]);
    command.args(["--python-version", "3.12", "--python-platform", wanted.uv_platform, "--target"]);
    command.arg(staging).arg(wanted.requirement());
    // Without a Python, uv would download one: pip or npm need no such thing.
    command.env("UV_PYTHON_DOWNLOADS", "never");
    // The wheel for macOS needs 14.0, uv would assume an older one.
    command.env("MACOSX_DEPLOYMENT_TARGET", "14.0");
    let arrival = Some(wanted.arrival(staging, uv_cache(staging)));
    Run { via: Via::Uv, command, limit: wanted.time_limit(), arrival }.finish(staging, notify)
}

fn unpack_with_pip(wanted: &Wanted, staging: &Path, notify: &mut dyn FnMut(SetupEvent)) -> Result<(), String> {
    let mut reasons = Vec::new();
    for pip in find_pips(staging) {
        let mut command = pip_command(pip);
        command.args(["install", "--no-deps", "--no-compile", "--only-binary=:all:", "--ignore-requires-python"]);
        command.args(["--python-version", "312", "--implementation", "cp", "--abi", "cp312", "--abi", "none"]);
        command.args(["--platform", wanted.platform, "--retries", "2", "--target"]);
        command.arg(staging).arg(wanted.requirement());
        // The system's folder for such files is often small, or in memory.
        command.env("TMPDIR", staging);
        let arrival = Some(wanted.arrival(staging, None));
        match (Run { via: Via::Pip, command, limit: wanted.time_limit(), arrival }).finish(staging, notify) {
            Ok(()) => return Ok(()),
            Err(reason) => reasons.push(reason),
        }
    }
    Err(if reasons.is_empty() { NOT_INSTALLED.to_owned() } else { reasons.join("; ") })
}

/// The folder in which uv keeps, and unpacks, what it fetches.
fn uv_cache(staging: &Path) -> Option<PathBuf> {
    let told =
        run_quietly(Command::new("uv").args(["cache", "dir", "--color", "never"]), staging, TIME_LIMIT, &mut |_| ());
    told.ok().map(|text| PathBuf::from(text.trim())).filter(|folder| folder.is_absolute())
}

/// The ways to call pip that work, each different pip once.
fn find_pips(staging: &Path) -> Vec<&'static [&'static str]> {
    const CALLS: [&[&str]; 5] =
        [&["pip"], &["pip3"], &["python3", "-m", "pip"], &["python", "-m", "pip"], &["py", "-m", "pip"]];
    let mut seen = Vec::new();
    let is_new = |call: &&[&str]| {
        let mut command = pip_command(call);
        command.arg("--version");
        match run_quietly(&mut command, staging, TIME_LIMIT, &mut |_| ()) {
            // "pip 24.0 from /usr/lib/python3/dist-packages/pip (python 3.12)"
            Ok(version) if !seen.contains(&version) => {
                seen.push(version);
                true
            }
            _ => false,
        }
    };
    CALLS.into_iter().filter(is_new).collect()
}

/// A call of pip that the user's settings for real installations do not reach.
fn pip_command(call: &[&str]) -> Command {
    let mut words = call.iter();
    let mut command = Command::new(words.next().unwrap_or(&"pip"));
    command.args(words);
    for (name, value) in [
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
        ("PIP_NO_INPUT", "1"),
        ("PIP_REQUIRE_VIRTUALENV", "0"),
        ("PIP_ROOT_USER_ACTION", "ignore"),
        ("PIP_USER", "0"),
    ] {
        command.env(name, value);
    }
    for name in ["PIP_PREFIX", "PIP_ROOT", "PIP_TARGET"] {
        command.env_remove(name);
    }
    command
}

fn fetch_with_npm(package: &Package, staging: &Path, notify: &mut dyn FnMut(SetupEvent)) -> Result<PathBuf, String> {
    let mut command = Command::new(if cfg!(windows) { "npm.cmd" } else { "npm" });
    // The package's own script would download libraries for other processors.
    command.args(["install", "--ignore-scripts", "--no-save", "--no-package-lock", "--no-audit", "--no-fund"]);
    command.args(["--fetch-retries=1", "--fetch-retry-mintimeout=1000"]);
    command.arg("--prefix").arg(staging).arg(format!("onnxruntime-node@{}", package.version));
    Run { via: Via::Npm, command, limit: TIME_LIMIT, arrival: None }.finish(staging, notify)?;
    Ok(staging.join("node_modules/onnxruntime-node/bin/napi-v6").join(package.file))
}

pub(super) const NOT_INSTALLED: &str = "not installed";

/// What takes longer is stuck.
const TIME_LIMIT: Duration = Duration::from_secs(15 * 60);

/// How often a person hears that a tool still works.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// How often it is looked at how much has arrived.
const LOOK: Duration = Duration::from_millis(200);

/// A call of a tool, of which a person hears.
struct Run {
    via: Via,
    command: Command,
    limit: Duration,
    /// What is watched while it runs.
    arrival: Option<Arrival>,
}

impl Run {
    /// Runs it in a folder to its end.
    fn finish(mut self, staging: &Path, notify: &mut dyn FnMut(SetupEvent)) -> Result<(), String> {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let (via, mut next, mut seen) = (self.via, SIGN_OF_LIFE, 0);
        let mut heard = |since_start: Duration| {
            if since_start.is_zero() {
                notify(SetupEvent::Running { via, command: line.clone() });
            }
            if since_start >= next {
                notify(SetupEvent::StillRunning { via, seconds: next.as_secs() });
                next += SIGN_OF_LIFE;
            }
            if let Some(arrival) = &self.arrival {
                let bytes = arrival.bytes();
                if bytes != seen {
                    seen = bytes;
                    notify(SetupEvent::Arrived { bytes, of: arrival.total() });
                }
            }
        };
        run_quietly(&mut self.command, staging, self.limit, &mut heard).map(|_| ())
    }
}

/// A tool that outlives a set-up which was killed would go on writing beside the next one.
#[cfg(target_os = "linux")]
fn end_with_this_process(command: &mut Command) {
    use std::os::unix::process::CommandExt;

    use rustix::process::{Signal, set_parent_process_death_signal};
    // SAFETY: between fork and exec this makes one system call, and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?));
    }
}

/// Elsewhere the tool gets what a terminal sends, and ends when it has done its work.
#[cfg(not(target_os = "linux"))]
fn end_with_this_process(_: &mut Command) {}

/// Runs a command and returns what it printed. It must not print over our caller's output, nor ask questions. `heard` is told
/// when it has started, and a few times in each second for how long it runs.
fn run_quietly(
    command: &mut Command,
    folder: &Path,
    limit: Duration,
    heard: &mut dyn FnMut(Duration),
) -> Result<String, String> {
    let describe = |error: io::Error| error.to_string();
    let log = tempfile::NamedTempFile::new_in(folder).map_err(describe)?;
    let out = log.reopen().map_err(describe)?;
    let err = out.try_clone().map_err(describe)?; // shares its place in the file, unlike another `reopen`
    command.current_dir(folder).stdin(Stdio::null()).stdout(out).stderr(err);
    end_with_this_process(command);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => NOT_INSTALLED.to_owned(),
        _ => error.to_string(),
    })?;
    heard(Duration::ZERO);
    let status = wait(&mut child, limit, heard)?;
    let output = fs::read(log.path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(describe)?;
    if status.success() { Ok(output) } else { Err(complaint(&output).unwrap_or_else(|| status.to_string())) }
}

fn wait(child: &mut Child, limit: Duration, heard: &mut dyn FnMut(Duration)) -> Result<ExitStatus, String> {
    let start = Instant::now();
    let mut next = LOOK;
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return Ok(status);
        }
        if start.elapsed() >= next {
            heard(start.elapsed());
            next += LOOK;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // Either fails only if the child has just ended by itself.
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("stopped after {} minutes", limit.as_secs() / 60))
}

/// What a failed tool says, in one line.
fn complaint(output: &str) -> Option<String> {
    const LENGTH: usize = 600;
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = telling_lines(&lines).join(" | ");
    let end = text.char_indices().nth(LENGTH).map_or(text.len(), |(index, _)| index);
    if text.is_empty() { None } else { Some(text[..end].to_owned()) }
}

/// The lines that say what went wrong: those from the first error on, or else the last ones.
fn telling_lines<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    const COUNT: usize = 5;
    let starts_with = |line: &str, words: &[&str]| {
        let line = line.to_ascii_lowercase();
        words.iter().any(|word| line.starts_with(word))
    };
    if let Some(line) = lines.iter().find(|line| is_about_space(line)) {
        return vec![line];
    }
    if lines.iter().any(|line| line.starts_with("Traceback")) {
        return lines.last().copied().into_iter().collect();
    }
    let start = lines.iter().position(|line| starts_with(line, &["error", "npm err", "fatal"]));
    let start = start.unwrap_or(lines.len().saturating_sub(COUNT));
    // pip only warns that it has no connection; its error is that it knows of no version.
    let lost = lines.iter().any(|line| line.contains("after connection broken by")).then_some("no connection");
    lost.into_iter().chain(lines[start..].iter().take(COUNT).copied()).collect()
}

/// Whether a tool says that a disk is full.
pub(super) fn is_about_space(text: &str) -> bool {
    ["No space left on device", "ENOSPC", "not enough space on the disk"].iter().any(|words| text.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_short_and_telling() {
        let check = |output: &str, expected: Option<&str>| assert_eq!(complaint(output).as_deref(), expected);
        check("", None);
        check("a\n\n  b\nc\nd\ne\nf\n", Some("b | c | d | e | f"));
        check("Collecting x\nERROR: no version\nERROR: no match\n", Some("ERROR: no version | ERROR: no match"));
        check("WARNING: Retrying after connection broken by 'X'\nERROR: none\n", Some("no connection | ERROR: none"));
        check("ERROR: Exception:\nTraceback (most recent call last):\n  File x\nOSError: y\n", Some("OSError: y"));
        check("error: failed\n cause: No space left on device\n", Some("cause: No space left on device"));
        assert_eq!(complaint(&"é".repeat(1000)).unwrap().chars().count(), 600);
    }

    /// A tool that writes like pip: it is heard of while it runs, and how much is there.
    #[cfg(unix)]
    #[test]
    fn what_arrives_is_told_while_a_tool_runs() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = Wanted {
            name: "p",
            version: "1",
            platform: "any",
            uv_platform: "any",
            bytes: 2000,
            folder: "lib",
            contents: vec![Content { name: "a", bytes: 10 }],
        };
        let mut command = Command::new("sh");
        command.args(["-c", "mkdir pip-unpack-x; printf %01000d 0 > pip-unpack-x/p.whl; sleep 1"]);
        let arrival = Some(wanted.arrival(folder.path(), None));
        let mut events = Vec::new();
        let run = Run { via: Via::Pip, command, limit: TIME_LIMIT, arrival };
        run.finish(folder.path(), &mut |event| events.push(event)).unwrap();
        assert!(matches!(events[0], SetupEvent::Running { .. }), "{events:?}");
        assert_eq!(events[1..], [SetupEvent::Arrived { bytes: 1000, of: 2000 }]);
    }

    #[test]
    fn a_missing_or_failing_tool_is_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let mut started = false;
            let mut command = Command::new(program);
            let result = run_quietly(command.args(arguments), folder.path(), TIME_LIMIT, &mut |_| started = true);
            (result, started)
        };
        assert_eq!(run("no-such-tool-at-all", &[]), (Err(NOT_INSTALLED.into()), false));
        if cfg!(unix) {
            assert_eq!(run("sh", &["-c", "echo one; echo two >&2"]), (Ok("one\ntwo\n".into()), true));
            assert_eq!(run("sh", &["-c", "echo error: x; exit 3"]), (Err("error: x".into()), true));
            assert_eq!(run("sh", &["-c", "exit 3"]), (Err("exit status: 3".into()), true));
        }
    }
}
