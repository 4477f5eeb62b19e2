//! Where a policy needs to see the streams: the stages of its plan end there.

use super::engine_options::{ArithmeticChoice, EngineOptions};
use super::in_stages;
use super::lists::{self, List, ListPart};
use super::options::RequestOptions;
use crate::cache::PolicyConfig;
use crate::error::Result;
use crate::model::manifest::Manifest;
use crate::plan::Cuts;

/// What a policy wants to see: the stages of its plan end where its ranges do.
///
/// # Errors
/// As [`lists`](super::lists::lists).
pub(crate) fn of_request(manifest: &Manifest, options: &RequestOptions, choice: ArithmeticChoice) -> Result<Cuts> {
    let lists = lists::lists(manifest, &options.cache).map_err(|error| error.about("cache"))?;
    let pinned: Vec<usize> = lists.iter().flat_map(List::pinned).collect();
    let parts: Vec<&ListPart> = lists.iter().flat_map(|list| &list.parts).collect();
    let in_stages = (choice == ArithmeticChoice::Stages).then(|| in_stages::of_request(manifest, options, &lists).ok());
    let arithmetic = in_stages.flatten();
    // A stage that holds the whole head has them inside.
    let pins_start = pinned.contains(&0) && arithmetic.is_none();
    Ok(Cuts {
        ranges: parts.iter().map(|part| part.blocks().clone()).filter(|range| !range.is_empty()).collect(),
        sees_start: pins_start || parts.first().is_some_and(|part| part.is_unit()),
        sees_end: pinned.contains(&manifest.blocks.len()) || parts.last().is_some_and(|part| part.is_unit()),
        arithmetic,
    })
}

/// The cuts of requests of which only the policy is known.
///
/// # Errors
/// As [`of_request`].
pub(crate) fn of_policy(manifest: &Manifest, cache: &PolicyConfig, choice: ArithmeticChoice) -> Result<Cuts> {
    of_request(manifest, &RequestOptions { cache: cache.clone(), ..RequestOptions::default() }, choice)
}

/// The cuts of the requests that an engine with these options is loaded for.
///
/// # Errors
/// As [`of_request`].
pub(crate) fn of_engine(manifest: &Manifest, load: &EngineOptions) -> Result<Cuts> {
    let request =
        RequestOptions { cache: load.cache.clone(), cache_dtype: load.cache_dtype, ..RequestOptions::default() };
    of_request(manifest, &request, load.arithmetic)
}
