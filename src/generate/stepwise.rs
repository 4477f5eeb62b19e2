//! For hosts that own the loop: one step at a time, with their own latents, sigmas and scheduler.

use ndarray::ArrayD;

use super::request::Request;
use crate::error::{At, Error, ErrorKind, Result};
use crate::exit::enter;
use crate::model::manifest::{Manifest, Prediction};
use crate::runtime::tensor::BufferId;
use crate::trace::StepRecord;

/// Refuses a host's latents that hold NaN or infinity.
pub(super) fn check_finite(latents: &ArrayD<f32>) -> Result<()> {
    let number = latents.iter().find(|number| !number.is_finite());
    number.map_or(Ok(()), |number| Err(Error::not_finite("the tensor `latents`", *number).about("latents")))
}

impl Request {
    /// The velocity of the next step, after guidance, for latents `[batch, tokens, features]` at noise level `sigma`
    /// (dimensionless, 1 noise … 0 picture); and what each branch decided. The cache lives in the request: a host calls
    /// this once a step, [`steps`](Self::steps) times at most, and moves the latents itself, for Euler by
    /// `latents += (next sigma - sigma) * velocity`. [`Engine::denoiser`](crate::Engine::denoiser) makes a session for
    /// hosts that combine the branches themselves.
    ///
    /// # Errors
    /// `Input` for latents of another shape or a negative sigma; `Numeric` for numbers that are not finite; `State` after
    /// the last step; else as `run`.
    pub fn velocity(&mut self, latents: &ArrayD<f32>, sigma: f32) -> Result<(ArrayD<f32>, Vec<StepRecord>)> {
        let _inside = enter()?;
        let before = self.accept(latents, sigma)?;
        let step = self.done;
        let mut records = Vec::new();
        self.predict(step, &mut records, &mut ()).at(format_args!("step {step}"))?;
        self.done += 1;
        Ok((self.velocity_of(self.prediction, &before, sigma)?, records))
    }

    /// Takes a host's latents and noise level for the step that comes, and gives the latents as a list.
    pub(super) fn accept(&mut self, latents: &ArrayD<f32>, sigma: f32) -> Result<Vec<f32>> {
        let step = self.done;
        check_loop(&self.engine.directory.manifest)?;
        if step >= self.steps() {
            return Err(Error::state(format!(
                "all {step} steps of the request are done; ask for more with its `steps`"
            )));
        }
        self.check_shape(latents)?;
        check_finite(latents)?;
        if !sigma.is_finite() {
            return Err(Error::new(ErrorKind::Numeric, format!("sigma is {sigma}; it must be finite")).about("sigma"));
        }
        if sigma < 0.0 {
            return Err(Error::input(format!("sigma is {sigma}; it must not be negative")).about("sigma"));
        }
        let before: Vec<f32> = latents.iter().copied().collect();
        self.buffers.write(self.latents, &before)?;
        self.schedule.set_sigma(step, sigma, &self.engine.directory.manifest.scheduler);
        Ok(before)
    }

    pub(super) fn check_shape(&self, latents: &ArrayD<f32>) -> Result<()> {
        let shape = self.latents_shape();
        if latents.shape() == shape {
            return Ok(());
        }
        let message = format!("the latents have the shape {:?}; expected {shape:?}", latents.shape());
        Err(Error::input(message).about("latents"))
    }

    fn latents_shape(&self) -> Vec<usize> {
        self.buffers.shape(self.latents).iter().map(|extent| *extent as usize).collect()
    }

    /// A prediction as a velocity: `before` are the latents that it was made for.
    pub(super) fn velocity_of(&self, prediction: BufferId, before: &[f32], sigma: f32) -> Result<ArrayD<f32>> {
        let mut numbers = self.buffers.read(prediction)?;
        if let Prediction::Sample { min_sigma } = self.engine.directory.manifest.prediction {
            let sigma = sigma.max(min_sigma as f32);
            numbers.iter_mut().zip(before).for_each(|(number, x)| *number = (x - *number) / sigma);
        }
        ArrayD::from_shape_vec(self.latents_shape(), numbers)
            .map_err(|error| Error::internal("a velocity of an impossible shape").with_source(error))
    }
}

/// Refuses models whose loop a host cannot own.
fn check_loop(manifest: &Manifest) -> Result<()> {
    let has_velocity = matches!(manifest.prediction, Prediction::Velocity {} | Prediction::Sample { .. });
    let why = if !has_velocity || !manifest.scheduler.is_flow() {
        "predicts no velocity"
    } else if manifest.low_noise.is_some() {
        "has two transformers, whose steps follow from its own scheduler"
    } else {
        return Ok(());
    };
    Err(Error::usage(format!("this model {why}, so that a host cannot own its loop; let the engine run all steps")))
}
