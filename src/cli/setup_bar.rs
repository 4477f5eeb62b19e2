//! The bar of a set-up: how many bytes of a provider's packages have arrived. Hidden where standard error is no terminal.

use std::time::Duration;

use dbcache_trt::bytes_in_words;
use dbcache_trt::setup::SetupEvent;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::print::note;

pub struct SetupBar {
    bar: ProgressBar,
    sum: Sum,
}

/// What has arrived of all packages of a provider.
#[derive(Debug, Default)]
struct Sum {
    total: u64,
    /// Of the packages before the one that is being fetched.
    before: u64,
    /// All of the one that is being fetched.
    package: u64,
    arrived: u64,
}

impl Sum {
    /// Takes a number; whether an event brought one.
    fn hear(&mut self, event: &SetupEvent) -> bool {
        match event {
            SetupEvent::Planned { download, .. } => *self = Self { total: *download, ..Self::default() },
            SetupEvent::Fetching { bytes, .. } => {
                let before = self.before + self.package;
                *self = Self { total: self.total, before, package: *bytes, arrived: 0 };
            }
            SetupEvent::Arrived { bytes, .. } => self.arrived = (*bytes).min(self.package),
            _ => return false,
        }
        true
    }

    fn bytes(&self) -> u64 {
        (self.before + self.arrived).min(self.total)
    }
}

impl SetupBar {
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {msg} {elapsed_precise}") {
            bar.set_style(style);
        }
        Self { bar, sum: Sum::default() }
    }

    /// Tells an event in a line, or in the bar.
    pub fn hear(&mut self, event: &SetupEvent) {
        let is_drawn = self.sum.total > 0 && !self.bar.is_hidden();
        let is_number = self.sum.hear(event);
        match event {
            SetupEvent::Arrived { .. } => {}
            // The bar shows by itself that the tool is at work.
            SetupEvent::StillRunning { .. } if is_drawn => {}
            event if is_drawn => self.bar.suspend(|| note(event)),
            event => note(event),
        }
        if is_number && self.sum.total > 0 {
            let (bytes, total) = (self.sum.bytes(), self.sum.total);
            self.bar.set_length(total);
            self.bar.set_message(format!("{} of {}", bytes_in_words(bytes), bytes_in_words(total)));
            self.bar.set_position(bytes);
        }
        if matches!(event, SetupEvent::Planned { .. }) && self.sum.total > 0 && !self.bar.is_hidden() {
            // The clock goes on where nothing arrives.
            self.bar.enable_steady_tick(Duration::from_secs(1));
        }
    }

    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use dbcache_trt::setup::Via;

    use super::*;

    #[test]
    fn packages_add_up_to_what_was_planned() {
        let planned = SetupEvent::Planned { what: "x", download: 300, disk: 900, folder: "f".into(), kept: 0 };
        let fetching = |bytes, place| SetupEvent::Fetching { package: "p", version: "1", bytes, place, of: 2 };
        let arrived = |bytes, of| SetupEvent::Arrived { bytes, of };
        let failed = SetupEvent::Failed { via: Via::Uv, reason: "no".into() };
        let mut sum = Sum::default();
        for (event, expected) in [
            // Nothing is planned.
            (arrived(5, 9), 0),
            (planned.clone(), 0),
            (fetching(100, 1), 0),
            (arrived(40, 100), 40),
            (failed, 40),
            // The next tool begins anew.
            (arrived(0, 100), 0),
            (arrived(120, 100), 100),
            (fetching(200, 2), 100),
            (arrived(150, 200), 250),
            (arrived(200, 200), 300),
            (planned, 0),
        ] {
            sum.hear(&event);
            assert_eq!(sum.bytes(), expected, "{event:?}");
        }
    }
}
