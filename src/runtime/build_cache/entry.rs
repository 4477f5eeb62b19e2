//! One build on disk: a folder with the files that the provider wrote, and a record that knows them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::key::{Ingredients, Key};
use super::sealed;
use crate::error::{Error, Result};
use crate::model::weights::hash_file;

/// The record's name, which no file of a provider may have.
pub(super) const RECORD: &str = "record.json";

/// What is known of a build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub key: Key,
    /// What it was compiled from, for people: `block_007.onnx` of a model.
    pub name: String,
    pub ingredients: Ingredients,
    /// Which of the files ONNX Runtime loads.
    pub model: String,
    pub files: Vec<StoredFile>,
    /// Seconds since 1970.
    pub created_s: u64,
    pub build_seconds: f64,
    /// The program and version that built it.
    pub built_by: String,
}

/// One file of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredFile {
    pub file: String,
    pub bytes: u64,
    pub sha256: String,
}

/// How much of a build is read to judge it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// The record, and which files there are with which sizes.
    Sizes,
    /// Every byte.
    Content,
}

impl Record {
    /// Reads the record of a build and compares its files with it. The reason why it must not be used is a text for the
    /// end of a sentence.
    pub(super) fn check(folder: &Path, key: &Key, depth: Depth) -> Result<Self, String> {
        let record: Self = sealed::read(&folder.join(RECORD)).map_err(|reason| format!("{RECORD} {reason}"))?;
        let claimed = record.ingredients.key().map_err(|error| error.to_string())?;
        if record.key != *key || claimed != *key {
            return Err(format!("it is the build {} under another name", short(&claimed)));
        }
        let named: BTreeSet<&str> = record.files.iter().map(|file| file.file.as_str()).collect();
        if !named.contains(record.model.as_str()) || named.len() != record.files.len() {
            return Err(format!("{RECORD} contradicts itself"));
        }
        for name in names(folder)? {
            if name != RECORD && !named.contains(name.as_str()) {
                return Err(format!("{name} does not belong to it"));
            }
        }
        for file in &record.files {
            file.check(folder, depth)?;
        }
        Ok(record)
    }

    /// When it was loaded last, in seconds since 1970: the time of the record's file.
    pub(super) fn used_s(folder: &Path) -> u64 {
        let modified = fs::metadata(folder.join(RECORD)).and_then(|metadata| metadata.modified());
        modified.map_or(0, seconds)
    }

    /// Remembers that it was loaded now. In a store that may only be read nothing is remembered.
    pub(super) fn touch(folder: &Path) {
        let file = File::options().append(true).open(folder.join(RECORD));
        if let Err(error) = file.and_then(|file| file.set_modified(SystemTime::now())) {
            tracing::debug!(%error, "cannot remember the use of a build");
        }
    }

    /// Makes the record of the files in `folder`, durably: from here on it is a build, wherever it is moved.
    ///
    /// # Errors
    /// `Io`; `Runtime` if the provider wrote anything but plain files, or not the model.
    pub(super) fn seal(
        folder: &Path,
        name: &str,
        ingredients: &Ingredients,
        model: &str,
        build_seconds: f64,
    ) -> Result<Self> {
        let wrong = |reason: String| Error::new(crate::error::ErrorKind::Runtime, reason);
        let mut files = Vec::new();
        for file in names(folder).map_err(|reason| wrong(format!("the provider's folder {reason}")))? {
            let path = folder.join(&file);
            let fail = |error| Error::io("write", &path, error);
            let metadata = path.symlink_metadata().map_err(fail)?;
            if !metadata.is_file() || file == RECORD {
                return Err(wrong(format!("the provider wrote {file}, which a build cannot hold")));
            }
            File::open(&path).and_then(|file| file.sync_all()).map_err(fail)?;
            files.push(StoredFile { sha256: hash_file(&path)?, bytes: metadata.len(), file });
        }
        if !files.iter().any(|file| file.file == model && file.bytes > 0) {
            return Err(wrong(format!("the provider wrote no {model}; it seems not to compile")));
        }
        let record = Self {
            key: ingredients.key()?,
            name: name.to_owned(),
            ingredients: ingredients.clone(),
            model: model.to_owned(),
            files,
            created_s: seconds(SystemTime::now()),
            build_seconds,
            built_by: concat!("dbcache-trt ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        sealed::write(&folder.join(RECORD), &record)?;
        Ok(record)
    }
}

impl StoredFile {
    fn check(&self, folder: &Path, depth: Depth) -> Result<(), String> {
        let Self { file, bytes, sha256 } = self;
        // A record is no map to the rest of the disk.
        if Path::new(file).file_name().is_none_or(|name| name != file.as_str()) {
            return Err(format!("{RECORD} names the file {file:?}"));
        }
        let path: PathBuf = folder.join(file);
        let metadata = path.symlink_metadata().map_err(|error| format!("{file} cannot be opened ({error})"))?;
        if !metadata.is_file() {
            return Err(format!("{file} is not a regular file"));
        }
        if metadata.len() != *bytes {
            return Err(format!("{file} has {} bytes instead of {bytes}", metadata.len()));
        }
        if depth == Depth::Content && hash_file(&path).map_err(|error| error.to_string())? != *sha256 {
            return Err(format!("{file} does not have the SHA-256 with which it was built"));
        }
        Ok(())
    }
}

/// A key for people.
pub(super) fn short(key: &Key) -> &str {
    &key.as_str()[..12]
}

pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn names(folder: &Path) -> Result<Vec<String>, String> {
    let list = || -> std::io::Result<Vec<String>> {
        let entries = fs::read_dir(folder)?;
        let mut names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    list().map_err(|error| format!("cannot be listed ({error})"))
}
