//! Printing the canonical tag.

use std::fmt;

use super::super::calibrator::{CalibratorCacheType, CalibratorConfig, CalibratorKind, DmdFallback, FIRST_STEP};
use super::super::dbcache::{DbCacheConfig, RefreshPolicy};
use super::super::dbprune::DbPruneConfig;
use super::super::mask::{StepsMask, StepsPolicy};
use super::PolicyConfig;

/// The canonical tag: limits that are unset and options of their default value are left out, except F, B, W, I and R.
/// A replay prints the tag of the recorded policy in brackets, which does not parse: it needs its recording.
impl fmt::Display for PolicyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::DbCache(config) => print_cache(config, f),
            Self::DbPrune(config) => print_prune(config, f),
            Self::Replay { config, .. } => write!(f, "replay({config})"),
        }
    }
}

fn optional(out: &mut fmt::Formatter<'_>, name: &str, value: Option<impl fmt::Display>) -> fmt::Result {
    value.map_or(Ok(()), |value| write!(out, "{name}{value}"))
}

fn list(ids: &[usize]) -> String {
    ids.iter().map(usize::to_string).collect::<Vec<_>>().join(".")
}

fn print_cache(config: &DbCacheConfig, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    // Without `..`: a new option must be printed here, or the tag would not parse back to the same value.
    let DbCacheConfig {
        fn_compute_blocks,
        bn_compute_blocks,
        bn_compute_blocks_ids,
        non_compute_blocks_diff_threshold,
        residual_diff_threshold,
        max_warmup_steps,
        warmup_interval,
        max_cached_steps,
        max_continuous_cached_steps,
        max_accumulated_residual_diff_threshold,
        steps_computation_mask,
        steps_computation_policy,
        force_refresh_step_hint,
        force_refresh_step_policy,
        cfg_compute_first,
        cfg_diff_compute_separate,
        l1_hidden_states_diff_threshold,
        important_condition_threshold,
        downsample_factor,
        enable_alter_cache,
        alter_residual_diff_threshold,
        enable_encoder_residual,
        separate_block_lists,
        calibrator,
    } = config;
    write!(out, "f{fn_compute_blocks}b{bn_compute_blocks}w{max_warmup_steps}i{warmup_interval}")?;
    write!(out, "r{residual_diff_threshold}")?;
    optional(out, "m", *max_cached_steps)?;
    optional(out, "mc", *max_continuous_cached_steps)?;
    optional(out, "a", *max_accumulated_residual_diff_threshold)?;
    optional(out, "l", *l1_hidden_states_diff_threshold)?;
    optional(out, "ic", *important_condition_threshold)?;
    optional(out, "ds", Some(downsample_factor).filter(|&&factor| factor != 1))?;
    optional(out, "cf", cfg_compute_first.then_some(1))?;
    optional(out, "cds", (!cfg_diff_compute_separate).then_some(0))?;
    optional(out, "al", enable_alter_cache.then_some(1))?;
    optional(out, "at", *alter_residual_diff_threshold)?;
    optional(out, "er", (!enable_encoder_residual).then_some(0))?;
    optional(out, "sl", separate_block_lists.then_some(1))?;
    optional(out, "_id", bn_compute_blocks_ids.as_deref().map(list))?;
    optional(out, "nt", *non_compute_blocks_diff_threshold)?;
    print_refresh(*force_refresh_step_hint, *force_refresh_step_policy, out)?;
    print_mask(steps_computation_mask.as_ref(), *steps_computation_policy, out)?;
    calibrator.as_ref().map_or(Ok(()), |calibrator| print_calibrator(calibrator, out))
}

fn print_prune(config: &DbPruneConfig, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    // Without `..`, as above.
    let DbPruneConfig {
        fn_compute_blocks,
        bn_compute_blocks,
        non_prune_block_ids,
        residual_diff_threshold,
        max_warmup_steps,
        warmup_interval,
        max_cached_steps,
        max_pruned_steps,
        max_continuous_cached_steps,
        steps_computation_mask,
        steps_computation_policy,
        force_refresh_step_hint,
        force_refresh_step_policy,
        cfg_compute_first,
        enable_dynamic_prune_threshold,
        max_dynamic_prune_threshold,
        dynamic_prune_threshold_relax_ratio,
        dynamic_prune_threshold_diffs,
        residual_cache_update_interval,
        important_condition_threshold,
        downsample_factor,
        compare_all_streams,
        separate_block_lists,
        calibrator,
    } = config;
    write!(out, "prune_f{fn_compute_blocks}b{bn_compute_blocks}w{max_warmup_steps}i{warmup_interval}")?;
    write!(out, "r{residual_diff_threshold}")?;
    optional(out, "m", *max_cached_steps)?;
    optional(out, "mp", *max_pruned_steps)?;
    optional(out, "mc", *max_continuous_cached_steps)?;
    optional(out, "ic", *important_condition_threshold)?;
    optional(out, "ds", Some(downsample_factor).filter(|&&factor| factor != 1))?;
    optional(out, "as", compare_all_streams.then_some(1))?;
    optional(out, "sl", separate_block_lists.then_some(1))?;
    optional(out, "cf", cfg_compute_first.then_some(1))?;
    optional(out, "ui", Some(residual_cache_update_interval).filter(|&&interval| interval != 1))?;
    optional(out, "dt", enable_dynamic_prune_threshold.then_some(1))?;
    optional(out, "dm", *max_dynamic_prune_threshold)?;
    optional(out, "dr", Some(dynamic_prune_threshold_relax_ratio).filter(|&&ratio| ratio != 1.25))?;
    let diffs = dynamic_prune_threshold_diffs.unwrap_or(0);
    optional(out, "dn", Some(diffs).filter(|&diffs| diffs != 5))?;
    optional(out, "_np", Some(list(non_prune_block_ids)).filter(|list| !list.is_empty()))?;
    print_refresh(*force_refresh_step_hint, *force_refresh_step_policy, out)?;
    print_mask(steps_computation_mask.as_ref(), *steps_computation_policy, out)?;
    calibrator.as_ref().map_or(Ok(()), |calibrator| print_calibrator(calibrator, out))
}

fn print_calibrator(config: &CalibratorConfig, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let CalibratorConfig { kind, enable_calibrator, enable_encoder_calibrator, calibrator_cache_type } = config;
    match kind {
        CalibratorKind::TaylorSeer { taylorseer_order, taylorseer_first_step } => {
            write!(out, "_t{taylorseer_order}")?;
            optional(out, "_tf", Some(taylorseer_first_step).filter(|&&step| step != FIRST_STEP))?;
        }
        CalibratorKind::FoCa => out.write_str("_foca")?,
        CalibratorKind::Dmd { dmd_history, dmd_fallback, .. } => {
            write!(out, "_dmd{dmd_history}")?;
            optional(out, ":", Some(dmd_fallback).filter(|&&fallback| fallback != DmdFallback::Corrected))?;
        }
    }
    optional(out, "_ch", (!enable_calibrator).then_some(0))?;
    optional(out, "_ce", (!enable_encoder_calibrator).then_some(0))?;
    optional(out, "_hs", (*calibrator_cache_type == CalibratorCacheType::HiddenStates).then_some(1))?;
    if let CalibratorKind::Dmd { dmd_rank, dmd_ridge, .. } = kind {
        optional(out, "_dk", Some(dmd_rank).filter(|&&rank| rank != 0))?;
        optional(out, "_dg", Some(dmd_ridge).filter(|&&ridge| ridge != 1e-8))?;
    }
    Ok(())
}

fn print_refresh(hint: Option<usize>, policy: RefreshPolicy, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Some(calls) = hint else { return Ok(()) };
    write!(out, "_fr{calls}")?;
    optional(out, ":", Some(policy).filter(|&policy| policy != RefreshPolicy::Once))
}

fn print_mask(mask: Option<&StepsMask>, policy: StepsPolicy, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Some(mask) = mask else { return Ok(()) };
    write!(out, "_scm:{mask}")?;
    optional(out, ":", Some(policy).filter(|&policy| policy != StepsPolicy::Dynamic))
}
