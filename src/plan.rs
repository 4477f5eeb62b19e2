//! A plan divides the blocks into stages; a policy asks for block ranges, the plan answers with stages.
//!
//! Stages lie on a grid that depends on the model and the limits alone; a policy adds cuts to it. So the plans of two
//! policies have most of their stages in common, and an engine that serves both loads (on other providers: compiles)
//! little twice.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::error::{Error, Result};

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

/// Consecutive blocks that run as one ONNX Runtime session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stage {
    pub blocks: Range<usize>,
}

/// What one block adds to a stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockSize {
    /// Weights and graph.
    pub bytes: u64,
    pub nodes: usize,
}

/// What bounds a stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    choice: StagesChoice,
    /// Most bytes of weights and graph.
    bytes: Option<u64>,
}

/// All stages, in order, without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    stages: Vec<Stage>,
}

impl Limits {
    /// # Errors
    /// `Usage` for limits that do not fit the model: no blocks a stage, more than it has, or a block above `bytes`.
    pub(crate) fn new(choice: StagesChoice, bytes: Option<u64>, blocks: &[BlockSize]) -> Result<Self> {
        if let StagesChoice::Blocks(count) = choice
            && !(1..=blocks.len()).contains(&count)
        {
            return Err(Error::usage(format!(
                "--stages is {count}; this model has 1 to {} blocks a stage (`fused` takes as many as possible)",
                blocks.len()
            ))
            .about("stages"));
        }
        if let Some(limit) = bytes
            && let Some((index, block)) = blocks.iter().enumerate().find(|(_, block)| block.bytes > limit)
        {
            return Err(Error::usage(format!(
                "block {index} alone has {} bytes of weights and graph, --stage-bytes allows {limit}; allow more, or \
                 export the model with smaller weights",
                block.bytes
            ))
            .about("stage-bytes"));
        }
        Ok(Self { choice, bytes })
    }

    fn allows(self, blocks: &[BlockSize]) -> bool {
        let nodes = blocks.iter().fold(0, |sum: usize, block| sum.saturating_add(block.nodes));
        let bytes = blocks.iter().fold(0, |sum: u64, block| sum.saturating_add(block.bytes));
        let of_choice = match self.choice {
            StagesChoice::Auto => nodes <= AUTO_NODES,
            StagesChoice::PerBlock => false,
            StagesChoice::Fused => true,
            StagesChoice::Blocks(count) => blocks.len() <= count,
        };
        blocks.len() == 1 || (of_choice && self.bytes.is_none_or(|limit| bytes <= limit))
    }
}

impl Plan {
    /// The stages of a policy that asks for these `ranges`, which follow each other without gaps.
    pub(crate) fn new(blocks: &[BlockSize], limits: Limits, ranges: &[Range<usize>]) -> Self {
        let mut cuts: BTreeSet<usize> = ranges.iter().flat_map(|range| [range.start, range.end]).collect();
        let mut start = 0;
        for end in 1..=blocks.len() {
            if end == blocks.len() || !limits.allows(&blocks[start..end + 1]) {
                cuts.extend([start, end]);
                start = end;
            }
        }
        let cuts: Vec<usize> = cuts.into_iter().collect();
        Self { stages: cuts.windows(2).map(|pair| Stage { blocks: pair[0]..pair[1] }).collect() }
    }

    /// Of stages that follow each other.
    pub(crate) fn of(stages: Vec<Stage>) -> Self {
        Self { stages }
    }

    pub(crate) fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The indices of the stages that make up a range of blocks; none where the range begins or ends inside a stage.
    pub(crate) fn cover(&self, blocks: &Range<usize>) -> Option<Range<usize>> {
        if blocks.is_empty() {
            return Some(0..0);
        }
        let first = self.stages.iter().position(|stage| stage.blocks.start == blocks.start)?;
        let last = self.stages.iter().position(|stage| stage.blocks.end == blocks.end)?;
        Some(first..last + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(count: usize) -> Vec<BlockSize> {
        vec![BlockSize { bytes: 100, nodes: 125 }; count]
    }

    /// Where the stages end if a policy looks at these cuts.
    fn plan(blocks: usize, choice: StagesChoice, bytes: Option<u64>, cuts: &[usize]) -> Vec<usize> {
        let sizes = sizes(blocks);
        let all: Vec<usize> = [0].iter().chain(cuts).chain([&blocks]).copied().collect();
        let ranges: Vec<Range<usize>> = all.windows(2).map(|pair| pair[0]..pair[1]).collect();
        let plan = Plan::new(&sizes, Limits::new(choice, bytes, &sizes).unwrap(), &ranges);
        plan.stages().iter().map(|stage| stage.blocks.end).collect()
    }

    #[test]
    fn stages_end_at_cuts_and_limits() {
        use StagesChoice::{Auto, Blocks, Fused, PerBlock};
        for (blocks, choice, bytes, cuts, expected) in [
            (4, PerBlock, None, vec![], vec![1, 2, 3, 4]),
            (4, Fused, None, vec![], vec![4]),
            (4, Fused, None, vec![1], vec![1, 4]),
            (4, Fused, Some(200), vec![], vec![2, 4]),
            (4, Fused, Some(399), vec![], vec![3, 4]),
            (4, Blocks(3), None, vec![], vec![3, 4]),
            (4, Blocks(3), Some(100), vec![], vec![1, 2, 3, 4]),
            // The grid stays where it is, so that policies share stages.
            (9, Blocks(4), None, vec![1], vec![1, 4, 8, 9]),
            (9, Blocks(4), None, vec![], vec![4, 8, 9]),
            (20, Auto, None, vec![], vec![8, 16, 20]),
            (20, Auto, None, vec![8, 18], vec![8, 16, 18, 20]),
            (20, Auto, Some(700), vec![], vec![7, 14, 20]),
        ] {
            assert_eq!(plan(blocks, choice, bytes, &cuts), expected, "{choice:?} {bytes:?} {cuts:?}");
        }
    }

    #[test]
    fn impossible_limits_are_refused() {
        let mut sizes = sizes(4);
        sizes[2].bytes = 101;
        for (choice, bytes, words) in [
            (StagesChoice::Blocks(0), None, "--stages is 0; this model has 1 to 4 blocks"),
            (StagesChoice::Blocks(5), None, "--stages is 5"),
            (StagesChoice::Auto, Some(100), "block 2 alone has 101 bytes of weights and graph"),
        ] {
            let error = Limits::new(choice, bytes, &sizes).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn covers_ranges_between_cuts_only() {
        let plan = Plan { stages: vec![Stage { blocks: 0..1 }, Stage { blocks: 1..3 }, Stage { blocks: 3..4 }] };
        for (blocks, expected) in [
            (0..4, Some(0..3)),
            (1..3, Some(1..2)),
            (0..3, Some(0..2)),
            (2..2, Some(0..0)),
            (2..5, None),
            (2..3, None),
            (0..2, None),
        ] {
            assert_eq!(plan.cover(&blocks), expected, "{blocks:?}");
        }
    }
}
