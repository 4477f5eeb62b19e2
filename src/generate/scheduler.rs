//! A scheduler is a table, computed before the first step: noise levels, timesteps, and how each step makes the next
//! latents of what there is.
//!
//! Every scheduler's step is linear in the latents x, the prediction, the tensors that it keeps of earlier steps, and
//! noise. So each is written as arithmetic on [`Terms`], weights of these tensors, in f64; the device only ever computes
//! weighted sums ([`super::sampler`]).

mod diffusion;
mod flow;
mod multistep;
mod terms;

pub(crate) use terms::Terms;

use crate::error::{Error, Result};
use crate::model::manifest::{Noise, Prediction, SchedulerSpec};

/// Longest schedule; diffusion models use 4 to 100 steps.
const MAX_STEPS: usize = 10_000;
/// Flow matching calls sigma 1 the timestep 1000.
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
    /// `Usage` when the number of steps is 0, absurd, or more than the model was trained with.
    pub(crate) fn new(spec: &SchedulerSpec, prediction: Prediction, steps: usize, image_tokens: u64) -> Result<Self> {
        let trained = match spec {
            SchedulerSpec::FlowMatchEuler { .. } => MAX_STEPS,
            SchedulerSpec::Ddim { betas, .. } | SchedulerSpec::DpmSde { betas, .. } => betas.train_steps as usize,
            SchedulerSpec::DpmSolver { noise, .. } | SchedulerSpec::Unipc { noise, .. } => match noise {
                Noise::Betas(betas) => betas.train_steps as usize - 1,
                Noise::Flow { .. } => MAX_STEPS,
            },
        };
        if !(1..=trained.min(MAX_STEPS)).contains(&steps) {
            let most = trained.min(MAX_STEPS);
            return Err(Error::option("steps", format_args!("is {steps}; expected 1 to {most}")));
        }
        match spec {
            SchedulerSpec::FlowMatchEuler { sigmas, shift, shift_terminal, inverted } => {
                let sigmas = flow::sigmas(*sigmas, shift, *shift_terminal, *inverted, steps, image_tokens);
                Ok(Self::euler(sigmas, prediction))
            }
            SchedulerSpec::Ddim { betas, spacing, offset, last_alpha } => {
                diffusion::Grid::new(betas, *spacing, *offset, *last_alpha, steps)?.ddim(prediction)
            }
            SchedulerSpec::DpmSde { betas, spacing, offset, last_alpha } => {
                diffusion::Grid::new(betas, *spacing, *offset, *last_alpha, steps)?.dpm_sde(prediction)
            }
            SchedulerSpec::DpmSolver { noise, spacing, offset, karras, last_sigma, .. }
            | SchedulerSpec::Unipc { noise, spacing, offset, karras, last_sigma, .. } => {
                let is_unipc = matches!(spec, SchedulerSpec::Unipc { .. });
                multistep::Levels::new(noise, *spacing, *offset, *karras, *last_sigma, is_unipc, steps)?
                    .schedule(spec, prediction)
            }
        }
    }

    /// Euler's method along given sigmas: x ← x + (next − now) · velocity, written over what the model predicts.
    pub(crate) fn euler(sigmas: Vec<f32>, prediction: Prediction) -> Self {
        let last = sigmas.last().copied().unwrap_or_default();
        let updates = sigmas.windows(2).map(|pair| flow::euler([pair[0], pair[1]], last, prediction)).collect();
        let timesteps = sigmas.iter().take(sigmas.len().saturating_sub(1)).map(|sigma| sigma * FLOW_TIMESTEPS);
        Self { timesteps: timesteps.collect(), updates, kept: 0, sigmas }
    }

    /// Another noise level for a step, as a host of flow matching sets it.
    pub(crate) fn set_sigma(&mut self, step: usize, sigma: f32) {
        self.sigmas[step] = sigma;
        self.timesteps[step] = sigma * FLOW_TIMESTEPS;
    }

    pub(crate) fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// Whether any step needs noise.
    pub(crate) fn is_stochastic(&self) -> bool {
        self.updates.iter().any(|update| update.draws > 0)
    }
}

/// x0 of x = alpha · x0 + sigma · noise, by what the model predicts.
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
