//! A scheduler is a table, computed before the first step: noise levels, timesteps, and how each step makes the next
//! latents of what there is.
//!
//! Every scheduler's step is linear in the latents x, the prediction, the tensors that it keeps of earlier steps, and
//! noise. So each is written as arithmetic on [`Terms`], weights of these tensors, in f64; the device only ever computes
//! weighted sums (`generate/sampler.rs`).

mod diffusion;
mod flow;
mod levels;
mod multistep;
mod terms;

pub(crate) use terms::Terms;

use crate::error::{Error, Result};
use crate::model::manifest::{BetaSchedule, Prediction, SchedulerSpec};

/// Longest schedule; diffusion models use 4 to 100 steps.
const MAX_STEPS: usize = 10_000;
/// Timesteps of models that are told sigma itself.
const FLOW_TIMESTEPS: f32 = 1000.0;

/// One generation's noise levels and updates.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    /// `steps + 1` noise levels, from 1 (noise) to 0 (picture), dimensionless; from 0 to 1 where the manifest says
    /// `inverted`. Where the sample shrinks as noise grows: the noise's share, sqrt(1 - a).
    pub sigmas: Vec<f32>,
    /// What the model is told of each step.
    pub timesteps: Vec<f32>,
    pub updates: Vec<Update>,
    /// How many tensors are kept from step to step.
    pub kept: usize,
}

/// What one step makes: the next latents, and each tensor that is kept.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Update {
    pub latents: Terms,
    pub kept: Vec<Terms>,
    /// The picture that the prediction implies, for previews.
    pub sample: Terms,
    /// How often the original draws noise in this step; only the last draw counts.
    pub draws: usize,
}

impl Schedule {
    /// The schedule of `spec`; `image_tokens` matters for a dynamic shift only.
    ///
    /// # Errors
    /// `Usage` when the number of steps is 0, absurd, more than the model was trained with, or one at which the scheduler's
    /// formulas divide by zero; `EngineDirectory` for a shift that is impossible at this size.
    pub(crate) fn new(spec: &SchedulerSpec, prediction: Prediction, steps: usize, image_tokens: u64) -> Result<Self> {
        let most = match spec {
            SchedulerSpec::Ddim { betas, .. } | SchedulerSpec::DpmSde { betas, .. } => {
                MAX_STEPS.min(betas.train_steps as usize)
            }
            _ => MAX_STEPS,
        };
        if !(1..=most).contains(&steps) {
            return Err(Error::option("steps", format_args!("is {steps}; expected 1 to {most}")));
        }
        let schedule = match spec {
            SchedulerSpec::FlowMatchEuler { .. } => flow::schedule(spec, prediction, steps, image_tokens)?,
            SchedulerSpec::Ddim { betas, spacing, offset, last_alpha } => {
                diffusion::TimestepGrid::new(betas, *spacing, *offset, *last_alpha, steps, false)?.ddim(prediction)
            }
            SchedulerSpec::DpmSde { betas, spacing, offset, last_alpha } => {
                // The original of this sampler has f64 betas in this schedule.
                let wide = betas.schedule == BetaSchedule::ScaledLinear;
                diffusion::TimestepGrid::new(betas, *spacing, *offset, *last_alpha, steps, wide)?.dpm_sde(prediction)
            }
            SchedulerSpec::DpmSolver { .. } | SchedulerSpec::Unipc { .. } => {
                multistep::schedule(spec, prediction, steps, image_tokens)?
            }
        };
        if schedule.is_finite() {
            return Ok(schedule);
        }
        let problem = "with which this model's scheduler divides by zero, as the original does; take another number";
        Err(Error::option("steps", format_args!("is {steps}, {problem}")))
    }

    /// Euler's method along given sigmas: x ← x + (next − now) · velocity, written over what the model predicts.
    pub(crate) fn euler(sigmas: Vec<f32>, spec: &SchedulerSpec, prediction: Prediction) -> Self {
        let stochastic = matches!(spec, SchedulerSpec::FlowMatchEuler { stochastic: true, .. });
        let count = spec.flow_timesteps() as f32;
        let last = sigmas.last().copied().unwrap_or_default();
        let update = |pair: &[f32]| flow::euler([pair[0], pair[1]], last, prediction, stochastic);
        let updates = sigmas.windows(2).map(update).collect();
        let timesteps = sigmas.iter().take(sigmas.len().saturating_sub(1)).map(|sigma| sigma * count);
        Self { timesteps: timesteps.collect(), updates, kept: 0, sigmas }
    }

    /// What a model is told that takes timesteps in thousandths, as sigma of flow matching is.
    pub(crate) fn thousandth(&self, step: usize) -> f32 {
        let (sigma, timestep) = (self.sigmas[step], self.timesteps[step]);
        // Where both are the same, without the rounding.
        if timestep == sigma * FLOW_TIMESTEPS { sigma } else { timestep / FLOW_TIMESTEPS }
    }

    /// Another noise level for a step, as a host of flow matching sets it.
    pub(crate) fn set_sigma(&mut self, step: usize, sigma: f32, spec: &SchedulerSpec) {
        self.sigmas[step] = sigma;
        self.timesteps[step] = sigma * spec.flow_timesteps() as f32;
    }

    fn is_finite(&self) -> bool {
        let weights = |terms: &Terms| [terms.latents, terms.prediction, terms.noise].into_iter().chain(terms.kept);
        let of_updates = self.updates.iter().flat_map(|update| update.kept.iter().chain([&update.latents]));
        let numbers = self.sigmas.iter().chain(&self.timesteps);
        of_updates.flat_map(weights).all(|weight| (weight as f32).is_finite()) && numbers.copied().all(f32::is_finite)
    }

    pub(crate) fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// Whether any step needs noise.
    pub(crate) fn is_stochastic(&self) -> bool {
        self.updates.iter().any(|update| update.draws > 0)
    }
}

/// x0 of x = alpha · x0 + sigma · noise, by what the model predicts; a velocity that of flow matching.
fn sample(prediction: Prediction, alpha: f64, sigma: f64) -> Terms {
    let (x, output) = (Terms::latents(), Terms::prediction());
    match prediction {
        Prediction::Velocity {} => x - output * sigma,
        Prediction::Sample { .. } => output,
        Prediction::Epsilon {} => (x - output * sigma) * (1.0 / alpha),
        Prediction::Change {} => x * alpha - output * sigma,
    }
}

#[cfg(test)]
mod tests;
