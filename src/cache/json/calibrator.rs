//! The calibrator in JSON: as a nested object with the fields of cache-dit's calibrator configs, or flat with the keys
//! of its dictionary loader.

use serde_json::{Map, Value as Json};

use super::super::calibrator::{CalibratorType, LOW_PRECISION};
use super::super::option::{OptionValue, PolicyOption};
use super::super::overrides::PolicyOverrides;
use super::{OLD_NAMES, is_off, known, switch, text, wrong_type};
use crate::error::{Error, Result};

/// Sets what `key` says, which is not null; `false` if it is no key of calibrators but the name of an option, or unknown.
pub(super) fn option(key: &str, value: &Json, set: &mut PolicyOverrides) -> Result<bool> {
    match key {
        "calibrator" | "calibrator_config" => nested(key, value, set)?,
        "calibrator_type" => set_type(text(key, value)?.parse()?, set)?,
        "dmd_svd_precision" => check_precision(text(key, value)?)?,
        "calibrator_kwargs" if value.as_object().is_some_and(Map::is_empty) => {}
        _ => return legacy(key, value, set),
    }
    Ok(true)
}

fn nested(key: &str, value: &Json, set: &mut PolicyOverrides) -> Result<()> {
    let Some(object) = value.as_object() else { return Err(wrong_type(key, value, "an object or null")) };
    for (field, value) in object.iter().filter(|(_, value)| !value.is_null()) {
        let is_known = match field.as_str() {
            "type" => option("calibrator_type", value, set)?,
            "calibrator" | "calibrator_config" => false,
            field => option(field, value, set)? || (is_of_calibrators(field) && known(field, value, set)?),
        };
        if !is_known {
            let known: Vec<&str> = PolicyOption::names().filter(|name| is_of_calibrators(name)).collect();
            return Err(Error::usage(format!("unknown option `{field}` in {key}; known are {}", known.join(", "))));
        }
    }
    if set.get("calibrator_type").is_none() {
        return Err(Error::usage(format!("{key} has no calibrator_type; write taylorseer, foca or dmd")));
    }
    Ok(())
}

/// Whether this is the name of an option of calibrators, or its old name.
fn is_of_calibrators(key: &str) -> bool {
    let name = OLD_NAMES.iter().find(|(old, _)| *old == key).map_or(key, |(_, name)| *name);
    PolicyOption::of_name(name).is_some_and(|option| option.calibrator.is_some())
}

/// Whether the key switches a calibrator on in the dictionary loader.
pub(super) fn is_switch(key: &str) -> bool {
    ["enable_taylorseer", "enable_dmd", "enable_foca"].contains(&key)
}

/// The switches of the dictionary loader. There the text stream is left out unless it is asked for, except with DMD.
fn legacy(key: &str, value: &Json, set: &mut PolicyOverrides) -> Result<bool> {
    let (calibrator, is_encoder) = match key {
        "enable_taylorseer" => (CalibratorType::TaylorSeer, false),
        "enable_dmd" => (CalibratorType::Dmd, false),
        "enable_foca" => (CalibratorType::FoCa, false),
        "enable_encoder_taylorseer" => (CalibratorType::TaylorSeer, true),
        "enable_encoder_dmd" => (CalibratorType::Dmd, true),
        "enable_encoder_foca" => (CalibratorType::FoCa, true),
        // What it was called when its only option could not be passed.
        "taylorseer_kwargs" if is_off(value) || value.as_object().is_some_and(Map::is_empty) => return Ok(true),
        _ => return Ok(false),
    };
    let is_on = switch(key, value)?;
    if is_encoder {
        // If the calibrator is off, this key has no meaning.
        if is_on || set.get("calibrator_type") == Some(&OptionValue::Word(calibrator.as_str())) {
            set.put("enable_encoder_calibrator", OptionValue::Switch(is_on));
        }
    } else if is_on {
        set_type(calibrator, set)?;
        if set.get("enable_encoder_calibrator").is_none() {
            set.put("enable_encoder_calibrator", OptionValue::Switch(calibrator == CalibratorType::Dmd));
        }
    }
    Ok(true)
}

/// What the switch of FBCache meant in release 0.1.0, where it had no options: order 2, derivatives from step 2 on, and
/// a text stream that a skipped step does not correct. Options that are given beside it come later and win.
pub(super) fn of_fbcache(object: &Map<String, Json>, set: &mut PolicyOverrides) {
    if object.get("enable_taylorseer") == Some(&Json::Bool(true)) {
        set.put("taylorseer_order", OptionValue::Count(2));
        set.put("taylorseer_first_step", OptionValue::Count(2));
        set.put("enable_encoder_residual", OptionValue::Switch(false));
    }
}

fn set_type(calibrator: CalibratorType, set: &mut PolicyOverrides) -> Result<()> {
    match set.put("calibrator_type", OptionValue::Word(calibrator.as_str())) {
        None => Ok(()),
        Some(_) => Err(Error::usage("two calibrators are given; remove one")),
    }
}

fn check_precision(precision: &str) -> Result<()> {
    match precision.to_ascii_lowercase().as_str() {
        // Both are the same here: DMD works on the inner products, in f64.
        "medium" | "high" => Ok(()),
        "low" => Err(Error::usage(LOW_PRECISION)),
        _ => Err(Error::usage(format!("unknown dmd_svd_precision `{precision}`; expected `medium` or `high`"))),
    }
}

/// `force_reduce_calibrator_vram` of DBPrune, which is another name for a larger `downsample_factor`. To be set after
/// all other options.
pub(super) fn reduce_vram(policy: &mut super::PolicyConfig) -> Result<()> {
    const LEAST: usize = 4;
    match policy {
        super::PolicyConfig::DbPrune(config) if config.calibrator.is_some() => {
            config.downsample_factor = config.downsample_factor.max(LEAST);
            Ok(())
        }
        super::PolicyConfig::DbPrune(_) => {
            Err(Error::usage("force_reduce_calibrator_vram has no effect without a calibrator; remove it"))
        }
        _ => Err(Error::usage("force_reduce_calibrator_vram is an option of DBPrune; use downsample_factor")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::PolicyConfig;
    use super::*;

    #[test]
    fn calibrators_are_read_as_the_reference_spells_them() -> Result<()> {
        for (json, expected) in [
            (r#"{"calibrator": {"type": "taylorseer", "taylorseer_order": 2}}"#, "_t2"),
            (r#"{"calibrator": {"type": "taylorseer", "enable_encoder_calibrator": false}}"#, "_t1_ce0"),
            (r#"{"calibrator_config": {"calibrator_type": "foca", "calibrator_kwargs": {}}}"#, "_foca"),
            (r#"{"calibrator": {"type": "dmd", "dmd_rank": 1, "dmd_svd_precision": "high"}}"#, "_dmd6_dk1"),
            (r#"{"calibrator": {"type": "dmd", "dmd_fallback": "reference"}}"#, "_dmd6:reference"),
            (
                r#"{"calibrator_type": "taylorseer", "enable_calibrator": false,
                    "calibrator_cache_type": "hidden_states"}"#,
                "_t1_ch0_hs1",
            ),
            (r#"{"calibrator": null, "enable_taylorseer": false, "enable_encoder_taylorseer": false}"#, ""),
            (r#"{"enable_taylorseer": true}"#, "_t1_ce0"),
            (r#"{"enable_encoder_taylorseer": true, "enable_taylorseer": true, "taylorseer_order": 3}"#, "_t3"),
            (r#"{"enable_dmd": true, "dmd_history": 5, "dmd_ridge": 0}"#, "_dmd5_dg0"),
            (r#"{"enable_encoder_dmd": false, "enable_dmd": true}"#, "_dmd6_ce0"),
            (r#"{"enable_foca": true, "taylorseer_cache_type": "residual"}"#, "_foca_ce0"),
        ] {
            let tag = PolicyConfig::from_json(json)?.to_string();
            assert_eq!(tag, format!("f8b8w8i1r0.12{expected}"), "{json}");
        }
        for (json, tag) in [
            (r#"{"enable_taylorseer": true, "cache_type": "FBCache"}"#, "f1b0w8i1r0.08m8er0_t2_tf2_ce0"),
            (
                r#"{"enable_taylorseer": true, "cache_type": "FB", "taylorseer_order": 1}"#,
                "f1b0w8i1r0.08m8er0_t1_tf2_ce0",
            ),
            (r#"{"enable_taylorseer": false, "cache_type": "FBCache"}"#, "f1b0w8i1r0.08m8"),
        ] {
            assert_eq!(PolicyConfig::from_json(json)?.to_string(), tag, "{json}");
        }
        let prune = r#"{"cache_type": "DBPrune", "force_reduce_calibrator_vram": true, "enable_foca": true}"#;
        assert_eq!(PolicyConfig::from_json(prune)?.to_string(), "prune_f8b8w8i1r0.08ds4_foca_ce0");
        Ok(())
    }

    #[test]
    fn refusals_name_the_option_and_the_remedy() {
        for (json, words) in [
            (r#"{"calibrator": "taylorseer"}"#, "must be an object or null"),
            (r#"{"calibrator": {}}"#, "has no calibrator_type"),
            (r#"{"calibrator": {"type": "taylor"}}"#, "expected `taylorseer`, `foca` or `dmd`"),
            (r#"{"calibrator": {"type": "foca", "order": 1}}"#, "unknown option `order` in calibrator"),
            (r#"{"calibrator": {"type": "foca", "taylorseer_order": 1}}"#, "taylorseer_order has no effect"),
            (r#"{"calibrator": {"type": "taylorseer", "taylorseer_order": 0}}"#, "leave the calibrator out"),
            (r#"{"taylorseer_order": 1}"#, "there is no calibrator"),
            (r#"{"enable_encoder_taylorseer": true}"#, "there is no calibrator"),
            (r#"{"enable_taylorseer": true, "enable_foca": true}"#, "two calibrators"),
            (r#"{"enable_dmd": true, "dmd_svd_precision": "low"}"#, "use medium"),
            (r#"{"enable_dmd": true, "dmd_svd_precision": "best"}"#, "expected `medium` or `high`"),
            (r#"{"force_reduce_calibrator_vram": true}"#, "use downsample_factor"),
            (r#"{"cache_type": "DBPrune", "force_reduce_calibrator_vram": true}"#, "without a calibrator"),
            (
                r#"{"cache_type": "DBPrune", "enable_foca": true, "calibrator_cache_type": "hidden_states"}"#,
                "which DBPrune does not have",
            ),
        ] {
            let error = PolicyConfig::from_json(json).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(words), "{json}: `{error}` lacks `{words}`");
        }
    }
}
