//! The linear algebra of small matrices that dynamic mode decomposition needs.

use std::ops::{Add, Div, Mul, Sub};

use super::super::calibrator::pick;

/// Gaussian elimination with row pivoting on `[A | b]`.
pub(super) fn solve(mut rows: Vec<Vec<Complex>>) -> Option<Vec<Complex>> {
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
pub(super) fn symmetric_eigen(mut a: Vec<Vec<f64>>) -> Option<(Vec<f64>, Vec<Vec<f64>>)> {
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
pub(super) fn eigen(mut a: Vec<Vec<Complex>>) -> Option<(Vec<Complex>, Vec<Vec<Complex>>)> {
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
pub(super) struct Complex {
    pub re: f64,
    pub im: f64,
}

impl Complex {
    pub(super) const ZERO: Self = Self { re: 0.0, im: 0.0 };

    pub(super) fn norm(self) -> f64 {
        self.re.hypot(self.im)
    }

    pub(super) fn conjugate(self) -> Self {
        Self { im: -self.im, ..self }
    }

    /// The principal branch.
    pub(super) fn power(self, exponent: f64) -> Self {
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
