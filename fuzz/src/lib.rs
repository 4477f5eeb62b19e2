//! Hostile input for everything that dbcache-trt reads, made from a seed, and judged: no panic, no more than a second,
//! no more than 100 MB beyond the input's own size.
//!
//! `cargo xtask fuzz [TARGET] [--seconds N] [--seed S]` runs it in release; case `i` of a target and a seed is always
//! the same input. An input that fails is written to `fuzz/corpus/TARGET`, and the tests replay all that lie there.

pub mod judge;
mod mutate;
mod random;
mod targets;

use std::fs;
use std::path::{Path, PathBuf};

pub use self::random::Random;
pub use self::targets::{Bench, TARGETS, Target};

/// The inputs of a target that failed once, or that somebody wrote.
///
/// # Errors
/// When a file cannot be read.
pub fn corpus(target: &str) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let folder = corpus_folder(target);
    let mut found = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            found.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), fs::read(path)?));
        }
    }
    found.sort();
    Ok(found)
}

/// Writes a file anew: file systems that write what replaces a file to the disk at once take milliseconds for it.
///
/// # Errors
/// When it cannot be written.
pub fn write_anew(path: &Path, content: &[u8]) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::write(path, content)
}

/// Where the corpus of a target lies.
pub fn corpus_folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}
