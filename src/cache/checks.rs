//! Numbers that thresholds can be.

use crate::error::{Error, Result};

pub(super) fn check_threshold(option: &str, value: f64) -> Result<()> {
    if value.is_finite() && value.is_sign_positive() {
        return Ok(());
    }
    Err(Error::usage(format!("{option} is {value}; use 0 to never skip, or a positive number")))
}

pub(super) fn check_positive(option: &str, value: Option<f64>) -> Result<()> {
    match value {
        Some(value) if !(value.is_finite() && value > 0.0) => {
            Err(Error::usage(format!("{option} is {value}; use a positive number, or leave it out")))
        }
        _ => Ok(()),
    }
}
