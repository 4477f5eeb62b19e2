//! What reads input from outside: how a hostile one is made, and how it is read.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dbcache_trt::cache::PolicyConfig;
use dbcache_trt::{EngineOptions, Image, Model, RequestOptions, read_tensors, trace, write_tensors};
use ndarray::ArrayD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::mutate;
use crate::random::Random;
use crate::write_anew;

/// A change of a good input, to which others lend parts.
type Mutate = fn(&mut Random, &[u8], &[Vec<u8>]) -> Vec<u8>;

/// One kind of input.
pub struct Target {
    /// As it is named in the command, and its corpus.
    pub name: &'static str,
    /// Good inputs, from which hostile ones are made.
    pub seeds: fn() -> Result<Vec<Vec<u8>>>,
    mutate: Mutate,
    /// Reads an input; an error is what is wrong beside time and memory.
    pub(crate) run: fn(&Bench, &[u8]) -> Result<(), String>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "manifest", seeds: manifests, mutate: mutate::json, run: Bench::manifest },
    Target { name: "graph", seeds: graphs, mutate: |random, seed, _| mutate::onnx(random, seed), run: Bench::graph },
    Target { name: "tokenizer", seeds: tokenizers, mutate: mutate::json, run: Bench::tokenizer },
    Target { name: "tag", seeds: tags, mutate: mutate::words, run: |_, input| tag(input) },
    Target { name: "policy", seeds: policies, mutate: mutate::json, run: |_, input| policy(input) },
    Target { name: "trace", seeds: traces, mutate: mutate::json, run: |_, input| read_trace(input) },
    Target {
        name: "inputs",
        seeds: inputs,
        mutate: |random, seed, _| mutate::safetensors(random, seed),
        run: Bench::inputs,
    },
    Target { name: "png", seeds: pictures, mutate: |random, seed, _| mutate::png(random, seed), run: Bench::png },
];

impl Target {
    /// Case `case` of a seed.
    pub fn case(&self, seed: u64, case: u64, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut random = Random::new(seed, self.name, case);
        let start = random.pick(seeds).clone();
        (self.mutate)(&mut random, &start, seeds)
    }
}

/// Engine directories in which one file is exchanged, and a folder for others.
pub struct Bench {
    engines: Vec<TempDir>,
    folder: TempDir,
}

/// The engines whose manifests are exchanged: of one transformer, with texts and a decoder, and of two.
const ENGINES: [&str; 3] = ["tiny-flux", "pipelines/sd3/engine", "families/wan_two/engine"];
const MANIFEST: &str = "manifest.json";

impl Bench {
    /// # Errors
    /// When the tests' engines cannot be copied.
    pub fn new() -> Result<Self> {
        let copy = |engine: &&str| {
            let folder = tempfile::tempdir()?;
            for entry in fs::read_dir(data(engine))? {
                let entry = entry?;
                fs::copy(entry.path(), folder.path().join(entry.file_name()))?;
            }
            Ok(folder)
        };
        let engines = ENGINES.iter().map(copy).collect::<Result<_>>().context("cannot copy the tests' engines")?;
        Ok(Self { engines, folder: tempfile::tempdir()? })
    }

    fn manifest(&self, input: &[u8]) -> Result<(), String> {
        for engine in &self.engines {
            let _whole = Exchanged::new(engine.path(), MANIFEST, input)?;
            inspect(engine.path());
        }
        Ok(())
    }

    fn graph(&self, input: &[u8]) -> Result<(), String> {
        for file in ["block_000.onnx", "final.onnx", "decode.onnx"] {
            self.file(file, input, |_| {})?;
        }
        Ok(())
    }

    fn tokenizer(&self, input: &[u8]) -> Result<(), String> {
        let text =
            "A  red apple's caf\u{e9}, 1234 \u{fdfa}\n\n \u{6771}\u{4eac} a</s> <s>".repeat(200) + &"a".repeat(50_000);
        self.file("t5.json", input, |manifest| {
            manifest["text"]["tokenizers"]["t5"]["pad_id"] = json!(0);
            // It is encoded when the engine is loaded.
            manifest["text"]["unconditional"] = json!(text);
        })
    }

    /// Exchanges a file of the engine with texts, whose manifest agrees.
    fn file(&self, name: &str, input: &[u8], edit: impl FnOnce(&mut Value)) -> Result<(), String> {
        let engine = self.engines[1].path();
        let mut manifest: Value = fs::read(engine.join(MANIFEST))
            .map_err(|error| error.to_string())
            .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()))?;
        agree(&mut manifest, name, input);
        edit(&mut manifest);
        let _manifest = Exchanged::new(engine, MANIFEST, manifest.to_string().as_bytes())?;
        let _file = Exchanged::new(engine, name, input)?;
        let _ = Model::open(engine, &EngineOptions::default()).and_then(|model| model.words());
        Ok(())
    }

    fn inputs(&self, input: &[u8]) -> Result<(), String> {
        let path = self.folder.path().join("inputs.safetensors");
        write_anew(&path, input).map_err(|error| error.to_string())?;
        let _ = read_tensors(&path);
        Ok(())
    }

    fn png(&self, input: &[u8]) -> Result<(), String> {
        let path = self.folder.path().join("picture.png");
        write_anew(&path, input).map_err(|error| error.to_string())?;
        let _ = Image::read_png_text(&path);
        let _ = Image::read_png(&path);
        Ok(())
    }
}

/// A file with another content, until this is dropped.
struct Exchanged {
    path: PathBuf,
    content: Vec<u8>,
}

impl Exchanged {
    fn new(folder: &Path, name: &str, content: &[u8]) -> Result<Self, String> {
        let path = folder.join(name);
        let old = fs::read(&path).map_err(|error| error.to_string())?;
        write_anew(&path, content).map_err(|error| error.to_string())?;
        Ok(Self { path, content: old })
    }
}

impl Drop for Exchanged {
    fn drop(&mut self) {
        let _ = write_anew(&self.path, &self.content);
    }
}

/// What `dbcache-trt inspect` asks for, and what a run asks before the model is loaded.
fn inspect(engine: &Path) {
    let (load, request) = (EngineOptions::default(), RequestOptions::default());
    if let Ok(model) = Model::open(engine, &load) {
        let (info, _) = (model.info(), model.words());
        let _ = (info.to_string(), info.to_json());
        let _ = (model.stages(), model.cache_bytes(&request, None));
    }
}

fn agree(value: &mut Value, name: &str, content: &[u8]) {
    if value["file"] == name {
        value["bytes"] = json!(content.len());
        value["sha256"] = json!(Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    }
    match value {
        Value::Object(map) => map.values_mut().for_each(|value| agree(value, name, content)),
        Value::Array(list) => list.iter_mut().for_each(|value| agree(value, name, content)),
        _ => {}
    }
}

fn tag(input: &[u8]) -> Result<(), String> {
    let Ok(policy) = PolicyConfig::from_tag(&String::from_utf8_lossy(input)) else { return Ok(()) };
    reads_back(&policy)
}

fn policy(input: &[u8]) -> Result<(), String> {
    let Ok(policy) = PolicyConfig::from_json(&String::from_utf8_lossy(input)) else { return Ok(()) };
    reads_back(&policy)
}

/// What was read is the same when it is written and read again.
fn reads_back(policy: &PolicyConfig) -> Result<(), String> {
    let (tag, json) = (policy.to_string(), policy.to_json().to_string());
    match PolicyConfig::from_json(&json) {
        Ok(again) if again == *policy && again.to_string() == tag => Ok(()),
        Ok(again) => Err(format!("{tag} is {again} when it is written as JSON and read again")),
        Err(error) => Err(format!("{tag} cannot be read again: {error}")),
    }
}

fn read_trace(input: &[u8]) -> Result<(), String> {
    let Ok(json) = serde_json::from_slice::<Value>(input) else { return Ok(()) };
    for trace in trace::read(&json).unwrap_or_default() {
        let _ = (trace.to_json(), trace.summary().to_string());
    }
    let _ = trace::recording(&json);
    Ok(())
}

fn data(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(path)
}

fn read_all(paths: &[&str]) -> Result<Vec<Vec<u8>>> {
    paths.iter().map(|path| fs::read(data(path)).with_context(|| format!("cannot read {path}"))).collect()
}

fn manifests() -> Result<Vec<Vec<u8>>> {
    let paths = ENGINES.map(|engine| format!("{engine}/{MANIFEST}"));
    read_all(&paths.each_ref().map(String::as_str))
}

fn graphs() -> Result<Vec<Vec<u8>>> {
    let files = ["block_000.onnx", "final.onnx", "decode.onnx"].map(|file| format!("{}/{file}", ENGINES[1]));
    read_all(&files.each_ref().map(String::as_str))
}

fn tokenizers() -> Result<Vec<Vec<u8>>> {
    read_all(&[
        "pipelines/sd3/engine/t5.json",
        "pipelines/sd3/engine/clip_l.json",
        "pipelines/z-image/engine/qwen.json",
        "../../models/emoji/words.json",
        "../../fuzz/seeds/tokenizer-unigram.json",
        "../../fuzz/seeds/tokenizer-bpe.json",
        "../../fuzz/seeds/tokenizer-word-piece.json",
    ])
}

fn tags() -> Result<Vec<Vec<u8>>> {
    let tags = [
        "f1b0_r0.12_w4",
        "f8b16_t2_r0.08_w8_m6_mc2_p4",
        "dbprune_f8b8_w8_s20_r0.04",
        "fb_t1_r0.1",
        "none",
        "f1b0_scm1101_r0.1",
    ];
    Ok(tags.map(|tag| tag.as_bytes().to_vec()).to_vec())
}

fn policies() -> Result<Vec<Vec<u8>>> {
    let known = tags()?.into_iter().filter_map(|tag| PolicyConfig::from_tag(&String::from_utf8_lossy(&tag)).ok());
    let mut policies: Vec<Vec<u8>> = known.map(|policy| policy.to_json().to_string().into_bytes()).collect();
    policies.push(br#"{"cache_type": "fbcache", "enable_taylorseer": true}"#.to_vec());
    Ok(policies)
}

fn traces() -> Result<Vec<Vec<u8>>> {
    read_all(&["../../fuzz/seeds/trace.json"])
}

fn inputs() -> Result<Vec<Vec<u8>>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("a.safetensors");
    let tensor = |shape: &[usize]| ArrayD::from_elem(shape, 0.5f32);
    write_tensors(&path, &[("a".into(), tensor(&[2, 3])), ("b".into(), tensor(&[1]))].into())?;
    Ok(vec![fs::read(&path)?, fs::read(data("families/dit/vectors.safetensors"))?])
}

fn pictures() -> Result<Vec<Vec<u8>>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("a.png");
    let picture = Image { width: 8, height: 8, rgb: (0..192).collect() };
    picture.write_png(&path, &[("dbcache-trt".into(), "{\"prompt\": \"caf\u{e9}\"}".into())])?;
    Ok(vec![fs::read(&path)?])
}
