//! A plan divides the blocks into stages; a policy asks for block ranges, the plan answers with stages.
//!
//! Stages lie on a grid that depends on the model and the limits alone; a policy adds cuts to it. So the plans of two
//! policies have most of their stages in common, and an engine that serves both loads (on other providers: compiles)
//! little twice.

pub(crate) mod places;

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::cache::{DiffOptions, DiffTensor};
use crate::error::{Error, Result};
use crate::model::cache_dtype::CacheDType;

/// How many blocks run as one ONNX Runtime session. Every choice serves every policy: a stage ends wherever the policy
/// needs to see the streams, and where [`stage_bytes`](crate::EngineOptions::stage_bytes) says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StagesChoice {
    /// Long stages, but not so long that ONNX Runtime's graph optimiser takes seconds (docs/performance.md).
    #[default]
    Auto,
    /// One block a session.
    PerBlock,
    /// As few sessions as possible: without a cache one for all blocks.
    Fused,
    /// At most so many blocks a session.
    Blocks(usize),
}

impl fmt::Display for StagesChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::PerBlock => f.write_str("per-block"),
            Self::Fused => f.write_str("fused"),
            Self::Blocks(count) => write!(f, "{count}"),
        }
    }
}

impl FromStr for StagesChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = [Self::Auto, Self::PerBlock, Self::Fused].into_iter().find(|choice| choice.to_string() == text);
        named.or_else(|| text.parse().ok().map(Self::Blocks)).ok_or_else(|| {
            Error::usage(format!(
                "unknown stages `{text}`; expected `auto`, `per-block`, `fused`, or the most blocks of a stage"
            ))
        })
    }
}

/// Most nodes of a stage under [`StagesChoice::Auto`] (docs/performance.md).
const AUTO_NODES: usize = 1000;

/// What runs as one ONNX Runtime session: consecutive blocks, at the ends of the model with the graph beside them; or such
/// a graph alone, around no blocks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stage {
    /// Begins with the embed graph.
    pub embed: bool,
    pub blocks: Range<usize>,
    /// Ends with the final graph.
    pub last: bool,
    pub arithmetic: Vec<InStageArithmetic>,
}

/// Arithmetic of the cache that is part of a stage. Streams are meant by their index.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum InStageArithmetic {
    /// Before the blocks: adds what was kept, or zeros.
    Add { streams: Vec<usize>, kept: CacheDType },
    /// After the blocks: the sums of the diff, against the streams at the cut `since`, and what later diffs compare with.
    Diff { since: usize, options: DiffOptions, kept: CacheDType },
    /// After the blocks: the residual of the blocks since the cut `since`.
    Residual { since: usize, streams: Vec<usize>, kept: CacheDType },
}

/// A policy whose arithmetic can be part of the stages: one middle, whose residual is kept and added as it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct InStages {
    pub head: Range<usize>,
    pub middle: Range<usize>,
    /// How the head is compared; `None` if nothing is.
    pub diff: Option<DiffOptions>,
    /// What the middle changes.
    pub streams: Vec<usize>,
    pub kept: CacheDType,
}

/// What a policy wants to see of the streams.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cuts {
    /// What it asks for, in order and without gaps: the cuts lie between them.
    pub ranges: Vec<Range<usize>>,
    /// Whether the streams are looked at between embed and the first block.
    pub sees_start: bool,
    /// Whether they are looked at, or written, between the last block and final.
    pub sees_end: bool,
    /// The arithmetic that the stages hold.
    pub arithmetic: Option<InStages>,
}

/// What one graph adds to a stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GraphSize {
    /// Weights and graph.
    pub bytes: u64,
    pub nodes: usize,
}

/// What the graphs of a model add to stages.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    pub embed: GraphSize,
    pub blocks: Vec<GraphSize>,
    pub last: GraphSize,
}

/// What bounds a stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    choice: StagesChoice,
    /// Most bytes of weights and graph.
    bytes: Option<u64>,
}

/// All stages, in order, without gaps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    stages: Vec<Stage>,
}

impl Limits {
    /// # Errors
    /// `Usage` for limits that do not fit the model: no blocks a stage, more than it has, or a graph above `bytes`.
    pub(crate) fn new(choice: StagesChoice, bytes: Option<u64>, sizes: &Sizes) -> Result<Self> {
        let count = sizes.blocks.len();
        if let StagesChoice::Blocks(asked) = choice
            && !(1..=count).contains(&asked)
        {
            return Err(Error::usage(format!(
                "the option `stages` is {asked}; this model has 1 to {count} blocks a stage (`fused` takes as many as possible)"
            ))
            .about("stages"));
        }
        if choice == StagesChoice::PerBlock && bytes.is_some() {
            return Err(Error::usage(
                "the option `stage-bytes` has no effect with the option `stages=per-block`; leave one out",
            )
            .about("stage-bytes"));
        }
        let limits = Self { choice, bytes };
        let ends = [("embed".to_owned(), sizes.embed), ("the final graph".to_owned(), sizes.last)];
        let mut graphs =
            sizes.blocks.iter().enumerate().map(|(index, size)| (format!("block {index}"), *size)).chain(ends);
        match (graphs.find(|(_, size)| !limits.allows_bytes(&[*size])), bytes) {
            (Some((name, size)), Some(limit)) => Err(Error::usage(format!(
                "{name} alone has {} bytes of weights and graph, the option `stage-bytes` allows {limit}; allow more, or export the \
                 model with smaller weights",
                size.bytes
            ))
            .about("stage-bytes")),
            _ => Ok(limits),
        }
    }

    fn allows_bytes(self, graphs: &[GraphSize]) -> bool {
        let bytes = graphs.iter().fold(0, |sum: u64, graph| sum.saturating_add(graph.bytes));
        self.bytes.is_none_or(|limit| bytes <= limit)
    }

    fn allows(self, blocks: &[GraphSize]) -> bool {
        let nodes = blocks.iter().fold(0, |sum: usize, block| sum.saturating_add(block.nodes));
        let of_choice = match self.choice {
            StagesChoice::Auto => nodes <= AUTO_NODES,
            StagesChoice::PerBlock => false,
            StagesChoice::Fused => true,
            StagesChoice::Blocks(count) => blocks.len() <= count,
        };
        blocks.len() == 1 || (of_choice && self.allows_bytes(blocks))
    }
}

impl Cuts {
    /// Whether the diff needs the streams before the first block, and does not find them in the first stage.
    fn compares_start(&self, first: &Stage) -> bool {
        self.arithmetic.as_ref().is_some_and(|arithmetic| {
            let of_residual = arithmetic.diff.is_some_and(|diff| diff.tensor == DiffTensor::HeadResidual);
            of_residual && first.blocks != arithmetic.head
        })
    }
}

impl InStages {
    /// What belongs to a stage.
    fn of(&self, stage: &Stage) -> Vec<InStageArithmetic> {
        let Self { head, middle, diff, streams, kept } = self.clone();
        let has_blocks = !stage.blocks.is_empty();
        let mut parts = Vec::new();
        if stage.blocks.start == middle.end && (has_blocks || stage.last) {
            parts.push(InStageArithmetic::Add { streams: streams.clone(), kept });
        }
        if let Some(options) = diff.filter(|_| has_blocks && stage.blocks.end == head.end) {
            parts.push(InStageArithmetic::Diff { since: head.start, options, kept });
        }
        if has_blocks && stage.blocks.end == middle.end {
            parts.push(InStageArithmetic::Residual { since: middle.start, streams, kept });
        }
        parts
    }
}

impl Stage {
    fn of_blocks(blocks: Range<usize>) -> Self {
        Self { embed: false, blocks, last: false, arithmetic: Vec::new() }
    }

    /// Which graphs of a model of `count` blocks it holds, counted from embed: that is 0, block b is b + 1.
    fn graphs(&self, count: usize) -> Range<usize> {
        let start = if self.embed { 0 } else { self.blocks.start + 1 };
        let end = if self.last { count + 2 } else { self.blocks.end + 1 };
        start..end
    }

    fn of_graphs(graphs: Range<usize>, count: usize) -> Self {
        let block = |graph: usize| graph.saturating_sub(1).min(count);
        let blocks = block(graphs.start)..block(graphs.end);
        Self { embed: graphs.start == 0, blocks, last: graphs.end == count + 2, arithmetic: Vec::new() }
    }

    fn is_added_to(&self) -> bool {
        self.arithmetic.iter().any(|part| matches!(part, InStageArithmetic::Add { .. }))
    }

    /// Such as `embed and blocks 0..4`.
    pub(crate) fn name(&self) -> String {
        let blocks = match self.blocks.len() {
            0 => None,
            1 => Some(format!("block {}", self.blocks.start)),
            _ => Some(format!("blocks {:?}", self.blocks)),
        };
        let text = |is_there: bool, text: &str| is_there.then(|| text.to_owned());
        let ends = |part: &InStageArithmetic| match part {
            InStageArithmetic::Add { .. } => None,
            InStageArithmetic::Diff { .. } => Some("diff".to_owned()),
            InStageArithmetic::Residual { .. } => Some("residual".to_owned()),
        };
        let start = [text(self.is_added_to(), "add"), text(self.embed, "embed"), blocks];
        let parts = start.into_iter().chain(self.arithmetic.iter().map(ends)).chain([text(self.last, "final")]);
        parts.flatten().collect::<Vec<_>>().join(" and ")
    }
}

impl Plan {
    /// The stages for what a policy wants to see.
    pub(crate) fn new(sizes: &Sizes, limits: Limits, seen: &Cuts) -> Self {
        let blocks = &sizes.blocks;
        let mut cuts: BTreeSet<usize> = seen.ranges.iter().flat_map(|range| [range.start, range.end]).collect();
        let mut start = 0;
        for end in 1..=blocks.len() {
            if end == blocks.len() || !limits.allows(&blocks[start..end + 1]) {
                cuts.extend([start, end]);
                start = end;
            }
        }
        let cuts: Vec<usize> = cuts.into_iter().collect();
        let mut stages: VecDeque<Stage> = cuts.windows(2).map(|pair| Stage::of_blocks(pair[0]..pair[1])).collect();
        let joins = |is_seen: bool, stage: &Stage, end: GraphSize| {
            let with_end: Vec<GraphSize> = blocks[stage.blocks.clone()].iter().copied().chain([end]).collect();
            !is_seen && limits.choice != StagesChoice::PerBlock && limits.allows_bytes(&with_end)
        };
        match stages.front_mut() {
            Some(first) if joins(seen.sees_start || seen.compares_start(first), first, sizes.embed) => {
                first.embed = true
            }
            _ => stages.push_front(Stage { embed: true, ..Stage::of_blocks(0..0) }),
        }
        match stages.back_mut() {
            Some(end) if joins(seen.sees_end, end, sizes.last) => end.last = true,
            _ => stages.push_back(Stage { last: true, ..Stage::of_blocks(blocks.len()..blocks.len()) }),
        }
        let mut plan = Self { stages: stages.into() };
        if let Some(arithmetic) = &seen.arithmetic {
            plan.stages.iter_mut().for_each(|stage| stage.arithmetic = arithmetic.of(stage));
        }
        plan
    }

    /// This plan, divided also where one of the other stages begins or ends. Neither this plan nor the other stages may hold
    /// arithmetic.
    pub(crate) fn divided(&self, others: &[Stage]) -> Self {
        let count = self.stages.last().map_or(0, |stage| stage.blocks.end);
        let ends = |stage: &Stage| [stage.graphs(count).start, stage.graphs(count).end];
        let cuts: BTreeSet<usize> = self.stages.iter().chain(others).flat_map(ends).collect();
        let cuts: Vec<usize> = cuts.into_iter().collect();
        Self { stages: cuts.windows(2).map(|pair| Stage::of_graphs(pair[0]..pair[1], count)).collect() }
    }

    /// Of stages that follow each other.
    pub(crate) fn of(stages: Vec<Stage>) -> Self {
        Self { stages }
    }

    pub(crate) fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The indices of the stages that make up a range of blocks; `None` if the range begins or ends inside a stage.
    pub(crate) fn cover(&self, blocks: &Range<usize>) -> Option<Range<usize>> {
        if blocks.is_empty() {
            return Some(0..0);
        }
        let has_blocks = |stage: &&Stage| !stage.blocks.is_empty();
        let find = |wanted: fn(&Stage) -> usize, at: usize| {
            self.stages.iter().position(|stage| has_blocks(&stage) && wanted(stage) == at)
        };
        Some(find(|stage| stage.blocks.start, blocks.start)?..find(|stage| stage.blocks.end, blocks.end)? + 1)
    }

    /// The stages that hold arithmetic of a cache.
    pub(crate) fn arithmetic(&self) -> impl Iterator<Item = &Stage> {
        self.stages.iter().filter(|stage| !stage.arithmetic.is_empty())
    }

    /// Whether all can be seen that a policy wants to see.
    pub(crate) fn shows(&self, cuts: &Cuts) -> bool {
        let seen = self.seen();
        let count = self.stages.last().map_or(0, |stage| stage.blocks.end);
        cuts.ranges.iter().all(|range| self.cover(range).is_some())
            && (!cuts.sees_start || seen.contains(&0))
            && (!cuts.sees_end || seen.contains(&count))
    }

    /// The cuts that lie between the first and the last stage, at which tensors hold the streams.
    pub(crate) fn seen(&self) -> Range<usize> {
        let first = self.stages.first().map_or(0, |stage| stage.blocks.end);
        let last = self.stages.last().map_or(0, |stage| stage.blocks.start);
        first..(last + 1).max(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::PolicyConfig;

    fn sizes(count: usize) -> Sizes {
        let block = GraphSize { bytes: 100, nodes: 125 };
        let end = GraphSize { bytes: 50, nodes: 50 };
        Sizes { embed: end, blocks: vec![block; count], last: end }
    }

    /// The stages if a policy looks at these cuts.
    fn plan(blocks: usize, choice: StagesChoice, bytes: Option<u64>, cuts: &[usize]) -> Vec<String> {
        let sizes = sizes(blocks);
        let ends = [0, blocks];
        let inner = cuts.iter().filter(|cut| !ends.contains(*cut));
        let all: Vec<usize> = [0].iter().chain(inner).chain([&blocks]).copied().collect();
        let ranges = all.windows(2).map(|pair| pair[0]..pair[1]).collect();
        let cuts = Cuts { ranges, sees_start: cuts.contains(&0), sees_end: cuts.contains(&blocks), arithmetic: None };
        let plan = Plan::new(&sizes, Limits::new(choice, bytes, &sizes).unwrap(), &cuts);
        assert!(plan.shows(&cuts));
        plan.stages().iter().map(Stage::name).collect()
    }

    #[test]
    fn stages_end_at_cuts_and_limits() {
        use StagesChoice::{Auto, Blocks, Fused, PerBlock};
        for (blocks, choice, bytes, cuts, expected) in [
            (2, PerBlock, None, vec![], vec!["embed", "block 0", "block 1", "final"]),
            (4, Fused, None, vec![], vec!["embed and blocks 0..4 and final"]),
            (4, Fused, None, vec![0, 4], vec!["embed", "blocks 0..4", "final"]),
            (4, Fused, None, vec![1], vec!["embed and block 0", "blocks 1..4 and final"]),
            (4, Fused, None, vec![0, 1], vec!["embed", "block 0", "blocks 1..4 and final"]),
            (4, Fused, Some(250), vec![], vec!["embed and blocks 0..2", "blocks 2..4 and final"]),
            (4, Fused, Some(249), vec![], vec!["embed", "blocks 0..2", "blocks 2..4", "final"]),
            (4, Fused, Some(399), vec![], vec!["embed and blocks 0..3", "block 3 and final"]),
            (4, Blocks(3), None, vec![], vec!["embed and blocks 0..3", "block 3 and final"]),
            (2, Blocks(2), Some(100), vec![], vec!["embed", "block 0", "block 1", "final"]),
            // The grid stays where it is, so that policies share stages.
            (9, Blocks(4), None, vec![1], vec!["embed and block 0", "blocks 1..4", "blocks 4..8", "block 8 and final"]),
            (9, Blocks(4), None, vec![], vec!["embed and blocks 0..4", "blocks 4..8", "block 8 and final"]),
            (20, Auto, None, vec![], vec!["embed and blocks 0..8", "blocks 8..16", "blocks 16..20 and final"]),
            (10, Auto, None, vec![8, 10], vec!["embed and blocks 0..8", "blocks 8..10", "final"]),
            (14, Auto, Some(700), vec![], vec!["embed", "blocks 0..7", "blocks 7..14", "final"]),
        ] {
            assert_eq!(plan(blocks, choice, bytes, &cuts), expected, "{choice:?} {bytes:?} {cuts:?}");
        }
    }

    #[test]
    fn plans_are_divided_where_others_are() {
        let (sizes, count) = (sizes(4), 4);
        let plan = |choice, ranges: &[Range<usize>], sees_start, sees_end| {
            let cuts = Cuts { ranges: ranges.to_vec(), sees_start, sees_end, arithmetic: None };
            Plan::new(&sizes, Limits::new(choice, None, &sizes).unwrap(), &cuts)
        };
        let blocks = 0..count;
        let all = std::slice::from_ref(&blocks);
        let whole = plan(StagesChoice::Fused, all, false, false);
        let seen = plan(StagesChoice::Fused, all, true, true);
        let middle = plan(StagesChoice::Fused, &[0..1, 1..3, 3..4], false, false);
        let single = plan(StagesChoice::PerBlock, all, false, false);
        for (plan, others, expected) in [
            (&whole, &[][..], vec!["embed and blocks 0..4 and final"]),
            (&whole, whole.stages(), vec!["embed and blocks 0..4 and final"]),
            (&whole, seen.stages(), vec!["embed", "blocks 0..4", "final"]),
            (&middle, seen.stages(), vec!["embed", "block 0", "blocks 1..3", "block 3", "final"]),
            (&seen, middle.stages(), vec!["embed", "block 0", "blocks 1..3", "block 3", "final"]),
            (&whole, single.stages(), vec!["embed", "block 0", "block 1", "block 2", "block 3", "final"]),
            // Some of them are enough.
            (&whole, &single.stages()[1..3], vec!["embed", "block 0", "block 1", "blocks 2..4 and final"]),
        ] {
            let divided = plan.divided(others);
            assert_eq!(divided.stages().iter().map(Stage::name).collect::<Vec<_>>(), expected);
            assert_eq!(divided.divided(others), divided);
        }
    }

    #[test]
    fn arithmetic_lies_at_the_ends_of_head_and_middle() {
        let sizes = sizes(12);
        for (choice, tail, expected) in [
            (
                StagesChoice::Fused,
                9,
                vec!["embed and blocks 0..4 and diff", "blocks 4..9 and residual", "add and blocks 9..12 and final"],
            ),
            (
                StagesChoice::Fused,
                12,
                vec!["embed and blocks 0..4 and diff", "blocks 4..12 and residual", "add and final"],
            ),
            (
                StagesChoice::Blocks(3),
                9,
                vec![
                    "embed",
                    "blocks 0..3",
                    "block 3 and diff",
                    "blocks 4..6",
                    "blocks 6..9 and residual",
                    "add and blocks 9..12 and final",
                ],
            ),
        ] {
            let in_stages = InStages {
                head: 0..4,
                middle: 4..tail,
                diff: "f4b3".parse::<PolicyConfig>().unwrap().diff_options(),
                streams: vec![0, 1],
                kept: CacheDType::Stream,
            };
            let ranges = [0..4, 4..tail, tail..12].into_iter().filter(|range| !range.is_empty()).collect();
            let sees_end = tail == 12;
            let cuts = Cuts { ranges, sees_start: false, sees_end, arithmetic: Some(in_stages) };
            let plan = Plan::new(&sizes, Limits::new(choice, None, &sizes).unwrap(), &cuts);
            assert_eq!(plan.stages().iter().map(Stage::name).collect::<Vec<_>>(), expected, "{choice}");
            assert_eq!(plan.arithmetic().count(), 3);
        }
    }

    #[test]
    fn impossible_limits_are_refused() {
        let mut sizes = sizes(4);
        sizes.blocks[2].bytes = 101;
        for (choice, bytes, words) in [
            (StagesChoice::Blocks(0), None, "the option `stages` is 0; this model has 1 to 4 blocks"),
            (StagesChoice::Blocks(5), None, "the option `stages` is 5"),
            (StagesChoice::Auto, Some(100), "block 2 alone has 101 bytes of weights and graph"),
        ] {
            let error = Limits::new(choice, bytes, &sizes).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn covers_ranges_between_cuts_only() {
        let ends = Stage { embed: true, ..Stage::of_blocks(0..1) };
        let plan = Plan::of(vec![
            ends,
            Stage::of_blocks(1..3),
            Stage::of_blocks(3..4),
            Stage { last: true, ..Stage::of_blocks(4..4) },
        ]);
        for (blocks, expected) in [
            (0..4, Some(0..3)),
            (1..3, Some(1..2)),
            (0..3, Some(0..2)),
            (3..4, Some(2..3)),
            (2..2, Some(0..0)),
            (2..5, None),
            (2..3, None),
            (0..2, None),
        ] {
            assert_eq!(plan.cover(&blocks), expected, "{blocks:?}");
        }
        assert_eq!(plan.seen(), 1..5);
        let cuts = |sees_start, sees_end| Cuts { ranges: vec![0..3, 3..4], sees_start, sees_end, arithmetic: None };
        assert!(plan.shows(&cuts(false, true)) && !plan.shows(&cuts(true, true)));
        let one = Plan::of(vec![Stage { embed: true, last: true, ..Stage::of_blocks(0..4) }]);
        assert!(one.seen().is_empty() && !one.shows(&cuts(false, false)));
    }
}
