//! Multistep solvers in the log of the signal-to-noise ratio: DPM-Solver and UniPC.
//!
//! x = alpha x0 + sigma noise; lambda = ln(alpha / sigma) rises from step to step, to infinity where the last sigma is 0.
//! A solver integrates the sample x0, or the noise: the same formulas with alpha and sigma exchanged.

use super::levels::{Level, Levels};
use super::{Schedule, Terms, Update, sample};
use crate::error::{Error, Result};
use crate::model::manifest::{DpmAlgorithm, DpmSolverKind, LastSigma, Noise, Prediction, SchedulerSpec, UnipcKind};

/// Below so many steps the solvers end with a lower order.
const FEW_STEPS: usize = 15;

/// The table of `spec`, which is a multistep solver's.
pub(crate) fn schedule(
    spec: &SchedulerSpec,
    prediction: Prediction,
    steps: usize,
    image_tokens: u64,
) -> Result<Schedule> {
    let Levels { levels, timesteps } = Levels::new(spec, steps, image_tokens)?;
    let (updates, kept, noise) = match spec {
        SchedulerSpec::DpmSolver {
            noise,
            order,
            solver,
            lower_order_final,
            euler_at_final,
            last_sigma,
            algorithm,
            ..
        } => {
            let is_short = *lower_order_final && steps < FEW_STEPS;
            let lowers = |left: usize| match left {
                1 => *euler_at_final || *last_sigma == LastSigma::Zero || is_short,
                2 => is_short,
                _ => false,
            };
            let problem = Problem::new(&levels, prediction, algorithm.is_over_noise());
            let order = usize::from(*order);
            (problem.dpm_solver(order, *solver, *algorithm, lowers), order - 1, noise)
        }
        SchedulerSpec::Unipc { noise, order, solver, lower_order_final, disable_corrector, over_noise, .. } => {
            let problem = Problem::new(&levels, prediction, *over_noise);
            let order = usize::from(*order);
            (problem.unipc(order, *solver, *lower_order_final, disable_corrector), order + 1, noise)
        }
        _ => return Err(Error::internal("not a multistep solver")),
    };
    let is_flow = !matches!(noise, Noise::Betas(_));
    let share = |level: &Level| if is_flow { level.sigma } else { level.sigma / level.alpha.hypot(level.sigma) };
    let sigmas = levels.iter().map(|level| share(level) as f32).collect();
    Ok(Schedule { sigmas, timesteps, updates, kept })
}

/// What is integrated along the levels.
struct Problem {
    /// Of what is integrated, and of the other part of x; before each step, and after the last.
    shares: Vec<[f64; 2]>,
    /// What is integrated, as the prediction of each step gives it.
    integrands: Vec<Terms>,
    samples: Vec<Terms>,
}

impl Problem {
    fn new(levels: &[Level], prediction: Prediction, over_noise: bool) -> Self {
        let steps = &levels[..levels.len() - 1];
        let sample = |level: &Level| match prediction {
            // The original subtracts the noise as the scheduler counts it, even where that is not a flow's sigma.
            Prediction::Velocity {} => sample(prediction, level.alpha, level.count),
            _ => sample(prediction, level.alpha, level.sigma),
        };
        let noise = |level: &Level| {
            let (x, output) = (Terms::latents(), Terms::prediction());
            match prediction {
                Prediction::Epsilon {} => output,
                Prediction::Change {} => output * level.alpha + x * level.sigma,
                // The rules of the manifest leave only the sample.
                Prediction::Sample { .. } | Prediction::Velocity {} => (x - output * level.alpha) * (1.0 / level.sigma),
            }
        };
        let samples: Vec<Terms> = steps.iter().map(sample).collect();
        let integrands = if over_noise { steps.iter().map(noise).collect() } else { samples.clone() };
        let shares = |level: &Level| {
            if over_noise { [level.sigma, level.alpha] } else { [level.alpha, level.sigma] }
        };
        Self { shares: levels.iter().map(shares).collect(), integrands, samples }
    }

    fn steps(&self) -> usize {
        self.integrands.len()
    }

    fn lambda(&self, index: usize) -> f64 {
        let [share, other] = self.shares[index];
        share.ln() - other.ln()
    }

    /// `kept` holds the integrand of the last steps, the newest first.
    fn dpm_solver(
        &self,
        order: usize,
        solver: DpmSolverKind,
        algorithm: DpmAlgorithm,
        lowers: impl Fn(usize) -> bool,
    ) -> Vec<Update> {
        // With noise the sample's equation is integrated over twice the step, the noise's is weighed twice.
        let (stretch, weight, draws) = match algorithm {
            DpmAlgorithm::Sample | DpmAlgorithm::Noise => (1.0, 1.0, 0),
            DpmAlgorithm::StochasticSample => (2.0, 1.0, 1),
            DpmAlgorithm::StochasticNoise => (1.0, 2.0, 1),
        };
        let update = |step: usize| {
            let ([_, other], [next_share, next_other]) = (self.shares[step], self.shares[step + 1]);
            let now = self.integrands[step];
            let length = self.lambda(step + 1) - self.lambda(step);
            let h = stretch * length;
            let shrink = if algorithm == DpmAlgorithm::StochasticSample { (-length).exp() } else { 1.0 };
            let left = self.steps() - step;
            let order_now = match order.min(step + 1) {
                _ if left == 1 && lowers(1) => 1,
                3 if left == 2 && lowers(2) => 2,
                order => order,
            };
            let decay = weight * next_share * (-h).exp_m1();
            let mut next = Terms::latents() * (next_other / other * shrink) - now * decay;
            let ratio = |back: usize| (self.lambda(step + 1 - back) - self.lambda(step - back)) / length;
            // The first derivative by h, in the middle of the step or over all of it.
            let whole = weight * next_share * ((-h).exp_m1() / h + 1.0);
            match order_now {
                2 => {
                    let slope = (now - Terms::kept(0)) * (1.0 / ratio(1));
                    next = match solver {
                        DpmSolverKind::Midpoint => next - slope * (0.5 * decay),
                        DpmSolverKind::Heun => next + slope * whole,
                    };
                }
                3 => {
                    let (r0, r1) = (ratio(1), ratio(2));
                    let slopes = [(now - Terms::kept(0)) * (1.0 / r0), (Terms::kept(0) - Terms::kept(1)) * (1.0 / r1)];
                    let bend = slopes[0] - slopes[1];
                    // The original adds the half where it adds noise.
                    let half = if draws > 0 { 0.5 } else { -0.5 };
                    let curve = next_share * (((-h).exp_m1() + h) / (h * h) + half);
                    next = next + (slopes[0] + bend * (r0 / (r0 + r1))) * whole - bend * (curve / (r0 + r1));
                }
                _ => {}
            }
            let noise = match algorithm {
                DpmAlgorithm::Sample | DpmAlgorithm::Noise => 0.0,
                DpmAlgorithm::StochasticSample => next_other * (-(-2.0 * length).exp_m1()).sqrt(),
                DpmAlgorithm::StochasticNoise => next_share * (-2.0 * length).exp_m1().sqrt(),
            };
            let latents = next + Terms::noise() * noise;
            Update { latents, kept: kept_integrands(now, order - 1), sample: self.samples[step], draws }
        };
        (0..self.steps()).map(update).collect()
    }

    /// `kept` holds the integrand of the last `order` steps, the newest first, then the corrected latents of the last step.
    fn unipc(&self, order: usize, kind: UnipcKind, lower_order_final: bool, disable_corrector: &[u64]) -> Vec<Update> {
        let mut updates = Vec::new();
        let mut last_order = 0;
        for step in 0..self.steps() {
            let now = self.integrands[step];
            let before = |back: usize| Terms::kept(back - 1);
            let mut x = Terms::latents();
            if step > 0 && !disable_corrector.contains(&(step as u64 - 1)) {
                // The same step again, now that its end is known.
                let slopes = self.slopes(step - 1, last_order, before(1), |back| before(back + 1));
                let bends = self.integrals(step - 1, last_order, kind);
                let weights = if last_order == 1 { vec![0.5] } else { bends.solve(last_order) };
                let end = now - before(1);
                let change = weights.iter().zip(slopes.iter().chain([&end])).map(|(weight, slope)| *slope * *weight);
                x = self.first_order(step - 1, Terms::kept(order), before(1)) - sum(change) * bends.factor(self, step);
            }
            let most = if lower_order_final { order.min(self.steps() - step) } else { order };
            last_order = most.min(step + 1);
            let slopes = self.slopes(step, last_order, now, before);
            let bends = self.integrals(step, last_order, kind);
            let weights = match last_order {
                1 => Vec::new(),
                2 => vec![0.5],
                _ => bends.solve(last_order - 1),
            };
            let change = weights.iter().zip(&slopes).map(|(weight, slope)| *slope * *weight);
            let mut latents = self.first_order(step, x, now);
            if last_order > 1 {
                latents = latents - sum(change) * bends.factor(self, step + 1);
            }
            let mut kept = kept_integrands(now, order);
            kept.push(x);
            updates.push(Update { latents, kept, sample: self.samples[step], draws: 0 });
        }
        updates
    }

    /// From `x`, whose integrand is `now`, over the step `step`.
    fn first_order(&self, step: usize, x: Terms, now: Terms) -> Terms {
        let ([_, other], [next_share, next_other]) = (self.shares[step], self.shares[step + 1]);
        let h = self.lambda(step + 1) - self.lambda(step);
        x * (next_other / other) - now * (next_share * (-h).exp_m1())
    }

    /// Distances of earlier steps from `step`, in units of its length.
    fn ratio(&self, step: usize, back: usize) -> f64 {
        let now = self.lambda(step);
        (self.lambda(step - back) - now) / (self.lambda(step + 1) - now)
    }

    fn slopes(&self, step: usize, order: usize, now: Terms, before: impl Fn(usize) -> Terms) -> Vec<Terms> {
        (1..order).map(|back| (before(back) - now) * (1.0 / self.ratio(step, back))).collect()
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
    fn factor(&self, problem: &Problem, end: usize) -> f64 {
        problem.shares[end][0] * self.scale
    }

    /// Weights of `count` slopes, by Gauss: the sum over k of `weights[k] * distances[k]^i` is `values[i]`.
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

/// The newest first, then those that were kept, one place later.
fn kept_integrands(now: Terms, count: usize) -> Vec<Terms> {
    (0..count).map(|index| if index == 0 { now } else { Terms::kept(index - 1) }).collect()
}
