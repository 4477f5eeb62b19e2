//! DBCache at work: counts what it decided, and asks its rules in their order.

use super::super::policy::{Action, CachePolicy, Decision, DecisionPoint, Gate, Reason};
use super::super::schedule::CacheSchedule;
use super::super::shape::RunShape;
use super::DbCacheConfig;
use crate::error::Result;

/// The state of DBCache in one generation and branch.
pub(in crate::cache) struct DbCache {
    threshold: f64,
    block_threshold: f64,
    max_cached_steps: Option<usize>,
    max_continuous_cached_steps: Option<usize>,
    max_accumulated: Option<f64>,
    schedule: CacheSchedule,
    /// Steps skipped so far.
    cached: usize,
    /// Steps skipped since the last computed one.
    run: usize,
    /// Sum of all positive diffs so far. It never falls.
    accumulated: f64,
    /// Whether a step was computed, so that there is something to compare with and to reuse.
    has_buffer: bool,
    /// What decided this step.
    last: Reason,
}

impl DbCache {
    pub(in crate::cache) fn new(config: &DbCacheConfig, run: RunShape) -> Result<Self> {
        Ok(Self {
            threshold: config.threshold(),
            block_threshold: config.block_threshold(),
            max_cached_steps: config.max_cached_steps,
            max_continuous_cached_steps: config.max_continuous_cached_steps,
            max_accumulated: config.max_accumulated_residual_diff_threshold,
            schedule: CacheSchedule::new(config.schedule(), run)?,
            cached: 0,
            run: 0,
            accumulated: 0.0,
            has_buffer: false,
            last: Reason::NoBuffer,
        })
    }

    /// The rules that need no diff, in the order of the table of [`DbCacheConfig`].
    fn rule(&self, step: usize) -> Option<Reason> {
        if let Some(reason) = self.schedule.rule(step) {
            return Some(reason);
        }
        if self.max_cached_steps.is_some_and(|limit| self.cached >= limit) {
            return Some(Reason::MaxCached);
        }
        if self.max_continuous_cached_steps.is_some_and(|limit| self.run >= limit) {
            return Some(Reason::MaxContinuous);
        }
        if self.max_accumulated.is_some_and(|limit| self.accumulated >= limit) {
            return Some(Reason::MaxAccumulated);
        }
        if self.threshold <= 0.0 {
            return Some(Reason::ThresholdOff);
        }
        if !self.has_buffer {
            return Some(Reason::NoBuffer);
        }
        (self.threshold >= 1.0).then_some(Reason::Always)
    }

    /// The rules for a tail block. A skipped step is counted already, so on the last step that may be skipped the whole
    /// tail runs.
    fn block_rule(&self) -> Option<Reason> {
        if self.last.action() == Action::Compute {
            return Some(self.last);
        }
        if self.max_cached_steps.is_some_and(|limit| self.cached >= limit) {
            return Some(Reason::MaxCached);
        }
        if self.block_threshold <= 0.0 {
            return Some(Reason::ThresholdOff);
        }
        (self.block_threshold >= 1.0).then_some(Reason::Always)
    }

    fn decide(&mut self, step: usize, reason: Reason) -> Decision {
        let decision = Decision::from(reason);
        self.last = reason;
        match decision.action {
            Action::Compute => {
                self.run = 0;
                self.has_buffer |= self.schedule.keeps(step);
            }
            Action::Skip => {
                self.run += 1;
                self.cached += 1;
            }
        }
        decision
    }
}

impl CachePolicy for DbCache {
    fn gate(&mut self, at: DecisionPoint) -> Gate {
        if at.block.is_some() {
            return self.block_rule().map_or(Gate::NeedsDiff, |reason| Gate::Decided(reason.into()));
        }
        // The tensors that were kept need no clearing: without a buffer nothing asks for them until a computed step has
        // replaced them.
        if self.schedule.is_refresh(at.step) {
            (self.cached, self.run, self.accumulated, self.has_buffer) = (0, 0, 0.0, false);
        }
        match self.rule(at.step) {
            Some(reason) => Gate::Decided(self.decide(at.step, reason)),
            None => Gate::NeedsDiff,
        }
    }

    fn judge(&mut self, at: DecisionPoint, diff: f32) -> Decision {
        let diff = f64::from(diff);
        if at.block.is_some() {
            return if diff < self.block_threshold { Reason::Below } else { Reason::Above }.into();
        }
        // Not `accumulated += max(diff, 0)`: NaN must not spoil the sum.
        if diff > 0.0 {
            self.accumulated += diff;
        }
        self.decide(at.step, if diff < self.threshold { Reason::Below } else { Reason::Above })
    }

    fn threshold(&self, at: DecisionPoint) -> Option<f64> {
        Some(if at.block.is_some() { self.block_threshold } else { self.threshold })
    }

    fn keeps(&self, at: DecisionPoint) -> bool {
        // A tail block that runs on a skipped step is not kept.
        self.last.action() == Action::Compute && self.schedule.keeps(at.step)
    }

    fn calibrator_step(&self, at: DecisionPoint) -> usize {
        self.schedule.since_refresh(at.step)
    }
}
