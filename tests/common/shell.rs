//! A small language for tests of the command: `shell.lemon("--steps 0").code(2).stderr("--steps is 0")`.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use dbcache_trt::{Image, read_tensors, write_tensors};
use ndarray::ArrayD;
use serde_json::Value;
use tempfile::TempDir;

use super::damage::Copy;
use super::{data, tiny_inputs};

/// A working directory of its own, which holds the inputs of `tiny-flux`.
pub struct Shell {
    pub folder: TempDir,
    few_blocks: Copy,
    /// What the commands find in their environment.
    pub variables: Vec<(&'static str, PathBuf)>,
}

/// What a command left behind.
pub struct Ran {
    call: String,
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Shell {
    pub fn new() -> Self {
        let shell =
            Self { folder: tempfile::tempdir().unwrap(), few_blocks: Copy::few_blocks(), variables: Vec::new() };
        write_tensors(&shell.path("in.safetensors"), &tiny_inputs(false).tensors).unwrap();
        write_tensors(&shell.path("guided.safetensors"), &tiny_inputs(true).tensors).unwrap();
        shell
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dbcache-trt"));
        command.current_dir(self.folder.path()).envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Ran {
        Ran::of(self.command().args(arguments))
    }

    /// Makes a picture with a few blocks of the shipped model; the options are divided by spaces.
    pub fn lemon(&self, options: &str) -> Ran {
        let mode = if options.contains("--weights-mode") { "" } else { "--weights-mode mapped" };
        let prompt = if options.contains("--prompt") { "" } else { "--prompt lemon" };
        let all = format!("--engine {} {mode} {prompt} {options}", self.few_blocks.folder.path().display());
        self.run(&all.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs the model of the tests from its recorded inputs, unless the options say otherwise.
    pub fn tiny(&self, options: &str) -> Ran {
        let inputs = if options.contains("--inputs") { "" } else { "--inputs in.safetensors" };
        let all = format!("--engine {} {inputs} {options}", data("tiny-flux").display());
        self.run(&all.split_whitespace().collect::<Vec<_>>())
    }

    pub fn image(&self, name: &str) -> Image {
        Image::read_png(&self.path(name)).unwrap().0
    }

    pub fn latents(&self, name: &str) -> ArrayD<f32> {
        read_tensors(&self.path(name)).unwrap()["latents"].clone()
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    pub fn files(&self) -> BTreeSet<String> {
        fs::read_dir(self.folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Ran {
    pub fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        Self::new(command, output)
    }

    pub fn new(command: &Command, output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let call = format!("{:?}", command.get_args().collect::<Vec<_>>());
        Self { call, code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        assert!(code == 0 || self.err.contains("error: "), "{self}");
        self
    }

    pub fn stdout(self, words: &str) -> Self {
        assert!(self.out.contains(words), "`{words}` is missing: {self}");
        self
    }

    pub fn stderr(self, words: &str) -> Self {
        assert!(self.err.contains(words), "`{words}` is missing: {self}");
        self
    }

    pub fn json(self) -> Value {
        assert_eq!(self.err, "");
        serde_json::from_str(&self.code(0).out).unwrap()
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\nexit code {:?}\n{}\n{}", self.call, self.code, self.out, self.err)
    }
}
