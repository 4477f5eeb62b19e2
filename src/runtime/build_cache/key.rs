//! What a build depends on, and the key that follows from it.
//!
//! The key is the SHA-256 of all ingredients. Parameters enter by their content, never by name, place or a hash that a
//! file claims: two blocks of one kind differ in it, a fine-tuned checkpoint of equal layout differs in it, and a model
//! that was moved, renamed or packed does not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use prost::Message;
use serde::{Deserialize, Serialize};

use super::layout::ENTRIES;
use super::parameters::{Digests, Range};
use crate::error::{Error, Result};
use crate::model::graph::Graph;
use crate::model::onnx::{self, EXTERNAL, TensorProto};
use crate::model::weights::hash_bytes;

/// Raised when builds of older programs must not be used any more.
const KEY_VERSION: u32 = 1;

/// Smallest, usual and largest extent of a dimension for which a build is made.
pub(crate) type KeyProfile = [u64; 3];

/// The machine and the software that compile and run a build.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyTarget {
    /// ONNX Runtime's name of the execution provider.
    pub provider: String,
    /// Every option that reaches it, but for the places of its files.
    pub options: BTreeMap<String, String>,
    /// Settings of the session that change what is compiled.
    pub session: BTreeMap<String, String>,
    /// Version and build of ONNX Runtime.
    pub onnxruntime: String,
    /// Version of the provider, and of the compiler behind it.
    pub sdk: String,
    pub driver: String,
    pub device: String,
}

/// Everything that decides whether a build fits, in clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ingredients {
    pub key_version: u32,
    /// SHA-256 of the graph without its references to parameters: operators, constants, dtypes, shapes.
    pub graph: String,
    /// SHA-256 over the content of each parameter, in the order of the graph.
    pub weights: String,
    /// By dimension; those that are not named may have any extent.
    pub profiles: BTreeMap<String, KeyProfile>,
    pub target: KeyTarget,
}

impl Ingredients {
    /// What a build for this graph depends on; `digests` must hold all its [`ranges`].
    ///
    /// # Errors
    /// `Internal` if they do not.
    pub(crate) fn new(
        graph: &Graph,
        digests: &Digests,
        profiles: BTreeMap<String, KeyProfile>,
        target: KeyTarget,
    ) -> Result<Self> {
        let mut model = onnx::decode(&graph.bytes).map_err(Error::internal)?;
        let mut weights = String::new();
        for tensor in model.graph.iter_mut().flat_map(|graph| &mut graph.initializer) {
            if let Some(range) = range(graph, tensor)? {
                let digest = digests.get(&range).ok_or_else(|| Error::internal("a parameter was not read"))?;
                weights += digest;
                weights.push('\n');
                tensor.external_data.clear();
            }
        }
        Ok(Self {
            key_version: KEY_VERSION,
            graph: hash_bytes(&model.encode_to_vec()),
            weights: hash_bytes(weights.as_bytes()),
            profiles,
            target,
        })
    }

    /// The name of the build in the store.
    pub(crate) fn key(&self) -> Result<Key> {
        let json = serde_json::to_vec(self).map_err(|error| Error::internal("cannot write JSON").with_source(error))?;
        Ok(Key(hash_bytes(&json)))
    }
}

/// The byte ranges of all parameters of a graph.
///
/// # Errors
/// `Internal` for a graph that was not checked.
pub(crate) fn ranges(graph: &Graph) -> Result<Vec<Range>> {
    let model = onnx::decode(&graph.bytes).map_err(Error::internal)?;
    let tensors = model.graph.iter().flat_map(|graph| &graph.initializer);
    tensors.filter_map(|tensor| range(graph, tensor).transpose()).collect()
}

/// The bytes of all parameters of a graph, each counted once.
///
/// # Errors
/// `Internal` for a graph that was not checked.
pub(crate) fn weight_bytes(graph: &Graph) -> Result<u64> {
    let unique: BTreeSet<Range> = ranges(graph)?.into_iter().collect();
    Ok(unique.iter().map(|range| range.bytes).sum())
}

fn range(graph: &Graph, tensor: &TensorProto) -> Result<Option<Range>> {
    if tensor.data_location.unwrap_or(0) != EXTERNAL {
        return Ok(None);
    }
    let entry = |key: &str| {
        let found = tensor.external_data.iter().find(|entry| entry.key.as_deref() == Some(key));
        found.and_then(|entry| entry.value.as_deref())
    };
    let number = |key| entry(key).and_then(|text| text.parse().ok());
    match (&graph.weights_folder, entry("location"), number("offset"), number("length")) {
        (Some(folder), Some(file), Some(offset), Some(bytes)) => {
            Ok(Some(Range { file: folder.join(file), offset, bytes }))
        }
        _ => Err(Error::internal(format!("{} refers to parameters in an unknown way", graph.file))),
    }
}

/// 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Key(String);

impl Key {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (text.len() == 64 && text.bytes().all(is_digit)).then(|| Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Where all builds of a store lie.
    pub(super) fn folder(&self, store: &std::path::Path) -> PathBuf {
        store.join(ENTRIES).join(&self.0)
    }
}

impl TryFrom<String> for Key {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is not the key of a build"))
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
