//! How DBPrune decides, one block after the other.

use std::sync::{Arc, Mutex, PoisonError};

use super::super::policy::{Action, Branch, CachePolicy, Decision, DecisionPoint, Gate, Reason};
use super::super::schedule::CacheSchedule;
use super::super::shape::RunShape;
use super::DbPruneConfig;
use crate::error::Result;

/// The diffs of the cond branch in the current step, which set the dynamic threshold of both branches.
#[derive(Clone, Default)]
pub(in crate::cache) struct CondDiffs(Arc<Mutex<StepDiffs>>);

#[derive(Default)]
struct StepDiffs {
    step: usize,
    diffs: Vec<f64>,
}

impl CondDiffs {
    /// A panic elsewhere leaves a list of numbers, which is never half written.
    fn with<T>(&self, change: impl FnOnce(&mut StepDiffs) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, step: usize, diff: f64) {
        self.with(|now| {
            if now.step != step {
                *now = StepDiffs { step, diffs: Vec::new() };
            }
            now.diffs.push(diff);
        });
    }

    /// The mean of the positive ones among the first `limit` diffs of `step`.
    fn mean(&self, step: usize, limit: Option<usize>) -> Option<f64> {
        self.with(|now| {
            let first = now.diffs.iter().take(limit.unwrap_or(usize::MAX));
            let positive: Vec<f64> = first.copied().filter(|&diff| diff > 0.0).collect();
            let is_known = now.step == step && !positive.is_empty();
            is_known.then(|| positive.iter().sum::<f64>() / positive.len() as f64)
        })
    }
}

/// The state of DBPrune in one generation and branch.
pub(in crate::cache) struct DbPrune {
    config: DbPruneConfig,
    schedule: CacheSchedule,
    cond_diffs: CondDiffs,
    /// The step that is being decided, once one was.
    step: Option<usize>,
    /// Earlier steps with a pruned block.
    finished: usize,
    /// Such steps directly before this one.
    run: usize,
    /// Whether a block of this step was pruned.
    is_pruned: bool,
    /// For each block of the model: whether something of it was kept.
    has_buffer: Vec<bool>,
}

impl DbPrune {
    pub(in crate::cache) fn new(config: &DbPruneConfig, run: RunShape, cond_diffs: CondDiffs) -> Result<Self> {
        Ok(Self {
            config: config.clone(),
            schedule: CacheSchedule::new(config.schedule(), run)?,
            cond_diffs,
            step: None,
            finished: 0,
            run: 0,
            is_pruned: false,
            has_buffer: vec![false; run.n_blocks],
        })
    }

    /// Closes the step before, at the first question about a new one.
    fn begin(&mut self, step: usize) {
        if self.step.replace(step) == Some(step) {
            return;
        }
        if std::mem::take(&mut self.is_pruned) {
            self.finished += 1;
            self.run += 1;
        } else {
            self.run = 0;
        }
        if self.schedule.is_refresh(step) {
            (self.finished, self.run) = (0, 0);
            self.has_buffer.fill(false);
        }
    }

    fn dynamic_threshold(&self, step: usize) -> f64 {
        let config = &self.config;
        let r = config.residual_diff_threshold;
        if !config.enable_dynamic_prune_threshold {
            return r;
        }
        let maximum = config.max_dynamic_prune_threshold.unwrap_or(2.0 * r);
        let mean = self.cond_diffs.mean(step, config.dynamic_prune_threshold_diffs);
        let relaxed = mean.map(|mean| mean * config.dynamic_prune_threshold_relax_ratio);
        relaxed.filter(|&relaxed| r < relaxed && relaxed < maximum).unwrap_or(r)
    }

    fn rule(&self, step: usize, block: usize) -> Option<Reason> {
        if let Some(reason) = self.schedule.rule(step) {
            return Some(reason);
        }
        let config = &self.config;
        if config.max_cached_steps.is_some_and(|limit| self.finished + usize::from(self.is_pruned) >= limit) {
            return Some(Reason::MaxCached);
        }
        if config.max_pruned_steps.is_some_and(|limit| self.finished >= limit) {
            return Some(Reason::MaxPruned);
        }
        if config.max_continuous_cached_steps.is_some_and(|limit| self.run >= limit) {
            return Some(Reason::MaxContinuous);
        }
        let threshold = self.dynamic_threshold(step);
        if threshold <= 0.0 {
            return Some(Reason::ThresholdOff);
        }
        if !self.has_buffer.get(block).copied().unwrap_or(false) {
            return Some(Reason::NoBuffer);
        }
        (threshold >= 1.0).then_some(Reason::Always)
    }

    fn decide(&mut self, at: DecisionPoint, reason: Reason) -> Decision {
        let decision = Decision::from(reason);
        match decision.action {
            Action::Skip => self.is_pruned = true,
            Action::Compute => {
                let keeps = self.keeps(at);
                if let Some(has_buffer) = at.block.and_then(|block| self.has_buffer.get_mut(block)) {
                    *has_buffer |= keeps;
                }
            }
        }
        decision
    }
}

impl CachePolicy for DbPrune {
    fn gate(&mut self, at: DecisionPoint) -> Gate {
        self.begin(at.step);
        let Some(block) = at.block else { return Gate::Decided(Reason::PerBlock.into()) };
        let Some(reason) = self.rule(at.step, block) else { return Gate::NeedsDiff };
        if reason == Reason::Always && at.branch == Branch::Cond {
            // What the reference records then takes one of the places of the dynamic threshold's diffs.
            self.cond_diffs.push(at.step, -1.0);
        }
        Gate::Decided(self.decide(at, reason))
    }

    fn judge(&mut self, at: DecisionPoint, diff: f32) -> Decision {
        let diff = f64::from(diff);
        let reason = if diff < self.dynamic_threshold(at.step) { Reason::Below } else { Reason::Above };
        if at.branch == Branch::Cond {
            self.cond_diffs.push(at.step, diff);
        }
        self.decide(at, reason)
    }

    fn threshold(&self, at: DecisionPoint) -> Option<f64> {
        Some(self.dynamic_threshold(at.step))
    }

    fn keeps(&self, at: DecisionPoint) -> bool {
        at.block.is_some() && self.schedule.keeps(at.step)
    }

    fn calibrator_step(&self, at: DecisionPoint) -> usize {
        self.schedule.since_refresh(at.step)
    }
}
