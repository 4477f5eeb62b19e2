//! Which build starts next, so that the builds that run together stay within a bound of memory.
//!
//! The memory that a build takes is not known before it ends. It is expected from the bytes of its weights, and what builds
//! of this run really took corrects that.

use std::collections::VecDeque;

/// What a process takes whatever it compiles: ONNX Runtime, the provider's libraries and their context. A guess for the time
/// before the first build ends.
const FIXED_BYTES: u64 = 1 << 30;

/// Copies of the weights that a process is expected to hold at a time: those of ONNX Runtime, of the parser, of the builder,
/// and those in what was compiled. Also a guess, which holds for builds that are larger than all that have ended.
const COPIES: u64 = 4;

/// A build that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub index: usize,
    pub weight_bytes: u64,
}

/// A build that may start now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    pub index: usize,
    /// What it is expected to take, if that is more than the bound: it then runs alone.
    pub above_bound: Option<u64>,
}

/// What a build took.
#[derive(Clone, Copy, Debug)]
struct Measured {
    weight_bytes: u64,
    peak_bytes: u64,
}

/// The builds of one run.
#[derive(Debug, Default)]
pub struct Schedule {
    /// Bytes that all running builds together may take; none for any.
    bound: Option<u64>,
    waiting: VecDeque<Waiting>,
    running: Vec<Waiting>,
    measured: Vec<Measured>,
}

impl Schedule {
    pub fn new(bound: Option<u64>, waiting: VecDeque<Waiting>) -> Self {
        Self { bound, waiting, ..Self::default() }
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The first build that fits beside those that run. If none runs, it is the first one, so that nothing waits for ever.
    pub fn start(&mut self) -> Option<Start> {
        let running: u64 = self.running.iter().map(|build| self.expected(build.weight_bytes)).sum();
        let most = self.bound.unwrap_or(u64::MAX);
        let fits = |build: &Waiting| running.saturating_add(self.expected(build.weight_bytes)) <= most;
        let place = if self.running.is_empty() { Some(0) } else { self.waiting.iter().position(fits) };
        let build = self.waiting.remove(place?)?;
        let expected = self.expected(build.weight_bytes);
        self.running.push(build);
        Some(Start { index: build.index, above_bound: (expected > most).then_some(expected) })
    }

    /// A build ended. `peak_bytes` is what it took, if it compiled to the end and the system tells.
    pub fn end(&mut self, index: usize, peak_bytes: Option<u64>) {
        let Some(place) = self.running.iter().position(|build| build.index == index) else { return };
        let Waiting { weight_bytes, .. } = self.running.remove(place);
        self.measured.extend(peak_bytes.map(|peak_bytes| Measured { weight_bytes, peak_bytes }));
    }

    /// What a build of so many weights will take: as much as builds of that size did. Where there was none, as much as the
    /// next larger one, or more than the largest one by the copies of what is more.
    fn expected(&self, weight_bytes: u64) -> u64 {
        let no_smaller = self.measured.iter().filter(|build| build.weight_bytes >= weight_bytes);
        let no_larger = self.measured.iter().filter(|build| build.weight_bytes <= weight_bytes);
        // At least what any build took that was no larger.
        let least = no_larger.clone().map(|build| build.peak_bytes).max();
        match no_smaller.min_by_key(|build| build.weight_bytes) {
            Some(next) => least.unwrap_or_default().max(next.peak_bytes),
            None => {
                let known = no_larger.map(|build| build.weight_bytes).max().unwrap_or_default();
                let of_rest = (weight_bytes - known).saturating_mul(COPIES);
                least.unwrap_or(FIXED_BYTES).saturating_add(of_rest)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: u64 = 1 << 30;

    fn schedule(bound: Option<u64>, weights: &[u64]) -> Schedule {
        let waiting = weights.iter().enumerate().map(|(index, weights)| Waiting { index, weight_bytes: weights * G });
        Schedule::new(bound.map(|bound| bound * G), waiting.collect())
    }

    fn started(schedule: &mut Schedule) -> Vec<usize> {
        std::iter::from_fn(|| schedule.start()).map(|start| start.index).collect()
    }

    #[test]
    fn builds_start_while_their_expected_memory_fits() {
        // Each takes 1 GB and four times its weights.
        for (bound, weights, together) in [
            (None, &[1, 2, 30][..], &[0, 1, 2][..]),
            (Some(10), &[1, 1, 1], &[0, 1]),
            (Some(15), &[1, 1, 1], &[0, 1, 2]),
            (Some(14), &[1, 1, 1], &[0, 1]),
            // What does not fit is passed over for now.
            (Some(10), &[1, 2, 1], &[0, 2]),
            (Some(6), &[0, 2, 0, 1], &[0, 2]),
            // The first one is too large for the bound, and runs alone.
            (Some(4), &[1, 0, 0], &[0]),
            (Some(0), &[0, 0], &[0]),
            (Some(10), &[], &[]),
        ] {
            assert_eq!(started(&mut schedule(bound, weights)), together, "{bound:?} {weights:?}");
        }
    }

    #[test]
    fn a_build_that_is_too_large_runs_alone_and_says_so() {
        let mut schedule = schedule(Some(8), &[1, 3, 1]);
        assert_eq!(schedule.start(), Some(Start { index: 0, above_bound: None }));
        assert_eq!(schedule.start(), None);
        schedule.end(0, None);
        assert_eq!(schedule.start(), Some(Start { index: 1, above_bound: Some(13 * G) }));
        assert_eq!(schedule.start(), None, "nothing runs beside it");
        schedule.end(1, None);
        assert_eq!(schedule.start(), Some(Start { index: 2, above_bound: None }));
        assert_eq!((schedule.start(), schedule.waiting()), (None, 0));
    }

    #[test]
    fn what_builds_took_corrects_what_is_expected() {
        for (measured, weights, expected) in [
            (&[][..], 2, 9),
            // One build says nothing of how memory grows: smaller ones take as much, larger ones as was guessed.
            (&[(2, 5)], 1, 5),
            (&[(2, 5)], 2, 5),
            (&[(2, 5)], 3, 9),
            (&[(1, 2), (3, 5)], 1, 2),
            (&[(1, 2), (3, 5)], 2, 5),
            (&[(1, 2), (3, 5)], 3, 5),
            (&[(1, 2), (3, 5)], 5, 13),
            // The worst of several counts, also of smaller ones.
            (&[(1, 2), (1, 3)], 1, 3),
            (&[(1, 2), (2, 8), (3, 5)], 3, 8),
            (&[(0, 1), (0, 2)], 0, 2),
            // Of a build of almost no weights, the one beside it says nothing wild.
            (&[(0, 1), (1, 9)], 4, 21),
        ] {
            let mut schedule = schedule(None, &vec![0; measured.len()]);
            schedule
                .waiting
                .iter_mut()
                .zip(measured)
                .for_each(|(build, (weights, _))| build.weight_bytes = weights * G);
            started(&mut schedule);
            measured.iter().enumerate().for_each(|(index, (_, peak))| schedule.end(index, Some(peak * G)));
            assert_eq!(schedule.expected(weights * G), expected * G, "{measured:?} {weights}");
        }
    }

    #[test]
    fn a_first_build_of_little_memory_lets_more_start() {
        let mut schedule = schedule(Some(6), &[1, 1, 1, 1]);
        assert_eq!(started(&mut schedule), [0]);
        schedule.end(0, Some(2 * G));
        assert_eq!(started(&mut schedule), [1, 2, 3]);
        // A build that was not measured changes nothing, and neither does one that was never started.
        schedule.end(1, None);
        schedule.end(9, Some(G));
        assert_eq!(schedule.expected(G), 2 * G);
    }
}
