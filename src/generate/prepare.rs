//! Makes a [`Request`]: everything that can be known before the first step is checked here, then allocated and bound.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::branch::{BranchState, ListState};
use super::chain::{Chain, Named, Streams};
use super::combine::Combine;
use super::conditioning;
use super::decode;
use super::expert::Expert;
use super::in_stages::StageArithmetic;
use super::request::{Request, elapsed_ms};
use super::sampler::{NoiseSource, Sampler};
use super::samples::{self, BranchSamples, Samples};
use super::unit::{Unit, UnitSpec};
use crate::cache::{Branch, CachePolicy, PolicyConfig, StreamKind};
use crate::engine::{Loaded, LoadedPlan};
use crate::error::{Error, Result};
use crate::exit::enter;
use crate::model::manifest::{Extents, Manifest, Source};
use crate::plan::{Cuts, InStages, Plan};
use crate::request;
use crate::request::Asked;
use crate::request::engine_options::ArithmeticChoice;
use crate::request::guidance::Guidance;
use crate::request::inputs::{Inputs, LATENTS, NOISE, numbers};
use crate::request::latents::Grid;
use crate::request::lists::{self, List, Part};
use crate::request::memory;
use crate::request::noise::Generator;
use crate::request::options::{GuidanceBy, RequestOptions};
use crate::request::scheduler::Schedule;
use crate::request::shares::{self, Share};
use crate::runtime::tensor::{BufferId, Buffers};
use crate::trace::{Timings, Warning};

pub(super) fn request(
    engine: Arc<Loaded>,
    inputs: &Inputs,
    options: &RequestOptions,
    by: GuidanceBy,
) -> Result<Request> {
    let _inside = enter()?;
    let manifest = &engine.directory.manifest;
    let asked = Asked::new(manifest, inputs, options, by)?;
    let Cut { cuts, plain } = cut(&engine, options, &asked)?;
    let plans = engine.load_plans(&cuts, &options.cancel)?;
    let mut warnings = warnings(&engine, options, &asked);

    let mut buffers = Buffers::new(&engine.device, options.cache_place.place())?;
    let mut timings = Timings::default();
    let start = Instant::now();
    let texts = conditioning::texts(&engine, inputs, &asked.guidance, asked.batch, &mut buffers)?;
    warnings.extend(warnings_of_prompts(&engine, inputs, &asked)?);
    timings.text_ms = elapsed_ms(start);
    let Asked { guidance, given, batch, rows, grid, fps, schedule, shares, n_branches } = asked;
    let extents = conditioning::extents(manifest, &grid, rows, given, &texts, &buffers)?;
    engine.loader.check_extents(&extents)?;

    let mut named = conditioning::shared(manifest, &grid, &extents, (guidance.embedded, fps), &mut buffers)?;
    for tensor in manifest.embed.outputs.iter().filter(|tensor| !manifest.streams.contains(tensor)) {
        add(manifest, tensor, &extents, &mut named, &mut buffers)?;
    }
    let streams = streams(manifest, &plans, &plain, &shares[0].lists, &extents, &mut buffers)?;
    let (of_branches, predictions) = branches(manifest, &guidance, &named, texts, &extents, &mut buffers)?;
    let mut binder = Binder {
        engine: &engine,
        run: Run { options, n_branches, batch },
        arithmetic: cuts.arithmetic.as_ref(),
        extents: &extents,
        named: &named,
        of_branches: &of_branches,
        zeros: Vec::new(),
        buffers: &mut buffers,
    };
    let mut experts = Vec::new();
    for share in shares {
        let (plan, streams) = (&plans[share.expert], &streams[share.expert]);
        experts.push(binder.expert(share, plan, streams)?);
    }
    let zeros = binder.zeros;

    let input = |source: Source| manifest.input_from(&source).and_then(|name| named.get(name)).copied();
    let model_latents = input(Source::Latents).ok_or_else(|| Error::internal("no latents"))?; // Manifest::parse has checked.
    let cfg = guidance.cfg.filter(|_| by == GuidanceBy::Library);
    let combine = cfg.map(|cfg| Combine::bind(&engine, cfg, &predictions, model_latents, &grid, batch, &mut buffers));
    let combine = combine.transpose()?;
    let (latents, prediction) = match &combine {
        Some(combine) => (combine.latents, combine.prediction),
        None => (model_latents, predictions[&Branch::Cond]),
    };
    let noise = start_from(latents, inputs, &grid, &schedule, (options.seed, batch), &mut buffers)?;
    let sampler = Sampler::bind(&engine, &schedule, (latents, prediction), noise, &mut buffers)?;
    let (sigma, timestep) = (input(Source::Sigma), input(Source::Timestep));
    let extents = Extents::from_iter([extents, grid.extents(batch)].into_iter().flatten());
    Ok(Request {
        options: options.clone(),
        buffers,
        grid,
        extents,
        schedule,
        streams,
        named,
        experts,
        zeros,
        latents,
        prediction,
        decoders: Vec::new(),
        done: 0,
        pictures: batch,
        fps: manifest.video.map(|_| fps),
        sigma,
        timestep,
        combine,
        sampler,
        guidance: guidance.embedded,
        cfg,
        warnings,
        timings,
        read_bytes: None,
        engine,
    })
}

/// Where the policy cuts the model into stages, and the plan that there would be without one.
struct Cut {
    cuts: Cuts,
    plain: Plan,
}

/// Refuses what the loaded engine shows to be impossible: extents that it was not compiled for, too little memory, or stages
/// that cannot hold the policy's arithmetic.
fn cut(engine: &Loaded, options: &RequestOptions, asked: &Asked) -> Result<Cut> {
    let manifest = &engine.directory.manifest;
    let Asked { given, batch, rows, grid, shares, n_branches, .. } = asked;
    memory::check_room(grid, *batch)?;
    let smallest = if options.per_sample { 1 } else { *rows };
    for rows in [smallest, *rows] {
        engine.loader.check_extents(&grid.extents(rows))?;
    }
    decode::check_tiles(engine, options, grid)?;
    options.cache_place.check(&engine.device, &options.cache, manifest.blocks.len())?;
    let cuts = lists::cuts(manifest, options, engine.arithmetic_choice)?;
    if engine.arithmetic_choice == ArithmeticChoice::Stages {
        let refuse = |why| Error::option("arithmetic", format!("is `stages`, but {why}; leave it out"));
        request::in_stages::of_request(manifest, options, &shares[0].lists).map_err(refuse)?;
    }
    let plain = engine.plan(&lists::cuts_of(manifest, &PolicyConfig::None, ArithmeticChoice::Auto)?);
    if options.cache_memory.is_some() {
        let given = given.iter().map(|(dim, (extent, _))| (dim.clone(), *extent)).collect();
        let extents = memory::extents(manifest, grid, *rows, given)?;
        memory::check(manifest, ([&engine.plan(&cuts), &plain], options), (shares, *n_branches), &extents)?;
    }
    Ok(Cut { cuts, plain })
}

/// What the user should know before the first step.
fn warnings(engine: &Loaded, options: &RequestOptions, asked: &Asked) -> Vec<Warning> {
    let Asked { guidance, shares, n_branches, .. } = asked;
    let of_provider = engine.provider_warnings().map(Warning::Provider);
    let of_settings = shares::warnings(shares, *n_branches).into_iter().chain(guidance.warnings.iter().cloned());
    let mut warnings: Vec<Warning> = of_provider.chain(of_settings.map(Warning::Setting)).collect();
    let has_text = shares[0].lists.iter().any(|list| list.has_text(&engine.directory.manifest));
    if !has_text && !options.cache.corrects(None, StreamKind::Encoder) {
        warnings.push(Warning::Setting(
            "enable_encoder_residual has no effect: the model has no stream of the text alone".into(),
        ));
    }
    warnings
}

/// What becomes of prompts that the model cannot read whole.
fn warnings_of_prompts(engine: &Loaded, inputs: &Inputs, asked: &Asked) -> Result<Vec<Warning>> {
    let mut warnings = Vec::new();
    for branch in asked.guidance.texts() {
        if let (Some(prompt), Some(encoder)) = (conditioning::prompt(engine, inputs, branch), &engine.text) {
            let called = conditioning::called(branch);
            warnings.extend(encoder.warnings(called, prompt)?.into_iter().map(Warning::Setting));
        }
    }
    Ok(warnings)
}

/// The streams between the stages of each transformer. They are divided alike, and then shared, unless another request divided
/// the stages of one in the meantime.
fn streams(
    manifest: &Manifest,
    plans: &[Arc<LoadedPlan>],
    plain: &Plan,
    lists: &[List],
    extents: &Extents,
    buffers: &mut Buffers,
) -> Result<Vec<Arc<Streams>>> {
    let pinned: Vec<usize> = lists.iter().flat_map(List::pinned).collect();
    let mut streams: Vec<Arc<Streams>> = Vec::new();
    for (index, plan) in plans.iter().enumerate() {
        let same = plans[..index].iter().position(|other| other.plan == plan.plan);
        streams.push(match same {
            Some(other) => Arc::clone(&streams[other]),
            None => {
                let seen = plan.plan.seen();
                let pinned: Vec<usize> = pinned.iter().copied().filter(|cut| seen.contains(cut)).collect();
                Streams::allocate(manifest, (plan, plain), (extents, seen), &pinned, buffers)?
            }
        });
    }
    Ok(streams)
}

/// The tensors that are no streams, by branch: `named`, which all share, and each branch's own. Then the predictions.
fn branches(
    manifest: &Manifest,
    guidance: &Guidance,
    named: &Named,
    mut texts: HashMap<Branch, Named>,
    extents: &Extents,
    buffers: &mut Buffers,
) -> Result<(HashMap<Branch, Named>, HashMap<Branch, BufferId>)> {
    let prediction = &manifest.last.outputs[0]; // Manifest::parse has checked that there is one.
    let (mut of_branches, mut predictions) = (HashMap::new(), HashMap::new());
    for branch in guidance.branches() {
        let mut tensors = named.clone();
        tensors.extend(texts.remove(&branch).unwrap_or_default());
        predictions.insert(branch, add(manifest, prediction, extents, &mut tensors, buffers)?);
        of_branches.insert(branch, tensors);
    }
    Ok((of_branches, predictions))
}

/// Writes the latents that the first step starts from; gives the noise that later steps add.
fn start_from(
    latents: BufferId,
    inputs: &Inputs,
    grid: &Grid,
    schedule: &Schedule,
    (seed, batch): (u64, usize),
    buffers: &mut Buffers,
) -> Result<NoiseSource> {
    let mut generators: Vec<Generator> = (0..batch).map(|k| Generator::new(seed.wrapping_add(k as u64))).collect();
    match inputs.tensors.get(LATENTS) {
        Some(tensor) => buffers.write(latents, &numbers(tensor))?,
        None => buffers.write(latents, &grid.noise(&mut generators))?,
    }
    noise(inputs, schedule, generators, buffers.shape(latents))
}

/// What all transformers of a request run with.
struct Run<'a> {
    options: &'a RequestOptions,
    n_branches: usize,
    batch: usize,
}

/// Binds the blocks of a request to its tensors.
struct Binder<'a> {
    engine: &'a Loaded,
    run: Run<'a>,
    /// The part of the policy's arithmetic that stages hold.
    arithmetic: Option<&'a InStages>,
    extents: &'a Extents,
    /// The tensors that all branches share and that are no streams.
    named: &'a Named,
    /// The tensors of each branch that are no streams.
    of_branches: &'a HashMap<Branch, Named>,
    /// What the tail adds on a computed step; branches and transformers share it.
    zeros: Vec<BufferId>,
    buffers: &'a mut Buffers,
}

impl Binder<'_> {
    /// One transformer: its blocks in each branch, bound, and what is decided on.
    fn expert(&mut self, share: Share, plan: &Arc<LoadedPlan>, streams: &Arc<Streams>) -> Result<Expert> {
        let Run { options, n_branches, .. } = self.run;
        let mut samples = Vec::new();
        for list in share.lists.iter().filter(|_| options.per_sample) {
            let of_list = (self.named, &list.split.middle);
            samples.push(Samples::new(self.engine, plan, self.extents, of_list, self.buffers)?);
        }
        let policies = |list: &List| list.cache.policies(list.run(share.steps.len(), n_branches));
        let mut policies = share.lists.iter().map(policies).collect::<Result<Vec<_>>>()?;
        let order: Vec<Branch> = policies.iter().take(1).flatten().map(|(branch, _)| *branch).collect();
        let mut branches = Vec::new();
        for branch in order {
            // All lists have the same branches in the same order.
            let policies = policies.iter_mut().map(|of_list| of_list.remove(0).1).collect();
            branches.push(self.branch(branch, &share, policies, &samples, (plan, streams))?);
        }
        Ok(Expert { share, branches, samples })
    }

    /// The blocks of one branch; `policies` and `samples` are those of each list.
    fn branch(
        &mut self,
        branch: Branch,
        share: &Share,
        policies: Vec<Box<dyn CachePolicy>>,
        samples: &[Samples],
        (plan, streams): (&Arc<LoadedPlan>, &Arc<Streams>),
    ) -> Result<BranchState> {
        let manifest = &self.engine.directory.manifest;
        let of_branch = self.of_branches.get(&branch).ok_or_else(|| Error::internal("a branch without its tensors"))?;
        let mut tensors = of_branch.clone();
        let mut in_stages = None;
        if let Some(shape) = self.arithmetic {
            let rest = (&mut tensors, &mut *self.buffers);
            let of_shape = (shape, self.extents);
            in_stages = Some(StageArithmetic::allocate(manifest, of_shape, streams, &mut self.zeros, rest)?);
        }
        let mut chain = Chain::bind(manifest, plan, streams, &tensors, self.buffers)?;
        let mut lists = Vec::new();
        for (index, (list, policy)) in share.lists.iter().zip(policies).enumerate() {
            let units = match (self.arithmetic, in_stages.take()) {
                (Some(shape), Some(kept)) => {
                    let bound = (&mut chain, &tensors);
                    let arithmetic = StageArithmetic::bind(manifest, shape, kept, bound, self.buffers)?;
                    vec![Unit::in_stages(shape.middle.clone(), arithmetic)]
                }
                _ => self.units(&chain, list, samples.get(index))?,
            };
            let samples = match samples.get(index) {
                Some(samples) => {
                    let run = (share.steps.len(), self.run.n_branches);
                    let policies = samples::policies(list, run, branch, self.run.batch)?;
                    Some(BranchSamples::bind(self.engine, policies, &units, samples.keeps, self.buffers)?)
                }
                None => None,
            };
            lists.push(ListState { policy, units, samples });
        }
        let prediction = &manifest.last.outputs[0]; // Manifest::parse has checked that there is one.
        let prediction = *tensors.get(prediction).ok_or_else(|| Error::internal("a branch without a prediction"))?;
        Ok(BranchState { branch, chain, prediction, lists })
    }

    /// What is decided on in one list of blocks, in one branch.
    fn units(&mut self, chain: &Chain, list: &List, samples: Option<&Samples>) -> Result<Vec<Unit>> {
        let mut units = Vec::new();
        for part in &list.parts {
            let Part::Unit { blocks, block } = part else { continue };
            let diff = match block {
                Some(_) => list.cache.block_diff_options().map(|diff| (diff, blocks.clone())),
                None => list.cache.diff_options().map(|diff| (diff, list.split.head.clone())),
            };
            let spec = UnitSpec {
                blocks: blocks.clone(),
                block: *block,
                diff,
                list,
                cache_dtype: self.run.options.cache_dtype,
                keeps: samples.map(|samples| samples.keeps),
            };
            units.push(Unit::bind(self.engine, chain, spec, self.buffers)?);
        }
        Ok(units)
    }
}

/// The noise that a stochastic scheduler adds: what is given, else what the pictures' generators give next.
fn noise(inputs: &Inputs, schedule: &Schedule, generators: Vec<Generator>, latents: &[i64]) -> Result<NoiseSource> {
    let Some(tensor) = inputs.tensors.get(NOISE) else { return Ok(NoiseSource::Drawn(generators)) };
    if !schedule.is_stochastic() {
        return Err(Error::usage(format!(
            "input `{NOISE}` has no effect: this model's scheduler adds none; leave it out"
        )));
    }
    let expected: Vec<usize> =
        [schedule.steps()].into_iter().chain(latents.iter().map(|extent| *extent as usize)).collect();
    if tensor.shape() != expected {
        return Err(Error::input(format!(
            "input `{NOISE}` has the shape {:?}; expected that of the latents for each step, {expected:?}",
            tensor.shape()
        )));
    }
    Ok(NoiseSource::Given(numbers(tensor)))
}

fn add(
    manifest: &Manifest,
    tensor: &str,
    extents: &Extents,
    named: &mut Named,
    buffers: &mut Buffers,
) -> Result<BufferId> {
    let id = buffers.add(manifest.tensor(tensor)?.dtype, &manifest.shape(tensor, extents)?)?;
    named.insert(tensor.to_owned(), id);
    Ok(id)
}
