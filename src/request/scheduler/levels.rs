//! The noise levels of multistep solvers: on the timesteps of the training, spread anew between the least and the most
//! noise, or those of flow matching.

use super::diffusion::{alphas, timesteps};
use super::flow;
use crate::error::{Error, Result};
use crate::model::manifest::{
    BetaSchedule, Betas, LastSigma, Noise, SchedulerSpec, Shift, Spacing, Spread, SpreadKind,
};

/// Karras' rho.
const RHO: f64 = 7.0;
/// What a flow's first sigma stays below 1, so that alpha is not 0.
const FLOW_MARGIN: f64 = 1e-6;
/// The signal that zero-SNR betas keep, so that sigma is finite.
const LEAST_ALPHA: f64 = 1.0 / (1 << 24) as f64;

/// x = alpha x0 + sigma noise.
#[derive(Clone, Copy)]
pub(crate) struct Level {
    pub alpha: f64,
    pub sigma: f64,
    /// As the scheduler counts noise: sigma of a flow, else sigma / alpha.
    pub count: f64,
}

/// The noise levels of a run.
pub(crate) struct Levels {
    /// Before each step, and after the last.
    pub levels: Vec<Level>,
    pub timesteps: Vec<f32>,
}

impl Levels {
    /// # Errors
    /// A bug for another scheduler than a multistep one.
    pub(crate) fn new(spec: &SchedulerSpec, steps: usize, image_tokens: u64) -> Result<Self> {
        let is_unipc = matches!(spec, SchedulerSpec::Unipc { .. });
        let used = if let SchedulerSpec::DpmSolver { used_timesteps, .. } = spec { *used_timesteps } else { None };
        let (SchedulerSpec::DpmSolver { noise, spacing, offset, karras, last_sigma, spread, .. }
        | SchedulerSpec::Unipc { noise, spacing, offset, karras, last_sigma, spread, .. }) = spec
        else {
            return Err(Error::internal("not a multistep solver"));
        };
        let karras = karras.then_some(Spread { kind: SpreadKind::Karras, smallest: None, largest: None });
        let spread = spread.or(karras);
        let (mut sigmas, timesteps, least) = match noise {
            Noise::Betas(betas) => {
                let ratios = ratios(betas);
                let (sigmas, timesteps) = if let Some(spread) = spread {
                    spread_ratios(&ratios, &spread, rounds(&spread, betas, is_unipc), steps)
                } else {
                    on_timesteps(&ratios, *spacing, used.unwrap_or(betas.train_steps), *offset, steps)
                };
                let least = if is_unipc && spread.is_some() { sigmas[steps - 1] } else { ratios[0] };
                (sigmas, timesteps, least)
            }
            Noise::FlowOfBetas { betas, divided } => {
                let ratios = ratios(betas);
                let spread = spread.ok_or_else(|| Error::internal("a flow of betas that is not spread"))?;
                let (mut sigmas, mut timesteps) =
                    spread_ratios(&ratios, &spread, rounds(&spread, betas, is_unipc), steps);
                if *divided {
                    sigmas.iter_mut().for_each(|sigma| *sigma /= *sigma + 1.0);
                    timesteps = sigmas.iter().map(|sigma| sigma * betas.train_steps as f64).collect();
                }
                let least = if is_unipc { sigmas[steps - 1] } else { ratios[0] };
                (sigmas, timesteps, least)
            }
            Noise::Flow { shift, train_steps, sigmas, shift_terminal } => {
                let count = *train_steps as f64;
                let base = sigmas.map_or_else(|| flow_base(count, is_unipc, steps), |base| flow::base(base, steps));
                let (sigmas, timesteps) =
                    flow_levels(base, &shift.shift(), *shift_terminal, image_tokens, is_unipc, count);
                let least = sigmas[steps - 1];
                (sigmas, timesteps, least)
            }
        };
        sigmas.push(match *last_sigma {
            LastSigma::Zero => 0.0,
            LastSigma::Min => least,
            LastSigma::Value(sigma) => sigma,
        });
        // The original keeps sigmas in f32; near 1 that decides what alpha is.
        let sigmas = sigmas.into_iter().map(|sigma| f64::from(sigma as f32));
        let is_flow = !matches!(noise, Noise::Betas(_));
        let level = |count: f64| {
            let alpha = if is_flow { 1.0 - count } else { 1.0 / count.hypot(1.0) };
            Level { alpha, sigma: if is_flow { count } else { count * alpha }, count }
        };
        // A model is told whole timesteps.
        let timesteps = timesteps.into_iter().map(|timestep| timestep.trunc() as f32).collect();
        Ok(Self { levels: sigmas.map(level).collect(), timesteps })
    }
}

/// sigma / alpha of every timestep of the training; in f32 as in the original, which decides how timesteps are rounded.
fn ratios(betas: &Betas) -> Vec<f64> {
    let mut all = alphas(betas, false);
    if let (true, Some(last)) = (betas.zero_snr, all.last_mut()) {
        *last = LEAST_ALPHA;
    }
    let ratio = |a: f64| {
        let a = a as f32;
        f64::from(((1.0 - a) / a).sqrt())
    };
    all.into_iter().map(ratio).collect()
}

fn on_timesteps(ratios: &[f64], spacing: Spacing, used: u64, offset: u64, steps: usize) -> (Vec<f64>, Vec<f64>) {
    let timesteps = timesteps(spacing, used, offset, steps, steps + 1);
    // What an offset moves beyond the training has the noise of its last timestep.
    let sigmas = timesteps.iter().map(|t| ratios[(*t as usize).min(ratios.len() - 1)]).collect();
    (sigmas, timesteps.into_iter().map(|t| t as f64).collect())
}

fn spread_ratios(ratios: &[f64], spread: &Spread, rounds: bool, steps: usize) -> (Vec<f64>, Vec<f64>) {
    let sigmas = spread.over(ratios[0], ratios[ratios.len() - 1], steps);
    let at = |sigma: &f64| timestep_of(*sigma, ratios);
    let timesteps = sigmas.iter().map(at).map(|t| if rounds { t.round_ties_even() } else { t }).collect();
    (sigmas, timesteps)
}

/// Whether the original rounds the timesteps of spread sigmas.
fn rounds(spread: &Spread, betas: &Betas, is_unipc: bool) -> bool {
    spread.kind != SpreadKind::Exponential && (is_unipc || betas.schedule != BetaSchedule::SquaredcosCapV2)
}

/// UniPC begins at all noise, DPM-Solver a timestep below; both leave out what lies last.
fn flow_base(train_steps: f64, is_unipc: bool, steps: usize) -> Vec<f64> {
    let stride = (1.0 / train_steps - 1.0) / steps as f64;
    let at = |i: usize| if i == steps { 1.0 / train_steps } else { i as f64 * stride + 1.0 };
    (0..steps).map(|i| if is_unipc { at(i) } else { 1.0 - at(steps - i) }).collect()
}

fn flow_levels(
    mut sigmas: Vec<f64>,
    shift: &Shift,
    terminal: Option<f64>,
    image_tokens: u64,
    is_unipc: bool,
    train_steps: f64,
) -> (Vec<f64>, Vec<f64>) {
    flow::shift(&mut sigmas, shift, terminal, image_tokens);
    if let (true, Some(first)) = (is_unipc, sigmas.first_mut())
        && (*first - 1.0).abs() < FLOW_MARGIN
    {
        *first -= FLOW_MARGIN;
    }
    let timesteps = sigmas.iter().map(|sigma| sigma * train_steps).collect();
    (sigmas, timesteps)
}

impl Spread {
    /// As many sigmas as steps, from the largest to the smallest, which are given unless the spread has its own.
    pub(crate) fn over(&self, smallest: f64, largest: f64, steps: usize) -> Vec<f64> {
        let (smallest, largest) = (self.smallest.unwrap_or(smallest), self.largest.unwrap_or(largest));
        let along = |from: f64, to: f64, i: usize| from + i as f64 / (steps.max(2) - 1) as f64 * (to - from);
        let at = |i: usize| match self.kind {
            SpreadKind::Karras => along(largest.powf(1.0 / RHO), smallest.powf(1.0 / RHO), i).powf(RHO),
            SpreadKind::Exponential => along(largest.ln(), smallest.ln(), i).exp(),
            SpreadKind::Lambda => along(ln_f32(largest), ln_f32(smallest), i).exp(),
        };
        (0..steps).map(at).collect()
    }
}

/// The timestep of the training at which the noise is `sigma`, between two by the logarithm.
fn timestep_of(sigma: f64, ratios: &[f64]) -> f64 {
    let log = |ratio: &f64| ln_f32(*ratio);
    let sigma = sigma.ln();
    let above = ratios.partition_point(|ratio| log(ratio) <= sigma).min(ratios.len() - 1).max(1);
    let (Some(low), Some(high)) = (ratios.get(above - 1).map(log), ratios.get(above).map(log)) else { return f64::NAN };
    let share = ((low - sigma) / (low - high)).clamp(0.0, 1.0);
    (1.0 - share) * (above - 1) as f64 + share * above as f64
}

/// As exact as the original's logarithms, which lie on both sides of a whole timestep.
fn ln_f32(ratio: f64) -> f64 {
    f64::from((ratio as f32).ln())
}
