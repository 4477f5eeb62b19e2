//! A batch whose samples decide for themselves, each with a policy of its own.
//!
//! ```text
//! embed, head: the whole batch ─▶ a diff for each sample  ─▶ a decision for each
//!     none computes:  streams += kept residual
//!     all compute:    the middle, the whole batch
//!     k compute:      their rows ─▶ the middle, a batch of k ─▶ back among the others, whose streams += kept residual
//! tail, final: the whole batch
//! ```
//!
//! A batch of k has tensors of its own; they are allocated when the first k pictures compute alone.

use std::collections::btree_map::{BTreeMap, Entry};
use std::ops::Range;
use std::sync::Arc;

use super::binder::Binder;
use super::chain::{Chain, Named, Streams, StreamsSpec, Wiring};
use super::pass::Pass;
use super::unit::Unit;
use crate::engine::{LoadedEngine, LoadedPlan};
use crate::error::{Error, Result};
use crate::model::manifest::{DType, Extents, Manifest};
use crate::runtime::items::{Items, JoinItems, Joined};
use crate::runtime::op::Op;
use crate::runtime::tensor::{BufferId, Buffers, TensorPlace};

/// What all branches share.
pub(super) struct Samples {
    engine: Arc<LoadedEngine>,
    batch: usize,
    extents: Extents,
    /// Tensors between embed and the blocks that are no streams.
    named: Named,
    /// Which samples compute, i64 `[batch]`; those are at `places` of the smaller batch, i64 `[batch]`.
    computes: BufferId,
    places: BufferId,
    /// Of which samples what was computed is kept, i64 `[batch]`.
    pub keeps: BufferId,
    /// By the number of samples.
    parts: BTreeMap<usize, PartOfBatch>,
}

/// What one branch has where each sample decides.
pub(crate) struct BranchSamples {
    /// One for each stream that the middle changes.
    keep: Vec<Op>,
    /// What joins the samples that computed with the others: one for each stream, by the number that computed.
    join: BTreeMap<usize, Vec<Op>>,
}

/// The middle blocks for a part of the batch.
struct PartOfBatch {
    /// Which samples, i64 `[count]`.
    items: BufferId,
    gather: Vec<Op>,
    chain: Chain,
}

impl Samples {
    /// `middle` are the blocks that samples may skip.
    pub(super) fn new(binder: &mut Binder<'_>, plan: &LoadedPlan, middle: &Range<usize>) -> Result<Self> {
        let Binder { engine, extents, named, buffers } = binder;
        let manifest = &engine.directory.manifest;
        let batch = extents.get("batch").copied().unwrap_or(1) as usize;
        // Every tensor that the middle takes can be divided: better known now than after some steps.
        let one = part_extents(manifest, extents, 1)?;
        for stream in &manifest.streams {
            if batch_axis(manifest, stream, extents, &one)? != Some(0) {
                return Err(indivisible(stream));
            }
        }
        for tensor in inputs(engine, plan, middle)? {
            batch_axis(manifest, &tensor, extents, &one)?;
        }
        let mut flags = || buffers.add_at(TensorPlace::Host, DType::I64, &[batch as i64]);
        Ok(Self {
            computes: flags()?,
            places: flags()?,
            keeps: flags()?,
            engine: Arc::clone(engine),
            batch,
            extents: (*extents).clone(),
            named: (*named).clone(),
            parts: BTreeMap::new(),
        })
    }

    /// Tells the graphs of which samples what is computed will be kept.
    pub(super) fn write_keeps(&self, keeps: &[bool], buffers: &mut Buffers) -> Result<()> {
        buffers.write_ids(self.keeps, &keeps.iter().map(|keeps| i64::from(*keeps)).collect::<Vec<_>>())
    }

    /// Runs the middle for some of the samples, and lets the others take what was kept of it.
    pub(super) fn run(
        &mut self,
        pass: &mut Pass<'_>,
        computes: &[bool],
        unit: &Unit,
        of_branch: &mut BranchSamples,
    ) -> Result<()> {
        let buffers = &mut *pass.buffers;
        let items: Vec<usize> = (0..self.batch).filter(|item| computes[*item]).collect();
        let count = items.len();
        if !self.parts.contains_key(&count) {
            let part = PartOfBatch::bind(self, count, pass.chain, &unit.blocks, buffers)?;
            self.parts.insert(count, part);
        }
        let Some(part) = self.parts.get(&count) else { return Err(Error::internal("a part of the batch is lost")) };
        let join = match of_branch.join.entry(count) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.joins(part, unit, buffers)?),
        };
        let mut places = vec![0; self.batch];
        for (place, item) in items.iter().enumerate() {
            places[*item] = place as i64;
        }
        buffers.write_ids(self.computes, &computes.iter().map(|computes| i64::from(*computes)).collect::<Vec<_>>())?;
        buffers.write_ids(self.places, &places)?;
        buffers.write_ids(part.items, &items.iter().map(|item| *item as i64).collect::<Vec<_>>())?;
        part.gather.iter().try_for_each(Op::run)?;
        part.chain.run(unit.blocks.clone(), pass.cancel, buffers)?;
        join.iter().try_for_each(Op::run)
    }

    /// What brings a part of the batch back among the others, for each stream.
    fn joins(&self, part: &PartOfBatch, unit: &Unit, buffers: &mut Buffers) -> Result<Vec<Op>> {
        let mut ops = Vec::new();
        for (stream, joined) in unit.residuals() {
            let ran = part.chain.at_cut(unit.blocks.end)[stream];
            let flags = JoinItems { computes: self.computes, places: self.places, ran };
            ops.push(items_of(&self.engine, joined, buffers)?.bind_join(buffers, flags, joined)?);
        }
        Ok(ops)
    }
}

impl PartOfBatch {
    fn bind(
        samples: &Samples,
        count: usize,
        whole: &Chain,
        middle: &Range<usize>,
        buffers: &mut Buffers,
    ) -> Result<Self> {
        let Samples { engine, .. } = samples;
        let manifest = &engine.directory.manifest;
        let extents = part_extents(manifest, &samples.extents, count)?;
        let items = buffers.add_at(TensorPlace::Host, DType::I64, &[count as i64])?;
        let mut pairs: Vec<(BufferId, BufferId, usize)> = Vec::new();
        let mut named = Named::new();
        for tensor in inputs(engine, whole.plan(), middle)? {
            let Some(all) = samples.named.get(&tensor).copied() else { continue };
            let some = match batch_axis(manifest, &tensor, &samples.extents, &extents)? {
                None => all,
                Some(axis) => {
                    let some = buffers.add(buffers.dtype(all), &manifest.shape(&tensor, &extents)?)?;
                    pairs.push((all, some, axis));
                    some
                }
            };
            named.insert(tensor, some);
        }
        let plan = whole.plan();
        let spec = StreamsSpec { plan, plain: &plan.plan, seen: middle.start..middle.end + 1, pinned: &[] };
        let streams = Streams::allocate(manifest, spec, &extents, buffers)?;
        let wiring = Wiring { manifest, plan, streams: &streams, named: &named };
        let chain = Chain::bind_blocks(wiring, middle, buffers)?;
        let streams = whole.at_cut(middle.start).iter().zip(chain.at_cut(middle.start));
        pairs.extend(streams.map(|(all, some)| (*all, *some, 0)));
        let mut gather = Vec::new();
        for (all, some, axis) in pairs {
            let graph = engine.kernels.gather(buffers.dtype(all), buffers.shape(all).len(), axis)?;
            gather.push(graph.bind(buffers, all, items, some)?);
        }
        Ok(Self { items, gather, chain })
    }
}

impl BranchSamples {
    pub(super) fn bind(binder: &mut Binder<'_>, units: &[Unit], keeps: BufferId) -> Result<Self> {
        let mut keep = Vec::new();
        for (_, joined) in units.iter().flat_map(Unit::residuals) {
            let items = items_of(binder.engine, joined, binder.buffers)?;
            keep.push(items.bind_keep(binder.buffers, keeps, joined)?);
        }
        Ok(Self { keep, join: BTreeMap::new() })
    }

    /// After the middle ran: keeps what the samples say that [`Samples::write_keeps`] has named.
    pub(super) fn keep(&self) -> Result<()> {
        self.keep.iter().try_for_each(Op::run)
    }
}

/// The graphs for one stream.
fn items_of(engine: &LoadedEngine, stream: Joined, buffers: &Buffers) -> Result<Arc<Items>> {
    engine.kernels.items(buffers.dtype(stream.before), buffers.dtype(stream.kept), buffers.shape(stream.before).len())
}

/// The tensors that these blocks take beside the streams.
fn inputs(engine: &LoadedEngine, plan: &LoadedPlan, blocks: &Range<usize>) -> Result<Vec<String>> {
    let streams = &engine.directory.manifest.streams;
    let stages = &plan.stages[plan.cover(blocks)?];
    let mut names: Vec<String> =
        stages.iter().flat_map(|stage| &stage.inputs).filter(|tensor| !streams.contains(tensor)).cloned().collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// The request's extents with another batch.
fn part_extents(manifest: &Manifest, extents: &Extents, batch: usize) -> Result<Extents> {
    let mut extents = extents.clone();
    extents.insert("batch".into(), batch as u64);
    manifest.complete(extents)
}

/// The axis along which a tensor has one item a sample; none for a tensor that all share.
fn batch_axis(manifest: &Manifest, tensor: &str, whole: &Extents, part: &Extents) -> Result<Option<usize>> {
    let (all, some) = (manifest.shape(tensor, whole)?, manifest.shape(tensor, part)?);
    let changed: Vec<usize> = (0..all.len()).filter(|axis| all[*axis] != some[*axis]).collect();
    let counts = [whole, part].map(|extents| extents.get("batch").copied().unwrap_or(1) as i64);
    match changed.as_slice() {
        [] => Ok(None),
        [axis] if [all[*axis], some[*axis]] == counts => Ok(Some(*axis)),
        _ => Err(indivisible(tensor)),
    }
}

fn indivisible(tensor: &str) -> Error {
    Error::usage(format!(
        "the option `per-sample` does not go with this model: `{tensor}` cannot be divided into samples"
    ))
}
