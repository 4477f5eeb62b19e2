//! Policies as JSON objects, with the option names of cache-dit.
//!
//! Unknown keys are refused. Keys of older releases are read where the option still exists under another name, and
//! refused with the name of the successor where it does not.

use serde_json::{Map, Value, json};

use super::dbcache::DbCacheConfig;
use super::mask::StepsMask;
use super::overrides::{OrNone, PolicyOverrides};
use super::{PolicyConfig, tag};
use crate::error::{Error, Result};

/// The version of the JSON form.
const VERSION: u64 = 1;

impl PolicyConfig {
    /// Parses a JSON object: `cache_type` (a preset; left out: `dbcache`), `version` (1, may be left out) and options
    /// by their names in cache-dit, for example
    /// `{"cache_type": "DBCache", "Fn_compute_blocks": 1, "residual_diff_threshold": 0.08}`.
    ///
    /// An option that is left out or `null` has the value of the preset; a limit of -1 is no limit.
    /// `steps_computation_mask` is a list of 1 and 0, or text as in a tag.
    ///
    /// # Errors
    /// `Usage` for unknown keys, values of the wrong type, and impossible values.
    pub fn from_json(text: &str) -> Result<Self> {
        parse(text)
    }

    /// The JSON object that [`from_json`](Self::from_json) reads back to the same value. It names every option.
    pub fn to_json(&self) -> Value {
        match self {
            Self::None => json!({ "version": VERSION, "cache_type": "none" }),
            Self::DbCache(config) => dbcache_json(config),
        }
    }
}

fn dbcache_json(config: &DbCacheConfig) -> Value {
    // Without `..`: a new option must be written here.
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
    let limit = |limit: &Option<usize>| limit.map_or(json!(-1), |limit| json!(limit));
    let mask = steps_computation_mask.as_ref().map(|mask| match mask {
        StepsMask::Steps(mask) => json!(mask.iter().map(|&compute| u8::from(compute)).collect::<Vec<_>>()),
        StepsMask::Preset(preset) => json!(preset.as_str()),
    });
    json!({
        "version": VERSION,
        "cache_type": "DBCache",
        "Fn_compute_blocks": fn_compute_blocks,
        "Bn_compute_blocks": bn_compute_blocks,
        "residual_diff_threshold": residual_diff_threshold,
        "max_warmup_steps": max_warmup_steps,
        "warmup_interval": warmup_interval,
        "max_cached_steps": limit(max_cached_steps),
        "max_continuous_cached_steps": limit(max_continuous_cached_steps),
        "max_accumulated_residual_diff_threshold": max_accumulated_residual_diff_threshold,
        "steps_computation_mask": mask,
        "steps_computation_policy": steps_computation_policy.as_str(),
        "force_refresh_step_hint": force_refresh_step_hint,
        "force_refresh_step_policy": force_refresh_step_policy.as_str(),
        "cfg_compute_first": cfg_compute_first,
        "cfg_diff_compute_separate": cfg_diff_compute_separate,
        "l1_hidden_states_diff_threshold": l1_hidden_states_diff_threshold,
        "important_condition_threshold": important_condition_threshold.unwrap_or(0.0),
        "downsample_factor": downsample_factor,
    })
}

pub(super) fn parse(text: &str) -> Result<PolicyConfig> {
    let object: Map<String, Value> = serde_json::from_str(text)
        .map_err(|error| Error::usage(format!("the policy is no JSON object: {error}; or write a tag")))?;
    match object.get("version").map(|version| (version, version.as_u64())) {
        None | Some((_, Some(VERSION))) => {}
        Some((version, _)) => {
            return Err(Error::usage(format!("the policy's version is {version}, this program reads {VERSION}")));
        }
    }
    let base = match object.get("cache_type") {
        None | Some(Value::Null) => tag::preset("dbcache")?,
        Some(Value::String(name)) => tag::preset(name).map_err(|error| error.at("cache_type"))?,
        Some(other) => return Err(Error::usage(format!("cache_type is {other}, but must be text"))),
    };
    let mut set = PolicyOverrides::default();
    let mut limits = Limits::default();
    for (key, value) in object.iter().filter(|(_, value)| !value.is_null()) {
        option(key, value, &mut set, &mut limits).map_err(|error| error.at("policy"))?;
    }
    let config = base.with(&set)?;
    limits.check(&config)?;
    Ok(config)
}

/// Options of 0.1.0 that only limit others.
#[derive(Default)]
struct Limits {
    max_fn: Option<usize>,
    max_bn: Option<usize>,
}

impl Limits {
    fn check(&self, config: &PolicyConfig) -> Result<()> {
        let PolicyConfig::DbCache(config) = config else { return Ok(()) };
        let pairs = [
            ("Fn_compute_blocks", config.fn_compute_blocks, self.max_fn),
            ("Bn_compute_blocks", config.bn_compute_blocks, self.max_bn),
        ];
        for (option, blocks, max) in pairs {
            if let Some(max) = max.filter(|&max| max > 0 && blocks > max) {
                return Err(Error::usage(format!(
                    "{option} is {blocks}, but max_{option} is {max}; raise the maximum"
                )));
            }
        }
        Ok(())
    }
}

/// Sets the option `key`; `value` is not null.
fn option(key: &str, value: &Value, set: &mut PolicyOverrides, limits: &mut Limits) -> Result<()> {
    let (count, number, limit) = (|| count(key, value), || number(key, value), || limit(key, value));
    match key {
        "version" | "cache_type" => {}
        "Fn_compute_blocks" => set.fn_compute_blocks = Some(count()?),
        "Bn_compute_blocks" => set.bn_compute_blocks = Some(count()?),
        "residual_diff_threshold" => set.residual_diff_threshold = Some(number()?),
        "max_warmup_steps" | "warmup_steps" => {
            if set.max_warmup_steps.replace(count()?).is_some() {
                return Err(Error::usage("max_warmup_steps and its old name warmup_steps are both given; remove one"));
            }
        }
        "warmup_interval" => set.warmup_interval = Some(count()?),
        "max_cached_steps" => set.max_cached_steps = Some(OrNone(limit()?)),
        "max_continuous_cached_steps" => set.max_continuous_cached_steps = Some(OrNone(limit()?)),
        "max_accumulated_residual_diff_threshold" => {
            set.max_accumulated_residual_diff_threshold = Some(OrNone(Some(number()?)));
        }
        "steps_computation_mask" => set.steps_computation_mask = Some(OrNone(Some(mask(value)?))),
        "steps_computation_policy" => set.steps_computation_policy = Some(text(key, value)?.parse()?),
        "force_refresh_step_hint" => set.force_refresh_step_hint = Some(OrNone(Some(count()?))),
        "force_refresh_step_policy" => set.force_refresh_step_policy = Some(text(key, value)?.parse()?),
        "cfg_compute_first" => set.cfg_compute_first = Some(switch(key, value)?),
        "cfg_diff_compute_separate" => set.cfg_diff_compute_separate = Some(switch(key, value)?),
        "l1_hidden_states_diff_threshold" => set.l1_hidden_states_diff_threshold = Some(OrNone(Some(number()?))),
        "important_condition_threshold" => set.important_condition_threshold = Some(OrNone(Some(number()?))),
        "downsample_factor" => set.downsample_factor = Some(count()?),
        "max_Fn_compute_blocks" => limits.max_fn = limit()?,
        "max_Bn_compute_blocks" => limits.max_bn = limit()?,
        _ if is_off(value) && is_old_switch(key) => {}
        _ => return Err(refusal(key)),
    }
    Ok(())
}

/// Options that other releases have and this engine lacks, but that say nothing when they are off.
fn is_old_switch(key: &str) -> bool {
    matches!(
        key,
        "Fn_compute_blocks_ids" | "Bn_compute_blocks_ids" | "enable_alter_cache" | "enable_taylorseer" | "slg_layers"
    )
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Bool(on) => !on,
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// Why `key` is no option here, and what to use instead.
fn refusal(key: &str) -> Error {
    let why = match key {
        "Bn_compute_blocks_ids" | "non_compute_blocks_diff_threshold" => {
            "is not supported yet; remove it to compute the whole tail"
        }
        "Fn_compute_blocks_ids" => {
            "would leave head blocks out on every step without any correction; lower Fn_compute_blocks instead"
        }
        "enable_alter_cache" | "alter_residual_diff_threshold" => {
            "is not supported; a steps_computation_mask such as [1,1,1,1,0,1,0,1] comes close, though it renews its \
             residual on each computed step"
        }
        "slg_layers" | "slg_start" | "slg_end" => "is skip-layer guidance, no rule of a cache; remove it",
        "enable_taylorseer"
        | "taylorseer_kwargs"
        | "enable_encoder_taylorseer"
        | "taylorseer_order"
        | "taylorseer_cache_type"
        | "enable_calibrator"
        | "enable_encoder_calibrator"
        | "calibrator_type"
        | "calibrator_cache_type"
        | "calibrator_kwargs" => "asks for a calibrator, which is not supported yet",
        "num_inference_steps" => "belongs to the request: each generation starts with an empty cache; remove it",
        "enable_separate_cfg" => "is not needed: the request says whether there are two guidance branches; remove it",
        "non_prune_blocks_ids"
        | "non_prune_block_ids"
        | "max_pruned_steps"
        | "enable_dynamic_prune_threshold"
        | "max_dynamic_prune_threshold"
        | "dynamic_prune_threshold_relax_ratio"
        | "residual_cache_update_interval"
        | "force_reduce_calibrator_vram" => "is an option of DBPrune, which is not supported yet",
        _ => return Error::usage(format!("unknown option `{key}`; known are {}", PolicyOverrides::NAMES.join(", "))),
    };
    Error::usage(format!("{key} {why}"))
}

fn wrong_type(key: &str, value: &Value, expected: &str) -> Error {
    Error::usage(format!("{key} is {value}, but must be {expected}"))
}

fn count(key: &str, value: &Value) -> Result<usize> {
    let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
    count.ok_or_else(|| wrong_type(key, value, "a whole number, 0 or more"))
}

fn limit(key: &str, value: &Value) -> Result<Option<usize>> {
    if value.as_i64() == Some(-1) {
        return Ok(None);
    }
    let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
    count.map(Some).ok_or_else(|| wrong_type(key, value, "a whole number, or -1 for no limit"))
}

fn number(key: &str, value: &Value) -> Result<f64> {
    value.as_f64().ok_or_else(|| wrong_type(key, value, "a number"))
}

fn switch(key: &str, value: &Value) -> Result<bool> {
    value.as_bool().ok_or_else(|| wrong_type(key, value, "true or false"))
}

fn text<'a>(key: &str, value: &'a Value) -> Result<&'a str> {
    value.as_str().ok_or_else(|| wrong_type(key, value, "text"))
}

fn mask(value: &Value) -> Result<StepsMask> {
    let key = "steps_computation_mask";
    let Some(list) = value.as_array() else { return text(key, value)?.parse() };
    let digit = |digit: &Value| match digit.as_u64() {
        Some(0) => Ok(false),
        Some(1) => Ok(true),
        _ => Err(wrong_type(key, digit, "a list of 1 and 0")),
    };
    Ok(StepsMask::Steps(list.iter().map(digit).collect::<Result<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(json: &str) -> Result<String> {
        PolicyConfig::from_json(json).map(|config| config.to_string())
    }

    #[test]
    fn options_are_read_by_the_names_of_the_reference() -> Result<()> {
        for (json, expected) in [
            ("{}", "f8b8w8i1r0.12"),
            (r#"{"version": 1, "cache_type": "NONE"}"#, "none"),
            (r#"{"cache_type": "fb", "max_cached_steps": -1}"#, "f1b0w8i1r0.08"),
            (r#"{"cache_type": "cache-dit", "Fn_compute_blocks": 1, "residual_diff_threshold": 1}"#, "f1b0w8i1r1"),
            (r#"{"warmup_steps": 4, "max_cached_steps": null, "max_continuous_cached_steps": 0}"#, "f8b8w4i1r0.12mc0"),
            (
                r#"{"steps_computation_mask": [1, 0, 1], "steps_computation_policy": "static"}"#,
                "f8b8w8i1r0.12_scm:101:static",
            ),
            (r#"{"steps_computation_mask": "fast"}"#, "f8b8w8i1r0.12_scm:fast"),
            (r#"{"important_condition_threshold": 0.0, "downsample_factor": 2}"#, "f8b8w8i1r0.12ds2"),
            // The defaults of 0.1.0, written out.
            (
                r#"{"cache_type": "DBCache", "Bn_compute_blocks_ids": [], "max_Fn_compute_blocks": 16,
                    "max_Bn_compute_blocks": -1, "enable_alter_cache": false, "enable_taylorseer": false}"#,
                "f8b8w8i1r0.12",
            ),
        ] {
            assert_eq!(tag(json)?, expected, "{json}");
        }
        Ok(())
    }

    #[test]
    fn refusals_name_the_option_and_the_remedy() {
        for (json, words) in [
            ("{", "no JSON object"),
            ("[]", "no JSON object"),
            (r#"{"version": 2}"#, "version is 2, this program reads 1"),
            (r#"{"cache_type": "dbprune"}"#, "DBPrune is not supported yet"),
            (r#"{"cache_type": 1}"#, "must be text"),
            (r#"{"cache_type": "none", "warmup_interval": 2}"#, "the policy `none` has no option warmup_interval"),
            (r#"{"Fn": 8}"#, "unknown option `Fn`; known are Fn_compute_blocks"),
            (r#"{"Fn_compute_blocks": -1}"#, "Fn_compute_blocks is -1, but must be a whole number"),
            (r#"{"Fn_compute_blocks": 1.5}"#, "Fn_compute_blocks is 1.5"),
            (r#"{"residual_diff_threshold": "0.1"}"#, "must be a number"),
            (r#"{"residual_diff_threshold": -0.1}"#, "use 0 to never skip"),
            (r#"{"max_cached_steps": -2}"#, "or -1 for no limit"),
            (r#"{"steps_computation_mask": [1, 2]}"#, "a list of 1 and 0"),
            (r#"{"cfg_compute_first": 1}"#, "must be true or false"),
            (r#"{"max_warmup_steps": 1, "warmup_steps": 1}"#, "both given"),
            (
                r#"{"Fn_compute_blocks": 20, "max_Fn_compute_blocks": 16}"#,
                "Fn_compute_blocks is 20, but max_Fn_compute_blocks is 16",
            ),
            (r#"{"Bn_compute_blocks_ids": [0]}"#, "Bn_compute_blocks_ids is not supported yet"),
            (r#"{"Fn_compute_blocks_ids": [0]}"#, "lower Fn_compute_blocks"),
            (r#"{"non_compute_blocks_diff_threshold": 0.08}"#, "not supported yet"),
            (r#"{"enable_alter_cache": true}"#, "a steps_computation_mask such as"),
            (r#"{"alter_residual_diff_threshold": 1.0}"#, "a steps_computation_mask such as"),
            (r#"{"enable_taylorseer": true}"#, "calibrator"),
            (r#"{"slg_start": 0.0}"#, "no rule of a cache"),
            (r#"{"force_refresh_step_policy": "repeat"}"#, "there is no force_refresh_step_hint"),
            (r#"{"num_inference_steps": 28}"#, "belongs to the request"),
            (r#"{"enable_separate_cfg": true}"#, "the request says"),
            (r#"{"max_pruned_steps": 3}"#, "an option of DBPrune"),
        ] {
            let error = tag(json).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(words), "{json}: `{error}` lacks `{words}`");
        }
    }
}
