//! What a generation leaves behind: pictures with metadata, latents, traces.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use dbcache_trt::{Error, ErrorKind, read_tensors};
use ndarray::{ArrayD, Axis, concatenate};

/// Relative L1: what separates two machines that both compute in f32 stays below it (tests/library/parity.rs).
const DEFAULT_TOLERANCE: f64 = 1e-4;

/// `lemon.png`, or `lemon-7.png` for the seed 7 of several pictures. A name without an ending (a folder of frames) stays so.
pub fn picture_path(path: &Path, seed: u64, is_one_of_many: bool) -> PathBuf {
    if !is_one_of_many {
        return path.to_owned();
    }
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{seed}"));
    if let Some(ending) = path.extension() {
        name.push(".");
        name.push(ending);
    }
    path.with_file_name(name)
}

/// The latents of all requests, one after the other; nothing of none.
pub fn join(latents: &[ArrayD<f32>]) -> anyhow::Result<Option<ArrayD<f32>>> {
    let views: Vec<_> = latents.iter().map(|tensor| tensor.view()).collect();
    if views.is_empty() {
        Ok(None)
    } else {
        concatenate(Axis(0), &views).map(Some).context("latents of several shapes")
    }
}

/// The latents of --check-outputs.
pub struct Expected<'a> {
    path: &'a Path,
    latents: ArrayD<f32>,
    tolerance: f64,
}

impl<'a> Expected<'a> {
    pub fn read(path: &'a Path, tolerance: Option<f64>) -> anyhow::Result<Self> {
        let mut tensors: BTreeMap<String, ArrayD<f32>> = read_tensors(path)?;
        let Some(latents) = tensors.remove("latents") else {
            let message = format!("{} holds no tensor `latents`; --save-latents writes one", path.display());
            anyhow::bail!(Error::with_kind(ErrorKind::Input, message));
        };
        Ok(Self { path, latents, tolerance: tolerance.unwrap_or(DEFAULT_TOLERANCE) })
    }

    /// Says how close the latents are.
    pub fn check(&self, latents: &ArrayD<f32>) -> anyhow::Result<String> {
        let Self { path, latents: expected, tolerance } = self;
        if expected.shape() != latents.shape() {
            anyhow::bail!(differ(format!(
                "latents are {:?}, {} holds {:?}",
                latents.shape(),
                path.display(),
                expected.shape()
            )));
        }
        let change: f64 = latents.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).sum();
        let size: f64 = expected.iter().map(|b| f64::from(b.abs())).sum();
        let error = if change == 0.0 { 0.0 } else { change / size };
        if error.is_nan() || error > *tolerance {
            anyhow::bail!(differ(format!(
                "latents differ from {} by {error:.3e} (relative L1), the tolerance is {tolerance:e}",
                path.display()
            )));
        }
        Ok(format!("latents equal those of {} (relative L1 {error:.3e})", path.display()))
    }
}

fn differ(message: String) -> Error {
    Error::with_kind(ErrorKind::Check, message)
}
