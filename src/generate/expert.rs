//! The transformers of a model that take turns: the steps of each, and what a request keeps for each. A model with one
//! transformer has one expert, which runs all steps.
//!
//! To a policy each expert is a run of its own, whose steps count from 0: nothing that one keeps is of use to another.

use std::ops::Range;

use super::branch::BranchState;
use super::lists::{self, List};
use super::samples::Samples;
use super::scheduler::Schedule;
use crate::cache::PolicyConfig;
use crate::error::Result;
use crate::model::manifest::Manifest;

/// The steps that one transformer runs, and the lists of blocks that are decided on there.
pub(crate) struct Share {
    /// Which transformer, by its number in the engine directory.
    pub expert: usize,
    pub steps: Range<usize>,
    pub lists: Vec<List>,
}

/// One transformer, bound.
pub(super) struct Expert {
    pub share: Share,
    pub branches: Vec<BranchState>,
    /// Where each picture decides for itself, of each list; else empty.
    pub samples: Vec<Samples>,
}

/// Which transformer runs which steps; only those that run any.
///
/// # Errors
/// As [`lists::lists`].
pub(crate) fn shares(manifest: &Manifest, cache: &PolicyConfig, schedule: &Schedule) -> Result<Vec<Share>> {
    let lists = lists::lists(manifest, cache)?;
    Ok(vec![Share { expert: 0, steps: 0..schedule.steps(), lists }])
}

/// Refuses a policy that does not fit one of the lists, or the steps of one of the transformers.
///
/// # Errors
/// `Usage` with the list and the transformer.
pub(crate) fn check(shares: &[Share], branches: usize) -> Result<()> {
    shares.iter().try_for_each(|share| lists::check(&share.lists, share.steps.len(), branches))
}

/// What is suspicious about the policy.
pub(crate) fn warnings(shares: &[Share], branches: usize) -> Vec<String> {
    shares.iter().flat_map(|share| lists::warnings(&share.lists, share.steps.len(), branches)).collect()
}
