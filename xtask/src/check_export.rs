//! Everything that must hold for the Python package in `export/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::run::{command, root, step, succeeds, target_folder};

pub fn check_export(arguments: &[String]) -> Result<()> {
    let python = environment(&["dev"])?;
    let module = |name: &str| {
        let mut command = Command::new(&python);
        command.args(["-m", name]).current_dir(root().join("export"));
        command
    };
    step(module("ruff").arg("check"))?;
    step(&mut module("mypy"))?;
    // By file, since those of a file share what they made; each process holds PyTorch, a gigabyte.
    let cores = ["--numprocesses=auto", "--maxprocesses=4", "--dist=loadfile"];
    step(module("pytest").env("OMP_NUM_THREADS", "1").args(cores).args(arguments))
}

/// The Python of an environment that holds the package, as it lies here, and groups of packages that it names.
pub fn environment(groups: &[&str]) -> Result<PathBuf> {
    let folder = target_folder()?.join("export-venv");
    let python = if cfg!(windows) { folder.join("Scripts/python.exe") } else { folder.join("bin/python") };
    let groups = groups.iter().flat_map(|group| ["--group".to_owned(), format!("export/pyproject.toml:{group}")]);
    let packages: Vec<String> = groups.chain(["--editable".to_owned(), "export".to_owned()]).collect();
    let uses_uv = succeeds(&mut command("uv", &["--version"])) && make_with_uv(&folder, &python, &packages).is_ok();
    if !uses_uv {
        make_with_pip(&folder, &python, &packages)?;
    }
    Ok(python)
}

fn make_with_uv(folder: &Path, python: &Path, packages: &[String]) -> Result<()> {
    if !python.exists() {
        // A Python that uv would have to download is no better than one that pip can use.
        let venv = ["venv", "--quiet", "--no-python-downloads", "--python", ">=3.11"];
        step(command("uv", &venv).arg(folder))?;
    }
    // As pip does: without it, where processes may not write into the environment, each compiles PyTorch's modules anew, for
    // 20 seconds.
    step(command("uv", &["pip", "install", "--quiet", "--compile-bytecode", "--python"]).arg(python).args(packages))
}

fn make_with_pip(folder: &Path, python: &Path, packages: &[String]) -> Result<()> {
    if !python.exists() {
        step(Command::new(find_python()?).args(["-m", "venv"]).arg(folder).current_dir(root()))?;
    }
    let pip = || {
        let mut command = Command::new(python);
        command.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "install"]).current_dir(root());
        command
    };
    step(pip().args(["--upgrade", "pip >= 25.1"]))?; // the first that knows groups
    step(pip().args(packages))
}

fn find_python() -> Result<PathBuf> {
    const NAMES: [&str; 6] = ["python3", "python", "python3.14", "python3.13", "python3.12", "python3.11"];
    const IS_USABLE: &str = "import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))";
    let usable = NAMES.into_iter().find(|name| succeeds(&mut command(name, &["-c", IS_USABLE])));
    usable.map(PathBuf::from).context("no Python 3.11 or newer with the modules venv and ensurepip")
}
