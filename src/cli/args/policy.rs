//! The options of the cache policies: one flag for each of [`PolicyOverrides`], spelled as in cache-dit.

use clap::Args;
use dbcache_trt::cache::{
    BlockIds, CalibratorCacheType, CalibratorType, DmdFallback, OrNone, PolicyOverrides, RefreshPolicy, StepsMask,
    StepsPolicy,
};
use dbcache_trt::options::parse_value;

const DBCACHE: &str = "Cache options of DBCache";
const DBPRUNE: &str = "Cache options of DBPrune";
const CALIBRATOR: &str = "Cache options of calibrators";

/// Options of the cache policy, each on top of --cache. Rarely used ones are shown by --help only.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cache options (each overrides a part of --cache)")]
pub struct PolicyArgs {
    /// First blocks that always run
    #[arg(long, value_name = "N", value_parser = parse_value::<usize>)]
    fn_compute_blocks: Option<usize>,
    /// Last blocks that always run
    #[arg(long, value_name = "N", value_parser = parse_value::<usize>)]
    bn_compute_blocks: Option<usize>,
    /// A step (or block) is skipped if its diff is below this
    #[arg(long, value_name = "X", value_parser = parse_value::<f64>)]
    residual_diff_threshold: Option<f64>,
    /// Steps at the start that are computed
    #[arg(long, value_name = "N", value_parser = parse_value::<usize>)]
    max_warmup_steps: Option<usize>,
    /// Of the warm-up steps, compute only each I-th
    #[arg(long, value_name = "I", hide_short_help = true, value_parser = parse_value::<usize>)]
    warmup_interval: Option<usize>,
    /// At most so many skipped steps, or `none`
    #[arg(long, value_name = "N", value_parser = parse_value::<OrNone<usize>>)]
    max_cached_steps: Option<OrNone<usize>>,
    /// At most so many skipped steps in a row, or `none`
    #[arg(long, value_name = "N", value_parser = parse_value::<OrNone<usize>>)]
    max_continuous_cached_steps: Option<OrNone<usize>>,
    /// One digit a step, 1 compute and 0 may skip; or slow, medium, fast, ultra; or `none`
    #[arg(long, value_name = "MASK")]
    steps_computation_mask: Option<OrNone<StepsMask>>,
    /// What a 0 of the mask means: dynamic (the diff decides) or static (skip)
    #[arg(long, value_name = "POLICY")]
    steps_computation_policy: Option<StepsPolicy>,
    /// Start over after so many calls, or `none`
    #[arg(long, value_name = "N", hide_short_help = true, value_parser = parse_value::<OrNone<usize>>)]
    force_refresh_step_hint: Option<OrNone<usize>>,
    /// once or repeat
    #[arg(long, value_name = "POLICY", hide_short_help = true)]
    force_refresh_step_policy: Option<RefreshPolicy>,
    /// Compute the uncond branch before the cond branch
    #[arg(long, value_name = "BOOL", hide_short_help = true)]
    cfg_compute_first: Option<bool>,
    /// Compare only tokens that changed by more than this, or `none`
    #[arg(long, value_name = "X", hide_short_help = true, value_parser = parse_value::<OrNone<f64>>)]
    important_condition_threshold: Option<OrNone<f64>>,
    /// Compare only each f-th channel
    #[arg(long, value_name = "F", hide_short_help = true, value_parser = parse_value::<usize>)]
    downsample_factor: Option<usize>,
    /// No skips once all diffs add up to this, or `none`
    #[arg(long, value_name = "X", help_heading = DBCACHE, hide_short_help = true, value_parser = parse_value::<OrNone<f64>>)]
    max_accumulated_residual_diff_threshold: Option<OrNone<f64>>,
    /// Whether each branch has a diff of its own
    #[arg(long, value_name = "BOOL", help_heading = DBCACHE, hide_short_help = true)]
    cfg_diff_compute_separate: Option<bool>,
    /// Compare the head's output, not its residual, and use this threshold; or `none`
    #[arg(long, value_name = "X", help_heading = DBCACHE, hide_short_help = true, value_parser = parse_value::<OrNone<f64>>)]
    l1_hidden_states_diff_threshold: Option<OrNone<f64>>,
    /// Of the last blocks, those that always run (counted from the first of them, such as 0,2); the others decide for themselves on skipped steps; or `none`
    #[arg(long, value_name = "IDS", help_heading = DBCACHE, hide_short_help = true)]
    bn_compute_blocks_ids: Option<OrNone<BlockIds>>,
    /// The threshold of the last blocks that decide for themselves, or `none`
    #[arg(long, value_name = "X", help_heading = DBCACHE, hide_short_help = true, value_parser = parse_value::<OrNone<f64>>)]
    non_compute_blocks_diff_threshold: Option<OrNone<f64>>,
    /// Skip odd steps only, and keep nothing of even ones
    #[arg(long, value_name = "BOOL", help_heading = DBCACHE, hide_short_help = true)]
    enable_alter_cache: Option<bool>,
    /// The threshold of the alter cache, or `none` to skip every odd step after the first
    #[arg(long, value_name = "X", help_heading = DBCACHE, hide_short_help = true, value_parser = parse_value::<OrNone<f64>>)]
    alter_residual_diff_threshold: Option<OrNone<f64>>,
    /// Whether a skipped step corrects the text stream, too; false: it stays what the first blocks made of it
    #[arg(long, value_name = "BOOL", help_heading = DBCACHE, hide_short_help = true)]
    enable_encoder_residual: Option<bool>,
    /// Decide on each of the model's own lists of blocks by itself, with head, tail and limits of its own
    #[arg(long, value_name = "BOOL", hide_short_help = true)]
    separate_block_lists: Option<bool>,
    /// Blocks that always run, such as 0,2, or `none`
    #[arg(long, value_name = "IDS", help_heading = DBPRUNE)]
    non_prune_block_ids: Option<OrNone<BlockIds>>,
    /// At most so many steps with skipped blocks, or `none`
    #[arg(long, value_name = "N", help_heading = DBPRUNE, value_parser = parse_value::<OrNone<usize>>)]
    max_pruned_steps: Option<OrNone<usize>>,
    /// Let the threshold follow the diffs
    #[arg(long, value_name = "BOOL", help_heading = DBPRUNE, hide_short_help = true)]
    enable_dynamic_prune_threshold: Option<bool>,
    /// The threshold rises no farther than this, or `none` for twice the threshold
    #[arg(long, value_name = "X", help_heading = DBPRUNE, hide_short_help = true, value_parser = parse_value::<OrNone<f64>>)]
    max_dynamic_prune_threshold: Option<OrNone<f64>>,
    /// The mean of the diffs times this is the threshold
    #[arg(long, value_name = "X", help_heading = DBPRUNE, hide_short_help = true, value_parser = parse_value::<f64>)]
    dynamic_prune_threshold_relax_ratio: Option<f64>,
    /// How many diffs of a step the mean is of, or `none` for all
    #[arg(long, value_name = "N", help_heading = DBPRUNE, hide_short_help = true, value_parser = parse_value::<OrNone<usize>>)]
    dynamic_prune_threshold_diffs: Option<OrNone<usize>>,
    /// Keep residuals anew on each I-th step only
    #[arg(long, value_name = "I", help_heading = DBPRUNE, hide_short_help = true, value_parser = parse_value::<usize>)]
    residual_cache_update_interval: Option<usize>,
    /// Compare the text stream, too, where a block joins both
    #[arg(long, value_name = "BOOL", help_heading = DBPRUNE, hide_short_help = true)]
    compare_all_streams: Option<bool>,
    /// What forecasts instead of repeating: taylorseer, foca, dmd, or `none`
    #[arg(long, value_name = "TYPE", help_heading = CALIBRATOR)]
    calibrator_type: Option<OrNone<CalibratorType>>,
    /// Whether the image stream is forecast
    #[arg(long, value_name = "BOOL", help_heading = CALIBRATOR, hide_short_help = true)]
    enable_calibrator: Option<bool>,
    /// Whether the text stream is forecast
    #[arg(long, value_name = "BOOL", help_heading = CALIBRATOR, hide_short_help = true)]
    enable_encoder_calibrator: Option<bool>,
    /// What is forecast: residual or hidden_states
    #[arg(long, value_name = "WHAT", help_heading = CALIBRATOR, hide_short_help = true)]
    calibrator_cache_type: Option<CalibratorCacheType>,
    /// Derivatives that TaylorSeer keeps
    #[arg(long, value_name = "N", help_heading = CALIBRATOR, value_parser = parse_value::<usize>)]
    taylorseer_order: Option<usize>,
    /// The first step on which TaylorSeer forms derivatives: 3, or 2 as in cache-dit 0.1.0
    #[arg(long, value_name = "STEP", help_heading = CALIBRATOR, hide_short_help = true, value_parser = parse_value::<usize>)]
    taylorseer_first_step: Option<usize>,
    /// Computed steps that DMD keeps, at least 4
    #[arg(long, value_name = "N", help_heading = CALIBRATOR, hide_short_help = true, value_parser = parse_value::<usize>)]
    dmd_history: Option<usize>,
    /// Modes that DMD fits; 0: as many as matter
    #[arg(long, value_name = "N", help_heading = CALIBRATOR, hide_short_help = true, value_parser = parse_value::<usize>)]
    dmd_rank: Option<usize>,
    /// Added to DMD's singular values before they are inverted
    #[arg(long, value_name = "X", help_heading = CALIBRATOR, hide_short_help = true, value_parser = parse_value::<f64>)]
    dmd_ridge: Option<f64>,
    /// What DMD does while its history is short: corrected or reference
    #[arg(long, value_name = "RULE", help_heading = CALIBRATOR, hide_short_help = true)]
    dmd_fallback: Option<DmdFallback>,
}

impl PolicyArgs {
    pub fn overrides(&self) -> PolicyOverrides {
        // Without `..`: a new option must get a flag.
        PolicyOverrides {
            fn_compute_blocks: self.fn_compute_blocks,
            bn_compute_blocks: self.bn_compute_blocks,
            residual_diff_threshold: self.residual_diff_threshold,
            max_warmup_steps: self.max_warmup_steps,
            warmup_interval: self.warmup_interval,
            max_cached_steps: self.max_cached_steps,
            max_continuous_cached_steps: self.max_continuous_cached_steps,
            max_accumulated_residual_diff_threshold: self.max_accumulated_residual_diff_threshold,
            steps_computation_mask: self.steps_computation_mask.clone(),
            steps_computation_policy: self.steps_computation_policy,
            force_refresh_step_hint: self.force_refresh_step_hint,
            force_refresh_step_policy: self.force_refresh_step_policy,
            cfg_compute_first: self.cfg_compute_first,
            cfg_diff_compute_separate: self.cfg_diff_compute_separate,
            l1_hidden_states_diff_threshold: self.l1_hidden_states_diff_threshold,
            important_condition_threshold: self.important_condition_threshold,
            downsample_factor: self.downsample_factor,
            bn_compute_blocks_ids: self.bn_compute_blocks_ids.clone(),
            non_compute_blocks_diff_threshold: self.non_compute_blocks_diff_threshold,
            non_prune_block_ids: self.non_prune_block_ids.clone(),
            max_pruned_steps: self.max_pruned_steps,
            enable_dynamic_prune_threshold: self.enable_dynamic_prune_threshold,
            max_dynamic_prune_threshold: self.max_dynamic_prune_threshold,
            dynamic_prune_threshold_relax_ratio: self.dynamic_prune_threshold_relax_ratio,
            dynamic_prune_threshold_diffs: self.dynamic_prune_threshold_diffs,
            residual_cache_update_interval: self.residual_cache_update_interval,
            compare_all_streams: self.compare_all_streams,
            enable_alter_cache: self.enable_alter_cache,
            alter_residual_diff_threshold: self.alter_residual_diff_threshold,
            enable_encoder_residual: self.enable_encoder_residual,
            separate_block_lists: self.separate_block_lists,
            calibrator_type: self.calibrator_type,
            enable_calibrator: self.enable_calibrator,
            enable_encoder_calibrator: self.enable_encoder_calibrator,
            calibrator_cache_type: self.calibrator_cache_type,
            taylorseer_order: self.taylorseer_order,
            taylorseer_first_step: self.taylorseer_first_step,
            dmd_history: self.dmd_history,
            dmd_rank: self.dmd_rank,
            dmd_ridge: self.dmd_ridge,
            dmd_fallback: self.dmd_fallback,
        }
    }
}

/// The flag of a policy's option.
pub fn flag(option: &str) -> String {
    format!("--{}", option.to_lowercase().replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::Cli;

    /// A legal value for each option.
    const VALUES: [(&str, &str); 41] = [
        ("Fn_compute_blocks", "2"),
        ("Bn_compute_blocks", "0"),
        ("residual_diff_threshold", "0.2"),
        ("max_warmup_steps", "3"),
        ("warmup_interval", "2"),
        ("max_cached_steps", "-1"),
        ("max_continuous_cached_steps", "2"),
        ("max_accumulated_residual_diff_threshold", "none"),
        ("steps_computation_mask", "1101"),
        ("steps_computation_policy", "static"),
        ("force_refresh_step_hint", "5"),
        ("force_refresh_step_policy", "repeat"),
        ("cfg_compute_first", "true"),
        ("cfg_diff_compute_separate", "false"),
        ("l1_hidden_states_diff_threshold", "0.3"),
        ("important_condition_threshold", "0"),
        ("downsample_factor", "4"),
        ("Bn_compute_blocks_ids", "0,2"),
        ("non_compute_blocks_diff_threshold", "0.08"),
        ("non_prune_block_ids", "none"),
        ("max_pruned_steps", "6"),
        ("enable_dynamic_prune_threshold", "true"),
        ("max_dynamic_prune_threshold", "0.4"),
        ("dynamic_prune_threshold_relax_ratio", "1.25"),
        ("dynamic_prune_threshold_diffs", "-1"),
        ("residual_cache_update_interval", "2"),
        ("compare_all_streams", "true"),
        ("enable_alter_cache", "true"),
        ("alter_residual_diff_threshold", "0.5"),
        ("enable_encoder_residual", "false"),
        ("separate_block_lists", "true"),
        ("calibrator_type", "taylorseer"),
        ("enable_calibrator", "false"),
        ("enable_encoder_calibrator", "false"),
        ("calibrator_cache_type", "hidden_states"),
        ("taylorseer_order", "2"),
        ("taylorseer_first_step", "2"),
        ("dmd_history", "5"),
        ("dmd_rank", "3"),
        ("dmd_ridge", "0.1"),
        ("dmd_fallback", "reference"),
    ];

    #[test]
    fn every_option_has_a_flag_that_reaches_it() -> anyhow::Result<()> {
        assert_eq!(VALUES.map(|(name, _)| name), PolicyOverrides::NAMES);
        for (name, value) in VALUES {
            let cli = Cli::try_parse_from(["dbcache-trt", "--engine", "x", &flag(name), value]);
            assert_eq!(cli?.generate.policy.overrides().given(), [name], "{name}");
        }
        Ok(())
    }

    #[test]
    fn a_replay_takes_no_policy() {
        let parse = |arguments: &[&str]| {
            let always = ["dbcache-trt", "--engine", "x", "--replay", "trace.json"];
            Cli::try_parse_from(always.iter().chain(arguments)).map_err(|error| error.to_string())
        };
        assert!(parse(&[]).is_ok());
        assert!(parse(&["--cache", "none"]).is_err_and(|error| error.contains("--cache")));
    }
}
