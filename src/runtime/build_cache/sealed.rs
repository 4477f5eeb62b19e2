//! Small JSON files of the store: each carries a checksum of its content, and appears under its name only when complete.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::weights::hash_bytes;

/// The only version that is read and written.
const VERSION: u32 = 1;

/// A record of more than 64 MB is none of ours.
const MAX_BYTES: u64 = 64 << 20;

/// How files begin that have no final name yet.
pub(super) const NEW: &str = ".new-";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed<T> {
    version: u32,
    /// Of the content's compact JSON.
    sha256: String,
    content: T,
}

/// Reads what [`write`](fn@write) wrote; the reason why not is a text for the end of a sentence.
pub(super) fn read<T: Serialize + DeserializeOwned>(path: &Path) -> Result<T, String> {
    let metadata = path.symlink_metadata().map_err(|error| format!("cannot be opened ({error})"))?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err("is not a regular file, or too long".into());
    }
    let bytes = fs::read(path).map_err(|error| format!("cannot be read ({error})"))?;
    let sealed: Sealed<T> = serde_json::from_slice(&bytes).map_err(|error| format!("does not parse ({error})"))?;
    if sealed.version != VERSION {
        return Err(format!("has version {}, this program reads {VERSION}", sealed.version));
    }
    if checksum(&sealed.content).map_err(|error| error.to_string())? != sealed.sha256 {
        return Err("does not have its own checksum".into());
    }
    Ok(sealed.content)
}

/// Writes a file durably: under its final name it is complete.
pub(super) fn write<T: Serialize>(path: &Path, content: &T) -> Result<()> {
    let fail = |error| Error::io("write", path, error);
    let folder = path.parent().unwrap_or(Path::new("."));
    let sealed = Sealed { version: VERSION, sha256: checksum(content)?, content };
    let mut file = tempfile::Builder::new().prefix(NEW).tempfile_in(folder).map_err(fail)?;
    serde_json::to_writer_pretty(&mut file, &sealed).map_err(|error| fail(error.into()))?;
    file.write_all(b"\n").map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist(path).map_err(|error| fail(error.error))?;
    sync_folder(folder)
}

fn checksum<T: Serialize>(content: &T) -> Result<String> {
    let json = serde_json::to_vec(content).map_err(|error| Error::internal("cannot write JSON").with_source(error))?;
    Ok(hash_bytes(&json))
}

/// Makes the names in a folder durable. Only Unix opens folders; elsewhere the file system does it by itself.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| Error::io("write", folder, error))?;
    }
    Ok(())
}
