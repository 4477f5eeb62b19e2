//! What several test programs share.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::PathBuf;

use ndarray::ArrayD;

/// A path under `tests/data`.
pub fn data(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

/// The model that ships.
pub fn emoji() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/emoji")
}

/// A JSON file under `tests/data`.
pub fn json(path: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(data(path)).unwrap()).unwrap()
}

/// sum|a - b| / sum|b|
pub fn relative_l1(a: &ArrayD<f32>, b: &ArrayD<f32>) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let difference: f64 = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).sum();
    difference / b.iter().map(|b| f64::from(b.abs())).sum::<f64>()
}
