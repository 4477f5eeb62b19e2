//! How much of a package has arrived while a tool fetches it. The tools tell nothing that a program could read, so this looks at
//! the files that they write: pip saves the archive first, and uv unpacks it into its cache while it downloads.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A file in a package.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content {
    pub(super) name: &'static str,
    /// Unpacked.
    pub(super) bytes: u64,
}

/// A package that is being fetched.
#[derive(Debug)]
pub(super) struct Arrival {
    /// Of the archive.
    bytes: u64,
    /// Where the files lie in it.
    folder: &'static str,
    contents: Vec<Content>,
    /// Where the tool puts what it fetches.
    staging: PathBuf,
    /// Where uv unpacks, if it is uv that fetches.
    cache: Option<PathBuf>,
    /// Folders of the cache that other calls of uv have left or use.
    foreign: BTreeSet<PathBuf>,
}

/// The beginning of the names of the folders in which pip saves archives.
const PIP_FOLDER: &str = "pip-unpack-";
/// The beginning of the names of the folders in which uv unpacks.
const UV_FOLDER: &str = ".tmp";

impl Arrival {
    /// Looks at what is there already; `bytes` and `contents` are those of the package.
    pub(super) fn new(
        bytes: u64,
        folder: &'static str,
        contents: Vec<Content>,
        staging: &Path,
        cache: Option<PathBuf>,
    ) -> Self {
        let foreign = cache.iter().flat_map(|cache| folders(cache, UV_FOLDER)).collect();
        Self { bytes, folder, contents, staging: staging.to_owned(), cache, foreign }
    }

    /// What is downloaded, in all.
    pub(super) fn total(&self) -> u64 {
        self.bytes
    }

    /// How many bytes of the archive have arrived. Where it is unpacked while it is downloaded, this is the share of its files
    /// that is there, so about as many.
    pub(super) fn bytes(&self) -> u64 {
        let is_own = |folder: &PathBuf| !self.foreign.contains(folder);
        let caches = self.cache.iter().flat_map(|cache| folders(cache, UV_FOLDER)).filter(is_own);
        let unpacked = caches.chain([self.staging.clone()]).map(|root| self.unpacked(&root.join(self.folder))).max();
        let archives = folders(&self.staging, PIP_FOLDER).iter().map(|folder| archive_bytes(folder)).max();
        share(self.bytes, &self.contents, unpacked.unwrap_or(0)).max(archives.unwrap_or(0)).min(self.bytes)
    }

    /// How many bytes of its files lie in a folder.
    fn unpacked(&self, folder: &Path) -> u64 {
        // A file may be given its whole size before it is written, but never a larger one.
        self.contents.iter().map(|content| size(&folder.join(content.name)).min(content.bytes)).sum()
    }
}

/// The part of an archive that this many bytes of its files stand for.
fn share(archive: u64, contents: &[Content], unpacked: u64) -> u64 {
    let all: u64 = contents.iter().map(|content| content.bytes).sum();
    let share = u128::from(archive) * u128::from(unpacked) / u128::from(all.max(1));
    u64::try_from(share).unwrap_or(archive).min(archive)
}

/// The folders in a folder whose names begin like that.
fn folders(folder: &Path, begin: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(begin)).map(|entry| entry.path()).collect()
}

/// The size of the largest wheel in a folder.
fn archive_bytes(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    files
        .filter(|path| path.extension().is_some_and(|ending| ending == "whl"))
        .map(|path| size(&path))
        .max()
        .unwrap_or(0)
}

fn size(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENTS: [Content; 2] = [Content { name: "a", bytes: 300 }, Content { name: "b", bytes: 100 }];

    #[test]
    fn shares_of_an_archive() {
        for (archive, unpacked, expected) in
            [(200, 0, 0), (200, 100, 50), (200, 399, 199), (200, 400, 200), (200, 900, 200)]
        {
            assert_eq!(share(archive, &CONTENTS, unpacked), expected, "{unpacked}");
        }
        assert_eq!(share(u64::MAX, &CONTENTS, 400), u64::MAX);
        assert_eq!(share(200, &[], 5), 200);
    }

    fn write(folder: &Path, name: &str, bytes: usize) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(name), vec![0; bytes]).unwrap();
    }

    #[test]
    fn what_pip_saves_and_then_unpacks() {
        let staging = tempfile::tempdir().unwrap();
        let arrival = Arrival::new(200, "lib", CONTENTS.to_vec(), staging.path(), None);
        assert_eq!((arrival.total(), arrival.bytes()), (200, 0));
        write(&staging.path().join("pip-unpack-x"), "p.whl", 120);
        write(&staging.path().join("pip-unpack-x"), "p.txt", 150);
        assert_eq!(arrival.bytes(), 120);
        write(&staging.path().join("pip-unpack-x"), "p.whl", 200);
        write(&staging.path().join("lib"), "a", 10);
        assert_eq!(arrival.bytes(), 200);
    }

    #[test]
    fn what_uv_unpacks_while_it_downloads() {
        let (staging, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // Left by a call of uv that was killed.
        write(&cache.path().join(".tmpold/lib"), "a", 300);
        let cached = Some(cache.path().to_owned());
        let arrival = Arrival::new(200, "lib", CONTENTS.to_vec(), staging.path(), cached);
        assert_eq!(arrival.bytes(), 0);
        write(&cache.path().join(".tmpnew/lib"), "a", 100);
        write(&cache.path().join(".tmpother/lib"), "c", 300);
        assert_eq!(arrival.bytes(), 50);
        // It moves what is whole to a place of another name, and copies it from there.
        fs::remove_dir_all(cache.path().join(".tmpnew")).unwrap();
        write(&staging.path().join("lib"), "a", 300);
        write(&staging.path().join("lib"), "b", 100);
        assert_eq!(arrival.bytes(), 200);
    }
}
