//! The first format: what it has no words for takes the value that it meant.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    BaseSigmas, BlockKind, BlockSpec, CfgBranch, CfgFormula, CfgMode, DType, Defaults, Dimension, GraphSpec,
    GuidanceSpec, InputSpec, LatentsSpec, Layout, License, ListSpec, Manifest, PadSide, Padding, Per, Prediction,
    ScaleCurve, SchedulerSpec, Shift, SizeSpec, Source, TensorSpec, TextGraphSpec, TextInputSpec, TextSpec, TimeShift,
    TokenField, TokenizerSpec, WeightsSpec, given,
};

/// `manifest.json` of the first format.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Format1 {
    format_version: u32,
    name: String,
    description: String,
    license: License,
    exported_with: BTreeMap<String, String>,
    opset: i64,
    compute_dtype: DType,
    dimensions: BTreeMap<String, Dimension>,
    tensors: BTreeMap<String, TensorSpec>,
    inputs: BTreeMap<String, Input1>,
    streams: Vec<String>,
    embed: GraphSpec,
    block_kinds: BTreeMap<String, BlockKind>,
    blocks: Vec<BlockSpec>,
    #[serde(rename = "final")]
    last: GraphSpec,
    prediction: Prediction1,
    latents: Latents1,
    size: SizeSpec,
    scheduler: Scheduler1,
    guidance: Guidance1,
    #[serde(deserialize_with = "given")]
    text: Option<Text1>,
    #[serde(deserialize_with = "given")]
    decode: Option<GraphSpec>,
    weights: Vec<WeightsSpec>,
    defaults: Defaults,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input1 {
    per: Per,
    from: Source1,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Source1 {
    Latents,
    Sigma,
    Guidance,
    Text,
    Grid,
    Zeros,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum Prediction1 {
    Velocity {},
    Sample { min_sigma: f64 },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Latents1 {
    channels: u64,
    downscale: u64,
    patch: u64,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Scheduler1 {
    FlowMatchEuler {
        shift: Shift1,
        #[serde(deserialize_with = "given")]
        shift_terminal: Option<f64>,
    },
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum Shift1 {
    None {},
    Static { shift: f64 },
    Dynamic { base_tokens: u64, max_tokens: u64, base_shift: f64, max_shift: f64, time_shift: TimeShift },
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum GuidanceKind1 {
    None,
    Embedded,
    ClassifierFree,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Guidance1 {
    kind: GuidanceKind1,
    default: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text1 {
    tokenizers: BTreeMap<String, Tokenizer1>,
    graphs: Vec<TextGraph1>,
    unconditional: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tokenizer1 {
    file: String,
    bytes: u64,
    sha256: String,
    length: u64,
    pad_id: u32,
    #[serde(deserialize_with = "given")]
    unknown_id: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextGraph1 {
    file: String,
    bytes: u64,
    sha256: String,
    inputs: BTreeMap<String, TextInput1>,
    outputs: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextInput1 {
    tokenizer: String,
    field: TokenField,
}

impl From<Format1> for Manifest {
    fn from(old: Format1) -> Self {
        let lists = lists(&old.blocks);
        let inputs = old.inputs.into_iter().map(|(name, Input1 { per, from })| {
            let from = match from {
                Source1::Latents => Source::Latents,
                Source1::Sigma => Source::Sigma,
                Source1::Guidance => Source::Guidance,
                Source1::Text => Source::Text,
                Source1::Grid => Source::Grid,
                Source1::Zeros => Source::Zeros,
            };
            (name, InputSpec { per, from })
        });
        Self {
            format_version: old.format_version,
            name: old.name,
            description: old.description,
            license: old.license,
            exported_with: old.exported_with,
            opset: old.opset,
            compute_dtype: old.compute_dtype,
            dimensions: old.dimensions,
            tensors: old.tensors,
            inputs: inputs.collect(),
            streams: old.streams,
            embed: old.embed,
            block_kinds: old.block_kinds,
            blocks: old.blocks,
            lists,
            last: old.last,
            low_noise: None,
            prediction: match old.prediction {
                Prediction1::Velocity {} => Prediction::Velocity {},
                Prediction1::Sample { min_sigma } => Prediction::Sample { min_sigma },
            },
            latents: old.latents.into(),
            video: None,
            size: old.size,
            scheduler: old.scheduler.into(),
            guidance: old.guidance.into(),
            text: old.text.map(TextSpec::from),
            decode: old.decode,
            weights: old.weights,
            defaults: old.defaults,
        }
    }
}

/// The first format knows no lists: consecutive blocks of one kind are one.
fn lists(blocks: &[BlockSpec]) -> Vec<ListSpec> {
    let mut lists: Vec<ListSpec> = Vec::new();
    for block in blocks {
        match lists.last_mut() {
            Some(list) if list.name == block.kind => list.blocks += 1,
            _ => lists.push(ListSpec { name: block.kind.clone(), blocks: 1, joined: false }),
        }
    }
    lists
}

impl From<Latents1> for LatentsSpec {
    fn from(Latents1 { channels, downscale, patch }: Latents1) -> Self {
        Self { layout: Layout::Tokens, channels, downscale, patch }
    }
}

impl From<Scheduler1> for SchedulerSpec {
    fn from(Scheduler1::FlowMatchEuler { shift, shift_terminal }: Scheduler1) -> Self {
        let shift = match shift {
            Shift1::None {} => Shift::None {},
            Shift1::Static { shift } => Shift::Static { shift },
            Shift1::Dynamic { base_tokens, max_tokens, base_shift, max_shift, time_shift } => {
                let (base_tokens, max_tokens) = (base_tokens as f64, max_tokens as f64);
                Shift::Dynamic { base_tokens, max_tokens, base_shift, max_shift, time_shift }
            }
        };
        Self::FlowMatchEuler {
            sigmas: BaseSigmas::Linear { last: None },
            shift,
            shift_terminal,
            inverted: false,
            train_steps: 1000,
            spread: None,
            stochastic: false,
        }
    }
}

impl From<Guidance1> for GuidanceSpec {
    fn from(Guidance1 { kind, default }: Guidance1) -> Self {
        match kind {
            GuidanceKind1::None => Self::None {},
            GuidanceKind1::Embedded => Self::Embedded { default },
            GuidanceKind1::ClassifierFree => Self::ClassifierFree {
                default,
                mode: CfgMode::Separate,
                order: [CfgBranch::Cond, CfgBranch::Uncond],
                formula: CfgFormula::Standard,
                rescale: 0.0,
                scale: ScaleCurve::Constant,
                needs_negative: false,
            },
        }
    }
}

impl From<Text1> for TextSpec {
    fn from(old: Text1) -> Self {
        let tokenizer = |Tokenizer1 { file, bytes, sha256, length, pad_id, unknown_id }| TokenizerSpec {
            file,
            bytes,
            sha256,
            length,
            pad_id,
            unknown_id,
            prefix: String::new(),
            suffix: String::new(),
            drop: 0,
            padding: Padding::Length,
            multiple_of: 1,
            pad_side: PadSide::Right,
        };
        let input = |TextInput1 { tokenizer, field }| TextInputSpec::Tokens { tokenizer, field };
        let graph = |TextGraph1 { file, bytes, sha256, inputs, outputs }| {
            let inputs = inputs.into_iter().map(|(port, old)| (port, input(old))).collect();
            TextGraphSpec { file, bytes, sha256, inputs, outputs, length: None }
        };
        Self {
            tokenizers: old.tokenizers.into_iter().map(|(name, old)| (name, tokenizer(old))).collect(),
            graphs: old.graphs.into_iter().map(graph).collect(),
            unconditional: old.unconditional,
            clean: Vec::new(),
        }
    }
}
