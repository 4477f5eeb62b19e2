//! Which tensors a stream lies in between the stages of a plan: two that take turns, and one for each value that somebody
//! reads later.

use std::ops::Range;

use super::{Plan, Stage};

/// For each cut that is seen, which of a stream's tensors holds its value: they are counted from 0.
pub(crate) fn places(seen: &Range<usize>, pinned: &[usize], writes: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut shared: Vec<usize> = Vec::new();
    let mut places: Vec<usize> = Vec::with_capacity(seen.len());
    let mut count = 0;
    for cut in seen.clone() {
        let current = places.last().copied();
        if let Some(current) = current.filter(|_| !writes(cut - 1)) {
            places.push(current);
            continue;
        }
        let end = (cut..seen.end - 1).find(|block| writes(*block)).unwrap_or(seen.end - 1);
        let is_pinned = pinned.iter().any(|pin| (cut..=end).contains(pin));
        let free = shared.iter().copied().find(|place| Some(*place) != current).filter(|_| !is_pinned);
        places.push(free.unwrap_or_else(|| {
            count += 1;
            if !is_pinned {
                shared.push(count - 1);
            }
            count - 1
        }));
    }
    places
}

/// How many tensors a stream takes between the stages of a plan. `is_written` says which blocks write it.
pub(crate) fn count_places(plan: &Plan, pinned: &[usize], is_written: impl Fn(usize) -> bool) -> u64 {
    // Inside a stage nothing can be seen: its last block writes for all of them.
    let ends = |stage: &&Stage, block: usize| stage.blocks.end == block + 1 && !stage.blocks.is_empty();
    let writes = |block: usize| {
        let ended = plan.stages().iter().find(|stage| ends(stage, block));
        ended.is_some_and(|stage| stage.blocks.clone().any(&is_written))
    };
    places(&plan.seen(), pinned, writes).into_iter().max().map_or(0, |last| last as u64 + 1)
}
