//! The options of the policies: one row of a table for each.
//!
//! A row says how its option is called, which values it takes, what it does, and in which configurations it lies. Flags of
//! the command, options by name, JSON keys, tags, errors, `--help` and docs/cache-tags.md are made from the rows. A new
//! option is a field of a configuration and its row in `table.rs`.

mod field;
mod form;
mod table;

use self::field::Lens;
pub(super) use self::field::OptionValue;
pub(super) use self::form::{Absent, OptionForm};
use super::PolicyConfig;
use super::calibrator::{CalibratorConfig, CalibratorType};
use super::dbcache::DbCacheConfig;
use super::dbprune::DbPruneConfig;

/// One option of the cache policies.
#[derive(Debug)]
pub struct PolicyOption {
    name: &'static str,
    token: Token,
    pub(super) form: OptionForm,
    example: &'static str,
    about: &'static str,
    is_common: bool,
    pub(super) cache: Option<Lens<DbCacheConfig>>,
    pub(super) prune: Option<Lens<DbPruneConfig>>,
    pub(super) calibrator: Option<Lens<CalibratorConfig>>,
}

/// How a tag writes an option.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Token {
    /// A name before the value, in every canonical tag.
    Always(&'static str),
    /// A name before the value; a canonical tag leaves out the default.
    Named(&'static str),
    /// As `Named`; and it chooses the calibrator that has this option.
    Chooses(&'static str, CalibratorType),
    /// The value itself, for a calibrator without a number.
    Word(&'static str),
    /// The value itself after a colon, behind the token of this name.
    Follows(&'static str),
}

/// Which policies have an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OptionGroup {
    /// DBCache and DBPrune.
    Both,
    /// DBCache alone.
    DbCache,
    /// DBPrune alone.
    DbPrune,
    /// Calibrators, which both policies can have.
    Calibrator,
}

impl PolicyOption {
    /// Every option, in the order in which canonical tags and JSON write them.
    pub fn all() -> &'static [Self] {
        table::OPTIONS
    }

    /// Spelled as in cache-dit, such as `max_warmup_steps`: also the key in JSON.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its name as an option of a host and as a long flag of the command, such as `max-warmup-steps`.
    pub fn flag(&self) -> String {
        self.name.to_ascii_lowercase().replace('_', "-")
    }

    /// How a tag writes it: the name of its token (`w`), or the words that follow another token (`:static`).
    pub fn tokens(&self) -> Vec<String> {
        match self.token {
            Token::Named(name) if matches!(self.form, OptionForm::Mask) => vec![format!("{name}:")],
            Token::Always(name) | Token::Named(name) | Token::Chooses(name, _) => vec![name.to_owned()],
            Token::Follows(_) => self.form.words().iter().skip(1).map(|word| format!(":{word}")).collect(),
            Token::Word(word) => {
                Self::all().iter().filter_map(Self::chooses).chain([word]).map(str::to_owned).collect()
            }
        }
    }

    /// The name of its token, if that chooses a calibrator.
    fn chooses(&self) -> Option<&'static str> {
        if let Token::Chooses(name, _) = self.token { Some(name) } else { None }
    }

    /// Refuses a text that is no value of it.
    ///
    /// # Errors
    /// What was expected.
    pub fn check(&self, text: &str) -> Result<(), String> {
        self.form.parse(text).map(drop)
    }

    /// The token that this one must follow, if it must: `scm` for `:static`.
    pub fn follows(&self) -> Option<&'static str> {
        match self.token {
            Token::Follows(name) => Some(name),
            _ => None,
        }
    }

    /// What stands for a value in a usage line: `N` for a count, the words themselves for a choice.
    pub fn value_name(&self) -> String {
        self.form.value_name()
    }

    /// Whether `none` is a value, which switches the option off.
    pub fn takes_none(&self) -> bool {
        self.form.absent() != Absent::Never
    }

    /// What it does, in one or two sentences.
    pub fn about(&self) -> &'static str {
        self.about
    }

    /// A tag that sets it to something else than the default.
    pub fn example(&self) -> &'static str {
        self.example
    }

    /// Whether many users need it.
    pub fn is_common(&self) -> bool {
        self.is_common
    }

    /// Which policies have it.
    pub fn group(&self) -> OptionGroup {
        match (&self.cache, &self.prune) {
            (Some(_), Some(_)) => OptionGroup::Both,
            (Some(_), None) => OptionGroup::DbCache,
            (None, Some(_)) => OptionGroup::DbPrune,
            (None, None) => OptionGroup::Calibrator,
        }
    }

    /// Its value where nothing is set, as a flag would write it: in DBCache if that has the option, else in DBPrune, else in
    /// the calibrator.
    pub fn default_text(&self) -> String {
        let value = match (&self.cache, &self.prune) {
            (Some(lens), _) => lens.get(&DbCacheConfig::default()),
            (None, Some(lens)) => lens.get(&DbPruneConfig::default()),
            (None, None) => {
                let mut kinds = CalibratorType::ALL.into_iter().map(|kind| CalibratorConfig::new(kind.kind()));
                kinds
                    .find_map(|config| self.calibrator.as_ref()?.get(&config))
                    .filter(|_| self.name != "calibrator_type")
            }
        };
        match value {
            // The shortest form: 1e-8.
            Some(OptionValue::Number(number)) => format!("{number:?}").trim_end_matches(".0").to_owned(),
            other => other.unwrap_or(OptionValue::None).to_string(),
        }
    }

    pub(super) fn tag_token(&self) -> Token {
        self.token
    }

    /// The name of its token, where it has one.
    pub(super) fn token_name(&self) -> Option<&'static str> {
        match self.token {
            Token::Always(name) | Token::Named(name) | Token::Chooses(name, _) | Token::Word(name) => Some(name),
            Token::Follows(_) => None,
        }
    }

    /// The option of this name.
    pub(super) fn of_name(name: &str) -> Option<&'static Self> {
        Self::all().iter().find(|option| option.name == name)
    }

    /// The names of all options.
    pub(super) fn names() -> impl Iterator<Item = &'static str> + Clone {
        Self::all().iter().map(|option| option.name)
    }

    /// Its value in a policy; `None` if the policy lacks it.
    pub(super) fn value_in(&self, policy: &PolicyConfig) -> Option<OptionValue> {
        let (own, calibrator) = match policy {
            PolicyConfig::DbCache(config) => {
                (self.cache.as_ref().and_then(|lens| lens.get(config)), &config.calibrator)
            }
            PolicyConfig::DbPrune(config) => {
                (self.prune.as_ref().and_then(|lens| lens.get(config)), &config.calibrator)
            }
            PolicyConfig::None | PolicyConfig::Replay { .. } => return None,
        };
        own.or_else(|| self.calibrator.as_ref()?.get(calibrator.as_ref()?))
    }
}
