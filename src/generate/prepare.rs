//! Makes a [`Request`]: everything that can be known before the first step is checked here, then allocated and bound.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::binder::Binder;
use super::blocks::{Blocks, RequestShape};
use super::chain::{Named, Streams, StreamsSpec};
use super::combine::{Combine, CombineSpec};
use super::conditioning::{self, Fixed};
use super::decoder::check_tiles;
use super::expert::Expert;
use super::meter::elapsed_ms;
use super::parallel;
use super::prompts;
use super::request::Request;
use super::sampler::{NoiseSource, Sampler, SamplerSpec};
use crate::cache::{Branch, PolicyConfig, StreamKind};
use crate::engine::{Engine, LoadedEngine, LoadedPlan};
use crate::error::{Error, Result};
use crate::exit::enter;
use crate::model::manifest::{Extents, Source};
use crate::plan::{InStages, Plan};
use crate::request;
use crate::request::Asked;
use crate::request::cuts;
use crate::request::engine_options::ArithmeticChoice;
use crate::request::guidance::{Cfg, Guidance};
use crate::request::inputs::{Inputs, LATENTS, NOISE, numbers};
use crate::request::lists::List;
use crate::request::memory::{self, Footprint};
use crate::request::noise::Generator;
use crate::request::options::{GuidanceBy, RequestOptions};
use crate::request::scheduler::Schedule;
use crate::request::shares::{self, Share};
use crate::runtime::tensor::{BufferId, Buffers};
use crate::trace::{CacheBytes, Timings, Warning};

impl Engine {
    /// Prepares one generation: checks inputs and options, encodes the prompt, allocates and binds every tensor.
    ///
    /// # Errors
    /// `Input` when a prompt, tensor or size does not fit; `Usage` when an option is impossible or without effect.
    pub fn request(&self, inputs: &Inputs, options: &RequestOptions) -> Result<Request> {
        request(self.loaded(), inputs, options, GuidanceBy::Library)
    }

    /// What the policy of a request with these options will keep on the device, at most: known before anything is
    /// allocated. `text_length` is the number of text tokens; left out, it is that of the engine's tokenizer, or the
    /// largest that a model without one takes.
    ///
    /// # Errors
    /// As [`request`](Self::request); `Usage` for a `text_length` that a tokenizer fixes.
    pub fn cache_bytes(&self, options: &RequestOptions, text_length: Option<u64>) -> Result<CacheBytes> {
        let engine = self.loaded();
        let manifest = &engine.directory.manifest;
        let cuts = cuts::of_request(manifest, options, engine.arithmetic_choice)?;
        let plain = cuts::of_policy(manifest, &PolicyConfig::None, ArithmeticChoice::Auto)?;
        memory::of_options(manifest, &engine.plan(&cuts), &engine.plan(&plain), options, text_length)
    }
}

/// Prepares one generation, in which guidance combines the branches as `by` says.
pub(super) fn request(
    engine: Arc<LoadedEngine>,
    inputs: &Inputs,
    options: &RequestOptions,
    by: GuidanceBy,
) -> Result<Request> {
    let _inside = enter()?;
    let manifest = &engine.directory.manifest;
    let preparation = Preparation { engine: &engine, inputs, options };
    if let Some(parallel) = &engine.context_parallel {
        parallel::agree(parallel, inputs, options)?;
    }
    let mut asked = Asked::new(manifest, inputs, options, by)?;
    if engine.context_parallel.is_some() {
        parallel::check(&asked)?;
    }
    let cut = preparation.cut(&asked)?;
    let mut warnings = preparation.warnings(&asked);

    let mut buffers = Buffers::new(&engine.memory, options.cache_place.place())?;
    let mut timings = Timings::default();
    let start = Instant::now();
    let texts = conditioning::texts(&engine, inputs, &asked.guidance, asked.batch, &mut buffers)?;
    warnings.extend(preparation.warnings_of_prompts(&asked)?);
    timings.text_ms = elapsed_ms(start);
    let shares = std::mem::take(&mut asked.shares);
    let BoundBlocks { extents, named, streams, experts, zeros, predictions } =
        preparation.blocks(&asked, shares, &cut, texts, &mut buffers)?;
    let cfg = asked.guidance.cfg.filter(|_| by == GuidanceBy::Library);
    let Ends { latents, prediction, combine, sampler } =
        preparation.ends(&asked, cfg, &named, &predictions, &mut buffers)?;
    let input = |source: Source| manifest.input_from(&source).and_then(|name| named.get(name)).copied();
    let (sigma, timestep) = (input(Source::Sigma), input(Source::Timestep));
    let Asked { guidance, batch, grid, fps, schedule, .. } = asked;
    Ok(Request {
        options: options.clone(),
        buffers,
        extents: Extents::from_iter([extents, grid.extents(batch)].into_iter().flatten()),
        grid,
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

/// The blocks of a request, bound, and the tensors that they flow through.
struct BoundBlocks {
    extents: Extents,
    named: Named,
    /// Of each transformer.
    streams: Vec<Arc<Streams>>,
    experts: Vec<Expert>,
    zeros: Vec<BufferId>,
    predictions: HashMap<Branch, BufferId>,
}

/// What comes before the first block and after the last one of a step.
struct Ends {
    latents: BufferId,
    /// After guidance.
    prediction: BufferId,
    combine: Option<Combine>,
    sampler: Sampler,
}

/// What a request is made of.
struct Preparation<'a> {
    engine: &'a Arc<LoadedEngine>,
    inputs: &'a Inputs,
    options: &'a RequestOptions,
}

impl Preparation<'_> {
    /// Loads the stages. Refuses what the loaded engine shows to be impossible: extents that it was not compiled for, too little memory, or stages
    /// that cannot hold the policy's arithmetic.
    fn cut(&self, asked: &Asked) -> Result<LoadedPlans> {
        let Self { engine, options, .. } = *self;
        let manifest = &engine.directory.manifest;
        let Asked { given, batch, rows, grid, shares, n_branches, .. } = asked;
        memory::check_room(grid, *batch)?;
        let smallest = if options.per_sample { 1 } else { *rows };
        for rows in [smallest, *rows] {
            engine.loader.check_extents(&grid.extents(rows))?;
        }
        check_tiles(engine, options, grid)?;
        options.cache_place.check(&engine.device, &options.cache, manifest.blocks.len())?;
        let cuts = cuts::of_request(manifest, options, engine.arithmetic_choice)?;
        if engine.arithmetic_choice == ArithmeticChoice::Stages {
            let refuse = |why| Error::option("arithmetic", format!("is `stages`, but {why}; leave it out"));
            request::in_stages::of_request(manifest, options, &shares[0].lists).map_err(refuse)?;
        }
        let plain = engine.plan(&cuts::of_policy(manifest, &PolicyConfig::None, ArithmeticChoice::Auto)?);
        if options.cache_memory.is_some() {
            let given = given.iter().map(|(dim, (extent, _))| (dim.clone(), *extent)).collect();
            let extents = memory::extents(manifest, grid, *rows, given)?;
            let plan = engine.plan(&cuts);
            let footprint = Footprint {
                manifest,
                plan: &plan,
                plain: &plain,
                options,
                shares,
                branches: *n_branches,
                extents: &extents,
            };
            footprint.check()?;
        }
        let plans = engine.load_plans(&cuts, &options.cancel)?;
        Ok(LoadedPlans { plans, arithmetic: cuts.arithmetic, plain })
    }

    /// What the user should know before the first step.
    fn warnings(&self, asked: &Asked) -> Vec<Warning> {
        let Self { engine, options, .. } = *self;
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
    fn warnings_of_prompts(&self, asked: &Asked) -> Result<Vec<Warning>> {
        let Self { engine, inputs, .. } = *self;
        let mut warnings = Vec::new();
        for branch in asked.guidance.texts() {
            if let Some(encoder) = &engine.text
                && let Some(prompt) = prompts::prompt(&encoder.reader, inputs, branch)
            {
                let called = prompts::called(branch);
                warnings.extend(encoder.reader.warnings(called, prompt)?.into_iter().map(Warning::Setting));
            }
        }
        Ok(warnings)
    }

    /// Binds the blocks of each transformer to the texts, the streams and all other tensors that they take.
    fn blocks(
        &self,
        asked: &Asked,
        shares: Vec<Share>,
        cut: &LoadedPlans,
        texts: HashMap<Branch, Named>,
        buffers: &mut Buffers,
    ) -> Result<BoundBlocks> {
        let Self { engine, options, .. } = *self;
        let Asked { guidance, given, batch, rows, grid, fps, n_branches, .. } = asked;
        let manifest = &engine.directory.manifest;
        let extents = conditioning::extents(manifest, grid.extents(*rows), given, &texts, buffers)?;
        engine.loader.check_extents(&extents)?;
        let fixed = Fixed { guidance: guidance.embedded, fps: *fps };
        let mut named = conditioning::shared(manifest, grid, &extents, &fixed, buffers)?;
        let of_embed = manifest.embed.outputs.iter().filter(|tensor| !manifest.streams.contains(tensor));
        for tensor in of_embed {
            let id = buffers.add(manifest.tensor(tensor)?.dtype, &manifest.shape(tensor, &extents)?)?;
            named.insert(tensor.clone(), id);
        }
        let mut binder = Binder { engine, extents: &extents, named: &named, buffers };
        let streams = streams(&mut binder, cut, &shares[0].lists)?;
        let Branches { named: of_branches, predictions } = branches(&mut binder, guidance, texts)?;
        let mut blocks = Blocks {
            binder,
            run: RequestShape { options, n_branches: *n_branches, batch: *batch },
            arithmetic: cut.arithmetic.as_ref(),
            of_branches: &of_branches,
            zeros: Vec::new(),
        };
        let mut experts = Vec::new();
        for share in shares {
            let (plan, streams) = (&cut.plans[share.expert], &streams[share.expert]);
            experts.push(blocks.expert(share, plan, streams)?);
        }
        let zeros = blocks.zeros;
        Ok(BoundBlocks { extents, named, streams, experts, zeros, predictions })
    }

    /// Writes the latents that the first step starts from, and binds guidance and the scheduler's update.
    fn ends(
        &self,
        asked: &Asked,
        cfg: Option<Cfg>,
        named: &Named,
        predictions: &HashMap<Branch, BufferId>,
        buffers: &mut Buffers,
    ) -> Result<Ends> {
        let Self { engine, inputs, options } = *self;
        let Asked { batch, grid, schedule, .. } = asked;
        let of_model = engine.directory.manifest.input_from(&Source::Latents).and_then(|name| named.get(name));
        let model_latents = *of_model.ok_or_else(|| Error::internal("no latents"))?; // Manifest::parse has checked.
        let spec = |cfg| CombineSpec { cfg, predictions, model_latents, shape: grid.shape(*batch) };
        let combine = cfg.map(|cfg| Combine::bind(engine, spec(cfg), buffers)).transpose()?;
        let (latents, prediction) = match &combine {
            Some(combine) => (combine.latents, combine.prediction),
            None => (model_latents, predictions[&Branch::Cond]),
        };
        let of_picture = |k| Generator::new(options.seed.wrapping_add(k as u64));
        let mut generators: Vec<Generator> = (0..*batch).map(of_picture).collect();
        match inputs.tensors.get(LATENTS) {
            Some(tensor) => buffers.write(latents, &numbers(tensor))?,
            None => buffers.write(latents, &grid.noise(&mut generators))?,
        }
        let noise = noise(inputs, schedule, generators, buffers.shape(latents))?;
        let sampler = Sampler::bind(engine, SamplerSpec { schedule, latents, prediction, noise }, buffers)?;
        Ok(Ends { latents, prediction, combine, sampler })
    }
}

/// The stages that the policy asks for.
struct LoadedPlans {
    /// Of each transformer.
    plans: Vec<Arc<LoadedPlan>>,
    /// The part of the policy's arithmetic that stages hold.
    arithmetic: Option<InStages>,
    /// The plan that there would be without a policy.
    plain: Plan,
}

/// The streams between the stages of each transformer. They are divided alike, and then shared, unless another request divided
/// the stages of one in the meantime.
fn streams(binder: &mut Binder<'_>, cut: &LoadedPlans, lists: &[List]) -> Result<Vec<Arc<Streams>>> {
    let LoadedPlans { plans, plain, .. } = cut;
    let pinned: Vec<usize> = lists.iter().flat_map(List::pinned).collect();
    let mut streams: Vec<Arc<Streams>> = Vec::new();
    for (index, plan) in plans.iter().enumerate() {
        let same = plans[..index].iter().position(|other| other.plan == plan.plan);
        streams.push(match same {
            Some(other) => Arc::clone(&streams[other]),
            None => {
                let seen = plan.plan.seen();
                let pinned: Vec<usize> = pinned.iter().copied().filter(|cut| seen.contains(cut)).collect();
                let spec = StreamsSpec { plan, plain, seen, pinned: &pinned };
                Streams::allocate(binder.manifest(), spec, binder.extents, binder.buffers)?
            }
        });
    }
    Ok(streams)
}

/// What guidance branches have of their own.
struct Branches {
    /// The tensors that are no streams: those that all branches share, and each branch's own.
    named: HashMap<Branch, Named>,
    predictions: HashMap<Branch, BufferId>,
}

fn branches(binder: &mut Binder<'_>, guidance: &Guidance, mut texts: HashMap<Branch, Named>) -> Result<Branches> {
    let prediction = &binder.manifest().last.outputs[0]; // Manifest::parse has checked that there is one.
    let (mut named, mut predictions) = (HashMap::new(), HashMap::new());
    for branch in guidance.branches() {
        let id = binder.add(prediction)?;
        predictions.insert(branch, id);
        let mut tensors = binder.named.clone();
        tensors.extend(texts.remove(&branch).unwrap_or_default());
        tensors.insert(prediction.clone(), id);
        named.insert(branch, tensors);
    }
    Ok(Branches { named, predictions })
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
