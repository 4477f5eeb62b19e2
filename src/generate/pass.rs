//! The blocks of one list, in one branch of one step: what always runs, and what the policies decide on.

use super::branch::ListState;
use super::chain::Chain;
use super::meter::Meter;
use super::samples::Samples;
use super::unit::{Unit, relative};
use crate::cache::{Action, CachePolicy, Decision, DecisionPoint, Gate, Reason};
use crate::cancel::CancelToken;
use crate::collective::ContextParallel;
use crate::error::{At, Error, Result};
use crate::request::lists::{List, ListPart};
use crate::runtime::tensor::Buffers;
use crate::trace::{BlockRecord, StepRecord};

/// One branch of one step, as all its lists of blocks see it, and what it runs with.
pub(super) struct Pass<'a> {
    /// The step as one of its transformer's.
    pub at: DecisionPoint,
    /// The step as one of the generation's, and how many these are.
    pub step: usize,
    pub steps: usize,
    /// Which transformer runs it, where the model has several.
    pub expert: Option<usize>,
    pub sigma: f32,
    pub chain: &'a Chain,
    /// The other processes that decide the same.
    pub context_parallel: Option<&'a ContextParallel>,
    pub cancel: &'a CancelToken,
    pub buffers: &'a mut Buffers,
    pub meter: Meter<'a>,
}

/// What one policy answered about one unit.
#[derive(Clone, Copy)]
struct Decided {
    decision: Decision,
    diff: Option<f32>,
    threshold: Option<f64>,
}

impl Pass<'_> {
    /// A record without what is decided.
    fn record(&self, list: &List, sample: Option<usize>) -> StepRecord {
        StepRecord {
            step: self.step,
            steps: self.steps,
            branch: self.at.branch,
            expert: self.expert,
            list: list.index,
            sample,
            sigma: self.sigma,
            decision: Reason::None.into(),
            diff: None,
            threshold: None,
            blocks: Vec::new(),
            blocks_run: 0,
            ran: Vec::new(),
            session_runs: 0,
            elapsed_ms: 0.0,
            exchanged: None,
        }
    }

    /// The sums of a unit's diffs, over the tokens of all ranks.
    fn sums(&self, unit: &Unit) -> Result<Vec<(f32, f32)>> {
        let mut sums = unit.sums(self.buffers)?;
        if let Some(parallel) = self.context_parallel {
            let place = self.step.wrapping_mul(1000) + unit.blocks.start;
            parallel.all_sum(&mut sums, u32::try_from(place).unwrap_or_default())?;
        }
        Ok(sums)
    }

    /// Runs blocks for the whole batch.
    fn run(&mut self, blocks: &std::ops::Range<usize>) -> Result<()> {
        self.chain.run(blocks.clone(), self.cancel, self.buffers)?;
        self.meter.count(|timings| &mut timings.blocks_ms);
        Ok(())
    }
}

/// The blocks of one list, in one branch of one step; gives a record for each of the list's policies. `samples` is there
/// where each sample of the batch has a policy of its own. `shared` holds the diffs that another branch has taken.
pub(super) fn run_list(
    pass: &mut Pass<'_>,
    list: &List,
    own: &mut ListState,
    samples: Option<&mut Samples>,
    shared: &[Option<f32>],
) -> Result<Vec<StepRecord>> {
    let mut samples = samples;
    let mut records: Vec<StepRecord> =
        (0..own.policies.len()).map(|sample| pass.record(list, samples.is_some().then_some(sample))).collect();
    // Without a middle the step as a whole decides nothing, but is still asked once.
    if !list.parts.iter().any(|part| matches!(part, ListPart::Unit { block: None, .. })) {
        for (policy, record) in own.policies.iter_mut().zip(&mut records) {
            if let Gate::Decided(decision) = policy.gate(pass.at) {
                record.decision = decision;
            }
        }
    }
    let mut next_unit = 0;
    for part in &list.parts {
        let ListPart::Unit { blocks, block } = part else {
            pass.run(part.blocks())?;
            records.iter_mut().for_each(|record| record.add_run(part.blocks().clone()));
            continue;
        };
        let shared = if block.is_none() { shared } else { &[] };
        let at = DecisionPoint { block: *block, ..pass.at };
        let unit = own.units.get(next_unit).ok_or_else(|| Error::internal("a branch lacks a unit"))?;
        let decided = decide(pass, &mut own.policies, at, unit, shared)?;
        run_unit(pass, list, own, samples.as_deref_mut(), UnitTurn { unit: next_unit, at, decided: &decided })?;
        next_unit += 1;
        for (record, Decided { decision, diff, threshold }) in records.iter_mut().zip(decided) {
            if decision.action == Action::Compute {
                record.add_run(blocks.clone());
            }
            match block {
                Some(_) => record.blocks.push(BlockRecord { block: blocks.start, decision, diff, threshold }),
                None => (record.decision, record.diff, record.threshold) = (decision, diff, threshold),
            }
        }
    }
    Ok(records)
}

/// A unit, by its place in the list, and what was decided about it, by each policy.
struct UnitTurn<'a> {
    unit: usize,
    at: DecisionPoint,
    decided: &'a [Decided],
}

/// Runs or skips the blocks of a unit, as was decided for each sample, and keeps what later steps use.
fn run_unit(
    pass: &mut Pass<'_>,
    list: &List,
    own: &mut ListState,
    mut samples: Option<&mut Samples>,
    turn: UnitTurn<'_>,
) -> Result<()> {
    let UnitTurn { unit, at, decided } = turn;
    let ListState { policies, units, samples: of_branch } = own;
    let unit = &mut units[unit];
    let step = policies.first().map_or(at.step, |policy| policy.calibrator_step(at));
    let computes: Vec<bool> = decided.iter().map(|decided| decided.decision.action == Action::Compute).collect();
    let keeps: Vec<bool> =
        computes.iter().zip(policies.iter()).map(|(computes, policy)| *computes && policy.keeps(at)).collect();
    let is_kept = keeps.contains(&true);
    if is_kept {
        if let Some(samples) = &mut samples {
            samples.write_keeps(&keeps, pass.buffers)?;
        }
        unit.keep_compared(pass.chain, pass.buffers)?;
    }
    pass.meter.count(|timings| &mut timings.cache_ms);
    match (samples, of_branch.as_mut()) {
        _ if !computes.contains(&true) => unit.apply(step, pass.chain, pass.buffers)?,
        _ if !computes.contains(&false) => pass.run(&unit.blocks)?,
        (Some(samples), Some(of_branch)) => {
            samples.run(pass, &computes, unit, of_branch)?;
            // With the moves of their rows, which are small beside the blocks.
            pass.meter.count(|timings| &mut timings.blocks_ms);
        }
        _ => return Err(Error::internal("a batch without its samples")),
    }
    if is_kept {
        match of_branch {
            Some(of_branch) => of_branch.keep()?,
            None => unit.keep(step, &list.cache, pass.buffers)?,
        }
    }
    pass.meter.count(|timings| &mut timings.cache_ms);
    Ok(())
}

/// Asks each policy about a unit; the diffs of all are taken at once, if any needs one.
fn decide(
    pass: &Pass<'_>,
    policies: &mut [Box<dyn CachePolicy>],
    at: DecisionPoint,
    unit: &Unit,
    shared: &[Option<f32>],
) -> Result<Vec<Decided>> {
    let mut sums: Option<Vec<(f32, f32)>> = None;
    let mut decided = Vec::new();
    let is_one = policies.len() == 1;
    for (sample, policy) in policies.iter_mut().enumerate() {
        let diff = match (policy.gate(at), shared.get(sample).copied().flatten()) {
            (Gate::Decided(decision), _) => {
                decided.push(Decided { decision, diff: None, threshold: None });
                continue;
            }
            (Gate::NeedsDiff, Some(diff)) => diff,
            (Gate::NeedsDiff, None) => {
                let place = if is_one { String::new() } else { format!("sample {sample}, ") };
                let place = format_args!("{place}before blocks {:?}", unit.blocks);
                let sums = match &sums {
                    Some(sums) => sums,
                    None => sums.insert(pass.sums(unit).at(place)?),
                };
                let (change, size) = sums.get(sample).copied().ok_or_else(|| Error::internal("too few diffs"))?;
                relative(change, size).at(place)?
            }
        };
        let threshold = policy.threshold(at);
        decided.push(Decided { decision: policy.judge(at, diff), diff: Some(diff), threshold });
    }
    Ok(decided)
}
