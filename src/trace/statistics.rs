//! What a generation did in numbers, without its single records.

use serde_json::{Value, json};

use super::run::Trace;
use crate::cache::Branch;

/// The version of the JSON that [`Trace::statistics`] gives.
const VERSION: u32 = 1;

impl Trace {
    /// Versioned JSON: decisions, steps and blocks that ran and were skipped, diffs, times in milliseconds, bytes,
    /// warnings. New members may come without a new version.
    pub fn statistics(&self) -> Value {
        let all_blocks = self.blocks_uncached();
        let blocks_run = self.blocks_run();
        let timings = &self.timings;
        let mut cache_bytes = self.cache_bytes.to_json();
        cache_bytes["total"] = json!(self.cache_bytes.total());
        json!({
            "version": VERSION,
            "engine": self.engine,
            "cache": self.cache.to_string(),
            "steps": self.records.first().map_or(0, |record| record.steps),
            "decisions": {
                "cond": self.decisions(Branch::Cond),
                "uncond": self.decisions(Branch::Uncond),
            },
            "computed": self.records.len() - self.skipped(),
            "skipped": self.skipped(),
            "blocks": all_blocks,
            "blocks_run": blocks_run,
            "blocks_saved": (all_blocks - blocks_run) as f64 / all_blocks.max(1) as f64,
            "threshold": self.threshold(),
            "diff_percentiles": self.diff_percentiles().map(|[p0, p25, p50, p75, p95, p100]| {
                json!({ "0": p0, "25": p25, "50": p50, "75": p75, "95": p95, "100": p100 })
            }),
            "time": timings.to_json(),
            "cache_bytes": cache_bytes,
            "tensor_bytes": self.tensor_bytes,
            "warnings": self.warnings.iter().map(|warning| warning.to_string()).collect::<Vec<_>>(),
        })
    }
}
