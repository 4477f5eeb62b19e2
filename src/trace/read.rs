//! Traces read back: what [`Trace::to_json`] wrote, checked field by field.

mod fields;
mod steps;

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use self::fields::Fields;
use self::steps::{number_steps, step_record};
use super::record::StepRecord;
use super::run::{CacheBytes, Ranks, TRACE_VERSION, Timings, Trace, Warning};
use crate::cache::{Branch, PolicyConfig, RecordedBranch, RecordedList, Recording};
use crate::error::{Error, Result};
use crate::model::compute_choice::ComputeChoice;
use crate::runtime::capture::CaptureCounts;
use crate::runtime::compiler::BuildCounts;

impl Trace {
    /// Reads the JSON that [`to_json`](Self::to_json) gives. The policy of a replay has its recording again.
    ///
    /// # Errors
    /// `Input` with the field that is missing, unknown, of another type, or that contradicts another one.
    pub fn from_json(json: &Value) -> Result<Self> {
        let version = json.get("version").ok_or_else(|| Error::input("is no trace: it has no `version`"))?;
        if version.as_u64() != Some(TRACE_VERSION.into()) {
            return Err(Error::input(format!(
                "the trace has version {version}, this program reads version {TRACE_VERSION}; record the run again"
            )));
        }
        let fields = Fields::new("trace", json, &NAMES)?;
        let (blocks, lists) = lists(&fields)?;
        let records = fields.list("records")?.iter().enumerate();
        let record = |(index, record)| step_record(&format!("records[{index}]"), record, blocks);
        let mut records = records.map(record).collect::<Result<Vec<_>>>()?;
        let batch = fields.count("batch")?;
        number_steps(&mut records, batch, &lists)?;
        let (config, is_replay) = policy(fields.value("cache_options"))?;
        let cache = if is_replay { PolicyConfig::replay(config, recorded(&lists, &records)?) } else { config };
        if fields.text("cache")? != cache.to_string() {
            return Err(fields.damaged("cache", &format!("`{cache}`, as `cache_options` say")));
        }
        let warnings = fields.list("warnings")?.iter().map(|warning| match warning {
            Value::String(text) => Ok(Warning::Setting(text.clone())),
            _ => Err(fields.damaged("warnings", "a list of texts")),
        });
        let trace = Self {
            engine: fields.text("engine")?.to_owned(),
            engine_hash: fields.text("engine_hash")?.to_owned(),
            cache,
            seed: fields.number("seed")?,
            cache_dtype: fields
                .text("cache_dtype")?
                .parse()
                .map_err(|_| fields.damaged("cache_dtype", "`stream`, `f16` or `bf16`"))?,
            batch,
            width: fields.number("width")?,
            height: fields.number("height")?,
            frames: fields.number_or_null("frames")?,
            fps: fields.real_or_null("fps")?,
            guidance: fields.real_or_null("guidance")?.map(|scale| scale as f32),
            cfg: fields.real_or_null("cfg")?.map(|scale| scale as f32),
            cfg_2: fields.real_or_null("cfg_2")?.map(|scale| scale as f32),
            guidance_rescale: fields.real_or_null("guidance_rescale")?.map(|rescale| rescale as f32),
            decode_tile: fields.number_or_null("decode_tile")?,
            lists,
            timings: timings(&fields)?,
            cache_bytes: cache_bytes(&fields)?,
            tensor_bytes: fields.number("tensor_bytes")?,
            compute: compute(&fields)?,
            provider: fields.text("provider")?.to_owned(),
            builds: builds(&fields)?,
            captures: captures(&fields)?,
            context_parallel: context_parallel(&fields)?,
            memory: memory(&fields)?,
            read_bytes: fields.number("read_bytes")?,
            warnings: warnings.collect::<Result<_>>()?,
            records,
        };
        check_decisions(&fields, &trace)?;
        Ok(trace)
    }
}

/// The traces of a JSON value: one, or a list of them as `--trace FILE` writes.
///
/// # Errors
/// `Input`, as [`Trace::from_json`].
pub fn read(json: &Value) -> Result<Vec<Trace>> {
    match json {
        Value::Array(traces) => traces.iter().map(Trace::from_json).collect(),
        trace => Ok(vec![Trace::from_json(trace)?]),
    }
}

/// What a recorded run decided, and under which policy: with both, [`PolicyConfig::replay`] repeats it.
///
/// `json` is a trace, or a list that holds one. Of a run that was a replay itself, the policy is the first one's.
///
/// # Errors
/// `Input`, as [`Trace::from_json`], and for a list of several traces.
pub fn recording(json: &Value) -> Result<(PolicyConfig, Recording)> {
    let mut traces = read(json)?;
    let (Some(trace), true) = (traces.pop(), traces.is_empty()) else {
        let count = json.as_array().map_or(0, Vec::len);
        return Err(Error::input(format!(
            "holds {count} traces, of which a replay needs exactly one; record a run of one request"
        )));
    };
    let recording = recorded(&trace.lists, &trace.records)?;
    let config = match trace.cache {
        PolicyConfig::Replay { config, .. } => *config,
        config => config,
    };
    Ok((config, recording))
}

const NAMES: [&str; 32] = [
    "version",
    "engine",
    "engine_hash",
    "cache",
    "cache_options",
    "cache_dtype",
    "seed",
    "batch",
    "width",
    "height",
    "frames",
    "fps",
    "guidance",
    "cfg",
    "cfg_2",
    "guidance_rescale",
    "decode_tile",
    "blocks",
    "lists",
    "decisions",
    "records",
    "timings",
    "cache_bytes",
    "tensor_bytes",
    "compute",
    "provider",
    "builds",
    "captures",
    "context_parallel",
    "memory",
    "read_bytes",
    "warnings",
];
const TIMINGS: [&str; 8] =
    ["text_ms", "embed_ms", "blocks_ms", "cache_ms", "final_ms", "update_ms", "decode_ms", "steps_ms"];
const BUILDS: [&str; 4] = ["built", "loaded", "build_seconds", "damaged"];
const CAPTURES: [&str; 3] = ["recorded", "replayed", "plain"];
const CACHE_BYTES: [&str; 4] = ["residuals", "calibrators", "compare", "streams"];

/// The letters of all decisions are those of the records.
fn check_decisions(fields: &Fields<'_>, trace: &Trace) -> Result<()> {
    let decisions = Fields::new("decisions", fields.value("decisions"), &["cond", "uncond"])?;
    for branch in [Branch::Cond, Branch::Uncond] {
        let expected = trace.decisions(branch);
        if decisions.text(branch.as_str())? != expected {
            return Err(decisions.damaged(branch.as_str(), &format!("`{expected}`, as the records say")));
        }
    }
    Ok(())
}

fn timings(fields: &Fields<'_>) -> Result<Timings> {
    let timings = Fields::new("timings", fields.value("timings"), &TIMINGS)?;
    Ok(Timings {
        text_ms: timings.real("text_ms")?,
        embed_ms: timings.real("embed_ms")?,
        blocks_ms: timings.real("blocks_ms")?,
        cache_ms: timings.real("cache_ms")?,
        final_ms: timings.real("final_ms")?,
        update_ms: timings.real("update_ms")?,
        decode_ms: timings.real("decode_ms")?,
        steps_ms: timings.real("steps_ms")?,
    })
}

fn cache_bytes(fields: &Fields<'_>) -> Result<CacheBytes> {
    let bytes = Fields::new("cache_bytes", fields.value("cache_bytes"), &CACHE_BYTES)?;
    Ok(CacheBytes {
        residuals: bytes.number("residuals")?,
        calibrators: bytes.number("calibrators")?,
        compare: bytes.number("compare")?,
        streams: bytes.number("streams")?,
    })
}

/// The dtype itself, never `exported`.
fn compute(fields: &Fields<'_>) -> Result<ComputeChoice> {
    let choice = fields.text("compute")?.parse().ok().filter(|choice| *choice != ComputeChoice::Exported);
    choice.ok_or_else(|| fields.damaged("compute", "`fp32`, `fp16` or `bf16`"))
}

/// Bytes by memory.
fn memory(fields: &Fields<'_>) -> Result<BTreeMap<String, u64>> {
    let wrong = || fields.damaged("memory", "an object of byte counts");
    let memory = fields.value("memory").as_object().ok_or_else(wrong)?;
    memory.iter().map(|(name, bytes)| Ok((name.clone(), bytes.as_u64().ok_or_else(wrong)?))).collect()
}

/// What became of builds, where there were any.
fn builds(fields: &Fields<'_>) -> Result<Option<BuildCounts>> {
    let value = fields.value("builds");
    if value.is_null() {
        return Ok(None);
    }
    let builds = Fields::new("builds", value, &BUILDS)?;
    let wrong = || builds.damaged("damaged", "a list of texts");
    let damaged = builds.list("damaged")?.iter().map(|text| text.as_str().map(str::to_owned).ok_or_else(wrong));
    Ok(Some(BuildCounts {
        built: builds.number("built")? as usize,
        loaded: builds.number("loaded")? as usize,
        build_seconds: builds.real("build_seconds")?,
        damaged: damaged.collect::<Result<_>>()?,
    }))
}

fn captures(fields: &Fields<'_>) -> Result<Option<CaptureCounts>> {
    let value = fields.value("captures");
    if value.is_null() {
        return Ok(None);
    }
    let captures = Fields::new("captures", value, &CAPTURES)?;
    let [recorded, replayed, plain] =
        [captures.count("recorded")?, captures.count("replayed")?, captures.count("plain")?];
    Ok(Some(CaptureCounts { recorded, replayed, plain }))
}

fn context_parallel(fields: &Fields<'_>) -> Result<Option<Ranks>> {
    let value = fields.value("context_parallel");
    if value.is_null() {
        return Ok(None);
    }
    let parallel = Fields::new("context_parallel", value, &["method", "ranks"])?;
    let method = parallel.text("method")?.parse().map_err(|_| parallel.damaged("method", "`ulysses` or `gather`"))?;
    Ok(Some(Ranks { method, ranks: parallel.count("ranks")? }))
}

/// The policy, and whether it was replayed.
fn policy(options: &Value) -> Result<(PolicyConfig, bool)> {
    let is_replay = options.get("cache_type").is_some_and(|cache_type| cache_type == "replay");
    let options = if is_replay { options.get("config").unwrap_or(&Value::Null) } else { options };
    let config = PolicyConfig::from_json(&options.to_string())
        .map_err(|error| Error::input(format!("`cache_options` are damaged: {error}")))?;
    Ok((config, is_replay))
}

/// The blocks of the model, and of each list.
fn lists(fields: &Fields<'_>) -> Result<(usize, Vec<usize>)> {
    let blocks = fields.count("blocks")?;
    let count = |count: &Value| count.as_u64().and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0);
    let lists: Option<Vec<usize>> = fields.list("lists")?.iter().map(count).collect();
    let sum = |lists: &Vec<usize>| lists.iter().try_fold(0_usize, |sum, count| sum.checked_add(*count));
    match lists.filter(|lists| !lists.is_empty() && sum(lists) == Some(blocks)) {
        Some(lists) => Ok((blocks, lists)),
        None => Err(fields.damaged("lists", &format!("positive numbers of blocks that add up to {blocks}"))),
    }
}

fn recorded(lists: &[usize], records: &[StepRecord]) -> Result<Recording> {
    if records.iter().any(|record| record.sample.is_some()) {
        return Err(Error::input(
            "holds a run with the option `per-sample`, whose samples decided each for itself: a replay repeats the decisions of a \
             whole batch; record a run without the option `per-sample`",
        ));
    }
    let mut of_branch: HashMap<(usize, Branch), Vec<&StepRecord>> = HashMap::new();
    for record in records {
        of_branch.entry((record.list.unwrap_or_default(), record.branch)).or_default().push(record);
    }
    let mut recorded = Vec::new();
    let mut start = 0;
    for (index, n_blocks) in lists.iter().copied().enumerate() {
        let mut branches = Vec::new();
        for branch in [Branch::Cond, Branch::Uncond] {
            if let Some(steps) = of_branch.get(&(index, branch)) {
                let letters: String = steps.iter().map(|record| record.letter()).collect();
                // Policies count from the start of their list.
                let skipped = |record: &&StepRecord| record.skipped_blocks().map(|block| block - start).collect();
                branches.push(RecordedBranch::new(branch, &letters, &steps.iter().map(skipped).collect::<Vec<_>>())?);
            }
        }
        recorded.push(RecordedList { n_blocks, branches });
        start += n_blocks;
    }
    Ok(Recording { lists: recorded })
}
