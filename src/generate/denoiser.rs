//! For hosts that own the loop and know nothing of blocks: a session that stands where the transformer was.

use ndarray::ArrayD;

use super::meter::elapsed_ms;
use super::prepare;
use super::request::{Output, Request};
use super::stepwise::check_finite;
use crate::cache::Branch;
use crate::engine::Engine;
use crate::error::{At, Error, Result};
use crate::exit::enter;
use crate::request::inputs::Inputs;
use crate::request::options::{GuidanceBy, RequestOptions};
use crate::trace::{StepRecord, Trace};

/// One generation, call by call. The cache lives in it.
pub struct Denoiser {
    request: Request,
    by: GuidanceBy,
    records: Vec<StepRecord>,
    /// Branches of the present step that are done.
    branches_done: usize,
    /// The noise level of the present step, once a branch of it is done.
    sigma: Option<f32>,
    /// What the cond branch of the present step leaves to the uncond branch.
    cond_diffs: Vec<Option<f32>>,
    has_failed: bool,
}

impl Engine {
    /// Prepares a generation that a host drives, as [`request`](Self::request) does one that runs by itself.
    ///
    /// # Errors
    /// As [`request`](Self::request); `Usage` for a scale of guidance that the host has.
    pub fn denoiser(&self, inputs: &Inputs, options: &RequestOptions, by: GuidanceBy) -> Result<Denoiser> {
        let request = prepare::request(self.loaded(), inputs, options, by)?;
        let (records, cond_diffs) = Default::default();
        Ok(Denoiser { request, by, records, branches_done: 0, sigma: None, cond_diffs, has_failed: false })
    }
}

impl Denoiser {
    /// Denoising steps of the session.
    pub fn steps(&self) -> usize {
        self.request.steps()
    }

    /// The noise levels of the engine's own scheduler, `steps + 1`, which a host may use or not.
    pub fn sigmas(&self) -> &[f32] {
        &self.request.schedule.sigmas
    }

    /// The latents that the session starts with (those of the last call, once there was one): `[batch, tokens,
    /// features]`.
    ///
    /// # Errors
    /// `Runtime` when they cannot be read from the device.
    pub fn latents(&self) -> Result<ArrayD<f32>> {
        self.request.latents()
    }

    /// The branches of each step, in the order in which the policy wants them; one where there is no guidance, or the
    /// library combines them.
    pub fn branches(&self) -> Vec<Option<Branch>> {
        match self.by {
            GuidanceBy::Library => vec![None],
            GuidanceBy::Host => self.request.branches().iter().map(|state| Some(state.branch)).collect(),
        }
    }

    /// The velocity for latents `[batch, tokens, features]` at noise level `sigma` (dimensionless, 1 noise … 0 picture;
    /// a timestep of flow matching is 1000 sigma); and what was decided. `branch` is the next one of
    /// [`branches`](Self::branches); the last one ends the step.
    ///
    /// # Errors
    /// `Input` for latents of another shape or a negative sigma; `Numeric` for numbers that are not finite; `State` for
    /// another branch, a sigma that is not that of the step's other branch, after the last step, and after an error that
    /// left the session in the middle of a step; else as [`Request::run`].
    pub fn velocity(
        &mut self,
        branch: Option<Branch>,
        latents: &ArrayD<f32>,
        sigma: f32,
    ) -> Result<(ArrayD<f32>, Vec<StepRecord>)> {
        let _inside = enter()?;
        if self.has_failed {
            return Err(Error::state("this session has failed in the middle of a step; make another one"));
        }
        let branches = self.branches();
        let expected = branches[self.branches_done];
        if branch != expected {
            let name = |branch: Option<Branch>| branch.map_or("both", Branch::as_str);
            let (given, expected) = (name(branch), name(expected));
            return Err(
                Error::state(format!("the branch is {given}; this session expects {expected} now")).about("branch")
            );
        }
        if let Some(of_step) = self.sigma.filter(|of_step| sigma.is_finite() && *of_step != sigma) {
            let message =
                format!("sigma is {sigma}, but the other branch of this step had {of_step}; both have the same");
            return Err(Error::state(message).about("sigma"));
        }
        let before = self.request.accept(latents, sigma)?;
        let step = self.request.done;
        let index = self.branches_done;
        let first = self.records.len();
        self.has_failed = true;
        let prediction = match branch {
            None => {
                self.request.predict(step, &mut self.records, &mut ()).at(format_args!("step {step}"))?;
                self.request.prediction
            }
            Some(_) => {
                self.request.write_time(step)?;
                let Self { request, cond_diffs, records, .. } = self;
                request.predict_branch(index, step, cond_diffs, records, &mut ()).at(format_args!("step {step}"))?;
                request.branches()[index].prediction
            }
        };
        let velocity = self.request.velocity_of(prediction, &before, sigma)?;
        self.has_failed = false;
        self.branches_done += 1;
        self.sigma = Some(sigma);
        if self.branches_done == branches.len() {
            self.sigma = None;
            self.branches_done = 0;
            self.cond_diffs.clear();
            self.request.done += 1;
        }
        Ok((velocity, self.records[first..].to_vec()))
    }

    /// What happened so far.
    pub fn trace(&self) -> Trace {
        self.request.trace(self.records.clone())
    }

    /// Decodes a host's final latents `[batch, tokens, features]`, and adds what happened.
    ///
    /// # Errors
    /// `Input` for latents of another shape; `Numeric` for numbers that are not finite; `Runtime`.
    pub fn output(&mut self, latents: &ArrayD<f32>) -> Result<Output> {
        let _inside = enter()?;
        self.request.check_shape(latents)?;
        check_finite(latents)?;
        let start = std::time::Instant::now();
        let decoded = self.request.decode(latents)?;
        self.request.timings.decode_ms = elapsed_ms(start);
        Ok(self.request.output(latents.clone(), decoded, self.records.clone()))
    }
}
