//! The folders of a store, as build_cache.rs draws them.

pub(super) const ENTRIES: &str = "entries";
pub(super) const STAGING: &str = "staging";
pub(super) const WEIGHTS: &str = "weights";
pub(super) const REFERENCES: &str = "references";
pub(super) const TIMING: &str = "timing";
pub(super) const FOLDERS: [&str; 6] = [ENTRIES, STAGING, WEIGHTS, REFERENCES, TIMING, "locks"];
