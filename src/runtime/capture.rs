//! Captured runs: what a run launches on its device is recorded once, and replayed by each later run.
//!
//! ONNX Runtime keeps each recording under a number for as long as its session lives, and replays it on the tensors that were
//! bound when it was made. Here a number stands for these very tensors. A later request finds the recording again if it is
//! given the same ones, which is why they stay on a [`Shelf`](super::shelf::Shelf) when a request ends.
//!
//! A provider may record less than a run does: the WebGPU plugin (0.4.0) leaves out copies. So the first replay, on the
//! numbers of another step, is held against a plain run before any is trusted.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ort::session::{NoSelectedOutputs, RunOptions};
use serde_json::{Value, json};

use super::errors::runtime_error;
use super::shelf::TensorId;
use crate::error::Result;

/// ONNX Runtime's option of a run: the number of the recording that it replays, or makes.
const NUMBER: &str = "gpu_graph_id";
/// The number of runs that are neither recorded nor replayed.
const NONE: i32 = -1;

/// Runs of a request's stages on a provider that records runs and replays them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureCounts {
    /// Runs that were recorded.
    pub recorded: usize,
    /// Runs that replayed a recording.
    pub replayed: usize,
    /// Runs that did neither: of stages that take from or give to the host, that overwrite what they read, or for which
    /// there was no room.
    pub plain: usize,
}

impl CaptureCounts {
    /// The counts by their names.
    pub fn to_json(&self) -> Value {
        let Self { recorded, replayed, plain } = self;
        json!({ "recorded": recorded, "replayed": replayed, "plain": plain })
    }
}

/// Such as `4 recorded, 20 replayed, 2 plain`.
impl fmt::Display for CaptureCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { recorded, replayed, plain } = self;
        write!(f, "{recorded} recorded, {replayed} replayed, {plain} plain")
    }
}

/// The recordings of one session.
pub(super) struct Captures {
    limit: usize,
    /// The tensors of each recording; its number is one more than its place.
    known: Mutex<Vec<(Vec<TensorId>, Arc<AtomicU8>)>>,
}

/// How the runs of one binding are recorded.
pub(super) struct Capture {
    recorded: RunOptions<NoSelectedOutputs>,
    plain: RunOptions<NoSelectedOutputs>,
    /// A [`State`], shared by all bindings of the same tensors; `None` if nothing is recorded.
    state: Option<Arc<AtomicU8>>,
}

/// What became of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The next run makes it.
    New,
    /// The next run replays it, and is held against a plain one.
    Recorded,
    /// Runs replay it.
    Trusted,
    /// Runs are plain.
    Refused,
}

const STATES: [State; 4] = [State::New, State::Recorded, State::Trusted, State::Refused];

impl Captures {
    /// At most `limit` recordings are made.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, known: Mutex::default() }
    }

    /// The recording of runs that are bound to these tensors, ports in their order, or why there is none. `tensors` may
    /// say so itself. `more` are other options of the runs.
    ///
    /// # Errors
    /// `Runtime`.
    pub(super) fn of(
        &self,
        tensors: std::result::Result<Vec<TensorId>, &'static str>,
        more: &[(&str, &str)],
    ) -> Result<(Capture, Option<String>)> {
        let full = || format!("other tensors have all of its recordings ({}); allow more `graph-captures`", self.limit);
        let (found, refused) = match tensors.map(|tensors| self.find(tensors)) {
            Ok(Some((number, state))) => {
                let is_refused = state.load(Ordering::Relaxed) == State::Refused as u8;
                (Some((number, state)), is_refused.then(|| "a replay of it differed from a run".to_owned()))
            }
            Ok(None) => (None, Some(full())),
            Err(why) => (None, Some(why.to_owned())),
        };
        let options = |number: i32| run_options(&[&[(NUMBER, number.to_string().as_str())], more].concat());
        let recorded = options(found.as_ref().map_or(NONE, |(number, _)| *number))?;
        let plain = options(NONE)?;
        Ok((Capture { recorded, plain, state: found.map(|(_, state)| state) }, refused))
    }

    fn find(&self, tensors: Vec<TensorId>) -> Option<(i32, Arc<AtomicU8>)> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let place = known.iter().position(|(others, _)| *others == tensors).or_else(|| {
            let has_room = known.len() < self.limit;
            has_room.then(|| known.push((tensors, Arc::default()))).map(|()| known.len() - 1)
        })?;
        Some((i32::try_from(place).ok()? + 1, Arc::clone(&known[place].1)))
    }
}

impl Capture {
    pub(super) fn state(&self) -> State {
        self.state.as_ref().map_or(State::Refused, |state| STATES[usize::from(state.load(Ordering::Relaxed))])
    }

    pub(super) fn settle(&self, state: State) {
        if let Some(own) = &self.state {
            own.store(state as u8, Ordering::Relaxed);
        }
    }

    /// The options of a run: a plain one, or one that records or replays.
    pub(super) fn options(&self, is_plain: bool) -> &RunOptions<NoSelectedOutputs> {
        if is_plain { &self.plain } else { &self.recorded }
    }
}

/// Options of a run by ONNX Runtime's keys.
pub(super) fn run_options(pairs: &[(&str, &str)]) -> Result<RunOptions<NoSelectedOutputs>> {
    let mut options = RunOptions::new().map_err(runtime_error)?;
    for (key, value) in pairs {
        options.set(key, value).map_err(runtime_error)?;
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_for_the_tensors_that_are_bound() {
        let captures = Captures::new(2);
        let tensors: Vec<TensorId> = (0..3).map(|_| TensorId::new()).collect();
        let bind = |places: &[usize]| {
            let found = captures.find(places.iter().map(|place| tensors[*place]).collect());
            found.map(|(number, state)| (number, STATES[usize::from(state.load(Ordering::Relaxed))]))
        };
        assert_eq!(bind(&[0, 1]), Some((1, State::New)));
        assert_eq!(bind(&[1, 0]), Some((2, State::New)), "other ports");
        assert_eq!(bind(&[0, 2]), None, "no room");
        assert_eq!(bind(&[0, 1]), Some((1, State::New)));
        captures.find(vec![tensors[1], tensors[0]]).unwrap().1.store(State::Trusted as u8, Ordering::Relaxed);
        assert_eq!(bind(&[1, 0]), Some((2, State::Trusted)), "what is known of it is known to all");
        assert_eq!(bind(&[0, 1]), Some((1, State::New)));
    }

    #[test]
    fn states_are_stored_as_their_places() {
        for (place, state) in STATES.into_iter().enumerate() {
            assert_eq!(state as usize, place);
        }
    }
}
