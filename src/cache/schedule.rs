//! The rules that DBCache and DBPrune share and that look at the step alone: warm-up, mask, refresh, and on which steps
//! something is kept.

use super::mask::{StepsMask, StepsPolicy};
use super::policy::Reason;
use super::shape::RunShape;
use crate::error::{Error, Result};
use crate::words::words;

/// How often `force_refresh_step_hint` empties the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RefreshPolicy {
    /// Once in a generation.
    #[default]
    Once,
    /// Again and again, each time after so many calls.
    Repeat,
}

words!(RefreshPolicy, "force_refresh_step_policy", { Once = "once", Repeat = "repeat" });

/// The options of these rules, as both configs have them.
#[derive(Clone, Copy)]
pub(super) struct ScheduleOptions<'a> {
    pub max_warmup_steps: usize,
    pub warmup_interval: usize,
    pub mask: Option<&'a StepsMask>,
    pub mask_policy: StepsPolicy,
    pub refresh_hint: Option<usize>,
    pub refresh_policy: RefreshPolicy,
    pub keep_rule: KeepRule,
}

/// On which of the computed steps something is kept, counted from the last refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeepRule {
    /// On the steps 0, n, 2n, …
    Every(usize),
    /// On odd steps, and only they may be skipped.
    Odd,
}

impl ScheduleOptions<'_> {
    pub(super) fn has_static_mask(&self) -> bool {
        self.mask.is_some() && self.mask_policy == StepsPolicy::Static
    }

    /// Refuses values that make no sense for any model and run.
    pub(super) fn check(&self) -> Result<()> {
        if self.warmup_interval == 0 {
            return refuse("warmup_interval is 0; use 1 to compute every warm-up step, or max_warmup_steps 0 for none");
        }
        match self.refresh_hint {
            Some(0) => return refuse("force_refresh_step_hint is 0, but the cache is empty then; use 1 or more"),
            None if self.refresh_policy == RefreshPolicy::Repeat => {
                return refuse(
                    "force_refresh_step_policy is repeat, but there is no force_refresh_step_hint; give one",
                );
            }
            _ => {}
        }
        match self.mask {
            None if self.mask_policy == StepsPolicy::Static => {
                refuse("steps_computation_policy is static, but there is no steps_computation_mask; give one")
            }
            Some(StepsMask::Steps(mask)) if mask.is_empty() => {
                refuse("steps_computation_mask is empty; leave it out, or write one digit for each step")
            }
            Some(StepsMask::Steps(mask)) if self.has_static_mask() && mask.first() == Some(&false) => refuse(
                "a static steps_computation_mask starts with 0, but nothing is computed yet that step 0 could reuse; \
                 start it with 1",
            ),
            _ => Ok(()),
        }
    }

    /// Refuses what does not fit the steps and branches of a run.
    pub(super) fn check_run(&self, run: RunShape) -> Result<()> {
        if let Some(hint) = self.refresh_hint
            && !hint.is_multiple_of(run.branches)
        {
            return Err(Error::usage(format!(
                "force_refresh_step_hint is {hint}, but counts calls of the model, and each step has {}: it would part \
                 the branches of a step; use an even number",
                run.branches
            )));
        }
        self.mask.map_or(Ok(()), |mask| mask.resolve(run.steps).map(drop))
    }

    /// Whether the refresh would come after the last step.
    pub(super) fn is_refresh_late(&self, run: RunShape) -> bool {
        self.refresh_hint.is_some_and(|hint| hint / run.branches.max(1) >= run.steps)
    }
}

fn refuse(message: &str) -> Result<()> {
    Err(Error::usage(message))
}

/// The rules, ready for one run.
pub(super) struct CacheSchedule {
    warmup_steps: usize,
    warmup_interval: usize,
    mask: Option<Vec<bool>>,
    mask_policy: StepsPolicy,
    /// After how many steps everything starts again.
    refresh_after: Option<usize>,
    refresh_policy: RefreshPolicy,
    keep_rule: KeepRule,
    /// The step at which it last did; steps of the warm-up and of the mask count from there.
    start: usize,
}

impl CacheSchedule {
    pub(super) fn new(options: ScheduleOptions<'_>, run: RunShape) -> Result<Self> {
        let mask = options.mask.map(|mask| mask.resolve(run.steps)).transpose()?;
        let leading_ones = mask.as_ref().map(|mask| mask.iter().take_while(|&&compute| compute).count());
        Ok(Self {
            warmup_steps: options.max_warmup_steps.min(leading_ones.unwrap_or(usize::MAX)),
            warmup_interval: options.warmup_interval,
            mask,
            mask_policy: options.mask_policy,
            refresh_after: options.refresh_hint.map(|calls| calls / run.branches.max(1)),
            refresh_policy: options.refresh_policy,
            keep_rule: options.keep_rule,
            start: 0,
        })
    }

    /// Whether the cache is to be emptied before this step. Ask once a step.
    pub(super) fn is_refresh(&mut self, step: usize) -> bool {
        let is_due = self.refresh_after.is_some_and(|after| step.checked_sub(self.start) == Some(after));
        if is_due {
            self.start = step;
            if self.refresh_policy == RefreshPolicy::Once {
                self.refresh_after = None;
            }
        }
        is_due
    }

    /// Steps since the last refresh.
    pub(super) fn since_refresh(&self, step: usize) -> usize {
        step.saturating_sub(self.start)
    }

    /// The rule that decides this step, if one does.
    pub(super) fn rule(&self, step: usize) -> Option<Reason> {
        let step = self.since_refresh(step);
        if step < self.warmup_steps && step.is_multiple_of(self.warmup_interval) {
            return Some(Reason::Warmup);
        }
        match self.mask.as_ref().map(|mask| mask.get(step).copied().unwrap_or(false)) {
            Some(true) => Some(Reason::MaskCompute),
            Some(false) if self.mask_policy == StepsPolicy::Static => Some(Reason::MaskStatic),
            _ if self.keep_rule == KeepRule::Odd && step.is_multiple_of(2) => Some(Reason::AlterStep),
            _ => None,
        }
    }

    /// Whether what this step computes is kept.
    pub(super) fn keeps(&self, step: usize) -> bool {
        let step = self.since_refresh(step);
        match self.keep_rule {
            KeepRule::Every(interval) => step.is_multiple_of(interval),
            KeepRule::Odd => !step.is_multiple_of(2),
        }
    }

    /// The most steps that lie between two refreshes, or a refresh and an end, in a run of `steps` steps.
    pub(super) fn longest_stretch(&self, steps: usize) -> usize {
        match (self.refresh_after, self.refresh_policy) {
            (Some(after), RefreshPolicy::Once) if after < steps => after.max(steps - after),
            (Some(after), RefreshPolicy::Repeat) => after.min(steps),
            _ => steps,
        }
    }
}
