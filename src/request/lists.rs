//! The lists of blocks of a request, on each of which a policy decides: all blocks of the model, or, where the policy
//! separates them, each of the model's own lists (in FLUX.1 the double and the single blocks).

use std::ops::Range;

use super::shares::merged;
use crate::cache::{BlocksSplit, DiffTensor, PolicyConfig, RunShape, StreamKind};
use crate::error::{At, Error, Result};
use crate::model::manifest::Manifest;

/// Blocks that are decided on together.
pub(crate) struct List {
    /// Which one; `None` if all blocks are one list.
    pub index: Option<usize>,
    pub blocks: Range<usize>,
    /// Whether all streams flow through it as one.
    joined: bool,
    /// The policy on this list. It counts blocks from the list's start; all else here counts from the model's.
    pub cache: PolicyConfig,
    pub split: BlocksSplit,
    /// All blocks of the list, in order.
    pub parts: Vec<ListPart>,
}

/// Consecutive blocks.
pub(crate) enum ListPart {
    /// They run on every step.
    Run(Range<usize>),
    /// They are decided on together: the middle of a step, or a single block. `block` is the number of a single block,
    /// counted from the start of its list.
    Unit { blocks: Range<usize>, block: Option<usize> },
}

impl ListPart {
    pub(super) fn is_unit(&self) -> bool {
        matches!(self, Self::Unit { .. })
    }

    pub(crate) fn blocks(&self) -> &Range<usize> {
        match self {
            Self::Run(blocks) | Self::Unit { blocks, .. } => blocks,
        }
    }
}

impl List {
    fn new(index: Option<usize>, span: Span, cache: PolicyConfig) -> Result<Self> {
        let Span { blocks, joined } = span;
        let start = blocks.start;
        let split = cache.blocks_split(blocks.len())?;
        let from_start = |range: &Range<usize>| range.start + start..range.end + start;
        let split = BlocksSplit {
            head: from_start(&split.head),
            middle: from_start(&split.middle),
            tail: from_start(&split.tail),
        };
        let parts = parts(&cache, &split, &blocks);
        Ok(Self { index, blocks, joined, cache, split, parts })
    }

    /// What a stream is to the policy: the first one is the picture's, the others the text's; or all are one.
    pub(crate) fn stream_kind(&self, stream: usize) -> StreamKind {
        if stream == 0 || self.joined { StreamKind::Hidden } else { StreamKind::Encoder }
    }

    /// Whether the policy has a stream of the text to treat in another way.
    pub(crate) fn has_text(&self, manifest: &Manifest) -> bool {
        (0..manifest.streams.len()).any(|stream| self.stream_kind(stream) == StreamKind::Encoder)
    }

    /// What the policy of this list must fit.
    pub(crate) fn run(&self, steps: usize, branches: usize) -> RunShape {
        RunShape { n_blocks: self.blocks.len(), steps, branches }
    }

    /// The cuts whose streams must outlive the blocks after them: what the middle starts from, and what its residual or
    /// that of the head is formed with.
    pub(crate) fn pinned(&self) -> Vec<usize> {
        let of_head = self.cache.diff_options().is_some_and(|diff| diff.tensor == DiffTensor::HeadResidual);
        match (self.cache.reuses_middle(), of_head) {
            (false, _) => Vec::new(),
            (true, false) => vec![self.split.head.end],
            (true, true) => vec![self.split.head.start, self.split.head.end],
        }
    }

    fn name(&self) -> String {
        let Range { start, end } = self.blocks;
        self.index.map_or("all blocks".to_owned(), |index| format!("block list {index} (blocks {start}..{end})"))
    }
}

/// The lists on which a policy decides, in order.
///
/// # Errors
/// `Usage` for a policy that does not fit the model's blocks, or that separates lists where there is one.
pub(crate) fn lists(manifest: &Manifest, cache: &PolicyConfig) -> Result<Vec<List>> {
    let count = manifest.blocks.len();
    if !cache.separates_lists() {
        let cache = cache.of_lists(1)?.remove(0);
        let joined = manifest.lists.iter().all(|list| list.joined);
        return Ok(vec![List::new(None, Span { blocks: 0..count, joined }, cache)?]);
    }
    let spans = of_manifest(manifest);
    if spans.len() == 1 {
        return Err(Error::usage(format!(
            "separate_block_lists has no effect: all {count} blocks of this model are one list; leave it out"
        )));
    }
    let policies = cache.of_lists(spans.len())?;
    let mut lists = Vec::new();
    for (index, (span, cache)) in spans.into_iter().zip(policies).enumerate() {
        let Range { start, end } = span.blocks;
        let list = List::new(Some(index), span, cache);
        lists.push(list.at(format_args!("block list {index} (blocks {start}..{end})"))?);
    }
    Ok(lists)
}

/// One of the model's own lists of blocks.
struct Span {
    blocks: Range<usize>,
    /// Whether all streams flow through it as one.
    joined: bool,
}

/// The lists of a model, as its manifest tells them.
fn of_manifest(manifest: &Manifest) -> Vec<Span> {
    let mut start = 0;
    let lists = manifest.lists.iter().map(|list| {
        let blocks = start..start + list.blocks;
        start = blocks.end;
        Span { blocks, joined: list.joined }
    });
    lists.collect()
}

/// Refuses a policy that does not fit one of the lists, or the run.
///
/// # Errors
/// `Usage` with the list.
pub(crate) fn check(lists: &[List], steps: usize, branches: usize) -> Result<()> {
    lists.iter().try_for_each(|list| {
        let fits = list.cache.validate(list.run(steps, branches));
        if list.index.is_some() { fits.at(list.name()) } else { fits }
    })
}

/// What is suspicious about the policy: once where it is so of all lists, else with the list.
pub(crate) fn warnings(lists: &[List], steps: usize, branches: usize) -> Vec<String> {
    let of_list = |list: &List| (list.name(), list.cache.warnings(list.run(steps, branches)));
    merged(&lists.iter().map(of_list).collect::<Vec<_>>())
}

/// The blocks of a list in order: those that always run, and those that are decided on.
fn parts(cache: &PolicyConfig, split: &BlocksSplit, blocks: &Range<usize>) -> Vec<ListPart> {
    let start = blocks.start;
    let singles = cache.single_blocks(blocks.len());
    let mut parts = Vec::new();
    let mut next = start;
    let mut units: Vec<(Range<usize>, Option<usize>)> =
        singles.into_iter().map(|block| (start + block..start + block + 1, Some(block))).collect();
    if cache.reuses_middle() {
        units.push((split.middle.clone(), None));
    }
    units.sort_by_key(|(range, block)| (range.start, block.is_some()));
    for (range, block) in units {
        if next < range.start {
            parts.push(ListPart::Run(next..range.start));
        }
        next = range.end;
        parts.push(ListPart::Unit { blocks: range, block });
    }
    if next < blocks.end {
        parts.push(ListPart::Run(next..blocks.end));
    }
    parts
}
