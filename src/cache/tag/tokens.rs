//! Reading what follows the preset of a tag, token by token.

use std::fmt;
use std::str::FromStr;

use super::super::calibrator::{CalibratorCacheType, CalibratorType, DmdFallback};
use super::super::dbcache::RefreshPolicy;
use super::super::mask::{StepsMask, StepsPolicy};
use super::super::overrides::{BlockIds, OrNone, PolicyOverrides};
use super::PRESETS;
use crate::error::{Error, Result};
use crate::nearest::did_you_mean;

/// Why the reference's randomised decomposition is refused.
pub(in crate::cache) const LOW_PRECISION: &str = "dmd_svd_precision is low, a decomposition with random numbers that \
     nothing else reproduces; use medium";

/// All tokens, for the nearest to a mistyped one.
const TOKENS: [&str; 39] = [
    "f", "b", "r", "w", "i", "m", "mc", "a", "l", "ic", "ds", "cf", "cds", "id", "s", "nt", "np", "mp", "as", "ui",
    "dt", "dm", "dr", "dn", "al", "at", "er", "t", "tf", "foca", "dmd", "ch", "ce", "hs", "dk", "dg", "scm", "fr",
    "sl",
];

/// What is left of a tag.
pub(super) struct Tokens<'a> {
    text: &'a str,
    at: usize,
    is_of_reference: bool,
}

impl<'a> Tokens<'a> {
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
        match name {
            "f" => once(&mut set.fn_compute_blocks, name, self.number(name)?),
            "b" => once(&mut set.bn_compute_blocks, name, self.number(name)?),
            "r" => once(&mut set.residual_diff_threshold, name, self.number(name)?),
            "w" => once(&mut set.max_warmup_steps, name, self.number(name)?),
            "i" => once(&mut set.warmup_interval, name, self.number(name)?),
            "m" => once(&mut set.max_cached_steps, name, self.limit(name)?),
            "mc" => once(&mut set.max_continuous_cached_steps, name, self.limit(name)?),
            "a" => once(&mut set.max_accumulated_residual_diff_threshold, name, OrNone(Some(self.number(name)?))),
            "l" => once(&mut set.l1_hidden_states_diff_threshold, name, OrNone(Some(self.number(name)?))),
            "ic" => once(&mut set.important_condition_threshold, name, OrNone(Some(self.number(name)?))),
            "ds" => once(&mut set.downsample_factor, name, self.number(name)?),
            "cf" => once(&mut set.cfg_compute_first, name, self.switch(name)?),
            "cds" => once(&mut set.cfg_diff_compute_separate, name, self.switch(name)?),
            "id" => {
                let ids = self.ids(name)?;
                once(&mut set.bn_compute_blocks_ids, name, OrNone(Some(ids)))
            }
            "s" => self.stride(set),
            "nt" => once(&mut set.non_compute_blocks_diff_threshold, name, OrNone(Some(self.number(name)?))),
            "np" => {
                let ids = self.ids(name)?;
                once(&mut set.non_prune_block_ids, name, OrNone(Some(ids)))
            }
            "mp" => once(&mut set.max_pruned_steps, name, self.limit(name)?),
            "as" => once(&mut set.compare_all_streams, name, self.switch(name)?),
            "ui" => once(&mut set.residual_cache_update_interval, name, self.number(name)?),
            "dt" => once(&mut set.enable_dynamic_prune_threshold, name, self.switch(name)?),
            "dm" => once(&mut set.max_dynamic_prune_threshold, name, OrNone(Some(self.number(name)?))),
            "dr" => once(&mut set.dynamic_prune_threshold_relax_ratio, name, self.number(name)?),
            "dn" => {
                let diffs = Some(self.number(name)?).filter(|&diffs| diffs > 0);
                once(&mut set.dynamic_prune_threshold_diffs, name, OrNone(diffs))
            }
            "al" => once(&mut set.enable_alter_cache, name, self.switch(name)?),
            "at" => once(&mut set.alter_residual_diff_threshold, name, OrNone(Some(self.number(name)?))),
            "sl" => once(&mut set.separate_block_lists, name, self.switch(name)?),
            "er" => once(&mut set.enable_encoder_residual, name, self.switch(name)?),
            "tf" => once(&mut set.taylorseer_first_step, name, self.number(name)?),
            "t" | "foca" | "dmd" => self.calibrator(name, set),
            "ch" => once(&mut set.enable_calibrator, name, self.switch(name)?),
            "ce" => once(&mut set.enable_encoder_calibrator, name, self.switch(name)?),
            "hs" => {
                let kinds = [CalibratorCacheType::Residual, CalibratorCacheType::HiddenStates];
                once(&mut set.calibrator_cache_type, name, kinds[usize::from(self.switch(name)?)])
            }
            "dk" => once(&mut set.dmd_rank, name, self.number(name)?),
            "dg" => once(&mut set.dmd_ridge, name, self.number(name)?),
            "scm" => self.mask(set),
            "fr" => {
                once(&mut set.force_refresh_step_hint, name, OrNone(Some(self.number(name)?)))?;
                set.force_refresh_step_policy = self.word(name, [RefreshPolicy::Once, RefreshPolicy::Repeat])?;
                Ok(())
            }
            _ => {
                self.take(|c| c != '_');
                let part = &self.text[start..self.at];
                Err(Error::usage(format!(
                    "unknown part `{part}`{}; expected a preset (none, fb, dbcache, cache-dit, prune) or tokens: f, b, \
                     w, i, r, m, mc, a, l, ic, ds, cf, cds, id, s, nt, np, mp, as, ui, dt, dm, dr, dn, al, at, er, sl, fr, t, tf, dmd, \
                     ch, ce, hs, dk, dg with a number, foca, scm: with a mask",
                    did_you_mean(name, TOKENS.into_iter().chain(PRESETS.into_iter().filter(|_| start == 0)))
                )))
            }
        }
    }

    fn calibrator(&mut self, name: &str, set: &mut PolicyOverrides) -> Result<()> {
        let calibrator = match name {
            "t" => {
                set.taylorseer_order = Some(self.number(name)?);
                CalibratorType::TaylorSeer
            }
            "foca" => CalibratorType::FoCa,
            _ => {
                set.dmd_history = Some(self.number(name)?);
                set.dmd_fallback = self.word(name, [DmdFallback::Corrected, DmdFallback::Reference])?;
                CalibratorType::Dmd
            }
        };
        match set.calibrator_type.replace(OrNone(Some(calibrator))) {
            None => Ok(()),
            Some(_) => Err(Error::usage(format!("`{name}` is a second calibrator; remove one"))),
        }
    }

    /// A list of blocks: digits, dots and the slash of a range.
    fn ids(&mut self, name: &str) -> Result<BlockIds> {
        let text = self.take(|c| c.is_ascii_digit() || matches!(c, '.' | '/' | ','));
        text.parse().map_err(|error: Error| error.at(format_args!("`{name}`")))
    }

    /// `b12s4`: of the last 12 blocks each 4th, and the very last one; a stride of 0 or 1 means all, as in the reference.
    fn stride(&mut self, set: &mut PolicyOverrides) -> Result<()> {
        let stride = self.number("s")?;
        let Some(b) = set.bn_compute_blocks else {
            return Err(Error::usage("`s` must follow `b`, whose every n-th block it means"));
        };
        let ids = if stride < 2 { None } else { Some(BlockIds::range(0, b, stride).ok_or_else(|| no_range(b))?) };
        once(&mut set.bn_compute_blocks_ids, "s", OrNone(ids))
    }

    fn mask(&mut self, set: &mut PolicyOverrides) -> Result<()> {
        self.take(|c| c == ':' || c == '_');
        let mask = self.take(|c| c.is_ascii_digit());
        let mask = if mask.is_empty() { self.take(|c| c.is_ascii_lowercase()) } else { mask };
        once(&mut set.steps_computation_mask, "scm", OrNone(Some(mask.parse::<StepsMask>()?)))?;
        set.steps_computation_policy = self.word("scm", [StepsPolicy::Dynamic, StepsPolicy::Static])?;
        Ok(())
    }

    /// One of two words after `:` or `_`, if it is there.
    fn word<T: Copy + fmt::Display>(&mut self, name: &str, words: [T; 2]) -> Result<Option<T>> {
        let rest = &self.text[self.at..];
        for word in words {
            let after = rest.strip_prefix([':', '_']).and_then(|rest| rest.strip_prefix(word.to_string().as_str()));
            if let Some(after) = after.filter(|after| !after.starts_with(|c: char| c.is_ascii_lowercase())) {
                self.at = self.text.len() - after.len();
                return Ok(Some(word));
            }
        }
        if rest.starts_with(':') {
            let [a, b] = words;
            return Err(Error::usage(format!("the word after `{name}` must be `{a}` or `{b}`")));
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
                once(&mut set.calibrator_type, "t", OrNone(is_on.then_some(CalibratorType::TaylorSeer)))?;
                set.taylorseer_order = is_on.then_some(order);
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
        once(&mut set.calibrator_type, "dmdh", OrNone(Some(CalibratorType::Dmd)))?;
        set.dmd_history = Some(self.number("dmdh")?);
        set.dmd_fallback = Some(DmdFallback::Reference);
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

    fn limit(&mut self, name: &str) -> Result<OrNone<usize>> {
        let limit = self.number(name)?;
        Ok(OrNone(if self.is_of_reference && limit == 0 { None } else { Some(limit) }))
    }

    fn switch(&mut self, name: &str) -> Result<bool> {
        match self.number_text() {
            "0" => Ok(false),
            "1" => Ok(true),
            other => Err(Error::usage(format!("`{name}` must be 0 or 1, got `{other}`"))),
        }
    }
}

/// Why a stride over the last `b` blocks means nothing.
fn no_range(b: usize) -> Error {
    Error::usage(match b {
        0 => "`s` has no effect on the last 0 blocks; leave it out, or raise `b`".to_owned(),
        _ => format!("`s` strides over at most {} blocks, `b` says {b}", BlockIds::MOST),
    })
}

fn once<T>(field: &mut Option<T>, name: &str, value: T) -> Result<()> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(Error::usage(format!("`{name}` is given twice; remove one"))),
    }
}
