//! The run that a policy decides in, and how the policy divides its blocks.

use std::ops::Range;

/// What a policy must fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunShape {
    /// Blocks of the model.
    pub n_blocks: usize,
    /// Denoising steps of the generation.
    pub steps: usize,
    /// Guidance branches that run one after the other in each step, 1 or 2.
    pub branches: usize,
}

/// Where a policy divides the blocks of a model: the ends of these ranges must be cuts of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlocksSplit {
    /// The first F blocks, which run on every step.
    pub head: Range<usize>,
    /// The blocks that may be skipped. It can be empty: then a skipped step saves nothing.
    pub middle: Range<usize>,
    /// The last B blocks, which run on every step.
    pub tail: Range<usize>,
}
