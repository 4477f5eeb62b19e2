//! What the fields about latents, sizes, scheduler and guidance must satisfy.

use super::{MAX_EXTENT, fail};
use crate::error::{At, Result};
use crate::model::manifest::{
    Axis, BaseSigmas, Betas, CfgBranch, CfgMode, DType, Dimension, GraphSpec, GuidanceSpec, LastSigma, LatentsSpec,
    Layout, MAX_ORDER, Manifest, Noise, Prediction, RunsSpec, SchedulerSpec, Shift, SizeSpec, Source, Spread,
    UnipcKind, VideoSpec,
};

/// A larger shift turns every sigma into 1, or overflows.
const MAX_SHIFT: f64 = 1e6;
/// The largest noise-to-signal ratio between which sigmas are spread; e^27, with which no signal is left.
const MAX_RATIO: f64 = 1e12;
/// Schedulers that count more timesteps have never been trained.
const MAX_TRAIN_STEPS: u64 = 100_000;
const MAX_FPS: f64 = 1000.0;

impl Manifest {
    /// `final` gives what the scheduler takes.
    pub(super) fn check_result(&self) -> Result<()> {
        let [prediction] = self.last.outputs.as_slice() else {
            return fail(format!("`final` has {} outputs; expected one, the prediction", self.last.outputs.len()));
        };
        let latents = self.input_from(&Source::Latents).unwrap_or_default();
        let (prediction_spec, latents_spec) = (self.tensor(prediction)?, self.tensor(latents)?);
        if prediction_spec.shape != latents_spec.shape {
            return fail(format!("`{prediction}` and `{latents}` differ in shape"));
        }
        if prediction_spec.dtype != DType::F32 {
            return fail(format!("`{prediction}` must be f32, as latents are"));
        }
        Ok(())
    }

    pub(super) fn check_picture(&self) -> Result<()> {
        let LatentsSpec { channels, downscale, patch, .. } = self.latents;
        let cell = downscale.saturating_mul(patch);
        if channels == 0 || channels > 65_536 || cell == 0 || cell > 65_536 {
            return fail("`latents` has a number outside 1 to 65536");
        }
        let SizeSpec { default, min, max, multiple_of } = self.size;
        if multiple_of == 0 || multiple_of % cell != 0 {
            return fail(format!(
                "`size.multiple_of` is {multiple_of}; expected a multiple of downscale x patch = {cell}"
            ));
        }
        if min == 0 || min > max || max > 65_536 {
            return fail(format!("`size` has the range {min} to {max}; expected 1 <= min <= max <= 65536"));
        }
        for side in default {
            if side % multiple_of != 0 || side < min || side > max {
                return fail(format!("`size.default` has a side of {side}, which its own limits forbid"));
            }
        }
        let frames = self.check_video()?;
        let [width, height] = default;
        let (rows, columns) = (height / cell, width / cell);
        let extents = [
            ("image", frames * rows * columns),
            ("rows", rows),
            ("columns", columns),
            ("latent_height", height / downscale),
            ("latent_width", width / downscale),
            ("latent_frames", frames),
            ("height", height),
            ("width", width),
        ];
        for (name, extent) in extents {
            if let Some(Dimension::Range { min, max }) = self.dimensions.get(name)
                && !(min..=max).contains(&&extent)
            {
                return fail(format!("`size.default` makes dimension `{name}` {extent}; its range is {min} to {max}"));
            }
        }
        self.check_latents()?;
        if !(1..=10_000).contains(&self.defaults.steps) {
            return fail(format!("`defaults.steps` is {}; expected 1 to 10000", self.defaults.steps));
        }
        Ok(())
    }

    /// The input that holds the latents has the axes of their layout.
    fn check_latents(&self) -> Result<()> {
        let LatentsSpec { layout, channels, patch, .. } = self.latents;
        let features = channels.saturating_mul(patch).saturating_mul(patch);
        let axes: &[&str] = match layout {
            Layout::Tokens => &["batch", "image", "features"],
            Layout::Bchw => &["batch", "channels", "latent_height", "latent_width"],
            Layout::Bcfhw => &["batch", "channels", "latent_frames", "latent_height", "latent_width"],
            Layout::Bfchw => &["batch", "latent_frames", "channels", "latent_height", "latent_width"],
        };
        let expected: Vec<Axis> = axes
            .iter()
            .map(|axis| match *axis {
                "features" => Axis::Fixed(features),
                "channels" => Axis::Fixed(channels),
                name => Axis::Named(name.to_owned()),
            })
            .collect();
        let name = self.input_from(&Source::Latents).unwrap_or_default();
        if self.tensor(name)?.shape != expected {
            let expected: Vec<String> = expected.iter().map(Axis::to_string).collect();
            return fail(format!("`{name}` must have the shape [{}] that `latents` says", expected.join(", ")));
        }
        Ok(())
    }

    /// Gives the latent frames of the default size; 1 for pictures.
    fn check_video(&self) -> Result<u64> {
        let has_frames = matches!(self.latents.layout, Layout::Bcfhw | Layout::Bfchw);
        let Some(VideoSpec { frames, temporal_downscale, fps, runs }) = self.video else {
            return if has_frames { fail("`latents.layout` has frames, but `video` is null") } else { Ok(1) };
        };
        if self.latents.layout == Layout::Bchw {
            return fail("`video` is given, but `latents.layout` is `bchw`, which has no frames");
        }
        if !((1..=65_536).contains(&temporal_downscale) && fps > 0.0 && fps <= MAX_FPS) {
            return fail(format!("`video` has an impossible number; fps lie above 0 and up to {MAX_FPS}"));
        }
        if let Some(RunsSpec { latent_frames, stride }) = runs
            && !(1..=latent_frames).contains(&stride)
        {
            return fail(format!(
                "`video.runs` has a stride of {stride} and {latent_frames} latent frames; expected 1 to as many"
            ));
        }
        let fits = |count: u64| count >= 1 && (count - 1).is_multiple_of(temporal_downscale) && count <= MAX_EXTENT;
        if ![frames.default, frames.min, frames.max].into_iter().all(fits)
            || !(frames.min..=frames.max).contains(&frames.default)
        {
            return fail(format!(
                "`video.frames` is {} to {} with {} by default; expected min <= default <= max, each a multiple of \
                 {temporal_downscale} plus 1",
                frames.min, frames.max, frames.default
            ));
        }
        if let Some(Dimension::Range { min, max }) = self.dimensions.get("frames")
            && !(min..=max).contains(&&frames.default)
        {
            return fail(format!(
                "`video.frames` makes dimension `frames` {}; its range is {min} to {max}",
                frames.default
            ));
        }
        Ok((frames.default - 1) / temporal_downscale + 1)
    }

    /// The decoder takes latents and gives pixels, both of the picture's size.
    pub(super) fn check_decode(&self) -> Result<()> {
        let Some(GraphSpec { inputs, outputs, .. }) = &self.decode else { return Ok(()) };
        if inputs != &["image_latents"] || outputs != &["image"] {
            return fail(format!("`decode` takes {inputs:?} and gives {outputs:?}; expected image_latents and image"));
        }
        let frames = |name: &'static str| self.video.is_some().then_some(name);
        for (name, channels, frames, sides) in [
            ("image_latents", self.latents.channels, frames("latent_frames"), ["latent_height", "latent_width"]),
            ("image", 3, frames("frames"), ["height", "width"]),
        ] {
            let spec = self.tensor(name).at("`decode`")?;
            let named = |name: &str| Axis::Named(name.to_owned());
            let mut shape = vec![named("batch"), Axis::Fixed(channels)];
            shape.extend(frames.into_iter().chain(sides).map(named));
            if spec.shape != shape || spec.dtype == DType::I64 {
                let shape: Vec<String> = shape.iter().map(Axis::to_string).collect();
                return fail(format!("`decode`: `{name}` must be floats of the shape [{}]", shape.join(", ")));
            }
        }
        Ok(())
    }

    pub(super) fn check_guidance(&self) -> Result<()> {
        let default = self.guidance.default_scale();
        if !(default as f32).is_finite() {
            return fail(format!("`guidance.default` is {default:e}; expected a finite f32"));
        }
        if let GuidanceSpec::ClassifierFree { mode, order, rescale, .. } = self.guidance {
            if !(0.0..=1.0).contains(&rescale) {
                return fail(format!("`guidance.rescale` is {rescale}; expected 0 to 1"));
            }
            if order[0] == order[1] {
                return fail("`guidance.order` names one branch twice");
            }
            if mode == CfgMode::Separate && order[0] == CfgBranch::Uncond {
                return fail("`guidance.order` begins with `uncond`, which only the mode `fused` may");
            }
            if mode == CfgMode::Fused {
                self.check_batch()?;
            }
        }
        Ok(())
    }

    /// What differs between branches that run as one batch lies along it.
    fn check_batch(&self) -> Result<()> {
        let batch = Axis::Named("batch".to_owned());
        let mut differing = self.inputs.iter().filter(|(_, input)| input.from.differs_by_branch());
        match differing
            .find(|(name, _)| self.tensors.get(*name).is_none_or(|tensor| tensor.shape.first() != Some(&batch)))
        {
            Some((name, _)) => {
                fail(format!("input `{name}` has no `batch` as its first axis, which `fused` guidance needs"))
            }
            None => Ok(()),
        }
    }

    pub(super) fn check_low_noise(&self) -> Result<()> {
        let Some(other) = &self.low_noise else { return Ok(()) };
        if !(other.below > 0.0 && other.below < MAX_TRAIN_STEPS as f64) {
            return fail(format!("`low_noise.below` is {}; expected a timestep above 0", other.below));
        }
        if other.blocks.len() != self.blocks.len() {
            let (found, expected) = (other.blocks.len(), self.blocks.len());
            return fail(format!("`low_noise` has {found} blocks; expected {expected}, as the other transformer"));
        }
        if other.guidance.is_some_and(|scale| !(scale as f32).is_finite()) {
            return fail("`low_noise.guidance` is not a finite f32");
        }
        if other.guidance.is_some() && !matches!(self.guidance, GuidanceSpec::ClassifierFree { .. }) {
            return fail("`low_noise.guidance` goes with `classifier_free` guidance only");
        }
        if matches!(self.scheduler, SchedulerSpec::FlowMatchEuler { inverted: true, .. }) {
            return fail("`low_noise` does not go with a scheduler that counts sigmas from 0 to 1");
        }
        Ok(())
    }

    pub(super) fn check_scheduler(&self) -> Result<()> {
        self.scheduler.check(self.prediction)
    }
}

impl SchedulerSpec {
    /// Whether numbers are possible, and go with each other and with what the model predicts.
    pub(crate) fn check(&self, prediction: Prediction) -> Result<()> {
        if let Prediction::Sample { min_sigma } = prediction
            && !(min_sigma > 0.0 && min_sigma < 1.0)
        {
            return fail(format!("`prediction.min_sigma` is {min_sigma}; expected a number between 0 and 1"));
        }
        if !self.has_possible_numbers() {
            return fail("`scheduler` has an impossible number");
        }
        // Where no noise is left, the last step of UniPC is exact in the first order, and its other forms divide by zero.
        if let SchedulerSpec::Unipc { solver, order, lower_order_final, last_sigma: LastSigma::Zero, .. } = self
            && (*solver == UnipcKind::Bh1 || !(*lower_order_final || *order == 1))
        {
            return fail("`scheduler.last_sigma` is `zero`, which needs `bh2` and `lower_order_final`");
        }
        if !self.takes(prediction) {
            return fail("`prediction.kind` does not go with this scheduler");
        }
        Ok(())
    }

    fn has_possible_numbers(&self) -> bool {
        match self {
            SchedulerSpec::FlowMatchEuler { sigmas, shift, shift_terminal, train_steps, spread, .. } => {
                is_base(sigmas)
                    && is_shift(shift)
                    && is_terminal(*shift_terminal)
                    && is_count(*train_steps)
                    && spread.is_none_or(is_spread)
            }
            SchedulerSpec::Ddim { betas, offset, .. } | SchedulerSpec::DpmSde { betas, offset, .. } => {
                are_betas(betas) && *offset <= MAX_TRAIN_STEPS
            }
            SchedulerSpec::DpmSolver {
                noise,
                offset,
                karras,
                order,
                spread,
                last_sigma,
                algorithm,
                used_timesteps,
                ..
            } => {
                let is_used = used_timesteps.is_none_or(|count| is_count(count) && count <= self.flow_timesteps());
                are_levels(noise, *offset, *karras, *spread, *last_sigma)
                    && (1..=algorithm.max_order()).contains(order)
                    && is_used
            }
            SchedulerSpec::Unipc { noise, offset, karras, order, spread, last_sigma, .. } => {
                are_levels(noise, *offset, *karras, *spread, *last_sigma) && (1..=MAX_ORDER).contains(order)
            }
        }
    }

    /// Whether it can be used with such a prediction.
    fn takes(&self, prediction: Prediction) -> bool {
        let over_noise = match self {
            SchedulerSpec::DpmSolver { algorithm, .. } => algorithm.is_over_noise(),
            SchedulerSpec::Unipc { over_noise, .. } => *over_noise,
            _ => false,
        };
        match (self, prediction) {
            (SchedulerSpec::FlowMatchEuler { .. }, Prediction::Velocity {}) => true,
            (SchedulerSpec::FlowMatchEuler { inverted, stochastic, .. }, Prediction::Sample { .. }) => {
                !inverted && !stochastic
            }
            (SchedulerSpec::FlowMatchEuler { .. }, _) => false,
            (SchedulerSpec::Ddim { .. } | SchedulerSpec::DpmSde { .. }, kind) => kind != Prediction::Velocity {},
            (SchedulerSpec::DpmSolver { .. } | SchedulerSpec::Unipc { .. }, kind) => {
                !(over_noise && kind == Prediction::Velocity {})
            }
        }
    }
}

fn is_count(train_steps: u64) -> bool {
    (1..=MAX_TRAIN_STEPS).contains(&train_steps)
}

fn is_base(sigmas: &BaseSigmas) -> bool {
    match *sigmas {
        BaseSigmas::Linear { last } => last.is_none_or(|last| last > 0.0 && last <= 1.0),
        BaseSigmas::LinearQuadratic { threshold } => threshold > 0.0 && threshold < 0.5,
    }
}

fn is_terminal(shift_terminal: Option<f64>) -> bool {
    shift_terminal.is_none_or(|sigma| (0.0..=1.0).contains(&sigma))
}

fn is_spread(Spread { smallest, largest, .. }: Spread) -> bool {
    [smallest, largest].into_iter().flatten().all(|sigma| sigma > 0.0 && sigma <= MAX_RATIO)
}

/// The noise levels of a multistep solver.
fn are_levels(noise: &Noise, offset: u64, karras: bool, spread: Option<Spread>, last: LastSigma) -> bool {
    let is_spread_once = !(karras && spread.is_some()) && spread.is_none_or(is_spread);
    let is_any_spread = karras || spread.is_some();
    let is_last = if let LastSigma::Value(sigma) = last { (0.0..=MAX_RATIO).contains(&sigma) } else { true };
    let is_noise = match noise {
        Noise::Betas(betas) => are_betas(betas),
        Noise::FlowOfBetas { betas, .. } => are_betas(betas) && is_any_spread,
        Noise::Flow { shift, train_steps, sigmas, shift_terminal } => {
            let is_fine = is_shift(&shift.shift()) && is_count(*train_steps) && is_terminal(*shift_terminal);
            is_fine && sigmas.as_ref().is_none_or(is_base) && !is_any_spread
        }
    };
    is_noise && is_spread_once && is_last && offset <= MAX_TRAIN_STEPS
}

fn is_shift(shift: &Shift) -> bool {
    let is_small = |shift: f64| shift.abs() <= MAX_SHIFT;
    match *shift {
        Shift::None {} => true,
        Shift::Static { shift } => is_small(shift) && shift > 0.0,
        Shift::Dynamic { base_tokens, max_tokens, base_shift, max_shift, .. } => {
            let are_extents = base_tokens.abs() <= MAX_EXTENT as f64 && max_tokens.abs() <= MAX_EXTENT as f64;
            base_tokens != max_tokens && are_extents && is_small(base_shift) && is_small(max_shift)
        }
        Shift::DynamicSteps { lines, max_tokens, .. } => {
            let are_small = lines.iter().all(|[slope, offset, steps]| {
                (0.0..1.0).contains(slope) && is_small(*offset) && (1.0..=10_000.0).contains(steps)
            });
            are_small && lines[0][2] < lines[1][2] && (1..=MAX_EXTENT).contains(&max_tokens)
        }
    }
}

fn are_betas(betas: &Betas) -> bool {
    let Betas { start, end, train_steps, snr_shift, ref trained, .. } = *betas;
    let are_trained = trained.as_ref().is_none_or(|all| {
        (1..=MAX_TRAIN_STEPS).contains(&(all.len() as u64)) && all.iter().all(|beta| (0.0..=1.0).contains(beta))
    });
    let is_beta = |beta: f64| (0.0..=1.0).contains(&beta);
    is_beta(start) && is_beta(end) && are_trained && is_count(train_steps) && snr_shift > 0.0 && snr_shift <= MAX_SHIFT
}
