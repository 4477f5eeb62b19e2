//! The blocks of one request, bound to the buffers that their streams flow through.
//!
//! A stream's value lives from the block that writes it to the next one that does. Values that someone reads later (at
//! a pinned cut) get a buffer of their own; all others share two buffers in turns. So every stage is bound once, and
//! nothing is copied between blocks.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cancel::CancelToken;
use crate::engine::{LoadedPlan, LoadedStage};
use crate::error::{Error, Result};
use crate::model::graph::output_port;
use crate::model::manifest::{Extents, Manifest};
use crate::plan::places::{count_places, places};
use crate::plan::{Plan, Stage};
use crate::runtime::op::Op;
use crate::runtime::tensor::{BufferId, Buffers};

/// The tensors that cross graph boundaries, by the manifest's names.
pub(crate) type Named = BTreeMap<String, BufferId>;

/// The tensors in which the streams lie between stages.
pub(crate) struct Streams {
    /// For each cut and each stream. Empty for cuts that are not seen.
    cuts: Vec<Vec<BufferId>>,
    /// Bytes of the tensors that would not be there without a cache.
    pub cache_bytes: u64,
}

/// All stages of a plan for one branch, ready to run in ranges of blocks; or those of some blocks.
pub(crate) struct Chain {
    plan: Arc<LoadedPlan>,
    /// The index of its first stage in the plan.
    first: usize,
    stages: Vec<Bound>,
    streams: Arc<Streams>,
}

/// A stage, bound to tensors in one way, or in several that take turns.
struct Bound {
    ways: Vec<Op>,
    used: AtomicUsize,
}

/// A stage whose output holds NaN or infinity.
pub(crate) struct NotFinite {
    pub stage: Stage,
    pub tensor: String,
    pub number: f32,
}

/// Between which stages streams are allocated.
pub(crate) struct StreamsSpec<'a> {
    pub plan: &'a LoadedPlan,
    /// The plan without a cache.
    pub plain: &'a Plan,
    pub seen: Range<usize>,
    /// Cuts whose values outlive the blocks after them.
    pub pinned: &'a [usize],
}

/// What the stages of a plan are bound to.
#[derive(Clone, Copy)]
pub(crate) struct Wiring<'a> {
    pub manifest: &'a Manifest,
    pub plan: &'a Arc<LoadedPlan>,
    pub streams: &'a Arc<Streams>,
    /// The tensors that are no streams.
    pub named: &'a Named,
}

impl Streams {
    /// Allocates them for the cuts that are seen.
    pub(crate) fn allocate(
        manifest: &Manifest,
        spec: StreamsSpec<'_>,
        extents: &Extents,
        buffers: &mut Buffers,
    ) -> Result<Arc<Self>> {
        let StreamsSpec { plan, plain, seen, pinned } = spec;
        let mut cuts = vec![Vec::with_capacity(manifest.streams.len()); manifest.blocks.len() + 1];
        let mut cache_bytes = 0;
        for stream in &manifest.streams {
            let (dtype, shape) = (manifest.tensor(stream)?.dtype, manifest.shape(stream, extents)?);
            // Inside a stage nothing can be seen: its last block writes for all of them.
            let writes = |block: usize| {
                let ends = |stage: &Stage| stage.blocks.end == block + 1 && !stage.blocks.is_empty();
                let ended = plan.stages.iter().find(|loaded| ends(&loaded.stage));
                ended.is_some_and(|loaded| loaded.outputs.contains(stream))
            };
            let mut tensors: Vec<BufferId> = Vec::new();
            for (at_cut, place) in cuts[seen.clone()].iter_mut().zip(places(&seen, pinned, writes)) {
                if place == tensors.len() {
                    tensors.push(buffers.add(dtype, &shape)?);
                }
                at_cut.push(tensors[place]);
            }
            let extra =
                (tensors.len() as u64).saturating_sub(count_places(plain, &[], |block| manifest.writes(block, stream)));
            cache_bytes += extra * tensors.first().map_or(0, |tensor| buffers.bytes(*tensor));
        }
        Ok(Arc::new(Self { cuts, cache_bytes }))
    }

    /// Where the streams are at a cut; nowhere if it is not seen.
    pub(crate) fn at_cut(&self, cut: usize) -> &[BufferId] {
        &self.cuts[cut]
    }
}

impl Bound {
    fn used(&self) -> &Op {
        &self.ways[self.used.load(Ordering::Relaxed)]
    }
}

impl Chain {
    /// Binds all stages.
    pub(crate) fn bind(wiring: Wiring<'_>, buffers: &mut Buffers) -> Result<Self> {
        Self::bind_stages(wiring, 0..wiring.plan.stages.len(), buffers)
    }

    /// Binds the stages of some blocks, at whose ends the streams are seen.
    pub(crate) fn bind_blocks(wiring: Wiring<'_>, blocks: &Range<usize>, buffers: &mut Buffers) -> Result<Self> {
        Self::bind_stages(wiring, wiring.plan.cover(blocks)?, buffers)
    }

    fn bind_stages(wiring: Wiring<'_>, stages: Range<usize>, buffers: &mut Buffers) -> Result<Self> {
        let Wiring { plan, streams, .. } = wiring;
        let first = stages.start;
        let bind = |loaded: &Arc<LoadedStage>| {
            Ok(Bound { ways: vec![wiring.bind(loaded, buffers)?], used: AtomicUsize::new(0) })
        };
        let stages = plan.stages[stages].iter().map(bind).collect::<Result<_>>()?;
        Ok(Self { plan: Arc::clone(plan), first, stages, streams: Arc::clone(streams) })
    }

    /// Binds a stage once more, to other tensors that are no streams.
    pub(crate) fn bind_again(
        &mut self,
        manifest: &Manifest,
        stage: usize,
        named: &Named,
        buffers: &mut Buffers,
    ) -> Result<()> {
        let wiring = Wiring { manifest, plan: &self.plan, streams: &self.streams, named };
        let op = wiring.bind(&self.plan.stages[stage], buffers)?;
        self.stages[stage - self.first].ways.push(op);
        Ok(())
    }

    /// From now on the stage runs as it was bound first (0) or later (1, 2 …).
    pub(crate) fn use_binding(&self, stage: usize, way: usize) {
        self.stages[stage - self.first].used.store(way, Ordering::Relaxed);
    }

    pub(crate) fn plan(&self) -> &Arc<LoadedPlan> {
        &self.plan
    }

    /// Where the streams are at a cut; nowhere if it is not seen.
    pub(crate) fn at_cut(&self, cut: usize) -> &[BufferId] {
        self.streams.at_cut(cut)
    }

    /// Runs the embed graph, where it is a stage of its own.
    ///
    /// # Errors
    /// `Runtime`.
    pub(crate) fn embed(&self, buffers: &mut Buffers) -> Result<()> {
        self.run_end(0, |stage| stage.embed, buffers)
    }

    /// Runs the final graph, where it is a stage of its own.
    ///
    /// # Errors
    /// `Runtime`.
    pub(crate) fn last(&self, buffers: &mut Buffers) -> Result<()> {
        self.run_end(self.plan.stages.len() - 1, |stage| stage.last, buffers)
    }

    fn run_end(&self, index: usize, is_end: fn(&Stage) -> bool, buffers: &mut Buffers) -> Result<()> {
        let stage = &self.plan.stages[index].stage;
        if is_end(stage) && stage.blocks.is_empty() { self.run_stage(index, buffers) } else { Ok(()) }
    }

    fn run_stage(&self, index: usize, buffers: &mut Buffers) -> Result<()> {
        self.stages[index - self.first].used().run_stage(buffers)
    }

    /// Runs a range of blocks, stage by stage, with the ends that are part of their stages.
    ///
    /// # Errors
    /// `Cancelled` between two stages, `Runtime`.
    pub(crate) fn run(&self, blocks: Range<usize>, cancel: &CancelToken, buffers: &mut Buffers) -> Result<()> {
        for stage in self.plan.cover(&blocks)? {
            cancel.check()?;
            self.run_stage(stage, buffers)?;
        }
        Ok(())
    }

    /// Runs all stages again, one after the other; gives the first whose output is not finite: a stream, or one of the
    /// `others` that embed gives.
    ///
    /// # Errors
    /// `Runtime`.
    pub(crate) fn first_not_finite(
        &self,
        manifest: &Manifest,
        others: &Named,
        buffers: &Buffers,
    ) -> Result<Option<NotFinite>> {
        for (loaded, bound) in self.plan.stages[self.first..].iter().zip(&self.stages) {
            bound.used().run()?;
            let stage = &loaded.stage;
            let streams = manifest.streams.iter().zip(self.at_cut(stage.blocks.end)).filter(|_| !stage.last);
            for (tensor, id) in streams.chain(others.iter().filter(|(tensor, _)| loaded.outputs.contains(tensor))) {
                if let Some(number) = buffers.first_not_finite(*id)? {
                    return Ok(Some(NotFinite { stage: stage.clone(), tensor: tensor.clone(), number }));
                }
            }
        }
        Ok(None)
    }
}

impl Wiring<'_> {
    fn bind(&self, loaded: &LoadedStage, buffers: &mut Buffers) -> Result<Op> {
        let LoadedStage { stage, session, inputs, outputs } = loaded;
        let find = |tensor: &String, cut: usize| {
            let place = match self.manifest.streams.iter().position(|stream| stream == tensor) {
                Some(stream) => self.streams.at_cut(cut).get(stream).copied(),
                None => self.named.get(tensor).copied(),
            };
            place.ok_or_else(|| Error::internal(format!("no tensor for `{tensor}` of {}", stage.name())))
        };
        let at_start = |tensor: &String| Ok((tensor.clone(), find(tensor, stage.blocks.start)?));
        let at_end = |tensor: &String| Ok((output_port(tensor, inputs), find(tensor, stage.blocks.end)?));
        let ins = inputs.iter().map(at_start).collect::<Result<Vec<_>>>()?;
        let outs = outputs.iter().map(at_end).collect::<Result<Vec<_>>>()?;
        Op::bind(session, buffers, &ins, &outs)
    }
}
