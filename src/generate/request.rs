//! THE step loop: one generation, from prepared tensors to pictures. Read this file first.
//!
//! ```text
//! for each step, for each branch:
//!     embed, then the blocks in order (lists.rs: one list of blocks after the other, if each is decided on by itself):
//!         those that always run: run
//!         a unit (the middle of the step, or a single block): gate ─ decided ───────────────┐
//!                                                                └─ needs a diff ─▶ judge ─▶ decision
//!             Compute: run, keep the residual      Skip: streams += kept residual, or a forecast of it
//!             (pass.rs; samples.rs runs the middle for some samples of a batch, if each decides for itself)
//!     final ─▶ prediction
//! guidance ─▶ scheduler's update ─▶ latents
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use ndarray::ArrayD;

use super::branch::BranchState;
use super::chain::{Named, Streams};
use super::combine::Combine;
use super::decoder::Decoder;
use super::expert::{BranchAt, Expert};
use super::meter::{Meter, elapsed_ms};
use super::numeric;
use super::observer::{Observer, Outside, Phase, Progress};
use super::pass::{Pass, run_list};
use super::sampler::Sampler;
use crate::cache::{Branch, DecisionPoint};
use crate::engine::LoadedEngine;
use crate::error::{At, Error, Result};
use crate::exit::enter;
use crate::model::manifest::Extents;
use crate::pixels::{Image, Video};
use crate::request::guidance::Cfg;
use crate::request::latents::Grid;
use crate::request::options::RequestOptions;
use crate::request::scheduler::Schedule;
use crate::request::shares::Share;
use crate::runtime::tensor::{BufferId, Buffers};
use crate::trace::{CacheBytes, StepRecord, Timings, Trace, Warning};

/// What a generation gives.
#[derive(Debug)]
pub struct Output {
    /// Final latents as the transformer has them, such as `[batch, tokens, features]`, f32.
    pub latents: ArrayD<f32>,
    /// One picture per seed; empty for an engine without a decode graph, or of videos.
    pub images: Vec<Image>,
    /// One video per seed; empty for an engine without a decode graph, or of pictures.
    pub videos: Vec<Video>,
    /// What happened.
    pub trace: Trace,
}

/// One generation, prepared: it owns every tensor that changes, so requests on one engine do not meet.
pub struct Request {
    pub(super) engine: Arc<LoadedEngine>,
    pub(super) options: RequestOptions,
    pub(super) buffers: Buffers,
    pub(super) grid: Grid,
    pub(super) extents: Extents,
    pub(super) schedule: Schedule,
    /// The streams of each transformer. Transformers most often share them, as branches do, because one runs at a time.
    pub(super) streams: Vec<Arc<Streams>>,
    /// The tensors that all branches share and that are no streams, by name.
    pub(super) named: Named,
    /// The transformers, in the order in which they run; there is at least one.
    pub(super) experts: Vec<Expert>,
    /// The zeros that a tail adds on a computed step: a stage that holds the arithmetic adds something on every step.
    pub(super) zeros: Vec<BufferId>,
    pub(super) latents: BufferId,
    /// A decoder for each shape of latents that was decoded.
    pub(super) decoders: Vec<Decoder>,
    /// The prediction after guidance.
    pub(super) prediction: BufferId,
    /// Steps that a host has already taken by itself.
    pub(super) done: usize,
    /// The pictures or videos that the request makes.
    pub(super) pictures: usize,
    /// Frames per second, if the request makes videos.
    pub(super) fps: Option<f64>,
    /// The inputs by which the model knows the step.
    pub(super) sigma: Option<BufferId>,
    pub(super) timestep: Option<BufferId>,
    pub(super) combine: Option<Combine>,
    pub(super) sampler: Sampler,
    pub(super) guidance: Option<f32>,
    pub(super) cfg: Option<Cfg>,
    pub(super) warnings: Vec<Warning>,
    pub(super) timings: Timings,
    /// Bytes that left the device during the steps, once they are done.
    pub(super) read_bytes: Option<u64>,
}

impl Request {
    /// Denoising steps that [`run`](Self::run) will take.
    pub fn steps(&self) -> usize {
        self.schedule.steps()
    }

    /// Records that its trace will have: one per step and branch, and list of blocks and picture if each decides for
    /// itself.
    pub fn records(&self) -> usize {
        let of_expert = |Expert { share, branches, samples }: &Expert| {
            let pictures = if samples.is_empty() { 1 } else { self.batch() };
            share.steps.len() * branches.len() * share.lists.len() * pictures
        };
        self.experts.iter().map(of_expert).sum()
    }

    /// Pictures that it will make.
    pub fn batch(&self) -> usize {
        self.pictures
    }

    /// Bytes that the policy keeps on the device at the moment. Calibrators allocate when they first keep something.
    /// The tensors through which a part of a batch flows (`per_sample`) are no cache, and not counted.
    pub fn cache_bytes(&self) -> CacheBytes {
        let is_first = |(index, streams): &(usize, &Arc<Streams>)| {
            !self.streams[..*index].iter().any(|other| Arc::ptr_eq(other, streams))
        };
        let of_streams = self.streams.iter().enumerate().filter(is_first).map(|(_, streams)| streams.cache_bytes).sum();
        let mut bytes = CacheBytes { streams: of_streams, ..CacheBytes::default() };
        let branches = self.experts.iter().flat_map(|expert| &expert.branches);
        let units = branches.flat_map(|branch| &branch.lists).flat_map(|list| &list.units);
        units.for_each(|unit| unit.count(&mut bytes, &self.buffers));
        bytes.residuals += self.zeros.iter().map(|id| self.buffers.bytes(*id)).sum::<u64>();
        bytes
    }

    /// Bytes of all tensors that the request has on the device at the moment, those of the cache among them.
    pub fn tensor_bytes(&self) -> u64 {
        self.buffers.total_bytes()
    }

    /// Bytes of its tensors at the moment, by the memory that they lie in, in ONNX Runtime's words (`Cpu`, `Cuda`,
    /// `WebGPU_Buf`). What the host writes or reads at each step lies in `Cpu` whatever the provider.
    pub fn memory(&self) -> BTreeMap<String, u64> {
        self.buffers.bytes_by_memory()
    }

    /// The latents as they are: before the first step the noise, such as `[batch, tokens, features]`.
    ///
    /// # Errors
    /// `Runtime` when they cannot be read from the device.
    pub fn latents(&self) -> Result<ArrayD<f32>> {
        let _inside = enter()?;
        let shape: Vec<usize> = self.buffers.shape(self.latents).iter().map(|extent| *extent as usize).collect();
        ArrayD::from_shape_vec(shape, self.buffers.read(self.latents)?)
            .map_err(|error| Error::internal("latents of an impossible shape").with_source(error))
    }

    /// Runs all steps and decodes.
    ///
    /// # Errors
    /// `Cancelled`; `Numeric` for NaN or infinity, with step, branch and the first block that gives it; `Runtime`; `Usage`
    /// after [`velocity`](Self::velocity).
    pub fn run(mut self, observer: &mut dyn Observer) -> Result<Output> {
        let _inside = enter()?;
        let observer: &mut dyn Observer = &mut Outside(observer);
        let start = Instant::now();
        let mut records = Vec::with_capacity(self.records());
        if self.done > 0 {
            return Err(Error::usage("this request is run step by step, with `velocity`; make another one for `run`"));
        }
        let steps = self.steps();
        let tell = |observer: &mut dyn Observer, phase, done| {
            let progress = Progress { phase, done, steps, elapsed_ms: elapsed_ms(start) };
            if observer.on_progress(progress).is_break() { Err(Error::cancelled()) } else { Ok(()) }
        };
        tell(observer, Phase::Steps, 0)?;
        for step in 0..steps {
            self.step(step, &mut records, observer).at(format_args!("step {step}"))?;
            tell(observer, Phase::Steps, step + 1)?;
        }
        self.timings.steps_ms = elapsed_ms(start);
        self.read_bytes = Some(self.buffers.read_bytes());
        let latents = self.latents()?;
        tell(observer, Phase::Decode, steps)?;
        self.options.cancel.check()?;
        let start = Instant::now();
        let decoded = self.decode(&latents)?;
        self.timings.decode_ms = elapsed_ms(start);
        self.options.cancel.check()?;
        Ok(self.output(latents, decoded, records))
    }

    fn step(&mut self, step: usize, records: &mut Vec<StepRecord>, observer: &mut dyn Observer) -> Result<()> {
        self.predict(step, records, observer)?;
        if observer.wants_preview(step) {
            self.preview(step, observer)?;
        }
        let start = Instant::now();
        self.sampler.step(step, &self.schedule.updates[step], &mut self.buffers)?;
        if let Some(number) = self.buffers.first_not_finite(self.latents)? {
            return Err(numeric::latents(number));
        }
        self.timings.update_ms += elapsed_ms(start);
        Ok(())
    }

    /// The transformer that runs a step, as an index of `experts`.
    pub(super) fn expert_at(&self, step: usize) -> usize {
        let is_its = |expert: &Expert| expert.share.steps.contains(&step);
        self.experts.iter().position(is_its).unwrap_or_default() // Together they have all steps.
    }

    /// The branches of each step: every transformer has the same, in the same order.
    pub(super) fn branches(&self) -> &[BranchState] {
        &self.experts[0].branches
    }

    /// All branches of one step, and guidance: from latents to the prediction.
    pub(super) fn predict(
        &mut self,
        step: usize,
        records: &mut Vec<StepRecord>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        self.write_time(step)?;
        if let Some(combine) = &self.combine {
            combine.begin()?;
        }
        let mut cond_diffs = Vec::new();
        for index in 0..self.branches().len() {
            self.predict_branch(index, step, &mut cond_diffs, records, observer)?;
        }
        let start = Instant::now();
        if let Some(combine) = &self.combine {
            let expert = self.experts[self.expert_at(step)].share.expert;
            combine.end(expert, self.schedule.timesteps[step], self.schedule.steps(), &mut self.buffers)?;
        }
        self.timings.update_ms += elapsed_ms(start);
        Ok(())
    }

    /// Tells the model which step it is.
    pub(super) fn write_time(&mut self, step: usize) -> Result<()> {
        for (id, value) in
            [(self.sigma, self.schedule.thousandth(step)), (self.timestep, self.schedule.timesteps[step])]
        {
            if let Some(id) = id {
                let rows = self.buffers.shape(id)[0] as usize;
                self.buffers.write(id, &vec![value; rows])?;
            }
        }
        Ok(())
    }

    /// One branch of one step, and what it tells the one after it: the diffs of the cond branch.
    pub(super) fn predict_branch(
        &mut self,
        index: usize,
        step: usize,
        cond_diffs: &mut Vec<Option<f32>>,
        records: &mut Vec<StepRecord>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let expert = self.expert_at(step);
        let branch = self.experts[expert].branches[index].branch;
        let is_shared = branch == Branch::Uncond && self.options.cache.shares_cond_diff();
        let shared: &[Option<f32>] = if is_shared { cond_diffs } else { &[] };
        let at = BranchAt { expert, branch: index };
        let decided = self.denoise(at, step, shared);
        let decided = decided.map_err(|error| {
            // Running the blocks again to find the first bad number needs all ranks, which may not have seen the same.
            if self.engine.context_parallel.is_some() {
                return error;
            }
            let state = &self.experts[at.expert].branches[at.branch];
            state.explain(&self.engine.directory.manifest, &self.named, &self.buffers, error)
        });
        let decided = decided.at(branch)?;
        if branch == Branch::Cond {
            *cond_diffs = decided.iter().map(|record| record.diff).collect();
        }
        for record in decided {
            records.push(record.clone());
            if observer.on_step(&record).is_break() {
                return Err(Error::cancelled());
            }
        }
        Ok(())
    }

    /// One branch of one step: from latents to its prediction. `shared` holds the diffs of another branch, one for each
    /// record.
    fn denoise(&mut self, branch: BranchAt, step: usize, shared: &[Option<f32>]) -> Result<Vec<StepRecord>> {
        let Self { engine, options, buffers, experts, timings, schedule, .. } = self;
        let Expert { share: Share { steps, lists, expert }, branches, samples } = &mut experts[branch.expert];
        let BranchState { branch, chain, prediction, lists: own } = &mut branches[branch.branch];
        let mut pass = Pass {
            at: DecisionPoint { step: step - steps.start, steps: steps.len(), branch: *branch, block: None },
            step,
            steps: schedule.steps(),
            expert: (engine.directory.experts.len() > 1).then_some(*expert),
            sigma: schedule.sigmas[step],
            chain,
            context_parallel: engine.context_parallel.as_ref(),
            cancel: &options.cancel,
            buffers,
            meter: Meter::start(timings),
        };
        let mut runs = pass.buffers.session_runs();
        let exchanged = || engine.context_parallel.as_ref().map(|parallel| parallel.group.exchanged());
        let mut given = exchanged();

        pass.cancel.check()?;
        pass.chain.embed(pass.buffers)?;
        pass.meter.count(|timings| &mut timings.embed_ms);
        let mut records: Vec<StepRecord> = Vec::new();
        let mut samples = samples.iter_mut();
        for (list, own) in lists.iter().zip(own) {
            let shared = shared.get(records.len()..).unwrap_or_default();
            // The first list's time begins with the embed graph.
            let before = if records.is_empty() { 0.0 } else { pass.meter.total() };
            let mut decided = run_list(&mut pass, list, own, samples.next(), shared)?;
            for record in &mut decided {
                record.elapsed_ms = pass.meter.total() - before;
                record.session_runs = pass.buffers.session_runs() - runs;
                record.exchanged = exchanged().zip(given).map(|(now, given)| now.since(given));
            }
            runs = pass.buffers.session_runs();
            given = exchanged();
            records.append(&mut decided);
        }
        pass.chain.last(pass.buffers)?;
        if let Some(number) = pass.buffers.first_not_finite(*prediction)? {
            return Err(numeric::prediction(number));
        }
        let final_ms = pass.meter.count(|timings| &mut timings.final_ms);
        let last = records.last().and_then(|record| record.list);
        for record in records.iter_mut().filter(|record| record.list == last) {
            record.elapsed_ms += final_ms;
            record.session_runs += pass.buffers.session_runs() - runs;
            let more = exchanged().zip(given).map(|(now, given)| now.since(given));
            record.exchanged = record.exchanged.zip(more).map(|(before, more)| before.and(more));
        }
        Ok(records)
    }
}
