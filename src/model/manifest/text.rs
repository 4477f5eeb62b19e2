//! The fields that say how a prompt becomes tensors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Axis, Manifest, TensorSpec, given};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextSpec {
    pub tokenizers: BTreeMap<String, TokenizerSpec>,
    pub graphs: Vec<TextGraphSpec>,
    /// The prompt of the uncond branch when the user gives none.
    pub unconditional: String,
    /// What is done with a prompt before it is tokenized, in this order.
    #[serde(default)]
    pub clean: Vec<CleanRule>,
}

/// One rule of how a pipeline cleans its prompts. `generate::clean` says what each does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum CleanRule {
    Strip,
    Lowercase,
    HtmlUnescape,
    UrlUnquote,
    FixText,
    RefuseMarkup,
    Replace {
        pattern: String,
        with: String,
        /// Only where there are more matches than so many.
        #[serde(default)]
        if_more_than: usize,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizerSpec {
    pub file: String,
    pub bytes: u64,
    pub sha256: String,
    /// The most tokens that are read, those of prefix and suffix among them.
    pub length: u64,
    pub pad_id: u32,
    #[serde(deserialize_with = "given")]
    pub unknown_id: Option<u32>,
    /// Text before the prompt.
    pub prefix: String,
    /// Text after the prompt.
    pub suffix: String,
    /// Tokens at the start whose outputs the graphs leave out.
    pub drop: u64,
    pub padding: Padding,
    /// With [`Padding::Longest`]: the length is a multiple of so many tokens.
    #[serde(default = "one")]
    pub multiple_of: u64,
    pub pad_side: PadSide,
}

fn one() -> u64 {
    1
}

/// How far a prompt is padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Padding {
    /// To `length`.
    Length,
    /// To the longest prompt of the request.
    Longest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PadSide {
    Left,
    Right,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextGraphSpec {
    pub file: String,
    pub bytes: u64,
    pub sha256: String,
    pub inputs: BTreeMap<String, TextInputSpec>,
    pub outputs: Vec<String>,
    /// The tokens that it gives, where they do not follow from what it takes: texts behind each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(crate) enum TextInputSpec {
    Tokens {
        tokenizer: String,
        field: TokenField,
    },
    /// An output of an earlier text graph.
    Tensor {
        tensor: String,
    },
}

impl TextSpec {
    /// The tokens that a graph gives for every prompt; `None` if they follow from the prompt or from earlier graphs.
    pub(crate) fn fixed_length(&self, graph: &TextGraphSpec) -> Option<u64> {
        let tokenizer = graph.tokenizer().and_then(|name| self.tokenizers.get(name));
        let padded = tokenizer.filter(|tokenizer| tokenizer.padding == Padding::Length);
        graph.length.or(padded.map(|tokenizer| tokenizer.length - tokenizer.drop))
    }
}

impl TextGraphSpec {
    /// The tokenizer that it reads, if it reads exactly one.
    pub(crate) fn tokenizer(&self) -> Option<&str> {
        let mut tokenizers = self.inputs.values().filter_map(|input| match input {
            TextInputSpec::Tokens { tokenizer, .. } => Some(tokenizer.as_str()),
            TextInputSpec::Tensor { .. } => None,
        });
        let first = tokenizers.next()?;
        tokenizers.all(|other| other == first).then_some(first)
    }

    /// The outputs of earlier text graphs that it takes.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &str> {
        self.inputs.values().filter_map(|input| match input {
            TextInputSpec::Tokens { .. } => None,
            TextInputSpec::Tensor { tensor } => Some(tensor.as_str()),
        })
    }

    /// The dynamic axes of what it gives, but for the batch: names of tensors and dimensions.
    pub(crate) fn dynamic_axes<'a>(&'a self, manifest: &'a Manifest) -> impl Iterator<Item = (&'a str, &'a str)> {
        let tensors = self.outputs.iter().filter_map(|name| Some((name.as_str(), manifest.tensors.get(name)?)));
        tensors.flat_map(|(name, tensor)| tensor.dynamic_axes().map(move |dim| (name, dim)))
    }
}

impl TensorSpec {
    /// The names of its dynamic axes, but for the batch.
    pub(crate) fn dynamic_axes(&self) -> impl Iterator<Item = &str> {
        self.shape.iter().filter_map(|axis| match axis {
            Axis::Named(dim) if dim != "batch" => Some(dim.as_str()),
            _ => None,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TokenField {
    Ids,
    Mask,
}
