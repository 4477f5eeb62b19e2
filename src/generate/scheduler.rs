//! Sigmas and update coefficients: a scheduler is a table, computed before the first step.

use crate::error::{Error, Result};
use crate::model::manifest::{Prediction, SchedulerSpec, Shift, TimeShift};

/// Longest schedule; diffusion models use 4 to 100 steps.
const MAX_STEPS: usize = 10_000;

/// One generation's noise levels.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    /// `steps + 1` noise levels, from 1 (noise) to 0 (picture), dimensionless.
    pub sigmas: Vec<f32>,
}

/// latents ← keep · latents + take · prediction
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Update {
    pub keep: f32,
    pub take: f32,
}

impl Schedule {
    /// The schedule of `spec`; `image_tokens` matters for a dynamic shift only.
    ///
    /// # Errors
    /// `Usage` when the number of steps is 0 or absurd.
    pub(crate) fn new(spec: SchedulerSpec, steps: usize, image_tokens: u64) -> Result<Self> {
        if !(1..=MAX_STEPS).contains(&steps) {
            return Err(Error::option("steps", format_args!("is {steps}; expected 1 to {MAX_STEPS}")));
        }
        let SchedulerSpec::FlowMatchEuler { shift, shift_terminal } = spec;
        let base = |i: usize| 1.0 - (1.0 - 1.0 / steps as f64) * i as f64 / (steps.max(2) - 1) as f64;
        let mut sigmas: Vec<f64> = (0..steps).map(|i| shifted(shift, base(i), image_tokens)).collect();
        if let (Some(terminal), Some(last)) = (shift_terminal, sigmas.last().copied()) {
            let scale = (1.0 - last) / (1.0 - terminal);
            if scale > 0.0 {
                sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / scale);
            }
        }
        sigmas.push(0.0);
        Ok(Self { sigmas: sigmas.into_iter().map(|sigma| sigma as f32).collect() })
    }

    pub(crate) fn steps(&self) -> usize {
        self.sigmas.len() - 1
    }

    /// Euler: x ← x + (sigma[i+1] − sigma[i]) · velocity, written over what the model predicts.
    pub(crate) fn update(&self, step: usize, prediction: Prediction) -> Update {
        between(f64::from(self.sigmas[step]), f64::from(self.sigmas[step + 1]), prediction)
    }

    /// The same in one stride to the end: to the picture that the prediction of a step implies.
    pub(crate) fn to_picture(&self, step: usize, prediction: Prediction) -> Update {
        between(f64::from(self.sigmas[step]), 0.0, prediction)
    }
}

fn between(now: f64, next: f64, prediction: Prediction) -> Update {
    match prediction {
        Prediction::Velocity {} => Update { keep: 1.0, take: (next - now) as f32 },
        Prediction::Sample { min_sigma } => {
            let part = (next - now) / now.max(min_sigma);
            Update { keep: (1.0 + part) as f32, take: -part as f32 }
        }
    }
}

fn shifted(shift: Shift, sigma: f64, image_tokens: u64) -> f64 {
    match shift {
        Shift::None {} => sigma,
        Shift::Static { shift } => shift * sigma / (1.0 + (shift - 1.0) * sigma),
        Shift::Dynamic { base_tokens, max_tokens, base_shift, max_shift, time_shift } => {
            let slope = (max_shift - base_shift) / (max_tokens as f64 - base_tokens as f64);
            let mu = base_shift + slope * (image_tokens as f64 - base_tokens as f64);
            let mu = if time_shift == TimeShift::Exponential { mu.exp() } else { mu };
            mu / (mu + (1.0 / sigma - 1.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// diffusers computes sigmas in f32.
    const TOLERANCE: f32 = 2e-6;

    #[derive(serde::Deserialize)]
    struct File {
        cases: Vec<Case>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        steps: usize,
        image_tokens: u64,
        scheduler: SchedulerSpec,
        sigmas: Vec<f32>,
    }

    #[test]
    fn sigmas_equal_those_of_diffusers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/reference/sigmas.json");
        let file: File = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(file.cases.len() >= 20);
        for case in file.cases {
            let schedule = Schedule::new(case.scheduler, case.steps, case.image_tokens).unwrap();
            assert_eq!(schedule.sigmas.len(), case.sigmas.len());
            for (ours, theirs) in schedule.sigmas.iter().zip(&case.sigmas) {
                assert!((ours - theirs).abs() <= TOLERANCE, "{:?}: {ours} {theirs}", case.scheduler);
            }
        }
    }

    #[test]
    fn a_sample_prediction_moves_like_its_velocity() {
        let spec = SchedulerSpec::FlowMatchEuler { shift: Shift::None {}, shift_terminal: None };
        let schedule = Schedule::new(spec, 28, 64).unwrap();
        for step in 0..28 {
            let (now, next) = (schedule.sigmas[step], schedule.sigmas[step + 1]);
            let (x, x0) = (0.7_f32, -0.3_f32);
            let expected = x + (next - now) * (x - x0) / now.max(0.02);
            let update = schedule.update(step, Prediction::Sample { min_sigma: 0.02 });
            assert!((update.keep * x + update.take * x0 - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn absurd_step_counts_are_refused() {
        let spec = SchedulerSpec::FlowMatchEuler { shift: Shift::None {}, shift_terminal: None };
        for steps in [0, MAX_STEPS + 1, usize::MAX] {
            assert!(Schedule::new(spec, steps, 64).is_err(), "{steps}");
        }
    }
}
