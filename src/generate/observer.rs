//! What a caller sees of a generation while it runs, and how it stops it.

use std::ops::ControlFlow;

use crate::exit::outside;
use crate::pixels::Image;
use crate::trace::StepRecord;

/// Sees each step as it is decided. Breaking, wherever, cancels the generation.
pub trait Observer {
    /// After each branch of each step.
    fn on_step(&mut self, record: &StepRecord) -> ControlFlow<()>;

    /// When a phase begins, and within the steps after each of them.
    fn on_progress(&mut self, _: Progress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Whether [`on_preview`](Self::on_preview) is wanted after a step, counted from 0: it costs a decode.
    fn wants_preview(&mut self, _step: usize) -> bool {
        false
    }

    /// The pictures as the model expects them after a step: the latents without the noise that it predicts in them,
    /// decoded; one a picture of the batch. Never called for an engine without a decode graph.
    fn on_preview(&mut self, _step: usize, _images: &[Image]) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Observes nothing.
impl Observer for () {
    fn on_step(&mut self, _: &StepRecord) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl<F: FnMut(&StepRecord) -> ControlFlow<()>> Observer for F {
    fn on_step(&mut self, record: &StepRecord) -> ControlFlow<()> {
        self(record)
    }
}

/// What the caller does while it observes is no part of the generation: the end of the process does not wait for it.
pub(super) struct Outside<'a>(pub(super) &'a mut dyn Observer);

impl Observer for Outside<'_> {
    fn on_step(&mut self, record: &StepRecord) -> ControlFlow<()> {
        outside(|| self.0.on_step(record))
    }

    fn on_progress(&mut self, progress: Progress) -> ControlFlow<()> {
        outside(|| self.0.on_progress(progress))
    }

    fn wants_preview(&mut self, step: usize) -> bool {
        outside(|| self.0.wants_preview(step))
    }

    fn on_preview(&mut self, step: usize, images: &[Image]) -> ControlFlow<()> {
        outside(|| self.0.on_preview(step, images))
    }
}

/// How far a generation is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// What it does now.
    pub phase: Phase,
    /// Steps that are done.
    pub done: usize,
    /// Steps of the generation.
    pub steps: usize,
    /// Wall time since the first step began.
    pub elapsed_ms: f64,
}

/// The parts of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Denoising steps.
    Steps,
    /// Latents to pixels.
    Decode,
}
