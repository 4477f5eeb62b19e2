//! The trace of one request: how it was made, what each step decided, times, bytes and warnings.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use super::record::StepRecord;
use crate::cache::{Branch, PolicyConfig};
use crate::collective::Method;
use crate::model::cache_dtype::CacheDType;
use crate::model::compute_choice::ComputeChoice;
use crate::runtime::capture::CaptureCounts;
use crate::runtime::compiler::BuildCounts;
use crate::units::bytes_in_words;

/// The version of the JSON that [`Trace::to_json`] gives and [`Trace::from_json`] reads.
pub(crate) const TRACE_VERSION: u32 = 2;

/// Wall time by part, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Tokenizers and text graphs.
    pub text_ms: f64,
    /// The graph before the blocks.
    pub embed_ms: f64,
    /// The blocks.
    pub blocks_ms: f64,
    /// Residuals, diffs, decisions.
    pub cache_ms: f64,
    /// The graph after the blocks.
    pub final_ms: f64,
    /// Guidance and the scheduler's update.
    pub update_ms: f64,
    /// Latents to pixels.
    pub decode_ms: f64,
    /// From the first step to the last, all parts of the loop.
    pub steps_ms: f64,
}

impl Timings {
    /// The times by their names.
    pub fn to_json(&self) -> Value {
        let Self { text_ms, embed_ms, blocks_ms, cache_ms, final_ms, update_ms, decode_ms, steps_ms } = self;
        json!({
            "text_ms": text_ms,
            "embed_ms": embed_ms,
            "blocks_ms": blocks_ms,
            "cache_ms": cache_ms,
            "final_ms": final_ms,
            "update_ms": update_ms,
            "decode_ms": decode_ms,
            "steps_ms": steps_ms,
        })
    }
}

/// Bytes that a request keeps on the device, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheBytes {
    /// Residuals of blocks that may be skipped.
    pub residuals: u64,
    /// What calibrators keep instead.
    pub calibrators: u64,
    /// What diffs compare with.
    pub compare: u64,
    /// Streams at the ends of the head, which must outlive the blocks after it.
    pub streams: u64,
}

impl CacheBytes {
    /// All of them.
    pub fn total(&self) -> u64 {
        let Self { residuals, calibrators, compare, streams } = self;
        [residuals, calibrators, compare, streams].into_iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// The bytes by their names.
    pub fn to_json(&self) -> Value {
        let Self { residuals, calibrators, compare, streams } = self;
        json!({ "residuals": residuals, "calibrators": calibrators, "compare": compare, "streams": streams })
    }
}

/// The total and its parts, such as `1.2 MiB = residuals 0.4 + calibrators 0.0 + compare 0.3 + streams 0.5`.
impl fmt::Display for CacheBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { residuals, calibrators, compare, streams } = *self;
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "{:.2} MiB = residuals {:.2} + calibrators {:.2} + compare {:.2} + streams {:.2}",
            mebibytes(self.total()),
            mebibytes(residuals),
            mebibytes(calibrators),
            mebibytes(compare),
            mebibytes(streams)
        )
    }
}

/// Several processes that made one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranks {
    /// How they shared each attention.
    pub method: Method,
    /// How many they were.
    pub ranks: usize,
}

/// The full record of one generation.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Name of the engine.
    pub engine: String,
    /// SHA-256 of its manifest, and so of everything it holds.
    pub engine_hash: String,
    /// The policy.
    pub cache: PolicyConfig,
    /// In which dtype it kept its tensors.
    pub cache_dtype: CacheDType,
    /// Seed of the first picture.
    pub seed: u64,
    /// Pictures.
    pub batch: usize,
    /// In pixels.
    pub width: u64,
    /// In pixels.
    pub height: u64,
    /// Of a video.
    pub frames: Option<u64>,
    /// Frames per second of a video.
    pub fps: Option<f64>,
    /// The guidance scale that the model takes as an input, where it does.
    pub guidance: Option<f32>,
    /// The scale of classifier-free guidance, where two branches ran.
    pub cfg: Option<f32>,
    /// The scale of classifier-free guidance of the second transformer, if the model has two.
    pub cfg_2: Option<f32>,
    /// How far guidance was drawn back to the spread of the cond prediction, where it was.
    pub guidance_rescale: Option<f32>,
    /// Pixels a side of the tiles in which latents were decoded, where they were.
    pub decode_tile: Option<u64>,
    /// Blocks of each list that was decided on by itself; one entry where all blocks of the model were decided on
    /// together.
    pub lists: Vec<usize>,
    /// One per step and branch (and list of blocks and picture, if each decides for itself), in the order in which they
    /// ran.
    pub records: Vec<StepRecord>,
    /// Wall time by part.
    pub timings: Timings,
    /// What the policy kept on the device.
    pub cache_bytes: CacheBytes,
    /// Bytes of all tensors of the request, those of the cache among them.
    pub tensor_bytes: u64,
    /// In which dtype the transformers computed, as the flag spells it.
    pub compute: ComputeChoice,
    /// The provider that computed, with its options.
    pub provider: String,
    /// What became of the builds that the provider compiles, since the engine was loaded; `None` if it compiles none.
    pub builds: Option<BuildCounts>,
    /// Runs of the stages that were recorded and replayed; `None` if the provider was not told to.
    pub captures: Option<CaptureCounts>,
    /// The processes that made it together; `None` if one did.
    pub context_parallel: Option<Ranks>,
    /// Bytes of the tensors by the memory that they lay in, in ONNX Runtime's words: `Cpu`, `Cuda`, `WebGPU_Buf`.
    pub memory: BTreeMap<String, u64>,
    /// Bytes of tensors that the host read from a device while the steps ran: 0 if only sums come back. Where runs are
    /// recorded, those that the first replays were checked by, and the sums of stages that hold the cache's arithmetic.
    pub read_bytes: u64,
    /// What the user should know; see [`Warning`].
    pub warnings: Vec<Warning>,
}

/// Something suspicious that is not an error.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Warning {
    /// The cache was on, and no step was skipped. Holds the smallest diff, if any was taken, and the threshold.
    NeverHit {
        /// The smallest diff.
        smallest: Option<f32>,
        /// The threshold.
        threshold: Option<f64>,
    },
    /// Every step after the warm-up was skipped. Holds how many.
    AlwaysHit {
        /// Skipped steps.
        skipped: usize,
    },
    /// A setting that is legal but does nothing.
    Setting(String),
    /// Something runs on another provider than the one asked for first, by the user's leave.
    Provider(String),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverHit { smallest: Some(smallest), .. } if !smallest.is_finite() => f.write_str(
                "the cache skipped nothing: no diff was a number, since the first blocks changed nothing and 0 / 0 is none; \
                 let more blocks run first (a larger Fn), or the option `cache=none` to save its memory",
            ),
            Self::NeverHit { smallest: Some(smallest), threshold: Some(threshold) } => {
                // Rounded up: what is below the diff would skip nothing again.
                let above = (f64::from(*smallest) * 1e3).ceil() / 1e3;
                write!(
                    f,
                    "the cache skipped nothing: the smallest diff was {smallest:.4}, the threshold is {threshold}; \
                     try a threshold above {above:.3}, or the option `cache=none` to save its memory"
                )
            }
            Self::NeverHit { .. } => write!(
                f,
                "the cache skipped nothing: warm-up, limits or a threshold of 0 decided every step; \
                 try fewer warm-up steps or more steps"
            ),
            Self::AlwaysHit { skipped } => write!(
                f,
                "the cache skipped all {skipped} steps after the warm-up, without ever refreshing; \
                 if the picture suffers, try a lower threshold or a limit (such as mc3)"
            ),
            Self::Setting(text) | Self::Provider(text) => f.write_str(text),
        }
    }
}

impl Trace {
    /// Blocks of the model.
    pub fn blocks(&self) -> usize {
        self.lists.iter().sum()
    }

    /// Blocks that would have run without a cache, in all records together.
    pub fn blocks_uncached(&self) -> usize {
        let of_record = |record: &StepRecord| self.lists.get(record.list.unwrap_or_default()).copied();
        self.records.iter().filter_map(of_record).sum()
    }

    /// `C`, `S` or `P` for each step of a branch; empty for a branch that did not run. If each list of blocks or each
    /// picture decides for itself, a string for each, with spaces between.
    pub fn decisions(&self, branch: Branch) -> String {
        self.decisions_each(branch).join(" ")
    }

    /// The strings of [`decisions`](Self::decisions) as a list: by list of blocks, and within it by picture. The list is empty
    /// for a branch that did not run.
    pub fn decisions_each(&self, branch: Branch) -> Vec<String> {
        self.deciders(branch).into_values().collect()
    }

    /// By list of blocks and picture.
    fn deciders(&self, branch: Branch) -> BTreeMap<(Option<usize>, Option<usize>), String> {
        let mut each = BTreeMap::new();
        for record in self.branch(branch) {
            let decisions: &mut String = each.entry((record.list, record.sample)).or_default();
            decisions.push(record.letter());
        }
        each
    }

    /// The records of one branch.
    pub fn branch(&self, branch: Branch) -> impl Iterator<Item = &StepRecord> {
        self.records.iter().filter(move |record| record.branch == branch)
    }

    /// Whether each picture of the batch decided for itself.
    pub(crate) fn is_per_sample(&self) -> bool {
        self.records.iter().any(|record| record.sample.is_some())
    }

    /// Steps (counted per branch, list of blocks and picture) of which blocks did not run.
    pub fn skipped(&self) -> usize {
        self.records.iter().filter(|record| record.letter() != 'C').count()
    }

    /// Blocks that ran.
    pub fn blocks_run(&self) -> usize {
        self.records.iter().map(|record| record.blocks_run).sum()
    }

    /// Percentiles 0, 25, 50, 75, 95 and 100 of the diffs, linearly interpolated; none without diffs.
    pub fn diff_percentiles(&self) -> Option<[f32; 6]> {
        let mut diffs: Vec<f32> = self.records.iter().flat_map(StepRecord::diffs).collect();
        diffs.sort_by(f32::total_cmp);
        let last = diffs.len().checked_sub(1)?;
        Some([0.0, 0.25, 0.5, 0.75, 0.95, 1.0].map(|part: f32| {
            let position = part * last as f32;
            let (low, high) = (diffs[position.floor() as usize], diffs[position.ceil() as usize]);
            low + (high - low) * position.fract()
        }))
    }

    /// The first threshold that a diff was compared with.
    pub(super) fn threshold(&self) -> Option<f64> {
        let of_blocks = |record: &StepRecord| record.blocks.iter().find_map(|block| block.threshold);
        self.records.iter().find_map(|record| record.threshold.or_else(|| of_blocks(record)))
    }

    /// Warnings that follow from the records.
    pub(crate) fn judge(&mut self) {
        // The advice is about options that a replay does not follow.
        if matches!(self.cache, PolicyConfig::None | PolicyConfig::Replay { .. }) {
            return;
        }
        let skipped = self.skipped();
        if skipped == 0 {
            let smallest = self.records.iter().flat_map(StepRecord::diffs).min_by(f32::total_cmp);
            let threshold = self.threshold();
            self.warnings.push(Warning::NeverHit { smallest, threshold });
            return;
        }
        let mut after_first_skip = self.records.iter().skip_while(|record| record.letter() == 'C');
        if after_first_skip.all(|record| record.letter() == 'S') {
            // A short run at the end is what a cache should do; a third of all steps is not.
            if skipped * 3 >= self.records.len() {
                self.warnings.push(Warning::AlwaysHit { skipped });
            }
        }
    }

    /// A few lines for people; its `Display` ends without a line break.
    pub fn summary(&self) -> impl fmt::Display {
        Summary(self)
    }
}

/// See [`Trace::summary`].
struct Summary<'t>(&'t Trace);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trace = self.0;
        let (runs, skipped) = (trace.records.len(), trace.skipped());
        let all_blocks = trace.blocks_uncached();
        writeln!(f, "cache    {}", trace.cache)?;
        for branch in [Branch::Cond, Branch::Uncond] {
            for ((list, sample), decisions) in trace.deciders(branch) {
                let list = list.map_or(String::new(), |list| format!(" list {list}"));
                let sample = sample.map_or(String::new(), |sample| format!(" {sample}"));
                let name = format!("{branch}{list}{sample}");
                writeln!(f, "{name:<8} {decisions}")?;
            }
        }
        writeln!(f, "steps    {} computed, {skipped} skipped", runs - skipped)?;
        let blocks_run = trace.blocks_run();
        let share = 100.0 * (all_blocks - blocks_run) as f64 / all_blocks.max(1) as f64;
        writeln!(f, "blocks   {blocks_run} of {all_blocks} run ({share:.1} % saved)")?;
        // Once for all pictures, and the lists of a step together.
        let of_step = trace.records.iter().filter(|record| record.sample.unwrap_or_default() == 0);
        let sessions: f64 = of_step.clone().map(|record| record.session_runs as f64).sum();
        let steps = of_step.filter(|record| record.list.unwrap_or_default() == 0).count();
        writeln!(f, "sessions {:.1} runs a step", sessions / steps.max(1) as f64)?;
        if let Some(captures) = &trace.captures {
            writeln!(f, "captures {captures}")?;
        }
        if let Some(Ranks { method, ranks }) = trace.context_parallel {
            // Once for all pictures.
            let of_step = || trace.records.iter().filter(|record| record.sample.unwrap_or_default() == 0);
            let each = || of_step().filter_map(|record| record.exchanged);
            let bytes = bytes_in_words(each().map(|exchanged| exchanged.bytes).sum());
            let ms: f64 = each().map(|exchanged| exchanged.ms).sum();
            writeln!(f, "ranks    {ranks} by {method}: {bytes} given by this one, {ms:.1} ms of giving and waiting")?;
        }
        if let Some([p0, p25, p50, p75, p95, p100]) = trace.diff_percentiles() {
            let threshold = trace.threshold();
            write!(f, "diffs    P00 {p0:.4}  P25 {p25:.4}  P50 {p50:.4}  P75 {p75:.4}  P95 {p95:.4}  P100 {p100:.4}")?;
            match threshold {
                Some(threshold) => writeln!(f, "  (threshold {threshold})")?,
                None => writeln!(f)?,
            }
        }
        if trace.cache != PolicyConfig::None {
            let all = trace.tensor_bytes as f64 / f64::from(1 << 20);
            writeln!(f, "memory   cache {}; all tensors {all:.2} MiB", trace.cache_bytes)?;
        }
        let t = &trace.timings;
        write!(
            f,
            "time     steps {:.1} ms = embed {:.1} + blocks {:.1} + cache {:.1} + final {:.1} + update {:.1}; text {:.1}, decode {:.1}",
            t.steps_ms, t.embed_ms, t.blocks_ms, t.cache_ms, t.final_ms, t.update_ms, t.text_ms, t.decode_ms
        )?;
        for warning in &trace.warnings {
            write!(f, "\nwarning: {warning}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advised_threshold_is_not_below_the_smallest_diff() {
        for (smallest, advised) in [
            (0.2485, "was 0.2485, the threshold is 0.01; try a threshold above 0.249,"),
            (0.24801, "above 0.249,"),
            (0.25, "above 0.250,"),
            (0.0, "above 0.000,"),
            (0.000_001, "above 0.001,"),
            (3.0, "above 3.000,"),
        ] {
            let text = Warning::NeverHit { smallest: Some(smallest), threshold: Some(0.01) }.to_string();
            assert!(text.contains(advised), "{smallest}: {text}");
        }
        // 0 / 0 and x / 0: no threshold is above them.
        for smallest in [f32::NAN, f32::INFINITY] {
            let text = Warning::NeverHit { smallest: Some(smallest), threshold: Some(0.01) }.to_string();
            assert!(text.contains("the first blocks changed nothing") && !text.contains("threshold"), "{text}");
        }
    }
}
