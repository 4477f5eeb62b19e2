//! The records of steps in a trace.

use std::ops::Range;

use serde_json::Value;

use super::super::record::{BlockRecord, StepRecord};
use super::fields::Fields;
use crate::cache::{Branch, Decision, Reason};
use crate::collective::Exchanged;
use crate::error::{Error, Result};

const STEP: [&str; 16] = [
    "step",
    "branch",
    "expert",
    "list",
    "sample",
    "sigma",
    "action",
    "reason",
    "diff",
    "threshold",
    "blocks",
    "blocks_run",
    "ran",
    "session_runs",
    "elapsed_ms",
    "exchanged",
];
const BLOCK: [&str; 5] = ["block", "action", "reason", "diff", "threshold"];

pub(super) fn step_record(place: &str, json: &Value, n_blocks: usize) -> Result<StepRecord> {
    let fields = Fields::new(place, json, &STEP)?;
    let blocks = fields
        .list("blocks")?
        .iter()
        .enumerate()
        .map(|(index, block)| block_record(&format!("{place}.blocks[{index}]"), block, n_blocks))
        .collect::<Result<Vec<_>>>()?;
    if !blocks.is_sorted_by(|a, b| a.block < b.block) {
        return Err(fields.damaged("blocks", "a list of blocks in rising order"));
    }
    let branch = fields.text("branch")?;
    let record = StepRecord {
        step: fields.count("step")?,
        steps: 0,
        branch: branch.parse().map_err(|_| fields.damaged("branch", "`cond` or `uncond`"))?,
        expert: fields.count_or_null("expert")?,
        list: fields.count_or_null("list")?,
        sample: fields.count_or_null("sample")?,
        sigma: fields.real("sigma")? as f32,
        decision: decision(&fields)?,
        diff: fields.real_or_null("diff")?.map(|diff| diff as f32),
        threshold: fields.real_or_null("threshold")?,
        blocks,
        blocks_run: fields.count("blocks_run")?,
        ran: ran(&fields)?,
        session_runs: fields.count("session_runs")?,
        elapsed_ms: fields.real("elapsed_ms")?,
        exchanged: exchanged(&fields, place)?,
    };
    if record.blocks_run > n_blocks {
        return Err(fields.damaged("blocks_run", &format!("at most {n_blocks}, the `blocks` of the trace")));
    }
    if record.blocks_run != record.ran.iter().map(Range::len).sum::<usize>() {
        return Err(fields.damaged("ran", &format!("{} blocks, as `blocks_run` says", record.blocks_run)));
    }
    check_letter(&fields, record.letter())?;
    Ok(record)
}

/// What ranks gave each other, where there were several.
fn exchanged(fields: &Fields<'_>, place: &str) -> Result<Option<Exchanged>> {
    let value = fields.value("exchanged");
    if value.is_null() {
        return Ok(None);
    }
    let exchanged = Fields::new(&format!("{place}.exchanged"), value, &["bytes", "ms"])?;
    Ok(Some(Exchanged { bytes: exchanged.number("bytes")?, ms: exchanged.real("ms")? }))
}

/// The blocks that ran, as `[start, end]` with the end not among them.
fn ran(fields: &Fields<'_>) -> Result<Vec<Range<usize>>> {
    let wrong = || fields.damaged("ran", "a list of ranges `[start, end]` in rising order, with a gap between two");
    let number = |number: &Value| number.as_u64().and_then(|number| usize::try_from(number).ok());
    let range = |range: &Value| match range.as_array().map(Vec::as_slice) {
        Some([start, end]) => number(start).zip(number(end)).map(|(start, end)| start..end),
        _ => None,
    };
    let ranges: Option<Vec<_>> = fields.list("ran")?.iter().map(range).collect();
    let ranges = ranges.ok_or_else(wrong)?;
    let rises = ranges.is_sorted_by(|a, b| a.end < b.start) && ranges.iter().all(|range| range.start < range.end);
    if rises { Ok(ranges) } else { Err(wrong()) }
}

fn block_record(place: &str, json: &Value, n_blocks: usize) -> Result<BlockRecord> {
    let fields = Fields::new(place, json, &BLOCK)?;
    let block = fields.count("block")?;
    if block >= n_blocks {
        return Err(fields.damaged("block", &format!("below {n_blocks}, the `blocks` of the trace")));
    }
    let decision = decision(&fields)?;
    check_letter(&fields, decision.action.letter())?;
    let diff = fields.real_or_null("diff")?.map(|diff| diff as f32);
    Ok(BlockRecord { block, decision, diff, threshold: fields.real_or_null("threshold")? })
}

fn decision(fields: &Fields<'_>) -> Result<Decision> {
    let reason: Reason = fields.text("reason")?.parse().map_err(|_| fields.damaged("reason", "a known reason"))?;
    Ok(reason.into())
}

fn check_letter(fields: &Fields<'_>, letter: char) -> Result<()> {
    if fields.text("action")?.chars().eq([letter]) {
        return Ok(());
    }
    Err(fields.damaged("action", &format!("`{letter}`, as the reason and the blocks say")))
}

/// Each branch has the steps 0, 1, 2 …; both have as many. Where lists of blocks or pictures decide for themselves, each
/// step has all of them.
pub(super) fn number_steps(records: &mut [StepRecord], batch: usize, lists: &[usize]) -> Result<()> {
    let count = |branch: Branch| records.iter().filter(|record| record.branch == branch).count();
    let (cond, uncond) = (count(Branch::Cond), count(Branch::Uncond));
    if cond == 0 || (uncond != 0 && uncond != cond) {
        return Err(Error::input(format!(
            "`records` of the trace are of {cond} cond and {uncond} uncond steps; expected as many of both, or no uncond"
        )));
    }
    let is_per_sample = records[0].sample.is_some();
    let pictures = if is_per_sample { batch.max(1) } else { 1 };
    let each = pictures * lists.len();
    if !cond.is_multiple_of(each) {
        return Err(Error::input(format!(
            "`records` of the trace are {cond} of the cond branch; expected as many for each of {} lists of blocks and \
             {pictures} pictures",
            lists.len()
        )));
    }
    let starts: Vec<usize> = lists.iter().scan(0, |end, count| Some(std::mem::replace(end, *end + count))).collect();
    let mut next = [0, 0];
    for (index, record) in records.iter_mut().enumerate() {
        let next = &mut next[usize::from(record.branch == Branch::Uncond)];
        let (step, list, sample) = (*next / each, *next / pictures % lists.len(), *next % pictures);
        let blocks = starts[list]..starts[list] + lists[list];
        let text = |number: Option<usize>| number.map_or("null".to_owned(), |number| number.to_string());
        for (field, found, expected) in [
            ("step", Some(record.step), Some(step)),
            ("list", record.list, (lists.len() > 1).then_some(list)),
            ("sample", record.sample, is_per_sample.then_some(sample)),
        ] {
            if found != expected {
                let (found, expected) = (text(found), text(expected));
                return Err(Error::input(format!("`records[{index}].{field}` is {found}; expected {expected}")));
            }
        }
        let is_inside = |ran: &Range<usize>| blocks.start <= ran.start && ran.end <= blocks.end;
        if !record.ran.iter().all(is_inside) || record.blocks.iter().any(|block| !blocks.contains(&block.block)) {
            return Err(Error::input(format!(
                "`records[{index}]` runs or decides on blocks outside of its list, which holds the blocks {blocks:?}"
            )));
        }
        *next += 1;
        record.steps = cond / each;
    }
    Ok(())
}
