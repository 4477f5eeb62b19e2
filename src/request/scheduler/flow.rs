//! Flow matching: sigmas and their shifts, and Euler's step.

use super::{Schedule, Terms, Update};
use crate::error::{Error, Result};
use crate::model::manifest::{BaseSigmas, Prediction, SchedulerSpec, Shift, TimeShift};

/// Euler's method along the sigmas of `spec`, which is flow matching.
pub(crate) fn schedule(
    spec: &SchedulerSpec,
    prediction: Prediction,
    steps: usize,
    image_tokens: u64,
) -> Result<Schedule> {
    let SchedulerSpec::FlowMatchEuler { sigmas, shift: by, shift_terminal, inverted, spread, .. } = spec else {
        return Err(Error::internal("not flow matching"));
    };
    let mut sigmas = base(*sigmas, steps);
    shift(&mut sigmas, by, *shift_terminal, image_tokens);
    if let Some(spread) = spread {
        sigmas = spread.over(sigmas[steps - 1], sigmas[0], steps);
    }
    // A shift that fits one picture size can be impossible for another.
    if !sigmas.iter().all(|sigma| (0.0..=1.0).contains(&(*sigma as f32))) {
        return Err(Error::directory(format!(
            "the scheduler's sigmas do not lie between 0 and 1 at this size: {:?} …; take another size, or export the \
             model with another shift",
            &sigmas[..steps.min(2)]
        )));
    }
    sigmas.push(0.0);
    let turned = |sigma: f64| if *inverted { 1.0 - sigma } else { sigma };
    Ok(Schedule::euler(sigmas.into_iter().map(|sigma| turned(sigma) as f32).collect(), spec, prediction))
}

/// Sigmas before any shift, one a step.
pub(crate) fn base(base: BaseSigmas, steps: usize) -> Vec<f64> {
    let at = |i: usize| match base {
        BaseSigmas::Linear { last } => {
            let last = last.unwrap_or(1.0 / steps as f64);
            i as f64 * ((last - 1.0) / (steps.max(2) - 1) as f64) + 1.0
        }
        BaseSigmas::LinearQuadratic { threshold } => linear_quadratic(threshold, steps, i),
    };
    (0..steps).map(at).collect()
}

/// Shifts `sigmas`, then stretches them so that the last one is `terminal`.
pub(crate) fn shift(sigmas: &mut [f64], shift: &Shift, terminal: Option<f64>, image_tokens: u64) {
    let steps = sigmas.len();
    sigmas.iter_mut().for_each(|sigma| *sigma = shifted(shift, *sigma, image_tokens, steps));
    if let (Some(terminal), Some(last)) = (terminal, sigmas.last().copied()) {
        let scale = (1.0 - last) / (1.0 - terminal);
        if scale > 0.0 {
            sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / scale);
        }
    }
}

/// The first half of the steps goes evenly through the first `threshold` of the noise, the other half along a parabola that
/// begins with the same slope and ends at no noise.
fn linear_quadratic(threshold: f64, steps: usize, i: usize) -> f64 {
    let linear = (steps / 2) as f64;
    let quadratic = steps as f64 - linear;
    if steps / 2 == 0 {
        return 1.0;
    }
    let (i, slope) = (i as f64, threshold / linear);
    if i < linear {
        return 1.0 - slope * i;
    }
    let difference = linear - threshold * steps as f64;
    let square = difference / (linear * quadratic * quadratic);
    let line = threshold / linear - 2.0 * difference / (quadratic * quadratic);
    let constant = square * linear * linear;
    1.0 - (square * i * i + line * i + constant)
}

fn shifted(shift: &Shift, sigma: f64, image_tokens: u64, steps: usize) -> f64 {
    let tokens = image_tokens as f64;
    let (mu, time_shift) = match *shift {
        Shift::None {} => return sigma,
        Shift::Static { shift } => return shift * sigma / (1.0 + (shift - 1.0) * sigma),
        Shift::Dynamic { base_tokens, max_tokens, base_shift, max_shift, time_shift } => {
            let slope = (max_shift - base_shift) / (max_tokens - base_tokens);
            (base_shift + slope * (tokens - base_tokens), time_shift)
        }
        Shift::DynamicSteps { lines, max_tokens, time_shift } => {
            let [few, many] = lines.map(|[slope, offset, _]| slope * tokens + offset);
            let slope = (many - few) / (lines[1][2] - lines[0][2]);
            let between = few + slope * (steps as f64 - lines[0][2]);
            (if image_tokens > max_tokens { many } else { between }, time_shift)
        }
    };
    let mu = if time_shift == TimeShift::Exponential { mu.exp() } else { mu };
    // The original, which shifts in f32, has no numbers then.
    if (mu as f32).is_infinite() {
        return f64::NAN;
    }
    mu / (mu + (1.0 / sigma - 1.0))
}

/// From one sigma to the next; `last` is that of the picture. A stochastic step goes all the way to the sample, and from
/// there to new noise.
pub(crate) fn euler([now, next]: [f32; 2], last: f32, prediction: Prediction, stochastic: bool) -> Update {
    let (x, output) = (Terms::latents(), Terms::prediction());
    let (now, next, last) = (f64::from(now), f64::from(next), f64::from(last));
    let to = |end: f64| match prediction {
        Prediction::Sample { min_sigma } => x + (x - output) * ((end - now) / now.max(min_sigma)),
        // The rules of the manifest leave only the velocity.
        Prediction::Velocity {} | Prediction::Epsilon {} | Prediction::Change {} => x + output * (end - now),
    };
    let latents = if stochastic { (x - output * now) * (1.0 - next) + Terms::noise() * next } else { to(next) };
    Update { latents, kept: Vec::new(), sample: to(last), draws: usize::from(stochastic) }
}
