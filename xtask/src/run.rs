//! Runs commands in the open: each is printed before it runs, and timed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The repository.
pub fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// A program that Cargo built beside this one, that is with the dev profile.
pub fn built(name: &str) -> Result<PathBuf> {
    Ok(this_program()?.with_file_name(format!("{name}{}", env::consts::EXE_SUFFIX)))
}

/// What the tests need. Whatever runs with the dev profile builds all of it: for another set Cargo would choose other features,
/// and compile most crates once more.
pub const TESTED: [&str; 4] = ["--workspace", "--lib", "--bins", "--tests"];

/// Builds what the tests need; gives the command.
pub fn build_command() -> Result<PathBuf> {
    step(cargo(&["test", "--no-run"]).args(TESTED))?;
    built("dbcache-trt")
}

/// Cargo's folder for results; what a task makes goes there as well.
pub fn target_folder() -> Result<PathBuf> {
    let folder = this_program()?.parent().and_then(Path::parent).map(Path::to_owned);
    folder.context("this program is not in a target folder; run it with `cargo xtask`")
}

fn this_program() -> Result<PathBuf> {
    env::current_exe().context("cannot tell where this program is")
}

/// Cargo itself, in the repository.
pub fn cargo(arguments: &[&str]) -> Command {
    command(&env::var("CARGO").unwrap_or_else(|_| "cargo".into()), arguments)
}

/// A command in the repository.
pub fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    command
}

/// Runs a command to its end. Anything but success is an error.
pub fn step(command: &mut Command) -> Result<()> {
    let line = describe(command);
    eprintln!("\n$ {line}");
    let start = Instant::now();
    let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    eprintln!("ok, {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Whether a command can be run and succeeds; what it prints is not shown.
pub fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// Fetches ONNX Runtime unless it is there, or the environment names another one.
pub fn set_up(dbcache_trt: &mut Command) -> Result<()> {
    match env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        Some(path) => {
            eprintln!("\nORT_DYLIB_PATH names ONNX Runtime: {}", Path::new(&path).display());
            Ok(())
        }
        None => step(dbcache_trt.arg("setup")),
    }
}

fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = match program.strip_prefix(root()) {
        Ok(inside) => inside.display().to_string(),
        Err(_) => program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned(),
    };
    let quote = |argument: &std::ffi::OsStr| {
        let argument = argument.to_string_lossy();
        if argument.contains(' ') { format!("'{argument}'") } else { argument.into_owned() }
    };
    let words = std::iter::once(program).chain(command.get_args().map(quote));
    words.collect::<Vec<_>>().join(" ")
}
