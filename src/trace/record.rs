//! What is recorded of one branch of one step.

use std::ops::Range;

use crate::cache::{Action, Branch, Decision, Reason};
use crate::collective::Exchanged;

/// One decision: what one branch of one step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRecord {
    /// From 0.
    pub step: usize,
    /// Steps of the generation.
    pub steps: usize,
    /// The guidance branch.
    pub branch: Branch,
    /// Which transformer ran, from 0; `None` if the model has one.
    pub expert: Option<usize>,
    /// The list of blocks that was decided on, from 0; `None` if all blocks are one list.
    pub list: Option<usize>,
    /// The picture of the batch that decided, from 0; `None` if the batch decides as one.
    pub sample: Option<usize>,
    /// Noise level of the step, 1 … 0, dimensionless.
    pub sigma: f32,
    /// What was decided, and by which rule.
    pub decision: Decision,
    /// Relative L1 change against the last computed step, dimensionless; `None` if no diff was taken.
    pub diff: Option<f32>,
    /// What the diff was compared with; `None` if no diff was taken.
    pub threshold: Option<f64>,
    /// One for each block that the policy decides on by itself, in their order.
    pub blocks: Vec<BlockRecord>,
    /// Blocks that ran.
    pub blocks_run: usize,
    /// Which they were, counted from the start of the model: in rising order, with a gap between two ranges.
    pub ran: Vec<Range<usize>>,
    /// Runs of ONNX Runtime sessions for this branch (and list of blocks) of the step, with all pictures of the batch:
    /// stages, and small graphs of the cache. Guidance and the scheduler's update come on top, once a step.
    pub session_runs: usize,
    /// Wall time of this branch of the step, with all pictures of the batch.
    pub elapsed_ms: f64,
    /// What this process and the others gave each other meanwhile, for all pictures of the batch; `None` for a process that works alone.
    pub exchanged: Option<Exchanged>,
}

/// One decision about a single block.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockRecord {
    /// Counted from the start of the model.
    pub block: usize,
    /// What was decided, and by which rule.
    pub decision: Decision,
    /// Relative L1 change of the block's input, dimensionless; `None` if no diff was taken.
    pub diff: Option<f32>,
    /// What the diff was compared with.
    pub threshold: Option<f64>,
}

impl StepRecord {
    /// `C` computed, `S` skipped, `P` if single blocks decide and at least one was skipped.
    pub fn letter(&self) -> char {
        // Tail blocks of DBCache are skipped on skipped steps only, so a replay needs to know no more than this.
        let may_be_per_block = matches!(self.decision.reason, Reason::PerBlock | Reason::RecordedCompute);
        if may_be_per_block && self.skipped_blocks().next().is_some() {
            return 'P';
        }
        self.decision.action.letter()
    }

    /// Adds blocks that ran, which come after those that did before.
    pub(crate) fn add_run(&mut self, blocks: Range<usize>) {
        self.blocks_run += blocks.len();
        match self.ran.last_mut() {
            Some(last) if last.end == blocks.start => last.end = blocks.end,
            _ if blocks.is_empty() => {}
            _ => self.ran.push(blocks),
        }
    }

    /// Single blocks that were skipped.
    pub fn skipped_blocks(&self) -> impl Iterator<Item = usize> {
        self.blocks.iter().filter(|record| record.decision.action == Action::Skip).map(|record| record.block)
    }

    /// The diffs of the step: its own, or those of its single blocks.
    pub fn diffs(&self) -> impl Iterator<Item = f32> {
        let of_blocks = if self.decision.reason == Reason::PerBlock { self.blocks.as_slice() } else { &[] };
        self.diff.into_iter().chain(of_blocks.iter().filter_map(|record| record.diff))
    }
}
