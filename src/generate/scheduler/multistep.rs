//! Multistep solvers in the log of the signal-to-noise ratio: DPM-Solver++ and UniPC, both in their x0 form.
//!
//! x = alpha x0 + sigma noise; lambda = ln(alpha / sigma) rises from step to step, to infinity where the last sigma is 0.

use super::diffusion::{alphas, timesteps};
use super::{Schedule, Terms, Update, sample};
use crate::error::{Error, Result};
use crate::model::manifest::{DpmSolverKind, LastSigma, Noise, Prediction, SchedulerSpec, Spacing, UnipcKind};

/// Karras' rho.
const RHO: f64 = 7.0;
/// What a flow's first sigma stays below 1, so that alpha is not 0.
const FLOW_MARGIN: f64 = 1e-6;
/// The signal that zero-SNR betas keep, so that sigma is finite.
const LEAST_ALPHA: f64 = 1.0 / (1 << 24) as f64;
/// Below so many steps the solvers end with a lower order.
const FEW_STEPS: usize = 15;

/// The noise levels of a run.
pub(super) struct Levels {
    /// `(alpha, sigma)` before each step and after the last.
    levels: Vec<[f64; 2]>,
    timesteps: Vec<f32>,
}

impl Levels {
    pub(super) fn new(
        noise: &Noise,
        spacing: Spacing,
        offset: u64,
        karras: bool,
        last_sigma: LastSigma,
        begins_at_noise: bool,
        steps: usize,
    ) -> Result<Self> {
        match noise {
            Noise::Betas(betas) => {
                let mut all = alphas(betas);
                if let (true, Some(last)) = (betas.zero_snr, all.last_mut()) {
                    *last = LEAST_ALPHA;
                }
                // sigma of the variance-exploding form, sigma / alpha.
                let ratios: Vec<f64> = all.iter().map(|a| ((1.0 - a) / a).sqrt()).collect();
                let (mut sigmas, timesteps) = if karras {
                    let sigmas = karras_sigmas(ratios[0], ratios[ratios.len() - 1], steps);
                    let timesteps: Vec<f64> = sigmas.iter().map(|sigma| timestep_of(*sigma, &ratios)).collect();
                    (sigmas, timesteps)
                } else {
                    let timesteps = timesteps(spacing, betas.train_steps, offset, steps, steps + 1);
                    let at = |t: &u64| ratios.get(*t as usize).copied();
                    let sigmas: Option<Vec<f64>> = timesteps.iter().map(at).collect();
                    let beyond = || Error::directory("manifest.json: `scheduler.offset` lies beyond the training");
                    (sigmas.ok_or_else(beyond)?, timesteps.into_iter().map(|t| t as f64).collect())
                };
                sigmas.push(if last_sigma == LastSigma::Zero { 0.0 } else { ratios[0] });
                let level = |sigma: f64| {
                    let alpha = 1.0 / f64::from(sigma as f32).hypot(1.0);
                    [alpha, f64::from(sigma as f32) * alpha]
                };
                let timesteps = timesteps.into_iter().map(|t| t as f32).collect();
                Ok(Self { levels: sigmas.into_iter().map(level).collect(), timesteps })
            }
            Noise::Flow { shift, train_steps } => {
                let last = 1.0 / *train_steps as f64;
                // UniPC begins at all noise, DPM-Solver++ a timestep below; both leave out what lies last.
                let first = if begins_at_noise { 1.0 } else { 1.0 - last };
                let base = |i: usize| first + (last - 1.0) * i as f64 / steps as f64;
                let shifted = |sigma: f64| shift * sigma / (1.0 + (shift - 1.0) * sigma);
                let mut sigmas: Vec<f64> = (0..steps).map(|i| shifted(base(i))).collect();
                if (sigmas[0] - 1.0).abs() < FLOW_MARGIN {
                    sigmas[0] -= FLOW_MARGIN;
                }
                let timesteps = sigmas.iter().map(|sigma| (sigma * *train_steps as f64).trunc() as f32).collect();
                sigmas.push(if last_sigma == LastSigma::Zero { 0.0 } else { sigmas[steps - 1] });
                // The original keeps sigmas in f32; near 1 that decides what alpha is.
                let level = |sigma: f64| [1.0 - f64::from(sigma as f32), f64::from(sigma as f32)];
                Ok(Self { levels: sigmas.into_iter().map(level).collect(), timesteps })
            }
        }
    }

    pub(super) fn schedule(self, spec: &SchedulerSpec, prediction: Prediction) -> Result<Schedule> {
        let (updates, kept) = match spec {
            SchedulerSpec::DpmSolver { order, solver, lower_order_final, euler_at_final, last_sigma, .. } => {
                let lowers = |left: usize| match left {
                    1 => {
                        *euler_at_final
                            || *last_sigma == LastSigma::Zero
                            || (*lower_order_final && self.steps() < FEW_STEPS)
                    }
                    2 => *lower_order_final && self.steps() < FEW_STEPS,
                    _ => false,
                };
                (self.dpm_solver(usize::from(*order), *solver, lowers, prediction), usize::from(*order) - 1)
            }
            SchedulerSpec::Unipc { order, solver, lower_order_final, disable_corrector, .. } => {
                let updates =
                    self.unipc(usize::from(*order), *solver, *lower_order_final, disable_corrector, prediction);
                (updates, usize::from(*order) + 1)
            }
            _ => return Err(Error::internal("not a multistep solver")),
        };
        let is_flow = matches!(prediction, Prediction::Velocity {});
        let share = |[alpha, sigma]: &[f64; 2]| {
            let share = if is_flow { *sigma } else { sigma / alpha.hypot(*sigma) };
            share as f32
        };
        Ok(Schedule { sigmas: self.levels.iter().map(share).collect(), timesteps: self.timesteps, updates, kept })
    }

    fn steps(&self) -> usize {
        self.timesteps.len()
    }

    fn lambda(&self, index: usize) -> f64 {
        let [alpha, sigma] = self.levels[index];
        alpha.ln() - sigma.ln()
    }

    /// `kept` holds x0 of the last steps, the newest first.
    fn dpm_solver(
        &self,
        order: usize,
        solver: DpmSolverKind,
        lowers: impl Fn(usize) -> bool,
        prediction: Prediction,
    ) -> Vec<Update> {
        let update = |step: usize| {
            let ([alpha, sigma], [next_alpha, next_sigma]) = (self.levels[step], self.levels[step + 1]);
            let x0 = sample(prediction, alpha, sigma);
            let h = self.lambda(step + 1) - self.lambda(step);
            let left = self.steps() - step;
            let order_now = match order.min(step + 1) {
                _ if left == 1 && lowers(1) => 1,
                3 if left == 2 && lowers(2) => 2,
                order => order,
            };
            let decay = next_alpha * (-h).exp_m1();
            let mut next = Terms::latents() * (next_sigma / sigma) - x0 * decay;
            let ratio = |back: usize| (self.lambda(step + 1 - back) - self.lambda(step - back)) / h;
            // The first derivative by h, in the middle of the step or over all of it.
            let whole = next_alpha * ((-h).exp_m1() / h + 1.0);
            match order_now {
                2 => {
                    let slope = (x0 - Terms::kept(0)) * (1.0 / ratio(1));
                    next = match solver {
                        DpmSolverKind::Midpoint => next - slope * (0.5 * decay),
                        DpmSolverKind::Heun => next + slope * whole,
                    };
                }
                3 => {
                    let (r0, r1) = (ratio(1), ratio(2));
                    let slopes = [(x0 - Terms::kept(0)) * (1.0 / r0), (Terms::kept(0) - Terms::kept(1)) * (1.0 / r1)];
                    let bend = slopes[0] - slopes[1];
                    let curve = next_alpha * (((-h).exp_m1() + h) / (h * h) - 0.5);
                    next = next + (slopes[0] + bend * (r0 / (r0 + r1))) * whole - bend * (curve / (r0 + r1));
                }
                _ => {}
            }
            Update { latents: next, kept: kept_samples(x0, order - 1), sample: x0, draws: 0 }
        };
        (0..self.steps()).map(update).collect()
    }

    /// `kept` holds x0 of the last `order` steps, the newest first, then the corrected latents of the last step.
    fn unipc(
        &self,
        order: usize,
        kind: UnipcKind,
        lower_order_final: bool,
        disable_corrector: &[u64],
        prediction: Prediction,
    ) -> Vec<Update> {
        let mut updates = Vec::new();
        let mut last_order = 0;
        for step in 0..self.steps() {
            let [alpha, sigma] = self.levels[step];
            let x0 = sample(prediction, alpha, sigma);
            let before = |back: usize| Terms::kept(back - 1);
            let mut x = Terms::latents();
            if step > 0 && !disable_corrector.contains(&(step as u64 - 1)) {
                // The same step again, now that its end is known.
                let slopes = self.slopes(step - 1, last_order, before(1), |back| before(back + 1));
                let bends = self.integrals(step - 1, last_order, kind);
                let weights = if last_order == 1 { vec![0.5] } else { bends.solve(last_order) };
                let end = x0 - before(1);
                let change = weights.iter().zip(slopes.iter().chain([&end])).map(|(weight, slope)| *slope * *weight);
                x = self.first_order(step - 1, Terms::kept(order), before(1)) - sum(change) * bends.factor(self, step);
            }
            let most = if lower_order_final { order.min(self.steps() - step) } else { order };
            last_order = most.min(step + 1);
            let slopes = self.slopes(step, last_order, x0, before);
            let bends = self.integrals(step, last_order, kind);
            let weights = match last_order {
                1 => Vec::new(),
                2 => vec![0.5],
                _ => bends.solve(last_order - 1),
            };
            let change = weights.iter().zip(&slopes).map(|(weight, slope)| *slope * *weight);
            let mut latents = self.first_order(step, x, x0);
            if last_order > 1 {
                latents = latents - sum(change) * bends.factor(self, step + 1);
            }
            let mut kept = kept_samples(x0, order);
            kept.push(x);
            updates.push(Update { latents, kept, sample: x0, draws: 0 });
        }
        updates
    }

    /// From `x`, whose sample is `x0`, over the step `step`.
    fn first_order(&self, step: usize, x: Terms, x0: Terms) -> Terms {
        let ([_, sigma], [next_alpha, next_sigma]) = (self.levels[step], self.levels[step + 1]);
        let h = self.lambda(step + 1) - self.lambda(step);
        x * (next_sigma / sigma) - x0 * (next_alpha * (-h).exp_m1())
    }

    /// Distances of earlier steps from `step`, in units of its length.
    fn ratio(&self, step: usize, back: usize) -> f64 {
        let now = self.lambda(step);
        (self.lambda(step - back) - now) / (self.lambda(step + 1) - now)
    }

    fn slopes(&self, step: usize, order: usize, x0: Terms, before: impl Fn(usize) -> Terms) -> Vec<Terms> {
        (1..order).map(|back| (before(back) - x0) * (1.0 / self.ratio(step, back))).collect()
    }

    /// What UniPC matches: powers of the distances, and integrals of the exponential.
    fn integrals(&self, step: usize, order: usize, kind: UnipcKind) -> Integrals {
        let h = -(self.lambda(step + 1) - self.lambda(step));
        let scale = match kind {
            UnipcKind::Bh1 => h,
            UnipcKind::Bh2 => h.exp_m1(),
        };
        let distances = (1..order).map(|back| self.ratio(step, back)).chain([1.0]).collect();
        let mut integral = h.exp_m1() / h - 1.0;
        let mut factorial = 1.0;
        let mut values = Vec::new();
        for power in 1..=order {
            values.push(integral * factorial / scale);
            factorial *= (power + 1) as f64;
            integral = integral / h - 1.0 / factorial;
        }
        Integrals { distances, values, scale }
    }
}

struct Integrals {
    distances: Vec<f64>,
    values: Vec<f64>,
    scale: f64,
}

impl Integrals {
    fn factor(&self, levels: &Levels, end: usize) -> f64 {
        levels.levels[end][0] * self.scale
    }

    /// Weights w of `count` slopes with sum over k of w[k] distances[k]^i = values[i], by Gauss.
    fn solve(&self, count: usize) -> Vec<f64> {
        let mut rows: Vec<Vec<f64>> = (0..count)
            .map(|power| {
                let powers = self.distances[..count].iter().map(|distance| distance.powi(power as i32));
                powers.chain([self.values[power]]).collect()
            })
            .collect();
        for column in 0..count {
            let pivot = (column..count).max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()));
            rows.swap(column, pivot.unwrap_or(column));
            let reference = rows[column].clone();
            for (_, row) in rows.iter_mut().enumerate().filter(|(index, _)| *index != column) {
                let factor = row[column] / reference[column];
                row.iter_mut().zip(&reference).for_each(|(number, above)| *number -= factor * above);
            }
        }
        (0..count).map(|k| rows[k][count] / rows[k][k]).collect()
    }
}

fn sum(terms: impl Iterator<Item = Terms>) -> Terms {
    terms.fold(Terms::default(), |sum, term| sum + term)
}

/// The newest sample first, then those that were kept, one place later.
fn kept_samples(x0: Terms, count: usize) -> Vec<Terms> {
    (0..count).map(|index| if index == 0 { x0 } else { Terms::kept(index - 1) }).collect()
}

/// From the largest to the smallest, evenly in the seventh root.
fn karras_sigmas(smallest: f64, largest: f64, steps: usize) -> Vec<f64> {
    let (low, high) = (smallest.powf(1.0 / RHO), largest.powf(1.0 / RHO));
    let at = |i: usize| high + i as f64 / (steps.max(2) - 1) as f64 * (low - high);
    (0..steps).map(|i| at(i).powf(RHO)).collect()
}

/// The timestep of the training at which the noise is `sigma`, between two by the logarithm.
fn timestep_of(sigma: f64, ratios: &[f64]) -> f64 {
    let above = ratios.partition_point(|ratio| *ratio <= sigma).clamp(1, ratios.len() - 1);
    let (low, high) = (ratios[above - 1].ln(), ratios[above].ln());
    let share = ((low - sigma.ln()) / (low - high)).clamp(0.0, 1.0);
    ((1.0 - share) * (above - 1) as f64 + share * above as f64).round_ties_even()
}
