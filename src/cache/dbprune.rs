//! DBPrune: every block decides for itself whether it runs, by how much its input changed.
//!
//! The head, the tail and the blocks in `non_prune_block_ids` always run. Each other block compares its input with the
//! input at its own last kept computation, and if they are alike, what it added then is added again:
//!
//! ```text
//! diff = mean(|p - h|) / mean(|p|)        prune the block if diff < threshold
//! ```

mod state;

pub(super) use self::state::{CondDiffs, DbPrune};
use super::calibrator::{CalibratorCacheType, CalibratorConfig};
use super::checks::{check_positive, check_threshold};
use super::dbcache::{DiffOptions, DiffTensor};
use super::mask::{StepsMask, StepsPolicy};
use super::prospect::{self, MostSkips, SkipLimits};
use super::schedule::{CacheSchedule, KeepRule, RefreshPolicy, ScheduleOptions};
use super::shape::RunShape;
use crate::error::{Error, Result};

/// The options of DBPrune, named as in cache-dit 1.5.3, or 0.1.0 where only that has them. [`Default`] is the preset
/// `prune`, the defaults of cache-dit 0.1.0: F8 B8, threshold 0.08, 8 warm-up steps.
///
/// Rules are asked for each block that may be pruned, in this order; the first that applies decides:
///
/// | rule | decision | reason |
/// | --- | --- | --- |
/// | warm-up, mask | as for DBCache | |
/// | steps with pruned blocks, this one included, `>= max_cached_steps` | compute | `max_cached` |
/// | earlier steps with pruned blocks `>= max_pruned_steps` | compute | `max_pruned` |
/// | such steps directly before this one `>= max_continuous_cached_steps` | compute | `max_continuous` |
/// | threshold is 0 | compute | `threshold_off` |
/// | nothing of this block was kept yet | compute | `no_buffer` |
/// | threshold `>= 1` | skip | `always` |
/// | diff `<` threshold | skip | `below` |
/// | otherwise | compute | `above` |
#[derive(Clone, Debug, PartialEq)]
pub struct DbPruneConfig {
    /// F, the first blocks, which are never pruned; 0 or more.
    pub fn_compute_blocks: usize,
    /// B, the last blocks, which are never pruned; 0 or more.
    pub bn_compute_blocks: usize,
    /// More blocks that are never pruned, counted from the start of the model, in rising order.
    pub non_prune_block_ids: Vec<usize>,
    /// R, the largest diff (exclusive, dimensionless) at which a block is pruned. 0 never prunes; 1 and more always.
    pub residual_diff_threshold: f64,
    /// W: the steps 0 to W-1 are computed. A mask shortens this to its leading ones.
    pub max_warmup_steps: usize,
    /// I: of the warm-up steps only 0, I, 2I, … are computed. 1 = all.
    pub warmup_interval: usize,
    /// M, the number of steps with pruned blocks; on the last of them only the first block that may be pruned is, since
    /// the step then counts already. `None` = no limit.
    pub max_cached_steps: Option<usize>,
    /// The number of steps with pruned blocks; on the last of them all may be pruned. `None` = no limit.
    pub max_pruned_steps: Option<usize>,
    /// MC, the number of steps with pruned blocks in a row. `None` = no limit.
    pub max_continuous_cached_steps: Option<usize>,
    /// Steps that must be computed; `None` = none.
    pub steps_computation_mask: Option<StepsMask>,
    /// What a 0 in the mask means. Static: every block that may be pruned is.
    pub steps_computation_policy: StepsPolicy,
    /// k: the cache is emptied before the k-th call of the model, as for DBCache.
    pub force_refresh_step_hint: Option<usize>,
    /// Whether that happens once or every k calls.
    pub force_refresh_step_policy: RefreshPolicy,
    /// Whether the uncond branch is computed before the cond branch of a step.
    pub cfg_compute_first: bool,
    /// Whether the threshold follows the diffs of the step: with `m` the mean of the
    /// positive ones among the first `dynamic_prune_threshold_diffs` diffs of the cond branch in this step, the
    /// threshold is `relax * m` if that lies between R and the maximum, else R.
    pub enable_dynamic_prune_threshold: bool,
    /// That maximum (exclusive, dimensionless); above it the threshold is R again. `None` = 2 R.
    pub max_dynamic_prune_threshold: Option<f64>,
    /// The factor `relax` (dimensionless).
    pub dynamic_prune_threshold_relax_ratio: f64,
    /// How many diffs count: 5 as in 1.5.3, `None` = all as in 0.1.0.
    pub dynamic_prune_threshold_diffs: Option<usize>,
    /// n: a computed block is kept only on the steps 0, n, 2n, … 1 = on every one.
    pub residual_cache_update_interval: usize,
    /// If set, only tokens count whose own diff is above it; if there are none, all count.
    pub important_condition_threshold: Option<f64>,
    /// f: only every f-th channel (last axis) is kept and compared. 1 = all.
    pub downsample_factor: usize,
    /// Whether a block that joins all streams to one list of tokens is compared by all of them, as in 0.1.0, and not by
    /// the image stream alone, as in 1.5.3.
    pub compare_all_streams: bool,
    /// Whether each of the model's own lists of blocks (in FLUX.1 the double and the single blocks) is decided on by
    /// itself: with a head, a middle and a tail, counters and limits of its own, all by these options, and block numbers
    /// that count from its start. `false`: all blocks are one list.
    pub separate_block_lists: bool,
    /// Forecasts the residuals of pruned blocks, one state for each block and stream; `None` = the last ones are
    /// repeated. It cannot forecast hidden states here: the reference then replaces the text stream by a residual.
    pub calibrator: Option<CalibratorConfig>,
}

impl Default for DbPruneConfig {
    fn default() -> Self {
        Self {
            fn_compute_blocks: 8,
            bn_compute_blocks: 8,
            non_prune_block_ids: Vec::new(),
            residual_diff_threshold: 0.08,
            max_warmup_steps: 8,
            warmup_interval: 1,
            max_cached_steps: None,
            max_pruned_steps: None,
            max_continuous_cached_steps: None,
            steps_computation_mask: None,
            steps_computation_policy: StepsPolicy::Dynamic,
            force_refresh_step_hint: None,
            force_refresh_step_policy: RefreshPolicy::Once,
            cfg_compute_first: false,
            enable_dynamic_prune_threshold: false,
            max_dynamic_prune_threshold: None,
            dynamic_prune_threshold_relax_ratio: 1.25,
            dynamic_prune_threshold_diffs: Some(5),
            residual_cache_update_interval: 1,
            important_condition_threshold: None,
            downsample_factor: 1,
            compare_all_streams: false,
            separate_block_lists: false,
            calibrator: None,
        }
    }
}

impl DbPruneConfig {
    /// The blocks that may be pruned, counted from the start of the model.
    pub(super) fn prunable(&self, n_blocks: usize) -> Vec<usize> {
        let tail = n_blocks.saturating_sub(self.bn_compute_blocks);
        (self.fn_compute_blocks..tail).filter(|id| !self.non_prune_block_ids.contains(id)).collect()
    }

    pub(super) fn block_diff_options(&self) -> DiffOptions {
        DiffOptions {
            tensor: DiffTensor::BlockInput,
            important_condition_threshold: self.important_condition_threshold,
            downsample_factor: self.downsample_factor,
            compare_all_streams: self.compare_all_streams,
        }
    }

    pub(super) fn schedule(&self) -> ScheduleOptions<'_> {
        ScheduleOptions {
            max_warmup_steps: self.max_warmup_steps,
            warmup_interval: self.warmup_interval,
            mask: self.steps_computation_mask.as_ref(),
            mask_policy: self.steps_computation_policy,
            refresh_hint: self.force_refresh_step_hint,
            refresh_policy: self.force_refresh_step_policy,
            keep_rule: KeepRule::Every(self.residual_cache_update_interval.max(1)),
        }
    }

    /// Refuses values that make no sense for any model.
    pub(super) fn check(&self) -> Result<()> {
        check_threshold("residual_diff_threshold", self.residual_diff_threshold)?;
        check_positive("max_dynamic_prune_threshold", self.max_dynamic_prune_threshold)?;
        check_positive("dynamic_prune_threshold_relax_ratio", Some(self.dynamic_prune_threshold_relax_ratio))?;
        check_positive("important_condition_threshold", self.important_condition_threshold)?;
        for (option, value) in [
            ("downsample_factor", self.downsample_factor),
            ("residual_cache_update_interval", self.residual_cache_update_interval),
            ("dynamic_prune_threshold_diffs", self.dynamic_prune_threshold_diffs.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(Error::usage(format!("{option} is 0; use 1 or more")));
            }
        }
        let default = Self::default();
        let of_dynamic = [
            ("max_dynamic_prune_threshold", self.max_dynamic_prune_threshold.is_some()),
            (
                "dynamic_prune_threshold_relax_ratio",
                self.dynamic_prune_threshold_relax_ratio != default.dynamic_prune_threshold_relax_ratio,
            ),
            (
                "dynamic_prune_threshold_diffs",
                self.dynamic_prune_threshold_diffs != default.dynamic_prune_threshold_diffs,
            ),
        ];
        for (option, is_set) in of_dynamic {
            if is_set && !self.enable_dynamic_prune_threshold {
                return Err(Error::usage(format!("{option} has no effect without enable_dynamic_prune_threshold")));
            }
        }
        if !self.non_prune_block_ids.windows(2).all(|pair| pair[0] < pair[1]) {
            return Err(Error::usage(format!(
                "non_prune_block_ids is {:?}, but must list blocks in rising order",
                self.non_prune_block_ids
            )));
        }
        if let Some(calibrator) = &self.calibrator {
            calibrator.check()?;
            if calibrator.calibrator_cache_type == CalibratorCacheType::HiddenStates {
                return Err(Error::usage(
                    "calibrator_cache_type is hidden_states, which DBPrune does not have: it forecasts residuals; use \
                     residual, or DBCache",
                ));
            }
        }
        self.schedule().check()
    }

    /// Refuses what does not fit the model or the run.
    pub(super) fn check_run(&self, run: RunShape) -> Result<()> {
        if let Some(id) = self.non_prune_block_ids.iter().find(|&&id| id >= run.n_blocks) {
            return Err(Error::usage(format!(
                "non_prune_block_ids names block {id}, but the model has the blocks 0 to {}",
                run.n_blocks.saturating_sub(1)
            )));
        }
        if self.prunable(run.n_blocks).is_empty() {
            return Err(Error::usage(format!(
                "no block could ever be pruned: Fn_compute_blocks {}, Bn_compute_blocks {} and non_prune_block_ids keep \
                 all {} blocks; lower them, or use the option `cache=none`",
                self.fn_compute_blocks, self.bn_compute_blocks, run.n_blocks
            )));
        }
        self.schedule().check_run(run)?;
        let (cached, pruned) = (self.max_cached_steps, self.max_pruned_steps);
        let limits = SkipLimits {
            threshold: self.residual_diff_threshold,
            max_steps: cached.into_iter().chain(pruned).min(),
            max_continuous_steps: self.max_continuous_cached_steps,
        };
        prospect::check(self.calibrator.as_ref(), &CacheSchedule::new(self.schedule(), run)?, run.steps, limits)
    }

    /// Options that are set but outranked by others.
    pub(super) fn outranked(&self, run: RunShape) -> Vec<String> {
        let mut found = Vec::new();
        let mut note = |is_set: bool, option: &str, by: &str| {
            if is_set {
                found.push(format!("{option} has no effect: {by}"));
            }
        };
        if !self.schedule().has_static_mask()
            && let Ok(schedule) = CacheSchedule::new(self.schedule(), run)
        {
            let limits =
                [("max_cached_steps", self.max_cached_steps, 1), ("max_pruned_steps", self.max_pruned_steps, 0)];
            let most = MostSkips::of(&schedule, run.steps);
            most.note(&limits, self.max_continuous_cached_steps, &mut note);
        }
        let is_late = self.schedule().is_refresh_late(run);
        note(is_late, "force_refresh_step_hint", "the run is over before so many calls of the model");
        if self.schedule().has_static_mask() {
            let by = "a static steps_computation_mask decides on every step after the warm-up";
            let is_threshold_set = self.residual_diff_threshold != Self::default().residual_diff_threshold;
            note(is_threshold_set, "residual_diff_threshold", by);
            note(self.max_cached_steps.is_some(), "max_cached_steps", by);
            note(self.max_pruned_steps.is_some(), "max_pruned_steps", by);
            note(self.max_continuous_cached_steps.is_some(), "max_continuous_cached_steps", by);
            note(self.enable_dynamic_prune_threshold, "enable_dynamic_prune_threshold", by);
            note(self.important_condition_threshold.is_some(), "important_condition_threshold", by);
            note(self.downsample_factor != 1, "downsample_factor", by);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::PolicyConfig;
    use super::super::policy::{Action, Branch, CachePolicy, DecisionPoint, Gate, Reason};
    use super::*;

    const BLOCKS: usize = 6;

    fn policies(tag: &str, steps: usize, branches: usize) -> Result<Vec<(Branch, Box<dyn CachePolicy>)>> {
        tag.parse::<PolicyConfig>()?.policies(RunShape { n_blocks: BLOCKS, steps, branches })
    }

    /// Decides all blocks of one step with the same diff; a letter for each: `p`runed, `c`omputed.
    fn step(policy: &mut dyn CachePolicy, branch: Branch, step: usize, blocks: &[usize], diff: f32) -> String {
        let at = DecisionPoint { step, steps: 99, branch, block: None };
        assert_eq!(policy.gate(at), Gate::Decided(Reason::PerBlock.into()));
        let decide = |&block: &usize| {
            let at = DecisionPoint { block: Some(block), ..at };
            let decision = match policy.gate(at) {
                Gate::Decided(decision) => decision,
                Gate::NeedsDiff => policy.judge(at, diff),
            };
            if decision.action == Action::Skip { 'p' } else { 'c' }
        };
        blocks.iter().map(decide).collect()
    }

    /// One word for each step; the diffs are those of the steps.
    fn decisions(tag: &str, diffs: &[f32]) -> Result<String> {
        let blocks = tag.parse::<PolicyConfig>()?.single_blocks(BLOCKS);
        let mut policy = policies(tag, diffs.len(), 1)?.remove(0).1;
        let step = |(index, &diff)| step(policy.as_mut(), Branch::Cond, index, &blocks, diff);
        Ok(diffs.iter().enumerate().map(step).collect::<Vec<_>>().join(" "))
    }

    const SMALL: f32 = 0.01;
    const LARGE: f32 = 0.5;

    #[test]
    fn head_tail_and_chosen_blocks_always_run() -> Result<()> {
        let blocks = |tag: &str| Ok::<_, Error>(tag.parse::<PolicyConfig>()?.single_blocks(BLOCKS));
        assert_eq!(blocks("prune_f0b0")?, [0, 1, 2, 3, 4, 5]);
        assert_eq!(blocks("prune_f2b1np0.3")?, [2, 4]);
        assert_eq!(blocks("prune_f4b2")?, [0; 0]);
        assert_eq!(decisions("prune_f2b1w1r0.1np3", &[SMALL, SMALL, LARGE])?, "cc pp cc");
        Ok(())
    }

    #[test]
    fn the_last_cached_step_prunes_one_block_and_the_last_pruned_step_all() -> Result<()> {
        // M counts the present step as soon as one block of it is pruned.
        assert_eq!(decisions("prune_f1b2w1r0.1m2", &[SMALL; 5])?, "ccc ppp pcc ccc ccc");
        assert_eq!(decisions("prune_f1b2w1r0.1mp2", &[SMALL; 5])?, "ccc ppp ppp ccc ccc");
        assert_eq!(decisions("prune_f1b2w1r0.1m0", &[SMALL; 3])?, "ccc ccc ccc");
        Ok(())
    }

    #[test]
    fn a_run_of_pruned_steps_ends_with_a_step_that_computes_all() -> Result<()> {
        assert_eq!(decisions("prune_f1b2w1r0.1mc1", &[SMALL; 5])?, "ccc ppp ccc ppp ccc");
        assert_eq!(decisions("prune_f1b2w1r0.1mc2", &[SMALL; 5])?, "ccc ppp ppp ccc ppp");
        assert_eq!(decisions("prune_f1b2w1r0.1mc2", &[SMALL, SMALL, LARGE, SMALL, SMALL])?, "ccc ppp ccc ppp ppp");
        assert_eq!(decisions("prune_f1b2w1r0.1mc0", &[SMALL; 3])?, "ccc ccc ccc");
        Ok(())
    }

    #[test]
    fn a_refresh_starts_counts_and_buffers_again() -> Result<()> {
        assert_eq!(decisions("prune_f1b2w0r0.1mp1fr3", &[SMALL; 6])?, "ccc ppp ccc ccc ppp ccc");
        assert_eq!(decisions("prune_f1b2w0r0.1mc1fr2:repeat", &[SMALL; 5])?, "ccc ppp ccc ppp ccc");
        Ok(())
    }

    #[test]
    fn thresholds_of_0_and_1_need_no_diff() -> Result<()> {
        assert_eq!(decisions("prune_f1b2w0r0", &[SMALL; 3])?, "ccc ccc ccc");
        assert_eq!(decisions("prune_f1b2w0r1", &[f32::NAN; 3])?, "ccc ppp ppp");
        assert_eq!(decisions("prune_f1b2w0r0.1", &[f32::NAN; 3])?, "ccc ccc ccc");
        Ok(())
    }

    #[test]
    fn blocks_are_kept_every_nth_step() -> Result<()> {
        let mut policy = policies("prune_f1b2w9ui3fr4", 9, 1)?.remove(0).1;
        let mut kept = Vec::new();
        for step in 0..9 {
            let at = DecisionPoint { step, steps: 9, branch: Branch::Cond, block: None };
            policy.gate(at);
            assert!(!policy.keeps(at));
            kept.push(policy.keeps(DecisionPoint { block: Some(1), ..at }));
            assert_eq!(policy.calibrator_step(at), if step < 4 { step } else { step - 4 });
        }
        // The count starts again on step 4.
        assert_eq!(kept, [true, false, false, true, true, false, false, true, false]);
        Ok(())
    }

    /// The threshold for the next block after these diffs on the blocks before it.
    fn threshold(tag: &str, diffs: &[f32]) -> Result<f64> {
        let mut policy = policies(tag, 3, 1)?.remove(0).1;
        step(policy.as_mut(), Branch::Cond, 0, &[0, 1, 2, 3, 4, 5], SMALL);
        let at = DecisionPoint { step: 1, steps: 3, branch: Branch::Cond, block: None };
        policy.gate(at);
        for (block, &diff) in diffs.iter().enumerate() {
            let at = DecisionPoint { block: Some(block), ..at };
            if policy.gate(at) == Gate::NeedsDiff {
                policy.judge(at, diff);
            }
        }
        policy.threshold(at).ok_or_else(|| Error::internal("no threshold"))
    }

    #[test]
    fn the_dynamic_threshold_follows_the_first_diffs_within_its_bounds() -> Result<()> {
        let about = |a: f64, b: f64| assert!((a - b).abs() < 1e-7, "{a} instead of {b}");
        let tag = "prune_f0b0w1r0.1dt1";
        about(threshold(tag, &[])?, 0.1);
        about(threshold(tag, &[0.1, 0.14])?, 0.12 * 1.25);
        // Below R, and from the maximum (2 R) on, it is R: it is not clamped.
        about(threshold(tag, &[0.05])?, 0.1);
        about(threshold(tag, &[0.2])?, 0.1);
        about(threshold("prune_f0b0w1r0.1dt1dm0.3", &[0.2])?, 0.25);
        about(threshold("prune_f0b0w1r0.1dt1dr1.5", &[0.1])?, 0.15);
        // Only positive diffs count, and only the first five of all.
        about(threshold(tag, &[0.0, 0.12])?, 0.15);
        about(threshold(tag, &[0.1, 0.1, 0.1, 0.1, 0.1, 0.9])?, 0.125);
        about(threshold("prune_f0b0w1r0.1dt1dn0dm0.3", &[0.1, 0.1, 0.1, 0.1, 0.1, 0.7])?, 0.25);
        about(threshold("prune_f0b0w1r0.1dt1dn1", &[0.1, 0.15])?, 0.125);
        about(threshold("prune_f0b0w1r0.1", &[0.14])?, 0.1);
        Ok(())
    }

    #[test]
    fn both_branches_follow_the_diffs_of_the_cond_branch() -> Result<()> {
        let mut branches = policies("prune_f0b0w1r0.1dt1", 3, 2)?;
        for (branch, policy) in &mut branches {
            step(policy.as_mut(), *branch, 0, &[0, 1], SMALL);
        }
        assert_eq!(step(branches[0].1.as_mut(), Branch::Cond, 1, &[0, 1], 0.14), "cp");
        // 0.175 from the first block on, where the cond branch had 0.1 at first.
        assert_eq!(step(branches[1].1.as_mut(), Branch::Uncond, 1, &[0, 1], 0.14), "pp");
        // Diffs of the uncond branch do not count.
        let at = DecisionPoint { step: 1, steps: 3, branch: Branch::Cond, block: Some(2) };
        step(branches[1].1.as_mut(), Branch::Uncond, 1, &[2], 0.5);
        assert!(branches[0].1.threshold(at).is_some_and(|threshold| (threshold - 0.175).abs() < 1e-7));
        Ok(())
    }
}
