//! Tags: a policy with its options in one word, such as `f8b16w8i1r0.12m10mc3a0.5`.
//!
//! ```text
//! tag     = preset | [preset "_"] token*           in any order, any case, "_" allowed between tokens
//! preset  = "none" | "fb" | "dbcache" | "cache-dit" | "prune"
//! token   = name value | "scm:" mask [":" ("dynamic" | "static")] | "fr" calls [":" ("once" | "repeat")]
//!         | "foca" | "dmd" history [":" ("corrected" | "reference")]
//! mask    = digits of 1 and 0 | "slow" | "medium" | "fast" | "ultra"
//! ```
//!
//! A tag without a preset starts from `dbcache`. Tags that the reference prints about its runs begin with `DBCache_`
//! or `DBPrune_` and are read as well; there M0 and MC0 mean no limit, since the reference prints them for unset
//! limits, T1O2 is TaylorSeer of order 2, T0 none whatever its order, and DMDH6 falls back to the reference's slope.

mod print;
mod tokens;

use std::str::FromStr;

use self::tokens::TagTokens;
use super::presets::{PRESETS, preset};
use super::{PolicyConfig, json};
use crate::error::{Error, Result};

impl PolicyConfig {
    /// Parses a tag. What it leaves out comes from its preset, or from [`DbCacheConfig::default`](super::DbCacheConfig::default).
    ///
    /// The tokens of all options are in docs/cache-tags.md, which is made from the table of options.
    ///
    /// Presets: `none`; `fb` ([`DbCacheConfig::fb`](super::DbCacheConfig::fb)); `dbcache` ([`DbCacheConfig::default`](super::DbCacheConfig::default)); `cache-dit`
    /// ([`DbCacheConfig::cache_dit`](super::DbCacheConfig::cache_dit)); `prune` ([`DbPruneConfig::default`](super::DbPruneConfig::default)).
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

fn parse(tag: &str) -> Result<PolicyConfig> {
    let found = PRESETS.into_iter().find_map(|name| {
        let rest = tag.strip_prefix(name)?;
        (rest.is_empty() || rest.starts_with('_')).then_some((name, rest))
    });
    let (name, tokens) = found.unwrap_or(if tag.starts_with("replay") { (tag, "") } else { ("dbcache", tag) });
    let base = preset(name)?;
    if tag.is_empty() {
        return Err(Error::usage("is empty; write for example `dbcache`, `f8b8r0.12` or `none`"));
    }
    // The reference always prints its name in front; our own tags never do.
    let is_of_reference = found.is_some() && ["dbcache", "dbprune"].contains(&name) && !tokens.is_empty();
    base.with(&TagTokens::new(tokens, is_of_reference).overrides()?)
}

#[cfg(test)]
mod tests {
    use super::super::calibrator::*;
    use super::super::dbcache::DbCacheConfig;
    use super::super::dbprune::DbPruneConfig;
    use super::super::mask::{MaskPreset, StepsMask, StepsPolicy};
    use super::super::schedule::RefreshPolicy;
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
            ("f12b12s4", "f12b12w8i1r0.12_id0.4.8.11"),
            ("f16b16id0..16/2", "f16b16w8i1r0.12_id0.2.4.6.8.10.12.14.15"),
            ("prune_np2..9/3,4", "prune_f8b8w8i1r0.08_np0.2.4.5.8"),
            ("scm:1101:dynamic", "f8b8w8i1r0.12_scm:1101"),
            ("f4_FR9_ONCE_b2", "f4b2w8i1r0.12_fr9"),
            ("fr9_repeat_scm:fast", "f8b8w8i1r0.12_fr9:repeat_scm:fast"),
            ("prune", "prune_f8b8w8i1r0.08"),
            ("prune_ui3mp2np5.2dt1dm0.2dr1.5dn0", "prune_f8b8w8i1r0.08mp2ui3dt1dm0.2dr1.5dn0_np2.5"),
            ("b4id2.0", "f8b4w8i1r0.12_id0.2"),
            ("l0.05ic0.06ds4cf1cds0", "f8b8w8i1r0.12l0.05ic0.06ds4cf1cds0"),
            ("at0.2al1", "f8b8w8i1r0.12al1at0.2"),
            ("T1f1", "f1b8w8i1r0.12_t1"),
            ("er0T3tf2ce0", "f8b8w8i1r0.12er0_t3_tf2_ce0"),
            ("sl1f4", "f4b8w8i1r0.12sl1"),
            ("prune_sl1", "prune_f8b8w8i1r0.08sl1"),
            ("t1tf3", "f8b8w8i1r0.12_t1"),
            ("FoCa_ch0", "f8b8w8i1r0.12_foca_ch0"),
            ("t2ce0hs1_scm:fast", "f8b8w8i1r0.12_scm:fast_t2_ce0_hs1"),
            ("dmd6_REFERENCE_dk2dg1e-6", "f8b8w8i1r0.12_dmd6:reference_dk2_dg0.000001"),
            ("dmd5:corrected_dg0.00000001", "f8b8w8i1r0.12_dmd5"),
            ("prune_dmd4_ce0", "prune_f8b8w8i1r0.08_dmd4_ce0"),
            ("dbcache_t2_f1", "f1b8w8i1r0.12_t2"),
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
            ("DBCACHE_F12B12S4_R0.2_S16", "f12b12w8i1r0.2_id0.4.8.11"),
            ("DBCACHE_F12B16S2_R0.2_S16", "f12b16w8i1r0.2_id0.2.4.6.8.10.12.14.15"),
            ("DBCACHE_F12B12S1_R0.2", "f12b12w8i1r0.2"),
            ("DBPrune_F1B0_W4I1M0MC0_R0.0475_P57.14_T0O0_S22", "prune_f1b0w4i1r0.0475"),
            ("DBPRUNE_F1B0_R0.03_P24.0_T19.43s", "prune_f1b0w8i1r0.03"),
            ("DBCACHE_F8B0_W8M0MC0_T0O2_R0.26_S27", "f8b0w8i1r0.26"),
            ("DBCACHE_F1B0_W8M0MC0_T1O2_R0.26_S27_T19.43s", "f1b0w8i1r0.26_t2"),
            ("DBCache_F1B2_W4I1M0MC0_R0.14_CFG0_T1O0_S22", "f1b2w4i1r0.14"),
            ("DBCache_F1B2_W4I1M0MC0_R0.14_CFG0_T1O1_S22", "f1b2w4i1r0.14_t1"),
            ("DBCache_F1B2_W4I1M0MC0_R0.14_CFG0_FoCa_S22", "f1b2w4i1r0.14_foca"),
            ("DBCache_F1B2_W4I1M0MC0_R0.14_CFG0_DMDH6_S22", "f1b2w4i1r0.14_dmd6:reference"),
            ("DBCache_F1B2_W4I1M0MC0_R0.14_CFG0_DMDH5h_S22", "f1b2w4i1r0.14_dmd5:reference"),
            ("DBPrune_F1B0_W4I1M0MC0_R0.0875_P51.79_T1O1_S22", "prune_f1b0w4i1r0.0875_t1"),
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
            ("prune_a0.5", "the policy `prune` has no option max_accumulated_residual_diff_threshold"),
            ("prune_l0.5", "has no option l1_hidden_states_diff_threshold; use residual_diff_threshold"),
            ("f8mp3", "the policy `dbcache` has no option max_pruned_steps"),
            ("prune_dr1.5", "has no effect without enable_dynamic_prune_threshold"),
            ("f8b8nt0.1", "has no effect without Bn_compute_blocks_ids"),
            ("f8b8id0.8", "must list some of the tail's blocks 0 to 7"),
            ("f8b8id", "is no list of blocks"),
            ("f8f8", "`f` is given twice"),
            ("f8_b", "`b` needs a number, got ``"),
            ("f8.5", "`f` needs a number, got `8.5`"),
            ("f-1", "`f` needs a number"),
            ("f99999999999999999999999", "too large"),
            ("r0.1.2", "`r` needs a number"),
            ("rnan", "unknown part `rnan`"),
            ("q7", "unknown part `q7`; expected"),
            ("f8bn4", "unknown part `bn4` (did you mean `b`?)"),
            ("f8_foac", "unknown part `foac` (did you mean `foca`?)"),
            ("f8smc:fast", "unknown part `smc:fast` (did you mean `scm`?)"),
            ("dbcahce", "unknown part `dbcahce` (did you mean `dbcache`?)"),
            ("f8b0s2", "`s` has no effect on the last 0 blocks"),
            ("f8b20000s2", "at most 10000 blocks"),
            ("fb_mp3", "the policy `fb` has no option max_pruned_steps"),
            ("cache-dit_mp3", "the policy `cache-dit` has no option max_pruned_steps"),
            ("8", "unknown part `8`"),
            ("f8 b8", "unknown part ` b8`"),
            ("f8übar", "unknown part `übar`"),
            ("cf2", "`cf` must be 0 or 1, got `2`"),
            ("scm:", "unknown steps_computation_mask ``"),
            ("scm:12", "unknown steps_computation_mask `12`"),
            ("scm:fast:quick", "after `scm` must be `dynamic` or `static`"),
            ("scm:fast_scm:slow", "`scm` is given twice"),
            ("DBCACHE_F12S4_R0.2_S16", "`s` must follow `b`"),
            ("fr9:often", "after `fr` must be `once` or `repeat`"),
            ("DBCache_F1B2_W4I1M0MC0_R0.14_CFG0_DMDH6l_S22", "dmd_svd_precision is low"),
            ("DBCache_F1B2_W4I1M0MC0_R0.14_CFG0_DMDH6x_S22", "unknown part `x` after `dmdh`"),
            ("t0", "leave the calibrator out"),
            ("t1tf0", "taylorseer_first_step is 0"),
            ("t1er0", "enable_encoder_calibrator has no effect"),
            ("prune_er0", "the policy `prune` has no option enable_encoder_residual"),
            ("foca_tf2", "taylorseer_first_step has no effect: the calibrator is foca"),
            ("t1_foca", "`foca` is a second calibrator"),
            ("t1_t2", "`t` is a second calibrator"),
            ("dmd3", "use 4 or more"),
            ("dmd6:exact", "after `dmd` must be `corrected` or `reference`"),
            ("dmd", "`dmd` needs a number"),
            ("ce0", "enable_encoder_calibrator has no effect: there is no calibrator"),
            ("t1_dk2", "dmd_rank has no effect: the calibrator is taylorseer"),
            ("t1_ch0_ce0", "are both false"),
            ("none_t1", "the policy `none` has no option calibrator_type"),
            ("prune_t1_hs1", "which DBPrune does not have"),
            ("at0.5", "has no effect without enable_alter_cache"),
            ("al1_scm:fast", "both say which steps"),
            ("prune_al1", "the policy `prune` has no option enable_alter_cache"),
            ("T0O2", "unknown part `o2`"),
            ("DBCache_F1B2_R0.14_Ulysses2", "unknown part `ulysses2`"),
        ] {
            let error = error(tag);
            assert!(error.contains(words), "{tag}: `{error}` lacks `{words}`");
        }
    }

    fn number() -> impl Strategy<Value = f64> + Clone {
        prop_oneof![(0u32..2000).prop_map(|n| f64::from(n) / 1000.0), 1e-12..1e12f64]
    }

    fn limit() -> impl Strategy<Value = Option<usize>> {
        prop::option::of(0..99usize)
    }

    fn mask() -> impl Strategy<Value = Option<StepsMask>> {
        prop::option::of(prop_oneof![
            prop::collection::vec(any::<bool>(), 1..60).prop_map(StepsMask::Steps),
            prop::sample::select(&MaskPreset::ALL[..]).prop_map(StepsMask::Preset),
        ])
    }

    fn policies() -> impl Strategy<Value = (StepsPolicy, RefreshPolicy)> {
        any::<(bool, bool)>().prop_map(|(is_static, repeats)| {
            (
                if is_static { StepsPolicy::Static } else { StepsPolicy::Dynamic },
                if repeats { RefreshPolicy::Repeat } else { RefreshPolicy::Once },
            )
        })
    }

    prop_compose! {
        fn any_calibrator()(
            which in 0..3,
            counts in (1..9usize, 4..9usize, 0..4usize, 1..5usize),
            ridge in prop_oneof![Just(1e-8), number()],
            switches in any::<(bool, bool, bool, bool)>(),
        ) -> CalibratorConfig {
            let dmd_fallback = if switches.0 { DmdFallback::Reference } else { DmdFallback::Corrected };
            CalibratorConfig {
                kind: match which {
                    0 => CalibratorKind::TaylorSeer { taylorseer_order: counts.0, taylorseer_first_step: counts.3 },
                    1 => CalibratorKind::FoCa,
                    _ => CalibratorKind::Dmd {
                        dmd_history: counts.1,
                        dmd_rank: counts.2,
                        dmd_ridge: ridge,
                        dmd_fallback,
                    },
                },
                enable_calibrator: switches.1,
                enable_encoder_calibrator: switches.2 || !switches.1,
                calibrator_cache_type: if switches.3 {
                    CalibratorCacheType::HiddenStates
                } else {
                    CalibratorCacheType::Residual
                },
            }
        }
    }

    prop_compose! {
        fn any_cache()(
            blocks in (1..100usize, 0..100usize, 0..100usize, 1..9usize, 1..9usize),
            limits in (limit(), limit(), limit()),
            numbers in (number(), prop::collection::vec(prop::option::of(number()), 5)),
            mask in mask(),
            policies in policies(),
            switches in any::<(bool, bool, bool, bool, bool)>(),
            ids in prop::option::of(prop::collection::btree_set(0..99usize, 1..5)),
            calibrator in prop::option::of(any_calibrator()),
        ) -> PolicyConfig {
            PolicyConfig::DbCache(DbCacheConfig {
                fn_compute_blocks: blocks.0,
                bn_compute_blocks: blocks.1,
                bn_compute_blocks_ids: ids.map(|ids| ids.into_iter().collect()),
                non_compute_blocks_diff_threshold: numbers.1[3],
                residual_diff_threshold: numbers.0,
                max_warmup_steps: blocks.2,
                warmup_interval: blocks.3,
                max_cached_steps: limits.0,
                max_continuous_cached_steps: limits.1,
                max_accumulated_residual_diff_threshold: numbers.1[0],
                steps_computation_mask: mask,
                steps_computation_policy: policies.0,
                force_refresh_step_hint: limits.2,
                force_refresh_step_policy: policies.1,
                cfg_compute_first: switches.0,
                cfg_diff_compute_separate: switches.1,
                l1_hidden_states_diff_threshold: numbers.1[1],
                important_condition_threshold: numbers.1[2],
                downsample_factor: blocks.4,
                enable_alter_cache: switches.2,
                alter_residual_diff_threshold: numbers.1[4].filter(|_| switches.2),
                enable_encoder_residual: switches.3,
                separate_block_lists: switches.4,
                calibrator,
            })
        }
    }

    prop_compose! {
        fn any_prune()(
            blocks in (0..100usize, 0..100usize, 0..100usize, 1..9usize, 1..9usize, 1..9usize),
            limits in (limit(), limit(), limit(), limit(), limit()),
            numbers in (number(), number(), prop::option::of(number()), prop::option::of(number())),
            mask in mask(),
            policies in policies(),
            switches in any::<(bool, bool, bool, bool)>(),
            ids in prop::collection::btree_set(0..99usize, 0..5),
            calibrator in prop::option::of(any_calibrator()),
        ) -> PolicyConfig {
            PolicyConfig::DbPrune(DbPruneConfig {
                fn_compute_blocks: blocks.0,
                bn_compute_blocks: blocks.1,
                non_prune_block_ids: ids.into_iter().collect(),
                residual_diff_threshold: numbers.0,
                max_warmup_steps: blocks.2,
                warmup_interval: blocks.3,
                max_cached_steps: limits.0,
                max_pruned_steps: limits.1,
                max_continuous_cached_steps: limits.2,
                steps_computation_mask: mask,
                steps_computation_policy: policies.0,
                force_refresh_step_hint: limits.3,
                force_refresh_step_policy: policies.1,
                cfg_compute_first: switches.0,
                enable_dynamic_prune_threshold: switches.1,
                max_dynamic_prune_threshold: numbers.2.filter(|_| switches.1),
                dynamic_prune_threshold_relax_ratio: if switches.1 { numbers.1 } else { 1.25 },
                dynamic_prune_threshold_diffs: if switches.1 { limits.4 } else { Some(5) },
                residual_cache_update_interval: blocks.4,
                important_condition_threshold: numbers.3,
                downsample_factor: blocks.5,
                compare_all_streams: switches.2,
                separate_block_lists: switches.3,
                calibrator: calibrator.map(|calibrator| CalibratorConfig {
                    calibrator_cache_type: CalibratorCacheType::Residual,
                    ..calibrator
                }),
            })
        }
    }

    /// Any legal value.
    fn any_config() -> impl Strategy<Value = PolicyConfig> {
        prop_oneof![any_cache(), any_prune()].prop_filter("legal", |config| config.check().is_ok())
    }

    proptest! {
        #[test]
        fn tags_and_json_round_trip(config in any_config()) {
            prop_assert_eq!(&PolicyConfig::from_tag(&config.to_string())?, &config);
            prop_assert_eq!(&config.to_string().to_uppercase().parse::<PolicyConfig>()?, &config);
            prop_assert_eq!(&config.to_json().to_string().parse::<PolicyConfig>()?, &config);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(DBCache_|prune_|)[a-zA-Z0-9_.:{}\\-é]{0,24}") {
            if let Ok(config) = text.parse::<PolicyConfig>() {
                prop_assert_eq!(config.to_string().parse::<PolicyConfig>()?, config);
            }
        }
    }
}
