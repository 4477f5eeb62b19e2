//! THE step loop: one generation, from prepared tensors to pictures. Read this file first.
//!
//! ```text
//! for each step, for each branch:
//!     embed ─▶ head ─▶ gate ─ decided ──────────┐
//!                        └─ needs a diff ─▶ judge ─▶ decision
//!     Compute: middle, keep its residual          Skip: streams += kept residual
//!     ─▶ tail ─▶ final ─▶ prediction
//! guidance ─▶ scheduler's update ─▶ latents
//! ```

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use ndarray::{ArrayD, Axis};

use super::branch::BranchState;
use super::cancel::CancelToken;
use super::chain::Chain;
use super::image::Image;
pub use super::inputs::Inputs;
use super::latents::Grid;
use super::prepare;
use super::scheduler::Schedule;
use crate::cache::{Action, BlocksSplit, Branch, Decision, DecisionPoint, Gate, PolicyConfig};
use crate::engine::Loaded;
use crate::error::{At, Error, ErrorKind, Result};
use crate::model::manifest::Extents;
use crate::runtime::ops::Op;
use crate::runtime::tensor::{BufferId, Buffers};
use crate::trace::{CacheBytes, StepRecord, Timings, Trace, Warning};

/// How one generation runs. What is left out takes the engine's default.
#[derive(Clone, Debug, Default)]
pub struct RequestOptions {
    /// The cache policy. Default: none.
    pub cache: PolicyConfig,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Guidance scale, dimensionless; an error for a model without guidance.
    pub guidance: Option<f32>,
    /// Scale of classifier-free guidance for a model that does not have it by itself: a second run a step with the
    /// negative prompt, as diffusers' `true_cfg_scale`.
    pub true_cfg: Option<f32>,
    /// `(width, height)` in pixels.
    pub size: Option<(u64, u64)>,
    /// Pictures. Default: 1, or what the input tensors say. A batch decides together, on the mean over its pictures.
    pub batch: Option<usize>,
    /// Seed of the first picture; picture k of a batch has the seed `seed + k`.
    pub seed: u64,
    /// Stops the generation from another thread.
    pub cancel: CancelToken,
}

/// Sees each step as it is decided. Breaking cancels the generation.
pub trait Observer {
    /// After each branch of each step.
    fn on_step(&mut self, record: &StepRecord) -> ControlFlow<()>;
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

/// What a generation gives.
#[derive(Debug)]
pub struct Output {
    /// Final latents, packed: `[batch, tokens, features]`, f32.
    pub latents: ArrayD<f32>,
    /// One picture per seed; empty for an engine without a decode graph.
    pub images: Vec<Image>,
    /// What happened.
    pub trace: Trace,
}

/// One generation, prepared: it owns every tensor that changes, so requests on one engine do not meet.
pub struct Request {
    pub(super) engine: Arc<Loaded>,
    pub(super) options: RequestOptions,
    pub(super) buffers: Buffers,
    pub(super) grid: Grid,
    pub(super) extents: Extents,
    pub(super) schedule: Schedule,
    pub(super) split: BlocksSplit,
    pub(super) chain: Chain,
    pub(super) branches: Vec<BranchState>,
    pub(super) latents: BufferId,
    pub(super) sigma: BufferId,
    pub(super) keep: BufferId,
    pub(super) take: BufferId,
    pub(super) guide: Option<Op>,
    pub(super) update: Op,
    pub(super) guidance: Option<f32>,
    pub(super) cfg: Option<f32>,
    pub(super) cache_bytes: CacheBytes,
    pub(super) warnings: Vec<Warning>,
    pub(super) timings: Timings,
}

impl Request {
    pub(crate) fn new(engine: Arc<Loaded>, inputs: &Inputs, options: &RequestOptions) -> Result<Self> {
        prepare::request(engine, inputs, options)
    }

    /// Denoising steps that [`run`](Self::run) will take.
    pub fn steps(&self) -> usize {
        self.schedule.steps()
    }

    /// Records that its trace will have: one per step and branch.
    pub fn records(&self) -> usize {
        self.steps() * self.branches.len()
    }

    /// Pictures that it will make.
    pub fn batch(&self) -> usize {
        self.buffers.shape(self.sigma)[0] as usize
    }

    /// Bytes that the policy keeps on the device.
    pub fn cache_bytes(&self) -> CacheBytes {
        self.cache_bytes
    }

    /// Runs all steps and decodes.
    ///
    /// # Errors
    /// `Cancelled`; `Numeric` for NaN or infinity, with step, branch and blocks; `Runtime`.
    pub fn run(mut self, observer: &mut dyn Observer) -> Result<Output> {
        let start = Instant::now();
        let mut records = Vec::with_capacity(self.steps() * self.branches.len());
        for step in 0..self.steps() {
            self.step(step, &mut records, observer).at(format!("step {step}"))?;
        }
        self.timings.steps_ms = elapsed_ms(start);
        let shape: Vec<usize> = self.buffers.shape(self.latents).iter().map(|extent| *extent as usize).collect();
        let latents = ArrayD::from_shape_vec(shape, self.buffers.read(self.latents)?)
            .map_err(|error| Error::internal("latents of an impossible shape").with_source(error))?;
        check_finite(&latents)?;
        let images = self.decode(&latents)?;
        let (width, height) = (self.extents["width"], self.extents["height"]); // Grid::extents gives both.
        let manifest = &self.engine.directory.manifest;
        let mut trace = Trace {
            engine: manifest.name.clone(),
            engine_hash: self.engine.directory.hash.clone(),
            cache: self.options.cache.clone(),
            seed: self.options.seed,
            batch: self.batch(),
            width,
            height,
            guidance: self.guidance,
            cfg: self.cfg,
            blocks: manifest.blocks.len(),
            records,
            timings: self.timings,
            cache_bytes: self.cache_bytes,
            warnings: self.warnings,
        };
        trace.judge();
        Ok(Output { latents, images, trace })
    }

    fn step(&mut self, step: usize, records: &mut Vec<StepRecord>, observer: &mut dyn Observer) -> Result<()> {
        let sigma = self.schedule.sigmas[step];
        let batch = self.batch();
        self.buffers.write(self.sigma, &vec![sigma; batch])?;
        let mut cond_diff = None;
        for index in 0..self.branches.len() {
            let branch = self.branches[index].branch;
            let shared =
                if branch == Branch::Uncond && self.options.cache.shares_cond_diff() { cond_diff } else { None };
            let record = self.denoise(index, step, shared).at(branch)?;
            if branch == Branch::Cond {
                cond_diff = record.diff;
            }
            records.push(record.clone());
            if observer.on_step(&record).is_break() {
                return Err(Error::cancelled());
            }
        }
        let start = Instant::now();
        if let Some(guide) = &self.guide {
            guide.run()?;
        }
        let update = self.schedule.update(step, self.engine.directory.manifest.prediction);
        self.buffers.write(self.keep, &[update.keep])?;
        self.buffers.write(self.take, &[update.take])?;
        self.update.run()?;
        self.timings.update_ms += elapsed_ms(start);
        Ok(())
    }

    /// One branch of one step: from latents to its prediction.
    fn denoise(&mut self, index: usize, step: usize, shared_diff: Option<f32>) -> Result<StepRecord> {
        let steps = self.steps();
        let cancel = self.options.cancel.clone();
        let state = &mut self.branches[index];
        let mut clock = Clock::start();

        cancel.check()?;
        state.embed.run()?;
        self.timings.embed_ms += clock.lap();
        let mut blocks_run = self.chain.run(self.split.head.clone(), &cancel)?;
        self.timings.blocks_ms += clock.lap();

        let at = DecisionPoint { step, steps, branch: state.branch, block: None };
        let mut diff = None;
        let mut was_measured = false;
        let decision: Decision = match state.policy.gate(at) {
            Gate::Decided(decision) => decision,
            Gate::NeedsDiff => {
                let measured = match (shared_diff, &state.compare) {
                    (Some(diff), _) => diff,
                    (None, Some(compare)) => {
                        was_measured = true;
                        compare.diff(&self.buffers).at(format!("blocks {:?}", self.split.head))?
                    }
                    (None, None) => return Err(Error::internal("a policy asks for a diff but compares nothing")),
                };
                diff = Some(measured);
                state.policy.judge(at, measured)
            }
        };
        match decision.action {
            Action::Compute => {
                if let Some(compare) = &mut state.compare {
                    compare.commit(was_measured)?;
                }
                self.timings.cache_ms += clock.lap();
                blocks_run += self.chain.run(self.split.middle.clone(), &cancel)?;
                self.timings.blocks_ms += clock.lap();
                state.middle.iter().try_for_each(|residual| residual.keep())?;
            }
            Action::Skip => state.middle.iter().try_for_each(|residual| residual.apply())?,
        }
        self.timings.cache_ms += clock.lap();
        blocks_run += self.chain.run(self.split.tail.clone(), &cancel)?;
        self.timings.blocks_ms += clock.lap();
        state.last.run()?;
        self.timings.final_ms += clock.lap();
        let threshold = diff.and_then(|_| state.policy.threshold(at));
        Ok(StepRecord {
            step,
            steps,
            branch: state.branch,
            sigma: self.schedule.sigmas[step],
            decision,
            diff,
            threshold,
            blocks_run,
            elapsed_ms: clock.total(),
        })
    }

    fn decode(&mut self, latents: &ArrayD<f32>) -> Result<Vec<Image>> {
        let engine = Arc::clone(&self.engine);
        let (Some(spec), Some(session)) = (&engine.directory.manifest.decode, &engine.decode) else {
            return Ok(Vec::new());
        };
        let start = Instant::now();
        let unpacked: Vec<f32> = self.grid.unpack(latents)?.iter().copied().collect();
        let mut named = super::chain::Named::new();
        for tensor in spec.inputs.iter().chain(&spec.outputs) {
            let shape = engine.directory.manifest.shape(tensor, &self.extents)?;
            let dtype = engine.directory.manifest.tensor(tensor)?.dtype;
            named.insert(tensor.clone(), self.buffers.add(dtype, &shape)?);
        }
        let (Some(input), Some(output)) = (named.get("image_latents"), named.get("image")) else {
            return Err(Error::internal("a decode graph without its ports"));
        };
        let (input, output) = (*input, *output);
        self.buffers.write(input, &unpacked)?;
        super::branch::bind_graph(session, spec, &named, &mut self.buffers)?.run().at("decode")?;
        let shape: Vec<usize> = self.buffers.shape(output).iter().map(|extent| *extent as usize).collect();
        let pixels = ArrayD::from_shape_vec(shape, self.buffers.read(output)?)
            .map_err(|error| Error::internal("pixels of an impossible shape").with_source(error))?;
        let images = pixels
            .axis_iter(Axis(0))
            .map(|picture| picture.into_dimensionality().map(Image::from_tensor))
            .collect::<std::result::Result<_, _>>()
            .map_err(|error| Error::internal("pixels that are not pictures").with_source(error))?;
        self.timings.decode_ms = elapsed_ms(start);
        Ok(images)
    }
}

fn check_finite(latents: &ArrayD<f32>) -> Result<()> {
    match latents.iter().find(|number| !number.is_finite()) {
        None => Ok(()),
        Some(number) => Err(Error::new(
            ErrorKind::Numeric,
            format!("the final latents hold {number}; the weights are damaged, or the compute dtype overflows"),
        )),
    }
}

/// Milliseconds since `start`.
pub(super) fn elapsed_ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// Divides a step's time among its parts.
struct Clock {
    start: Instant,
    last: Instant,
}

impl Clock {
    fn start() -> Self {
        let now = Instant::now();
        Self { start: now, last: now }
    }

    /// Milliseconds since the last lap.
    fn lap(&mut self) -> f64 {
        let now = Instant::now();
        let lap = (now - self.last).as_secs_f64() * 1e3;
        self.last = now;
        lap
    }

    fn total(&self) -> f64 {
        (self.last - self.start).as_secs_f64() * 1e3
    }
}
