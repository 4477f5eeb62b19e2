//! The transformers of a model that take turns, bound: what a request keeps for each. A model with one transformer has one
//! expert, which runs all steps.

use super::branch::BranchState;
use super::samples::Samples;
use crate::request::shares::Share;

/// One transformer, bound.
pub(super) struct Expert {
    pub share: Share,
    pub branches: Vec<BranchState>,
    /// Where each picture decides for itself, of each list; else empty.
    pub samples: Vec<Samples>,
}
