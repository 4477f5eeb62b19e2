//! Weighted sums of a step's tensors, as values to compute with.

use std::ops::{Add, Mul, Sub};

use crate::model::manifest::MAX_ORDER;

/// The most tensors that a scheduler keeps: UniPC one for each order, and its corrected latents.
pub(crate) const MAX_KEPT: usize = MAX_ORDER as usize + 1;

/// Weights of what a step has.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Terms {
    pub latents: f64,
    pub prediction: f64,
    /// Of the tensors that earlier steps kept.
    pub kept: [f64; MAX_KEPT],
    pub noise: f64,
}

impl Terms {
    pub(crate) fn latents() -> Self {
        Self { latents: 1.0, ..Self::default() }
    }

    pub(crate) fn prediction() -> Self {
        Self { prediction: 1.0, ..Self::default() }
    }

    pub(crate) fn noise() -> Self {
        Self { noise: 1.0, ..Self::default() }
    }

    /// The tensor that is kept at `index`, below [`MAX_KEPT`].
    pub(crate) fn kept(index: usize) -> Self {
        let mut terms = Self::default();
        terms.kept[index] = 1.0;
        terms
    }

    fn zip(self, other: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            latents: f(self.latents, other.latents),
            prediction: f(self.prediction, other.prediction),
            kept: std::array::from_fn(|index| f(self.kept[index], other.kept[index])),
            noise: f(self.noise, other.noise),
        }
    }
}

impl Add for Terms {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
}

impl Sub for Terms {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
}

impl Mul<f64> for Terms {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        self.zip(self, |a, _| a * factor)
    }
}
