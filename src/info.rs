//! What an engine directory is, for people and for machines.

mod model;
mod plan;

use std::fmt;
use std::ops::Range;

use serde_json::{Value, json};

pub use self::model::Model;
pub use self::plan::DryRun;
use crate::engine::{Engine, Stages};
use crate::model::directory::{EngineDirectory, ExpertGraphs};
use crate::model::graph::Graph;
use crate::model::manifest::{GuidanceSpec, Manifest};
use crate::plan::Stage;
use crate::runtime::compiler::BuildCounts;

/// One stage of a plan: what runs as one ONNX Runtime session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageInfo {
    name: String,
    /// Which of the model's transformers it is of, from 0.
    pub expert: usize,
    /// Whether it begins with the embed graph.
    pub embed: bool,
    /// Its blocks; `None` if the embed graph or the final graph is alone.
    pub blocks: Range<usize>,
    /// Whether it ends with the final graph.
    pub last: bool,
    /// Bytes of the parameters that its graphs refer to, as stored.
    pub weight_bytes: u64,
    /// Bytes of its graphs.
    pub graph_bytes: u64,
}

impl StageInfo {
    pub(crate) fn new(directory: &EngineDirectory, expert: usize, stage: &Stage) -> Self {
        let (name, Stage { embed, blocks, last, .. }) = (directory.stage_name(expert, &stage.name()), stage.clone());
        let of_expert = &directory.experts[expert];
        let ends = embed.then_some(&of_expert.embed).into_iter().chain(last.then_some(&of_expert.last));
        let graphs: Vec<&Graph> = ends.chain(&of_expert.blocks[blocks.clone()]).collect();
        let weight_bytes = graphs.iter().map(|graph| graph.weight_bytes).sum();
        let graph_bytes = graphs.iter().map(|graph| graph.bytes.len() as u64).sum();
        Self { name, expert, embed, blocks, last, weight_bytes, graph_bytes }
    }

    /// What `stage_bytes` limits.
    pub fn bytes(&self) -> u64 {
        self.weight_bytes + self.graph_bytes
    }

    /// Such as `embed and blocks 0..4`; with what it holds of the cache's arithmetic: `diff`, `residual`, `add`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its facts by their names; `blocks` is the first one and the one after the last.
    pub fn to_json(&self) -> Value {
        let Self { name, expert, embed, blocks, last, weight_bytes, graph_bytes } = self;
        json!({
            "name": name,
            "expert": expert,
            "embed": embed,
            "blocks": [blocks.start, blocks.end],
            "final": last,
            "weight_bytes": weight_bytes,
            "graph_bytes": graph_bytes,
        })
    }
}

/// Such as `embed and blocks 0..4: 12.3 MB`.
impl fmt::Display for StageInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:.1} MB", self.name(), self.bytes() as f64 / 1e6)
    }
}

/// The facts of an engine directory.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    /// As exported.
    pub name: String,
    /// As exported.
    pub description: String,
    /// Licence of the weights: an SPDX identifier or `unknown`.
    pub license: String,
    /// Whom to name.
    pub attribution: String,
    /// SHA-256 of the manifest.
    pub hash: String,
    /// Number of blocks, and of each kind in order of appearance.
    pub blocks: usize,
    /// `(kind, how many)`, in the order of the blocks.
    pub block_kinds: Vec<(String, usize)>,
    /// Tensors that flow from block to block; the first is compared.
    pub streams: Vec<String>,
    /// Numbers in all parameters that the graphs refer to.
    pub parameters: u64,
    /// Their bytes as stored.
    pub weight_bytes: u64,
    /// Bytes of all graphs.
    pub graph_bytes: u64,
    /// `(name, folder if not in the directory, bytes)` of each weights file.
    pub weights: Vec<(String, Option<String>, u64)>,
    /// Parameters in the weights files that no graph uses.
    pub unused_parameters: usize,
    /// In which dtype the transformers compute: `f32`, `f16` or `bf16`.
    pub compute_dtype: String,
    /// In which dtype the transformers were exported.
    pub exported_dtype: String,
    /// ONNX opset.
    pub opset: i64,
    /// Steps when none are asked for.
    pub default_steps: u64,
    /// `[width, height]` when none is asked for, in pixels.
    pub default_size: [u64; 2],
    /// Smallest and largest side in pixels, and what each side must be a multiple of.
    pub size_limits: [u64; 3],
    /// `none`, `embedded` or `classifier_free`, and the default scale.
    pub guidance: (String, f64),
    /// Above which scale both branches run; of models with classifier-free guidance.
    pub guidance_above: Option<f64>,
    /// Whether they run only with a negative prompt.
    pub needs_negative: bool,
    /// Of a model with two transformers: below which timestep the second takes over, and its default guidance scale.
    pub low_noise: Option<(f64, f64)>,
    /// Whether it has text graphs; without them, text comes from `--inputs`.
    pub takes_prompt: bool,
    /// Whether it makes pictures; without, latents only.
    pub makes_pictures: bool,
    /// Whether these are videos.
    pub makes_videos: bool,
    /// Frames when none are asked for, fewest, most, and their stride; of videos.
    pub frames: Option<[u64; 4]>,
    /// Frames per second when none are asked for; of videos.
    pub fps: Option<f64>,
    /// Dynamic dimensions and their ranges.
    pub dimensions: Vec<(String, String)>,
    /// What became of the builds that the provider compiles; `None` if it compiles none, or nothing is loaded.
    pub builds: Option<BuildCounts>,
    /// Tools and versions that made it.
    pub exported_with: Vec<(String, String)>,
}

/// The kinds of the blocks in order, and how many blocks of a kind follow each other.
fn block_kinds(manifest: &Manifest) -> Vec<(String, usize)> {
    let mut kinds: Vec<(String, usize)> = Vec::new();
    for block in &manifest.blocks {
        match kinds.last_mut() {
            Some((kind, count)) if *kind == block.kind => *count += 1,
            _ => kinds.push((block.kind.clone(), 1)),
        }
    }
    kinds
}

impl EngineInfo {
    pub(crate) fn new(directory: &EngineDirectory) -> Self {
        let manifest: &Manifest = &directory.manifest;
        let experts = directory.experts.iter().flat_map(ExpertGraphs::all);
        let graphs: Vec<&Graph> = experts.chain(&directory.text).chain(&directory.decode).collect();
        let in_weights: usize = directory.weights.values().map(|file| file.parameters().count()).sum();
        let guidance = match manifest.guidance {
            GuidanceSpec::None {} => "none",
            GuidanceSpec::Embedded { .. } => "embedded",
            GuidanceSpec::ClassifierFree { .. } => "classifier_free",
        };
        let is_classifier_free = matches!(manifest.guidance, GuidanceSpec::ClassifierFree { .. });
        Self {
            name: manifest.name.clone(),
            description: manifest.description.clone(),
            license: manifest.license.name.clone(),
            attribution: manifest.license.attribution.clone(),
            hash: directory.hash.clone(),
            blocks: manifest.blocks.len(),
            block_kinds: block_kinds(manifest),
            streams: manifest.streams.clone(),
            parameters: graphs.iter().map(|graph| graph.parameters).sum(),
            weight_bytes: graphs.iter().map(|graph| graph.weight_bytes).sum(),
            graph_bytes: graphs.iter().map(|graph| graph.bytes.len() as u64).sum(),
            weights: manifest.weights.iter().map(|w| (w.name.clone(), w.folder.clone(), w.bytes)).collect(),
            unused_parameters: in_weights.saturating_sub(graphs.iter().map(|graph| graph.references).sum()),
            compute_dtype: manifest.compute_dtype.name().to_owned(),
            exported_dtype: directory.exported_dtype.name().to_owned(),
            opset: manifest.opset,
            default_steps: manifest.defaults.steps,
            default_size: manifest.size.default,
            size_limits: [manifest.size.min, manifest.size.max, manifest.size.multiple_of],
            guidance: (guidance.to_owned(), manifest.guidance.default_scale()),
            guidance_above: is_classifier_free.then_some(f64::from(manifest.guidance.above())),
            needs_negative: is_classifier_free && manifest.guidance.needs_negative(),
            low_noise: manifest
                .low_noise
                .as_ref()
                .map(|other| (other.below, other.guidance.unwrap_or(manifest.guidance.default_scale()))),
            takes_prompt: manifest.text.is_some(),
            makes_pictures: manifest.decode.is_some(),
            makes_videos: manifest.video.is_some(),
            frames: manifest
                .video
                .map(|video| [video.frames.default, video.frames.min, video.frames.max, video.temporal_downscale]),
            fps: manifest.video.map(|video| video.fps),
            dimensions: manifest.dimensions.iter().map(|(name, range)| (name.clone(), range.to_string())).collect(),
            builds: None,
            exported_with: manifest.exported_with.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        }
    }

    /// The facts as JSON, version 1.
    pub fn to_json(&self) -> Value {
        json!({
            "version": 1,
            "name": self.name,
            "description": self.description,
            "license": { "name": self.license, "attribution": self.attribution },
            "hash": self.hash,
            "blocks": self.blocks,
            "block_kinds": self.block_kinds.iter().map(|(kind, count)| json!({"kind": kind, "count": count})).collect::<Vec<_>>(),
            "streams": self.streams,
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "graph_bytes": self.graph_bytes,
            "weights": self.weights.iter().map(|(name, folder, bytes)| json!({"name": name, "folder": folder, "bytes": bytes})).collect::<Vec<_>>(),
            "unused_parameters": self.unused_parameters,
            "compute_dtype": self.compute_dtype,
            "exported_dtype": self.exported_dtype,
            "opset": self.opset,
            "cuts": self.blocks + 1,
            "defaults": { "steps": self.default_steps, "size": self.default_size, "guidance": self.guidance.1 },
            "size_limits": { "min": self.size_limits[0], "max": self.size_limits[1], "multiple_of": self.size_limits[2] },
            "guidance": self.guidance.0,
            "guidance_above": self.guidance_above,
            "needs_negative": self.needs_negative,
            "low_noise": self.low_noise.map(|(below, guidance)| json!({"below": below, "guidance": guidance})),
            "takes_prompt": self.takes_prompt,
            "makes_pictures": self.makes_pictures,
            "video": self.frames.map(|[default, min, max, stride]| {
                json!({"frames": default, "min": min, "max": max, "stride": stride, "fps": self.fps})
            }),
            "dimensions": self.dimensions.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            "builds": self.builds.as_ref().map(BuildCounts::to_json),
            "exported_with": self.exported_with.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        })
    }
}

impl Engine {
    /// What the engine is: blocks, parameters, bytes, cuts, defaults, licence.
    pub fn info(&self) -> EngineInfo {
        let loaded = self.loaded();
        EngineInfo { builds: loaded.loader.counts(), ..EngineInfo::new(&loaded.directory) }
    }

    /// The stages that are loaded: in the order of the model, each block in one, where the provider compiles nothing and
    /// the weights are packed; else in the order in which they were loaded, and a block can be in several.
    pub fn stages(&self) -> Vec<StageInfo> {
        let loaded = self.loaded();
        let of_expert = |stages: &Stages| {
            let info = |stage: &Stage| StageInfo::new(&loaded.directory, stages.expert(), stage);
            stages.loaded().iter().map(info).collect::<Vec<_>>()
        };
        loaded.stages.iter().flat_map(of_expert).collect()
    }
}

impl fmt::Display for EngineInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        writeln!(f, "{} — {}", self.name, self.description)?;
        let kinds: Vec<String> = self.block_kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        writeln!(f, "blocks      {} ({}); a cut before and after each", self.blocks, kinds.join(", "))?;
        writeln!(f, "streams     {} (the first is compared)", self.streams.join(", "))?;
        writeln!(
            f,
            "parameters  {:.2} M in {:.1} MB of weights; graphs {:.0} kB, opset {}, computed in {}{}",
            self.parameters as f64 / 1e6,
            megabytes(self.weight_bytes),
            self.graph_bytes as f64 / 1e3,
            self.opset,
            self.compute_dtype,
            if self.compute_dtype == self.exported_dtype {
                String::new()
            } else {
                format!(" (exported in {})", self.exported_dtype)
            }
        )?;
        for (name, folder, bytes) in &self.weights {
            let place = folder.as_deref().unwrap_or("in the directory");
            writeln!(f, "weights     {name}, {:.1} MB, {place}", megabytes(*bytes))?;
        }
        if self.unused_parameters > 0 {
            writeln!(f, "            {} parameters in the weights files are used by no graph", self.unused_parameters)?;
        }
        let [width, height] = self.default_size;
        let [min, max, multiple] = self.size_limits;
        writeln!(f, "pictures    {width}x{height} by default; sides {min} to {max}, multiples of {multiple}")?;
        if let (Some([frames, min, max, stride]), Some(fps)) = (self.frames, self.fps) {
            let range = format!("{min} to {max}, multiples of {stride} and one more; {fps} a second");
            writeln!(f, "frames      {frames} by default; {range}")?;
        }
        let (kind, scale) = &self.guidance;
        let above = self.guidance_above.map_or(String::new(), |above| format!(" above {above}"));
        let and = if self.needs_negative { " with a negative prompt" } else { "" };
        writeln!(f, "defaults    {} steps, guidance {scale} ({kind}{above}{and})", self.default_steps)?;
        if let Some((below, guidance)) = self.low_noise {
            writeln!(f, "experts     2 transformers; the second below timestep {below}, guidance {guidance}")?;
        }
        let ranges: Vec<String> = self.dimensions.iter().map(|(name, range)| format!("{name} {range}")).collect();
        writeln!(f, "dimensions  {}", ranges.join(", "))?;
        let no = |has: bool, without: &'static str| if has { "yes" } else { without };
        writeln!(f, "prompt      {}", no(self.takes_prompt, "no: it takes text tensors"))?;
        writeln!(f, "decode      {}", no(self.makes_pictures, "no: results are latents"))?;
        writeln!(f, "license     {}; {}", self.license, self.attribution)?;
        write!(f, "hash        {}", self.hash)
    }
}
