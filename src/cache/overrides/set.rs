//! Options of the cache policies by name and text, for faces that have no types: a C host, a configuration file.

use std::fmt::Display;
use std::str::FromStr;

use super::PolicyOverrides;
use crate::error::{Error, Result};
use crate::words::problem_of;

impl PolicyOverrides {
    /// Sets the option whose long flag of the command is `flag` (`max-warmup-steps`), from its text. Says whether there
    /// is such an option.
    ///
    /// # Errors
    /// `Usage` for a text that is no value of the option; then nothing is changed.
    pub fn set(&mut self, flag: &str, text: &str) -> Result<bool> {
        let parsed = match flag {
            "fn-compute-blocks" => put(&mut self.fn_compute_blocks, text),
            "bn-compute-blocks" => put(&mut self.bn_compute_blocks, text),
            "residual-diff-threshold" => put(&mut self.residual_diff_threshold, text),
            "max-warmup-steps" => put(&mut self.max_warmup_steps, text),
            "warmup-interval" => put(&mut self.warmup_interval, text),
            "max-cached-steps" => put(&mut self.max_cached_steps, text),
            "max-continuous-cached-steps" => put(&mut self.max_continuous_cached_steps, text),
            "max-accumulated-residual-diff-threshold" => put(&mut self.max_accumulated_residual_diff_threshold, text),
            "steps-computation-mask" => put(&mut self.steps_computation_mask, text),
            "steps-computation-policy" => put(&mut self.steps_computation_policy, text),
            "force-refresh-step-hint" => put(&mut self.force_refresh_step_hint, text),
            "force-refresh-step-policy" => put(&mut self.force_refresh_step_policy, text),
            "cfg-compute-first" => put(&mut self.cfg_compute_first, text),
            "cfg-diff-compute-separate" => put(&mut self.cfg_diff_compute_separate, text),
            "l1-hidden-states-diff-threshold" => put(&mut self.l1_hidden_states_diff_threshold, text),
            "important-condition-threshold" => put(&mut self.important_condition_threshold, text),
            "downsample-factor" => put(&mut self.downsample_factor, text),
            "bn-compute-blocks-ids" => put(&mut self.bn_compute_blocks_ids, text),
            "non-compute-blocks-diff-threshold" => put(&mut self.non_compute_blocks_diff_threshold, text),
            "non-prune-block-ids" => put(&mut self.non_prune_block_ids, text),
            "max-pruned-steps" => put(&mut self.max_pruned_steps, text),
            "enable-dynamic-prune-threshold" => put(&mut self.enable_dynamic_prune_threshold, text),
            "max-dynamic-prune-threshold" => put(&mut self.max_dynamic_prune_threshold, text),
            "dynamic-prune-threshold-relax-ratio" => put(&mut self.dynamic_prune_threshold_relax_ratio, text),
            "dynamic-prune-threshold-diffs" => put(&mut self.dynamic_prune_threshold_diffs, text),
            "residual-cache-update-interval" => put(&mut self.residual_cache_update_interval, text),
            "compare-all-streams" => put(&mut self.compare_all_streams, text),
            "enable-alter-cache" => put(&mut self.enable_alter_cache, text),
            "alter-residual-diff-threshold" => put(&mut self.alter_residual_diff_threshold, text),
            "enable-encoder-residual" => put(&mut self.enable_encoder_residual, text),
            "separate-block-lists" => put(&mut self.separate_block_lists, text),
            "calibrator-type" => put(&mut self.calibrator_type, text),
            "enable-calibrator" => put(&mut self.enable_calibrator, text),
            "enable-encoder-calibrator" => put(&mut self.enable_encoder_calibrator, text),
            "calibrator-cache-type" => put(&mut self.calibrator_cache_type, text),
            "taylorseer-order" => put(&mut self.taylorseer_order, text),
            "taylorseer-first-step" => put(&mut self.taylorseer_first_step, text),
            "dmd-history" => put(&mut self.dmd_history, text),
            "dmd-rank" => put(&mut self.dmd_rank, text),
            "dmd-ridge" => put(&mut self.dmd_ridge, text),
            "dmd-fallback" => put(&mut self.dmd_fallback, text),
            _ => return Ok(false),
        };
        parsed.map(|()| true).map_err(|problem| Error::option(flag, format_args!("is `{text}`: {problem}")))
    }

    /// The long flags of all options, in the order of [`NAMES`](Self::NAMES).
    pub fn flags() -> impl Iterator<Item = String> {
        Self::NAMES.into_iter().map(|name| name.to_ascii_lowercase().replace('_', "-"))
    }
}

fn put<T: FromStr<Err: Display + 'static>>(place: &mut Option<T>, text: &str) -> Result<(), String> {
    *place = Some(text.parse().map_err(|error| problem_of(&error))?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No value of any option.
    const NONSENSE: &str = "?";

    #[test]
    fn every_option_can_be_set_by_its_flag() {
        for flag in PolicyOverrides::flags() {
            let mut overrides = PolicyOverrides::default();
            let refused = overrides.set(&flag, NONSENSE);
            assert!(refused.is_err_and(|error| error.field() == Some(&flag)), "{flag}");
            assert_eq!(overrides, PolicyOverrides::default());
        }
        assert!(!PolicyOverrides::default().set("fn-compute-block", "1").unwrap());
    }
}
