//! The fields that say how a prompt becomes tensors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::given;

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
    pub pad_side: PadSide,
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

impl TextGraphSpec {
    /// The tokenizer of its first input that has one.
    pub(crate) fn tokenizer(&self) -> Option<&str> {
        self.inputs.values().find_map(|input| match input {
            TextInputSpec::Tokens { tokenizer, .. } => Some(tokenizer.as_str()),
            TextInputSpec::Tensor { .. } => None,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TokenField {
    Ids,
    Mask,
}
