//! Policies by name: the starting points of tags and JSON.

use super::PolicyConfig;
use super::dbcache::DbCacheConfig;
use super::dbprune::DbPruneConfig;
use crate::error::{Error, Result};
use crate::nearest::did_you_mean;

/// The named starting points, and how they are written.
pub(super) fn preset(name: &str) -> Result<PolicyConfig> {
    match name.to_ascii_lowercase().as_str() {
        "none" | "no_cache" | "nocache" | "nc" => Ok(PolicyConfig::None),
        _ if is_fbcache(name) => Ok(PolicyConfig::DbCache(DbCacheConfig::fb())),
        "db" | "dbcache" | "db_cache" | "dual_block_cache" => Ok(PolicyConfig::DbCache(DbCacheConfig::default())),
        "cache-dit" | "cache_dit" => Ok(PolicyConfig::DbCache(DbCacheConfig::cache_dit())),
        "prune" | "dbp" | "dbprune" | "db_prune" | "dynamic_block_prune" => {
            Ok(PolicyConfig::DbPrune(DbPruneConfig::default()))
        }
        _ if name.to_ascii_lowercase().starts_with("replay") => {
            Err(Error::usage("a replay needs the trace that it repeats; give that trace instead of a policy"))
        }
        _ => Err(Error::usage(format!(
            "unknown policy `{name}`{}; expected `none`, `fb`, `dbcache`, `cache-dit` or `prune`",
            did_you_mean(name, PRESETS)
        ))),
    }
}

/// A policy as its user calls it: by the preset that it is, else by its tag.
pub(super) fn name(policy: &PolicyConfig) -> String {
    let presets = ["none", "fb", "dbcache", "cache-dit", "prune"];
    let found = presets.into_iter().find(|name| preset(name).is_ok_and(|preset| preset == *policy));
    found.map_or_else(|| policy.to_string(), str::to_owned)
}

/// Whether this is a name of FBCache.
pub(super) fn is_fbcache(name: &str) -> bool {
    ["fb", "fbcache", "first_block_cache"].contains(&name.to_ascii_lowercase().as_str())
}

/// Presets as a tag may begin with them, longest first.
pub(super) const PRESETS: [&str; 8] =
    ["cache-dit", "cache_dit", "fbcache", "dbcache", "dbprune", "prune", "none", "fb"];
