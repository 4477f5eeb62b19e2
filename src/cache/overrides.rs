//! Options that are set one by one: the flags of the command, the tokens of a tag, the keys of a JSON object.

use std::fmt;
use std::str::FromStr;

use super::dbcache::{DbCacheConfig, RefreshPolicy};
use super::mask::{StepsMask, StepsPolicy};
use crate::error::{Error, Result};

/// Options to set on top of a [`PolicyConfig`](super::PolicyConfig); `None` leaves an option as it is. The fields are
/// explained at [`DbCacheConfig`].
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "each field is the option of the same name of DbCacheConfig")]
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
}

/// A value, or `none` for an option that is to be switched off. As text also `-1` where no number below 0 is legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrNone<T>(pub Option<T>);

impl<T: FromStr> FromStr for OrNone<T>
where
    T::Err: fmt::Display,
{
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.eq_ignore_ascii_case("none") {
            return Ok(Self(None));
        }
        match text.parse() {
            Ok(value) => Ok(Self(Some(value))),
            Err(_) if text == "-1" => Ok(Self(None)),
            Err(error) => Err(Error::usage(format!("`{text}`: {error}; expected a value or `none`"))),
        }
    }
}

impl PolicyOverrides {
    /// The names of all options, in the order of the fields, spelled as in cache-dit.
    pub const NAMES: [&'static str; 17] = [
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
        ];
        Self::NAMES.into_iter().zip(is_given).filter_map(|(name, is_given)| is_given.then_some(name)).collect()
    }

    pub(super) fn apply(&self, config: &mut DbCacheConfig) {
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
        let important = self.important_condition_threshold.map(|OrNone(value)| OrNone(value.filter(|&v| v != 0.0)));
        set_or_none(&mut config.important_condition_threshold, &important);
        set(&mut config.downsample_factor, &self.downsample_factor);
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
        };
        assert_eq!(all.given(), PolicyOverrides::NAMES);
        let config = PolicyConfig::from_tag("dbcache")?.with(&all)?;
        assert_eq!(config.to_string(), "f2b3w4i5r0.25m6mc7a0.5l0.75ic0.125ds8cf1cds0_fr9:repeat_scm:fast:static");
        // `none` switches an option off, and what is not given stays.
        let off = PolicyOverrides {
            max_cached_steps: Some("none".parse()?),
            max_continuous_cached_steps: Some("-1".parse()?),
            max_accumulated_residual_diff_threshold: Some("None".parse()?),
            force_refresh_step_hint: Some("none".parse()?),
            force_refresh_step_policy: Some(RefreshPolicy::Once),
            l1_hidden_states_diff_threshold: Some(OrNone(None)),
            important_condition_threshold: Some("0".parse()?),
            ..Default::default()
        };
        assert_eq!(config.with(&off)?.to_string(), "f2b3w4i5r0.25ds8cf1cds0_scm:fast:static");
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
        assert!("x".parse::<OrNone<usize>>().is_err_and(|error| error.to_string().contains("or `none`")));
        Ok(())
    }
}
