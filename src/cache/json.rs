//! Policies as JSON objects, with the option names of cache-dit.
//!
//! Unknown keys are refused. Keys of older releases are read where the option still exists under another name, and
//! refused with the name of the successor where it does not.

mod calibrator;
pub(crate) mod unique;

use serde_json::{Map, Value as Json, json};

use super::option::PolicyOption;
use super::overrides::PolicyOverrides;
use super::{PolicyConfig, presets};
use crate::error::{Error, Result};
use crate::nearest::did_you_mean;

/// The version of the JSON form.
const VERSION: u64 = 1;

/// Names that options have in other releases.
const OLD_NAMES: [(&str, &str); 3] = [
    ("warmup_steps", "max_warmup_steps"),
    ("non_prune_blocks_ids", "non_prune_block_ids"),
    ("taylorseer_cache_type", "calibrator_cache_type"),
];

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
    pub fn to_json(&self) -> Json {
        match self {
            Self::None => json!({ "version": VERSION, "cache_type": "none" }),
            Self::DbCache(config) => self.options_json("DBCache", config.calibrator.is_some()),
            Self::DbPrune(config) => self.options_json("DBPrune", config.calibrator.is_some()),
            Self::Replay { config, .. } => {
                json!({ "version": VERSION, "cache_type": "replay", "config": config.to_json() })
            }
        }
    }

    fn options_json(&self, cache_type: &str, has_calibrator: bool) -> Json {
        let mut object = Map::new();
        let mut calibrator = Map::new();
        object.insert("version".into(), json!(VERSION));
        object.insert("cache_type".into(), json!(cache_type));
        for option in PolicyOption::all() {
            let Some(value) = option.value_in(self) else { continue };
            let part = if option.calibrator.is_some() { &mut calibrator } else { &mut object };
            part.insert(option.name().into(), option.form.to_json(&value));
        }
        if matches!(self, Self::DbPrune(_)) {
            // It has but one value there.
            calibrator.shift_remove("calibrator_cache_type");
        }
        object.insert("calibrator".into(), if has_calibrator { Json::Object(calibrator) } else { Json::Null });
        Json::Object(object)
    }
}

pub(super) fn parse(text: &str) -> Result<PolicyConfig> {
    let object = match unique::parse(text) {
        Ok(Json::Object(object)) => object,
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
        None | Some(Json::Null) => presets::preset("dbcache")?,
        Some(Json::String(name)) => presets::preset(name).map_err(|error| error.at("cache_type"))?,
        Some(other) => return Err(Error::usage(format!("cache_type is {other}, but must be text"))),
    };
    let mut set = PolicyOverrides::default();
    let mut limits = JsonLimits::default();
    if object.get("cache_type").and_then(Json::as_str).is_some_and(presets::is_fbcache) {
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
struct JsonLimits {
    reduces_calibrator_vram: bool,
    max_fn: Option<usize>,
    max_bn: Option<usize>,
}

impl JsonLimits {
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
fn option(key: &str, value: &Json, set: &mut PolicyOverrides, limits: &mut JsonLimits) -> Result<()> {
    match key {
        "version" | "cache_type" => {}
        "max_Fn_compute_blocks" => limits.max_fn = limit(key, value)?,
        "max_Bn_compute_blocks" => limits.max_bn = limit(key, value)?,
        "force_reduce_calibrator_vram" => limits.reduces_calibrator_vram = switch(key, value)?,
        _ if is_off(value) && is_old_switch(key) => {}
        _ if calibrator::option(key, value, set)? || known(key, value, set)? => {}
        _ => return Err(refusal(key)),
    }
    Ok(())
}

/// Sets the option of this name, or of this old name; `false` if there is none.
fn known(key: &str, value: &Json, set: &mut PolicyOverrides) -> Result<bool> {
    let name = OLD_NAMES.iter().find(|(old, _)| *old == key).map_or(key, |(_, name)| *name);
    let Some(option) = PolicyOption::of_name(name) else { return Ok(false) };
    let read = option.form.read_json(value).map_err(|expected| wrong_type(key, value, &expected))?;
    let before = set.put(option.name(), read);
    match OLD_NAMES.iter().find(|(_, new)| *new == name) {
        Some((old, new)) if before.is_some() => {
            Err(Error::usage(format!("{new} and its old name {old} are both given; remove one")))
        }
        _ => Ok(true),
    }
}

/// Options that other releases have and this engine lacks, but that say nothing when they are off.
fn is_old_switch(key: &str) -> bool {
    matches!(key, "Fn_compute_blocks_ids" | "slg_layers")
}

fn is_off(value: &Json) -> bool {
    match value {
        Json::Bool(on) => !on,
        Json::Array(list) => list.is_empty(),
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
                did_you_mean(key, PolicyOption::names()),
                PolicyOption::names().collect::<Vec<_>>().join(", ")
            ));
        }
    };
    Error::usage(format!("{key} {why}"))
}

fn wrong_type(key: &str, value: &Json, expected: &str) -> Error {
    Error::usage(format!("{key} is {value}, but must be {expected}"))
}

fn limit(key: &str, value: &Json) -> Result<Option<usize>> {
    if value.as_i64() == Some(-1) {
        return Ok(None);
    }
    let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
    count.map(Some).ok_or_else(|| wrong_type(key, value, "a whole number, or -1 for no limit"))
}

fn switch(key: &str, value: &Json) -> Result<bool> {
    value.as_bool().ok_or_else(|| wrong_type(key, value, "true or false"))
}

fn text<'a>(key: &str, value: &'a Json) -> Result<&'a str> {
    value.as_str().ok_or_else(|| wrong_type(key, value, "text"))
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
