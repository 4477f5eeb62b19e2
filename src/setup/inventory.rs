//! What setup has installed, and its removal.

use std::fs;
use std::path::{Path, PathBuf};

use super::provider::{PARTIAL_PREFIX, remove_all};
use super::{SetupEvent, SlotState, Target, lock, remove_leftovers};
use crate::error::{Error, Result};
use crate::packages::{Bundle, ReadDepth, bundles, library_folder, packages_for_this_system, providers_folder};

/// What lies at one of the places that setup fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The provider whose place it is.
    pub provider: &'static str,
    /// The library, or the folder of libraries.
    pub path: PathBuf,
    /// The version that belongs there.
    pub version: String,
    /// What lies there takes so many bytes; what would lie there, if it is empty.
    pub bytes: u64,
    /// What is there.
    pub state: SlotState,
}

/// Every place: those that this version of the program fills, and what others have left.
///
/// # Errors
/// `Usage` if there is no home folder.
pub(super) fn slots(depth: ReadDepth) -> Result<Vec<Slot>> {
    let folder = library_folder()?;
    // What cannot be installed here is told by whoever asks for it.
    let packages = packages_for_this_system().unwrap_or_default();
    let mut slots: Vec<Slot> = packages
        .iter()
        .map(|package| Slot {
            provider: Target::Cpu.as_str(),
            path: package.installed_path(&folder),
            version: package.version.to_owned(),
            bytes: package.bytes,
            state: package.state(&folder),
        })
        .collect();
    let providers = providers_folder()?;
    for bundle in bundles() {
        slots.extend(slots_of(bundle, &providers, depth));
    }
    Ok(slots)
}

/// The place of the pinned version, and whatever lies beside it.
fn slots_of(bundle: &Bundle, providers: &Path, depth: ReadDepth) -> Vec<Slot> {
    let path = bundle.folder(providers);
    let state = bundle.state(&path, depth);
    let version = bundle.version.to_owned();
    let mut slots = vec![Slot { provider: bundle.name, path, version, bytes: bundle.bytes(), state }];
    for path in versions(&providers.join(bundle.name)) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (version, state) = match name.strip_prefix(PARTIAL_PREFIX) {
            Some(version) => (version.to_owned(), SlotState::Unfinished),
            None if name == bundle.version => continue,
            None => (name, SlotState::Outdated),
        };
        slots.push(Slot { provider: bundle.name, bytes: bytes_in(&path), path, version, state });
    }
    slots
}

/// The folders of versions and of parts in the folder of a provider.
fn versions(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_version = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.is_dir() && (!name.starts_with('.') || name.starts_with(PARTIAL_PREFIX))
    };
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_version).collect();
    folders.sort();
    folders
}

fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

/// Removes all versions of a provider; returns how many bytes they took.
///
/// # Errors
/// `Usage` for `tensorrt`, which has nothing of its own, and without a home folder; `Io` if something cannot be removed.
pub(super) fn remove(target: Target, notify: &mut dyn FnMut(SetupEvent)) -> Result<u64> {
    let folder = match target {
        Target::Cpu => library_folder()?,
        Target::TensorRt => {
            return Err(Error::option(
                "remove",
                "is `tensorrt`, for which setup installs nothing but what belongs to `cuda`; remove `cuda`",
            ));
        }
        _ => providers_folder()?.join(target.as_str()),
    };
    if !folder.is_dir() {
        return Ok(0);
    }
    let _lock = lock(&folder.join(".lock"), notify)?;
    let bytes = bytes_in(&folder);
    for version in versions(&folder) {
        let name = version.file_name().unwrap_or_default().to_string_lossy();
        // What is gone only in part must not lie under its name.
        let gone = folder.join(format!("{}{name}", super::STAGING_PREFIX));
        remove_all(&gone)?;
        fs::rename(&version, &gone).map_err(|error| Error::io("remove", &version, error))?;
        remove_all(&gone)?;
    }
    remove_leftovers(&folder);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_other_versions_are_listed_with_their_bytes() {
        let bundle = Bundle { name: "gpu", version: "7", preload: &[], wheels: &[] };
        let providers = tempfile::tempdir().unwrap();
        let home = providers.path().join("gpu");
        for (folder, bytes) in [("6", 3), (".partial-7", 5), (".fetch-x", 9)] {
            fs::create_dir_all(home.join(folder).join("deep")).unwrap();
            fs::write(home.join(folder).join("deep").join("file"), vec![0; bytes]).unwrap();
        }
        let told: Vec<_> = slots_of(&bundle, providers.path(), ReadDepth::Content)
            .into_iter()
            .map(|slot| (slot.version, slot.bytes, slot.state))
            .collect();
        let expected = [
            ("7".to_owned(), 0, SlotState::Empty),
            ("7".to_owned(), 5, SlotState::Unfinished),
            ("6".to_owned(), 3, SlotState::Outdated),
        ];
        assert_eq!(told, expected);
    }
}
