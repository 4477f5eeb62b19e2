//! Engine directories to be damaged, and how their refusal is judged.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use dbcache_trt::ErrorKind;
use dbcache_trt::{Engine, EngineOptions};
use prost::Message;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::onnx::{self, GraphProto, ModelProto, StringStringEntryProto, TensorProto};
use super::{copy_files, data, emoji, sha256};

pub const WEIGHTS: &str = "transformer.safetensors";
/// No damage may take longer, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A copy of an engine directory to be damaged.
pub struct Copy {
    pub folder: TempDir,
}

impl Copy {
    pub fn tiny() -> Self {
        Self::of("tiny-flux")
    }

    /// A tiny engine of another family (`tests/data/families`).
    pub fn family(name: &str) -> Self {
        Self::of(&format!("families/{name}/engine"))
    }

    /// A tiny engine with text encoders (`tests/data/pipelines`).
    pub fn pipeline(name: &str) -> Self {
        Self::of(&format!("pipelines/{name}/engine"))
    }

    fn of(engine: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_files(&data(engine), folder.path(), |_| true);
        Self { folder }
    }

    /// The shipped model, which has a tokenizer; its weights stay where they are.
    pub fn emoji() -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_files(&emoji(), folder.path(), |name| name.ends_with(".onnx") || name.ends_with(".json"));
        let copy = Self { folder };
        for weights in ["/weights/0/folder", "/weights/1/folder"] {
            copy.set(weights, json!(emoji()));
        }
        copy
    }

    /// The shipped model with four of its blocks: its pictures show nothing, but it loads in a moment.
    pub fn few_blocks() -> Self {
        let copy = Self::emoji();
        let is_kept =
            |file: &str| ["block_000", "block_001", "block_002", "block_019"].iter().any(|k| file.starts_with(k));
        copy.manifest(|manifest| {
            let blocks = manifest["blocks"].as_array_mut().unwrap();
            blocks.retain(|block| is_kept(block["file"].as_str().unwrap()));
            manifest["lists"][0]["blocks"] = json!(3);
            manifest["lists"][1]["blocks"] = json!(1);
        });
        for entry in fs::read_dir(copy.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.starts_with("block_") && !is_kept(name) {
                fs::remove_file(path).unwrap();
            }
        }
        copy
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn bytes(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(name)).unwrap();
        edit(&mut bytes);
        fs::write(self.path(name), bytes).unwrap();
    }

    pub fn manifest(&self, edit: impl FnOnce(&mut Value)) {
        self.bytes("manifest.json", |bytes| {
            let mut manifest = serde_json::from_slice(bytes).unwrap();
            edit(&mut manifest);
            *bytes = serde_json::to_vec(&manifest).unwrap();
        });
    }

    pub fn set(&self, pointer: &str, value: Value) {
        self.manifest(|manifest| set(manifest, pointer, Some(value)));
    }

    /// Changes a file and makes the manifest agree, so that a deeper check is reached.
    pub fn lie(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        self.bytes(name, edit);
        let bytes = fs::read(self.path(name)).unwrap();
        self.manifest(|manifest| agree(manifest, name, &bytes));
    }

    pub fn model(&self, name: &str, edit: impl FnOnce(&mut ModelProto)) {
        self.lie(name, |bytes| {
            let mut model = onnx::decode(bytes).unwrap();
            edit(&mut model);
            *bytes = model.encode_to_vec();
        });
    }

    pub fn graph(&self, name: &str, edit: impl FnOnce(&mut GraphProto)) {
        self.model(name, |model| edit(model.graph.as_mut().unwrap()));
    }

    /// Changes the first parameter of `final.onnx`.
    pub fn reference(&self, edit: impl FnOnce(&mut TensorProto)) {
        let is_reference = |tensor: &&mut TensorProto| tensor.data_location == Some(onnx::EXTERNAL);
        self.graph("final.onnx", |graph| edit(graph.initializer.iter_mut().find(is_reference).unwrap()));
    }

    pub fn reference_key(&self, key: &str, value: &str) {
        let is_key = |entry: &&mut StringStringEntryProto| entry.key.as_deref() == Some(key);
        self.reference(|tensor| tensor.external_data.iter_mut().find(is_key).unwrap().value = Some(value.into()));
    }

    /// Replaces the JSON header of the weights.
    pub fn header(&self, edit: impl FnOnce(&str) -> String) {
        self.lie(WEIGHTS, |bytes| {
            let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header = edit(std::str::from_utf8(&bytes[8..end]).unwrap());
            *bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[end..]].concat();
        });
    }
}

/// Sets, adds or removes the value at a JSON pointer.
pub fn set(manifest: &mut Value, pointer: &str, value: Option<Value>) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match (manifest.pointer_mut(parent).unwrap(), value) {
        (Value::Object(object), Some(value)) => drop(object.insert(key.to_owned(), value)),
        (Value::Object(object), None) => drop(object.shift_remove(key).unwrap()),
        (Value::Array(list), Some(value)) => list[key.parse::<usize>().unwrap()] = value,
        (Value::Array(list), None) => drop(list.remove(key.parse().unwrap())),
        _ => panic!("{pointer} is not there"),
    }
}

/// Writes size and hashes of a file wherever the manifest names it.
pub fn agree(value: &mut Value, name: &str, bytes: &[u8]) {
    if value["file"] == name {
        value["bytes"] = json!(bytes.len());
        value["sha256"] = json!(sha256(bytes));
        if value.get("header_sha256").is_some() {
            let length = bytes.get(..8).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
            let end = bytes.len().min(usize::try_from(length).unwrap_or(usize::MAX).saturating_add(8));
            value["header_sha256"] = json!(sha256(&bytes[..end]));
        }
    }
    match value {
        Value::Object(object) => object.values_mut().for_each(|value| agree(value, name, bytes)),
        Value::Array(list) => list.iter_mut().for_each(|value| agree(value, name, bytes)),
        _ => {}
    }
}

/// Cases of one test; all run before it fails.
#[derive(Default)]
pub struct Cases {
    failures: Vec<String>,
}

impl Cases {
    /// Damages a copy of `tiny-flux`; loading it must fail with this kind, and with all of these words.
    pub fn check(&mut self, name: &str, damage: impl FnOnce(&Copy), kind: ErrorKind, words: &[&str]) {
        let copy = Copy::tiny();
        damage(&copy);
        self.judge(name, load(copy.folder.path(), &EngineOptions::default()), kind, words);
    }

    /// The same with Stable Diffusion 3's pipeline: two CLIPs, T5, and a graph that puts their states behind each other.
    pub fn check_sd3(&mut self, name: &str, damage: impl FnOnce(&Copy), kind: ErrorKind, words: &[&str]) {
        let copy = Copy::pipeline("sd3");
        damage(&copy);
        self.judge(name, load(copy.folder.path(), &EngineOptions::default()), kind, words);
    }

    pub fn check_emoji(&mut self, name: &str, damage: impl FnOnce(&Copy), kind: ErrorKind, words: &[&str]) {
        let copy = Copy::emoji();
        damage(&copy);
        self.judge(name, load(copy.folder.path(), &EngineOptions::default()), kind, words);
    }

    pub fn judge(&mut self, name: &str, outcome: Result<(), (ErrorKind, String)>, kind: ErrorKind, words: &[&str]) {
        match outcome {
            Ok(()) => self.failures.push(format!("{name}: loads")),
            Err((actual, message)) => {
                let missing: Vec<&&str> = words.iter().filter(|word| !message.contains(**word)).collect();
                if actual != kind || !missing.is_empty() {
                    self.failures.push(format!("{name}: {actual:?}: {message} (lacks {missing:?})"));
                }
            }
        }
    }
}

impl Drop for Cases {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.failures.is_empty(), "\n{}", self.failures.join("\n"));
        }
    }
}

/// Loads on a thread of its own, so that a hang or a panic is a failure like any other.
pub fn load(path: &Path, options: &EngineOptions) -> Result<(), (ErrorKind, String)> {
    let (done, outcome) = mpsc::channel();
    let (path, options) = (path.to_owned(), options.clone());
    std::thread::spawn(move || done.send(Engine::load(path, &options).map(drop)));
    let outcome = outcome.recv_timeout(PATIENCE).expect("it hangs or panics");
    outcome.map_err(|error| (error.kind(), error.to_string()))
}
