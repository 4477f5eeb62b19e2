//! Samplers on the timesteps of a diffusion model's training: DDIM, and DPM-Solver++ SDE on the same grid.
//!
//! x = sqrt(a) x0 + sqrt(1 - a) noise, where a falls from nearly 1 to nearly 0 over the timesteps.

use super::{Schedule, Terms, Update, sample};
use crate::error::{Error, Result};
use crate::model::manifest::{BetaSchedule, Betas, LastAlpha, Prediction, Spacing};

/// The largest beta of a cosine schedule.
const MAX_BETA: f64 = 0.999;

/// a for every timestep of the training; computed from betas in f32, as in the original, unless `wide`.
pub(crate) fn alphas(betas: &Betas, wide: bool) -> Vec<f64> {
    let count = betas.trained.as_ref().map_or(betas.train_steps as usize, Vec::len);
    let at = |start: f64, end: f64, t: usize| start + (end - start) * t as f64 / (count.max(2) - 1) as f64;
    let cosine = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    let beta = |t: usize| match (&betas.trained, betas.schedule) {
        (Some(trained), _) => trained.get(t).copied().unwrap_or(f64::NAN),
        (None, BetaSchedule::Linear) => at(betas.start, betas.end, t),
        (None, BetaSchedule::ScaledLinear) => at(betas.start.sqrt(), betas.end.sqrt(), t).powi(2),
        (None, BetaSchedule::SquaredcosCapV2) => {
            let (now, next) = (t as f64 / count as f64, (t + 1) as f64 / count as f64);
            (1.0 - cosine(next) / cosine(now)).min(MAX_BETA)
        }
    };
    let mut product = 1.0;
    let mut alphas: Vec<f64> = (0..count)
        .map(|t| {
            product *= if wide { 1.0 - beta(t) } else { f64::from(1.0 - beta(t) as f32) };
            let a = product / (betas.snr_shift + (1.0 - betas.snr_shift) * product);
            // What f32 cannot hold is no signal at all.
            if a as f32 == 0.0 && !wide { 0.0 } else { a }
        })
        .collect();
    if betas.zero_snr
        && let (Some(first), Some(last)) = (alphas.first().map(|a| a.sqrt()), alphas.last().map(|a| a.sqrt()))
    {
        alphas.iter_mut().for_each(|a| *a = ((a.sqrt() - last) * first / (first - last)).powi(2));
    }
    alphas
}

/// Timesteps of the training from which `count` are used, from the noisiest down. DDIM counts the steps, multistep
/// solvers count one more and leave the last out.
///
/// Sums in the order of numpy, which decides how halves are rounded.
pub(crate) fn timesteps(spacing: Spacing, trained: u64, offset: u64, steps: usize, count: usize) -> Vec<u64> {
    match spacing {
        Spacing::Linspace => {
            let stride = trained.saturating_sub(1) as f64 / (count.max(2) - 1) as f64;
            (0..count).rev().take(steps).map(|i| (i as f64 * stride).round_ties_even() as u64).collect()
        }
        Spacing::Leading => {
            (0..count as u64).rev().take(steps).map(|i| i * (trained / count as u64) + offset).collect()
        }
        Spacing::Trailing => {
            let trained = trained as f64;
            let stride = (trained - trained / steps as f64) - trained;
            let at = |i: usize| (trained + i as f64 * stride).round_ties_even() as u64;
            (0..steps).map(|i| at(i).saturating_sub(1)).collect()
        }
    }
}

/// The timesteps of a run, and a on both sides of each step.
pub(crate) struct TimestepGrid {
    timesteps: Vec<u64>,
    /// From a timestep to the one after it, a whole number even where `timesteps` are spaced otherwise.
    stride: u64,
    /// Before and after each step.
    alphas: Vec<[f64; 2]>,
}

impl TimestepGrid {
    pub(crate) fn new(
        betas: &Betas,
        spacing: Spacing,
        offset: u64,
        last_alpha: LastAlpha,
        steps: usize,
        wide: bool,
    ) -> Result<Self> {
        let all = alphas(betas, wide);
        let stride = betas.train_steps / steps as u64;
        let timesteps = timesteps(spacing, betas.train_steps, offset, steps, steps);
        let first = all.first().copied().unwrap_or(f64::NAN);
        let last = if last_alpha == LastAlpha::One { 1.0 } else { first };
        let at = |t: &u64| {
            let now = all.get(*t as usize).copied().ok_or_else(|| beyond(*t, all.len(), steps))?;
            Ok([now, t.checked_sub(stride).and_then(|before| all.get(before as usize).copied()).unwrap_or(last)])
        };
        let alphas = timesteps.iter().map(at).collect::<Result<_>>()?;
        Ok(Self { timesteps, stride, alphas })
    }

    /// x ← sqrt(a') x0 + sqrt(1 - a') noise, with the noise that x and x0 imply.
    pub(crate) fn ddim(self, prediction: Prediction) -> Schedule {
        let update = |[now, next]: &[f64; 2]| {
            let x0 = sample(prediction, now.sqrt(), (1.0 - now).sqrt());
            let keep = ((1.0 - next) / (1.0 - now)).sqrt();
            let latents = Terms::latents() * keep + x0 * (next.sqrt() - now.sqrt() * keep);
            Update { latents, kept: Vec::new(), sample: x0, draws: 0 }
        };
        let updates = self.alphas.iter().map(update).collect();
        self.schedule(updates, 0)
    }

    /// DPM-Solver++ SDE of second order. The logarithms of the signal-to-noise ratio may be infinite at both ends.
    pub(crate) fn dpm_sde(self, prediction: Prediction) -> Schedule {
        let lambda = |a: f64| 0.5 * (a / (1.0 - a)).ln();
        let mut updates = Vec::new();
        for (step, [now, next]) in self.alphas.iter().enumerate() {
            let x0 = sample(prediction, now.sqrt(), (1.0 - now).sqrt());
            let h = lambda(*next) - lambda(*now);
            let is_last = self.is_last(step);
            let mut denoised = x0;
            if step > 0 && !is_last {
                let ratio = (lambda(*now) - lambda(self.alphas[step - 1][0])) / h;
                let part = 1.0 / (2.0 * ratio);
                denoised = x0 * (1.0 + part) - Terms::kept(0) * part;
            }
            let latents = Terms::latents() * (((1.0 - next) / (1.0 - now)).sqrt() * (-h).exp())
                - denoised * ((-2.0 * h).exp_m1() * next.sqrt())
                + Terms::noise() * ((1.0 - next) * -(-2.0 * h).exp_m1()).sqrt();
            let draws = if step > 0 && !is_last { 2 } else { 1 };
            updates.push(Update { latents, kept: vec![x0], sample: x0, draws });
        }
        self.schedule(updates, 1)
    }

    /// Whether nothing of the training lies below the step.
    fn is_last(&self, step: usize) -> bool {
        self.timesteps[step] < self.stride
    }

    fn schedule(self, updates: Vec<Update>, kept: usize) -> Schedule {
        let share = |a: f64| (1.0 - a).sqrt() as f32;
        let last = self.alphas.last().map_or(1.0, |pair| pair[1]);
        let levels = self.alphas.iter().map(|pair| pair[0]).chain([last]);
        let timesteps = self.timesteps.iter().map(|t| *t as f32).collect();
        Schedule { sigmas: levels.map(share).collect(), timesteps, updates, kept }
    }
}

fn beyond(timestep: u64, trained: usize, steps: usize) -> Error {
    Error::option(
        "steps",
        format_args!(
            "is {steps}, with which `scheduler.offset` gives the timestep {timestep} of {trained}; take fewer steps"
        ),
    )
}
