//! The safetensors files that the graphs refer to: where they are, and where each byte range of a parameter lies.
//!
//! Only headers are read. ONNX Runtime maps or reads the data itself, at the offsets that the graphs name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, tensor::Metadata};
use sha2::{Digest, Sha256};

use super::manifest::WeightsSpec;
use crate::error::{Error, Result};

/// Longest safetensors header that is read; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// One weights file, checked by size and header hash.
#[derive(Clone, Debug)]
pub(crate) struct WeightsFile {
    /// Real folder, without links; the file in it is a regular file.
    pub folder: PathBuf,
    pub file: String,
    sha256: Option<String>,
    /// Absolute byte offset of a parameter → what lies there.
    parameters: BTreeMap<u64, Parameter>,
}

#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: u64,
}

impl WeightsFile {
    /// Opens the file of `spec` where the manifest says that it lies.
    ///
    /// # Errors
    /// `EngineDirectory`: missing, a link, of another size, or with another header than at export.
    pub(crate) fn recorded(directory: &Path, spec: &WeightsSpec) -> Result<Self> {
        let folder = spec.folder.as_ref().map_or_else(|| directory.to_path_buf(), |folder| directory.join(folder));
        let remedy = "name the folder to which the model moved with the option `weights`, or export again with `dbcache-export --pack`";
        let folder = folder.canonicalize().map_err(|error| {
            Error::directory(format!("folder {} cannot be opened; {remedy}", folder.display())).with_source(error)
        })?;
        let path = folder.join(&spec.file);
        let metadata = path.symlink_metadata().map_err(|error| {
            Error::directory(format!("{} cannot be opened; {remedy}", path.display())).with_source(error)
        })?;
        if !metadata.is_file() {
            return Err(Error::directory(format!(
                "{} is not a regular file (links are refused here, and followed with the option `weights`); {remedy}",
                path.display()
            )));
        }
        Self::open(folder, spec.file.clone(), spec)
    }

    /// Opens and checks `file` in the real folder `folder` as the file of `spec`.
    ///
    /// # Errors
    /// `EngineDirectory`, as [`recorded`](Self::recorded).
    pub(crate) fn open(folder: PathBuf, file: String, spec: &WeightsSpec) -> Result<Self> {
        if folder.to_str().is_none() {
            let reason = "is not UTF-8, which ONNX Runtime needs; move the weights";
            return Err(Error::directory(format!("folder {} {reason}", folder.display())));
        }
        let path = folder.join(&file);
        let bytes = path.metadata().map_err(|error| Error::io("read", &path, error))?.len();
        if bytes != spec.bytes {
            return Err(Error::directory(format!(
                "{} has {bytes} bytes, the manifest says {}; the file was replaced or cut: restore it, or export again",
                path.display(),
                spec.bytes
            )));
        }
        let Header { json, start, sha256 } = Header::read(&path, bytes)?;
        if sha256 != spec.header_sha256 {
            return Err(Error::directory(format!(
                "the header has the SHA-256 {sha256}, the manifest says {}; the file was replaced: restore it, or export again",
                spec.header_sha256
            )));
        }
        let parameters = locate(&json, start, spec)?;
        Ok(Self { folder, file, sha256: spec.sha256.clone(), parameters })
    }

    /// The parameter that begins at this absolute offset.
    pub(crate) fn at_offset(&self, offset: u64) -> Option<&Parameter> {
        self.parameters.get(&offset)
    }

    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.parameters.values()
    }

    /// Compares the hash of the whole file; `Ok(false)` when the manifest has none.
    pub(crate) fn verify(&self) -> Result<bool> {
        let Some(expected) = &self.sha256 else { return Ok(false) };
        let path = self.folder.join(&self.file);
        let actual = hash_file(&path)?;
        if actual == *expected {
            return Ok(true);
        }
        Err(Error::directory(format!(
            "{} has the SHA-256 {actual}, the manifest says {expected}; the weights were changed: restore them, or export again",
            path.display()
        )))
    }
}

/// The first bytes of a safetensors file.
pub(super) struct Header {
    json: Vec<u8>,
    /// Where the data begins.
    start: u64,
    /// Of the length field and the JSON.
    pub(super) sha256: String,
}

impl Header {
    /// Reads it from a file of so many bytes.
    pub(super) fn read(path: &Path, bytes: u64) -> Result<Self> {
        let read = |error| Error::io("read", path, error);
        let mut file = File::open(path).map_err(read)?;
        let mut length = [0; 8];
        if bytes < 8 {
            return Err(Error::directory("is not a safetensors file (it is too short)"));
        }
        file.read_exact(&mut length).map_err(read)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER || header_bytes > bytes.saturating_sub(8) {
            return Err(Error::directory(
                "is not a safetensors file (its header is longer than the file or than 100 MB)",
            ));
        }
        let mut json = vec![0; header_bytes as usize];
        file.read_exact(&mut json).map_err(read)?;
        let mut hash = Sha256::new();
        hash.update(length);
        hash.update(&json);
        Ok(Self { json, start: 8 + header_bytes, sha256: hex(&hash.finalize()) })
    }
}

fn locate(header: &[u8], start: u64, spec: &WeightsSpec) -> Result<BTreeMap<u64, Parameter>> {
    let metadata: Metadata = serde_json::from_slice(header)
        .map_err(|error| Error::directory("the safetensors header does not parse").with_source(error))?;
    let mut parameters = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let (begin, end) = (start + info.data_offsets.0 as u64, start + info.data_offsets.1 as u64);
        if end > spec.bytes {
            return Err(Error::directory(format!("parameter `{name}` runs past the end of the file")));
        }
        let parameter = Parameter { name, dtype: info.dtype, shape: info.shape.clone(), bytes: end - begin };
        // Several empty tensors may share an offset; a graph never refers to one.
        if parameter.bytes > 0 {
            parameters.insert(begin, parameter);
        }
    }
    Ok(parameters)
}

/// SHA-256 of a file, read in pieces.
pub(crate) fn hash_file(path: &Path) -> Result<String> {
    let read = |error| Error::io("read", path, error);
    let mut file = File::open(path).map_err(read)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut piece).map_err(read)?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&piece[..n]);
    }
}

/// SHA-256 of bytes in memory.
pub(crate) fn hash_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
