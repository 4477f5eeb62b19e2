//! What is in a store, whether it is whole, and what may go.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::entry::{Depth, Record, seconds, short};
use super::key::{Ingredients, Key};
use super::layout::{ENTRIES, REFERENCES, STAGING, WEIGHTS};
use super::{BuildStore, lock};
use crate::error::{Error, Result};

/// One folder among the builds of a store.
#[derive(Clone, Debug)]
pub struct StoredBuild {
    /// The key, or the foreign name.
    pub key: String,
    /// Whether it can be used.
    pub state: BuildState,
    /// Bytes on disk.
    pub bytes: u64,
    /// When it was loaded last, in seconds since 1970; 0 where that is unknown.
    pub used_s: u64,
    record: Option<Record>,
}

/// Whether a build can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildState {
    /// Nothing is wrong with it, as far as was read.
    Whole,
    /// It will not be loaded, for this reason.
    Damaged(String),
    /// It is not a build of this program; nothing here touches it.
    Foreign,
}

/// What [`BuildStore::gc`] removes. Leftovers of killed builders, builds whose files are incomplete, and digests of
/// weights that are gone, always go; a build that any condition names goes too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcOptions {
    /// Builds that were not loaded for longer than this.
    pub max_age: Option<Duration>,
    /// The builds that were not loaded for the longest time, until all others together have at most so many bytes.
    pub max_bytes: Option<u64>,
    /// Builds that no engine directory uses which is still there unchanged.
    pub unreferenced: bool,
    /// Builds whose keys begin like this.
    pub keys: Vec<String>,
    /// Builds of which any byte is wrong: reads all of them.
    pub verify: bool,
    /// Remove nothing, only say what would go.
    pub dry_run: bool,
}

/// What [`BuildStore::gc`] removed, or would remove.
#[derive(Clone, Debug, Default)]
pub struct GcReport {
    /// What went.
    pub removed: Vec<Removed>,
    /// What should have gone but is in use.
    pub in_use: Vec<String>,
    /// Builds that stay.
    pub kept: usize,
    /// Their bytes.
    pub kept_bytes: u64,
}

/// One thing that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The key of a build, or the path of a leftover below the store's folder.
    pub name: String,
    /// Why.
    pub reason: String,
    /// Bytes on disk.
    pub bytes: u64,
}

impl StoredBuild {
    /// What it was compiled from.
    pub fn name(&self) -> Option<&str> {
        self.record.as_ref().map(|record| record.name.as_str())
    }

    /// For which provider and device it was compiled.
    pub fn target(&self) -> Option<String> {
        let target = &self.record.as_ref()?.ingredients.target;
        Some(format!("{} on {}", target.provider, target.device))
    }

    /// How long compiling took.
    pub fn build_seconds(&self) -> Option<f64> {
        self.record.as_ref().map(|record| record.build_seconds)
    }

    /// What it depends on, unless it is damaged or foreign.
    pub(super) fn into_ingredients(self) -> Option<Ingredients> {
        self.record.map(|record| record.ingredients)
    }

    /// Everything that is known of it, version 1.
    pub fn to_json(&self) -> Value {
        let (state, reason) = match &self.state {
            BuildState::Whole => ("whole", None),
            BuildState::Damaged(reason) => ("damaged", Some(reason)),
            BuildState::Foreign => ("foreign", None),
        };
        json!({
            "key": self.key,
            "state": state,
            "reason": reason,
            "bytes": self.bytes,
            "used_s": self.used_s,
            "record": self.record,
        })
    }
}

impl BuildStore {
    /// The builds, by name and key; their files are not read.
    ///
    /// # Errors
    /// `Io`.
    pub fn list(&self) -> Result<Vec<StoredBuild>> {
        self.entries(Depth::Sizes)
    }

    /// As [`list`](Self::list), but every byte is read and compared with its SHA-256.
    ///
    /// # Errors
    /// `Io`.
    pub fn verify(&self) -> Result<Vec<StoredBuild>> {
        self.entries(Depth::Content)
    }

    fn entries(&self, depth: Depth) -> Result<Vec<StoredBuild>> {
        let folder = self.folder.join(ENTRIES);
        let list = fs::read_dir(&folder).map_err(|error| Error::io("list", &folder, error))?;
        let mut entries: Vec<StoredBuild> =
            list.flatten().filter_map(|entry| self.entry(&entry.path(), depth)).collect();
        entries.sort_by(|a, b| (a.name(), &a.key).cmp(&(b.name(), &b.key)));
        Ok(entries)
    }

    /// `None` if it went meanwhile.
    fn entry(&self, path: &Path, depth: Depth) -> Option<StoredBuild> {
        let name = path.file_name()?.to_string_lossy().into_owned();
        let Some(key) = Key::parse(&name) else {
            return Some(StoredBuild {
                key: name,
                state: BuildState::Foreign,
                bytes: bytes(path),
                used_s: 0,
                record: None,
            });
        };
        let _held = lock::shared(&self.folder, &key);
        let (state, record) = match Record::check(path, &key, depth) {
            Ok(record) => (BuildState::Whole, Some(record)),
            Err(_) if path.symlink_metadata().is_err() => return None,
            Err(reason) => (BuildState::Damaged(reason), None),
        };
        Some(StoredBuild { key: name, state, bytes: bytes(path), used_s: Record::used_s(path), record })
    }

    /// Removes what is not needed. What a process builds or loads at this moment stays.
    ///
    /// # Errors
    /// `Usage` if a key is empty or no build has it; `Io` if something cannot be removed.
    pub fn gc(&self, options: &GcOptions) -> Result<GcReport> {
        if options.keys.iter().any(String::is_empty) {
            return Err(Error::option(
                "key",
                "is empty, and every key begins like that; give the first characters of one",
            ));
        }
        let entries = self.entries(if options.verify { Depth::Content } else { Depth::Sizes })?;
        let unknown = options.keys.iter().find(|key| !entries.iter().any(|entry| entry.key.starts_with(*key)));
        if let Some(key) = unknown {
            return Err(Error::usage(format!("{} holds no build {key}", self.folder.display())));
        }
        let mut report = GcReport::default();
        for (entry, reason) in self.condemned(entries, options, &mut report)? {
            let Some(key) = Key::parse(&entry.key) else { continue };
            let Some(_held) = lock::try_exclusive(&self.folder, &key) else {
                report.in_use.push(entry.key);
                continue;
            };
            if !options.dry_run {
                remove(&self.folder, &key)?;
            }
            report.removed.push(Removed { name: entry.key, reason, bytes: entry.bytes });
        }
        self.leftovers(options.dry_run, &mut report)?;
        Ok(report)
    }

    /// The builds that go, each with the reason; the others are counted.
    fn condemned(
        &self,
        mut entries: Vec<StoredBuild>,
        options: &GcOptions,
        report: &mut GcReport,
    ) -> Result<Vec<(StoredBuild, String)>> {
        let referenced = if options.unreferenced { Some(self.referenced()?) } else { None };
        let now = seconds(SystemTime::now());
        let mut condemned = Vec::new();
        // Those that were used last come first, so that a limit keeps them.
        entries.sort_by(|a, b| (b.used_s, &b.key).cmp(&(a.used_s, &a.key)));
        for entry in entries {
            let is_too_old = |age: Duration| now.saturating_sub(entry.used_s) > age.as_secs();
            let is_unused = || {
                let key = Key::parse(&entry.key);
                referenced.as_ref().is_some_and(|keys| key.is_none_or(|key| !keys.contains(&key)))
            };
            let reason = match &entry.state {
                BuildState::Foreign => continue,
                BuildState::Damaged(reason) => format!("damaged: {reason}"),
                _ if options.keys.iter().any(|key| entry.key.starts_with(key)) => "named".into(),
                _ if options.max_age.is_some_and(is_too_old) => "not used for too long".into(),
                _ if is_unused() => "no engine directory uses it".into(),
                _ if options.max_bytes.is_some_and(|most| report.kept_bytes + entry.bytes > most) => {
                    "the builds have too many bytes".into()
                }
                _ => {
                    report.kept += 1;
                    report.kept_bytes += entry.bytes;
                    continue;
                }
            };
            condemned.push((entry, reason));
        }
        Ok(condemned)
    }

    /// Removes what killed builders left behind, and nothing else. Gives how much there was.
    ///
    /// # Errors
    /// `Io`.
    pub fn remove_leftovers(&self) -> Result<usize> {
        let mut report = GcReport::default();
        self.staged(false, &mut report)?;
        Ok(report.removed.len())
    }

    /// What killed builders left behind, and digests of weights that are gone.
    fn leftovers(&self, dry_run: bool, report: &mut GcReport) -> Result<()> {
        self.staged(dry_run, report)?;
        let (weights, references) = (super::parameters::is_of_use, super::references::is_of_use);
        self.notes(WEIGHTS, weights, "the weights file is gone or changed", dry_run, report)?;
        self.notes(REFERENCES, references, "the engine directory is gone or changed", dry_run, report)
    }

    fn staged(&self, dry_run: bool, report: &mut GcReport) -> Result<()> {
        let folder = self.folder.join(STAGING);
        for path in children(&folder)? {
            let name = format!("{STAGING}/{}", path.file_name().unwrap_or_default().to_string_lossy());
            // A folder without a key was set aside to be removed, and belongs to nobody.
            let held = staged_key(&path).map(|key| lock::try_exclusive(&self.folder, &key));
            if matches!(held, Some(None)) {
                report.in_use.push(name);
                continue;
            }
            report.removed.push(Removed {
                name,
                reason: "left behind by a killed process".into(),
                bytes: bytes(&path),
            });
            if !dry_run {
                remove_path(&path)?;
            }
        }
        Ok(())
    }

    /// Small files about things that are gone.
    fn notes(
        &self,
        folder: &str,
        is_of_use: fn(&Path) -> bool,
        reason: &str,
        dry_run: bool,
        report: &mut GcReport,
    ) -> Result<()> {
        for path in children(&self.folder.join(folder))? {
            if is_of_use(&path) || is_being_written(&path) {
                continue;
            }
            let name = format!("{folder}/{}", path.file_name().unwrap_or_default().to_string_lossy());
            report.removed.push(Removed { name, reason: reason.into(), bytes: bytes(&path) });
            if !dry_run {
                remove_path(&path)?;
            }
        }
        Ok(())
    }
}

/// Removes a build, whose lock the caller holds: first its name, in one step, then its files.
pub(super) fn remove(store: &Path, key: &Key) -> Result<()> {
    let folder = key.folder(store);
    let fail = |error| Error::io("remove", &folder, error);
    let aside = tempfile::Builder::new().prefix("removed-").tempdir_in(store.join(STAGING)).map_err(fail)?;
    fs::rename(&folder, aside.path().join(short(key))).map_err(fail)?;
    // Somebody else may be tidying up.
    drop(aside);
    Ok(())
}

/// Removes what killed builders of one build left behind; the caller holds its lock.
pub(super) fn remove_leftovers(staging: &Path, key: &Key) {
    for path in children(staging).unwrap_or_default() {
        if staged_key(&path).as_ref() == Some(key) {
            // What cannot be removed is only untidy, and gc tells of it.
            let _ = remove_path(&path);
        }
    }
}

/// The key of the build that was made in a folder of the staging area.
fn staged_key(path: &Path) -> Option<Key> {
    let name = path.file_name()?.to_str()?;
    Key::parse(name.split('-').next()?)
}

/// A small file that has no final name yet is younger than this, unless its writer was killed.
const WRITING: Duration = Duration::from_secs(3600);

fn is_being_written(path: &Path) -> bool {
    let is_new = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(super::sealed::NEW));
    let age = path.metadata().and_then(|metadata| metadata.modified()).map(|time| time.elapsed().unwrap_or_default());
    is_new && age.is_ok_and(|age| age < WRITING)
}

fn children(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(folder).map_err(|error| Error::io("list", folder, error))?;
    Ok(list.flatten().map(|entry| entry.path()).collect())
}

fn remove_path(path: &Path) -> Result<()> {
    let is_folder = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        // Somebody else was faster.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|error| Error::io("remove", path, error)),
    }
}

/// Bytes of all files in a folder; links are not followed.
fn bytes(path: &Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    if !metadata.is_dir() {
        return metadata.len();
    }
    children(path).unwrap_or_default().iter().map(|child| bytes(child)).sum()
}
