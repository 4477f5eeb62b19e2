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

use std::ops::{Add, Div, Mul, Range, Sub};

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

/// Gaussian elimination with row pivoting on `[A | b]`.
fn solve(mut rows: Vec<Vec<Complex>>) -> Option<Vec<Complex>> {
    let n = rows.len();
    for column in 0..n {
        let pivot = (column..n).max_by(|&a, &b| rows[a][column].norm().total_cmp(&rows[b][column].norm()))?;
        if rows[pivot][column].norm() == 0.0 {
            return None;
        }
        rows.swap(column, pivot);
        for row in 0..n {
            if row != column {
                let factor = rows[row][column] / rows[column][column];
                let pivot_row = rows[column].clone();
                for (entry, above) in rows[row].iter_mut().zip(&pivot_row) {
                    *entry = *entry - factor * *above;
                }
            }
        }
    }
    Some((0..n).map(|i| rows[i][n] / rows[i][i]).collect())
}

/// Eigenvalues, largest first, and eigenvectors of a symmetric matrix, by Jacobi rotations. `None` if it holds numbers
/// that are not finite.
fn symmetric_eigen(mut a: Vec<Vec<f64>>) -> Option<(Vec<f64>, Vec<Vec<f64>>)> {
    let n = a.len();
    let mut vectors: Vec<Vec<f64>> = (0..n).map(|i| pick(i, n)).collect();
    if a.iter().flatten().any(|number| !number.is_finite()) {
        return None;
    }
    // Each sweep squares what is left off the diagonal; a dozen reach the precision of f64.
    for _ in 0..30 {
        for p in 0..n {
            for q in p + 1..n {
                if a[p][q] == 0.0 {
                    continue;
                }
                let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let (cos, sin) = (1.0 / t.hypot(1.0), t / t.hypot(1.0));
                for row in a.iter_mut() {
                    (row[p], row[q]) = (cos * row[p] - sin * row[q], sin * row[p] + cos * row[q]);
                }
                for i in 0..n {
                    (a[p][i], a[q][i]) = (cos * a[p][i] - sin * a[q][i], sin * a[p][i] + cos * a[q][i]);
                    (vectors[p][i], vectors[q][i]) =
                        (cos * vectors[p][i] - sin * vectors[q][i], sin * vectors[p][i] + cos * vectors[q][i]);
                }
                (a[p][q], a[q][p]) = (0.0, 0.0);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[j][j].total_cmp(&a[i][i]));
    Some((order.iter().map(|&i| a[i][i]).collect(), order.iter().map(|&i| vectors[i].clone()).collect()))
}

/// Eigenvalues and eigenvectors of a small matrix: shifted QR to a triangle, then back substitution. `None` if it does
/// not converge.
fn eigen(mut a: Vec<Vec<Complex>>) -> Option<(Vec<Complex>, Vec<Vec<Complex>>)> {
    let n = a.len();
    let one = |i: usize, j: usize| if i == j { Complex::from(1.0) } else { Complex::ZERO };
    let mut q: Vec<Vec<Complex>> = (0..n).map(|i| (0..n).map(|j| one(i, j)).collect()).collect();
    let scale = a.iter().flatten().map(|entry| entry.norm()).fold(0.0, f64::max);
    if !scale.is_finite() {
        return None;
    }
    let is_small = |entry: Complex| entry.norm() <= f64::EPSILON * scale;
    for end in (1..n).rev() {
        let mut rounds = 0;
        while !(0..end).all(|c| is_small(a[end][c])) {
            rounds += 1;
            if rounds > 500 {
                return None;
            }
            // Wilkinson's shift; every now and then another one, so that symmetric cycles break.
            let shift =
                if rounds % 11 == 0 { a[end][end] + Complex::from(a[end][end - 1].norm()) } else { wilkinson(&a, end) };
            qr_step(&mut a, &mut q, end, shift);
        }
        a[end][..end].fill(Complex::ZERO);
    }
    let values: Vec<Complex> = (0..n).map(|i| a[i][i]).collect();
    let mut vectors = Vec::new();
    for m in 0..n {
        // (T - λ) x = 0 with x[m] = 1.
        let mut x = vec![Complex::ZERO; n];
        x[m] = Complex::from(1.0);
        for i in (0..m).rev() {
            let sum = (i + 1..=m).fold(Complex::ZERO, |sum, j| sum + a[i][j] * x[j]);
            let gap = values[m] - values[i];
            // Equal eigenvalues: a tiny gap stands for none, and the vectors become parallel.
            let gap = if is_small(gap) { Complex::from(f64::EPSILON * scale) } else { gap };
            x[i] = sum / gap;
        }
        let length = x.iter().map(|x| x.norm() * x.norm()).sum::<f64>().sqrt();
        let x: Vec<Complex> = x.into_iter().map(|x| x / Complex::from(length)).collect();
        vectors.push((0..n).map(|i| (0..n).fold(Complex::ZERO, |sum, j| sum + q[i][j] * x[j])).collect());
    }
    Some((values, vectors))
}

/// The eigenvalue of the last 2 x 2 block that is nearer to the last entry.
fn wilkinson(a: &[Vec<Complex>], end: usize) -> Complex {
    let (p, q, r, s) = (a[end - 1][end - 1], a[end - 1][end], a[end][end - 1], a[end][end]);
    let half = (p - s) * Complex::from(0.5);
    let root = (half * half + q * r).power(0.5);
    let (one, other) = (s + half + root, s + half - root);
    if (one - s).norm() < (other - s).norm() { one } else { other }
}

/// One step `A = QR, A' = RQ` on the leading block up to `end`, by Givens rotations; `basis` collects the rotations.
fn qr_step(a: &mut [Vec<Complex>], basis: &mut [Vec<Complex>], end: usize, shift: Complex) {
    shift_diagonal(a, end, Complex::ZERO - shift);
    let mut rotations = Vec::new();
    for column in 0..end {
        for row in (column + 1..=end).rev() {
            let (x, y) = (a[row - 1][column], a[row][column]);
            let length = x.norm().hypot(y.norm());
            if y.norm() == 0.0 || length == 0.0 {
                continue;
            }
            let (c, s) = (x / Complex::from(length), y / Complex::from(length));
            let (above, below) = a.split_at_mut(row);
            for (up, down) in above[row - 1].iter_mut().zip(&mut below[0]) {
                (*up, *down) = (c.conjugate() * *up + s.conjugate() * *down, c * *down - s * *up);
            }
            rotations.push((row, c, s));
        }
    }
    for (row, c, s) in rotations {
        for matrix in [&mut *a, &mut *basis] {
            for line in matrix.iter_mut() {
                let (left, right) = (line[row - 1], line[row]);
                line[row - 1] = left * c + right * s;
                line[row] = right * c.conjugate() - left * s.conjugate();
            }
        }
    }
    shift_diagonal(a, end, shift);
}

fn shift_diagonal(a: &mut [Vec<Complex>], end: usize, by: Complex) {
    for (i, row) in a.iter_mut().enumerate().take(end + 1) {
        row[i] = row[i] + by;
    }
}

/// A complex number.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Complex {
    re: f64,
    im: f64,
}

impl Complex {
    const ZERO: Self = Self { re: 0.0, im: 0.0 };

    fn norm(self) -> f64 {
        self.re.hypot(self.im)
    }

    fn conjugate(self) -> Self {
        Self { im: -self.im, ..self }
    }

    /// The principal branch.
    fn power(self, exponent: f64) -> Self {
        if self == Self::ZERO {
            return if exponent == 0.0 { Self::from(1.0) } else { Self::ZERO };
        }
        let (length, angle) = (self.norm().powf(exponent), self.im.atan2(self.re) * exponent);
        Self { re: length * angle.cos(), im: length * angle.sin() }
    }
}

impl From<f64> for Complex {
    fn from(re: f64) -> Self {
        Self { re, im: 0.0 }
    }
}

impl Add for Complex {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }
}

impl Sub for Complex {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { re: self.re - other.re, im: self.im - other.im }
    }
}

impl Mul for Complex {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        Self { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re }
    }
}

impl Div for Complex {
    type Output = Self;

    fn div(self, other: Self) -> Self {
        let square = other.re * other.re + other.im * other.im;
        let product = self * other.conjugate();
        Self { re: product.re / square, im: product.im / square }
    }
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
