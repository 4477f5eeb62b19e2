//! Makes a [`Request`]: everything that can be known before the first step is checked here, then allocated and bound.

use crate::request::engine_options::ArithmeticChoice;
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
use crate::cache::{Branch, PolicyConfig, StreamKind};
use crate::engine::{Loaded, LoadedPlan};
use crate::error::{Error, Result};
use crate::exit::enter;
use crate::model::manifest::{Extents, Manifest, Source};
use crate::plan::InStages;
use crate::request;
use crate::request::Asked;
use crate::request::inputs::{Inputs, LATENTS, NOISE, numbers};
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
    let Asked { guidance, given, batch, rows, grid, fps, schedule, shares, n_branches } =
        Asked::new(manifest, inputs, options, by)?;
    memory::check_room(&grid, batch)?;
    let smallest = if options.per_sample { 1 } else { rows };
    for rows in [smallest, rows] {
        engine.loader.check_extents(&grid.extents(rows))?;
    }
    decode::check_tiles(&engine, options, &grid)?;
    options.cache_place.check(&engine.device, &options.cache, manifest.blocks.len())?;
    let lists = &shares[0].lists; // All have the same lists; there is a step, so there is one.
    let cuts = lists::cuts(manifest, options, engine.arithmetic_choice)?;
    if engine.arithmetic_choice == ArithmeticChoice::Stages {
        let refuse = |why| Error::option("arithmetic", format!("is `stages`, but {why}; leave it out"));
        request::in_stages::of_request(manifest, options, lists).map_err(refuse)?;
    }
    let plain = engine.plan(&lists::cuts_of(manifest, &PolicyConfig::None, ArithmeticChoice::Auto)?);
    if options.cache_memory.is_some() {
        let given = given.iter().map(|(dim, (extent, _))| (dim.clone(), *extent)).collect();
        let extents = memory::extents(manifest, &grid, rows, given)?;
        memory::check(manifest, ([&engine.plan(&cuts), &plain], options), (&shares, n_branches), &extents)?;
    }
    let plans = engine.load_plans(&cuts, &options.cancel)?;
    let of_provider = engine.provider_warnings().map(Warning::Provider);
    let of_settings = shares::warnings(&shares, n_branches).into_iter().chain(guidance.warnings.iter().cloned());
    let mut warnings: Vec<Warning> = of_provider.chain(of_settings.map(Warning::Setting)).collect();
    if !lists.iter().any(|list| list.has_text(manifest)) && !options.cache.corrects(None, StreamKind::Encoder) {
        warnings.push(Warning::Setting(
            "enable_encoder_residual has no effect: the model has no stream of the text alone".into(),
        ));
    }

    let mut buffers = Buffers::new(&engine.device, options.cache_place.place())?;
    let mut timings = Timings::default();
    let start = Instant::now();
    let mut texts = conditioning::texts(&engine, inputs, &guidance, batch, &mut buffers)?;
    for branch in guidance.texts() {
        if let (Some(prompt), Some(encoder)) = (conditioning::prompt(&engine, inputs, branch), &engine.text) {
            let called = conditioning::called(branch);
            warnings.extend(encoder.warnings(called, prompt)?.into_iter().map(Warning::Setting));
        }
    }
    timings.text_ms = elapsed_ms(start);
    let extents = conditioning::extents(manifest, &grid, rows, given, &texts, &buffers)?;
    engine.loader.check_extents(&extents)?;

    let mut named = conditioning::shared(manifest, &grid, &extents, (guidance.embedded, fps), &mut buffers)?;
    for tensor in manifest.embed.outputs.iter().filter(|tensor| !manifest.streams.contains(tensor)) {
        add(manifest, tensor, &extents, &mut named, &mut buffers)?;
    }
    let pinned: Vec<usize> = lists.iter().flat_map(List::pinned).collect();
    let mut streams: Vec<Arc<Streams>> = Vec::new();
    for (index, plan) in plans.iter().enumerate() {
        // They are divided alike, unless another request divided the stages of one in the meantime.
        let same = plans[..index].iter().position(|other| other.plan == plan.plan);
        streams.push(match same {
            Some(other) => Arc::clone(&streams[other]),
            None => {
                let seen = plan.plan.seen();
                let pinned: Vec<usize> = pinned.iter().copied().filter(|cut| seen.contains(cut)).collect();
                Streams::allocate(manifest, (plan, &plain), (&extents, seen), &pinned, &mut buffers)?
            }
        });
    }

    let prediction = &manifest.last.outputs[0]; // Manifest::parse has checked that there is one.
    let mut predictions = HashMap::new();
    let mut of_branches = HashMap::new();
    for branch in guidance.branches() {
        let mut tensors = named.clone();
        tensors.extend(texts.remove(&branch).unwrap_or_default());
        predictions.insert(branch, add(manifest, prediction, &extents, &mut tensors, &mut buffers)?);
        of_branches.insert(branch, tensors);
    }
    let (mut experts, mut zeros) = (Vec::new(), Vec::new());
    for share in shares {
        let tensors = (&named, &of_branches, &streams[share.expert]);
        let of_plan = (&plans[share.expert], cuts.arithmetic.as_ref(), &extents);
        let run = (options, n_branches, batch);
        experts.push(bind(&engine, share, of_plan, tensors, run, (&mut zeros, &mut buffers))?);
    }

    let input = |source: Source| manifest.input_from(&source).and_then(|name| named.get(name)).copied();
    let model_latents = input(Source::Latents).ok_or_else(|| Error::internal("no latents"))?; // Manifest::parse has checked.
    let combine = if by == GuidanceBy::Library { guidance.cfg } else { None };
    let combine =
        combine.map(|cfg| Combine::bind(&engine, cfg, &predictions, model_latents, &grid, batch, &mut buffers));
    let combine = combine.transpose()?;
    let (latents, prediction) = match &combine {
        Some(combine) => (combine.latents, combine.prediction),
        None => (model_latents, predictions[&Branch::Cond]),
    };
    let mut generators: Vec<Generator> =
        (0..batch).map(|k| Generator::new(options.seed.wrapping_add(k as u64))).collect();
    match inputs.tensors.get(LATENTS) {
        Some(tensor) => buffers.write(latents, &numbers(tensor))?,
        None => buffers.write(latents, &grid.noise(&mut generators))?,
    }
    let noise = noise(inputs, &schedule, generators, buffers.shape(latents))?;
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
        cfg: guidance.cfg.filter(|_| by == GuidanceBy::Library),
        warnings,
        timings,
        read_bytes: None,
        engine,
    })
}

/// One transformer: its blocks in each branch, bound, and what is decided on. `of_branches` has the tensors that are no
/// streams by branch, `named` those that all branches share.
fn bind(
    engine: &Loaded,
    share: Share,
    (plan, arithmetic, extents): (&Arc<LoadedPlan>, Option<&InStages>, &Extents),
    (named, of_branches, streams): (&Named, &HashMap<Branch, Named>, &Arc<Streams>),
    (options, n_branches, batch): (&RequestOptions, usize, usize),
    (zeros, buffers): (&mut Vec<BufferId>, &mut Buffers),
) -> Result<Expert> {
    let manifest = &engine.directory.manifest;
    let steps = share.steps.len();
    let mut samples = Vec::new();
    for list in share.lists.iter().filter(|_| options.per_sample) {
        samples.push(Samples::new(engine, plan, extents, (named, &list.split.middle), buffers)?);
    }
    let policies = |list: &List| list.cache.policies(list.run(steps, n_branches));
    let mut policies = share.lists.iter().map(policies).collect::<Result<Vec<_>>>()?;
    let order: Vec<Branch> = policies.iter().take(1).flatten().map(|(branch, _)| *branch).collect();
    let mut branches = Vec::new();
    for branch in order {
        let of_branch = of_branches.get(&branch).ok_or_else(|| Error::internal("a branch without its tensors"))?;
        let mut tensors = of_branch.clone();
        let in_stages = |shape: &InStages| {
            let rest = (&mut tensors, &mut *buffers);
            StageArithmetic::allocate(manifest, (shape, extents), streams, zeros, rest)
        };
        let mut in_stages = arithmetic.map(in_stages).transpose()?;
        let mut chain = Chain::bind(manifest, plan, streams, &tensors, buffers)?;
        let mut of_lists = Vec::new();
        for (index, list) in share.lists.iter().enumerate() {
            let units = match (arithmetic, in_stages.take()) {
                (Some(shape), Some(kept)) => {
                    let arithmetic = StageArithmetic::bind(manifest, shape, kept, (&mut chain, &tensors), buffers)?;
                    vec![Unit::in_stages(shape.middle.clone(), arithmetic)]
                }
                _ => units(engine, &chain, list, options, samples.get(index), buffers)?,
            };
            let of_samples = match samples.get(index) {
                Some(samples) => {
                    let policies = samples::policies(list, (steps, n_branches), branch, batch)?;
                    Some(BranchSamples::bind(engine, policies, &units, samples.keeps, buffers)?)
                }
                None => None,
            };
            // All lists have the same branches in the same order.
            let (_, policy) = policies[index].remove(0);
            of_lists.push(ListState { policy, units, samples: of_samples });
        }
        let prediction = &manifest.last.outputs[0]; // Manifest::parse has checked that there is one.
        let prediction = *tensors.get(prediction).ok_or_else(|| Error::internal("a branch without a prediction"))?;
        branches.push(BranchState { branch, chain, prediction, lists: of_lists });
    }
    Ok(Expert { share, branches, samples })
}

/// What is decided on in one list of blocks, in one branch.
fn units(
    engine: &Loaded,
    chain: &Chain,
    list: &List,
    options: &RequestOptions,
    samples: Option<&Samples>,
    buffers: &mut Buffers,
) -> Result<Vec<Unit>> {
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
            cache_dtype: options.cache_dtype,
            keeps: samples.map(|samples| samples.keeps),
        };
        units.push(Unit::bind(engine, chain, spec, buffers)?);
    }
    Ok(units)
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
