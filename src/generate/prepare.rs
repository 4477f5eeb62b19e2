//! Makes a [`Request`]: everything that can be known before the first step is checked here, then allocated and bound.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use ndarray::ArrayD;

use super::branch::BranchState;
use super::chain::{Chain, Named, Streams};
use super::denoiser::GuidanceBy;
use super::inputs::{Inputs, LATENTS, NEGATIVE, SIGMAS};
use super::latents::Grid;
use super::memory;
use super::request::{Part, Request, RequestOptions, elapsed_ms};
use super::samples::{self, BranchSamples, Samples};
use super::scheduler::Schedule;
use super::unit::{Unit, UnitSpec};
use crate::cache::{BlocksSplit, Branch, DiffTensor, PolicyConfig, RunShape, StreamKind};
use crate::engine::Loaded;
use crate::error::{Error, Result};
use crate::model::graph::ports;
use crate::model::manifest::{Axis, DType, Extents, GuidanceKind, Manifest, Source};
use crate::plan::Cuts;
use crate::runtime::tensor::{BufferId, Buffers, Place};
use crate::trace::{Timings, Warning};

/// More pictures in one request than any machine holds.
const MAX_BATCH: usize = 4096;

/// Beyond this a guidance scale is a typing error: published pipelines use 1 to 20, and latents of unit size overflow
/// nothing below it.
const MAX_GUIDANCE: f32 = 1000.0;

pub(super) fn request(
    engine: Arc<Loaded>,
    inputs: &Inputs,
    options: &RequestOptions,
    by: GuidanceBy,
) -> Result<Request> {
    let manifest = &engine.directory.manifest;
    let guidance = Guidance::by(by, manifest, options)?;
    inputs.check(manifest, guidance.cfg.is_some())?;
    let given = inputs.extents(manifest)?;
    let batch = batch(options.batch, &given)?;
    let grid = grid(manifest, options.size)?;
    let smallest = if options.per_sample { 1 } else { batch };
    for batch in [smallest, batch] {
        engine.loader.check_extents(&grid.extents(batch))?;
    }
    let schedule = schedule(manifest, inputs, options.steps, &grid)?;
    let blocks = manifest.blocks.len();
    let run = RunShape { n_blocks: blocks, steps: schedule.steps(), branches: guidance.branches().len() };
    options.cache.validate(run).map_err(|error| error.about("cache"))?;
    options.cache_dtype.check(manifest, &options.cache)?;
    check_effects(manifest, options)?;
    samples::check(options, manifest, batch)?;
    let split = options.cache.blocks_split(blocks)?;
    let parts = parts(&options.cache, &split, blocks);
    let cuts = cuts(&options.cache, blocks)?;
    if let Some(limit) = options.cache_memory {
        let given = given.iter().map(|(dim, (extent, _))| (dim.clone(), *extent)).collect();
        let extents = memory::extents(manifest, &grid, batch, given)?;
        memory::check(manifest, (&engine.plan(&cuts), options), run, &extents, limit)?;
    }
    let plan = engine.load_plan(&cuts)?;
    let of_provider = engine.provider_warnings().map(Warning::Provider);
    let of_cache = options.cache.warnings(run).into_iter().map(Warning::Setting);
    let mut warnings: Vec<Warning> = of_provider.chain(of_cache).collect();
    if manifest.streams.len() == 1 && !options.cache.corrects(None, StreamKind::Encoder) {
        warnings.push(Warning::Setting("enable_encoder_residual has no effect: the model has no text stream".into()));
    }

    let mut buffers = Buffers::new(&engine.device)?;
    let mut timings = Timings::default();
    let start = Instant::now();
    let mut texts: HashMap<Branch, Named> = HashMap::new();
    for branch in guidance.branches() {
        texts.insert(branch, text(&engine, inputs, branch, batch, &mut buffers)?);
        if let (Some(prompt), Some(encoder)) = (prompt(&engine, inputs, branch), &engine.text) {
            warnings.extend(encoder.warnings(prompt)?.into_iter().map(Warning::Setting));
        }
    }
    timings.text_ms = elapsed_ms(start);
    let extents = extents(manifest, &grid, batch, given, &texts, &buffers)?;
    engine.loader.check_extents(&extents)?;

    let mut named = Named::new();
    shared_inputs(manifest, &grid, &extents, guidance.embedded, &mut named, &mut buffers)?;
    for tensor in manifest.embed.outputs.iter().filter(|tensor| !manifest.streams.contains(tensor)) {
        add(manifest, tensor, &extents, &mut named, &mut buffers)?;
    }
    let (seen, pinned) = (plan.plan.seen(), pinned(&options.cache, &split));
    let streams = Streams::allocate(manifest, &plan, (&extents, seen), &pinned, &mut buffers)?;

    let samples = || Samples::new(&engine, &plan, &extents, (&named, &split.middle), &mut buffers);
    let samples = options.per_sample.then(samples).transpose()?;
    let of_samples = || samples::policies(&options.cache, run, batch);
    let mut of_samples = options.per_sample.then(of_samples).transpose()?.unwrap_or_default();

    let prediction = &manifest.last.outputs[0]; // Manifest::parse has checked that there is one.
    let mut branches = Vec::new();
    let mut predictions = HashMap::new();
    for (branch, policy) in options.cache.policies(run)? {
        let mut tensors = named.clone();
        tensors.extend(texts.remove(&branch).unwrap_or_default());
        let prediction = add(manifest, prediction, &extents, &mut tensors, &mut buffers)?;
        predictions.insert(branch, prediction);
        let chain = Chain::bind(manifest, &plan, &streams, &tensors, &mut buffers)?;
        let mut units = Vec::new();
        for part in &parts {
            if let Part::Unit { blocks, block } = part {
                let diff = match block {
                    Some(_) => options.cache.block_diff_options().map(|diff| (diff, blocks.clone())),
                    None => options.cache.diff_options().map(|diff| (diff, split.head.clone())),
                };
                let spec = UnitSpec {
                    blocks: blocks.clone(),
                    block: *block,
                    diff,
                    cache: &options.cache,
                    cache_dtype: options.cache_dtype,
                    keeps: samples.as_ref().map(|samples| samples.keeps),
                };
                units.push(Unit::bind(&engine, &chain, spec, &mut buffers)?);
            }
        }
        let of_branch = match &samples {
            Some(samples) => {
                let policies = of_samples.remove(&branch).unwrap_or_default();
                Some(BranchSamples::bind(&engine, policies, &units, samples.keeps, &mut buffers)?)
            }
            None => None,
        };
        branches.push(BranchState { branch, policy, chain, prediction, units, samples: of_branch });
    }

    let latents = named[manifest.input_from(Source::Latents).unwrap_or_default()]; // Checked by Manifest::parse.
    let sigma = named[manifest.input_from(Source::Sigma).unwrap_or_default()];
    match inputs.tensors.get(LATENTS) {
        Some(tensor) => buffers.write(latents, &numbers(tensor))?,
        None => buffers.write(latents, &grid.noise(options.seed, batch))?,
    }
    let (keep, take) = (buffers.add_at(Place::Host, DType::F32, &[1])?, buffers.add_at(Place::Host, DType::F32, &[1])?);
    let cond = predictions[&Branch::Cond];
    let guide = match (predictions.get(&Branch::Uncond), guidance.cfg) {
        (Some(uncond), Some(scale)) if by == GuidanceBy::Library => {
            let scale_id = buffers.add_at(Place::Host, DType::F32, &[1])?;
            buffers.write(scale_id, &[scale])?;
            Some(engine.latents.bind_guide(&mut buffers, cond, *uncond, scale_id, cond)?)
        }
        _ => None,
    };
    let update = engine.latents.bind_update(&mut buffers, latents, cond, keep, take)?;
    Ok(Request {
        options: options.clone(),
        buffers,
        grid,
        extents,
        schedule,
        parts,
        streams,
        named,
        branches,
        samples,
        latents,
        prediction: cond,
        decoder: None,
        done: 0,
        sigma,
        keep,
        take,
        guide,
        update,
        guidance: guidance.embedded,
        cfg: guidance.cfg.filter(|_| by == GuidanceBy::Library),
        warnings,
        timings,
        read_bytes: None,
        engine,
    })
}

/// The cuts whose streams must outlive the blocks after them: what the middle starts from, and what its residual or that of
/// the head is formed with.
pub(super) fn pinned(cache: &PolicyConfig, split: &BlocksSplit) -> Vec<usize> {
    let of_head = cache.diff_options().is_some_and(|diff| diff.tensor == DiffTensor::HeadResidual);
    match (cache.reuses_middle(), of_head) {
        (false, _) => Vec::new(),
        (true, false) => vec![split.head.end],
        (true, true) => vec![split.head.start, split.head.end],
    }
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

/// What a policy wants to see: the stages of its plan end where its ranges do.
///
/// # Errors
/// `Usage` for a policy that does not fit a model of so many blocks.
pub(crate) fn cuts(cache: &PolicyConfig, blocks: usize) -> Result<Cuts> {
    let split = cache.blocks_split(blocks).map_err(|error| error.about("cache"))?;
    let (parts, pinned) = (parts(cache, &split, blocks), pinned(cache, &split));
    Ok(Cuts {
        ranges: parts.iter().map(|part| part.blocks().clone()).filter(|range| !range.is_empty()).collect(),
        sees_start: pinned.contains(&0) || parts.first().is_some_and(Part::is_unit),
        sees_end: pinned.contains(&blocks) || parts.last().is_some_and(Part::is_unit),
    })
}

/// The blocks in order: those that always run, and those that are decided on.
fn parts(cache: &PolicyConfig, split: &BlocksSplit, blocks: usize) -> Vec<Part> {
    let singles = cache.single_blocks(blocks);
    let mut parts = Vec::new();
    let mut next = 0;
    let mut units: Vec<(Range<usize>, Option<usize>)> =
        singles.into_iter().map(|block| (block..block + 1, Some(block))).collect();
    if cache.reuses_middle() {
        units.push((split.middle.clone(), None));
    }
    units.sort_by_key(|(range, block)| (range.start, block.is_some()));
    for (range, block) in units {
        if next < range.start {
            parts.push(Part::Run(next..range.start));
        }
        next = range.end;
        parts.push(Part::Unit { blocks: range, block });
    }
    if next < blocks {
        parts.push(Part::Run(next..blocks));
    }
    parts
}

/// The scale that the model takes as an input, and the one that two branches are combined with.
pub(super) struct Guidance {
    embedded: Option<f32>,
    cfg: Option<f32>,
}

impl Guidance {
    /// With a scale to combine the branches by, or with both branches for a host that combines them.
    fn by(by: GuidanceBy, manifest: &Manifest, options: &RequestOptions) -> Result<Self> {
        if by == GuidanceBy::Library {
            return Self::new(manifest, options);
        }
        let is_classifier_free = manifest.guidance.kind == GuidanceKind::ClassifierFree;
        let idle = if is_classifier_free { ("guidance", options.guidance) } else { ("true-cfg", options.true_cfg) };
        if let (name, Some(_)) = idle {
            return Err(Error::option(name, "has no effect: the host combines the branches; leave it out"));
        }
        let scale = (!is_classifier_free).then_some(options.guidance).flatten();
        // Any scale but 1 asks for both branches; it is not used.
        let both = if is_classifier_free { (Some(0.0), None) } else { (scale, Some(0.0)) };
        Self::new(manifest, &RequestOptions { guidance: both.0, true_cfg: both.1, ..options.clone() })
    }

    pub(super) fn new(manifest: &Manifest, options: &RequestOptions) -> Result<Self> {
        for (name, scale) in [("guidance", options.guidance), ("true-cfg", options.true_cfg)] {
            if let Some(scale) = scale
                && !(-MAX_GUIDANCE..=MAX_GUIDANCE).contains(&scale)
            {
                let expected = format_args!("is {scale}; expected a number from -{MAX_GUIDANCE} to {MAX_GUIDANCE}");
                return Err(Error::option(name, expected));
            }
        }
        let kind = manifest.guidance.kind;
        if kind == GuidanceKind::None && options.guidance.is_some() {
            return Err(Error::option("guidance", "has no effect: this model has no guidance; leave it out"));
        }
        if kind == GuidanceKind::ClassifierFree && options.true_cfg.is_some() {
            return Err(Error::option(
                "true-cfg",
                "has no effect: the guidance of this model is classifier-free; use --guidance",
            ));
        }
        let scale = options.guidance.unwrap_or(manifest.guidance.default as f32);
        let cfg = if kind == GuidanceKind::ClassifierFree { Some(scale) } else { options.true_cfg };
        let embedded = (kind == GuidanceKind::Embedded).then_some(scale);
        // With a scale of 1 the uncond branch cancels out.
        Ok(Self { embedded, cfg: cfg.filter(|scale| *scale != 1.0) })
    }

    pub(super) fn branches(&self) -> Vec<Branch> {
        if self.cfg.is_some() { vec![Branch::Cond, Branch::Uncond] } else { vec![Branch::Cond] }
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

pub(crate) fn grid(manifest: &Manifest, asked: Option<(u64, u64)>) -> Result<Grid> {
    let size = manifest.size;
    let (width, height) = asked.unwrap_or((size.default[0], size.default[1]));
    for side in [width, height] {
        if !(size.min..=size.max).contains(&side) || side % size.multiple_of != 0 {
            return Err(Error::input(format!(
                "--size is {width}x{height}; this model makes sides of {} to {} pixels that are multiples of {}",
                size.min, size.max, size.multiple_of
            ))
            .about("size"));
        }
    }
    Ok(Grid::new(manifest.latents, width, height))
}

pub(super) fn schedule(manifest: &Manifest, inputs: &Inputs, asked: Option<usize>, grid: &Grid) -> Result<Schedule> {
    let Some(tensor) = inputs.tensors.get(SIGMAS) else {
        let steps = asked.unwrap_or(manifest.defaults.steps as usize);
        let schedule = Schedule::new(manifest.scheduler, steps, grid.tokens() as u64)?;
        // A shift that fits one picture size can be impossible for another.
        let falls = schedule.sigmas.windows(2).all(|pair| pair[0] >= pair[1]);
        if !falls || !(0.0..=1.0).contains(&schedule.sigmas[0]) {
            return Err(Error::directory(format!(
                "the scheduler's sigmas do not fall from 1 to 0 at this size: {:?} …",
                &schedule.sigmas[..2]
            )));
        }
        return Ok(schedule);
    };
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
    Ok(Schedule { sigmas })
}

/// What the text graphs read for one branch.
fn prompt<'a>(engine: &'a Loaded, inputs: &'a Inputs, branch: Branch) -> Option<&'a str> {
    match branch {
        Branch::Cond => inputs.prompt.as_deref(),
        Branch::Uncond => {
            inputs.negative_prompt.as_deref().or_else(|| engine.text.as_ref().map(|text| text.unconditional()))
        }
    }
}

/// The text inputs of one branch: tensors that were given, else what the text graphs make of the prompt.
fn text(engine: &Loaded, inputs: &Inputs, branch: Branch, batch: usize, buffers: &mut Buffers) -> Result<Named> {
    let manifest = &engine.directory.manifest;
    let mut named = Named::new();
    if let (Some(prompt), Some(encoder)) = (prompt(engine, inputs, branch), &engine.text) {
        let names: Vec<String> = encoder.outputs().map(str::to_owned).collect();
        let (_, ports) = ports(manifest, &[], &names)?;
        named.extend(encoder.encode(&vec![prompt.to_owned(); batch], &ports, buffers)?);
    }
    for (name, _) in manifest.inputs.iter().filter(|(_, input)| input.from == Source::Text) {
        let key = if branch == Branch::Uncond { format!("{NEGATIVE}{name}") } else { name.clone() };
        if let Some(tensor) = inputs.tensors.get(&key) {
            let shape: Vec<i64> = tensor.shape().iter().map(|extent| *extent as i64).collect();
            let dtype = manifest.tensor(name)?.dtype;
            if dtype == DType::I64 {
                return Err(Error::input(format!(
                    "`{name}` holds integers, which only a prompt can give; leave it out"
                )));
            }
            let id = buffers.add(dtype, &shape)?;
            buffers.write(id, &numbers(tensor))?;
            named.insert(name.clone(), id);
        }
        if !named.contains_key(name) {
            return Err(Error::input(format!("no `{key}`; give it with --inputs")));
        }
    }
    Ok(named)
}

/// All dimensions of the request: from the picture's size, the batch, and the text.
fn extents(
    manifest: &Manifest,
    grid: &Grid,
    batch: usize,
    given: BTreeMap<String, (u64, String)>,
    texts: &HashMap<Branch, Named>,
    buffers: &Buffers,
) -> Result<Extents> {
    let mut extents = grid.extents(batch);
    for (dim, (extent, by)) in given {
        match extents.get(&dim) {
            Some(known) if *known != extent => {
                return Err(Error::input(format!(
                    "input `{by}` has {extent} along `{dim}`, but the picture's size makes it {known}; give the --size that fits"
                )));
            }
            _ => extents.insert(dim, extent),
        };
    }
    for named in texts.values() {
        for (name, id) in named {
            for (axis, extent) in manifest.tensor(name)?.shape.iter().zip(buffers.shape(*id)) {
                if let Axis::Named(dim) = axis {
                    let extent = *extent as u64;
                    if let Some(known) = extents.insert(dim.clone(), extent)
                        && known != extent
                    {
                        return Err(Error::input(format!(
                            "`{name}` has {extent} along `{dim}` where another tensor has {known}"
                        )));
                    }
                }
            }
        }
    }
    manifest.complete(extents)
}

/// The inputs of embed that both branches share, with the values that never change already written.
fn shared_inputs(
    manifest: &Manifest,
    grid: &Grid,
    extents: &Extents,
    guidance: Option<f32>,
    named: &mut Named,
    buffers: &mut Buffers,
) -> Result<()> {
    for (name, input) in manifest.inputs.iter().filter(|(_, input)| input.from != Source::Text) {
        let id = add(manifest, name, extents, named, buffers)?;
        match input.from {
            Source::Guidance => {
                let batch = buffers.shape(id).iter().product::<i64>() as usize;
                buffers.write(id, &vec![guidance.unwrap_or_default(); batch])?;
            }
            Source::Grid => buffers.write(id, &grid.positions())?,
            // Tensors begin as zeros; latents and sigma are written later.
            Source::Zeros | Source::Latents | Source::Sigma | Source::Text => {}
        }
    }
    Ok(())
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

fn numbers(tensor: &ArrayD<f32>) -> Vec<f32> {
    tensor.iter().copied().collect()
}
