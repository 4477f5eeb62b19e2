//! Against diffusers: its noise levels, and what its schedulers make of known predictions and noise.

use std::path::Path;

use super::*;
use crate::model::manifest::{BaseSigmas, Shift};

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
        let spec = SchedulerSpec::FlowMatchEuler { sigmas, shift, shift_terminal, inverted: false };
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
            let mut x = wave(1000, k);
            let mut kept = [0.0; terms::MAX_KEPT];
            for (step, update) in schedule.updates.iter().enumerate() {
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
                let expected = case.latents[step][k];
                let error = (x - expected).abs() / (1.0 + expected.abs());
                assert!(error <= 1e-5, "{name}, {steps} steps, step {step}: {x}, not {expected} ({error:e})");
            }
        }
    }
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
