//! Installs the libraries of a provider: package after package into a folder of parts, which gets its final name when every
//! file is there and is the pinned one.
//!
//! A setup that is ended before its end leaves the parts it had. The next one takes them from there, after it has read them.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::tools::NOT_INSTALLED;
use super::{
    DELIVERED_ANOTHER, Installed, Outcome, STAGING_PREFIX, SetupEvent, Via, lock, no_tool_worked, remove_leftovers,
};
use crate::error::{Error, ErrorKind, Result};
use crate::folders::FOLDER_VARIABLE;
use crate::packages::{Bundle, ReadDepth, SlotState, Wheel};
use crate::units::bytes_in_words;

/// What the folder of parts is called until it is whole; the version follows.
pub(super) const PARTIAL_PREFIX: &str = ".partial-";

/// The tools that have packages of Python.
pub(super) const TOOLS: [Via; 2] = [Via::Uv, Via::Pip];

/// Runs a tool: returns the folder that holds the wheel's files, or the reason why there is none.
pub(super) type FetchWheel<'a> =
    dyn FnMut(Via, &Wheel, &Path, &mut dyn FnMut(SetupEvent)) -> Result<PathBuf, String> + 'a;

/// What is installed, and where.
pub(super) struct ProviderSetup<'a> {
    pub(super) bundle: &'a Bundle,
    /// The folder of all providers.
    pub(super) providers: &'a Path,
    pub(super) tools: &'a [Via],
    /// How many bytes the disk of a folder has left, where the system tells.
    pub(super) room: fn(&Path) -> Option<u64>,
}

impl ProviderSetup<'_> {
    /// Installs the provider unless it is there, whole.
    ///
    /// # Errors
    /// `Library` if no tool could fetch a package; `Io` if the folder cannot be written or has too little room.
    pub(super) fn run(&self, fetch: &mut FetchWheel, notify: &mut dyn FnMut(SetupEvent)) -> Result<Installed> {
        let target = self.bundle.folder(self.providers);
        if self.is_valid(&target) {
            return Ok(self.installed(target, Outcome::AlreadyInstalled));
        }
        let home = self.providers.join(self.bundle.name);
        fs::create_dir_all(&home).map_err(|error| Error::io("create", &home, error))?;
        let _lock = lock(&home.join(".lock"), notify)?;
        if self.is_valid(&target) {
            return Ok(self.installed(target, Outcome::AlreadyInstalled));
        }
        remove_leftovers(&home);
        let parts = home.join(format!("{PARTIAL_PREFIX}{}", self.bundle.version));
        let is_repair = target.exists();
        if is_repair {
            remove_all(&parts)?;
            // From here on it is not there at all, until it is whole again.
            fs::rename(&target, &parts).map_err(|error| Error::io("rename", &target, error))?;
        }
        fs::create_dir_all(&parts).map_err(|error| Error::io("create", &parts, error))?;
        let via = self.complete(&parts, fetch, notify)?;
        fs::rename(&parts, &target).map_err(|error| Error::io("write", &target, error))?;
        sync_folder(&home);
        let outcome = match via {
            // Every part of a setup that was ended was there.
            None => Outcome::Resumed,
            Some(via) if is_repair => Outcome::Repaired(via),
            Some(via) => Outcome::Installed(via),
        };
        Ok(self.installed(target, outcome))
    }

    fn is_valid(&self, target: &Path) -> bool {
        self.bundle.state(target, ReadDepth::Content) == SlotState::Valid
    }

    fn installed(&self, path: PathBuf, outcome: Outcome) -> Installed {
        Installed { what: self.bundle.name, path, version: self.bundle.version, outcome, remains: None }
    }

    /// Fetches what the folder of parts lacks; returns the last tool that was needed.
    fn complete(
        &self,
        parts: &Path,
        fetch: &mut FetchWheel,
        notify: &mut dyn FnMut(SetupEvent),
    ) -> Result<Option<Via>> {
        let wheels = self.lacking(parts)?;
        let download = wheels.iter().map(|wheel| wheel.bytes).sum();
        let unpacked: u64 = wheels.iter().flat_map(|wheel| wheel.files).map(|file| file.bytes).sum();
        notify(SetupEvent::Planned {
            what: self.bundle.name,
            download,
            disk: unpacked,
            folder: self.bundle.folder(self.providers),
            kept: self.bundle.bytes() - unpacked,
        });
        // One archive lies beside what it becomes.
        let needed = unpacked + wheels.iter().map(|wheel| wheel.bytes).max().unwrap_or(0);
        check_room(self.bundle.name, needed, parts, self.room)?;
        let mut tools: VecDeque<Via> = self.tools.iter().copied().collect();
        let mut last = None;
        for (index, wheel) in wheels.iter().enumerate() {
            let (package, version) = (wheel.package, wheel.version);
            notify(SetupEvent::Fetching { package, version, bytes: wheel.bytes, place: index + 1, of: wheels.len() });
            last = Some(self.fetch_one(wheel, parts, &mut tools, fetch, notify)?);
        }
        sync_folder(parts);
        Ok(last)
    }

    /// The wheels of which a file is missing or wrong. What is wrong, and what belongs to nothing, is removed.
    fn lacking(&self, parts: &Path) -> Result<Vec<&'static Wheel>> {
        let failed = |error| Error::io("read", parts, error);
        for entry in fs::read_dir(parts).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let file = self.bundle.files().find(|file| path.file_name().is_some_and(|name| name == file.name));
            if file.is_none_or(|file| file.defect(parts, true).is_some()) {
                remove_all(&path)?;
            }
        }
        let lacks = |wheel: &&Wheel| wheel.files.iter().any(|file| file.defect(parts, false).is_some());
        Ok(self.bundle.wheels.iter().filter(lacks).collect())
    }

    /// Puts the files of one wheel among the parts, by the first tool that can. It becomes the first for the next wheel.
    fn fetch_one(
        &self,
        wheel: &Wheel,
        parts: &Path,
        tools: &mut VecDeque<Via>,
        fetch: &mut FetchWheel,
        notify: &mut dyn FnMut(SetupEvent),
    ) -> Result<Via> {
        let home = self.providers.join(self.bundle.name);
        let mut refused = Vec::new();
        for via in tools.clone() {
            let staging = tempfile::Builder::new().prefix(STAGING_PREFIX).tempdir_in(&home);
            let staging = staging.map_err(|error| Error::io("write into", &home, error))?;
            let kept = match fetch(via, wheel, staging.path(), notify) {
                Ok(unpacked) => keep(wheel, &unpacked, parts)?,
                Err(reason) => Err(reason),
            };
            match kept {
                Ok(()) => {
                    tools.retain(|tool| *tool != via);
                    tools.push_front(via);
                    return Ok(via);
                }
                Err(reason) => {
                    tracing::debug!(%via, package = wheel.package, reason, "cannot fetch a package");
                    if reason == NOT_INSTALLED {
                        tools.retain(|tool| *tool != via);
                    }
                    notify(SetupEvent::Failed { via, reason: reason.clone() });
                    refused.push((via, reason));
                }
            }
        }
        Err(no_tool_worked(&format!("{} {}", wheel.package, wheel.version), parts, &refused))
    }
}

/// Moves the pinned files of an unpacked wheel to the other parts. The inner error is a wrong file, for which another tool may
/// have the right one.
fn keep(wheel: &Wheel, unpacked: &Path, parts: &Path) -> Result<Result<(), String>> {
    if let Some(defect) = wheel.files.iter().find_map(|file| file.defect(unpacked, true)) {
        return Ok(Err(format!("{DELIVERED_ANOTHER} {} {}: {defect}", wheel.package, wheel.version)));
    }
    for file in wheel.files {
        let (from, to) = (unpacked.join(file.name), parts.join(file.name));
        let failed = |error| Error::io("write", &to, error);
        // What was written must be on the disk before a name says that it is.
        File::open(&from).and_then(|file| file.sync_all()).map_err(failed)?;
        fs::rename(&from, &to).map_err(failed)?;
    }
    Ok(Ok(()))
}

/// Removes a file or a folder with all that is in it, if it is there.
pub(super) fn remove_all(path: &Path) -> Result<()> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    let removed = if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(|error| Error::io("remove", path, error))
}

/// Brings the names in a folder to the disk. Where a system cannot do that, names may be lost when the power fails, and setup
/// finds that out by itself.
fn sync_folder(folder: &Path) {
    if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
        tracing::debug!(%error, "cannot sync a folder");
    }
}

/// Refuses to begin where the disk of a folder is too small.
pub(super) fn check_room(what: &str, needed: u64, folder: &Path, room: fn(&Path) -> Option<u64>) -> Result<()> {
    let Some(free) = room(folder).filter(|free| *free < needed) else { return Ok(()) };
    let (needed, free, folder) = (bytes_in_words(needed), bytes_in_words(free), folder.display());
    Err(Error::new(
        ErrorKind::Io,
        format!(
            "the disk of {folder} has {free} left, and setting up `{what}` needs {needed}; make room, or set \
             {FOLDER_VARIABLE} to a folder on another disk"
        ),
    ))
}

/// How many bytes the disk of a folder has left for this user.
pub(super) fn room(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let disk = rustix::fs::statvfs(folder).ok()?;
        disk.f_bavail.checked_mul(disk.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packages::Pinned;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const ABD: &str = "a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9";

    const fn wheel(package: &'static str, files: &'static [Pinned]) -> Wheel {
        Wheel { package, version: "1", platform: "any", bytes: 1000, folder: "", files }
    }

    const BUNDLE: Bundle = Bundle {
        name: "gpu",
        version: "7",
        preload: &[],
        wheels: &[
            wheel("one", &[Pinned { name: "a", bytes: 3, sha256: ABC }, Pinned { name: "b", bytes: 3, sha256: ABD }]),
            wheel("two", &[Pinned { name: "c", bytes: 3, sha256: ABC }]),
        ],
    };

    /// Writes what a wheel holds, and a file that nobody wants.
    fn unpack(wheel: &Wheel, staging: &Path) -> PathBuf {
        for file in wheel.files {
            fs::write(staging.join(file.name), if file.sha256 == ABC { "abc" } else { "abd" }).unwrap();
        }
        fs::write(staging.join("licence"), "").unwrap();
        staging.to_owned()
    }

    /// Sets up with tools that deliver, or fail; says which packages were fetched by which tool.
    fn install(
        providers: &Path,
        room: fn(&Path) -> Option<u64>,
        deliver: impl Fn(Via, &Wheel, &Path) -> Result<PathBuf, String>,
    ) -> (Result<Installed>, Vec<String>) {
        let mut fetched = Vec::new();
        let mut fetch = |via: Via, wheel: &Wheel, staging: &Path, _: &mut dyn FnMut(SetupEvent)| {
            fetched.push(format!("{via} {}", wheel.package));
            deliver(via, wheel, staging)
        };
        let job = ProviderSetup { bundle: &BUNDLE, providers, tools: &TOOLS, room };
        let result = job.run(&mut fetch, &mut |_| ());
        (result, fetched)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn good(_: Via, wheel: &Wheel, staging: &Path) -> Result<PathBuf, String> {
        Ok(unpack(wheel, staging))
    }

    #[test]
    fn installs_once_and_repairs_only_what_is_wrong() {
        let home = tempfile::tempdir().unwrap();
        let gpu = home.path().join("gpu");
        let (result, fetched) = install(home.path(), |_| None, good);
        let installed = result.unwrap();
        assert_eq!((installed.outcome, &installed.path), (Outcome::Installed(Via::Uv), &gpu.join("7")));
        assert_eq!(fetched, ["uv one", "uv two"]);
        assert_eq!(
            (names(&gpu), names(&gpu.join("7"))),
            (vec![".lock".into(), "7".into()], ["a", "b", "c"].map(String::from).to_vec())
        );

        let (result, fetched) = install(home.path(), |_| None, good);
        assert_eq!((result.unwrap().outcome, fetched), (Outcome::AlreadyInstalled, vec![]));

        fs::write(gpu.join("7").join("c"), "abd").unwrap();
        let (result, fetched) = install(home.path(), |_| None, good);
        assert_eq!((result.unwrap().outcome, fetched), (Outcome::Repaired(Via::Uv), vec!["uv two".to_owned()]));
        assert_eq!(fs::read(gpu.join("7").join("c")).unwrap(), b"abc");
    }

    #[test]
    fn what_was_fetched_before_the_end_is_kept() {
        let home = tempfile::tempdir().unwrap();
        let gpu = home.path().join("gpu");
        let only_one = |_: Via, wheel: &Wheel, staging: &Path| match wheel.package {
            "one" => Ok(unpack(wheel, staging)),
            _ => Err("no network".to_owned()),
        };
        let (result, fetched) = install(home.path(), |_| None, only_one);
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Library);
        let text = error.to_string();
        for part in
            ["cannot fetch two 1 into", "uv: no network", "pip: no network", "the next setup goes on from there"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(fetched, ["uv one", "uv two", "pip two"]);
        assert_eq!(names(&gpu), [".lock", ".partial-7"]);
        // What the killed setup had not finished, and a byte that has changed since.
        fs::create_dir_all(gpu.join(".fetch-killed").join("deep")).unwrap();
        fs::write(gpu.join(".partial-7").join("strange"), "").unwrap();
        fs::write(gpu.join(".partial-7").join("b"), "xyz").unwrap();
        let (result, fetched) = install(home.path(), |_| None, good);
        assert_eq!((result.unwrap().outcome, fetched.len()), (Outcome::Installed(Via::Uv), 2));
        assert_eq!((names(&gpu).len(), names(&gpu.join("7")).len()), (2, 3));
    }

    #[test]
    fn a_setup_that_ended_just_before_the_last_step_is_finished() {
        let home = tempfile::tempdir().unwrap();
        let gpu = home.path().join("gpu");
        install(home.path(), |_| None, good).0.unwrap();
        fs::rename(gpu.join("7"), gpu.join(".partial-7")).unwrap();
        let (result, fetched) = install(home.path(), |_| None, good);
        assert_eq!((result.unwrap().outcome, fetched), (Outcome::Resumed, vec![]));
    }

    #[test]
    fn a_tool_that_is_not_there_is_asked_once() {
        let home = tempfile::tempdir().unwrap();
        let (result, fetched) = install(
            home.path(),
            |_| None,
            |via, wheel, staging| match via {
                Via::Uv => Err(NOT_INSTALLED.to_owned()),
                _ => Ok(unpack(wheel, staging)),
            },
        );
        assert_eq!(result.unwrap().outcome, Outcome::Installed(Via::Pip));
        assert_eq!(fetched, ["uv one", "pip one", "pip two"]);
    }

    #[test]
    fn other_content_and_small_disks_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let (result, _) = install(
            home.path(),
            |_| None,
            |_, wheel, staging| {
                let folder = unpack(wheel, staging);
                fs::write(folder.join("a"), "xyz").unwrap();
                Ok(folder)
            },
        );
        let text = result.unwrap_err().to_string();
        assert!(text.contains("uv: it delivered another one 1: a: its SHA-256 is"), "{text}");
        let (result, fetched) = install(home.path(), |_| Some(1008), good);
        let error = result.unwrap_err();
        assert_eq!((error.kind(), fetched.len()), (ErrorKind::Io, 0));
        assert!(error.to_string().contains("has 1.0 kB left, and setting up `gpu` needs 1.0 kB"), "{error}");
        install(home.path(), |_| Some(1009), good).0.unwrap();
    }

    #[test]
    fn setups_at_once_agree() {
        let home = tempfile::tempdir().unwrap();
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let run = || install(home.path(), |_| None, good).0.unwrap().outcome;
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let fetched = outcomes.iter().filter(|outcome| **outcome == Outcome::Installed(Via::Uv)).count();
        let found = outcomes.iter().filter(|outcome| **outcome == Outcome::AlreadyInstalled).count();
        assert_eq!((fetched, found), (1, 3));
    }

    #[test]
    fn the_disk_tells_its_room() {
        let home = tempfile::tempdir().unwrap();
        assert!(!cfg!(unix) || room(home.path()).is_some_and(|free| free > 0));
    }
}
