//! A plan divides the blocks into stages; a policy asks for block ranges, the plan answers with stages.

use std::ops::Range;

use crate::error::{Error, Result};

/// Consecutive blocks that run as one ONNX Runtime session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stage {
    pub blocks: Range<usize>,
}

/// All stages, in order, without gaps.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    stages: Vec<Stage>,
}

impl Plan {
    /// One block a stage: fits every policy.
    pub(crate) fn per_block(blocks: usize) -> Self {
        Self { stages: (0..blocks).map(|block| Stage { blocks: block..block + 1 }).collect() }
    }

    /// All blocks in one stage: fastest, and fits only a run without a cache.
    pub(crate) fn fused(blocks: usize) -> Self {
        Self { stages: vec![Stage { blocks: 0..blocks }] }
    }

    pub(crate) fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The indices of the stages that make up a range of blocks.
    ///
    /// # Errors
    /// `Usage` when the range begins or ends inside a stage: this plan does not fit the policy that asks.
    pub(crate) fn cover(&self, blocks: &Range<usize>) -> Result<Range<usize>> {
        if blocks.is_empty() {
            return Ok(0..0);
        }
        let first = self.stages.iter().position(|stage| stage.blocks.start == blocks.start);
        let last = self.stages.iter().position(|stage| stage.blocks.end == blocks.end);
        match (first, last) {
            (Some(first), Some(last)) => Ok(first..last + 1),
            _ => Err(Error::usage(format!(
                "the cache asks for the blocks {} to {}, but this plan has no cut there; load the engine with --stages per-block",
                blocks.start, blocks.end
            ))
            .about("stages")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_ranges_between_cuts_only() {
        let per_block = Plan::per_block(4);
        let long = Plan { stages: vec![Stage { blocks: 0..1 }, Stage { blocks: 1..3 }, Stage { blocks: 3..4 }] };
        for (plan, blocks, expected) in [
            (&per_block, 0..4, Some(0..4)),
            (&per_block, 1..3, Some(1..3)),
            (&per_block, 2..2, Some(0..0)),
            (&per_block, 2..5, None),
            (&long, 1..3, Some(1..2)),
            (&long, 0..3, Some(0..2)),
            (&long, 2..3, None),
            (&long, 0..2, None),
        ] {
            assert_eq!(plan.cover(&blocks).ok(), expected, "{blocks:?}");
        }
    }
}
