//! Where two runs part, and why.

use std::collections::HashMap;
use std::fmt;

use serde_json::{Value, json};

use super::record::StepRecord;
use super::run::Trace;
use crate::cache::{Action, Branch, Decision};

/// What differs between two runs; see [`compare`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Settings that are not the same: any of them can explain why decisions differ.
    pub settings: Vec<Setting>,
    /// The first decision that is not the same.
    pub first: Option<Divergence>,
    /// Steps (counted per branch) of either run.
    pub steps: usize,
    /// Of these, how many decided otherwise as a whole, or run in one of the runs only.
    pub differing_steps: usize,
    /// Of the others, how many single blocks were decided otherwise.
    pub differing_blocks: usize,
    /// The largest difference of two diffs at the same place, where both runs took one.
    pub largest: Option<LargestDiff>,
}

/// One setting in both runs, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name, as in the JSON of a trace.
    pub name: &'static str,
    /// In the first run.
    pub a: String,
    /// In the second run.
    pub b: String,
}

/// Where two runs part.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// From 0.
    pub step: usize,
    /// The guidance branch.
    pub branch: Branch,
    /// The list of blocks, where each decides for itself.
    pub list: Option<usize>,
    /// The picture, where each decides for itself.
    pub sample: Option<usize>,
    /// The block, where a single block was decided otherwise; `None` if the step as a whole was.
    pub block: Option<usize>,
    /// What the first run did; none if it did not decide there.
    pub a: Option<Side>,
    /// What the second run did.
    pub b: Option<Side>,
}

/// One run's decision, with what it hung on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Side {
    /// What was decided, and by which rule.
    pub decision: Decision,
    /// The diff, where one was taken.
    pub diff: Option<f32>,
    /// What it was compared with.
    pub threshold: Option<f64>,
}

/// The two diffs that are farthest apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LargestDiff {
    /// From 0.
    pub step: usize,
    /// The guidance branch.
    pub branch: Branch,
    /// The list of blocks, where each decides for itself.
    pub list: Option<usize>,
    /// The picture, where each decides for itself.
    pub sample: Option<usize>,
    /// The block, where it is the diff of a single block.
    pub block: Option<usize>,
    /// In the first run.
    pub a: f32,
    /// In the second run.
    pub b: f32,
}

/// Compares the decisions of two runs, in the order in which the first one took them. Reasons may differ where
/// decisions do not: a replay equals what it repeats.
pub fn compare(a: &Trace, b: &Trace) -> Comparison {
    let mut comparison = Comparison { settings: settings(a, b), ..Comparison::default() };
    let key = |record: &StepRecord| (record.step, record.branch, record.list, record.sample);
    // The first record of a place counts; a trace holds 100,000 and more.
    let places = |trace: &'_ Trace| -> HashMap<_, usize> {
        trace.records.iter().enumerate().rev().map(|(index, record)| (key(record), index)).collect()
    };
    let (of_a, of_b) = (places(a), places(b));
    for record in &a.records {
        comparison.step(Some(record), of_b.get(&key(record)).map(|index| &b.records[*index]));
    }
    for record in b.records.iter().filter(|record| !of_a.contains_key(&key(record))) {
        comparison.step(None, Some(record));
    }
    comparison
}

fn settings(a: &Trace, b: &Trace) -> Vec<Setting> {
    let pairs = texts(a).into_iter().zip(texts(b));
    pairs.filter(|(a, b)| a.1 != b.1).map(|((name, a), (_, b))| Setting { name, a, b }).collect()
}

/// The settings of a run by name, as text.
fn texts(trace: &Trace) -> [(&'static str, String); 20] {
    let scale = |scale: Option<f32>| scale.map_or("none".to_owned(), |scale| scale.to_string());
    let has_uncond = trace.branch(Branch::Uncond).next().is_some();
    [
        ("cache", trace.cache.to_string()),
        ("engine", trace.engine.clone()),
        ("engine_hash", trace.engine_hash.clone()),
        ("blocks", trace.blocks().to_string()),
        ("lists", format!("{:?}", trace.lists)),
        ("seed", trace.seed.to_string()),
        ("steps", trace.records.first().map_or(0, |record| record.steps).to_string()),
        ("size", format!("{}x{}", trace.width, trace.height)),
        ("batch", trace.batch.to_string()),
        ("per_sample", trace.is_per_sample().to_string()),
        ("cache_dtype", trace.cache_dtype.to_string()),
        ("compute", trace.compute.to_string()),
        ("guidance", scale(trace.guidance)),
        ("cfg", scale(trace.cfg)),
        ("cfg_2", scale(trace.cfg_2)),
        ("guidance_rescale", scale(trace.guidance_rescale)),
        ("decode_tile", trace.decode_tile.map_or("none".to_owned(), |pixels| pixels.to_string())),
        ("frames", trace.frames.map_or("none".to_owned(), |frames| frames.to_string())),
        ("fps", trace.fps.map_or("none".to_owned(), |fps| fps.to_string())),
        ("branches", if has_uncond { "cond and uncond" } else { "cond" }.to_owned()),
    ]
}

impl Comparison {
    /// Whether both runs decided the same everywhere.
    pub fn is_equal(&self) -> bool {
        self.first.is_none()
    }

    fn step(&mut self, a: Option<&StepRecord>, b: Option<&StepRecord>) {
        let Some(at) = a.or(b) else { return };
        self.steps += 1;
        let side =
            |record: &StepRecord| Side { decision: record.decision, diff: record.diff, threshold: record.threshold };
        let (of_a, of_b) = (a.map(side), b.map(side));
        self.diffs(at, None, of_a, of_b);
        if is_other(of_a, of_b) {
            self.differing_steps += 1;
            self.part(at, None, of_a, of_b);
            return;
        }
        let (Some(a), Some(b)) = (a, b) else { return };
        let mut blocks: Vec<usize> = a.blocks.iter().chain(&b.blocks).map(|block| block.block).collect();
        blocks.sort_unstable();
        blocks.dedup();
        for block in blocks {
            let side = |record: &StepRecord| {
                let found = record.blocks.iter().find(|record| record.block == block)?;
                Some(Side { decision: found.decision, diff: found.diff, threshold: found.threshold })
            };
            let (of_a, of_b) = (side(a), side(b));
            self.diffs(at, Some(block), of_a, of_b);
            // A block that is not decided on alone does what the step does; only a skip is worth telling.
            let skips = |side: Option<Side>| side.is_some_and(|side| side.decision.action == Action::Skip);
            if skips(of_a) != skips(of_b) {
                self.differing_blocks += 1;
                self.part(at, Some(block), of_a, of_b);
            }
        }
    }

    fn part(&mut self, at: &StepRecord, block: Option<usize>, a: Option<Side>, b: Option<Side>) {
        let StepRecord { step, branch, list, sample, .. } = *at;
        self.first.get_or_insert(Divergence { step, branch, list, sample, block, a, b });
    }

    fn diffs(&mut self, at: &StepRecord, block: Option<usize>, a: Option<Side>, b: Option<Side>) {
        let (Some(a), Some(b)) = (a.and_then(|side| side.diff), b.and_then(|side| side.diff)) else { return };
        let largest = self.largest.map_or(-1.0, |largest| (largest.a - largest.b).abs());
        if (a - b).abs() > largest {
            let StepRecord { step, branch, list, sample, .. } = *at;
            self.largest = Some(LargestDiff { step, branch, list, sample, block, a, b });
        }
    }

    /// The comparison as JSON, version 1.
    pub fn to_json(&self) -> Value {
        json!({
            "version": 1,
            "equal": self.is_equal(),
            "settings": self.settings.iter()
                .map(|setting| json!({ "name": setting.name, "a": setting.a, "b": setting.b }))
                .collect::<Vec<_>>(),
            "first": self.first.as_ref().map(|first| json!({
                "step": first.step,
                "branch": first.branch.as_str(),
                "list": first.list,
                "sample": first.sample,
                "block": first.block,
                "a": side(&first.a),
                "b": side(&first.b),
            })),
            "steps": self.steps,
            "differing_steps": self.differing_steps,
            "differing_blocks": self.differing_blocks,
            "largest": self.largest.map(|largest| json!({
                "step": largest.step,
                "branch": largest.branch.as_str(),
                "list": largest.list,
                "sample": largest.sample,
                "block": largest.block,
                "a": largest.a,
                "b": largest.b,
            })),
        })
    }
}

/// Whether one did something else than the other, or nothing at all.
fn is_other(a: Option<Side>, b: Option<Side>) -> bool {
    let action = |side: Option<Side>| side.map(|side| side.decision.action);
    action(a) != action(b)
}

/// A step and branch; a list of blocks, a sample and a block if there is one.
fn place(step: usize, branch: Branch, list: Option<usize>, sample: Option<usize>, block: Option<usize>) -> String {
    let list = list.map_or(String::new(), |list| format!(", block list {list}"));
    let sample = sample.map_or(String::new(), |sample| format!(", sample {sample}"));
    let block = block.map_or(String::new(), |block| format!(", block {block}"));
    format!("step {step}, {branch}{list}{sample}{block}")
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = match self.decision.action {
            Action::Compute => "computed",
            Action::Skip => "skipped",
        };
        write!(f, "{done} ({}", self.decision.reason)?;
        if let Some(diff) = self.diff {
            write!(f, ", diff {diff:.6}")?;
        }
        if let Some(threshold) = self.threshold {
            write!(f, ", threshold {threshold}")?;
        }
        f.write_str(")")
    }
}

/// A few lines for people, without a line break at the end.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Setting { name, a, b } in &self.settings {
            writeln!(f, "{name:<12} {a} | {b}")?;
        }
        if let Some(LargestDiff { step, branch, list, sample, block, a, b }) = self.largest {
            let apart = (a - b).abs();
            writeln!(
                f,
                "diffs        at most {apart:.2e} apart ({}: {a:.6} | {b:.6})",
                place(step, branch, list, sample, block)
            )?;
        }
        let Some(Divergence { step, branch, list, sample, block, a, b }) = &self.first else {
            return write!(f, "decisions    equal on all {} steps", self.steps);
        };
        let side = |side: &Option<Side>| side.map_or("not decided".to_owned(), |side| side.to_string());
        writeln!(f, "parts at     {}: {} | {}", place(*step, *branch, *list, *sample, *block), side(a), side(b))?;
        write!(f, "decisions    {} of {} steps differ", self.differing_steps, self.steps)?;
        write!(f, ", and {} single blocks of the others", self.differing_blocks)
    }
}

fn side(side: &Option<Side>) -> Value {
    side.map(|side| {
        json!({
            "action": side.decision.action.letter().to_string(),
            "reason": side.decision.reason.as_str(),
            "diff": side.diff,
            "threshold": side.threshold,
        })
    })
    .into()
}
