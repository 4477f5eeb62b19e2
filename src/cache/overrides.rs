//! Options that are set one by one: the flags of the command, the tokens of a tag, the keys of a JSON object.

use std::collections::BTreeMap;

use super::calibrator::{CalibratorConfig, CalibratorType};
use super::option::{OptionValue, PolicyOption};
use super::{PolicyConfig, presets};
use crate::error::{Error, Result};

/// Options to set on top of a [`PolicyConfig`]. What is not given stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyOverrides {
    values: BTreeMap<&'static str, OptionValue>,
}

impl PolicyOverrides {
    /// Sets an option, named by its [`flag`](PolicyOption::flag) (`max-warmup-steps`), from its text. Says whether there
    /// is such an option.
    ///
    /// # Errors
    /// `Usage` for a text that is no value of the option; then nothing is changed.
    pub fn set(&mut self, flag: &str, text: &str) -> Result<bool> {
        let Some(option) = PolicyOption::all().iter().find(|option| option.flag() == flag) else { return Ok(false) };
        let value = option.form.parse(text);
        let value = value.map_err(|problem| Error::option(flag, format_args!("is `{text}`: {problem}")))?;
        self.put(option.name(), value);
        Ok(true)
    }

    /// The options that are set, in the order of their table.
    pub fn given(&self) -> impl Iterator<Item = &'static PolicyOption> {
        PolicyOption::all().iter().filter(|option| self.values.contains_key(option.name()))
    }

    /// Sets the option of this name, and returns what it was set to before.
    pub(super) fn put(&mut self, name: &'static str, value: OptionValue) -> Option<OptionValue> {
        debug_assert!(PolicyOption::of_name(name).is_some(), "there is no option {name}");
        self.values.insert(name, value)
    }

    pub(super) fn get(&self, name: &str) -> Option<&OptionValue> {
        self.values.get(name)
    }

    /// The calibrator that is asked for; the outer none if none is given.
    fn calibrator_type(&self) -> Option<Option<CalibratorType>> {
        match self.get("calibrator_type")? {
            OptionValue::Word(word) => Some(word.parse().ok()),
            _ => Some(None),
        }
    }

    /// Sets the options of calibrators. Another type begins with its defaults.
    fn apply_to_calibrator(&self, calibrator: &mut Option<CalibratorConfig>) -> Result<()> {
        match self.calibrator_type() {
            Some(None) => *calibrator = None,
            Some(Some(asked)) if calibrator.is_none() => *calibrator = Some(CalibratorConfig::new(asked.kind())),
            _ => {}
        }
        for option in self.given() {
            let (Some(lens), Some(value)) = (&option.calibrator, self.get(option.name())) else { continue };
            let is_set = calibrator.as_mut().is_some_and(|config| lens.set(config, value));
            if !is_set && *value != OptionValue::None {
                return Err(idle(option, calibrator.as_ref()));
            }
        }
        Ok(())
    }
}

/// Why an option of a calibrator cannot take effect.
fn idle(option: &PolicyOption, calibrator: Option<&CalibratorConfig>) -> Error {
    let (have, remedy) = match calibrator.map(|config| config.kind.calibrator_type()) {
        None => ("there is no calibrator".to_owned(), "set calibrator_type to taylorseer, foca or dmd"),
        Some(kind) => (format!("the calibrator is {kind}"), "leave it out, or choose another calibrator_type"),
    };
    Error::usage(format!("{} has no effect: {have}; {remedy}", option.name()))
}

impl PolicyConfig {
    /// The same policy with other options; see [`PolicyOverrides`].
    ///
    /// # Errors
    /// `Usage` if this policy lacks an option that is set, or if the result is impossible.
    pub fn with(mut self, overrides: &PolicyOverrides) -> Result<Self> {
        let asked = presets::name(&self);
        for option in overrides.given() {
            let Some(value) = overrides.get(option.name()) else { continue };
            let is_set = match &mut self {
                Self::None | Self::Replay { .. } => false,
                Self::DbCache(config) => option.cache.as_ref().is_some_and(|lens| lens.set(config, value)),
                Self::DbPrune(config) => option.prune.as_ref().is_some_and(|lens| lens.set(config, value)),
            };
            let comes_later = option.calibrator.is_some() && self.can_forecast();
            if !is_set && !comes_later {
                return Err(self.lacks(&asked, option.name()));
            }
        }
        match &mut self {
            Self::DbCache(config) => overrides.apply_to_calibrator(&mut config.calibrator)?,
            Self::DbPrune(config) => overrides.apply_to_calibrator(&mut config.calibrator)?,
            Self::None | Self::Replay { .. } => {}
        }
        self.check()?;
        Ok(self)
    }

    /// Whether it can have a calibrator.
    fn can_forecast(&self) -> bool {
        matches!(self, Self::DbCache(_) | Self::DbPrune(_))
    }

    /// The error for an option that this policy, called `asked` by its user, does not have.
    fn lacks(&self, asked: &str, option: &str) -> Error {
        let remedy = match (self, option) {
            (Self::DbPrune(_), "l1_hidden_states_diff_threshold") => {
                "use residual_diff_threshold, which it would replace: blocks compare hidden states anyway"
            }
            (Self::DbPrune(_), "max_accumulated_residual_diff_threshold") => {
                "nothing is accumulated there; use max_cached_steps or max_pruned_steps"
            }
            (Self::None, _) => "choose a policy that has it, such as dbcache or prune, or leave it out",
            _ => "leave it out, or choose another policy: `fb`, `dbcache`, `cache-dit`, `prune`",
        };
        Error::usage(format!("the policy `{asked}` has no option {option}; {remedy}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::dbcache::DbCacheConfig;
    use super::super::dbprune::DbPruneConfig;
    use super::*;

    fn overrides(texts: &[(&str, &str)]) -> Result<PolicyOverrides> {
        let mut overrides = PolicyOverrides::default();
        for (flag, text) in texts {
            assert!(overrides.set(flag, text)?, "{flag}");
        }
        Ok(overrides)
    }

    /// The names of the fields of a configuration.
    fn fields(config: &impl std::fmt::Debug) -> BTreeSet<String> {
        let text = format!("{config:#?}");
        let fields = text.lines().filter_map(|line| line.strip_prefix("    ")?.split_once(": "));
        fields.map(|(name, _)| name.to_owned()).filter(|name| !name.starts_with(' ')).collect()
    }

    /// Nothing that a user could want to set is without a row.
    #[test]
    fn every_field_of_a_configuration_has_a_row() {
        let names = |has: fn(&PolicyOption) -> bool| {
            let options = PolicyOption::all().iter().filter(|option| has(option));
            options.map(|option| option.name().to_lowercase()).collect::<BTreeSet<_>>()
        };
        let of_cache = names(|option| option.cache.is_some());
        let of_prune = names(|option| option.prune.is_some());
        let of_calibrator = names(|option| option.calibrator.is_some());
        let without_calibrator = |mut fields: BTreeSet<String>| {
            assert!(fields.remove("calibrator"));
            fields
        };
        assert_eq!(without_calibrator(fields(&DbCacheConfig::default())), of_cache);
        assert_eq!(without_calibrator(fields(&DbPruneConfig::default())), of_prune);
        let mut of_kinds = BTreeSet::from(["calibrator_type".to_owned()]);
        for kind in CalibratorType::ALL {
            of_kinds.extend(fields(&kind.kind()));
            of_kinds.extend(fields(&CalibratorConfig::new(kind.kind())));
        }
        of_kinds.remove("kind");
        assert_eq!(of_kinds, of_calibrator);
    }

    #[test]
    fn every_value_is_read_back_from_text_and_json() {
        for tag in ["f2b4id0r0.5m3mc0a0.25ic0.1ds2l0.5al1fr8_t2", "prune_np2.5m1dt1dm0.5dn0ui2_scm:101_dmd5", "foca"] {
            let policy = PolicyConfig::from_tag(tag).unwrap_or_else(|error| panic!("{tag}: {error}"));
            let mut values = 0;
            for option in PolicyOption::all() {
                let Some(value) = option.value_in(&policy) else { continue };
                values += 1;
                assert_eq!(option.form.parse(&value.to_string()), Ok(value.clone()), "{}", option.name());
                let json = option.form.to_json(&value);
                if !json.is_null() && json != serde_json::json!([]) {
                    assert_eq!(option.form.read_json(&json), Ok(value), "{}", option.name());
                }
            }
            assert!(values > 20, "{values}");
        }
    }

    #[test]
    fn each_override_changes_its_own_option() -> Result<()> {
        let all = overrides(&[
            ("fn-compute-blocks", "2"),
            ("bn-compute-blocks", "3"),
            ("residual-diff-threshold", "0.25"),
            ("max-warmup-steps", "4"),
            ("warmup-interval", "5"),
            ("max-cached-steps", "6"),
            ("max-continuous-cached-steps", "7"),
            ("max-accumulated-residual-diff-threshold", "0.5"),
            ("steps-computation-mask", "fast"),
            ("steps-computation-policy", "Static"),
            ("force-refresh-step-hint", "9"),
            ("force-refresh-step-policy", "Repeat"),
            ("cfg-compute-first", "true"),
            ("cfg-diff-compute-separate", "false"),
            ("l1-hidden-states-diff-threshold", "0.75"),
            ("important-condition-threshold", "0.125"),
            ("downsample-factor", "8"),
            ("bn-compute-blocks-ids", "2,0"),
            ("non-compute-blocks-diff-threshold", "0.0625"),
            ("enable-alter-cache", "false"),
            ("enable-encoder-residual", "true"),
            ("separate-block-lists", "true"),
            ("calibrator-type", "DMD"),
            ("enable-calibrator", "false"),
            ("enable-encoder-calibrator", "true"),
            ("calibrator-cache-type", "hidden_states"),
            ("dmd-history", "5"),
            ("dmd-rank", "2"),
            ("dmd-ridge", "0"),
            ("dmd-fallback", "reference"),
        ])?;
        assert_eq!(all.given().count(), 30);
        let config = PolicyConfig::from_tag("dbcache")?.with(&all)?;
        assert_eq!(
            config.to_string(),
            "f2b3w4i5r0.25m6mc7a0.5l0.75ic0.125ds8cf1cds0sl1_id0.2nt0.0625_fr9:repeat_scm:fast:static\
             _dmd5:reference_ch0_hs1_dk2_dg0"
        );
        // `none` switches an option off, and what is not given stays.
        let off = overrides(&[
            ("max-cached-steps", "none"),
            ("max-continuous-cached-steps", "-1"),
            ("max-accumulated-residual-diff-threshold", "None"),
            ("force-refresh-step-hint", "none"),
            ("force-refresh-step-policy", "once"),
            ("l1-hidden-states-diff-threshold", "none"),
            ("important-condition-threshold", "0"),
            ("calibrator-type", "none"),
        ])?;
        assert_eq!(config.with(&off)?.to_string(), "f2b3w4i5r0.25ds8cf1cds0sl1_id0.2nt0.0625_scm:fast:static");
        Ok(())
    }

    #[test]
    fn an_override_that_cannot_take_effect_is_refused() -> Result<()> {
        for (tag, flag, text, words) in [
            ("none", "max-warmup-steps", "4", "`none` has no option max_warmup_steps"),
            ("dbcache", "steps-computation-policy", "static", "no steps_computation_mask"),
            ("dbcache", "taylorseer-order", "2", "there is no calibrator; set calibrator_type"),
            ("foca", "taylorseer-order", "2", "the calibrator is foca"),
        ] {
            let refused = PolicyConfig::from_tag(tag)?.with(&overrides(&[(flag, text)])?);
            let error = refused.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(words), "{tag}: `{error}`");
        }
        assert_eq!(PolicyConfig::None.with(&PolicyOverrides::default())?, PolicyConfig::None);
        let order = overrides(&[("taylorseer-order", "2")])?;
        assert_eq!(PolicyConfig::from_tag("f1_t1_ce0")?.with(&order)?.to_string(), "f1b8w8i1r0.12_t2_ce0");
        Ok(())
    }

    #[test]
    fn a_text_that_is_no_value_changes_nothing() {
        for option in PolicyOption::all() {
            let mut overrides = PolicyOverrides::default();
            let refused = overrides.set(&option.flag(), "?");
            assert!(refused.is_err_and(|error| error.field() == Some(&option.flag())), "{}", option.name());
            assert_eq!(overrides, PolicyOverrides::default());
        }
        assert!(!PolicyOverrides::default().set("fn-compute-block", "1").unwrap());
        let refused = PolicyOverrides::default().set("max-cached-steps", "x").unwrap_err().to_string();
        assert!(refused.contains("is `x`: expected a whole number of at least 0, or `none`"), "{refused}");
    }
}
