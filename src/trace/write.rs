//! A trace as JSON; `read.rs` takes it back.

use serde_json::{Value, json};

use super::record::{BlockRecord, StepRecord};
use super::run::{TRACE_VERSION, Trace, Warning};
use crate::cache::Branch;
use crate::runtime::capture::CaptureCounts;
use crate::runtime::compiler::BuildCounts;

impl Trace {
    /// Versioned JSON: everything that the trace holds.
    pub fn to_json(&self) -> Value {
        json!({
            "version": TRACE_VERSION,
            "engine": self.engine,
            "engine_hash": self.engine_hash,
            "cache": self.cache.to_string(),
            "cache_options": self.cache.to_json(),
            "cache_dtype": self.cache_dtype.as_str(),
            "seed": self.seed,
            "batch": self.batch,
            "width": self.width,
            "height": self.height,
            "frames": self.frames,
            "fps": self.fps,
            "guidance": self.guidance,
            "cfg": self.cfg,
            "cfg_2": self.cfg_2,
            "guidance_rescale": self.guidance_rescale,
            "decode_tile": self.decode_tile,
            "blocks": self.blocks(),
            "lists": self.lists,
            "decisions": {
                "cond": self.decisions(Branch::Cond),
                "uncond": self.decisions(Branch::Uncond),
            },
            "records": self.records.iter().map(record_json).collect::<Vec<_>>(),
            "timings": self.timings.to_json(),
            "cache_bytes": self.cache_bytes.to_json(),
            "tensor_bytes": self.tensor_bytes,
            "compute": self.compute.to_string(),
            "provider": self.provider,
            "builds": self.builds.as_ref().map(BuildCounts::to_json),
            "captures": self.captures.as_ref().map(CaptureCounts::to_json),
            "context_parallel": self.context_parallel.as_ref().map(|parallel| {
                json!({ "method": parallel.method.as_str(), "ranks": parallel.ranks })
            }),
            "memory": self.memory,
            "read_bytes": self.read_bytes,
            "warnings": self.warnings.iter().map(Warning::to_string).collect::<Vec<_>>(),
        })
    }
}

fn record_json(record: &StepRecord) -> Value {
    json!({
        "step": record.step,
        "branch": record.branch.as_str(),
        "expert": record.expert,
        "list": record.list,
        "sample": record.sample,
        "sigma": record.sigma,
        "action": record.letter().to_string(),
        "reason": record.decision.reason.as_str(),
        "diff": record.diff,
        "threshold": record.threshold,
        "blocks": record.blocks.iter().map(block_json).collect::<Vec<_>>(),
        "blocks_run": record.blocks_run,
        "ran": record.ran.iter().map(|blocks| [blocks.start, blocks.end]).collect::<Vec<_>>(),
        "session_runs": record.session_runs,
        "elapsed_ms": record.elapsed_ms,
        "exchanged": record.exchanged.map(|exchanged| json!({ "bytes": exchanged.bytes, "ms": exchanged.ms })),
    })
}

fn block_json(record: &BlockRecord) -> Value {
    json!({
        "block": record.block,
        "action": record.decision.action.letter().to_string(),
        "reason": record.decision.reason.as_str(),
        "diff": record.diff,
        "threshold": record.threshold,
    })
}
