//! Makes a [`Request`]: everything that can be known before the first step is checked here, then allocated and bound.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::branch::{BranchState, ListState};
use super::chain::{Chain, Named, Streams};
use super::combine::Combine;
use super::conditioning::{self, numbers};
use super::decode;
use super::denoiser::GuidanceBy;
use super::expert::{self, Expert, Share};
use super::guidance::Guidance;
use super::in_stages::{self, StageArithmetic};
use super::inputs::{Inputs, LATENTS, NOISE, SIGMAS};
use super::latents::Grid;
use super::lists::{self, List, Part};
use super::memory;
use super::noise::Generator;
use super::request::{Request, RequestOptions, elapsed_ms};
use super::sampler::{NoiseSource, Sampler};
use super::samples::{self, BranchSamples, Samples};
use super::scheduler::Schedule;
use super::unit::{Unit, UnitSpec};
use crate::cache::{Branch, PolicyConfig, StreamKind};
use crate::engine::{ArithmeticChoice, Loaded, LoadedPlan};
use crate::error::{Error, Result};
use crate::exit::enter;
use crate::model::manifest::{Axis, Extents, Manifest, SchedulerSpec, Source};
use crate::plan::InStages;
use crate::runtime::tensor::{BufferId, Buffers};
use crate::trace::{Timings, Warning};

/// Frames per second that no video has: fewer do not fit into the formats, which hold how long a frame is seen.
const MIN_FPS: f64 = 0.01;
/// Frames per second that no video has.
const MAX_FPS: f64 = 1000.0;
/// More pictures in one request than any machine holds.
const MAX_BATCH: usize = 4096;

/// What a request asks for, as far as the manifest alone can answer.
struct Asked {
    guidance: Guidance,
    /// Extents that come from tensors of the caller, each with the name of one.
    given: BTreeMap<String, (u64, String)>,
    batch: usize,
    rows: usize,
    grid: Grid,
    fps: f64,
    schedule: Schedule,
    shares: Vec<Share>,
    n_branches: usize,
}

/// Refuses what the manifest alone shows to be impossible, or to have no effect.
///
/// # Errors
/// As [`request`], but for what needs a loaded engine.
pub(crate) fn check(manifest: &Manifest, inputs: &Inputs, options: &RequestOptions, by: GuidanceBy) -> Result<()> {
    asked(manifest, inputs, options, by).map(|_| ())
}

fn asked(manifest: &Manifest, inputs: &Inputs, options: &RequestOptions, by: GuidanceBy) -> Result<Asked> {
    let guidance = Guidance::by(by, manifest, inputs, options)?;
    inputs.check(manifest, guidance.cfg.is_some())?;
    let given = inputs.extents(manifest)?;
    let batch = batch(options.batch, &given)?;
    let rows = guidance.rows(batch);
    let grid = grid(manifest, options)?;
    let fps = fps(manifest, options)?;
    let schedule = schedule(manifest, inputs, options.steps, &grid)?;
    let n_branches = guidance.branches().len();
    let shares = expert::shares(manifest, &options.cache, &schedule).map_err(|error| error.about("cache"))?;
    expert::check(&shares, n_branches).map_err(|error| error.about("cache"))?;
    options.cache_dtype.check(manifest, &options.cache)?;
    check_effects(manifest, options)?;
    decode::check(manifest, options, &grid, batch)?;
    samples::check(options, manifest, batch)?;
    if options.per_sample && guidance.is_fused() {
        return Err(Error::option(
            "per-sample",
            "does not go with this model's guidance, whose two branches are one batch; leave it out, or give a \
             --guidance of 0",
        ));
    }
    Ok(Asked { guidance, given, batch, rows, grid, fps, schedule, shares, n_branches })
}

pub(super) fn request(
    engine: Arc<Loaded>,
    inputs: &Inputs,
    options: &RequestOptions,
    by: GuidanceBy,
) -> Result<Request> {
    let _inside = enter()?;
    let manifest = &engine.directory.manifest;
    let Asked { guidance, given, batch, rows, grid, fps, schedule, shares, n_branches } =
        asked(manifest, inputs, options, by)?;
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
        in_stages::of_request(manifest, options, lists).map_err(refuse)?;
    }
    let plain = engine.plan(&lists::cuts_of(manifest, &PolicyConfig::None, ArithmeticChoice::Auto)?);
    if options.cache_memory.is_some() {
        let given = given.iter().map(|(dim, (extent, _))| (dim.clone(), *extent)).collect();
        let extents = memory::extents(manifest, &grid, rows, given)?;
        memory::check(manifest, ([&engine.plan(&cuts), &plain], options), (&shares, n_branches), &extents)?;
    }
    let plans = engine.load_plans(&cuts, &options.cancel)?;
    let of_provider = engine.provider_warnings().map(Warning::Provider);
    let of_settings = expert::warnings(&shares, n_branches).into_iter().chain(guidance.warnings.iter().cloned());
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

/// Refuses what this model makes meaningless.
fn check_effects(manifest: &Manifest, options: &RequestOptions) -> Result<()> {
    let compared = [options.cache.diff_options(), options.cache.block_diff_options()].into_iter().flatten();
    let stream = manifest.tensor(&manifest.streams[0])?; // Manifest::parse has checked that there is one.
    let Some(Axis::Fixed(channels)) = stream.shape.last() else { return Ok(()) };
    match compared.map(|diff| diff.downsample_factor).find(|factor| *factor as u64 > *channels) {
        Some(factor) => Err(Error::usage(format!(
            "downsample_factor is {factor}, but the compared stream has {channels} channels; use a smaller one"
        ))),
        None => Ok(()),
    }
}

pub(super) fn batch(asked: Option<usize>, given: &BTreeMap<String, (u64, String)>) -> Result<usize> {
    let by_tensor = given.get("batch").map(|(extent, by)| (*extent as usize, by));
    let batch = match (asked, by_tensor) {
        (Some(asked), Some((extent, by))) if asked != extent => {
            return Err(Error::usage(format!("the batch is {asked}, but input `{by}` holds {extent}; leave one out"))
                .about("batch"));
        }
        (Some(batch), _) | (None, Some((batch, _))) => batch,
        (None, None) => 1,
    };
    if !(1..=MAX_BATCH).contains(&batch) {
        return Err(Error::option("batch", format_args!("is {batch}; expected 1 to {MAX_BATCH}")));
    }
    Ok(batch)
}

pub(crate) fn grid(manifest: &Manifest, options: &RequestOptions) -> Result<Grid> {
    let size = manifest.size;
    let (width, height) = options.size.unwrap_or((size.default[0], size.default[1]));
    for side in [width, height] {
        if !(size.min..=size.max).contains(&side) || side % size.multiple_of != 0 {
            return Err(Error::input(format!(
                "--size is {width}x{height}; this model makes sides of {} to {} pixels that are multiples of {}",
                size.min, size.max, size.multiple_of
            ))
            .about("size"));
        }
    }
    let Some(video) = manifest.video else {
        return match options.frames {
            Some(_) => {
                Err(Error::option("frames", "has no effect: this model makes pictures, not video; leave it out"))
            }
            None => Ok(Grid::new(manifest.latents, None, width, height)),
        };
    };
    let (range, step) = (video.frames, video.temporal_downscale);
    let frames = options.frames.unwrap_or(range.default);
    if !(range.min..=range.max).contains(&frames) || !(frames - 1).is_multiple_of(step) {
        return Err(Error::input(format!(
            "--frames is {frames}; this model makes {} to {} frames, a multiple of {step} and one more",
            range.min, range.max
        ))
        .about("frames"));
    }
    Ok(Grid::new(manifest.latents, Some((video, frames)), width, height))
}

/// Frames per second of a video; of no meaning for pictures.
fn fps(manifest: &Manifest, options: &RequestOptions) -> Result<f64> {
    match (manifest.video, options.fps) {
        (None, Some(_)) => {
            Err(Error::option("fps", "has no effect: this model makes pictures, not video; leave it out"))
        }
        (_, Some(fps)) if !(MIN_FPS..=MAX_FPS).contains(&fps) => {
            Err(Error::option("fps", format_args!("is {fps}; expected {MIN_FPS} to {MAX_FPS}")))
        }
        (video, fps) => Ok(fps.or(video.map(|video| video.fps)).unwrap_or(1.0)),
    }
}

pub(super) fn schedule(manifest: &Manifest, inputs: &Inputs, asked: Option<usize>, grid: &Grid) -> Result<Schedule> {
    let inverted = matches!(manifest.scheduler, SchedulerSpec::FlowMatchEuler { inverted: true, .. });
    let Some(tensor) = inputs.tensors.get(SIGMAS) else {
        let steps = asked.unwrap_or(manifest.defaults.steps as usize);
        return Schedule::new(&manifest.scheduler, manifest.prediction, steps, grid.tokens() as u64);
    };
    if inverted || !matches!(manifest.scheduler, SchedulerSpec::FlowMatchEuler { .. }) {
        return Err(Error::input(format!(
            "input `{SIGMAS}` does not fit this model's scheduler, which has its own; leave it out and give --steps"
        )));
    }
    let sigmas = numbers(tensor);
    let steps = sigmas.len().saturating_sub(1);
    if let Some(asked) = asked
        && asked != steps
    {
        return Err(Error::option(
            "steps",
            format_args!("is {asked}, but input `{SIGMAS}` holds {steps} steps; leave one out"),
        ));
    }
    let falls = sigmas.windows(2).all(|pair| pair[0] > pair[1]);
    if tensor.ndim() != 1 || steps == 0 || !falls || sigmas.last().is_some_and(|last| *last < 0.0) || sigmas[0] > 1e4 {
        return Err(Error::input(format!(
            "input `{SIGMAS}` must be one row of at least two numbers that fall to 0 or more"
        )));
    }
    Ok(Schedule::euler(sigmas, &manifest.scheduler, manifest.prediction))
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
