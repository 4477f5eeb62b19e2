//! Printing the canonical tag.

use std::fmt;

use super::super::calibrator::CalibratorConfig;
use super::super::dbcache::DbCacheConfig;
use super::super::dbprune::DbPruneConfig;
use super::super::option::{OptionForm, OptionValue, PolicyOption, Token};
use super::PolicyConfig;

/// The canonical tag: limits that are unset and options of their default value are left out, except F, B, W, I and R.
/// A replay prints the tag of the recorded policy in brackets, which does not parse: it needs its recording.
impl fmt::Display for PolicyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::DbCache(_) => print(self, f),
            Self::DbPrune(_) => {
                f.write_str("prune_")?;
                print(self, f)
            }
            Self::Replay { config, .. } => write!(f, "replay({config})"),
        }
    }
}

fn print(policy: &PolicyConfig, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let plain = plain(policy);
    for option in PolicyOption::all() {
        let Some(value) = option.value_in(policy) else { continue };
        let is_default = option.value_in(&plain).as_ref() == Some(&value);
        match option.tag_token() {
            Token::Always(name) => write!(out, "{name}{value}")?,
            Token::Chooses(name, _) => write!(out, "_{name}{value}")?,
            Token::Named(name) if !is_default => {
                let apart = if stands_apart(option, name) { "_" } else { "" };
                write!(out, "{apart}{name}{}", written(option, &value))?;
            }
            Token::Word(word) if value == OptionValue::Word(word) => write!(out, "_{word}")?,
            // Behind an option that is not there, it has its default.
            Token::Follows(_) if !is_default => write!(out, ":{value}")?,
            Token::Named(_) | Token::Word(_) | Token::Follows(_) => {}
        }
    }
    Ok(())
}

/// The policy of the same kind, and with the same kind of calibrator, in which all else has its default.
fn plain(policy: &PolicyConfig) -> PolicyConfig {
    let calibrator = |config: &Option<CalibratorConfig>| {
        config.as_ref().map(|config| CalibratorConfig::new(config.kind.calibrator_type().kind()))
    };
    match policy {
        PolicyConfig::DbCache(config) => PolicyConfig::DbCache(DbCacheConfig {
            calibrator: calibrator(&config.calibrator),
            ..DbCacheConfig::default()
        }),
        PolicyConfig::DbPrune(config) => PolicyConfig::DbPrune(DbPruneConfig {
            calibrator: calibrator(&config.calibrator),
            ..DbPruneConfig::default()
        }),
        PolicyConfig::None | PolicyConfig::Replay { .. } => policy.clone(),
    }
}

/// Lists, options of calibrators, and tokens that a word can follow are easier to read with `_` before them.
fn stands_apart(option: &PolicyOption, name: &str) -> bool {
    let is_followed = PolicyOption::all().iter().any(|other| other.follows() == Some(name));
    matches!(option.form, OptionForm::Blocks(_)) || option.calibrator.is_some() || is_followed
}

/// A value as it stands behind its token.
fn written(option: &PolicyOption, value: &OptionValue) -> String {
    match (option.form, value) {
        (_, OptionValue::Switch(is_on)) => u8::from(*is_on).to_string(),
        // A token that is not there leaves the default, so none needs a value of its own: 0, where that means none.
        (_, OptionValue::None) => "0".to_owned(),
        (OptionForm::Mask, mask) => format!(":{mask}"),
        (OptionForm::Word(words, _), OptionValue::Word(word)) => {
            words.iter().position(|known| known == word).unwrap_or_default().to_string()
        }
        _ => value.to_string(),
    }
}
