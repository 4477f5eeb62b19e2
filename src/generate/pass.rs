//! The blocks of one list, in one branch of one step: what always runs, and what the policy decides on.

use super::branch::ListState;
use super::chain::Chain;
use super::request::Clock;
use super::unit::Unit;
use crate::cache::{Action, CachePolicy, DecisionPoint, Gate, Reason};
use crate::cancel::CancelToken;
use crate::error::{At, Error, Result};
use crate::request::lists::{List, Part};
use crate::runtime::tensor::Buffers;
use crate::trace::{BlockRecord, StepRecord, Timings};

/// One branch of one step, as all its lists of blocks see it.
pub(super) struct Pass<'a> {
    /// The step as one of its transformer's.
    pub at: DecisionPoint,
    /// The step as one of the generation's, and how many these are.
    pub of_run: (usize, usize),
    /// Which transformer runs it, where the model has several.
    pub expert: Option<usize>,
    pub sigma: f32,
    pub chain: &'a Chain,
    pub cancel: &'a CancelToken,
}

impl Pass<'_> {
    /// A record without what is decided.
    pub(super) fn record(&self, list: &List) -> StepRecord {
        let (step, steps) = self.of_run;
        StepRecord {
            step,
            steps,
            branch: self.at.branch,
            expert: self.expert,
            list: list.index,
            sample: None,
            sigma: self.sigma,
            decision: Reason::None.into(),
            diff: None,
            threshold: None,
            blocks: Vec::new(),
            blocks_run: 0,
            ran: Vec::new(),
            session_runs: 0,
            elapsed_ms: 0.0,
        }
    }
}

/// The blocks of one list, in one branch of one step.
pub(super) fn run_list(
    pass: &Pass<'_>,
    list: &List,
    own: &mut ListState,
    shared_diff: Option<f32>,
    buffers: &mut Buffers,
    (timings, clock): (&mut Timings, &mut Clock),
) -> Result<StepRecord> {
    let Pass { at, chain, cancel, .. } = *pass;
    let ListState { policy, units, .. } = own;
    let mut record = pass.record(list);
    // Without a middle the step as a whole decides nothing, but is still asked once.
    if !list.parts.iter().any(|part| matches!(part, Part::Unit { block: None, .. }))
        && let Gate::Decided(decision) = policy.gate(at)
    {
        record.decision = decision;
    }
    let mut units = units.iter_mut();
    for part in &list.parts {
        let (block, unit) = match part {
            Part::Run(blocks) => {
                chain.run(blocks.clone(), cancel, buffers)?;
                record.add_run(blocks.clone());
                timings.blocks_ms += clock.lap();
                continue;
            }
            Part::Unit { block, .. } => (*block, units.next().ok_or_else(|| Error::internal("a branch lacks a unit"))?),
        };
        let at = DecisionPoint { block, ..at };
        let decided = decide(policy.as_mut(), at, unit, shared_diff.filter(|_| block.is_none()), buffers)?;
        match decided.decision.action {
            Action::Compute => {
                let keeps = policy.keeps(at);
                if keeps {
                    unit.keep_compared(chain, buffers)?;
                }
                timings.cache_ms += clock.lap();
                chain.run(unit.blocks.clone(), cancel, buffers)?;
                record.add_run(unit.blocks.clone());
                timings.blocks_ms += clock.lap();
                if keeps {
                    unit.keep(policy.calibrator_step(at), &list.cache, buffers)?;
                }
            }
            Action::Skip => unit.apply(policy.calibrator_step(at), chain, buffers)?,
        }
        timings.cache_ms += clock.lap();
        match block {
            Some(_) => record.blocks.push(decided),
            None => {
                let BlockRecord { decision, diff, threshold, .. } = decided;
                (record.decision, record.diff, record.threshold) = (decision, diff, threshold);
            }
        }
    }
    Ok(record)
}

/// Asks the policy about a unit, with a diff if it needs one.
fn decide(
    policy: &mut dyn CachePolicy,
    at: DecisionPoint,
    unit: &Unit,
    shared_diff: Option<f32>,
    buffers: &Buffers,
) -> Result<BlockRecord> {
    let block = unit.blocks.start;
    match policy.gate(at) {
        Gate::Decided(decision) => Ok(BlockRecord { block, decision, diff: None, threshold: None }),
        Gate::NeedsDiff => {
            let diff = match shared_diff {
                Some(diff) => diff,
                None => unit.diff(buffers).at(format_args!("before blocks {:?}", unit.blocks))?,
            };
            let threshold = policy.threshold(at);
            let decision = policy.judge(at, diff);
            Ok(BlockRecord { block, decision, diff: Some(diff), threshold })
        }
    }
}
