//! A batch whose pictures decide for themselves, each with a policy of its own.
//!
//! ```text
//! embed, head: the whole batch ─▶ a diff for each picture ─▶ a decision for each
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

use super::branch::ListState;
use super::chain::{Chain, Named, Streams};
use super::pass::Pass;
use super::request::Clock;
use super::unit::{Unit, relative};
use crate::cache::{Action, Branch, CachePolicy, Decision, DecisionPoint, Gate, Reason};
use crate::cancel::CancelToken;
use crate::engine::{Loaded, LoadedPlan};
use crate::error::{At, Error, Result};
use crate::model::manifest::{DType, Extents, Manifest};
use crate::request::lists::{List, Part};
use crate::runtime::items::{Items, Joined};
use crate::runtime::ops::Op;
use crate::runtime::tensor::{BufferId, Buffers, Place};
use crate::trace::{StepRecord, Timings};

/// What all branches share.
pub(super) struct Samples {
    batch: usize,
    extents: Extents,
    /// Tensors between embed and the blocks that are no streams.
    named: Named,
    /// Which pictures compute, i64 `[batch]`; those are at `places` of the smaller batch, i64 `[batch]`.
    computes: BufferId,
    places: BufferId,
    /// Of which pictures what was computed is kept, i64 `[batch]`.
    pub keeps: BufferId,
    /// By the number of pictures.
    parts: BTreeMap<usize, PartOfBatch>,
}

/// What one branch has for each picture.
pub(crate) struct BranchSamples {
    policies: Vec<Box<dyn CachePolicy>>,
    /// One for each stream that the middle changes.
    keep: Vec<Op>,
    /// The same, by the number of pictures that compute.
    join: BTreeMap<usize, Vec<Op>>,
}

/// The middle blocks for a part of the batch.
struct PartOfBatch {
    /// Which pictures, i64 `[count]`.
    items: BufferId,
    gather: Vec<Op>,
    chain: Chain,
}

/// What one picture decided.
#[derive(Clone, Copy)]
struct Decided {
    decision: Decision,
    diff: Option<f32>,
    threshold: Option<f64>,
}

impl Samples {
    /// `middle` are the blocks that pictures may skip.
    pub(super) fn new(
        engine: &Loaded,
        plan: &LoadedPlan,
        extents: &Extents,
        (named, middle): (&Named, &Range<usize>),
        buffers: &mut Buffers,
    ) -> Result<Self> {
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
        let mut flags = || buffers.add_at(Place::Host, DType::I64, &[batch as i64]);
        let (computes, places, keeps) = (flags()?, flags()?, flags()?);
        let (extents, named, parts) = (extents.clone(), named.clone(), BTreeMap::new());
        Ok(Self { batch, extents, named, computes, places, keeps, parts })
    }

    /// Runs the middle for some of the pictures, and lets the others take what was kept of it.
    fn run(
        &mut self,
        engine: &Loaded,
        items: &[usize],
        (chain, unit, join): (&Chain, &Unit, &mut BTreeMap<usize, Vec<Op>>),
        (buffers, cancel): (&mut Buffers, &CancelToken),
    ) -> Result<()> {
        let count = items.len();
        if !self.parts.contains_key(&count) {
            let part = PartOfBatch::bind(engine, self, count, (chain, &unit.blocks), buffers)?;
            self.parts.insert(count, part);
        }
        let Some(part) = self.parts.get(&count) else { return Err(Error::internal("a part of the batch is lost")) };
        let join = match join.entry(count) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let mut ops = Vec::new();
                for (stream, joined) in unit.residuals() {
                    let ran = part.chain.at_cut(unit.blocks.end)[stream];
                    let flags = (self.computes, self.places);
                    ops.push(items_of(engine, joined, buffers)?.bind_join(buffers, flags, ran, joined)?);
                }
                entry.insert(ops)
            }
        };
        let (mut computes, mut places) = (vec![0; self.batch], vec![0; self.batch]);
        for (place, item) in items.iter().enumerate() {
            (computes[*item], places[*item]) = (1, place as i64);
        }
        buffers.write_ids(self.computes, &computes)?;
        buffers.write_ids(self.places, &places)?;
        buffers.write_ids(part.items, &items.iter().map(|item| *item as i64).collect::<Vec<_>>())?;
        part.gather.iter().try_for_each(Op::run)?;
        part.chain.run(unit.blocks.clone(), cancel, buffers)?;
        join.iter().try_for_each(Op::run)
    }
}

impl PartOfBatch {
    fn bind(
        engine: &Loaded,
        samples: &Samples,
        count: usize,
        (whole, middle): (&Chain, &Range<usize>),
        buffers: &mut Buffers,
    ) -> Result<Self> {
        let manifest = &engine.directory.manifest;
        let extents = part_extents(manifest, &samples.extents, count)?;
        let items = buffers.add_at(Place::Host, DType::I64, &[count as i64])?;
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
        let seen = middle.start..middle.end + 1;
        let streams = Streams::allocate(manifest, (whole.plan(), &whole.plan().plan), (&extents, seen), &[], buffers)?;
        let chain = Chain::bind_blocks(manifest, (whole.plan(), middle), &streams, &named, buffers)?;
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
    pub(super) fn bind(
        engine: &Loaded,
        policies: Vec<Box<dyn CachePolicy>>,
        units: &[Unit],
        keeps: BufferId,
        buffers: &mut Buffers,
    ) -> Result<Self> {
        let mut keep = Vec::new();
        for (_, joined) in units.iter().flat_map(Unit::residuals) {
            keep.push(items_of(engine, joined, buffers)?.bind_keep(buffers, keeps, joined)?);
        }
        Ok(Self { policies, keep, join: BTreeMap::new() })
    }
}

/// Fresh policies of a list in one branch, one for each picture.
pub(super) fn policies(
    list: &List,
    (steps, branches): (usize, usize),
    branch: Branch,
    batch: usize,
) -> Result<Vec<Box<dyn CachePolicy>>> {
    let mut policies = Vec::new();
    for _ in 0..batch {
        let of_branches = list.cache.policies(list.run(steps, branches))?;
        policies.extend(of_branches.into_iter().filter(|(of, _)| *of == branch).map(|(_, policy)| policy));
    }
    Ok(policies)
}

/// The blocks of one list in one branch of one step, with a record for each picture. `shared` holds the diffs that
/// another branch has taken.
pub(super) fn run_list(
    pass: &Pass<'_>,
    list: &List,
    own: &mut ListState,
    (engine, samples): (&Loaded, &mut Samples),
    shared: &[Option<f32>],
    buffers: &mut Buffers,
    (timings, clock): (&mut Timings, &mut Clock),
) -> Result<Vec<StepRecord>> {
    let Pass { at, chain, cancel, .. } = *pass;
    let ListState { units, samples: Some(own), .. } = own else {
        return Err(Error::internal("a batch without its samples"));
    };
    let mut decided = vec![Decided { decision: Reason::None.into(), diff: None, threshold: None }; samples.batch];
    // Blocks, and whether all pictures ran them or only those that compute.
    let mut ran: Vec<(Range<usize>, bool)> = Vec::new();
    let mut units = units.iter_mut();
    for part in &list.parts {
        let unit = match part {
            Part::Run(blocks) => {
                chain.run(blocks.clone(), cancel, buffers)?;
                ran.push((blocks.clone(), true));
                timings.blocks_ms += clock.lap();
                continue;
            }
            Part::Unit { .. } => units.next().ok_or_else(|| Error::internal("a branch lacks a unit"))?,
        };
        ran.push((unit.blocks.clone(), false));
        decided = decide(&mut own.policies, at, unit, shared, buffers)?;
        let computing = decided.iter().map(|decided| decided.decision.action == Action::Compute);
        let keeps: Vec<bool> =
            computing.zip(&own.policies).map(|(computes, policy)| computes && policy.keeps(at)).collect();
        let items: Vec<usize> =
            (0..samples.batch).filter(|item| decided[*item].decision.action == Action::Compute).collect();
        if keeps.contains(&true) {
            buffers.write_ids(samples.keeps, &keeps.iter().map(|keeps| i64::from(*keeps)).collect::<Vec<_>>())?;
            unit.keep_compared(chain, buffers)?;
        }
        timings.cache_ms += clock.lap();
        match items.len() {
            0 => unit.apply(at.step, chain, buffers)?,
            all if all == samples.batch => {
                chain.run(unit.blocks.clone(), cancel, buffers)?;
                timings.blocks_ms += clock.lap();
            }
            // With the moves of their rows, which are small beside the blocks.
            _ => {
                samples.run(engine, &items, (chain, unit, &mut own.join), (buffers, cancel))?;
                timings.blocks_ms += clock.lap();
            }
        }
        if keeps.contains(&true) {
            own.keep.iter().try_for_each(Op::run)?;
        }
        timings.cache_ms += clock.lap();
    }
    let record = |(sample, decided): (usize, Decided)| {
        let Decided { decision, diff, threshold } = decided;
        let mut record = StepRecord { sample: Some(sample), decision, diff, threshold, ..pass.record(list) };
        for (blocks, by_all) in &ran {
            if *by_all || decision.action == Action::Compute {
                record.add_run(blocks.clone());
            }
        }
        record
    };
    Ok(decided.into_iter().enumerate().map(record).collect())
}

/// Asks each policy about its picture; the diffs of all are taken at once, if any needs one.
fn decide(
    policies: &mut [Box<dyn CachePolicy>],
    at: DecisionPoint,
    unit: &Unit,
    shared: &[Option<f32>],
    buffers: &Buffers,
) -> Result<Vec<Decided>> {
    let mut sums: Option<Vec<(f32, f32)>> = None;
    let mut decided = Vec::new();
    for (sample, policy) in policies.iter_mut().enumerate() {
        decided.push(match policy.gate(at) {
            Gate::Decided(decision) => Decided { decision, diff: None, threshold: None },
            Gate::NeedsDiff => {
                let diff = match shared.get(sample).copied().flatten() {
                    Some(diff) => diff,
                    None => {
                        let sums = match &sums {
                            Some(sums) => sums,
                            None => sums.insert(unit.sums(buffers)?),
                        };
                        let (change, size) =
                            sums.get(sample).copied().ok_or_else(|| Error::internal("too few diffs"))?;
                        relative(change, size).at(format_args!("picture {sample}, before blocks {:?}", unit.blocks))?
                    }
                };
                let threshold = policy.threshold(at);
                Decided { decision: policy.judge(at, diff), diff: Some(diff), threshold }
            }
        });
    }
    Ok(decided)
}

/// The graphs for one stream.
fn items_of(engine: &Loaded, stream: Joined, buffers: &Buffers) -> Result<Arc<Items>> {
    engine.kernels.items(buffers.dtype(stream.before), buffers.dtype(stream.kept), buffers.shape(stream.before).len())
}

/// The tensors that these blocks take beside the streams.
fn inputs(engine: &Loaded, plan: &LoadedPlan, blocks: &Range<usize>) -> Result<Vec<String>> {
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

/// The axis along which a tensor has one item a picture; none for a tensor that all share.
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
    Error::usage(format!("--per-sample does not go with this model: `{tensor}` cannot be divided into pictures"))
}
