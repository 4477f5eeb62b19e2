//! `manifest.json`: the fields of an engine directory, and what they must satisfy among themselves.
//!
//! models/README.md describes each field. Files are not touched here; [`super::directory`] compares them with this.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The only format that this engine reads.
pub(crate) const FORMAT_VERSION: u32 = 1;
const MAX_BLOCKS: usize = 10_000;
/// No axis, picture side or count of a sane model is longer.
const MAX_EXTENT: u64 = 1 << 24;

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
    #[serde(rename = "final")]
    pub last: GraphSpec,
    pub prediction: Prediction,
    pub latents: LatentsSpec,
    pub size: SizeSpec,
    pub scheduler: SchedulerSpec,
    pub guidance: GuidanceSpec,
    pub text: Option<TextSpec>,
    pub decode: Option<GraphSpec>,
    pub weights: Vec<WeightsSpec>,
    pub defaults: Defaults,
}

/// Licence of the weights, as the exporter was told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct License {
    pub name: String,
    pub attribution: String,
}

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DType {
    F32,
    F16,
    Bf16,
    I64,
}

impl DType {
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::I64 => 8,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I64 => "i64",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(crate) enum Dimension {
    Range { min: u64, max: u64 },
    Sum { sum: Vec<String> },
}

/// An axis: a number, or the name of a dimension.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Axis {
    Fixed(u64),
    Named(String),
}

impl std::fmt::Display for Axis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(extent) => write!(f, "{extent}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TensorSpec {
    pub dtype: DType,
    pub shape: Vec<Axis>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Per {
    Request,
    Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Source {
    Latents,
    Sigma,
    Guidance,
    Text,
    Grid,
    Zeros,
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
    #[serde(default)]
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

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Prediction {
    Velocity {},
    /// The clean sample x0; velocity = (x - x0) / max(sigma, min_sigma).
    Sample {
        min_sigma: f64,
    },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LatentsSpec {
    pub channels: u64,
    pub downscale: u64,
    pub patch: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SizeSpec {
    /// `[width, height]` in pixels.
    pub default: [u64; 2],
    pub min: u64,
    pub max: u64,
    pub multiple_of: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum SchedulerSpec {
    FlowMatchEuler { shift: Shift, shift_terminal: Option<f64> },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Shift {
    None {},
    Static { shift: f64 },
    Dynamic { base_tokens: u64, max_tokens: u64, base_shift: f64, max_shift: f64, time_shift: TimeShift },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TimeShift {
    Exponential,
    Linear,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GuidanceKind {
    None,
    Embedded,
    ClassifierFree,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GuidanceSpec {
    pub kind: GuidanceKind,
    pub default: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextSpec {
    pub tokenizers: BTreeMap<String, TokenizerSpec>,
    pub graphs: Vec<TextGraphSpec>,
    /// The prompt of the uncond branch when the user gives none.
    pub unconditional: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizerSpec {
    pub file: String,
    pub bytes: u64,
    pub sha256: String,
    pub length: u64,
    pub pad_id: u32,
    pub unknown_id: Option<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextGraphSpec {
    pub file: String,
    pub bytes: u64,
    pub sha256: String,
    pub inputs: BTreeMap<String, TextInputSpec>,
    pub outputs: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextInputSpec {
    pub tokenizer: String,
    pub field: TokenField,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TokenField {
    Ids,
    Mask,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WeightsSpec {
    pub name: String,
    pub folder: Option<String>,
    pub file: String,
    pub bytes: u64,
    pub header_sha256: String,
    pub sha256: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Defaults {
    pub steps: u64,
}

/// Extents of the dynamic dimensions of one request.
pub(crate) type Extents = BTreeMap<String, u64>;

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// `EngineDirectory` with the field that is wrong.
    pub(crate) fn parse(json: &[u8]) -> Result<Self> {
        // The version first: a newer format has fields that would otherwise be called unknown.
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let damaged = |e: serde_json::Error| Error::directory("does not parse; export the model again").with_source(e);
        let Version { format_version } = serde_json::from_slice(json).map_err(damaged)?;
        if format_version != FORMAT_VERSION {
            return Err(Error::directory(format!(
                "has format version {format_version}, but this engine reads version {FORMAT_VERSION}; \
                 use the dbcache-trt that exported it, or export the model again"
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
                Axis::Named(name) => extents.get(name).map(|e| *e as i64).ok_or_else(|| {
                    Error::internal(format!("dimension `{name}` of tensor `{tensor}` has no extent in this request"))
                }),
            })
            .collect()
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<&TensorSpec> {
        self.tensors.get(name).ok_or_else(|| Error::directory(format!("`tensors` lacks `{name}`")))
    }

    /// Which streams a diff of this block's whole input compares.
    pub(crate) fn compared_streams(&self, block: usize) -> Vec<usize> {
        let joins = self.blocks.get(block).and_then(|block| self.block_kinds.get(&block.kind));
        if joins.is_some_and(|kind| kind.joins_streams) { (0..self.streams.len()).collect() } else { vec![0] }
    }

    /// The input with this source, if there is one.
    pub(crate) fn input_from(&self, source: Source) -> Option<&str> {
        self.inputs.iter().find(|(_, input)| input.from == source).map(|(name, _)| name.as_str())
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

    fn check(&self) -> Result<()> {
        if ![20, 23].contains(&self.opset) {
            return fail(format!("`opset` is {}; expected 20 or 23", self.opset));
        }
        if self.compute_dtype == DType::I64 {
            return fail("`compute_dtype` is i64; expected a float type");
        }
        self.check_dimensions()?;
        self.check_flow()?;
        self.check_picture()?;
        self.check_scheduler()?;
        self.check_text()?;
        self.check_files()
    }

    fn check_dimensions(&self) -> Result<()> {
        for (name, dimension) in &self.dimensions {
            match dimension {
                Dimension::Range { min, max } if *min == 0 || min > max || *max > MAX_EXTENT => {
                    return fail(format!(
                        "dimension `{name}` has the range {min} to {max}; expected 1 <= min <= max <= {MAX_EXTENT}"
                    ));
                }
                Dimension::Sum { sum } => {
                    for part in sum {
                        if !matches!(self.dimensions.get(part), Some(Dimension::Range { .. })) {
                            return fail(format!(
                                "dimension `{name}` adds `{part}`, which is not a dimension with a range"
                            ));
                        }
                    }
                }
                Dimension::Range { .. } => {}
            }
        }
        for (name, tensor) in &self.tensors {
            let mut elements: u64 = 1;
            for axis in &tensor.shape {
                let extent = match axis {
                    Axis::Fixed(extent) => *extent,
                    Axis::Named(dim) if self.dimensions.contains_key(dim) => 1,
                    Axis::Named(dim) => return fail(format!("tensor `{name}` has the unknown dimension `{dim}`")),
                };
                elements = elements.saturating_mul(extent);
            }
            if elements == 0 || elements > 1 << 34 {
                return fail(format!("tensor `{name}` has an absurd shape"));
            }
        }
        Ok(())
    }

    /// Every graph takes only what an earlier one, or the outside, gives.
    fn check_flow(&self) -> Result<()> {
        let mut known: BTreeSet<&str> = BTreeSet::new();
        for (name, input) in &self.inputs {
            let spec = self.tensor(name).map_err(|e| e.at(format!("input `{name}`")))?;
            known.insert(name);
            let per = match input.from {
                Source::Latents | Source::Sigma => Per::Step,
                _ => Per::Request,
            };
            if input.per != per {
                return fail(format!("input `{name}` has the wrong `per` for its `from`"));
            }
            let rank = match input.from {
                Source::Latents => Some(3),
                Source::Sigma | Source::Guidance => Some(1),
                Source::Grid => Some(2),
                Source::Text | Source::Zeros => None,
            };
            if rank.is_some_and(|rank| rank != spec.shape.len()) || rank.is_some() && spec.dtype != DType::F32 {
                return fail(format!("input `{name}` has a dtype or rank that does not fit its `from`"));
            }
        }
        let mut single = BTreeSet::new();
        for input in self.inputs.values().filter(|i| !matches!(i.from, Source::Text | Source::Zeros | Source::Grid)) {
            if !single.insert(input.from as u8) {
                return fail(format!("two inputs come from `{:?}`", input.from).to_lowercase());
            }
        }
        let takes = |graph: &str, inputs: &[String], known: &BTreeSet<&str>| -> Result<()> {
            match inputs.iter().find(|input| !known.contains(input.as_str())) {
                Some(input) => fail(format!("{graph} takes `{input}`, which nothing before it gives")),
                None => Ok(()),
            }
        };
        takes("`embed`", &self.embed.inputs, &known)?;
        if let Some(unused) = self.inputs.keys().find(|name| !self.embed.inputs.contains(name)) {
            return fail(format!("input `{unused}` is not taken by `embed`"));
        }
        for output in &self.embed.outputs {
            self.tensor(output).map_err(|e| e.at("`embed`"))?;
            known.insert(output);
        }
        if self.streams.is_empty() || self.streams.len() > 8 {
            return fail(format!("`streams` has {} entries; expected 1 to 8", self.streams.len()));
        }
        if self.streams.iter().collect::<BTreeSet<_>>().len() != self.streams.len() {
            return fail("`streams` names one twice");
        }
        if let Some(stream) = self.streams.iter().find(|stream| !self.embed.outputs.contains(stream)) {
            return fail(format!("stream `{stream}` is not an output of `embed`"));
        }
        for stream in &self.streams {
            if self.tensor(stream)?.dtype == DType::I64 || self.tensor(stream)?.shape.is_empty() {
                return fail(format!("stream `{stream}` must be a float tensor with at least one axis"));
            }
        }
        for (kind, ports) in &self.block_kinds {
            takes(&format!("block kind `{kind}`"), &ports.inputs, &known)?;
            if let Some(output) = ports.outputs.iter().find(|output| !self.streams.contains(output)) {
                return fail(format!("block kind `{kind}` gives `{output}`, which is not a stream"));
            }
            if ports.outputs.is_empty() {
                return fail(format!("block kind `{kind}` gives nothing"));
            }
            if let Some(output) = ports.outputs.iter().find(|output| !ports.inputs.contains(output)) {
                return fail(format!("block kind `{kind}` gives stream `{output}` without taking it"));
            }
        }
        if self.blocks.is_empty() || self.blocks.len() > MAX_BLOCKS {
            return fail(format!("`blocks` has {} entries; expected 1 to {MAX_BLOCKS}", self.blocks.len()));
        }
        for (index, block) in self.blocks.iter().enumerate() {
            if !self.block_kinds.contains_key(&block.kind) {
                return fail(format!("block {index} is of the unknown kind `{}`", block.kind));
            }
        }
        takes("`final`", &self.last.inputs, &known)?;
        let [prediction] = self.last.outputs.as_slice() else {
            return fail(format!("`final` has {} outputs; expected one, the prediction", self.last.outputs.len()));
        };
        let Some(latents) = self.input_from(Source::Latents) else {
            return fail("no input comes from `latents`");
        };
        let (prediction_spec, latents_spec) = (self.tensor(prediction)?, self.tensor(latents)?);
        if prediction_spec.shape != latents_spec.shape {
            return fail(format!("`{prediction}` and `{latents}` differ in shape"));
        }
        for tensor in [self.tensor(prediction)?, self.tensor(latents)?] {
            if tensor.dtype != DType::F32 {
                return fail("latents and prediction must be f32");
            }
        }
        if self.input_from(Source::Sigma).is_none() {
            return fail("no input comes from `sigma`");
        }
        if (self.guidance.kind == GuidanceKind::Embedded) != self.input_from(Source::Guidance).is_some() {
            return fail("`guidance.kind` is `embedded` exactly if an input comes from `guidance`");
        }
        Ok(())
    }

    fn check_picture(&self) -> Result<()> {
        let LatentsSpec { channels, downscale, patch } = self.latents;
        let cell = downscale.saturating_mul(patch);
        if channels == 0 || channels > 65_536 || cell == 0 || cell > 65_536 {
            return fail("`latents` has a number outside 1 to 65536");
        }
        let SizeSpec { default, min, max, multiple_of } = self.size;
        if multiple_of == 0 || multiple_of % cell != 0 {
            return fail(format!(
                "`size.multiple_of` is {multiple_of}; expected a multiple of downscale x patch = {cell}"
            ));
        }
        if min == 0 || min > max || max > 65_536 {
            return fail(format!("`size` has the range {min} to {max}; expected 1 <= min <= max <= 65536"));
        }
        for side in default {
            if side % multiple_of != 0 || side < min || side > max {
                return fail(format!("`size.default` has a side of {side}, which its own limits forbid"));
            }
        }
        let features = channels.saturating_mul(patch).saturating_mul(patch);
        let name = self.input_from(Source::Latents).unwrap_or_default();
        let shape = &self.tensor(name)?.shape;
        let expected = [Axis::Named("batch".into()), Axis::Named("image".into()), Axis::Fixed(features)];
        if shape[..] != expected {
            return fail(format!("`{name}` must have the shape [batch, image, {features}] that `latents` says"));
        }
        if !(1..=10_000).contains(&self.defaults.steps) {
            return fail(format!("`defaults.steps` is {}; expected 1 to 10000", self.defaults.steps));
        }
        if let Prediction::Sample { min_sigma } = self.prediction
            && !(min_sigma > 0.0 && min_sigma < 1.0)
        {
            return fail(format!("`prediction.min_sigma` is {min_sigma}; expected a number between 0 and 1"));
        }
        if !self.guidance.default.is_finite() {
            return fail("`guidance.default` is not finite");
        }
        Ok(())
    }

    fn check_scheduler(&self) -> Result<()> {
        let SchedulerSpec::FlowMatchEuler { shift, shift_terminal } = self.scheduler;
        let fine = match shift {
            Shift::None {} => true,
            Shift::Static { shift } => shift.is_finite() && shift > 0.0,
            Shift::Dynamic { base_tokens, max_tokens, base_shift, max_shift, .. } => {
                base_tokens < max_tokens && base_shift.is_finite() && max_shift.is_finite()
            }
        };
        if !fine || shift_terminal.is_some_and(|s| !(0.0..1.0).contains(&s)) {
            return fail("`scheduler` has an impossible number");
        }
        Ok(())
    }

    fn check_text(&self) -> Result<()> {
        let Some(text) = &self.text else { return Ok(()) };
        for (name, tokenizer) in &text.tokenizers {
            if !(1..=1 << 16).contains(&tokenizer.length) {
                return fail(format!("tokenizer `{name}` has the length {}; expected 1 to 65536", tokenizer.length));
            }
        }
        let mut given = BTreeSet::new();
        for graph in &text.graphs {
            for (port, input) in &graph.inputs {
                if !text.tokenizers.contains_key(&input.tokenizer) {
                    return fail(format!("text input `{port}` names the unknown tokenizer `{}`", input.tokenizer));
                }
            }
            for output in &graph.outputs {
                if self.inputs.get(output).is_none_or(|input| input.from != Source::Text) {
                    return fail(format!("text output `{output}` is not an input that comes from `text`"));
                }
                if !given.insert(output) {
                    return fail(format!("two text graphs give `{output}`"));
                }
            }
        }
        match self.inputs.iter().find(|(name, input)| input.from == Source::Text && !given.contains(name)) {
            Some((name, _)) => fail(format!("no text graph gives `{name}`")),
            None => Ok(()),
        }
    }

    fn check_files(&self) -> Result<()> {
        let mut seen = BTreeSet::new();
        for file in self.files() {
            check_plain_name(file.file)?;
            check_hash(file.file, file.sha256)?;
            if !seen.insert(file.file) {
                return fail(format!("file `{}` is named twice", file.file));
            }
        }
        let mut names = BTreeSet::new();
        for weights in &self.weights {
            check_plain_name(&weights.name)?;
            check_plain_name(&weights.file)?;
            check_hash(&weights.name, &weights.header_sha256)?;
            if let Some(hash) = &weights.sha256 {
                check_hash(&weights.name, hash)?;
            }
            if !names.insert(&weights.name) {
                return fail(format!("weights `{}` are named twice", weights.name));
            }
        }
        Ok(())
    }

    /// Every graph and tokenizer file.
    pub(crate) fn files(&self) -> Vec<FileRef<'_>> {
        let mut files = vec![
            FileRef { file: &self.embed.file, bytes: self.embed.bytes, sha256: &self.embed.sha256 },
            FileRef { file: &self.last.file, bytes: self.last.bytes, sha256: &self.last.sha256 },
        ];
        files.extend(self.blocks.iter().map(|b| FileRef { file: &b.file, bytes: b.bytes, sha256: &b.sha256 }));
        files.extend(self.decode.iter().map(|g| FileRef { file: &g.file, bytes: g.bytes, sha256: &g.sha256 }));
        if let Some(text) = &self.text {
            files.extend(text.graphs.iter().map(|g| FileRef { file: &g.file, bytes: g.bytes, sha256: &g.sha256 }));
            let tokenizers = text.tokenizers.values();
            files.extend(tokenizers.map(|t| FileRef { file: &t.file, bytes: t.bytes, sha256: &t.sha256 }));
        }
        files
    }
}

/// A file of the engine directory that is not weights.
#[derive(Clone, Copy)]
pub(crate) struct FileRef<'a> {
    pub file: &'a str,
    pub bytes: u64,
    pub sha256: &'a str,
}

fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::directory(message.into()))
}

/// No separators, no `..`, no drive letters, nothing hidden, nothing absurdly long.
fn check_plain_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.chars().all(plain) {
        return fail(format!("{name:?} is not a plain file name (letters, digits, `.`, `_`, `-`, `+`)"));
    }
    Ok(())
}

fn check_hash(name: &str, hash: &str) -> Result<()> {
    if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return fail(format!("the hash of `{name}` is not a lower-case SHA-256"));
    }
    Ok(())
}
