//! The blocks of one request, bound to the buffers that their streams flow through.
//!
//! A stream's value lives from the block that writes it to the next one that does. Values that someone reads later (at
//! a pinned cut) get a buffer of their own; all others share two buffers in turns. So every stage is bound once, and
//! nothing is copied between blocks.

use std::collections::BTreeMap;
use std::ops::Range;

use super::cancel::CancelToken;
use crate::engine::Loaded;
use crate::error::{At, Result};
use crate::model::graph::output_port;
use crate::model::manifest::Extents;
use crate::plan::Plan;
use crate::runtime::ops::Op;
use crate::runtime::tensor::{BufferId, Buffers};

/// The tensors that cross graph boundaries, by the manifest's names.
pub(crate) type Named = BTreeMap<String, BufferId>;

/// All blocks, ready to run in ranges.
pub(crate) struct Chain {
    plan: Plan,
    /// The index of its first stage in the plan.
    first: usize,
    stages: Vec<Op>,
    /// For each cut and each stream: where the stream's value is. Empty for cuts outside of its blocks.
    cuts: Vec<Vec<BufferId>>,
}

impl Chain {
    /// Allocates the streams' buffers and binds every block. `named` holds the tensors that are no streams.
    pub(crate) fn bind(
        engine: &Loaded,
        extents: &Extents,
        pinned: &[usize],
        named: &Named,
        buffers: &mut Buffers,
    ) -> Result<Self> {
        let blocks = 0..engine.directory.manifest.blocks.len();
        Self::bind_blocks(engine, extents, blocks, pinned, named, buffers)
    }

    /// The same for a range of blocks.
    pub(crate) fn bind_blocks(
        engine: &Loaded,
        extents: &Extents,
        blocks: Range<usize>,
        pinned: &[usize],
        named: &Named,
        buffers: &mut Buffers,
    ) -> Result<Self> {
        let manifest = &engine.directory.manifest;
        // Inside a stage nothing can be seen: its last block writes for all of them.
        let writes = |stream: &str, block: usize| {
            let ended = engine.plan.stages().iter().position(|stage| stage.blocks.end == block + 1);
            ended.is_some_and(|index| engine.stages[index].outputs.iter().any(|output| output == stream))
        };
        let mut cuts = vec![Vec::with_capacity(manifest.streams.len()); manifest.blocks.len() + 1];
        for stream in &manifest.streams {
            let (dtype, shape) = (manifest.tensor(stream)?.dtype, manifest.shape(stream, extents)?);
            let mut shared: Vec<BufferId> = Vec::new();
            let mut current: Option<BufferId> = None;
            for (cut, at_cut) in cuts.iter_mut().enumerate().take(blocks.end + 1).skip(blocks.start) {
                if cut == blocks.start || writes(stream, cut - 1) {
                    let end = (cut..blocks.end).find(|block| writes(stream, *block)).unwrap_or(blocks.end);
                    let is_pinned = pinned.iter().any(|pin| (cut..=end).contains(pin));
                    let free = shared.iter().find(|id| Some(**id) != current).copied();
                    current = Some(match free {
                        Some(id) if !is_pinned => id,
                        _ => {
                            let id = buffers.add(dtype, &shape)?;
                            if !is_pinned {
                                shared.push(id);
                            }
                            id
                        }
                    });
                }
                at_cut.extend(current);
            }
        }
        let stages = engine.plan.cover(&blocks)?;
        let mut chain = Self { plan: engine.plan.clone(), first: stages.start, stages: Vec::new(), cuts };
        for (stage, loaded) in engine.plan.stages()[stages.clone()].iter().zip(&engine.stages[stages]) {
            let place = |tensor: &String, cut: usize| match manifest.streams.iter().position(|s| s == tensor) {
                Some(stream) => Some(chain.cuts[cut][stream]),
                None => named.get(tensor).copied(),
            };
            let inputs: Vec<(String, BufferId)> = loaded
                .inputs
                .iter()
                .filter_map(|tensor| Some((tensor.clone(), place(tensor, stage.blocks.start)?)))
                .collect();
            let outputs: Vec<(String, BufferId)> = loaded
                .outputs
                .iter()
                .filter_map(|tensor| Some((output_port(tensor, &loaded.inputs), place(tensor, stage.blocks.end)?)))
                .collect();
            let op = Op::bind(&loaded.session, buffers, &inputs, &outputs)?;
            chain.stages.push(op);
        }
        Ok(chain)
    }

    /// Where the streams are at a cut.
    pub(crate) fn at_cut(&self, cut: usize) -> &[BufferId] {
        &self.cuts[cut]
    }

    /// Runs a range of blocks, stage by stage; gives the number of blocks that ran.
    ///
    /// # Errors
    /// `Cancelled` between two stages, `Runtime`, `Usage` if the plan does not fit.
    pub(crate) fn run(&self, blocks: Range<usize>, cancel: &CancelToken) -> Result<usize> {
        for stage in self.plan.cover(&blocks)? {
            cancel.check()?;
            self.stages[stage - self.first].run().at(format!("blocks {:?}", self.plan.stages()[stage].blocks))?;
        }
        Ok(blocks.len())
    }
}
