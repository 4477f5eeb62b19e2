//! Where the time of a step goes.

use std::time::Instant;

use crate::trace::Timings;

/// Milliseconds since `start`.
pub(super) fn elapsed_ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// Divides the time of one branch of a step among its parts.
pub(super) struct Meter<'a> {
    timings: &'a mut Timings,
    start: Instant,
    last: Instant,
}

impl<'a> Meter<'a> {
    pub(super) fn start(timings: &'a mut Timings) -> Self {
        let now = Instant::now();
        Self { timings, start: now, last: now }
    }

    /// Counts the time since the last call for the part that `of` names; gives its milliseconds.
    pub(super) fn count(&mut self, of: fn(&mut Timings) -> &mut f64) -> f64 {
        let now = Instant::now();
        let lap = (now - self.last).as_secs_f64() * 1e3;
        self.last = now;
        *of(self.timings) += lap;
        lap
    }

    /// Milliseconds from the start to the last call.
    pub(super) fn total(&self) -> f64 {
        (self.last - self.start).as_secs_f64() * 1e3
    }
}
