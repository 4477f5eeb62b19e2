//! Policies as JSON objects, with the option names of cache-dit.
//!
//! Unknown keys are refused. Keys of older releases are read where the option still exists under another name, and
//! refused with the name of the successor where it does not.

mod calibrator;
pub(crate) mod unique;

use serde_json::{Value, json};

use super::dbcache::DbCacheConfig;
use super::dbprune::DbPruneConfig;
use super::mask::StepsMask;
use super::overrides::{BlockIds, OrNone, PolicyOverrides};
use super::{PolicyConfig, tag};
use crate::error::{Error, Result};
use crate::nearest::did_you_mean;

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

    /// The JSON object that [`from_json`](Self::from_json) reads back to the same value. It names every option. Only a
    /// replay is not read back: it needs its recording.
    pub fn to_json(&self) -> Value {
        match self {
            Self::None => json!({ "version": VERSION, "cache_type": "none" }),
            Self::DbCache(config) => cache_json(config),
            Self::DbPrune(config) => prune_json(config),
            Self::Replay { config, .. } => {
                json!({ "version": VERSION, "cache_type": "replay", "config": config.to_json() })
            }
        }
    }
}

fn cache_json(config: &DbCacheConfig) -> Value {
    // Without `..`: a new option must be written here.
    let DbCacheConfig {
        fn_compute_blocks,
        bn_compute_blocks,
        bn_compute_blocks_ids,
        non_compute_blocks_diff_threshold,
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
        enable_alter_cache,
        alter_residual_diff_threshold,
        enable_encoder_residual,
        separate_block_lists,
        calibrator,
    } = config;
    json!({
        "version": VERSION,
        "cache_type": "DBCache",
        "Fn_compute_blocks": fn_compute_blocks,
        "Bn_compute_blocks": bn_compute_blocks,
        "Bn_compute_blocks_ids": bn_compute_blocks_ids,
        "non_compute_blocks_diff_threshold": non_compute_blocks_diff_threshold,
        "residual_diff_threshold": residual_diff_threshold,
        "max_warmup_steps": max_warmup_steps,
        "warmup_interval": warmup_interval,
        "max_cached_steps": limit_json(max_cached_steps),
        "max_continuous_cached_steps": limit_json(max_continuous_cached_steps),
        "max_accumulated_residual_diff_threshold": max_accumulated_residual_diff_threshold,
        "steps_computation_mask": mask_json(steps_computation_mask),
        "steps_computation_policy": steps_computation_policy.as_str(),
        "force_refresh_step_hint": force_refresh_step_hint,
        "force_refresh_step_policy": force_refresh_step_policy.as_str(),
        "cfg_compute_first": cfg_compute_first,
        "cfg_diff_compute_separate": cfg_diff_compute_separate,
        "l1_hidden_states_diff_threshold": l1_hidden_states_diff_threshold,
        "important_condition_threshold": important_condition_threshold.unwrap_or(0.0),
        "downsample_factor": downsample_factor,
        "enable_alter_cache": enable_alter_cache,
        "alter_residual_diff_threshold": alter_residual_diff_threshold,
        "enable_encoder_residual": enable_encoder_residual,
        "separate_block_lists": separate_block_lists,
        "calibrator": calibrator::to_json(calibrator.as_ref(), true),
    })
}

fn prune_json(config: &DbPruneConfig) -> Value {
    // Without `..`, as above.
    let DbPruneConfig {
        fn_compute_blocks,
        bn_compute_blocks,
        non_prune_block_ids,
        residual_diff_threshold,
        max_warmup_steps,
        warmup_interval,
        max_cached_steps,
        max_pruned_steps,
        max_continuous_cached_steps,
        steps_computation_mask,
        steps_computation_policy,
        force_refresh_step_hint,
        force_refresh_step_policy,
        cfg_compute_first,
        enable_dynamic_prune_threshold,
        max_dynamic_prune_threshold,
        dynamic_prune_threshold_relax_ratio,
        dynamic_prune_threshold_diffs,
        residual_cache_update_interval,
        important_condition_threshold,
        downsample_factor,
        compare_all_streams,
        separate_block_lists,
        calibrator,
    } = config;
    json!({
        "version": VERSION,
        "cache_type": "DBPrune",
        "Fn_compute_blocks": fn_compute_blocks,
        "Bn_compute_blocks": bn_compute_blocks,
        "non_prune_block_ids": non_prune_block_ids,
        "residual_diff_threshold": residual_diff_threshold,
        "max_warmup_steps": max_warmup_steps,
        "warmup_interval": warmup_interval,
        "max_cached_steps": limit_json(max_cached_steps),
        "max_pruned_steps": limit_json(max_pruned_steps),
        "max_continuous_cached_steps": limit_json(max_continuous_cached_steps),
        "steps_computation_mask": mask_json(steps_computation_mask),
        "steps_computation_policy": steps_computation_policy.as_str(),
        "force_refresh_step_hint": force_refresh_step_hint,
        "force_refresh_step_policy": force_refresh_step_policy.as_str(),
        "cfg_compute_first": cfg_compute_first,
        "enable_dynamic_prune_threshold": enable_dynamic_prune_threshold,
        "max_dynamic_prune_threshold": max_dynamic_prune_threshold,
        "dynamic_prune_threshold_relax_ratio": dynamic_prune_threshold_relax_ratio,
        "dynamic_prune_threshold_diffs": limit_json(dynamic_prune_threshold_diffs),
        "residual_cache_update_interval": residual_cache_update_interval,
        "important_condition_threshold": important_condition_threshold.unwrap_or(0.0),
        "downsample_factor": downsample_factor,
        "compare_all_streams": compare_all_streams,
        "separate_block_lists": separate_block_lists,
        "calibrator": calibrator::to_json(calibrator.as_ref(), false),
    })
}

fn limit_json(limit: &Option<usize>) -> Value {
    limit.map_or(json!(-1), |limit| json!(limit))
}

fn mask_json(mask: &Option<StepsMask>) -> Value {
    match mask {
        None => Value::Null,
        Some(StepsMask::Steps(mask)) => json!(mask.iter().map(|&compute| u8::from(compute)).collect::<Vec<_>>()),
        Some(StepsMask::Preset(preset)) => json!(preset.as_str()),
    }
}

pub(super) fn parse(text: &str) -> Result<PolicyConfig> {
    let object = match unique::parse(text) {
        Ok(Value::Object(object)) => object,
        Ok(_) => return Err(Error::usage("the policy is no JSON object; write one, or a tag")),
        Err(error) => return Err(Error::usage(format!("the policy is no JSON object: {error}; or write a tag"))),
    };
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
    if object.get("cache_type").and_then(Value::as_str).is_some_and(tag::is_fbcache) {
        calibrator::of_fbcache(&object, &mut set);
    }
    // The switches come first: what a key about the text stream means hangs on them.
    let (switches, others): (Vec<_>, Vec<_>) =
        object.iter().filter(|(_, value)| !value.is_null()).partition(|(key, _)| calibrator::is_switch(key));
    for (key, value) in switches.into_iter().chain(others) {
        option(key, value, &mut set, &mut limits).map_err(|error| error.at("policy"))?;
    }
    let mut config = base.with(&set)?;
    limits.check(&config)?;
    if limits.reduces_calibrator_vram {
        calibrator::reduce_vram(&mut config)?;
    }
    Ok(config)
}

/// Options of the reference that only limit others.
#[derive(Default)]
struct Limits {
    reduces_calibrator_vram: bool,
    max_fn: Option<usize>,
    max_bn: Option<usize>,
}

impl Limits {
    fn check(&self, config: &PolicyConfig) -> Result<()> {
        let (f, b) = match config {
            PolicyConfig::None | PolicyConfig::Replay { .. } => return Ok(()),
            PolicyConfig::DbCache(config) => (config.fn_compute_blocks, config.bn_compute_blocks),
            PolicyConfig::DbPrune(config) => (config.fn_compute_blocks, config.bn_compute_blocks),
        };
        let pairs = [("Fn_compute_blocks", f, self.max_fn), ("Bn_compute_blocks", b, self.max_bn)];
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
        "compare_all_streams" => set.compare_all_streams = Some(switch(key, value)?),
        "Bn_compute_blocks_ids" => set.bn_compute_blocks_ids = Some(OrNone(Some(ids(key, value)?))),
        "non_compute_blocks_diff_threshold" => set.non_compute_blocks_diff_threshold = Some(OrNone(Some(number()?))),
        "non_prune_block_ids" | "non_prune_blocks_ids" => {
            set.non_prune_block_ids = Some(OrNone(Some(ids(key, value)?)));
        }
        "max_pruned_steps" => set.max_pruned_steps = Some(OrNone(limit()?)),
        "enable_dynamic_prune_threshold" => set.enable_dynamic_prune_threshold = Some(switch(key, value)?),
        "max_dynamic_prune_threshold" => set.max_dynamic_prune_threshold = Some(OrNone(Some(number()?))),
        "dynamic_prune_threshold_relax_ratio" => set.dynamic_prune_threshold_relax_ratio = Some(number()?),
        "dynamic_prune_threshold_diffs" => set.dynamic_prune_threshold_diffs = Some(OrNone(limit()?)),
        "residual_cache_update_interval" => set.residual_cache_update_interval = Some(count()?),
        "max_Fn_compute_blocks" => limits.max_fn = limit()?,
        "max_Bn_compute_blocks" => limits.max_bn = limit()?,
        "enable_alter_cache" => set.enable_alter_cache = Some(switch(key, value)?),
        "alter_residual_diff_threshold" => set.alter_residual_diff_threshold = Some(OrNone(Some(number()?))),
        "enable_encoder_residual" => set.enable_encoder_residual = Some(switch(key, value)?),
        "separate_block_lists" => set.separate_block_lists = Some(switch(key, value)?),
        "force_reduce_calibrator_vram" => limits.reduces_calibrator_vram = switch(key, value)?,
        _ if is_off(value) && is_old_switch(key) => {}
        _ if calibrator::option(key, value, set)? => {}
        _ => return Err(refusal(key)),
    }
    Ok(())
}

/// Options that other releases have and this engine lacks, but that say nothing when they are off.
fn is_old_switch(key: &str) -> bool {
    matches!(key, "Fn_compute_blocks_ids" | "slg_layers")
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
        "Fn_compute_blocks_ids" => {
            "would leave head blocks out on every step without any correction; lower Fn_compute_blocks instead"
        }
        "slg_layers" | "slg_start" | "slg_end" => "is skip-layer guidance, no rule of a cache; remove it",
        "taylorseer_kwargs" | "calibrator_kwargs" => {
            "must be empty; give its options by name, such as taylorseer_order or dmd_history"
        }
        "num_inference_steps" => "belongs to the request: each generation starts with an empty cache; remove it",
        "enable_separate_cfg" => "is not needed: the request says whether there are two guidance branches; remove it",
        _ => {
            return Error::usage(format!(
                "unknown option `{key}`{}; known are {}",
                did_you_mean(key, PolicyOverrides::NAMES),
                PolicyOverrides::NAMES.join(", ")
            ));
        }
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

/// A list of numbers, or text with ranges such as `0..16/2`.
fn ids(key: &str, value: &Value) -> Result<BlockIds> {
    if let Value::String(text) = value {
        return text.parse();
    }
    let id = |id: &Value| id.as_u64().and_then(|id| usize::try_from(id).ok());
    let ids = value.as_array().and_then(|list| list.iter().map(id).collect());
    ids.map(BlockIds).ok_or_else(|| wrong_type(key, value, "a list of blocks"))
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
            (r#"{"cache_type": "dbcach"}"#, "unknown policy `dbcach`"),
            (r#"{"cache_type": "dbprune", "Bn_compute_blocks_ids": [0]}"#, "the policy `prune` has no option"),
            (r#"{"cache_type": "dbprune", "non_prune_block_ids": 3}"#, "must be a list of blocks"),
            (r#"{"cache_type": 1}"#, "must be text"),
            (r#"{"cache_type": "none", "warmup_interval": 2}"#, "the policy `none` has no option warmup_interval"),
            (r#"{"Fn_compute_blocks": 1, "Fn_compute_blocks": 8}"#, "`Fn_compute_blocks` is given twice"),
            (r#"{"calibrator": {"type": "dmd", "dmd_rank": 1, "dmd_rank": 2}}"#, "`dmd_rank` is given twice"),
            (r#"{"residual_dif_treshold": 8}"#, "(did you mean `residual_diff_threshold`?)"),
            (r#"{"cache_type": "dbcash"}"#, "unknown policy `dbcash` (did you mean `dbcache`?)"),
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
            (r#"{"Fn_compute_blocks_ids": [0]}"#, "lower Fn_compute_blocks"),
            (r#"{"non_compute_blocks_diff_threshold": 0.08}"#, "without Bn_compute_blocks_ids"),
            (r#"{"enable_alter_cache": true, "steps_computation_mask": "fast"}"#, "both say which steps"),
            (r#"{"cache_type": "dbprune", "enable_alter_cache": true}"#, "has no option enable_alter_cache"),
            (r#"{"taylorseer_kwargs": {"n_derivatives": 2}}"#, "give its options by name"),
            (r#"{"slg_start": 0.0}"#, "no rule of a cache"),
            (r#"{"force_refresh_step_policy": "repeat"}"#, "there is no force_refresh_step_hint"),
            (r#"{"num_inference_steps": 28}"#, "belongs to the request"),
            (r#"{"enable_separate_cfg": true}"#, "the request says"),
            (r#"{"max_pruned_steps": 3}"#, "the policy `dbcache` has no option max_pruned_steps"),
        ] {
            let error = tag(json).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(words), "{json}: `{error}` lacks `{words}`");
        }
    }
}
