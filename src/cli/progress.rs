//! The progress bar: one letter a decision. Hidden where standard error is no terminal.

use std::ops::ControlFlow;

use dbcache_trt::Observer;
use dbcache_trt::trace::StepRecord;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

pub struct StepBar {
    bar: ProgressBar,
    decisions: String,
}

impl StepBar {
    pub fn new(records: usize, is_hidden: bool) -> Self {
        let target = if is_hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(records as u64), target);
        if let Ok(style) = ProgressStyle::with_template("{pos:>3}/{len} {msg} {elapsed_precise}") {
            bar.set_style(style);
        }
        Self { bar, decisions: String::new() }
    }

    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for StepBar {
    fn on_step(&mut self, record: &StepRecord) -> ControlFlow<()> {
        self.decisions.push(record.letter());
        let diff = record.diff.map_or(String::new(), |diff| format!(" diff {diff:.4}"));
        self.bar.set_message(format!("{} {}{diff}", self.decisions, record.decision.reason.as_str()));
        self.bar.inc(1);
        ControlFlow::Continue(())
    }
}
