//! `manifest.json`: the fields of an engine directory.
//!
//! models/README.md describes each field, [`super::rules`] holds what they must satisfy among themselves. Files are not
//! touched here; [`super::directory`] compares them with this.

mod guidance;
mod sampling;
mod scheduler;
mod shard;
mod tensor;
mod text;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub(crate) use guidance::*;
pub(crate) use sampling::*;
pub(crate) use scheduler::*;
pub(crate) use shard::*;
pub(crate) use tensor::*;
pub(crate) use text::*;

use crate::error::{Error, Result};

/// The format that this engine reads and the exporter writes. The first one was never released.
pub(crate) const FORMAT_VERSION: u32 = 2;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub format_version: u32,
    pub name: String,
    pub description: String,
    pub license: License,
    pub exported_with: BTreeMap<String, String>,
    pub opset: i64,
    pub compute_dtype: DType,
    pub dimensions: BTreeMap<String, Dimension>,
    pub tensors: BTreeMap<String, TensorSpec>,
    pub inputs: BTreeMap<String, InputSpec>,
    pub streams: Vec<String>,
    pub embed: GraphSpec,
    pub block_kinds: BTreeMap<String, BlockKind>,
    pub blocks: Vec<BlockSpec>,
    pub lists: Vec<ListSpec>,
    #[serde(rename = "final")]
    pub last: GraphSpec,
    /// A second transformer of the same form, for the steps with little noise.
    #[serde(default)]
    pub low_noise: Option<LowNoiseSpec>,
    pub prediction: Prediction,
    pub latents: LatentsSpec,
    #[serde(deserialize_with = "given")]
    pub video: Option<VideoSpec>,
    pub size: SizeSpec,
    pub scheduler: SchedulerSpec,
    pub guidance: GuidanceSpec,
    #[serde(deserialize_with = "given")]
    pub text: Option<TextSpec>,
    #[serde(deserialize_with = "given")]
    pub decode: Option<GraphSpec>,
    pub weights: Vec<WeightsSpec>,
    pub defaults: Defaults,
    /// What this process has of each tensor, if it is one of several; never in a file.
    #[serde(skip)]
    pub shard: Option<Shard>,
}

/// Licence of the weights, as the exporter was told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct License {
    pub name: String,
    pub attribution: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Per {
    Request,
    Step,
}

/// Where the value of an input comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Source {
    /// The latents of this step.
    Latents,
    /// The noise level of this step.
    Sigma,
    /// The scheduler's own timestep.
    Timestep,
    /// The guidance scale.
    Guidance,
    /// A text graph, or a tensor that the user gives.
    Text,
    /// A tensor that only the user can give, filled with `unconditional` for the uncond branch.
    Given {
        #[serde(deserialize_with = "given")]
        unconditional: Option<f64>,
    },
    /// (latent frame, row, column) of each token.
    Grid,
    /// Latent frames, rows and columns of tokens.
    GridSize,
    /// Height and width in pixels.
    Size,
    /// Frames per second.
    Fps,
    Zeros,
    Constant(f64),
}

impl Source {
    /// Whether the two branches of classifier-free guidance may have different values.
    pub(crate) fn differs_by_branch(&self) -> bool {
        matches!(self, Self::Text | Self::Given { .. })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InputSpec {
    pub per: Per,
    pub from: Source,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GraphSpec {
    pub file: String,
    pub bytes: u64,
    pub sha256: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BlockKind {
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    /// Whether the model joins all streams to one list of tokens before such a block.
    pub joins_streams: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BlockSpec {
    pub kind: String,
    pub file: String,
    pub bytes: u64,
    pub sha256: String,
}

/// The transformer of the steps whose timestep is below `below`: other weights in graphs with the same ports.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LowNoiseSpec {
    pub below: f64,
    /// Its own default scale of guidance; without it, that of the other.
    #[serde(deserialize_with = "given")]
    pub guidance: Option<f64>,
    pub embed: FileSpec,
    pub blocks: Vec<FileSpec>,
    #[serde(rename = "final")]
    pub last: FileSpec,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileSpec {
    pub file: String,
    pub bytes: u64,
    pub sha256: String,
}

/// Consecutive blocks that the model itself keeps in one list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListSpec {
    pub name: String,
    pub blocks: usize,
    /// Whether the model hands all streams through it as one tensor, so that it has no stream of the text alone.
    #[serde(default)]
    pub joined: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WeightsSpec {
    pub name: String,
    #[serde(deserialize_with = "given")]
    pub folder: Option<String>,
    pub file: String,
    pub bytes: u64,
    pub header_sha256: String,
    #[serde(deserialize_with = "given")]
    pub sha256: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Defaults {
    pub steps: u64,
}

/// A value or null, but there: serde would take a missing field for null.
fn given<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Option<T>, D::Error> {
    Option::deserialize(from)
}

/// Extents of the dynamic dimensions of one request.
pub(crate) type Extents = BTreeMap<String, u64>;

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// `EngineDirectory` with the field that is wrong.
    pub(crate) fn parse(json: &[u8]) -> Result<Self> {
        // The version first: another format has fields that would otherwise be called unknown.
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let damaged = |e: serde_json::Error| Error::directory("does not parse; export the model again").with_source(e);
        let Version { format_version } = serde_json::from_slice(json).map_err(damaged)?;
        if format_version != FORMAT_VERSION {
            return Err(Error::directory(format!(
                "has format version {format_version}, but this engine reads version {FORMAT_VERSION}; export the model \
                 again, or use the dbcache-trt that exported it"
            )));
        }
        let manifest: Self = serde_json::from_slice(json).map_err(damaged)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Shape of a tensor of this request.
    pub(crate) fn shape(&self, tensor: &str, extents: &Extents) -> Result<Vec<i64>> {
        let spec = self.tensor(tensor)?;
        spec.shape
            .iter()
            .map(|axis| match axis {
                Axis::Fixed(extent) => Ok(*extent as i64),
                Axis::Named(name) => self.extent(name, extents).map(|e| e as i64).ok_or_else(|| {
                    Error::internal(format!("dimension `{name}` of tensor `{tensor}` has no extent in this request"))
                }),
            })
            .collect()
    }

    /// The extent of a dimension, which may be a share.
    fn extent(&self, dim: &str, extents: &Extents) -> Option<u64> {
        match &self.shard {
            Some(shard) => shard.extent(dim, extents),
            None => extents.get(dim).copied(),
        }
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<&TensorSpec> {
        self.tensors.get(name).ok_or_else(|| Error::directory(format!("`tensors` lacks `{name}`")))
    }

    /// Whether a block writes a stream.
    pub(crate) fn writes(&self, block: usize, stream: &str) -> bool {
        let kind = self.blocks.get(block).and_then(|block| self.block_kinds.get(&block.kind));
        kind.is_some_and(|kind| kind.outputs.iter().any(|output| output == stream))
    }

    /// Which streams a diff of this block's whole input compares.
    pub(crate) fn compared_streams(&self, block: usize) -> Vec<usize> {
        let joins = self.blocks.get(block).and_then(|block| self.block_kinds.get(&block.kind));
        if joins.is_some_and(|kind| kind.joins_streams) { (0..self.streams.len()).collect() } else { vec![0] }
    }

    /// The input with this source, if there is one.
    pub(crate) fn input_from(&self, source: &Source) -> Option<&str> {
        self.inputs.iter().find(|(_, input)| input.from == *source).map(|(name, _)| name.as_str())
    }

    /// Adds the `sum` dimensions, and checks each extent against its range.
    pub(crate) fn complete(&self, mut extents: Extents) -> Result<Extents> {
        for (name, dimension) in &self.dimensions {
            if let Dimension::Range { min, max } = dimension
                && let Some(extent) = extents.get(name)
                && !(min..=max).contains(&extent)
            {
                return Err(Error::input(format!(
                    "dimension `{name}` would be {extent}; the model takes {min} to {max}"
                )));
            }
        }
        for (name, dimension) in &self.dimensions {
            if let Dimension::Sum { sum } = dimension
                && let Some(total) = sum.iter().map(|part| extents.get(part)).sum::<Option<u64>>()
            {
                extents.insert(name.clone(), total);
            }
        }
        Ok(extents)
    }

    /// The graphs of each transformer, in the order in which they run.
    pub(crate) fn experts(&self) -> Vec<ExpertFiles<'_>> {
        let first = ExpertFiles {
            embed: (&self.embed).into(),
            blocks: self.blocks.iter().map(FileRef::from).collect(),
            last: (&self.last).into(),
        };
        let second = self.low_noise.iter().map(|other| ExpertFiles {
            embed: (&other.embed).into(),
            blocks: other.blocks.iter().map(FileRef::from).collect(),
            last: (&other.last).into(),
        });
        [first].into_iter().chain(second).collect()
    }

    /// Which of them runs the step with this timestep.
    pub(crate) fn expert_at(&self, timestep: f32) -> usize {
        usize::from(self.low_noise.as_ref().is_some_and(|other| f64::from(timestep) < other.below))
    }

    /// Every graph and tokenizer file.
    pub(crate) fn files(&self) -> Vec<FileRef<'_>> {
        let mut files: Vec<FileRef<'_>> = Vec::new();
        for ExpertFiles { embed, blocks, last } in self.experts() {
            files.extend([embed, last].into_iter().chain(blocks));
        }
        files.extend(self.decode.iter().map(FileRef::from));
        if let Some(text) = &self.text {
            files.extend(text.graphs.iter().map(FileRef::from));
            files.extend(text.tokenizers.values().map(FileRef::from));
        }
        files
    }
}

/// The graph files of a transformer.
pub(crate) struct ExpertFiles<'a> {
    pub embed: FileRef<'a>,
    pub blocks: Vec<FileRef<'a>>,
    pub last: FileRef<'a>,
}

/// A file of the engine directory that is not weights.
#[derive(Clone, Copy)]
pub(crate) struct FileRef<'a> {
    pub file: &'a str,
    pub bytes: u64,
    pub sha256: &'a str,
}

macro_rules! file_of {
    ($($spec:ty),*) => {$(
        impl<'a> From<&'a $spec> for FileRef<'a> {
            fn from(spec: &'a $spec) -> Self {
                Self { file: &spec.file, bytes: spec.bytes, sha256: &spec.sha256 }
            }
        }
    )*};
}

// They have the same three fields among others, and are written without nesting.
file_of!(FileSpec, GraphSpec, BlockSpec, TextGraphSpec, TokenizerSpec);
