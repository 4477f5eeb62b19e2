//! Reading what follows the preset of a tag, token by token.

use std::fmt;
use std::str::FromStr;

use super::super::blocks::BlockIds;
use super::super::calibrator::{CalibratorType, DmdFallback, LOW_PRECISION};
use super::super::mask::StepsMask;
use super::super::option::{Absent, OptionForm, OptionValue, PolicyOption, Token};
use super::super::overrides::PolicyOverrides;
use super::super::presets::PRESETS;
use crate::error::{Error, Result};
use crate::nearest::did_you_mean;
use crate::words::one_of;

/// What is left of a tag.
pub(super) struct TagTokens<'a> {
    text: &'a str,
    at: usize,
    is_of_reference: bool,
}

impl<'a> TagTokens<'a> {
    pub(super) fn new(text: &'a str, is_of_reference: bool) -> Self {
        Self { text, at: 0, is_of_reference }
    }

    pub(super) fn overrides(mut self) -> Result<PolicyOverrides> {
        let mut set = PolicyOverrides::default();
        let mut is_after_separator = true;
        loop {
            is_after_separator |= !self.take(|c| c == '_').is_empty();
            if self.at == self.text.len() {
                return Ok(set);
            }
            let start = self.at;
            let name = self.take(|c| c.is_ascii_lowercase());
            if self.is_of_reference && self.skip_run_description(name, is_after_separator, &mut set)? {
                is_after_separator = false;
                continue;
            }
            self.token(name, start, &mut set)?;
            is_after_separator = false;
        }
    }

    /// Reads the value of the token `name` and sets its option.
    fn token(&mut self, name: &str, start: usize, set: &mut PolicyOverrides) -> Result<()> {
        if name == "s" {
            return self.stride(set);
        }
        let Some(option) = PolicyOption::all().iter().find(|option| option.token_name() == Some(name)) else {
            self.take(|c| c != '_');
            return Err(unknown(&self.text[start..self.at], name, start == 0));
        };
        match option.tag_token() {
            Token::Word(word) => return choose(set, name, word),
            Token::Chooses(_, calibrator) => choose(set, name, calibrator.as_str())?,
            Token::Always(_) | Token::Named(_) | Token::Follows(_) => {}
        }
        let value = self.value(option, name)?;
        once(set, option.name(), name, value)?;
        let follower = PolicyOption::all().iter().find(|option| option.follows() == Some(name));
        if let Some(follower) = follower
            && let Some(word) = self.word(name, follower.form.words())?
        {
            set.put(follower.name(), OptionValue::Word(word));
        }
        Ok(())
    }

    /// The value of an option behind its token.
    fn value(&mut self, option: &PolicyOption, name: &str) -> Result<OptionValue> {
        let value = match option.form {
            OptionForm::Switch => OptionValue::Switch(self.place(name, 2)? == 1),
            // The reference prints 0 for limits that are unset.
            OptionForm::Count(Absent::MinusOne) if self.is_of_reference => match self.number(name)? {
                0 => OptionValue::None,
                limit => OptionValue::Count(limit),
            },
            OptionForm::Count(_) => OptionValue::Count(self.number(name)?),
            OptionForm::Number(_) => OptionValue::Number(self.number(name)?),
            OptionForm::Blocks(_) => OptionValue::Blocks(self.ids(name)?),
            OptionForm::Mask => OptionValue::Mask(self.mask()?),
            OptionForm::Word(words, _) => OptionValue::Word(words[self.place(name, words.len())?]),
        };
        Ok(option.form.settle(value))
    }

    /// A list of blocks: digits, dots and the slash of a range.
    fn ids(&mut self, name: &str) -> Result<BlockIds> {
        let text = self.take(|c| c.is_ascii_digit() || matches!(c, '.' | '/' | ','));
        text.parse().map_err(|error: Error| error.at(format_args!("`{name}`")))
    }

    /// `b12s4`: of the last 12 blocks each 4th, and the very last one; a stride of 0 or 1 means all, as in the reference.
    fn stride(&mut self, set: &mut PolicyOverrides) -> Result<()> {
        let stride = self.number("s")?;
        let Some(&OptionValue::Count(b)) = set.get("Bn_compute_blocks") else {
            return Err(Error::usage("`s` must follow `b`, whose every n-th block it means"));
        };
        let ids = match stride {
            ..2 => OptionValue::None,
            _ => OptionValue::Blocks(BlockIds::range(0, b, stride).ok_or_else(|| no_range(b))?),
        };
        once(set, "Bn_compute_blocks_ids", "s", ids)
    }

    fn mask(&mut self) -> Result<StepsMask> {
        self.take(|c| c == ':' || c == '_');
        let mask = self.take(|c| c.is_ascii_digit());
        let mask = if mask.is_empty() { self.take(|c| c.is_ascii_lowercase()) } else { mask };
        mask.parse()
    }

    /// One of a few words after `:` or `_`, if it is there.
    fn word(&mut self, name: &str, words: &'static [&'static str]) -> Result<Option<&'static str>> {
        let rest = &self.text[self.at..];
        for word in words {
            let after = rest.strip_prefix([':', '_']).and_then(|rest| rest.strip_prefix(word));
            if let Some(after) = after.filter(|after| !after.starts_with(|c: char| c.is_ascii_lowercase())) {
                self.at = self.text.len() - after.len();
                return Ok(Some(word));
            }
        }
        if rest.starts_with(':') {
            return Err(Error::usage(format!("the word after `{name}` must be {}", one_of(words))));
        }
        Ok(None)
    }

    /// Whether the token is a part of the reference's tags that tells about the run and is no setting of the policy.
    fn skip_run_description(
        &mut self,
        name: &str,
        is_after_separator: bool,
        set: &mut PolicyOverrides,
    ) -> Result<bool> {
        match name {
            // Skipped steps of the run; `S` directly after B is a setting.
            "s" if is_after_separator => {
                self.number::<usize>(name)?;
                Ok(true)
            }
            // The share of pruned blocks of the run.
            "p" => {
                self.number::<f64>(name)?;
                Ok(true)
            }
            // The number of steps, and whether there were two guidance branches: the request says so.
            "n" | "cfg" => {
                self.number::<usize>(name)?;
                Ok(true)
            }
            "none" => Ok(true),
            "t" => self.run_time_or_taylorseer(set),
            "dmdh" => self.dmd_of_reference(set).map(|()| true),
            _ => Ok(false),
        }
    }

    /// `T19.43s` is the run's time, `T1O2` TaylorSeer of order 2; `T0O2` none, since the 0 says so, and `T1O0` none as
    /// well. Anything else is one of our own tokens.
    fn run_time_or_taylorseer(&mut self, set: &mut PolicyOverrides) -> Result<bool> {
        let start = self.at;
        let number = self.take(|c| c.is_ascii_digit() || c == '.');
        match self.take(|c| c.is_ascii_lowercase()) {
            "s" if !number.is_empty() => Ok(true),
            "o" => {
                let order: usize = self.number("o")?;
                let is_on = number != "0" && order > 0;
                let calibrator =
                    if is_on { OptionValue::Word(CalibratorType::TaylorSeer.as_str()) } else { OptionValue::None };
                once(set, "calibrator_type", "t", calibrator)?;
                if is_on {
                    set.put("taylorseer_order", OptionValue::Count(order));
                }
                Ok(true)
            }
            _ => {
                self.at = start;
                Ok(false)
            }
        }
    }

    /// `DMDH6`, and `DMDH6h`, which is the same on most devices; `DMDH6l` is not reproducible.
    fn dmd_of_reference(&mut self, set: &mut PolicyOverrides) -> Result<()> {
        once(set, "calibrator_type", "dmdh", OptionValue::Word(CalibratorType::Dmd.as_str()))?;
        set.put("dmd_history", OptionValue::Count(self.number("dmdh")?));
        set.put("dmd_fallback", OptionValue::Word(DmdFallback::Reference.as_str()));
        match self.take(|c| c.is_ascii_lowercase()) {
            "" | "h" => Ok(()),
            "l" => Err(Error::usage(LOW_PRECISION)),
            other => Err(Error::usage(format!("unknown part `{other}` after `dmdh`; expected `h` or nothing"))),
        }
    }

    fn take(&mut self, is_part: impl Fn(char) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let taken = &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())];
        self.at += taken.len();
        taken
    }

    /// The text of a number: digits, a fraction, and an exponent as Python prints it (`1e-05`).
    fn number_text(&mut self) -> &'a str {
        let start = self.at;
        self.take(|c| c.is_ascii_digit() || c == '.');
        let rest = &self.text[self.at..];
        if let Some(exponent) = rest.strip_prefix('e') {
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.starts_with(|c: char| c.is_ascii_digit()) {
                self.at = self.text.len() - digits.len();
                self.take(|c| c.is_ascii_digit());
            }
        }
        &self.text[start..self.at]
    }

    fn number<T: FromStr>(&mut self, name: &str) -> Result<T>
    where
        T::Err: fmt::Display,
    {
        let text = self.number_text();
        text.parse().map_err(|error| {
            Error::usage(match self.text[self.at..].starts_with('-') {
                true if text.is_empty() => {
                    format!("`{name}` needs a number of at least 0; leave `{name}` out for none")
                }
                _ => format!("`{name}` needs a number, got `{text}` ({error})"),
            })
        })
    }

    /// A number below `count`: the place of a value in the list of all.
    fn place(&mut self, name: &str, count: usize) -> Result<usize> {
        let text = self.number_text();
        text.parse().ok().filter(|place| *place < count).ok_or_else(|| {
            let places: Vec<String> = (0..count).map(|place| place.to_string()).collect();
            Error::usage(format!("`{name}` must be {}, got `{text}`", places.join(" or ")))
        })
    }
}

/// Chooses the calibrator of this word.
fn choose(set: &mut PolicyOverrides, name: &str, calibrator: &'static str) -> Result<()> {
    match set.put("calibrator_type", OptionValue::Word(calibrator)) {
        None => Ok(()),
        Some(_) => Err(Error::usage(format!("`{name}` is a second calibrator; remove one"))),
    }
}

/// `part` of a tag, which begins with the letters `name`, is nothing that is known.
fn unknown(part: &str, name: &str, is_first: bool) -> Error {
    let tokens = || PolicyOption::all().iter().filter_map(PolicyOption::token_name).chain(["s"]);
    let near = did_you_mean(name, tokens().chain(PRESETS.into_iter().filter(|_| is_first)));
    let all: Vec<&str> = tokens().collect();
    Error::usage(format!(
        "unknown part `{part}`{near}; expected a preset (none, fb, dbcache, cache-dit, prune) or tokens: {}",
        all.join(", ")
    ))
}

/// Why a stride over the last `b` blocks means nothing.
fn no_range(b: usize) -> Error {
    Error::usage(match b {
        0 => "`s` has no effect on the last 0 blocks; leave it out, or raise `b`".to_owned(),
        _ => format!("`s` strides over at most {} blocks, `b` says {b}", BlockIds::MOST),
    })
}

fn once(set: &mut PolicyOverrides, option: &'static str, name: &str, value: OptionValue) -> Result<()> {
    match set.put(option, value) {
        None => Ok(()),
        Some(_) => Err(Error::usage(format!("`{name}` is given twice; remove one"))),
    }
}
