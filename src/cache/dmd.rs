//! Dynamic mode decomposition: the kept tensors as a sum of damped oscillations.
//!
//! With `X` the evenly spaced snapshots but the newest and `Z` those but the oldest, one spacing multiplies a state by
//! the operator `Z X⁺`. All of it is done on the inner products of the snapshots (a table of at most H x H numbers), so
//! that the snapshots themselves stay on the device and the forecast is a sum over them:
//!
//! ```text
//! XᵀX = V S² Vᵀ          r modes with S > 1e-4 S[0]      s = 1 / (S + ridge)
//! A = S⁻¹ Vᵀ XᵀZ V s     A W = W diag(λ)                 Y = V s W
//! b = argmin |Z Y b - newest|
//! forecast = Z Re(Y (λᵏ b))          k = steps since the newest snapshot / spacing
//! ```

mod linear;

use std::ops::Range;

use self::linear::{Complex, eigen, solve, symmetric_eigen};
use super::calibrator::{Calibrator, DmdFallback, Sum, clock, pick};

/// Inner products of a list of tensors: `gram[i][j]` is the dot product of the i-th with the j-th, summed in f64.
pub type Gram = Vec<Vec<f64>>;

/// The fewest snapshots that are fitted.
const FEWEST: usize = 4;
/// Modes weaker than this fraction of the strongest are noise.
const WEAKEST: f64 = 1e-4;

/// Keeps the last computed tensors, oldest first.
pub(super) struct Dmd {
    history: usize,
    rank: usize,
    ridge: f64,
    fallback: DmdFallback,
    /// The clock at each of the kept tensors.
    times: Vec<f64>,
    /// The fit of the present tail, one for each batch item; `None` until the inner products are known.
    fits: Option<Vec<Option<Fit>>>,
}

impl Dmd {
    pub(super) fn new(history: usize, rank: usize, ridge: f64, fallback: DmdFallback) -> Self {
        Self { history, rank, ridge, fallback, times: Vec::new(), fits: None }
    }

    /// The longest evenly spaced suffix of the kept tensors, and its spacing.
    fn tail(&self) -> (Range<usize>, f64) {
        let n = self.times.len();
        let [.., before, newest] = self.times[..] else { return (n..n, 1.0) };
        let spacing = newest - before;
        let mut start = n - 2;
        while start > 0 && self.times[start] - self.times[start - 1] == spacing {
            start -= 1;
        }
        (start..n, spacing)
    }

    /// The fallback: a straight line. The reference measures its slope from the tensor before the last but one, but
    /// over the last spacing: on even spacing it is twice too steep.
    fn slope(&self, t: f64) -> Sum {
        let n = self.times.len();
        let mut weights = pick(n.saturating_sub(1), n);
        let older = match self.fallback {
            DmdFallback::Corrected => 2,
            DmdFallback::Reference => 3,
        };
        if let [.., before, newest] = self.times[..]
            && n >= older
            && newest > 1.0
            && newest > before
        {
            let slope = (t - newest) / (newest - before);
            weights[n - 1] += slope;
            weights[n - older] -= slope;
        }
        weights
    }
}

impl Calibrator for Dmd {
    fn capacity(&self) -> usize {
        self.history
    }

    fn put(&mut self, step: usize) -> Vec<Sum> {
        let n = self.times.len();
        let oldest = usize::from(n == self.history);
        self.times.drain(..oldest);
        self.times.push(clock(step));
        self.fits = None;
        (oldest..n + 1).map(|index| pick(index, n + 1)).collect()
    }

    fn needs_gram(&self) -> Option<Range<usize>> {
        let (tail, _) = self.tail();
        (self.fits.is_none() && tail.len() >= FEWEST).then_some(tail)
    }

    fn set_gram(&mut self, grams: &[Gram]) {
        self.fits = Some(grams.iter().map(|gram| Fit::new(gram, self.rank, self.ridge)).collect());
    }

    fn get(&mut self, step: usize) -> Vec<Sum> {
        let t = clock(step);
        let n = self.times.len();
        let (tail, spacing) = self.tail();
        let Some(fits) = self.fits.as_ref().filter(|_| tail.len() >= FEWEST) else {
            return vec![self.slope(t)];
        };
        let k = (t - self.times[n - 1]) / spacing;
        let weights = |fit: &Option<Fit>| {
            let of_tail = fit.as_ref()?.weights(k);
            let is_finite = of_tail.iter().all(|weight| weight.is_finite());
            // The oldest snapshot of the tail has no part in the forecast.
            is_finite.then(|| [vec![0.0; tail.start + 1], of_tail].concat())
        };
        // One batch item that cannot be forecast makes all repeat the newest, as in the reference.
        let all: Option<Vec<Sum>> = fits.iter().map(weights).collect();
        all.filter(|rows| !rows.is_empty()).unwrap_or_else(|| vec![pick(n - 1, n)])
    }
}

/// The modes of one batch item.
struct Fit {
    /// λ
    values: Vec<Complex>,
    /// Y, `[snapshots of Z, modes]`
    modes: Vec<Vec<Complex>>,
    /// b
    amplitudes: Vec<Complex>,
}

impl Fit {
    /// `None` where the tensors are degenerate.
    fn new(gram: &Gram, rank: usize, ridge: f64) -> Option<Self> {
        let n = gram.len().checked_sub(1)?;
        let (squares, v) = symmetric_eigen((0..n).map(|i| gram[i][..n].to_vec()).collect())?;
        let s: Vec<f64> = squares.iter().map(|square| square.max(0.0).sqrt()).collect();
        let strongest = *s.first()?;
        if strongest <= 0.0 {
            return None;
        }
        let chosen = if rank > 0 { rank } else { s.iter().filter(|&&s| s > strongest * WEAKEST).count() };
        let r = chosen.clamp(1, n);
        let inverse: Vec<f64> = s[..r].iter().map(|s| 1.0 / (s + ridge)).collect();
        let operator = (0..r)
            .map(|i| {
                let entry = |j: usize| {
                    let product: f64 = (0..n)
                        .flat_map(|p| (0..n).map(move |q| (p, q)))
                        .map(|(p, q)| v[i][p] * gram[p][q + 1] * v[j][q])
                        .sum();
                    Complex::from(product / s[i] * inverse[j])
                };
                (0..r).map(entry).collect()
            })
            .collect();
        let (values, w) = eigen(operator)?;
        let mode = |p: usize, m: usize| {
            (0..r).fold(Complex::ZERO, |sum, i| sum + w[m][i] * Complex::from(v[i][p] * inverse[i]))
        };
        let modes: Vec<Vec<Complex>> = (0..n).map(|p| (0..r).map(|m| mode(p, m)).collect()).collect();
        let amplitudes = amplitudes(gram, &modes)?;
        Some(Self { values, modes, amplitudes })
    }

    /// The forecast `k` spacings after the newest snapshot, as weights of all snapshots but the oldest.
    fn weights(&self, k: f64) -> Sum {
        let advanced: Vec<Complex> = self.values.iter().zip(&self.amplitudes).map(|(l, b)| l.power(k) * *b).collect();
        self.modes.iter().map(|row| row.iter().zip(&advanced).fold(0.0, |sum, (y, a)| sum + (*y * *a).re)).collect()
    }
}

/// Solves the normal equations of `Z Y b = newest`.
fn amplitudes(gram: &Gram, modes: &[Vec<Complex>]) -> Option<Vec<Complex>> {
    let (n, r) = (modes.len(), modes.first()?.len());
    // Zᵀ Z Y
    let product =
        |p: usize, m: usize| (0..n).fold(Complex::ZERO, |sum, q| sum + Complex::from(gram[p + 1][q + 1]) * modes[q][m]);
    let zy: Vec<Vec<Complex>> = (0..n).map(|p| (0..r).map(|m| product(p, m)).collect()).collect();
    let inner = |a: usize, of: &dyn Fn(usize) -> Complex| {
        (0..n).fold(Complex::ZERO, |sum, p| sum + modes[p][a].conjugate() * of(p))
    };
    let rows = (0..r)
        .map(|a| {
            let mut row: Vec<Complex> = (0..r).map(|m| inner(a, &|p| zy[p][m])).collect();
            row.push(inner(a, &|p| Complex::from(gram[p + 1][n])));
            row
        })
        .collect();
    solve(rows)
}

#[cfg(test)]
mod tests {
    use super::super::calibrator::tests::Stream;
    use super::super::calibrator::{CalibratorKind, CalibratorType};
    use super::*;

    const DMD: CalibratorKind =
        CalibratorKind::Dmd { dmd_history: 6, dmd_rank: 0, dmd_ridge: 1e-8, dmd_fallback: DmdFallback::Reference };

    /// Two damped oscillations and a decay, on 12 numbers.
    fn signal(time: f64) -> Vec<f64> {
        let wave = |i: f64| 0.9f64.powf(time) * (0.8 * time + i).cos() + 0.97f64.powf(time) * (2.0 + (i * 1.3).sin());
        (0..12).map(|i| wave(f64::from(i))).collect()
    }

    fn error(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn sums_of_exponentials_are_forecast_exactly() {
        for spacing in [1, 2, 3] {
            let mut stream = Stream::new(DMD);
            let mut step = 0;
            for _ in 0..7 {
                stream.put(step, &signal(step as f64));
                step += spacing;
            }
            // The first computed step has the clock of step 0, as the reference has; its snapshot is dropped by now.
            for ahead in 0..6 {
                let at = step - spacing + 1 + ahead;
                let error = error(&stream.get(at), &signal(at as f64));
                assert!(error < 2e-5, "spacing {spacing}, {ahead} steps ahead: {error}");
            }
        }
    }

    /// Fits by SVD of the snapshots themselves. Inner products square the condition, hence the tolerance below.
    const REFERENCE: &str = include_str!("../../tests/data/reference/dmd.json");

    #[test]
    fn fits_on_inner_products_are_those_on_the_snapshots() -> Result<(), Box<dyn std::error::Error>> {
        let reference: serde_json::Value = serde_json::from_str(REFERENCE)?;
        let cases = reference["cases"].as_array().ok_or("cases")?;
        for (index, case) in cases.iter().enumerate() {
            let snapshots: Vec<Vec<f64>> = serde_json::from_value(case["snapshots"].clone())?;
            let forecasts: Vec<(f64, Vec<f64>)> = serde_json::from_value(case["forecasts"].clone())?;
            let dot = |a: &Vec<f64>, b: &Vec<f64>| a.iter().zip(b).map(|(a, b)| a * b).sum();
            let gram = snapshots.iter().map(|a| snapshots.iter().map(|b| dot(a, b)).collect()).collect();
            let fit = Fit::new(&gram, serde_json::from_value(case["rank"].clone())?, 1e-8).ok_or("no fit")?;
            for (k, expected) in forecasts {
                let weights = fit.weights(k);
                let sum = |i: usize| weights.iter().zip(&snapshots[1..]).map(|(w, s)| w * s[i]).sum();
                let here: Vec<f64> = (0..expected.len()).map(sum).collect();
                let size = expected.iter().map(|x| x.abs()).fold(1.0, f64::max);
                let error = error(&here, &expected) / size;
                assert!(error < 1e-5, "case {index}, k {k}: {error}");
            }
        }
        Ok(())
    }

    #[test]
    fn few_or_uneven_snapshots_fall_back_to_the_references_slope() {
        let mut stream = Stream::new(DMD);
        stream.put(0, &[1.0]);
        assert_eq!(stream.get(1), [1.0]);
        stream.put(1, &[2.0]);
        stream.put(2, &[4.0]);
        // The clock is 1: no slope yet.
        assert_eq!(stream.get(3), [4.0]);
        stream.put(4, &[8.0]);
        // (8 - 2) / 2 for each step.
        assert_eq!(stream.get(5), [11.0]);
        assert_eq!(stream.get(6), [14.0]);
    }

    #[test]
    fn the_corrected_fallback_is_taylorseer_of_order_1() {
        let mut dmd = Stream::new(CalibratorType::Dmd.kind());
        let mut taylor = Stream::new(CalibratorType::TaylorSeer.kind());
        // Never four evenly spaced.
        for step in [0, 1, 3, 4, 7, 8, 9, 12] {
            let computed = [(step as f64).sin(), step as f64];
            dmd.put(step, &computed);
            taylor.put(step, &computed);
            for ahead in 1..4 {
                assert!(error(&dmd.get(step + ahead), &taylor.get(step + ahead)) < 1e-12, "step {step}");
            }
        }
    }

    #[test]
    fn degenerate_snapshots_are_repeated() {
        let mut stream = Stream::new(DMD);
        for step in 0..5 {
            stream.put(step, &[0.0, 0.0]);
        }
        assert_eq!(stream.get(5), [0.0, 0.0]);
        let mut stream = Stream::new(DMD);
        for step in 0..5 {
            stream.put(step, &[f64::NAN, 1.0]);
        }
        assert_eq!(stream.get(5)[1], 1.0);
    }

    #[test]
    fn eigenvectors_solve_their_equation() -> Result<(), &'static str> {
        let mut seed = 1u64;
        let mut random = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as f64 / f64::from(1u32 << 31) * 2.0 - 1.0
        };
        for n in 1..=8 {
            for _ in 0..50 {
                let a: Vec<Vec<Complex>> = (0..n).map(|_| (0..n).map(|_| Complex::from(random())).collect()).collect();
                let (values, vectors) = eigen(a.clone()).ok_or("no convergence")?;
                for (value, x) in values.iter().zip(&vectors) {
                    for (i, row) in a.iter().enumerate() {
                        let ax = row.iter().zip(x).fold(Complex::ZERO, |sum, (a, x)| sum + *a * *x);
                        assert!((ax - *value * x[i]).norm() < 1e-10, "{n}: {value:?}");
                    }
                }
            }
        }
        Ok(())
    }
}
