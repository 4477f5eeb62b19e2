//! The recorded runs of cache-dit (`tests/data/oracle`, `tests/data/reference/emoji`) as options of policies.

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

/// The options of a run as they were recorded: the defaults of the release that ran, then what was given. None where
/// nothing was cached.
pub fn options(case: &Value) -> Result<Option<Map<String, Value>>> {
    let config = &case["config"];
    let defaults = match case["algorithm"].as_str() {
        Some("none") => return Ok(None),
        Some("DBCache") => json!({"cache_type": "cache-dit"}),
        // The default of 1.5.3.
        Some("DBPrune") => json!({"cache_type": "dbprune", "Bn_compute_blocks": 0}),
        Some("dbcache") => json!({"cache_type": "dbcache"}),
        // The preset's limit is that of `CacheType.default_options`; the run was given its options one by one.
        Some("fbcache") => json!({"cache_type": "fb", "max_cached_steps": -1}),
        // 0.1.0 compares the joined streams of single blocks, and all diffs of a step count for the dynamic threshold.
        Some("dbprune") if config["given"]["enable_dynamic_prune_threshold"].is_null() => {
            json!({"cache_type": "dbprune", "compare_all_streams": true})
        }
        Some("dbprune") => {
            json!({"cache_type": "dbprune", "compare_all_streams": true, "dynamic_prune_threshold_diffs": -1})
        }
        other => bail!("unknown algorithm {other:?}"),
    };
    let objects = [&defaults, &config["given"], &config["extra"]].into_iter().filter_map(Value::as_object);
    let mut options: Map<String, Value> = objects.flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    if let Some(calibrator) = config["calibrator"].as_object() {
        let mut calibrator = calibrator.clone();
        if calibrator["type"] == "dmd" {
            calibrator.insert("dmd_fallback".into(), json!("reference"));
        }
        options.insert("calibrator".into(), calibrator.into());
    }
    Ok(Some(options))
}
