//! The transformers of a model that take turns, bound: what a request keeps for each. A model with one transformer has one
//! expert, which runs all steps.

use super::branch::BranchState;
use super::samples::Samples;
use crate::request::shares::Share;

/// One branch of one transformer, by their places in a request.
#[derive(Clone, Copy)]
pub(super) struct BranchAt {
    pub expert: usize,
    pub branch: usize,
}

/// One transformer, bound.
pub(super) struct Expert {
    pub share: Share,
    pub branches: Vec<BranchState>,
    /// Where each sample decides for itself, of each list; else empty.
    pub samples: Vec<Samples>,
}
