//! Against diffusers: its noise levels, and what its schedulers make of known predictions and noise.

use std::path::Path;

use super::*;
use crate::model::manifest::{BaseSigmas, Noise, Shift};

/// diffusers computes sigmas in f32.
const TOLERANCE: f32 = 2e-6;

fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/reference").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn unshifted() -> SchedulerSpec {
    SchedulerSpec::FlowMatchEuler {
        sigmas: BaseSigmas::Linear { last: None },
        shift: Shift::None {},
        shift_terminal: None,
        inverted: false,
        train_steps: 1000,
        spread: None,
        stochastic: false,
    }
}

#[derive(serde::Deserialize)]
struct SigmasFile {
    cases: Vec<SigmasCase>,
}

#[derive(serde::Deserialize)]
struct SigmasCase {
    steps: usize,
    image_tokens: u64,
    scheduler: SigmasOf,
    sigmas: Vec<f32>,
}

#[derive(serde::Deserialize)]
struct SigmasOf {
    shift: Shift,
    shift_terminal: Option<f64>,
}

#[test]
fn sigmas_equal_those_of_diffusers() {
    let file: SigmasFile = read("sigmas.json");
    assert!(file.cases.len() >= 20);
    for case in file.cases {
        let SigmasOf { shift, shift_terminal } = case.scheduler;
        let sigmas = BaseSigmas::Linear { last: None };
        let SchedulerSpec::FlowMatchEuler { inverted, train_steps, spread, stochastic, .. } = unshifted() else {
            unreachable!()
        };
        let spec =
            SchedulerSpec::FlowMatchEuler { sigmas, shift, shift_terminal, inverted, train_steps, spread, stochastic };
        let schedule = Schedule::new(&spec, Prediction::Velocity {}, case.steps, case.image_tokens).unwrap();
        assert_eq!(schedule.sigmas.len(), case.sigmas.len());
        for (ours, theirs) in schedule.sigmas.iter().zip(&case.sigmas) {
            assert!((ours - theirs).abs() <= TOLERANCE, "{spec:?}: {ours} {theirs}");
        }
    }
}

#[test]
fn a_sample_prediction_moves_like_its_velocity() {
    let schedule = Schedule::new(&unshifted(), Prediction::Sample { min_sigma: 0.02 }, 28, 64).unwrap();
    for (step, update) in schedule.updates.iter().enumerate() {
        let (now, next) = (schedule.sigmas[step], schedule.sigmas[step + 1]);
        let (x, x0) = (0.7_f32, -0.3_f32);
        let expected = x + (next - now) * (x - x0) / now.max(0.02);
        let moved = update.latents.latents as f32 * x + update.latents.prediction as f32 * x0;
        assert!((moved - expected).abs() < 1e-6);
    }
}

#[test]
fn absurd_step_counts_are_refused() {
    for steps in [0, MAX_STEPS + 1, usize::MAX] {
        assert!(Schedule::new(&unshifted(), Prediction::Velocity {}, steps, 64).is_err(), "{steps}");
    }
}

#[derive(serde::Deserialize)]
struct File {
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    scheduler: SchedulerSpec,
    prediction: Prediction,
    steps: usize,
    image_tokens: u64,
    timesteps: Vec<f32>,
    /// After each step, at three places.
    latents: Vec<[f64; 3]>,
}

/// The place `k` before the first step, and the part of a prediction that does not depend on the latents; the recorder
/// computes the same.
fn wave(step: usize, k: usize) -> f64 {
    (1.3 * step as f64 + 0.7 * k as f64 + 0.2).sin()
}

/// The last noise that is drawn in a step.
fn noise(step: usize, draw: usize, k: usize) -> f64 {
    (2.1 * step as f64 + 0.4 * draw as f64 + 1.1 * k as f64).cos()
}

/// What a table makes of the recorder's predictions and noise at the place `k`, after each step.
fn walk(schedule: &Schedule, k: usize) -> Vec<f64> {
    let mut x = wave(1000, k);
    let mut kept = [0.0; terms::MAX_KEPT];
    let step = |(step, update): (usize, &Update)| {
        let output = wave(step, k) + 0.3 * x;
        let drawn = noise(step, update.draws.max(1) - 1, k);
        let sum = |terms: &Terms| {
            let of_kept: f64 = terms.kept.iter().zip(kept).map(|(weight, tensor)| weight * tensor).sum();
            terms.latents * x + terms.prediction * output + of_kept + terms.noise * drawn
        };
        let next = sum(&update.latents);
        let mut next_kept = kept;
        update.kept.iter().zip(&mut next_kept).for_each(|(terms, place)| *place = sum(terms));
        (x, kept) = (next, next_kept);
        x
    };
    schedule.updates.iter().enumerate().map(step).collect()
}

/// Relative to numbers above 1.
fn error(ours: f64, theirs: f64) -> f64 {
    (ours - theirs).abs() / (1.0 + theirs.abs())
}

#[test]
fn steps_equal_those_of_diffusers() {
    let file: File = read("schedulers.json");
    assert!(file.cases.len() >= 40);
    for case in file.cases {
        let Case { name, scheduler, prediction, steps, image_tokens, .. } = case;
        let schedule = Schedule::new(&scheduler, prediction, steps, image_tokens).unwrap();
        assert_eq!(schedule.timesteps.len(), case.timesteps.len(), "{name}");
        for (ours, theirs) in schedule.timesteps.iter().zip(&case.timesteps) {
            assert!((ours - theirs).abs() <= 1e-5 * 1000.0, "{name}, {steps} steps: timestep {ours}, not {theirs}");
        }
        for k in 0..3 {
            for (step, x) in walk(&schedule, k).into_iter().enumerate() {
                let (expected, error) = (case.latents[step][k], error(x, case.latents[step][k]));
                assert!(error <= 1e-5, "{name}, {steps} steps, step {step}: {x}, not {expected} ({error:e})");
            }
        }
    }
}

#[derive(serde::Deserialize)]
struct SettingsFile {
    image_tokens: u64,
    cases: Vec<SettingsCase>,
}

#[derive(serde::Deserialize)]
struct SettingsCase {
    of: String,
    scheduler: SchedulerSpec,
    prediction: Prediction,
    runs: Vec<Run>,
}

/// In diffusers; null where its numbers are not finite.
#[derive(serde::Deserialize)]
struct Run {
    steps: usize,
    /// The first, the last, and the sum of all.
    timesteps: Option<[f64; 3]>,
    /// After the last step.
    latents: Option<[f64; 3]>,
}

/// One step has no last sigma to stretch to, and no parabola: the engine leaves both out, where diffusers divides by 0.
fn is_defined_here(scheduler: &SchedulerSpec, steps: usize) -> bool {
    let is_parabola = |sigmas: &BaseSigmas| matches!(sigmas, BaseSigmas::LinearQuadratic { .. });
    let (sigmas, terminal) = match scheduler {
        SchedulerSpec::FlowMatchEuler { sigmas, shift_terminal, .. } => (Some(sigmas), shift_terminal),
        SchedulerSpec::Unipc { noise: Noise::Flow { sigmas, shift_terminal, .. }, .. } => {
            (sigmas.as_ref(), shift_terminal)
        }
        _ => return false,
    };
    steps == 1 && (terminal.is_some() || sigmas.is_some_and(is_parabola))
}

/// What the exporter writes for whatever settings loads, and computes what diffusers does or is refused for its steps.
#[test]
fn settings_load_and_equal_those_of_diffusers() {
    let file: SettingsFile = read("scheduler_settings.json");
    assert!(file.cases.len() >= 200);
    let mut wrong = Vec::new();
    for SettingsCase { of, scheduler, prediction, runs } in file.cases {
        if let Err(error) = scheduler.check(prediction) {
            wrong.push(format!("{of}: {error}"));
            continue;
        }
        for Run { steps, timesteps, latents } in runs {
            let schedule = Schedule::new(&scheduler, prediction, steps, file.image_tokens);
            let (Some(timesteps), Some(latents)) = (timesteps, latents) else {
                if schedule.is_ok() && !is_defined_here(&scheduler, steps) {
                    wrong.push(format!("{of}: {steps} steps: not finite in diffusers"));
                }
                continue;
            };
            let schedule = match schedule {
                Ok(schedule) => schedule,
                Err(error) => {
                    wrong.push(format!("{of}: {error}"));
                    continue;
                }
            };
            let told: Vec<f64> = schedule.timesteps.iter().map(|timestep| f64::from(*timestep)).collect();
            let ours = [told[0], told[steps - 1], told.iter().sum()];
            let timesteps_error = ours.into_iter().zip(timesteps).map(|(a, b)| error(a, b)).fold(0.0, f64::max);
            let ours: Vec<f64> = (0..3).map(|k| walk(&schedule, k)[steps - 1]).collect();
            let latents_error = ours.iter().zip(latents).map(|(a, b)| error(*a, b)).fold(0.0, f64::max);
            if timesteps_error > 1e-5 || latents_error > 1e-5 {
                wrong.push(format!("{of}: {steps} steps: {timesteps_error:e}, {latents_error:e}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} runs differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_table_is_finite() {
    let file: File = read("schedulers.json");
    for case in file.cases {
        for steps in [1, 2, 3, 4, 7, 30, 100] {
            let Ok(schedule) = Schedule::new(&case.scheduler, case.prediction, steps, case.image_tokens) else {
                panic!("{}: {steps} steps are refused", case.name);
            };
            assert_eq!(schedule.sigmas.len(), steps + 1);
            let fine = |terms: &Terms| {
                let weights = [terms.latents, terms.prediction, terms.noise].into_iter().chain(terms.kept);
                weights.into_iter().all(|weight| (weight as f32).is_finite())
            };
            let all = schedule.updates.iter().flat_map(|update| update.kept.iter().chain([&update.latents]));
            assert!(all.into_iter().all(fine), "{}, {steps} steps", case.name);
        }
    }
}
