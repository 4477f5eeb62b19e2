//! What a generation is asked for, and all that the manifest alone can refuse of it. Nothing is loaded, allocated or run
//! here: [`Asked`] is what preparing, predicting and compiling for a request start from.

pub(crate) mod cache_place;
pub(crate) mod cuts;
pub(crate) mod engine_options;
pub(crate) mod guidance;
pub(crate) mod in_stages;
pub(crate) mod inputs;
pub(crate) mod latents;
pub(crate) mod lists;
pub(crate) mod memory;
pub(crate) mod noise;
pub(crate) mod options;
mod per_sample;
pub(crate) mod profile;
pub(crate) mod scheduler;
pub(crate) mod shares;
pub(crate) mod tiles;

use std::collections::BTreeMap;

use self::guidance::Guidance;
use self::inputs::{Inputs, SIGMAS};
use self::latents::Grid;
use self::options::{GuidanceBy, RequestOptions};
use self::scheduler::Schedule;
use self::shares::Share;
use crate::error::{Error, Result};
use crate::model::manifest::{Axis, Manifest, SchedulerSpec};

/// Frames per second that no video has: fewer do not fit into the formats, which hold how long a frame is seen.
const MIN_FPS: f64 = 0.01;
/// Frames per second that no video has.
const MAX_FPS: f64 = 1000.0;
/// More pictures in one request than any machine holds.
const MAX_BATCH: usize = 4096;

/// What a request asks for, as far as the manifest alone can answer.
pub(crate) struct Asked {
    pub guidance: Guidance,
    /// Extents that come from tensors of the caller, each with the name of one.
    pub given: BTreeMap<String, (u64, String)>,
    pub batch: usize,
    pub rows: usize,
    pub grid: Grid,
    pub fps: f64,
    pub schedule: Schedule,
    pub shares: Vec<Share>,
    pub n_branches: usize,
}

impl Asked {
    /// Refuses what the manifest alone shows to be impossible, or to have no effect.
    ///
    /// # Errors
    /// `Usage` and `Input`, as `Engine::request`, but for what needs a loaded engine.
    pub fn new(manifest: &Manifest, inputs: &Inputs, options: &RequestOptions, by: GuidanceBy) -> Result<Self> {
        let guidance = Guidance::by(by, manifest, inputs, options)?;
        inputs.check(manifest, guidance.cfg.is_some())?;
        let given = inputs.extents(manifest)?;
        let batch = batch(options.batch, &given)?;
        let rows = guidance.rows(batch);
        let grid = grid(manifest, options)?;
        let fps = fps(manifest, options)?;
        let schedule = schedule(manifest, inputs, options.steps, &grid)?;
        let n_branches = guidance.branches().len();
        let shares = shares::shares(manifest, &options.cache, &schedule).map_err(|error| error.about("cache"))?;
        shares::check(&shares, n_branches).map_err(|error| error.about("cache"))?;
        options.cache_dtype.check(manifest, &options.cache)?;
        check_effects(manifest, options)?;
        tiles::check(manifest, options, &grid, batch)?;
        per_sample::check(options, manifest, batch)?;
        if options.per_sample && guidance.is_fused() {
            return Err(Error::option(
                "per-sample",
                "does not go with this model's guidance, whose two branches are one batch; leave it out, or give the \
                 option `guidance` of 0",
            ));
        }
        Ok(Self { guidance, given, batch, rows, grid, fps, schedule, shares, n_branches })
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

pub(crate) fn batch(asked: Option<usize>, given: &BTreeMap<String, (u64, String)>) -> Result<usize> {
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
                "the option `size` is {width}x{height}; this model makes sides of {} to {} pixels that are multiples of {}",
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
            "the option `frames` is {frames}; this model makes {} to {} frames, a multiple of {step} and one more",
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

pub(crate) fn schedule(manifest: &Manifest, inputs: &Inputs, asked: Option<usize>, grid: &Grid) -> Result<Schedule> {
    let inverted = matches!(manifest.scheduler, SchedulerSpec::FlowMatchEuler { inverted: true, .. });
    let Some(tensor) = inputs.tensors.get(SIGMAS) else {
        let steps = asked.unwrap_or(manifest.defaults.steps as usize);
        return Schedule::new(&manifest.scheduler, manifest.prediction, steps, grid.tokens() as u64);
    };
    if inverted || !matches!(manifest.scheduler, SchedulerSpec::FlowMatchEuler { .. }) {
        return Err(Error::input(format!(
            "input `{SIGMAS}` does not fit this model's scheduler, which has its own; leave it out, and say the number of steps"
        )));
    }
    let sigmas = inputs::numbers(tensor);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind::{Input, Usage};

    fn asked(file: &str, options: RequestOptions) -> Result<Asked> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file);
        let manifest = Manifest::parse(&std::fs::read(path).unwrap()).unwrap();
        let mut inputs = Inputs::prompt("a cat");
        if manifest.text.is_none() {
            inputs = Inputs::default();
            inputs.tensors.insert("class_labels".into(), ndarray::ArrayD::zeros(vec![options.batch.unwrap_or(1)]));
        }
        Asked::new(&manifest, &inputs, &options, GuidanceBy::Library)
    }

    #[test]
    fn what_the_manifest_alone_answers() {
        let options = RequestOptions { batch: Some(3), steps: Some(7), ..RequestOptions::default() };
        let asked = asked("pipelines/flux-dev/engine/manifest.json", options).unwrap();
        assert_eq!((asked.batch, asked.rows, asked.n_branches, asked.schedule.steps()), (3, 3, 1, 7));
        assert_eq!(asked.shares.iter().map(|share| share.steps.clone()).collect::<Vec<_>>(), vec![0..7]);
    }

    #[test]
    fn what_the_manifest_alone_refuses() {
        let default = RequestOptions::default;
        let (flux, dit) = ("pipelines/flux-dev/engine/manifest.json", "families/dit/engine/manifest.json");
        for (file, options, kind, field) in [
            (flux, RequestOptions { batch: Some(0), ..default() }, Usage, "batch"),
            (flux, RequestOptions { size: Some((17, 16)), ..default() }, Input, "size"),
            (flux, RequestOptions { frames: Some(9), ..default() }, Usage, "frames"),
            (flux, RequestOptions { fps: Some(9.0), ..default() }, Usage, "fps"),
            (flux, RequestOptions { cache: "f99b99".parse().unwrap(), ..default() }, Usage, "cache"),
            (flux, RequestOptions { decode_tile: Some(7), ..default() }, Usage, "decode-tile"),
            (flux, RequestOptions { per_sample: true, ..default() }, Usage, "per-sample"),
            (
                dit,
                RequestOptions { per_sample: true, batch: Some(2), cache: "f1b0".parse().unwrap(), ..default() },
                Usage,
                "per-sample",
            ),
            (dit, RequestOptions { steps: Some(0), ..default() }, Usage, "steps"),
        ] {
            let error = asked(file, options).err().unwrap_or_else(|| panic!("{field} is taken"));
            assert_eq!((error.kind(), error.field()), (kind, Some(field)), "{error}");
        }
    }
}
