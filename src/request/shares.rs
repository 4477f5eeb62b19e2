//! The transformers of a model that take turns: the steps of each, and the lists that a policy decides on there.
//!
//! To a policy each expert is a run of its own, whose steps count from 0: nothing that one keeps is of use to another.

use std::ops::Range;

use super::lists::{self, List};
use super::scheduler::Schedule;
use crate::cache::PolicyConfig;
use crate::error::{At, Result};
use crate::model::manifest::Manifest;

/// The steps that one transformer runs, and the lists of blocks that are decided on there.
pub(crate) struct Share {
    /// Which transformer, by its number in the engine directory.
    pub expert: usize,
    pub steps: Range<usize>,
    pub lists: Vec<List>,
}

/// Which transformer runs which steps; only those that run any.
///
/// # Errors
/// As [`lists::lists`].
pub(crate) fn shares(manifest: &Manifest, cache: &PolicyConfig, schedule: &Schedule) -> Result<Vec<Share>> {
    let mut shares: Vec<Share> = Vec::new();
    let experts: Vec<usize> = schedule.timesteps.iter().map(|timestep| manifest.expert_at(*timestep)).collect();
    let mut start = 0;
    for steps in experts.chunk_by(|a, b| a == b) {
        let range = start..start + steps.len();
        start = range.end;
        // What a recording has beyond the run belongs to the last, which refuses it.
        let end = if start == experts.len() { usize::MAX } else { start };
        let lists = lists::lists(manifest, &cache.of_steps(range.start..end))?;
        shares.push(Share { expert: steps[0], steps: range, lists });
    }
    Ok(shares)
}

/// Refuses a policy that does not fit one of the lists, or the steps of one of the transformers.
///
/// # Errors
/// `Usage` with the list and the transformer.
pub(crate) fn check(shares: &[Share], branches: usize) -> Result<()> {
    shares.iter().try_for_each(|share| {
        let fits = lists::check(&share.lists, share.steps.len(), branches);
        if shares.len() > 1 { fits.at(share.name()) } else { fits }
    })
}

/// What is suspicious about the policy: with the transformer, where it is not so of all.
pub(crate) fn warnings(shares: &[Share], branches: usize) -> Vec<String> {
    let of_share = |share: &Share| lists::warnings(&share.lists, share.steps.len(), branches);
    merged(&shares.iter().map(|share| (share.name(), of_share(share))).collect::<Vec<_>>())
}

/// The warnings of several parts of a run: once where all have it, else with the part.
pub(crate) fn merged(each: &[(String, Vec<String>)]) -> Vec<String> {
    let mut all = Vec::new();
    for (name, warnings) in each {
        for warning in warnings {
            let is_common = each.iter().all(|(_, other)| other.contains(warning));
            let warning = if is_common { warning.clone() } else { format!("{name}: {warning}") };
            if !all.contains(&warning) {
                all.push(warning);
            }
        }
    }
    all
}

impl Share {
    fn name(&self) -> String {
        format!("expert {} (steps {:?})", self.expert, self.steps)
    }
}
