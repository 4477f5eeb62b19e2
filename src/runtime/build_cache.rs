//! A store of builds, which are what providers compiled, found by content.
//!
//! ```text
//! <store>/dbcache-trt-builds.json   says that this folder is one
//!         entries/<key>/             one build: the provider's files and record.json
//!         staging/                   builds that are being made; what is here counts for nothing
//!         weights/                   digests of parameters, by weights file
//!         references/                which engine directory uses which keys
//!         timing/                    timing caches that builds share
//!         locks/
//! ```
//!
//! A build is made in `staging`, sealed by a record of every file's SHA-256, and renamed into `entries`: it is there
//! whole or not at all, whenever a builder dies. Each file is compared with its SHA-256 whenever it is loaded; providers
//! do not notice a flipped byte. docs/builds.md tells all of this from the outside.

pub(crate) mod differences;
mod entry;
pub(crate) mod key;
mod layout;
mod lock;
pub(crate) mod parameters;
mod references;
mod sealed;
pub(crate) mod timing;
mod upkeep;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::entry::{Depth, Record, short};
use self::key::{Ingredients, Key};
use self::layout::{ENTRIES, FOLDERS, STAGING, WEIGHTS};
pub use self::upkeep::{BuildState, GcOptions, GcReport, Removed, StoredBuild};
use crate::error::{Error, ErrorKind, Result};

/// The file that makes a folder a store.
const MARKER: &str = "dbcache-trt-builds.json";
/// The same of versions that called builds engines. What lies there fits no version of today.
const OLD_MARKER: &str = "dbcache-trt-engines.json";
/// Where those versions kept it, beside the folder of today.
const OLD_FOLDER: &str = "engines";

/// A folder of builds, which are what providers compiled. Any number of processes may use one at the same time.
#[derive(Clone, Debug)]
pub struct BuildStore {
    folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    holds: String,
}

const MARKER_TEXT: &str = "builds, which dbcache-trt compiled; `dbcache-trt builds` works on them";

/// What happened to one build that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum StoreOutcome {
    Loaded,
    /// Compiled, because it was not there, or because what was there was damaged.
    Built {
        seconds: f64,
        damaged: Option<String>,
    },
}

/// A build that was checked and may be loaded.
#[derive(Debug)]
pub(crate) struct Found<'s> {
    pub folder: PathBuf,
    pub record: Box<Record>,
    /// Nobody removes the files while they are loaded.
    _held: lock::HeldLock,
    _store: &'s BuildStore,
}

impl Found<'_> {
    /// The file that ONNX Runtime loads.
    pub(crate) fn model(&self) -> PathBuf {
        self.folder.join(&self.record.model)
    }
}

/// What a look into the store found.
#[derive(Debug)]
pub(crate) enum Lookup<'s> {
    Found(Found<'s>),
    Missing,
    /// It must not be loaded, for this reason.
    Damaged(String),
}

impl BuildStore {
    /// Opens a store, and makes it if the folder is missing or empty.
    ///
    /// # Errors
    /// `Usage` if the folder holds other things; `Io` if it cannot be made or written.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder: PathBuf = folder.into();
        let folder = std::path::absolute(&folder).map_err(|error| Error::io("resolve", &folder, error))?;
        if folder.join(MARKER).exists() {
            return Self::existing(folder);
        }
        refuse_older(&folder)?;
        if let Some(older) = Self::older_beside(&folder) {
            tracing::warn!(folder = %older.display(), "builds of an older version, which nothing uses any more; delete them");
        }
        let create = |folder: &Path| fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error));
        create(&folder)?;
        let listed = fs::read_dir(&folder).map_err(|error| Error::io("list", &folder, error))?;
        // Another process may be making the same store.
        let is_ours = |name: &std::ffi::OsStr| {
            name.to_str().is_some_and(|name| FOLDERS.contains(&name) || name == MARKER || name.starts_with(sealed::NEW))
        };
        if listed.filter_map(Result::ok).any(|entry| !is_ours(&entry.file_name())) {
            return Err(not_a_store(&folder, "holds other files"));
        }
        for name in FOLDERS {
            create(&folder.join(name))?;
        }
        sealed::write(&folder.join(MARKER), &Marker { holds: MARKER_TEXT.into() })?;
        Ok(Self { folder })
    }

    /// Opens a store that is there; `None` if there is no such folder.
    ///
    /// # Errors
    /// `Usage` if the folder is not a store.
    pub fn open_existing(folder: impl Into<PathBuf>) -> Result<Option<Self>> {
        let folder: PathBuf = folder.into();
        let folder = std::path::absolute(&folder).map_err(|error| Error::io("resolve", &folder, error))?;
        if !folder.exists() {
            return Ok(None);
        }
        Self::existing(folder).map(Some)
    }

    /// The folder beside this one in which an older version of this program kept its builds, if it is still there.
    pub fn older_beside(folder: &Path) -> Option<PathBuf> {
        let older = folder.with_file_name(OLD_FOLDER);
        (older != folder && older.join(OLD_MARKER).exists()).then_some(older)
    }

    fn existing(folder: PathBuf) -> Result<Self> {
        refuse_older(&folder)?;
        match sealed::read::<Marker>(&folder.join(MARKER)) {
            Ok(_) => Ok(Self { folder }),
            Err(reason) => Err(not_a_store(&folder, &format!("its {MARKER} {reason}"))),
        }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of digests of parameters.
    pub(crate) fn weights(&self) -> PathBuf {
        self.folder.join(WEIGHTS)
    }

    /// Looks for a build, and reads every byte of it.
    pub(crate) fn find(&self, key: &Key) -> Lookup<'_> {
        let held = lock::shared(&self.folder, key);
        self.find_locked(key, held)
    }

    fn find_locked(&self, key: &Key, held: lock::HeldLock) -> Lookup<'_> {
        let folder = key.folder(&self.folder);
        if folder.symlink_metadata().is_err() {
            return Lookup::Missing;
        }
        match Record::check(&folder, key, Depth::Content) {
            Ok(record) => {
                Record::touch(&folder);
                Lookup::Found(Found { folder, record: Box::new(record), _held: held, _store: self })
            }
            Err(reason) => Lookup::Damaged(reason),
        }
    }

    /// Whether a build seems to be there: the record and the sizes of its files.
    pub(crate) fn seems_built(&self, key: &Key) -> bool {
        let _held = lock::shared(&self.folder, key);
        Record::check(&key.folder(&self.folder), key, Depth::Sizes).is_ok()
    }

    /// Whether a build is there and every byte of it is as it was built.
    pub(crate) fn is_whole(&self, key: &Key) -> bool {
        let _held = lock::shared(&self.folder, key);
        Record::check(&key.folder(&self.folder), key, Depth::Content).is_ok()
    }

    /// Finds a build, or has it made: `build` is given an empty folder, writes files into it and gives the name of the
    /// one that is to be loaded. Of several processes that ask at the same time one builds, the others wait for it.
    ///
    /// # Errors
    /// `NotBuilt` if it would have to be built but `may_build` is false; what `build` gives; `Io`.
    pub(crate) fn find_or_build(
        &self,
        name: &str,
        ingredients: &Ingredients,
        may_build: bool,
        build: impl FnOnce(&Path) -> Result<String>,
    ) -> Result<(Found<'_>, StoreOutcome)> {
        let key = ingredients.key()?;
        if let Lookup::Found(found) = self.find(&key) {
            return Ok((found, StoreOutcome::Loaded));
        }
        let held = lock::exclusive(&self.folder, &key);
        // Another process may have built it while this one waited.
        let damaged = match self.find_locked(&key, lock::HeldLock::nothing()) {
            Lookup::Found(found) => return Ok((Found { _held: held, ..found }, StoreOutcome::Loaded)),
            Lookup::Damaged(reason) => Some(reason),
            Lookup::Missing => None,
        };
        if let Some(reason) = &damaged {
            tracing::warn!(graph = name, key = %key, reason, "a build is damaged");
        }
        if !may_build {
            return Err(not_built(name, &key, damaged.as_deref()));
        }
        let staging = self.stage(&key, &held)?;
        let start = Instant::now();
        let model = build(staging.path())?;
        let seconds = start.elapsed().as_secs_f64();
        let record = Record::seal(staging.path(), name, ingredients, &model, seconds)?;
        let folder = self.publish(&key, staging)?;
        tracing::info!(graph = name, key = %key, seconds, "compiled a build");
        let found = Found { folder, record: Box::new(record), _held: held, _store: self };
        Ok((found, StoreOutcome::Built { seconds, damaged }))
    }

    /// An empty folder to build in. What a killed builder of this build left behind goes.
    fn stage(&self, key: &Key, held: &lock::HeldLock) -> Result<tempfile::TempDir> {
        let staging = self.folder.join(STAGING);
        if held.excludes_others() {
            upkeep::remove_leftovers(&staging, key);
        }
        let folder = tempfile::Builder::new().prefix(&format!("{key}-")).tempdir_in(&staging);
        folder.map_err(|error| Error::io("write into", &staging, error))
    }

    /// Puts a sealed build in its place, in one step.
    fn publish(&self, key: &Key, staging: tempfile::TempDir) -> Result<PathBuf> {
        let target = key.folder(&self.folder);
        let fail = |error| Error::io("write", &target, error);
        if target.symlink_metadata().is_ok() {
            if Record::check(&target, key, Depth::Content).is_ok() {
                return Ok(target); // Built meanwhile, where the file system has no locks.
            }
            upkeep::remove(&self.folder, key)?;
        }
        fs::rename(staging.path(), &target).map_err(fail)?;
        // It is no temporary folder any more.
        let _ = staging.keep();
        sealed::sync_folder(&self.folder.join(ENTRIES))?;
        Ok(target)
    }
}

fn refuse_older(folder: &Path) -> Result<()> {
    if folder.join(MARKER).exists() || !folder.join(OLD_MARKER).exists() {
        return Ok(());
    }
    Err(Error::usage(format!(
        "{} holds builds of an older version of this program ({OLD_MARKER}), which this one does not use; delete the folder, \
         or name another one with the option `build-cache`",
        folder.display()
    )))
}

fn not_a_store(folder: &Path, reason: &str) -> Error {
    Error::usage(format!(
        "{} is not a build cache ({reason}); name a new or empty folder with the option `build-cache`",
        folder.display()
    ))
}

fn not_built(name: &str, key: &Key, damaged: Option<&str>) -> Error {
    let state = damaged.map_or("is not in the build cache".to_owned(), |reason| format!("is damaged: {reason}"));
    Error::new(ErrorKind::NotBuilt, format!("the build {} {state}", short(key))).at(name)
}

#[cfg(test)]
mod tests;
