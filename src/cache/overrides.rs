//! Options that are set one by one: the flags of the command, the tokens of a tag, the keys of a JSON object.

mod set;

use std::fmt;
use std::str::FromStr;

use super::calibrator::{CalibratorCacheType, CalibratorConfig, CalibratorKind, CalibratorType, DmdFallback};
use super::dbcache::{DbCacheConfig, RefreshPolicy};
use super::dbprune::DbPruneConfig;
use super::mask::{StepsMask, StepsPolicy};
use crate::error::{Error, Result};
use crate::words::problem_of;

/// Options to set on top of a [`PolicyConfig`](super::PolicyConfig); `None` leaves an option as it is. The fields are
/// explained at [`DbCacheConfig`] and [`DbPruneConfig`].
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "each field is the option of the same name of DbCacheConfig or DbPruneConfig")]
pub struct PolicyOverrides {
    pub fn_compute_blocks: Option<usize>,
    pub bn_compute_blocks: Option<usize>,
    pub residual_diff_threshold: Option<f64>,
    pub max_warmup_steps: Option<usize>,
    pub warmup_interval: Option<usize>,
    pub max_cached_steps: Option<OrNone<usize>>,
    pub max_continuous_cached_steps: Option<OrNone<usize>>,
    pub max_accumulated_residual_diff_threshold: Option<OrNone<f64>>,
    pub steps_computation_mask: Option<OrNone<StepsMask>>,
    pub steps_computation_policy: Option<StepsPolicy>,
    pub force_refresh_step_hint: Option<OrNone<usize>>,
    pub force_refresh_step_policy: Option<RefreshPolicy>,
    pub cfg_compute_first: Option<bool>,
    pub cfg_diff_compute_separate: Option<bool>,
    pub l1_hidden_states_diff_threshold: Option<OrNone<f64>>,
    /// 0 means `none`, as in the reference.
    pub important_condition_threshold: Option<OrNone<f64>>,
    pub downsample_factor: Option<usize>,
    pub bn_compute_blocks_ids: Option<OrNone<BlockIds>>,
    pub non_compute_blocks_diff_threshold: Option<OrNone<f64>>,
    pub non_prune_block_ids: Option<OrNone<BlockIds>>,
    pub max_pruned_steps: Option<OrNone<usize>>,
    pub enable_dynamic_prune_threshold: Option<bool>,
    pub max_dynamic_prune_threshold: Option<OrNone<f64>>,
    pub dynamic_prune_threshold_relax_ratio: Option<f64>,
    pub dynamic_prune_threshold_diffs: Option<OrNone<usize>>,
    pub residual_cache_update_interval: Option<usize>,
    pub compare_all_streams: Option<bool>,
    pub enable_alter_cache: Option<bool>,
    pub alter_residual_diff_threshold: Option<OrNone<f64>>,
    pub enable_encoder_residual: Option<bool>,
    pub separate_block_lists: Option<bool>,
    /// `none` = no calibrator. The options below need one; they are explained at [`CalibratorConfig`].
    pub calibrator_type: Option<OrNone<CalibratorType>>,
    pub enable_calibrator: Option<bool>,
    pub enable_encoder_calibrator: Option<bool>,
    pub calibrator_cache_type: Option<CalibratorCacheType>,
    pub taylorseer_order: Option<usize>,
    pub taylorseer_first_step: Option<usize>,
    pub dmd_history: Option<usize>,
    pub dmd_rank: Option<usize>,
    pub dmd_ridge: Option<f64>,
    pub dmd_fallback: Option<DmdFallback>,
}

/// A list of blocks. As text: numbers with commas or dots between them, and ranges `from..to/stride`, such as `0,2,3` or
/// `0..16/2`. As the reference's `CacheType.range`, a range holds block 0 and its last block (`to - 1`) in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockIds(pub Vec<usize>);

impl BlockIds {
    /// The end of the longest range.
    pub(super) const MOST: usize = 10_000;

    /// Every `stride`-th block from `from` to before `to`, with block 0 and the last one; `None` for a stride below 2 or
    /// an empty or absurd range.
    pub(super) fn range(from: usize, to: usize, stride: usize) -> Option<Self> {
        if stride < 2 || from >= to || to > Self::MOST {
            return None;
        }
        let ids = std::iter::once(0).chain((from..to).step_by(stride)).chain([to - 1]).collect();
        Some(Self(Self(ids).sorted()))
    }

    fn sorted(&self) -> Vec<usize> {
        let mut ids = self.0.clone();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

impl FromStr for BlockIds {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = || {
            Error::usage(format!(
                "`{text}` is no list of blocks such as `0,2,3` or `0..16/2`, with strides of at least 2 and ends of at \
                 most {}",
                Self::MOST
            ))
        };
        let number = |id: &str| id.trim().parse::<usize>().map_err(|_| fail());
        let mut ids = Vec::new();
        for part in text.split(',') {
            let Some((from, rest)) = part.split_once("..") else {
                ids.extend(part.split('.').map(number).collect::<Result<Vec<_>>>()?);
                continue;
            };
            let (to, stride) = rest.split_once('/').ok_or_else(fail)?;
            ids.extend(Self::range(number(from)?, number(to)?, number(stride)?).ok_or_else(fail)?.0);
        }
        Ok(Self(Self(ids).sorted()))
    }
}

/// A value, or `none` for an option that is to be switched off. As text also `-1` where no number below 0 is legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrNone<T>(pub Option<T>);

impl<T: FromStr<Err: fmt::Display + 'static>> FromStr for OrNone<T> {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.eq_ignore_ascii_case("none") {
            return Ok(Self(None));
        }
        match text.parse() {
            Ok(value) => Ok(Self(Some(value))),
            Err(_) if text == "-1" => Ok(Self(None)),
            Err(error) => Err(Error::usage(format!("`{text}`: {}, or `none`", problem_of(&error)))),
        }
    }
}

impl PolicyOverrides {
    /// The names of all options, in the order of the fields, spelled as in cache-dit.
    pub const NAMES: [&'static str; 41] = [
        "Fn_compute_blocks",
        "Bn_compute_blocks",
        "residual_diff_threshold",
        "max_warmup_steps",
        "warmup_interval",
        "max_cached_steps",
        "max_continuous_cached_steps",
        "max_accumulated_residual_diff_threshold",
        "steps_computation_mask",
        "steps_computation_policy",
        "force_refresh_step_hint",
        "force_refresh_step_policy",
        "cfg_compute_first",
        "cfg_diff_compute_separate",
        "l1_hidden_states_diff_threshold",
        "important_condition_threshold",
        "downsample_factor",
        "Bn_compute_blocks_ids",
        "non_compute_blocks_diff_threshold",
        "non_prune_block_ids",
        "max_pruned_steps",
        "enable_dynamic_prune_threshold",
        "max_dynamic_prune_threshold",
        "dynamic_prune_threshold_relax_ratio",
        "dynamic_prune_threshold_diffs",
        "residual_cache_update_interval",
        "compare_all_streams",
        "enable_alter_cache",
        "alter_residual_diff_threshold",
        "enable_encoder_residual",
        "separate_block_lists",
        "calibrator_type",
        "enable_calibrator",
        "enable_encoder_calibrator",
        "calibrator_cache_type",
        "taylorseer_order",
        "taylorseer_first_step",
        "dmd_history",
        "dmd_rank",
        "dmd_ridge",
        "dmd_fallback",
    ];

    /// The names of the options that are set.
    pub fn given(&self) -> Vec<&'static str> {
        // Without `..`: a new field must be named here.
        let Self {
            fn_compute_blocks,
            bn_compute_blocks,
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
            bn_compute_blocks_ids,
            non_compute_blocks_diff_threshold,
            non_prune_block_ids,
            max_pruned_steps,
            enable_dynamic_prune_threshold,
            max_dynamic_prune_threshold,
            dynamic_prune_threshold_relax_ratio,
            dynamic_prune_threshold_diffs,
            residual_cache_update_interval,
            compare_all_streams,
            enable_alter_cache,
            alter_residual_diff_threshold,
            enable_encoder_residual,
            separate_block_lists,
            calibrator_type,
            enable_calibrator,
            enable_encoder_calibrator,
            calibrator_cache_type,
            taylorseer_order,
            taylorseer_first_step,
            dmd_history,
            dmd_rank,
            dmd_ridge,
            dmd_fallback,
        } = self;
        let is_given = [
            fn_compute_blocks.is_some(),
            bn_compute_blocks.is_some(),
            residual_diff_threshold.is_some(),
            max_warmup_steps.is_some(),
            warmup_interval.is_some(),
            max_cached_steps.is_some(),
            max_continuous_cached_steps.is_some(),
            max_accumulated_residual_diff_threshold.is_some(),
            steps_computation_mask.is_some(),
            steps_computation_policy.is_some(),
            force_refresh_step_hint.is_some(),
            force_refresh_step_policy.is_some(),
            cfg_compute_first.is_some(),
            cfg_diff_compute_separate.is_some(),
            l1_hidden_states_diff_threshold.is_some(),
            important_condition_threshold.is_some(),
            downsample_factor.is_some(),
            bn_compute_blocks_ids.is_some(),
            non_compute_blocks_diff_threshold.is_some(),
            non_prune_block_ids.is_some(),
            max_pruned_steps.is_some(),
            enable_dynamic_prune_threshold.is_some(),
            max_dynamic_prune_threshold.is_some(),
            dynamic_prune_threshold_relax_ratio.is_some(),
            dynamic_prune_threshold_diffs.is_some(),
            residual_cache_update_interval.is_some(),
            compare_all_streams.is_some(),
            enable_alter_cache.is_some(),
            alter_residual_diff_threshold.is_some(),
            enable_encoder_residual.is_some(),
            separate_block_lists.is_some(),
            calibrator_type.is_some(),
            enable_calibrator.is_some(),
            enable_encoder_calibrator.is_some(),
            calibrator_cache_type.is_some(),
            taylorseer_order.is_some(),
            taylorseer_first_step.is_some(),
            dmd_history.is_some(),
            dmd_rank.is_some(),
            dmd_ridge.is_some(),
            dmd_fallback.is_some(),
        ];
        Self::NAMES.into_iter().zip(is_given).filter_map(|(name, is_given)| is_given.then_some(name)).collect()
    }

    /// Sets the options that DBCache has; returns the first that it lacks.
    pub(super) fn apply_to_cache(&self, config: &mut DbCacheConfig) -> Option<&'static str> {
        set(&mut config.fn_compute_blocks, &self.fn_compute_blocks);
        set(&mut config.bn_compute_blocks, &self.bn_compute_blocks);
        set(&mut config.residual_diff_threshold, &self.residual_diff_threshold);
        set(&mut config.max_warmup_steps, &self.max_warmup_steps);
        set(&mut config.warmup_interval, &self.warmup_interval);
        set_or_none(&mut config.max_cached_steps, &self.max_cached_steps);
        set_or_none(&mut config.max_continuous_cached_steps, &self.max_continuous_cached_steps);
        let accumulated = &self.max_accumulated_residual_diff_threshold;
        set_or_none(&mut config.max_accumulated_residual_diff_threshold, accumulated);
        set_or_none(&mut config.steps_computation_mask, &self.steps_computation_mask);
        set(&mut config.steps_computation_policy, &self.steps_computation_policy);
        set_or_none(&mut config.force_refresh_step_hint, &self.force_refresh_step_hint);
        set(&mut config.force_refresh_step_policy, &self.force_refresh_step_policy);
        set(&mut config.cfg_compute_first, &self.cfg_compute_first);
        set(&mut config.cfg_diff_compute_separate, &self.cfg_diff_compute_separate);
        set_or_none(&mut config.l1_hidden_states_diff_threshold, &self.l1_hidden_states_diff_threshold);
        set_or_none(&mut config.important_condition_threshold, &self.important());
        set(&mut config.downsample_factor, &self.downsample_factor);
        if let Some(OrNone(ids)) = &self.bn_compute_blocks_ids {
            // As in the reference, an empty list is no list.
            config.bn_compute_blocks_ids = ids.as_ref().map(BlockIds::sorted).filter(|ids| !ids.is_empty());
        }
        set_or_none(&mut config.non_compute_blocks_diff_threshold, &self.non_compute_blocks_diff_threshold);
        set(&mut config.enable_alter_cache, &self.enable_alter_cache);
        set_or_none(&mut config.alter_residual_diff_threshold, &self.alter_residual_diff_threshold);
        set(&mut config.enable_encoder_residual, &self.enable_encoder_residual);
        set(&mut config.separate_block_lists, &self.separate_block_lists);
        self.first_given(&[
            "non_prune_block_ids",
            "max_pruned_steps",
            "enable_dynamic_prune_threshold",
            "max_dynamic_prune_threshold",
            "dynamic_prune_threshold_relax_ratio",
            "dynamic_prune_threshold_diffs",
            "residual_cache_update_interval",
            "compare_all_streams",
        ])
    }

    /// Sets the options that DBPrune has; returns the first that it lacks.
    pub(super) fn apply_to_prune(&self, config: &mut DbPruneConfig) -> Option<&'static str> {
        set(&mut config.fn_compute_blocks, &self.fn_compute_blocks);
        set(&mut config.bn_compute_blocks, &self.bn_compute_blocks);
        if let Some(OrNone(ids)) = &self.non_prune_block_ids {
            config.non_prune_block_ids = ids.as_ref().map(BlockIds::sorted).unwrap_or_default();
        }
        set(&mut config.residual_diff_threshold, &self.residual_diff_threshold);
        set(&mut config.max_warmup_steps, &self.max_warmup_steps);
        set(&mut config.warmup_interval, &self.warmup_interval);
        set_or_none(&mut config.max_cached_steps, &self.max_cached_steps);
        set_or_none(&mut config.max_pruned_steps, &self.max_pruned_steps);
        set_or_none(&mut config.max_continuous_cached_steps, &self.max_continuous_cached_steps);
        set_or_none(&mut config.steps_computation_mask, &self.steps_computation_mask);
        set(&mut config.steps_computation_policy, &self.steps_computation_policy);
        set_or_none(&mut config.force_refresh_step_hint, &self.force_refresh_step_hint);
        set(&mut config.force_refresh_step_policy, &self.force_refresh_step_policy);
        set(&mut config.cfg_compute_first, &self.cfg_compute_first);
        set(&mut config.enable_dynamic_prune_threshold, &self.enable_dynamic_prune_threshold);
        set_or_none(&mut config.max_dynamic_prune_threshold, &self.max_dynamic_prune_threshold);
        set(&mut config.dynamic_prune_threshold_relax_ratio, &self.dynamic_prune_threshold_relax_ratio);
        set_or_none(&mut config.dynamic_prune_threshold_diffs, &self.dynamic_prune_threshold_diffs);
        set(&mut config.residual_cache_update_interval, &self.residual_cache_update_interval);
        set(&mut config.compare_all_streams, &self.compare_all_streams);
        set(&mut config.separate_block_lists, &self.separate_block_lists);
        set_or_none(&mut config.important_condition_threshold, &self.important());
        set(&mut config.downsample_factor, &self.downsample_factor);
        self.first_given(&[
            "max_accumulated_residual_diff_threshold",
            "cfg_diff_compute_separate",
            "l1_hidden_states_diff_threshold",
            "Bn_compute_blocks_ids",
            "non_compute_blocks_diff_threshold",
            "enable_alter_cache",
            "alter_residual_diff_threshold",
            "enable_encoder_residual",
        ])
    }

    /// Sets the options of calibrators. Another type begins with its defaults.
    pub(super) fn apply_to_calibrator(&self, calibrator: &mut Option<CalibratorConfig>) -> Result<()> {
        if let Some(OrNone(asked)) = self.calibrator_type
            && asked != calibrator.as_ref().map(|config| config.kind.calibrator_type())
        {
            *calibrator = asked.map(|asked| CalibratorConfig::new(asked.kind()));
        }
        let mut used = vec!["calibrator_type"];
        if let Some(config) = calibrator {
            set(&mut config.enable_calibrator, &self.enable_calibrator);
            set(&mut config.enable_encoder_calibrator, &self.enable_encoder_calibrator);
            set(&mut config.calibrator_cache_type, &self.calibrator_cache_type);
            used.extend(["enable_calibrator", "enable_encoder_calibrator", "calibrator_cache_type"]);
            match &mut config.kind {
                CalibratorKind::TaylorSeer { taylorseer_order, taylorseer_first_step } => {
                    set(taylorseer_order, &self.taylorseer_order);
                    set(taylorseer_first_step, &self.taylorseer_first_step);
                    used.extend(["taylorseer_order", "taylorseer_first_step"]);
                }
                CalibratorKind::FoCa => {}
                CalibratorKind::Dmd { dmd_history, dmd_rank, dmd_ridge, dmd_fallback } => {
                    set(dmd_history, &self.dmd_history);
                    set(dmd_rank, &self.dmd_rank);
                    set(dmd_ridge, &self.dmd_ridge);
                    set(dmd_fallback, &self.dmd_fallback);
                    used.extend(["dmd_history", "dmd_rank", "dmd_ridge", "dmd_fallback"]);
                }
            }
        }
        // The options of calibrators are the last ones.
        let of_calibrators: Vec<_> = Self::NAMES.into_iter().skip_while(|name| *name != "calibrator_type").collect();
        let is_idle = |name: &&str| of_calibrators.contains(name) && !used.contains(name);
        let Some(idle) = self.given().into_iter().find(is_idle) else { return Ok(()) };
        let (have, remedy) = match calibrator.as_ref().map(|config| config.kind.calibrator_type().as_str()) {
            None => ("there is no calibrator".to_owned(), "set calibrator_type to taylorseer, foca or dmd"),
            Some(name) => (format!("the calibrator is {name}"), "leave it out, or choose another calibrator_type"),
        };
        Err(Error::usage(format!("{idle} has no effect: {have}; {remedy}")))
    }

    fn important(&self) -> Option<OrNone<f64>> {
        self.important_condition_threshold.map(|OrNone(value)| OrNone(value.filter(|&value| value != 0.0)))
    }

    fn first_given(&self, lacking: &[&str]) -> Option<&'static str> {
        self.given().into_iter().find(|option| lacking.contains(option))
    }
}

fn set<T: Clone>(field: &mut T, value: &Option<T>) {
    if let Some(value) = value {
        field.clone_from(value);
    }
}

fn set_or_none<T: Clone>(field: &mut Option<T>, value: &Option<OrNone<T>>) {
    if let Some(OrNone(value)) = value {
        field.clone_from(value);
    }
}

#[cfg(test)]
mod tests {
    use super::super::PolicyConfig;
    use super::*;

    #[test]
    fn each_override_changes_its_own_option() -> Result<()> {
        let all = PolicyOverrides {
            fn_compute_blocks: Some(2),
            bn_compute_blocks: Some(3),
            residual_diff_threshold: Some(0.25),
            max_warmup_steps: Some(4),
            warmup_interval: Some(5),
            max_cached_steps: Some("6".parse()?),
            max_continuous_cached_steps: Some("7".parse()?),
            max_accumulated_residual_diff_threshold: Some("0.5".parse()?),
            steps_computation_mask: Some("fast".parse()?),
            steps_computation_policy: Some("Static".parse()?),
            force_refresh_step_hint: Some("9".parse()?),
            force_refresh_step_policy: Some("Repeat".parse()?),
            cfg_compute_first: Some(true),
            cfg_diff_compute_separate: Some(false),
            l1_hidden_states_diff_threshold: Some("0.75".parse()?),
            important_condition_threshold: Some("0.125".parse()?),
            downsample_factor: Some(8),
            bn_compute_blocks_ids: Some("2,0".parse()?),
            non_compute_blocks_diff_threshold: Some("0.0625".parse()?),
            enable_alter_cache: Some(false),
            enable_encoder_residual: Some(true),
            separate_block_lists: Some(true),
            calibrator_type: Some("DMD".parse()?),
            enable_calibrator: Some(false),
            enable_encoder_calibrator: Some(true),
            calibrator_cache_type: Some("hidden_states".parse()?),
            dmd_history: Some(5),
            dmd_rank: Some(2),
            dmd_ridge: Some(0.0),
            dmd_fallback: Some("reference".parse()?),
            ..Default::default()
        };
        let of_prune = PolicyOverrides::NAMES[19..27].iter();
        let others: Vec<_> =
            of_prune.chain(&["alter_residual_diff_threshold", "taylorseer_order", "taylorseer_first_step"]).collect();
        let expected: Vec<_> = PolicyOverrides::NAMES.into_iter().filter(|name| !others.contains(&name)).collect();
        assert_eq!(all.given(), expected);
        let config = PolicyConfig::from_tag("dbcache")?.with(&all)?;
        assert_eq!(
            config.to_string(),
            "f2b3w4i5r0.25m6mc7a0.5l0.75ic0.125ds8cf1cds0sl1_id0.2nt0.0625_fr9:repeat_scm:fast:static\
             _dmd5:reference_ch0_hs1_dk2_dg0"
        );
        // `none` switches an option off, and what is not given stays.
        let off = PolicyOverrides {
            max_cached_steps: Some("none".parse()?),
            max_continuous_cached_steps: Some("-1".parse()?),
            max_accumulated_residual_diff_threshold: Some("None".parse()?),
            force_refresh_step_hint: Some("none".parse()?),
            force_refresh_step_policy: Some(RefreshPolicy::Once),
            l1_hidden_states_diff_threshold: Some(OrNone(None)),
            important_condition_threshold: Some("0".parse()?),
            calibrator_type: Some("none".parse()?),
            ..Default::default()
        };
        assert_eq!(config.with(&off)?.to_string(), "f2b3w4i5r0.25ds8cf1cds0sl1_id0.2nt0.0625_scm:fast:static");
        Ok(())
    }

    #[test]
    fn an_override_that_cannot_take_effect_is_refused() -> Result<()> {
        let some = PolicyOverrides { max_warmup_steps: Some(4), ..Default::default() };
        let refused = PolicyConfig::None.with(&some);
        assert!(refused.is_err_and(|error| error.to_string().contains("`none` has no option max_warmup_steps")));
        assert_eq!(PolicyConfig::None.with(&PolicyOverrides::default())?, PolicyConfig::None);
        let policy = PolicyOverrides { steps_computation_policy: Some(StepsPolicy::Static), ..Default::default() };
        let refused = PolicyConfig::from_tag("dbcache")?.with(&policy);
        assert!(refused.is_err_and(|error| error.to_string().contains("no steps_computation_mask")));
        let order = PolicyOverrides { taylorseer_order: Some(2), ..Default::default() };
        for (tag, words) in
            [("dbcache", "there is no calibrator; set calibrator_type"), ("foca", "the calibrator is foca")]
        {
            let error =
                PolicyConfig::from_tag(tag)?.with(&order).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(words), "{tag}: `{error}`");
        }
        assert_eq!(PolicyConfig::from_tag("f1_t1_ce0")?.with(&order)?.to_string(), "f1b8w8i1r0.12_t2_ce0");
        assert!("x".parse::<OrNone<usize>>().is_err_and(|error| error.to_string().contains("or `none`")));
        Ok(())
    }
}
