//! The libraries of a provider: all files of one version in one folder, `providers/NAME/VERSION` of the data folder.
//!
//! Such a folder appears under its name when all of its files are there and are the pinned ones. A provider of which a part is
//! missing later is damaged, and is never half used.

use std::io;
use std::path::{Path, PathBuf};

use super::pins::BUNDLES;
use super::{SlotState, verify_content, verify_size};
use crate::error::Result;
use crate::folders::data_folder;

/// All that one provider needs beside the driver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bundle {
    /// As `--provider` names it.
    pub(crate) name: &'static str,
    /// The folder's name: another choice of packages is another version.
    pub(crate) version: &'static str,
    /// What is loaded before the provider, in this order, since the provider asks the system's loader for it by bare names.
    pub(crate) preload: &'static [&'static str],
    pub(crate) wheels: &'static [Wheel],
}

/// A package of the Python registry.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "setup"), expect(dead_code, reason = "only who fetches asks where a file comes from"))]
pub(crate) struct Wheel {
    pub(crate) package: &'static str,
    pub(crate) version: &'static str,
    pub(crate) platform: &'static str,
    /// What is downloaded.
    pub(crate) bytes: u64,
    /// Where its files lie in it.
    pub(crate) folder: &'static str,
    /// What is kept of it.
    pub(crate) files: &'static [Pinned],
}

/// A file whose content is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pinned {
    pub(crate) name: &'static str,
    pub(crate) bytes: u64,
    pub(crate) sha256: &'static str,
}

impl Pinned {
    /// What is wrong with the file of this name in a folder.
    pub(crate) fn defect(&self, folder: &Path, reads_content: bool) -> Option<String> {
        let path = folder.join(self.name);
        let content = || if reads_content { verify_content(&path, self.sha256) } else { Ok(()) };
        let error = verify_size(&path, self.bytes).and_then(|()| content()).err()?;
        let what = if error.kind() == io::ErrorKind::NotFound { "is missing".to_owned() } else { error.to_string() };
        Some(format!("{}: {what}", self.name))
    }
}

/// How much of an installed provider is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadDepth {
    /// The sizes of all files, and the content of the first one, which is what the program itself loads.
    Library,
    /// All files, from the first byte to the last.
    Content,
}

impl Bundle {
    pub(crate) fn files(&self) -> impl Iterator<Item = &'static Pinned> + use<> {
        self.wheels.iter().flat_map(|wheel| wheel.files)
    }

    /// What it takes on the disk.
    #[cfg(feature = "setup")]
    pub(crate) fn bytes(&self) -> u64 {
        self.files().map(|file| file.bytes).sum()
    }

    /// Where it is installed, in the folder of all providers.
    pub(crate) fn folder(&self, providers: &Path) -> PathBuf {
        providers.join(self.name).join(self.version)
    }

    /// What the program loads: ONNX Runtime itself, or a plugin.
    pub(crate) fn library(&self, folder: &Path) -> Option<PathBuf> {
        self.files().next().map(|file| folder.join(file.name))
    }

    /// What lies in its folder.
    pub(crate) fn state(&self, folder: &Path, depth: ReadDepth) -> SlotState {
        if !folder.is_dir() {
            return SlotState::Empty;
        }
        let defect = |(index, file): (usize, &Pinned)| file.defect(folder, depth == ReadDepth::Content || index == 0);
        self.files().enumerate().find_map(defect).map_or(SlotState::Valid, SlotState::Damaged)
    }
}

/// The folder of all providers.
pub(crate) fn providers_folder() -> Result<PathBuf> {
    Ok(data_folder()?.join("providers"))
}

/// Where a user may put TensorRT's libraries, which no package tool can fetch.
pub(crate) fn tensorrt_folder() -> Result<PathBuf> {
    Ok(providers_folder()?.join("tensorrt"))
}

/// Every provider that setup can install on this system.
pub(crate) fn bundles() -> &'static [Bundle] {
    BUNDLES
}

/// The provider of this name, where setup can install it on this system.
pub(crate) fn bundle(name: &str) -> Option<&'static Bundle> {
    bundles().iter().find(|bundle| bundle.name == name)
}

/// Whether setup has packages of a provider for this system.
pub(crate) fn is_installable(name: &str) -> bool {
    bundle(name).is_some()
}

/// The provider of this name and its folder, where setup has installed it, whole or damaged.
pub(crate) fn installed_bundle(name: &str) -> Option<(&'static Bundle, PathBuf)> {
    let bundle = bundle(name)?;
    let folder = bundle.folder(&providers_folder().ok()?);
    folder.is_dir().then_some((bundle, folder))
}

/// The provider whose library a path is, and its folder.
pub(crate) fn bundle_of_library(path: &Path) -> Option<(&'static Bundle, PathBuf)> {
    let installed = bundles().iter().filter_map(|bundle| installed_bundle(bundle.name));
    installed.into_iter().find(|(bundle, folder)| bundle.library(folder).is_some_and(|library| library == path))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn pins_are_well_formed() {
        for bundle in bundles() {
            let names: Vec<_> = bundle.files().map(|file| file.name).collect();
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "a name twice: {names:?}");
            assert!(bundle.preload.iter().all(|name| names.contains(name)), "{:?}", bundle.preload);
            assert!(bundle.files().all(|file| file.sha256.len() == 64 && !file.name.contains('/')), "{bundle:?}");
            assert!(bundle.wheels.iter().all(|wheel| wheel.bytes > 1_000_000 && !wheel.files.is_empty()), "{bundle:?}");
        }
    }

    #[test]
    fn a_part_that_is_missing_or_other_is_named() {
        const FILES: &[Pinned] = &[
            Pinned { name: "a", bytes: 3, sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
            Pinned { name: "b", bytes: 3, sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
        ];
        const WHEEL: Wheel = Wheel { package: "p", version: "1", platform: "any", bytes: 1, folder: "", files: FILES };
        let bundle = Bundle { name: "x", version: "1", preload: &[], wheels: &[WHEEL] };
        let home = tempfile::tempdir().unwrap();
        let folder = bundle.folder(home.path());
        let states = || [ReadDepth::Library, ReadDepth::Content].map(|depth| bundle.state(&folder, depth));
        let damaged = |reason: &str| SlotState::Damaged(reason.to_owned());
        assert_eq!(states(), [SlotState::Empty, SlotState::Empty]);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("a"), "abc").unwrap();
        assert_eq!(states(), [damaged("b: is missing"), damaged("b: is missing")]);
        std::fs::write(folder.join("b"), "ab").unwrap();
        assert_eq!(states()[0], damaged("b: 2 bytes instead of 3"));
        // One other byte behind the first file: only the check of everything reads it.
        std::fs::write(folder.join("b"), "abd").unwrap();
        let [quick, whole] = states();
        assert_eq!(quick, SlotState::Valid);
        assert!(
            matches!(&whole, SlotState::Damaged(reason) if reason.starts_with("b: its SHA-256 is a52d")),
            "{whole:?}"
        );
        std::fs::write(folder.join("a"), "abd").unwrap();
        assert!(matches!(states()[0], SlotState::Damaged(_)));
    }
}
