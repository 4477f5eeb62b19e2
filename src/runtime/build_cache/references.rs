//! Which engine directory uses which builds, so that those of no model that is left can be told.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::key::Key;
use super::layout::REFERENCES;
use super::{BuildStore, lock, sealed};
use crate::error::{Error, Result};
use crate::model::weights::{hash_bytes, hash_file};

/// One engine directory, as it was when its builds were made or loaded.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    directory: PathBuf,
    /// SHA-256 of its manifest.
    hash: String,
    keys: BTreeSet<Key>,
}

impl Reference {
    /// Whether the directory is still there, and still the same model.
    fn holds(&self) -> bool {
        hash_file(&self.directory.join("manifest.json")).is_ok_and(|hash| hash == self.hash)
    }
}

/// Whether a reference speaks of an engine directory that is still there.
pub(super) fn is_of_use(place: &Path) -> bool {
    sealed::read::<Reference>(place).is_ok_and(|reference| reference.holds())
}

impl BuildStore {
    /// Remembers that an engine directory, whose manifest has this SHA-256, uses these builds.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn refer(&self, directory: &Path, hash: &str, keys: impl IntoIterator<Item = Key>) -> Result<()> {
        let directory = directory.canonicalize().map_err(|error| Error::io("resolve", directory, error))?;
        let name = hash_bytes(directory.as_os_str().as_encoded_bytes());
        let path = self.folder.join(REFERENCES).join(format!("{name}.json"));
        let _held = Key::parse(&name).map(|key| lock::exclusive(&self.folder, &key));
        let before = sealed::read::<Reference>(&path).ok().filter(|known| known.hash == hash);
        let known = before.map(|known| known.keys).unwrap_or_default();
        let mut all = known.clone();
        all.extend(keys);
        if all == known {
            return Ok(());
        }
        sealed::write(&path, &Reference { directory, hash: hash.to_owned(), keys: all })
    }

    /// The builds of all engine directories that are still there.
    pub(super) fn referenced(&self) -> Result<BTreeSet<Key>> {
        let folder = self.folder.join(REFERENCES);
        let list = fs::read_dir(&folder).map_err(|error| Error::io("list", &folder, error))?;
        let read = |entry: fs::DirEntry| sealed::read::<Reference>(&entry.path()).ok();
        Ok(list.flatten().filter_map(read).filter(Reference::holds).flat_map(|reference| reference.keys).collect())
    }
}
