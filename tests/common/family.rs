//! The tiny engines of `tests/data/families`, which are given tensors, and of `tests/data/pipelines`, which are given
//! prompts, with what diffusers and cache-dit computed on them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use dbcache_trt::cache::PolicyConfig;
use dbcache_trt::{Engine, EngineOptions, Inputs, RequestOptions, read_tensors};
use ndarray::ArrayD;
use serde_json::{Value, json as value};

use super::{data, json};

pub type Tensors = BTreeMap<String, ArrayD<f32>>;

/// One family: its engine, what was recorded, and the manifest's fields that say how latents lie.
pub struct Family {
    pub name: String,
    folder: PathBuf,
    pub engine: Engine,
    pub manifest: Value,
    pub reference: Value,
    pub vectors: Tensors,
}

impl Family {
    pub fn all() -> Vec<Self> {
        Self::loaded(&EngineOptions::default())
    }

    pub fn loaded(options: &EngineOptions) -> Vec<Self> {
        let families = Self::of("families", options);
        assert!(families.len() >= 14, "{} families", families.len());
        families
    }

    /// Those with text encoders and decoders.
    pub fn pipelines() -> Vec<Self> {
        let pipelines = Self::of("pipelines", &EngineOptions::default());
        assert!(pipelines.len() >= 4, "{} pipelines", pipelines.len());
        pipelines
    }

    fn of(kind: &str, options: &EngineOptions) -> Vec<Self> {
        let mut families = Vec::new();
        for entry in fs::read_dir(data(kind)).unwrap() {
            let folder = entry.unwrap().path();
            let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
            if !folder.is_dir() {
                continue;
            }
            families.push(Self {
                engine: Engine::load(folder.join("engine"), options).unwrap(),
                manifest: json(&format!("{kind}/{name}/engine/manifest.json")),
                reference: json(&format!("{kind}/{name}/reference.json")),
                vectors: read_tensors(&folder.join("vectors.safetensors")).unwrap(),
                folder,
                name,
            });
        }
        families.sort_by(|a, b| a.name.cmp(&b.name));
        families
    }

    fn number(&self, pointer: &str) -> usize {
        self.manifest.pointer(pointer).and_then(Value::as_u64).unwrap() as usize
    }

    /// The tensors whose names begin so, without that beginning.
    pub fn under(&self, prefix: &str) -> Tensors {
        let named = self.vectors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)));
        named.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect()
    }

    /// Latents as they are recorded, turned to what the transformer takes: tokens are recorded as
    /// `[batch, channels, (frames,) height, width]`.
    pub fn packed(&self, latents: &ArrayD<f32>) -> ArrayD<f32> {
        match self.manifest["latents"]["layout"].as_str().unwrap() {
            "bchw" | "bcfhw" | "bfchw" => latents.clone(),
            "tokens" if latents.ndim() == 3 => latents.clone(), // as a pipeline gives them
            "tokens" => {
                let p = self.number("/latents/patch");
                let shape = latents.shape();
                let (batch, channels, height, width) =
                    (shape[0], shape[1], shape[shape.len() - 2], shape[shape.len() - 1]);
                let frames = if shape.len() == 5 { shape[2] } else { 1 };
                let cells = latents
                    .to_shape(vec![batch, channels, frames, height / p, p, width / p, p])
                    .unwrap()
                    .into_owned()
                    .permuted_axes(vec![0, 2, 3, 5, 1, 4, 6]);
                let tokens = frames * (height / p) * (width / p);
                let numbers: Vec<f32> = cells.iter().copied().collect();
                ArrayD::from_shape_vec(vec![batch, tokens, channels * p * p], numbers).unwrap()
            }
            other => panic!("{}: unknown layout {other}", self.name),
        }
    }

    pub fn options(&self, cache: PolicyConfig) -> RequestOptions {
        let reference = &self.reference;
        let side = |index: usize| reference["size"][index].as_u64().unwrap();
        RequestOptions {
            cache,
            steps: reference["steps"].as_u64().map(|steps| steps as usize),
            guidance: reference["guidance"].as_f64().map(|scale| scale as f32),
            guidance_2: reference["guidance_2"].as_f64().map(|scale| scale as f32),
            size: Some((side(0), side(1))),
            frames: reference["frames"].as_u64().filter(|_| !self.manifest["video"].is_null()),
            seed: reference["seed"].as_u64().unwrap_or_default(),
            ..RequestOptions::default()
        }
    }

    /// Of a pipeline a prompt, else tensors and the noise.
    pub fn inputs(&self) -> Inputs {
        if let Some(prompt) = self.reference["prompt"].as_str() {
            let negative_prompt = self.reference["negative_prompt"].as_str().map(str::to_owned);
            return Inputs { negative_prompt, ..Inputs::prompt(prompt) };
        }
        let mut tensors = self.under("in.");
        tensors.insert("latents".into(), self.packed(&self.vectors["noise"]));
        Inputs { tensors, ..Inputs::default() }
    }

    /// The folder of its engine.
    pub fn folder(&self) -> PathBuf {
        self.folder.join("engine")
    }

    /// The runs with a cache that were recorded, each with its policy.
    pub fn cases(&self) -> Vec<(&Value, PolicyConfig)> {
        let case = |case| {
            let case: &Value = case;
            let mut options = case["config"].as_object().unwrap().clone();
            options.insert("cache_type".into(), value!("cache-dit"));
            if case["lists"].as_array().unwrap().len() > 1 {
                options.insert("separate_block_lists".into(), value!(true));
            }
            (case, PolicyConfig::from_json(&Value::Object(options).to_string()).unwrap())
        };
        self.reference["cases"].as_array().unwrap().iter().map(case).collect()
    }
}
