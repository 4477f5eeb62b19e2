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
#[derive(Debug)]
pub(crate) struct WeightsFile {
    /// Real folder, without links; the file in it is a regular file.
    pub folder: PathBuf,
    pub file: String,
    sha256: Option<String>,
    /// Absolute byte offset of a parameter → what lies there.
    parameters: BTreeMap<u64, Parameter>,
}

#[derive(Debug)]
pub(crate) struct Parameter {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: u64,
}

impl WeightsFile {
    /// Finds and checks the file of `spec`; `folder_override` replaces any folder that the manifest names.
    ///
    /// # Errors
    /// `EngineDirectory`: missing, a link, of another size, or with another header than at export.
    pub(crate) fn open(directory: &Path, spec: &WeightsSpec, folder_override: Option<&Path>) -> Result<Self> {
        let place = || format!("weights `{}`", spec.name);
        let folder = match (folder_override, &spec.folder) {
            (Some(folder), _) => folder.to_path_buf(),
            (None, Some(folder)) => directory.join(folder),
            (None, None) => directory.to_path_buf(),
        };
        let remedy = "name the folder that holds the weights with --weights, or export again with --pack";
        let folder = folder.canonicalize().map_err(|error| {
            Error::directory(format!("folder {} cannot be opened; {remedy}", folder.display()))
                .with_source(error)
                .at(place())
        })?;
        if folder.to_str().is_none() {
            let reason = "is not UTF-8, which ONNX Runtime needs; move the weights";
            return Err(Error::directory(format!("folder {} {reason}", folder.display())).at(place()));
        }
        let path = folder.join(&spec.file);
        let metadata = path.symlink_metadata().map_err(|error| {
            Error::directory(format!("{} cannot be opened; {remedy}", path.display())).with_source(error).at(place())
        })?;
        if !metadata.is_file() {
            return Err(Error::directory(format!(
                "{} is not a regular file (links are refused); {remedy}",
                path.display()
            ))
            .at(place()));
        }
        if metadata.len() != spec.bytes {
            return Err(Error::directory(format!(
                "{} has {} bytes, the manifest says {}; the file was replaced or cut: restore it, or export again",
                path.display(),
                metadata.len(),
                spec.bytes
            ))
            .at(place()));
        }
        let (header, start) = read_header(&path, spec).map_err(|error| error.at(place()))?;
        let parameters = locate(&header, start, spec).map_err(|error| error.at(place()))?;
        Ok(Self { folder, file: spec.file.clone(), sha256: spec.sha256.clone(), parameters })
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

fn read_header(path: &Path, spec: &WeightsSpec) -> Result<(Vec<u8>, u64)> {
    let read = |error| Error::io("read", path, error);
    let mut file = File::open(path).map_err(read)?;
    let mut length = [0; 8];
    if spec.bytes < 8 {
        return Err(Error::directory("is not a safetensors file (it is too short)"));
    }
    file.read_exact(&mut length).map_err(read)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER || header_bytes > spec.bytes.saturating_sub(8) {
        return Err(Error::directory("is not a safetensors file (its header is longer than the file or than 100 MB)"));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(read)?;
    let mut hash = Sha256::new();
    hash.update(length);
    hash.update(&header);
    let actual = hex(&hash.finalize());
    if actual != spec.header_sha256 {
        return Err(Error::directory(format!(
            "the header has the SHA-256 {actual}, the manifest says {}; the file was replaced: restore it, or export again",
            spec.header_sha256
        )));
    }
    Ok((header, 8 + header_bytes))
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
