//! What a policy is asked and what it answers: scalars in, a decision with its reason out.
//!
//! For every step and branch the step loop calls [`CachePolicy::gate`]. Most answers are final, and cost nothing;
//! [`Gate::NeedsDiff`] makes the loop compare the head's residual with the last computed one, and hand the number to
//! [`CachePolicy::judge`]. A policy sees no tensors, clocks or files, so a recorded run can be decided again.

use crate::words::words;

/// Decides whether blocks run. One object per request and branch: there is no `reset`, so nothing can leak into the
/// next request. The loop must carry out what it is told, since a policy counts its own decisions as done.
pub trait CachePolicy: Send {
    /// Decides without a diff, or asks for one. Called once per step, in the order of the steps, with no block: whether
    /// the middle blocks run. Then once for each block of
    /// [`single_blocks`](super::PolicyConfig::single_blocks) that is about to run, in their order.
    fn gate(&mut self, at: DecisionPoint) -> Gate;

    /// Decides by the diff that [`Gate::NeedsDiff`] asked for (dimensionless; NaN and infinity mean `Compute`).
    fn judge(&mut self, at: DecisionPoint, diff: f32) -> Decision;

    /// What `judge` compares a diff with at this point (dimensionless); `None` where nothing is ever compared.
    fn threshold(&self, at: DecisionPoint) -> Option<f64>;

    /// Whether what was computed at this point is to be kept, for later diffs and to be reused. Ask after the decision
    /// to compute.
    fn keeps(&self, _at: DecisionPoint) -> bool {
        true
    }

    /// The step to hand to the [`Calibrator`](super::Calibrator)s at this point: it counts from the last refresh. Where
    /// it is 0, they begin anew: put fresh ones in their place before the first `put` of this step.
    fn calibrator_step(&self, at: DecisionPoint) -> usize {
        at.step
    }
}

/// Where in a generation a decision is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DecisionPoint {
    /// The denoising step, from 0.
    pub step: usize,
    /// How many steps the generation has.
    pub steps: usize,
    /// The guidance branch.
    pub branch: Branch,
    /// The block, for policies that decide per block; `None` for those that decide per step.
    pub block: Option<usize>,
}

/// A classifier-free-guidance branch of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Branch {
    /// With the prompt; the only branch of a model without classifier-free guidance.
    Cond,
    /// With the negative or empty prompt.
    Uncond,
}

words!(Branch, "branch", { Cond = "cond", Uncond = "uncond" });

/// The first answer of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Decided without a diff: the step pays no device synchronisation.
    Decided(Decision),
    /// The diff decides: compute it and call [`CachePolicy::judge`].
    NeedsDiff,
}

/// What to do, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// The rule that decided.
    pub reason: Reason,
}

impl From<Reason> for Decision {
    fn from(reason: Reason) -> Self {
        Self { action: reason.action(), reason }
    }
}

/// Whether the blocks in question run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// They run, and their residual is kept.
    Compute,
    /// They do not run: their kept residual is added instead.
    Skip,
}

impl Action {
    /// `C` or `S`, as in the decision string of a trace.
    pub fn letter(self) -> char {
        match self {
            Self::Compute => 'C',
            Self::Skip => 'S',
        }
    }
}

/// The rule that decided. Each belongs to one [`Action`]; its name is what traces show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// `no_cache`: the policy is to compute every step.
    None,
    /// `per_block`: the policy decides on each block alone, so the step as a whole is computed.
    PerBlock,
    /// `warmup`: an early step that must be computed (`max_warmup_steps`, `warmup_interval`).
    Warmup,
    /// `mask_compute`: the steps mask says 1.
    MaskCompute,
    /// `mask_static`: the steps mask says 0 and its policy is static.
    MaskStatic,
    /// `max_cached`: `max_cached_steps` is used up.
    MaxCached,
    /// `max_pruned`: `max_pruned_steps` is used up.
    MaxPruned,
    /// `max_continuous`: the run of skipped steps is as long as `max_continuous_cached_steps` allows.
    MaxContinuous,
    /// `max_accumulated`: the diffs so far add up to `max_accumulated_residual_diff_threshold` or more.
    MaxAccumulated,
    /// `alter_step`: an even step of `enable_alter_cache`.
    AlterStep,
    /// `threshold_off`: the threshold is 0, so no step is ever skipped.
    ThresholdOff,
    /// `no_buffer`: nothing was computed yet that could be reused.
    NoBuffer,
    /// `always`: the threshold is 1 or more, so the step is skipped without a diff (the reference records -1).
    Always,
    /// `below`: the diff is below the threshold.
    Below,
    /// `above`: the diff is not below the threshold, or not a number.
    Above,
    /// `recorded_compute`: a replayed run computed here.
    RecordedCompute,
    /// `recorded_skip`: a replayed run skipped here.
    RecordedSkip,
}

words!(Reason, "reason", { None = "no_cache", PerBlock = "per_block", Warmup = "warmup", MaskCompute = "mask_compute", MaskStatic = "mask_static", MaxCached = "max_cached", MaxPruned = "max_pruned", MaxContinuous = "max_continuous", MaxAccumulated = "max_accumulated", AlterStep = "alter_step", ThresholdOff = "threshold_off", NoBuffer = "no_buffer", Always = "always", Below = "below", Above = "above", RecordedCompute = "recorded_compute", RecordedSkip = "recorded_skip" });

impl Reason {
    /// What this rule makes the loop do.
    pub fn action(self) -> Action {
        match self {
            Self::MaskStatic | Self::Always | Self::Below | Self::RecordedSkip => Action::Skip,
            Self::None
            | Self::PerBlock
            | Self::Warmup
            | Self::MaskCompute
            | Self::MaxCached
            | Self::MaxPruned
            | Self::MaxContinuous
            | Self::MaxAccumulated
            | Self::AlterStep
            | Self::ThresholdOff
            | Self::NoBuffer
            | Self::Above
            | Self::RecordedCompute => Action::Compute,
        }
    }
}

/// The policy `none`: computes everything, which is what others are measured against.
pub(super) struct ComputeAll;

impl CachePolicy for ComputeAll {
    fn gate(&mut self, _at: DecisionPoint) -> Gate {
        Gate::Decided(Reason::None.into())
    }

    fn judge(&mut self, _at: DecisionPoint, _diff: f32) -> Decision {
        Reason::None.into()
    }

    fn threshold(&self, _at: DecisionPoint) -> Option<f64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() -> crate::error::Result<()> {
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse::<Reason>()?, reason);
        }
        for branch in Branch::ALL {
            assert_eq!(branch.as_str().parse::<Branch>()?, branch);
        }
        assert!("beneath".parse::<Reason>().is_err_and(|error| error.to_string().contains("unknown reason `beneath`")));
        Ok(())
    }

    #[test]
    fn none_computes_everything_without_a_diff() {
        let at = DecisionPoint { step: 3, steps: 4, branch: Branch::Cond, block: None };
        assert_eq!(ComputeAll.gate(at), Gate::Decided(Reason::None.into()));
        assert_eq!(ComputeAll.judge(at, 0.0).action, Action::Compute);
    }
}
