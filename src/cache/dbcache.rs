//! DBCache: the head's residual says whether the middle blocks need to run. FBCache is its F1 B0.
//!
//! The first `Fn_compute_blocks` blocks (the head) run on every step. What they add to the image stream, the head
//! residual `r`, is compared with that of the last *computed* step of the same branch, `p`:
//!
//! ```text
//! diff = mean(|p - r|) / mean(|p|)        skip the middle if diff < residual_diff_threshold
//! ```
//!
//! A skipped middle is replaced by its residual of the last computed step; the last `Bn_compute_blocks` blocks (the
//! tail) run on every step, on the corrected streams. This file holds the options and the order in which they decide,
//! `state.rs` decides; [`DiffOptions`] tells the loop which tensors to compare.

mod state;

pub(super) use self::state::DbCache;
use super::calibrator::CalibratorConfig;
use super::checks::{check_positive, check_threshold};
use super::mask::{StepsMask, StepsPolicy};
use super::prospect::{self, MostSkips, SkipLimits};
use super::schedule::{CacheSchedule, KeepRule, RefreshPolicy, ScheduleOptions};
use super::shape::RunShape;
use crate::error::{Error, Result};

/// The options of DBCache, named as in cache-dit 1.5.3. [`Default`] is the preset `dbcache`, the defaults of
/// cache-dit 0.1.0: F8 B8, threshold 0.12, 8 warm-up steps, no limits.
///
/// Rules are asked in this order, and the first that applies decides; `s` is the step, counted from 0, and everything
/// that is counted is counted for each branch alone, and from the last refresh:
///
/// | rule | decision | reason |
/// | --- | --- | --- |
/// | `s < max_warmup_steps` and `s` is a multiple of `warmup_interval` | compute | `warmup` |
/// | mask digit `s` is 1 | compute | `mask_compute` |
/// | mask digit `s` is 0, and the mask's policy is static | skip | `mask_static` |
/// | `s` is even, with `enable_alter_cache` | compute | `alter_step` |
/// | skipped steps `>= max_cached_steps` | compute | `max_cached` |
/// | skipped steps directly before this one `>= max_continuous_cached_steps` | compute | `max_continuous` |
/// | sum of the positive diffs `>= max_accumulated_residual_diff_threshold` | compute | `max_accumulated` |
/// | threshold is 0 | compute | `threshold_off` |
/// | nothing was computed yet | compute | `no_buffer` |
/// | threshold `>= 1` | skip | `always` |
/// | diff `<` threshold | skip | `below` |
/// | otherwise | compute | `above` |
#[derive(Clone, Debug, PartialEq)]
pub struct DbCacheConfig {
    /// F, how many blocks the head has; at least 1. They run on every step, and their residual is compared.
    pub fn_compute_blocks: usize,
    /// B, how many blocks the tail has. They run on every step, on what the skipped middle left.
    pub bn_compute_blocks: usize,
    /// If set, the tail blocks, counted from the start of the tail, that run on every step; the others run on a skipped
    /// step only if their own input changed, see `non_compute_blocks_diff_threshold`. `None` = all run.
    pub bn_compute_blocks_ids: Option<Vec<usize>>,
    /// The largest diff (exclusive, dimensionless) of the input of a tail block that is not in
    /// `bn_compute_blocks_ids` at which its kept residual is added instead of running it. 0 = that of the step.
    /// `None` = 0.08, the default of cache-dit 0.1.0.
    pub non_compute_blocks_diff_threshold: Option<f64>,
    /// R, the largest diff (exclusive, dimensionless) at which a step is skipped. 0 never skips; 1 and more always
    /// skips, without a diff.
    pub residual_diff_threshold: f64,
    /// W: the steps 0 to W-1 are computed. A mask shortens this to its leading ones.
    pub max_warmup_steps: usize,
    /// I: of the warm-up steps only 0, I, 2I, … are computed; the rules below decide on the others. 1 = all.
    pub warmup_interval: usize,
    /// M, how many steps may be skipped in a generation; 0 = none, `None` = any number.
    pub max_cached_steps: Option<usize>,
    /// MC, how many steps may be skipped in a row; 0 = none, `None` = any number.
    pub max_continuous_cached_steps: Option<usize>,
    /// A: once the diffs of this generation add up to so much, nothing is skipped any more. The diffs of all compared
    /// steps count, of computed and skipped ones. `None` = no limit.
    pub max_accumulated_residual_diff_threshold: Option<f64>,
    /// Steps that must be computed; `None` = none.
    pub steps_computation_mask: Option<StepsMask>,
    /// What a 0 in the mask means.
    pub steps_computation_policy: StepsPolicy,
    /// k: the cache is emptied before the k-th call of the model (from 0): warm-up, mask, limits and sums start again,
    /// nothing kept is reused. With two guidance branches a step has two calls, so k must be even and means step k/2.
    pub force_refresh_step_hint: Option<usize>,
    /// Whether that happens once or every k calls.
    pub force_refresh_step_policy: RefreshPolicy,
    /// Whether the uncond branch is computed before the cond branch of a step.
    pub cfg_compute_first: bool,
    /// Whether the uncond branch has a diff of its own. `false`: it reuses the diff that the cond branch recorded for
    /// the same step, where there is one.
    pub cfg_diff_compute_separate: bool,
    /// If set, it replaces the threshold R, and what is compared is the image stream after the head rather than the
    /// head residual. 0 never skips.
    pub l1_hidden_states_diff_threshold: Option<f64>,
    /// If set, only tokens count whose own diff is above it; if there are none, all count.
    pub important_condition_threshold: Option<f64>,
    /// f: only every f-th channel (last axis) is kept and compared. 1 = all.
    pub downsample_factor: usize,
    /// Whether only odd steps may be skipped, and nothing is kept of even ones: what is compared and reused is always
    /// of an odd step. The reference keeps both in two sets of buffers; the even set never changes a decision.
    pub enable_alter_cache: bool,
    /// The threshold that then replaces all others; `None` = 1, so that odd steps are always skipped once one was
    /// computed, and what they reuse is never renewed.
    pub alter_residual_diff_threshold: Option<f64>,
    /// Whether a skipped middle corrects the text stream, too. `false`: there it stays what the head made of it, and
    /// nothing is kept of it, as FBCache of 0.1.0 does with TaylorSeer.
    pub enable_encoder_residual: bool,
    /// Whether each of the model's own lists of blocks (in FLUX.1 the double and the single blocks) is decided on by
    /// itself: with a head, a middle and a tail, counters and limits of its own, all by these options, and block numbers
    /// that count from its start. `false`: all blocks are one list.
    pub separate_block_lists: bool,
    /// Forecasts the residuals of the middle on skipped steps; `None` = the last ones are repeated.
    pub calibrator: Option<CalibratorConfig>,
}

impl Default for DbCacheConfig {
    fn default() -> Self {
        Self {
            fn_compute_blocks: 8,
            bn_compute_blocks: 8,
            bn_compute_blocks_ids: None,
            non_compute_blocks_diff_threshold: None,
            residual_diff_threshold: 0.12,
            max_warmup_steps: 8,
            warmup_interval: 1,
            max_cached_steps: None,
            max_continuous_cached_steps: None,
            max_accumulated_residual_diff_threshold: None,
            steps_computation_mask: None,
            steps_computation_policy: StepsPolicy::Dynamic,
            force_refresh_step_hint: None,
            force_refresh_step_policy: RefreshPolicy::Once,
            cfg_compute_first: false,
            cfg_diff_compute_separate: true,
            l1_hidden_states_diff_threshold: None,
            important_condition_threshold: None,
            downsample_factor: 1,
            enable_alter_cache: false,
            alter_residual_diff_threshold: None,
            enable_encoder_residual: true,
            separate_block_lists: false,
            calibrator: None,
        }
    }
}

/// What the loop compares when a policy asks for a diff.
///
/// `p` is what was kept on the last computed step of the branch, `r` the same tensor now, both
/// `[batch, image tokens, channels]`; a mean is over all elements of the whole batch:
///
/// ```text
/// diff = mean(|p - r|) / mean(|p|)
/// ```
///
/// The loop keeps `r` on computed steps only. Text streams are never compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiffOptions {
    /// Which tensor.
    pub tensor: DiffTensor,
    /// If set: for each token `t = mean over channels |p - r| / mean over channels |p|`; both means of the diff then
    /// run over the tokens with `t` above this, unless there are none.
    pub important_condition_threshold: Option<f64>,
    /// Keep and compare only the channels 0, f, 2f, … (last axis), before anything else.
    pub downsample_factor: usize,
    /// Whether a block that joins all streams to one list of tokens is compared by all of them, not by the image stream
    /// alone.
    pub compare_all_streams: bool,
}

/// The tensor that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiffTensor {
    /// The image stream after the head minus the image stream before it.
    HeadResidual,
    /// The image stream after the head.
    HeadOutput,
    /// The image stream before a block that the policy decides on.
    BlockInput,
}

impl DbCacheConfig {
    /// The preset `fb`, FBCache with the defaults of cache-dit 0.1.0: F1 B0, threshold 0.08, 8 warm-up steps, at most
    /// 8 skipped steps.
    pub fn fb() -> Self {
        Self {
            fn_compute_blocks: 1,
            bn_compute_blocks: 0,
            residual_diff_threshold: 0.08,
            max_cached_steps: Some(8),
            ..Self::default()
        }
    }

    /// The preset `cache-dit`, DBCache with the defaults of cache-dit 1.5.3: F8 B0, threshold 0.08, 8 warm-up steps.
    pub fn cache_dit() -> Self {
        Self { bn_compute_blocks: 0, residual_diff_threshold: 0.08, ..Self::default() }
    }

    /// What diffs are compared with: `alter_residual_diff_threshold` with `enable_alter_cache`, else
    /// `l1_hidden_states_diff_threshold` if set, else `residual_diff_threshold`.
    pub fn threshold(&self) -> f64 {
        if self.enable_alter_cache {
            return self.alter_residual_diff_threshold.unwrap_or(1.0);
        }
        self.l1_hidden_states_diff_threshold.unwrap_or(self.residual_diff_threshold)
    }

    /// What diffs of tail blocks are compared with.
    fn block_threshold(&self) -> f64 {
        match self.non_compute_blocks_diff_threshold.unwrap_or(0.08) {
            0.0 => self.threshold(),
            threshold => threshold,
        }
    }

    /// What to compare for tail blocks: all channels, as in the reference.
    pub(super) fn block_diff_options(&self) -> DiffOptions {
        DiffOptions {
            tensor: DiffTensor::BlockInput,
            downsample_factor: 1,
            compare_all_streams: true,
            ..self.diff_options()
        }
    }

    /// What to compare.
    pub fn diff_options(&self) -> DiffOptions {
        let on_output = self.l1_hidden_states_diff_threshold.is_some_and(|threshold| threshold > 0.0);
        DiffOptions {
            tensor: if on_output { DiffTensor::HeadOutput } else { DiffTensor::HeadResidual },
            important_condition_threshold: self.important_condition_threshold,
            downsample_factor: self.downsample_factor,
            compare_all_streams: false,
        }
    }

    /// Whether the uncond branch is judged by the diff of the cond branch. It cannot be where uncond comes first.
    pub fn shares_cond_diff(&self) -> bool {
        !self.cfg_diff_compute_separate && !self.cfg_compute_first
    }

    /// The tail blocks, counted from the start of the model, that a skipped step need not run.
    pub(super) fn skippable_tail(&self, n_blocks: usize) -> Vec<usize> {
        let Some(ids) = &self.bn_compute_blocks_ids else { return Vec::new() };
        let start = n_blocks.saturating_sub(self.bn_compute_blocks);
        (0..self.bn_compute_blocks.min(n_blocks)).filter(|id| !ids.contains(id)).map(|id| start + id).collect()
    }

    pub(super) fn schedule(&self) -> ScheduleOptions<'_> {
        ScheduleOptions {
            max_warmup_steps: self.max_warmup_steps,
            warmup_interval: self.warmup_interval,
            mask: self.steps_computation_mask.as_ref(),
            mask_policy: self.steps_computation_policy,
            refresh_hint: self.force_refresh_step_hint,
            refresh_policy: self.force_refresh_step_policy,
            keep_rule: if self.enable_alter_cache { KeepRule::Odd } else { KeepRule::Every(1) },
        }
    }

    /// Refuses values that make no sense for any model.
    pub(super) fn check(&self) -> Result<()> {
        if self.fn_compute_blocks == 0 {
            return refuse("Fn_compute_blocks is 0, but the diff needs at least one head block; use 1 or more");
        }
        check_threshold("residual_diff_threshold", self.residual_diff_threshold)?;
        if let Some(threshold) = self.l1_hidden_states_diff_threshold {
            check_threshold("l1_hidden_states_diff_threshold", threshold)?;
        }
        check_positive("max_accumulated_residual_diff_threshold", self.max_accumulated_residual_diff_threshold)?;
        check_positive("important_condition_threshold", self.important_condition_threshold)?;
        if self.downsample_factor == 0 {
            return refuse("downsample_factor is 0; use 1 to compare every channel");
        }
        if self.non_compute_blocks_diff_threshold.is_some() && self.bn_compute_blocks_ids.is_none() {
            return refuse(
                "non_compute_blocks_diff_threshold has no effect without Bn_compute_blocks_ids; give both or none",
            );
        }
        if let Some(threshold) = self.non_compute_blocks_diff_threshold {
            check_threshold("non_compute_blocks_diff_threshold", threshold)?;
        }
        if let Some(ids) = &self.bn_compute_blocks_ids {
            let b = self.bn_compute_blocks;
            let is_rising = ids.windows(2).all(|pair| pair[0] < pair[1]);
            if !is_rising || ids.last().is_none_or(|&last| last >= b) {
                return Err(Error::usage(format!(
                    "Bn_compute_blocks_ids is {ids:?}, but must list some of the tail's blocks 0 to {} in rising order; \
                     leave it out to compute all of them",
                    b.saturating_sub(1)
                )));
            }
        }
        if let Some(threshold) = self.alter_residual_diff_threshold {
            if !self.enable_alter_cache {
                return refuse("alter_residual_diff_threshold has no effect without enable_alter_cache");
            }
            check_threshold("alter_residual_diff_threshold", threshold)?;
        }
        if self.enable_alter_cache && self.steps_computation_mask.is_some() {
            return refuse(
                "enable_alter_cache and steps_computation_mask both say which steps may be skipped; remove one",
            );
        }
        if let Some(calibrator) = &self.calibrator {
            calibrator.check()?;
            if calibrator.enable_encoder_calibrator && !self.enable_encoder_residual {
                return refuse(
                    "enable_encoder_calibrator has no effect: enable_encoder_residual is false, so nothing is kept of \
                     the text; set one of them the other way",
                );
            }
        }
        self.schedule().check()
    }

    /// Refuses what does not fit the steps and branches of a run.
    pub(super) fn check_run(&self, run: RunShape) -> Result<()> {
        self.schedule().check_run(run)?;
        let limits = SkipLimits {
            threshold: self.threshold(),
            max_steps: self.max_cached_steps,
            max_continuous_steps: self.max_continuous_cached_steps,
        };
        prospect::check(self.calibrator.as_ref(), &CacheSchedule::new(self.schedule(), run)?, run.steps, limits)
    }

    /// Options that are set but outranked by others, so that changing them would change nothing. The reference accepts
    /// them, so they are no errors.
    pub(super) fn outranked(&self, run: RunShape) -> Vec<String> {
        let default = Self::default();
        let mut found = Vec::new();
        let mut note = |is_set: bool, option: &str, by: &str| {
            if is_set {
                found.push(format!("{option} has no effect: {by}"));
            }
        };
        let of_presets = [Self::default(), Self::fb(), Self::cache_dit()].map(|preset| preset.residual_diff_threshold);
        let is_threshold_set = !of_presets.contains(&self.residual_diff_threshold);
        if self.enable_alter_cache {
            let by = "enable_alter_cache goes by alter_residual_diff_threshold";
            note(is_threshold_set, "residual_diff_threshold", by);
        } else if self.l1_hidden_states_diff_threshold.is_some() {
            let by = "l1_hidden_states_diff_threshold replaces it";
            note(is_threshold_set, "residual_diff_threshold", by);
        } else if self.schedule().has_static_mask() {
            let by = "a static steps_computation_mask decides on every step after the warm-up";
            note(is_threshold_set, "residual_diff_threshold", by);
        }
        if !self.schedule().has_static_mask()
            && let Ok(schedule) = CacheSchedule::new(self.schedule(), run)
        {
            let most = MostSkips::of(&schedule, run.steps);
            let max_cached_steps =
                self.max_cached_steps.filter(|_| self.max_cached_steps != Self::fb().max_cached_steps);
            // On the last step that may be skipped the whole tail runs.
            let spare = usize::from(self.bn_compute_blocks_ids.is_some());
            let in_a_row = self.max_continuous_cached_steps.filter(|_| !self.enable_alter_cache);
            most.note(&[("max_cached_steps", max_cached_steps, spare)], in_a_row, &mut note);
        }
        let is_late = self.schedule().is_refresh_late(run);
        note(is_late, "force_refresh_step_hint", "the run is over before so many calls of the model");
        if self.enable_alter_cache {
            let is_set = self.max_continuous_cached_steps.is_some_and(|limit| limit > 0);
            note(is_set, "max_continuous_cached_steps", "enable_alter_cache never skips two steps in a row");
        }
        if self.schedule().has_static_mask() {
            let by = "a static steps_computation_mask decides on every step after the warm-up";
            note(self.max_cached_steps.is_some(), "max_cached_steps", by);
            note(self.max_continuous_cached_steps.is_some(), "max_continuous_cached_steps", by);
            let accumulated = self.max_accumulated_residual_diff_threshold.is_some();
            note(accumulated, "max_accumulated_residual_diff_threshold", by);
            note(self.l1_hidden_states_diff_threshold.is_some(), "l1_hidden_states_diff_threshold", by);
            note(self.important_condition_threshold.is_some(), "important_condition_threshold", by);
            note(self.downsample_factor != default.downsample_factor, "downsample_factor", by);
            note(!self.cfg_diff_compute_separate, "cfg_diff_compute_separate", by);
        } else if self.cfg_compute_first {
            let by = "cfg_compute_first computes the uncond branch before there is a cond diff to share";
            note(!self.cfg_diff_compute_separate, "cfg_diff_compute_separate", by);
        }
        found
    }
}

fn refuse(message: &str) -> Result<()> {
    Err(Error::usage(message))
}

#[cfg(test)]
mod tests {
    use super::super::{Branch, DecisionPoint, Gate, PolicyConfig, Reason};
    use super::*;

    /// Decides one step for each diff, `None` where the policy is not to ask for one. Returns the reasons.
    fn reasons(tag: &str, diffs: &[Option<f32>]) -> Result<Vec<Reason>> {
        let steps = diffs.len();
        let mut policy =
            tag.parse::<PolicyConfig>()?.policies(RunShape { n_blocks: 12, steps, branches: 1 })?.remove(0).1;
        let decide = |(step, diff): (usize, &Option<f32>)| {
            let at = DecisionPoint { step, steps, branch: Branch::Cond, block: None };
            match (policy.gate(at), diff) {
                (Gate::Decided(decision), None) => decision.reason,
                (Gate::NeedsDiff, Some(diff)) => policy.judge(at, *diff).reason,
                (gate, diff) => unreachable!("{tag}, step {step}: {gate:?} with {diff:?}"),
            }
        };
        Ok(diffs.iter().enumerate().map(decide).collect())
    }

    const NO: Option<f32> = None;

    #[test]
    fn gates_are_asked_in_order() -> Result<()> {
        use Reason::*;
        let all = [NO; 6];
        assert_eq!(
            reasons("f1b0w2r0", &all)?,
            [Warmup, Warmup, ThresholdOff, ThresholdOff, ThresholdOff, ThresholdOff]
        );
        assert_eq!(reasons("f1b0w1r0m0_scm:110111", &all)?[1..3], [MaskCompute, MaxCached]);
        assert_eq!(reasons("f1b0w1r1m0mc0", &all)?[1..3], [MaxCached, MaxCached]);
        assert_eq!(reasons("f1b0w1r1mc0", &all)?[1..3], [MaxContinuous, MaxContinuous]);
        assert_eq!(reasons("f1b0w0r1", &all)?[..3], [NoBuffer, Always, Always]);
        assert_eq!(reasons("f1b0w0r0", &all)?[0], ThresholdOff);
        assert_eq!(reasons("f1b0w9r0m0_scm:110001:static", &all)?[1..3], [Warmup, MaskStatic]);
        Ok(())
    }

    #[test]
    fn limits_count_skips_and_runs() -> Result<()> {
        use Reason::*;
        let below = Some(0.01);
        assert_eq!(
            reasons("f1b0w1r0.1mc2m3", &[NO, below, below, NO, below, NO, NO])?,
            [Warmup, Below, Below, MaxContinuous, Below, MaxCached, MaxCached]
        );
        Ok(())
    }

    #[test]
    fn accumulated_diffs_count_misses_and_never_fall() -> Result<()> {
        use Reason::*;
        let (large, small) = (Some(0.5), Some(0.0625));
        assert_eq!(
            reasons("f1b0w1r0.1a0.625", &[NO, large, small, small, NO, NO])?,
            [Warmup, Above, Below, Below, MaxAccumulated, MaxAccumulated]
        );
        // The reference adds only what is greater than 0, so NaN computes the step and spoils nothing.
        assert_eq!(
            reasons("f1b0w1r0.1a0.625", &[NO, Some(f32::NAN), small, Some(f32::INFINITY), NO])?,
            [Warmup, Above, Below, Above, MaxAccumulated]
        );
        Ok(())
    }

    #[test]
    fn the_threshold_is_exclusive_and_compared_in_f64() -> Result<()> {
        // 0.1_f32 is above 0.1_f64, and 0.7_f32 is below 0.7_f64.
        assert_eq!(reasons("f1b0w1r0.1", &[NO, Some(0.1)])?[1], Reason::Above);
        assert_eq!(reasons("f1b0w1r0.7", &[NO, Some(0.7)])?[1], Reason::Below);
        assert_eq!(reasons("f1b0w1r0.5", &[NO, Some(0.5)])?[1], Reason::Above);
        Ok(())
    }

    #[test]
    fn a_mask_shortens_the_warm_up_and_keeps_its_interval() -> Result<()> {
        use Reason::*;
        let small = Some(0.01);
        assert_eq!(
            reasons("f1b0w9i2r0.1_scm:111101", &[NO, NO, NO, NO, small, NO])?,
            [Warmup, MaskCompute, Warmup, MaskCompute, Below, MaskCompute]
        );
        assert_eq!(reasons("f1b0w4i3r0.1", &[NO, small, small, NO, small])?, [Warmup, Below, Below, Warmup, Below]);
        Ok(())
    }

    #[test]
    fn a_refresh_starts_everything_again() -> Result<()> {
        use Reason::*;
        let small = Some(0.01);
        assert_eq!(
            reasons("f1b0w1r0.1m1fr3", &[NO, small, NO, NO, small, NO, NO, NO])?,
            [Warmup, Below, MaxCached, Warmup, Below, MaxCached, MaxCached, MaxCached]
        );
        assert_eq!(
            reasons("f1b0w0r0.1mc1a0.015fr3:repeat", &[NO, small, NO, NO, small, NO, NO, small])?,
            [NoBuffer, Below, MaxContinuous, NoBuffer, Below, MaxContinuous, NoBuffer, Below]
        );
        assert_eq!(
            reasons("f1b0w0r0.1fr3_scm:10010:static", &[NO; 5])?,
            [MaskCompute, MaskStatic, MaskStatic, MaskCompute, MaskStatic]
        );
        Ok(())
    }

    #[test]
    fn a_refresh_counts_calls() -> Result<()> {
        let config = PolicyConfig::from_tag("f1b0w0r1fr4")?;
        let run = RunShape { n_blocks: 12, steps: 6, branches: 2 };
        let mut policy = config.policies(run)?.remove(1).1;
        let reasons =
            (0..6).map(|step| policy.gate(DecisionPoint { step, steps: 6, branch: Branch::Uncond, block: None }));
        let refreshed: Vec<usize> = reasons
            .enumerate()
            .filter_map(|(step, gate)| (gate == Gate::Decided(Reason::NoBuffer.into())).then_some(step))
            .collect();
        assert_eq!(refreshed, [0, 2]);
        let refused = PolicyConfig::from_tag("f1b0fr3")?.validate(run);
        assert!(refused.is_err_and(|error| error.to_string().contains("use an even number")));
        Ok(())
    }

    #[test]
    fn l1_replaces_the_threshold_and_the_tensor() -> Result<()> {
        assert_eq!(reasons("f1b0w1r0.1l0.3", &[NO, Some(0.2)])?[1], Reason::Below);
        assert_eq!(reasons("f1b0w1r0.1l0", &[NO, NO])?[1], Reason::ThresholdOff);
        let config = DbCacheConfig { l1_hidden_states_diff_threshold: Some(0.3), ..Default::default() };
        assert_eq!(config.diff_options().tensor, DiffTensor::HeadOutput);
        let config = DbCacheConfig { l1_hidden_states_diff_threshold: Some(0.0), ..Default::default() };
        assert_eq!(config.diff_options().tensor, DiffTensor::HeadResidual);
        Ok(())
    }

    #[test]
    fn impossible_values_are_refused_with_a_remedy() {
        let cases = [
            ("f0", "needs at least one head block; use 1 or more"),
            ("i0", "warmup_interval is 0; use 1"),
            ("ds0", "downsample_factor is 0; use 1"),
            ("a0", "max_accumulated_residual_diff_threshold is 0; use a positive number, or leave it out"),
            ("f1_scm:011:static", "starts with 0"),
            ("fr0", "force_refresh_step_hint is 0"),
        ];
        for (tag, words) in cases {
            let error = PolicyConfig::from_tag(tag).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(words), "{tag}: `{error}`");
        }
        for value in [-0.1, -0.0, f64::NAN, f64::INFINITY] {
            let config = DbCacheConfig { residual_diff_threshold: value, ..Default::default() };
            assert!(config.check().is_err(), "{value}");
            let config = DbCacheConfig { l1_hidden_states_diff_threshold: Some(value), ..Default::default() };
            assert!(config.check().is_err(), "{value}");
            let config = DbCacheConfig { important_condition_threshold: Some(value), ..Default::default() };
            assert!(config.check().is_err(), "{value}");
        }
        let config = DbCacheConfig { steps_computation_policy: StepsPolicy::Static, ..Default::default() };
        assert!(config.check().is_err());
        let config = DbCacheConfig { steps_computation_mask: Some(StepsMask::Steps(vec![])), ..Default::default() };
        assert!(config.check().is_err());
    }

    #[test]
    fn a_tail_has_no_more_blocks_than_the_model() {
        let config = |blocks| DbCacheConfig {
            bn_compute_blocks: blocks,
            bn_compute_blocks_ids: Some([0].into()),
            ..DbCacheConfig::default()
        };
        assert_eq!(config(3).skippable_tail(12), [10, 11]);
        assert_eq!(config(usize::MAX).skippable_tail(3), [1, 2]);
    }
}
