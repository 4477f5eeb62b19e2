//! Tags: a policy with its options in one word, such as `f8b16w8i1r0.12m10mc3a0.5`.
//!
//! ```text
//! tag     = preset | [preset "_"] token*           in any order, any case, "_" allowed between tokens
//! preset  = "none" | "fb" | "dbcache" | "cache-dit"
//! token   = name value | "scm:" mask [":" ("dynamic" | "static")] | "fr" calls [":" ("once" | "repeat")]
//! mask    = digits of 1 and 0 | "slow" | "medium" | "fast" | "ultra"
//! ```
//!
//! A tag without a preset starts from `dbcache`. Tags that the reference prints about its runs begin with `DBCache_`
//! and are read as well; there M0 and MC0 mean no limit, since the reference prints them for unset limits.

use std::fmt;
use std::str::FromStr;

use super::dbcache::{DbCacheConfig, RefreshPolicy};
use super::mask::{StepsMask, StepsPolicy};
use super::overrides::{OrNone, PolicyOverrides};
use super::{PolicyConfig, json};
use crate::error::{Error, Result};

impl PolicyConfig {
    /// Parses a tag. What it leaves out comes from its preset, or from [`DbCacheConfig::default`].
    ///
    /// | token | option | token | option |
    /// | --- | --- | --- | --- |
    /// | `f` | `Fn_compute_blocks` | `a` | `max_accumulated_residual_diff_threshold` |
    /// | `b` | `Bn_compute_blocks` | `l` | `l1_hidden_states_diff_threshold` |
    /// | `w` | `max_warmup_steps` | `ic` | `important_condition_threshold` |
    /// | `i` | `warmup_interval` | `ds` | `downsample_factor` |
    /// | `r` | `residual_diff_threshold` | `cf` | `cfg_compute_first`, 0 or 1 |
    /// | `m` | `max_cached_steps` | `cds` | `cfg_diff_compute_separate`, 0 or 1 |
    /// | `mc` | `max_continuous_cached_steps` | `scm:` | `steps_computation_mask` and `_policy` |
    /// | | | `fr` | `force_refresh_step_hint` and `_policy` |
    ///
    /// Presets: `none`; `fb` ([`DbCacheConfig::fb`]); `dbcache` ([`DbCacheConfig::default`]); `cache-dit`
    /// ([`DbCacheConfig::cache_dit`]).
    ///
    /// # Errors
    /// `Usage` for anything else, for a token given twice, and for impossible values.
    pub fn from_tag(tag: &str) -> Result<Self> {
        let at_tag = |error: Error| error.at(format_args!("policy `{tag}`"));
        parse(&tag.trim().to_ascii_lowercase()).map_err(at_tag)
    }
}

impl FromStr for PolicyConfig {
    type Err = Error;

    /// Parses a JSON object if the text starts with `{`, else a tag.
    fn from_str(text: &str) -> Result<Self> {
        if text.trim_start().starts_with('{') { json::parse(text) } else { Self::from_tag(text) }
    }
}

/// The canonical tag: limits that are unset and options of their default value are left out, except F, B, W, I and R.
impl fmt::Display for PolicyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::DbCache(config) => print(config, f),
        }
    }
}

fn print(config: &DbCacheConfig, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    fn optional(out: &mut fmt::Formatter<'_>, name: &str, value: Option<impl fmt::Display>) -> fmt::Result {
        value.map_or(Ok(()), |value| write!(out, "{name}{value}"))
    }
    // Without `..`: a new option must be printed here, or the tag would not parse back to the same value.
    let DbCacheConfig {
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
    if let Some(calls) = force_refresh_step_hint {
        write!(out, "_fr{calls}")?;
        if *force_refresh_step_policy != RefreshPolicy::Once {
            write!(out, ":{force_refresh_step_policy}")?;
        }
    }
    if let Some(mask) = steps_computation_mask {
        write!(out, "_scm:{mask}")?;
        if *steps_computation_policy != StepsPolicy::Dynamic {
            write!(out, ":{steps_computation_policy}")?;
        }
    }
    Ok(())
}

/// The named starting points, and how they are written.
pub(super) fn preset(name: &str) -> Result<PolicyConfig> {
    match name.to_ascii_lowercase().as_str() {
        "none" | "no_cache" | "nocache" | "nc" => Ok(PolicyConfig::None),
        "fb" | "fbcache" | "first_block_cache" => Ok(PolicyConfig::DbCache(DbCacheConfig::fb())),
        "db" | "dbcache" | "db_cache" | "dual_block_cache" => Ok(PolicyConfig::DbCache(DbCacheConfig::default())),
        "cache-dit" | "cache_dit" => Ok(PolicyConfig::DbCache(DbCacheConfig::cache_dit())),
        "dbp" | "dbprune" | "db_prune" | "dynamic_block_prune" => {
            Err(Error::usage("DBPrune is not supported yet; use `dbcache`"))
        }
        _ => Err(Error::usage(format!("unknown policy `{name}`; expected `none`, `fb`, `dbcache` or `cache-dit`"))),
    }
}

/// Presets as a tag may begin with them, longest first.
const PRESETS: [&str; 7] = ["cache-dit", "cache_dit", "fbcache", "dbcache", "dbprune", "none", "fb"];

fn parse(tag: &str) -> Result<PolicyConfig> {
    let found = PRESETS.into_iter().find_map(|name| {
        let rest = tag.strip_prefix(name)?;
        (rest.is_empty() || rest.starts_with('_')).then_some((name, rest))
    });
    let (name, tokens) = found.unwrap_or(("dbcache", tag));
    let base = preset(name)?;
    if tag.is_empty() {
        return Err(Error::usage("is empty; write for example `dbcache`, `f8b8r0.12` or `none`"));
    }
    // The reference always prints its name in front; our own tags never do.
    let is_of_reference = found.is_some() && name == "dbcache" && !tokens.is_empty();
    base.with(&Tokens { text: tokens, at: 0, is_of_reference }.overrides()?)
}

/// What is left of a tag.
struct Tokens<'a> {
    text: &'a str,
    at: usize,
    is_of_reference: bool,
}

impl<'a> Tokens<'a> {
    fn overrides(mut self) -> Result<PolicyOverrides> {
        let mut set = PolicyOverrides::default();
        let mut is_after_separator = true;
        loop {
            is_after_separator |= !self.take(|c| c == '_').is_empty();
            if self.at == self.text.len() {
                return Ok(set);
            }
            let start = self.at;
            let name = self.take(|c| c.is_ascii_lowercase());
            if self.is_of_reference && self.skip_run_description(name, start, is_after_separator)? {
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
                    "unknown part `{part}`; expected a preset (none, fb, dbcache, cache-dit) or tokens: f, b, w, i, r, \
                     m, mc, a, l, ic, ds, cf, cds, fr with a number, scm: with a mask"
                )))
            }
        }
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
    fn skip_run_description(&mut self, name: &str, start: usize, is_after_separator: bool) -> Result<bool> {
        match name {
            // Skipped steps of the run; `S` directly after B is a setting.
            "s" if is_after_separator => {
                self.number::<usize>(name)?;
                Ok(true)
            }
            "s" => Err(Error::usage(
                "S after B (computing every n-th tail block only, Bn_compute_blocks_ids) is not supported yet; remove \
                 it to compute the whole tail",
            )),
            // The number of steps, and whether there were two guidance branches: the request says so.
            "n" | "cfg" => {
                self.number::<usize>(name)?;
                Ok(true)
            }
            "none" => Ok(true),
            "t" | "foca" | "dmdh" => self.skip_calibrator(name, start),
            _ => Ok(false),
        }
    }

    /// `T19.43s` is the run's time. Of the calibrators only `T0O0` (none) is no error.
    fn skip_calibrator(&mut self, name: &str, start: usize) -> Result<bool> {
        self.take(|c| c.is_ascii_digit() || c == '.');
        if name == "t" && self.text[self.at..].starts_with('s') {
            self.at += 1;
            return Ok(true);
        }
        let order = self.take(|c| c.is_ascii_lowercase());
        let order = if order == "o" { self.take(|c| c.is_ascii_digit()) } else { order };
        if name == "t" && order == "0" {
            return Ok(true);
        }
        let calibrator = match name {
            "t" => "TaylorSeer",
            "foca" => "FoCa",
            _ => "DMD",
        };
        let part = self.text[start..self.at].to_ascii_uppercase();
        Err(Error::usage(format!("the calibrator {calibrator} ({part}) is not supported yet; write T0O0 or remove it")))
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
        text.parse().map_err(|error| Error::usage(format!("`{name}` needs a number, got `{text}` ({error})")))
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

fn once<T>(field: &mut Option<T>, name: &str, value: T) -> Result<()> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(Error::usage(format!("`{name}` is given twice; remove one"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::MaskPreset;
    use super::*;
    use proptest::prelude::*;

    fn config(tag: &str) -> Result<DbCacheConfig> {
        match PolicyConfig::from_tag(tag)? {
            PolicyConfig::DbCache(config) => Ok(config),
            other => Err(Error::internal(format!("{tag} is {other}"))),
        }
    }

    fn error(tag: &str) -> String {
        PolicyConfig::from_tag(tag).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn tokens_come_in_any_order_and_case() -> Result<()> {
        let expected = DbCacheConfig {
            bn_compute_blocks: 16,
            max_cached_steps: Some(10),
            max_continuous_cached_steps: Some(3),
            max_accumulated_residual_diff_threshold: Some(0.5),
            ..Default::default()
        };
        let canonical = "f8b16w8i1r0.12m10mc3a0.5";
        for tag in
            [canonical, " F8B16W8I1R0.12M10MC3A0.5 ", "b16_mc3_m10_a0.5", "_a.5__MC3b16m10_", "r1.2e-1b16mc3m10a5e-1"]
        {
            assert_eq!(config(tag)?, expected, "{tag}");
            assert_eq!(PolicyConfig::from_tag(tag)?.to_string(), canonical);
        }
        Ok(())
    }

    #[test]
    fn presets_are_starting_points() -> Result<()> {
        for (tag, canonical) in [
            ("none", "none"),
            ("fb", "f1b0w8i1r0.08m8"),
            ("FBCache_r0.05", "f1b0w8i1r0.05m8"),
            ("dbcache", "f8b8w8i1r0.12"),
            ("cache-dit", "f8b0w8i1r0.08"),
            ("cache-dit_f4_w4", "f4b0w4i1r0.08"),
            ("f4", "f4b8w8i1r0.12"),
            ("scm:fast", "f8b8w8i1r0.12_scm:fast"),
            ("f1_SCM_Fast_Static_b2", "f1b2w8i1r0.12_scm:fast:static"),
            ("f1scm:1101b2", "f1b2w8i1r0.12_scm:1101"),
            ("scm:1101:dynamic", "f8b8w8i1r0.12_scm:1101"),
            ("f4_FR9_ONCE_b2", "f4b2w8i1r0.12_fr9"),
            ("fr9_repeat_scm:fast", "f8b8w8i1r0.12_fr9:repeat_scm:fast"),
            ("l0.05ic0.06ds4cf1cds0", "f8b8w8i1r0.12l0.05ic0.06ds4cf1cds0"),
        ] {
            assert_eq!(PolicyConfig::from_tag(tag)?.to_string(), canonical, "{tag}");
        }
        Ok(())
    }

    #[test]
    fn tags_of_the_reference_are_read() -> Result<()> {
        for (tag, canonical) in [
            ("DBCache_F8B0_W8I1M0MC0_R0.08_SCM1110_dynamic_CFG0_T0O0_S21", "f8b0w8i1r0.08_scm:1110"),
            ("DBCache_F1B0_W6I1M3MC2_R1e-05_SCM1101_static_N4_CFG1_NONE", "f1b0w6i1r0.00001m3mc2_scm:1101:static"),
            ("DBCACHE_F8B8_R0.2_S16_T19.43s", "f8b8w8i1r0.2"),
            ("dbcache_f1b0_w4m0mc0_t0o0_r1.0", "f1b0w4i1r1"),
        ] {
            assert_eq!(PolicyConfig::from_tag(tag)?.to_string(), canonical, "{tag}");
        }
        // In our own tags 0 is a limit.
        assert_eq!(config("f8m0mc0")?.max_cached_steps, Some(0));
        Ok(())
    }

    #[test]
    fn refusals_name_the_part_and_the_remedy() {
        for (tag, words) in [
            ("", "is empty"),
            ("none_f4", "the policy `none` has no option Fn_compute_blocks"),
            ("dbprune", "DBPrune is not supported yet"),
            ("DBPrune_F1B0_W4I1M0MC0_R0.0475_P57.14_T0O0_S22", "DBPrune is not supported yet"),
            ("f8f8", "`f` is given twice"),
            ("f8_b", "`b` needs a number, got ``"),
            ("f8.5", "`f` needs a number, got `8.5`"),
            ("f-1", "`f` needs a number"),
            ("f99999999999999999999999", "too large"),
            ("r0.1.2", "`r` needs a number"),
            ("rnan", "unknown part `rnan`"),
            ("q7", "unknown part `q7`"),
            ("8", "unknown part `8`"),
            ("f8 b8", "unknown part ` b8`"),
            ("f8übar", "unknown part `übar`"),
            ("cf2", "`cf` must be 0 or 1, got `2`"),
            ("scm:", "unknown steps_computation_mask ``"),
            ("scm:12", "unknown steps_computation_mask `12`"),
            ("scm:fast:quick", "after `scm` must be `dynamic` or `static`"),
            ("scm:fast_scm:slow", "`scm` is given twice"),
            ("f8b8s4", "unknown part `s4`"),
            ("DBCACHE_F12B12S4_R0.2_S16", "Bn_compute_blocks_ids"),
            ("fr9:often", "after `fr` must be `once` or `repeat`"),
            ("DBCACHE_F8B0_W8M0MC0_T0O2_R0.26_S27", "the calibrator TaylorSeer (T0O2) is not supported yet"),
            ("DBCache_F1B2_W4I1M0MC0_R0.14_CFG0_T1O1_S22", "the calibrator TaylorSeer (T1O1)"),
            ("DBCache_F1B2_W4I1M0MC0_R0.14_CFG0_FoCa_S22", "the calibrator FoCa (FOCA)"),
            ("DBCache_F1B2_W4I1M0MC0_R0.14_CFG0_DMDH6l_S22", "the calibrator DMD (DMDH6L)"),
            ("DBCache_F1B2_R0.14_Ulysses2", "unknown part `ulysses2`"),
        ] {
            let error = error(tag);
            assert!(error.contains(words), "{tag}: `{error}` lacks `{words}`");
        }
    }

    /// Any legal value; those that are refused together are sorted out.
    pub(crate) fn any_config() -> impl Strategy<Value = PolicyConfig> {
        let number = || prop_oneof![(0u32..2000).prop_map(|n| f64::from(n) / 1000.0), 1e-12..1e12f64];
        let mask = prop_oneof![
            prop::collection::vec(any::<bool>(), 1..60).prop_map(StepsMask::Steps),
            prop::sample::select(&MaskPreset::ALL[..]).prop_map(StepsMask::Preset),
        ];
        let blocks = (1..100usize, 0..100usize, number(), 0..100usize, 1..9usize);
        let limits = (prop::option::of(0..99usize), prop::option::of(0..99usize), prop::option::of(number()));
        let masks = (prop::option::of(mask), any::<bool>());
        let rest = (any::<bool>(), any::<bool>(), prop::option::of(number()), prop::option::of(number()), 1..9usize);
        let refresh = (prop::option::of(1..99usize), any::<bool>());
        (blocks, limits, masks, refresh, rest).prop_filter_map("legal", |(blocks, limits, masks, refresh, rest)| {
            let config = DbCacheConfig {
                fn_compute_blocks: blocks.0,
                bn_compute_blocks: blocks.1,
                residual_diff_threshold: blocks.2,
                max_warmup_steps: blocks.3,
                warmup_interval: blocks.4,
                max_cached_steps: limits.0,
                max_continuous_cached_steps: limits.1,
                max_accumulated_residual_diff_threshold: limits.2,
                steps_computation_mask: masks.0,
                steps_computation_policy: if masks.1 { StepsPolicy::Static } else { StepsPolicy::Dynamic },
                force_refresh_step_hint: refresh.0,
                force_refresh_step_policy: if refresh.1 { RefreshPolicy::Repeat } else { RefreshPolicy::Once },
                cfg_compute_first: rest.0,
                cfg_diff_compute_separate: rest.1,
                l1_hidden_states_diff_threshold: rest.2,
                important_condition_threshold: rest.3,
                downsample_factor: rest.4,
            };
            config.check().is_ok().then_some(PolicyConfig::DbCache(config))
        })
    }

    proptest! {
        #[test]
        fn tags_and_json_round_trip(config in any_config()) {
            prop_assert_eq!(&PolicyConfig::from_tag(&config.to_string())?, &config);
            prop_assert_eq!(&config.to_string().to_uppercase().parse::<PolicyConfig>()?, &config);
            prop_assert_eq!(&config.to_json().to_string().parse::<PolicyConfig>()?, &config);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(DBCache_|fb_|)[a-zA-Z0-9_.:{}\\-é]{0,24}") {
            if let Ok(config) = text.parse::<PolicyConfig>() {
                prop_assert_eq!(config.to_string().parse::<PolicyConfig>()?, config);
            }
        }
    }
}
