//! What several test programs share.
#![allow(dead_code, reason = "each test program uses a part of it")]

#[cfg(unix)]
pub mod capi;
pub mod damage;
pub mod family;
/// The engine's own view of ONNX: damage needs a part of it.
#[path = "../../src/model/onnx.rs"]
pub mod onnx;
pub mod oracle;
pub mod ranks;
pub mod shell;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dbcache_trt::{Inputs, read_tensors};
use ndarray::ArrayD;
use sha2::{Digest, Sha256};

/// The repository: where the tests were built, or where `DBCACHE_TEST_ROOT` says that it lies on this machine.
pub fn root() -> PathBuf {
    std::env::var_os("DBCACHE_TEST_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// A path under `tests/data`.
pub fn data(path: &str) -> PathBuf {
    root().join("tests/data").join(path)
}

/// The model that ships.
pub fn emoji() -> PathBuf {
    root().join("models/emoji")
}

/// A JSON file under `tests/data`.
pub fn json(path: &str) -> serde_json::Value {
    serde_json::from_slice(&fs::read(data(path)).unwrap()).unwrap()
}

/// sum|a - b| / sum|b|
pub fn relative_l1(a: &ArrayD<f32>, b: &ArrayD<f32>) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let difference: f64 = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).sum();
    if difference == 0.0 { 0.0 } else { difference / b.iter().map(|b| f64::from(b.abs())).sum::<f64>() }
}

/// What `tests/data/tiny-flux` starts from: text tensors of both branches, and latents, one picture each.
pub fn tiny_inputs(is_guided: bool) -> Inputs {
    let recorded = read_tensors(&data("oracle/oracle.safetensors")).unwrap();
    let mut names =
        vec![("prompt_embeds", "in.prompt"), ("pooled_projections", "in.pooled"), ("latents", "in.latents")];
    if is_guided {
        names.extend([("negative_prompt_embeds", "in.neg_prompt"), ("negative_pooled_projections", "in.neg_pooled")]);
    }
    let tensors = names.iter().map(|(ours, theirs)| (ours.to_string(), recorded[*theirs].clone())).collect();
    Inputs { tensors, ..Inputs::default() }
}

/// Copies the files of a folder for which `wanted` holds, by name.
pub fn copy_files(from: &Path, to: &Path, wanted: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(from).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if wanted(&name) {
            fs::copy(from.join(&name), to.join(&name)).unwrap();
        }
    }
}

/// Waits until something is so. The limit is far beyond what any machine needs: it only ends a test that waits for nothing.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(600);
    while !is_so() {
        assert!(Instant::now() < limit, "waits in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// SHA-256 in lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
