//! Timing caches: what builders have measured of kernels, shared by all builds for one device.
//!
//! A builder reads and writes its file without care for others. So each build works on a copy, and puts it back in one step:
//! of two builds at once one loses what it measured, and neither reads half a file.

use std::fs;
use std::path::{Path, PathBuf};

use super::key::{Key, KeyTarget};
use super::layout::{STAGING, TIMING};
use super::{BuildStore, sealed};
use crate::error::{Error, Result};
use crate::model::weights::hash_bytes;

/// The copy of one build.
pub(crate) struct Timing {
    copy: tempfile::TempDir,
    shared: PathBuf,
}

impl Timing {
    /// Copies what builds for this target have measured so far. The caller holds the lock of the key.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn take(store: &BuildStore, key: &Key, target: &KeyTarget) -> Result<Self> {
        let parts = [&target.provider, &target.sdk, &target.driver, &target.device].map(String::as_str);
        let shared = store.folder.join(TIMING).join(&hash_bytes(parts.join("\n").as_bytes())[..16]);
        let staging = store.folder.join(STAGING);
        let create = |error| Error::io("write into", &staging, error);
        // Named after the key, so that it is not taken for a leftover while the build lives.
        let copy = tempfile::Builder::new().prefix(&format!("{key}-timing-")).tempdir_in(&staging).map_err(create)?;
        fs::create_dir_all(&shared).map_err(|error| Error::io("create", &shared, error))?;
        for (name, path) in files(&shared)? {
            fs::copy(&path, copy.path().join(name)).map_err(|error| Error::io("read", &path, error))?;
        }
        Ok(Self { copy, shared })
    }

    /// Where the builder finds and leaves its timings.
    pub(crate) fn folder(&self) -> &Path {
        self.copy.path()
    }

    /// Puts back what was measured.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn give_back(self) -> Result<()> {
        for (name, path) in files(self.copy.path())? {
            let target = self.shared.join(&name);
            let fail = |error| Error::io("write", &target, error);
            let fresh = tempfile::Builder::new().prefix(sealed::NEW).tempfile_in(&self.shared).map_err(fail)?;
            fs::copy(&path, fresh.path()).map_err(fail)?;
            fresh.persist(&target).map_err(|error| fail(error.error))?;
        }
        Ok(())
    }
}

fn files(folder: &Path) -> Result<Vec<(std::ffi::OsString, PathBuf)>> {
    let list = fs::read_dir(folder).map_err(|error| Error::io("list", folder, error))?;
    let is_whole = |entry: &fs::DirEntry| {
        let is_new = entry.file_name().to_string_lossy().starts_with(sealed::NEW);
        !is_new && entry.file_type().is_ok_and(|kind| kind.is_file())
    };
    Ok(list.flatten().filter(is_whole).map(|entry| (entry.file_name(), entry.path())).collect())
}
