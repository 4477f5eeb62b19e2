//! The programs that the stages run, and what they need: built here, or carried in a package.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run::{cargo, root, step, target_folder};

/// The programs, by their places in a package, and by a part of the paths that Cargo gives them.
pub const PROGRAMS: [(&str, &str); 3] = [
    ("programs/dbcache-trt", "/dbcache-trt"),
    ("programs/providers", "/providers-"),
    // As Cargo has it: the example looks for the command one folder further up.
    ("programs/examples/figures", "/figures"),
];
/// ONNX Runtime's build for GPUs in a package.
pub const LIBRARY: &str = "libraries/libonnxruntime.so.1.31.1";

pub struct Programs {
    pub command: PathBuf,
    pub tests: PathBuf,
    pub figures: PathBuf,
    /// Measures the same model with PyTorch.
    pub torch_steps: PathBuf,
    /// Where `models/emoji` and `tests/data` lie.
    pub root: PathBuf,
    /// The graphs of `export/published/few_blocks.py`, by the names of shapes.
    pub graphs: PathBuf,
    /// Where the report goes.
    pub results: PathBuf,
    /// ONNX Runtime of a package; without one, the programs find what was set up.
    pub library: Option<PathBuf>,
    /// Where the loader finds CUDA's libraries, as far as that was looked for.
    pub search_path: Option<String>,
}

impl Programs {
    /// Built before the first stage, so that building takes no time of any.
    pub fn build(profile: &str) -> Result<Self> {
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
        let [command, tests, figures] = PROGRAMS.map(|(_, part)| program(part));
        let target = target_folder()?;
        Ok(Self {
            command: command?,
            tests: tests?,
            figures: figures?,
            torch_steps: root().join("export/published/torch_steps.py"),
            root: root().to_owned(),
            graphs: target.join("gpu-package/graphs"),
            results: target.join("check-gpu"),
            library: None,
            search_path: None,
        })
    }

    /// Those of a package. Models and the tests' data are its own, or those of a repository that lies on the machine.
    pub fn of_package(package: &Path, repository: Option<&Path>) -> Result<Self> {
        let package = package.canonicalize().with_context(|| format!("there is no folder {}", package.display()))?;
        let root = match repository {
            Some(repository) => repository.to_owned(),
            None if package.join("models").is_dir() => package.clone(),
            None => env::current_dir()?,
        };
        for folder in ["models/emoji", "tests/data"] {
            ensure!(
                root.join(folder).is_dir(),
                "{} has no {folder}; --repository names a folder that has it",
                root.display()
            );
        }
        let [command, tests, figures] = PROGRAMS.map(|(place, _)| package.join(place));
        Ok(Self {
            command,
            tests,
            figures,
            torch_steps: package.join("torch_steps.py"),
            root: root.canonicalize()?,
            graphs: package.join("graphs"),
            results: package.join("results"),
            library: Some(package.join(LIBRARY)),
            search_path: None,
        })
    }

    /// Fetches what the providers need, unless it is there or the environment names another ONNX Runtime.
    pub fn set_up(&self, providers: &[String]) -> Result<()> {
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

    /// A program in its surroundings.
    pub fn start(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root).env("DBCACHE_TEST_ROOT", &self.root).env("ORT_DISABLE_TELEMETRY", "1");
        if let Some(library) = &self.library {
            command.env("ORT_DYLIB_PATH", library);
        }
        if let Some(path) = &self.search_path {
            let before = env::var("LD_LIBRARY_PATH").unwrap_or_default();
            let paths = [before.as_str(), path.as_str()].into_iter().filter(|path| !path.is_empty());
            command.env("LD_LIBRARY_PATH", paths.collect::<Vec<_>>().join(":"));
        }
        command
    }
}
