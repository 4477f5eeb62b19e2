//! The blocks of one request, bound to the buffers that their streams flow through.
//!
//! A stream's value lives from the block that writes it to the next one that does. Values that someone reads later (at
//! a pinned cut) get a buffer of their own; all others share two buffers in turns. So every stage is bound once, and
//! nothing is copied between blocks.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::cancel::CancelToken;
use crate::engine::{Loaded, LoadedPlan};
use crate::error::Result;
use crate::model::graph::output_port;
use crate::model::manifest::Extents;
use crate::runtime::ops::Op;
use crate::runtime::tensor::{BufferId, Buffers};

/// The tensors that cross graph boundaries, by the manifest's names.
pub(crate) type Named = BTreeMap<String, BufferId>;

/// All blocks, ready to run in ranges.
pub(crate) struct Chain {
    plan: Arc<LoadedPlan>,
    /// The index of its first stage in the plan.
    first: usize,
    stages: Vec<Op>,
    /// For each cut and each stream: where the stream's value is. Empty for cuts outside of its blocks.
    cuts: Vec<Vec<BufferId>>,
    /// Bytes of the tensors that would not be there without pinned cuts.
    pub pinned_bytes: u64,
}

/// A stage whose output holds NaN or infinity.
pub(crate) struct NotFinite {
    pub blocks: Range<usize>,
    /// Index of the stream.
    pub stream: usize,
    pub number: f32,
}

/// For each cut, which of a stream's tensors holds its value: they are counted from 0.
pub(crate) fn places(blocks: usize, pinned: &[usize], writes: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut shared: Vec<usize> = Vec::new();
    let mut places: Vec<usize> = Vec::with_capacity(blocks + 1);
    let mut count = 0;
    for cut in 0..=blocks {
        let current = places.last().copied();
        if let Some(current) = current.filter(|_| !writes(cut - 1)) {
            places.push(current);
            continue;
        }
        let end = (cut..blocks).find(|block| writes(*block)).unwrap_or(blocks);
        let is_pinned = pinned.iter().any(|pin| (cut..=end).contains(pin));
        let free = shared.iter().copied().find(|place| Some(*place) != current).filter(|_| !is_pinned);
        places.push(free.unwrap_or_else(|| {
            count += 1;
            if !is_pinned {
                shared.push(count - 1);
            }
            count - 1
        }));
    }
    places
}

/// How many tensors a stream needs more because of pinned cuts.
pub(crate) fn extra_places(blocks: usize, pinned: &[usize], writes: impl Fn(usize) -> bool) -> u64 {
    let count = |pinned: &[usize]| places(blocks, pinned, &writes).into_iter().max().map_or(0, |last| last as u64 + 1);
    count(pinned).saturating_sub(count(&[]))
}

impl Chain {
    /// Allocates the streams' buffers and binds every block. `named` holds the tensors that are no streams.
    pub(crate) fn bind(
        engine: &Loaded,
        plan: &Arc<LoadedPlan>,
        extents: &Extents,
        pinned: &[usize],
        named: &Named,
        buffers: &mut Buffers,
    ) -> Result<Self> {
        let blocks = 0..engine.directory.manifest.blocks.len();
        Self::bind_blocks(engine, plan, (extents, blocks), pinned, named, buffers)
    }

    /// The same for a range of blocks.
    pub(crate) fn bind_blocks(
        engine: &Loaded,
        plan: &Arc<LoadedPlan>,
        (extents, blocks): (&Extents, Range<usize>),
        pinned: &[usize],
        named: &Named,
        buffers: &mut Buffers,
    ) -> Result<Self> {
        let manifest = &engine.directory.manifest;
        // Inside a stage nothing can be seen: its last block writes for all of them.
        let writes = |stream: &str, block: usize| {
            let ended = plan.stages.iter().find(|loaded| loaded.stage.blocks.end == block + 1);
            ended.is_some_and(|loaded| loaded.outputs.iter().any(|output| output == stream))
        };
        let (first, count) = (blocks.start, blocks.len());
        let pinned: Vec<usize> = pinned.iter().filter_map(|pin| pin.checked_sub(first)).collect();
        let mut cuts = vec![Vec::with_capacity(manifest.streams.len()); manifest.blocks.len() + 1];
        let mut pinned_bytes = 0;
        for stream in &manifest.streams {
            let (dtype, shape) = (manifest.tensor(stream)?.dtype, manifest.shape(stream, extents)?);
            let writes = |block: usize| writes(stream, first + block);
            let mut tensors: Vec<BufferId> = Vec::new();
            for (at_cut, place) in cuts[first..].iter_mut().zip(places(count, &pinned, writes)) {
                if place == tensors.len() {
                    tensors.push(buffers.add(dtype, &shape)?);
                }
                at_cut.push(tensors[place]);
            }
            let extra = extra_places(count, &pinned, writes);
            pinned_bytes += extra * tensors.first().map_or(0, |tensor| buffers.bytes(*tensor));
        }
        let stages = plan.cover(&blocks)?;
        let mut chain = Self { plan: Arc::clone(plan), first: stages.start, stages: Vec::new(), cuts, pinned_bytes };
        for loaded in &plan.stages[stages] {
            let stage = &loaded.stage;
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

    pub(crate) fn plan(&self) -> &Arc<LoadedPlan> {
        &self.plan
    }

    /// Where the streams are at a cut.
    pub(crate) fn at_cut(&self, cut: usize) -> &[BufferId] {
        &self.cuts[cut]
    }

    /// Runs a range of blocks, stage by stage; gives the number of blocks that ran.
    ///
    /// # Errors
    /// `Cancelled` between two stages, `Runtime`.
    pub(crate) fn run(&self, blocks: Range<usize>, cancel: &CancelToken) -> Result<usize> {
        for stage in self.plan.cover(&blocks)? {
            cancel.check()?;
            let at = || format!("blocks {:?}", self.plan.stages[stage].stage.blocks);
            self.stages[stage - self.first].run().map_err(|error| error.at(at()))?;
        }
        Ok(blocks.len())
    }

    /// Runs all stages again, one after the other; gives the first whose output is not finite.
    ///
    /// # Errors
    /// `Runtime`.
    pub(crate) fn first_not_finite(&self, buffers: &Buffers) -> Result<Option<NotFinite>> {
        for (loaded, op) in self.plan.stages[self.first..].iter().zip(&self.stages) {
            let stage = &loaded.stage;
            op.run()?;
            for (stream, id) in self.at_cut(stage.blocks.end).iter().enumerate() {
                if let Some(number) = buffers.first_not_finite(*id)? {
                    return Ok(Some(NotFinite { blocks: stage.blocks.clone(), stream, number }));
                }
            }
        }
        Ok(None)
    }
}
