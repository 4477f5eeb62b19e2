//! What one of several ranks has of each tensor: between the embed and the final graph, a share of the tokens.

use std::collections::{BTreeMap, BTreeSet};

use super::{Axis, Dimension, Extents, Manifest, TensorSpec};
use crate::collective::share;
use crate::error::{Error, Result};

/// Ends the name of a dimension of which a rank has its share.
const SHARE: &str = "_share";

/// Which tensors a rank has a share of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    pub rank: usize,
    pub ranks: usize,
    /// Dimensions along which tokens lie, with the parts that are shared one by one.
    parts: BTreeMap<String, Vec<String>>,
    /// The tensors of which a rank has a share.
    tensors: BTreeSet<String>,
}

impl Shard {
    /// # Errors
    /// `Usage` for a model whose tokens cannot be divided.
    pub(crate) fn new(manifest: &Manifest, rank: usize, ranks: usize) -> Result<Self> {
        let is_written = |stream: &&String| (0..manifest.blocks.len()).any(|block| manifest.writes(block, stream));
        let mut parts = BTreeMap::new();
        // A stream that no block writes is a text that the blocks look at: each rank has it whole.
        for stream in manifest.streams.iter().filter(is_written) {
            match tokens(manifest, stream)?.as_slice() {
                [(_, dim)] => parts.insert(dim.clone(), vec![dim.clone()]),
                _ => return Err(refused(&format!("the stream `{stream}` has no axis of tokens, or several"))),
            };
        }
        for (name, dimension) in &manifest.dimensions {
            let Dimension::Sum { sum } = dimension else { continue };
            if !parts.contains_key(name) && sum.iter().all(|part| parts.contains_key(part)) {
                parts.insert(name.clone(), sum.clone());
            }
        }
        let mut shard = Self { rank, ranks, parts, tensors: BTreeSet::new() };
        for tensor in manifest.streams.iter().chain(&manifest.embed.outputs) {
            let axes = tokens(manifest, tensor)?;
            match axes.iter().filter(|(_, dim)| shard.parts.contains_key(dim)).count() {
                0 => {}
                1 => drop(shard.tensors.insert(tensor.clone())),
                _ => return Err(refused(&format!("`{tensor}` is about pairs of tokens"))),
            }
        }
        Ok(shard)
    }

    /// The extent of a dimension, of which a rank may have its share.
    pub(crate) fn extent(&self, dim: &str, extents: &Extents) -> Option<u64> {
        let whole = |dim: &str| extents.get(dim).copied();
        match dim.strip_suffix(SHARE).and_then(|dim| self.parts.get(dim)) {
            None => whole(dim),
            Some(parts) => parts
                .iter()
                .map(|part| whole(part).map(|count| share(count as usize, self.ranks, self.rank).len() as u64))
                .sum(),
        }
    }

    /// The name of a dimension of which a rank has its share: nothing may take it for as long as the whole.
    pub(crate) fn name(dim: &str) -> String {
        format!("{dim}{SHARE}")
    }

    /// The tensors of a manifest, with those names.
    pub(crate) fn renamed(&self, manifest: &Manifest) -> Result<BTreeMap<String, TensorSpec>> {
        let mut tensors = manifest.tensors.clone();
        for name in &self.tensors {
            if let (Some((axis, dim)), Some(tensor)) = (self.axis(manifest, name)?, tensors.get_mut(name)) {
                tensor.shape[axis] = Axis::Named(Self::name(&dim));
            }
        }
        Ok(tensors)
    }

    /// The parts of a dimension that are shared one by one.
    pub(crate) fn parts(&self, dim: &str) -> &[String] {
        self.parts.get(dim).map_or(&[], Vec::as_slice)
    }

    /// Whether a rank has only a share of a tensor.
    pub(crate) fn holds_share(&self, tensor: &str) -> bool {
        self.tensors.contains(tensor)
    }

    /// The axis of a tensor of which a rank has its share, and its dimension.
    pub(crate) fn axis(&self, manifest: &Manifest, tensor: &str) -> Result<Option<(usize, String)>> {
        let axes = if self.tensors.contains(tensor) { tokens(manifest, tensor)? } else { Vec::new() };
        Ok(axes.into_iter().find(|(_, dim)| self.parts.contains_key(dim)))
    }
}

/// The named axes of a tensor but for the batch.
fn tokens(manifest: &Manifest, tensor: &str) -> Result<Vec<(usize, String)>> {
    let named = |(axis, name): (usize, &Axis)| match name {
        Axis::Named(name) if name != "batch" => Some((axis, name.clone())),
        _ => None,
    };
    Ok(manifest.tensor(tensor)?.shape.iter().enumerate().filter_map(named).collect())
}

pub(crate) fn refused(why: &str) -> Error {
    Error::option("context-parallel", format!("cannot divide this model: {why}; leave it out"))
}
