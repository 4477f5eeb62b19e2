//! Flow matching: sigmas and their shifts, and Euler's step.

use super::{Terms, Update};
use crate::model::manifest::{BaseSigmas, Prediction, Shift, TimeShift};

/// `steps + 1` sigmas.
pub(super) fn sigmas(
    base: BaseSigmas,
    shift: &Shift,
    shift_terminal: Option<f64>,
    inverted: bool,
    steps: usize,
    image_tokens: u64,
) -> Vec<f32> {
    let base = |i: usize| match base {
        BaseSigmas::Linear { last } => {
            let last = last.unwrap_or(1.0 / steps as f64);
            1.0 - (1.0 - last) * i as f64 / (steps.max(2) - 1) as f64
        }
        BaseSigmas::LinearQuadratic { threshold } => linear_quadratic(threshold, steps, i),
    };
    let mut sigmas: Vec<f64> = (0..steps).map(|i| shifted(shift, base(i), image_tokens, steps)).collect();
    if let (Some(terminal), Some(last)) = (shift_terminal, sigmas.last().copied()) {
        let scale = (1.0 - last) / (1.0 - terminal);
        if scale > 0.0 {
            sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / scale);
        }
    }
    sigmas.push(0.0);
    let turned = |sigma: f64| if inverted { 1.0 - sigma } else { sigma };
    sigmas.into_iter().map(|sigma| turned(sigma) as f32).collect()
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
            let slope = (max_shift - base_shift) / (max_tokens as f64 - base_tokens as f64);
            (base_shift + slope * (tokens - base_tokens as f64), time_shift)
        }
        Shift::DynamicSteps { lines, max_tokens, time_shift } => {
            let [few, many] = lines.map(|[slope, offset, _]| slope * tokens + offset);
            let slope = (many - few) / (lines[1][2] - lines[0][2]);
            let between = few + slope * (steps as f64 - lines[0][2]);
            (if image_tokens > max_tokens { many } else { between }, time_shift)
        }
    };
    let mu = if time_shift == TimeShift::Exponential { mu.exp() } else { mu };
    mu / (mu + (1.0 / sigma - 1.0))
}

/// From one sigma to the next; `last` is that of the picture.
pub(super) fn euler([now, next]: [f32; 2], last: f32, prediction: Prediction) -> Update {
    let (x, output) = (Terms::latents(), Terms::prediction());
    let to = |end: f32| {
        let (now, end) = (f64::from(now), f64::from(end));
        match prediction {
            Prediction::Sample { min_sigma } => x + (x - output) * ((end - now) / now.max(min_sigma)),
            // The rules of the manifest leave only the velocity.
            Prediction::Velocity {} | Prediction::Epsilon {} | Prediction::Change {} => x + output * (end - now),
        }
    };
    Update { latents: to(next), kept: Vec::new(), sample: to(last), draws: 0 }
}
