//! Fetches ONNX Runtime's shared library and what providers need beside it, so that a fresh machine needs one command and no
//! account, compiler or root.
//!
//! The libraries come from a package registry through whichever package tool the machine has: uv, pip or npm. What they
//! deliver is trusted only if it has the SHA-256 pinned in `crate::packages`; it appears in the data folder under its final
//! name in one step, or not at all. Finding and loading it is the business of the `runtime` module.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};

mod arrival;
mod event;
mod inventory;
mod provider;
mod target;
#[cfg_attr(
    target_os = "linux",
    expect(unsafe_code, reason = "a tool is told between fork and exec to end with this process")
)]
mod tools;
mod via;

pub use self::event::SetupEvent;
#[doc(hidden)]
pub use self::inventory::Slot;
pub use self::target::{Target, Targets};
pub use self::via::Via;

use self::provider::{ProviderSetup, TOOLS, check_room, room};
use self::tools::{fetch, fetch_wheel, is_about_space, is_fetched_by};
use crate::error::{Error, ErrorKind, Result};
use crate::folders::{FOLDER_VARIABLE, library_directories};
#[doc(hidden)]
pub use crate::packages::SlotState;
use crate::packages::{
    Package, ReadDepth, TENSORRT_LIBRARIES, bundle, copy_and_hash, library_folder, packages_for_this_system,
    providers_folder, tensorrt_folder, verify_digest,
};

const ONNX_RUNTIME: &str = "ONNX Runtime";
/// How a reason begins when a tool has worked, but what it brought is not what is pinned.
const DELIVERED_ANOTHER: &str = "it delivered another";

/// How to set up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetupOptions {
    /// The only package tool to use. Default: the first of [`Via::ALL`] that works.
    pub via: Option<Via>,
    /// What to install. Default: ONNX Runtime itself, which computes on the CPU.
    pub providers: Targets,
}

/// What [`run`] has installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// ONNX Runtime, or the provider.
    pub what: &'static str,
    /// The library, or the folder of a provider's libraries.
    pub path: PathBuf,
    /// Its version.
    pub version: &'static str,
    /// What had to be done.
    pub outcome: Outcome,
    /// What cannot be fetched, and how to get it.
    pub remains: Option<String>,
}

/// What [`run`] had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Nothing: all was there and is what is pinned.
    AlreadyInstalled,
    /// All was there, of a setup that had ended before its last step.
    Resumed,
    /// It was fetched.
    Installed(Via),
    /// It was there but damaged, and was fetched again.
    Repaired(Via),
}

impl fmt::Display for Installed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, path, version, outcome, .. } = self;
        let path = path.display();
        match outcome {
            Outcome::AlreadyInstalled => write!(f, "{what} {version} is already installed: {path}"),
            Outcome::Resumed => write!(f, "finished what an earlier setup of {what} {version} had fetched: {path}"),
            Outcome::Installed(via) => write!(f, "installed {what} {version} with {via}: {path}"),
            Outcome::Repaired(via) => write!(f, "repaired {what} {version} with {via}: {path}"),
        }
    }
}

impl fmt::Display for SlotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("not installed"),
            Self::Valid => f.write_str("installed"),
            Self::Damaged(reason) => write!(f, "damaged: {reason}"),
            Self::Unfinished => f.write_str("unfinished: the same setup goes on from there"),
            Self::Outdated => f.write_str("not used: another version of this program has installed it"),
        }
    }
}

/// Installs what the options name, unless it is there and whole. Writes only inside the data folder (and the tools' own caches).
///
/// # Errors
/// [`ErrorKind::Library`] if no tool could fetch it, with every tool's reason, or if there is no package for this
/// system; [`ErrorKind::Io`] if the data folder cannot be written or a disk is full; [`ErrorKind::Usage`] if there is no home
/// folder, or a tool is named that has no such package.
pub fn run(options: &SetupOptions, notify: &mut dyn FnMut(SetupEvent)) -> Result<Vec<Installed>> {
    let mut steps = Vec::new();
    for target in options.providers.iter() {
        let of_target = match target {
            Target::Cpu => vec![Target::Cpu],
            Target::Cuda => vec![Target::Cuda],
            Target::TensorRt => vec![Target::Cuda, Target::TensorRt],
            // Plugins of any ONNX Runtime.
            Target::TensorRtRtx | Target::OpenVino | Target::WebGpu => vec![Target::Cpu, target],
        };
        steps.extend(of_target.into_iter().filter(|step| !steps.contains(step)).collect::<Vec<_>>());
    }
    if steps.is_empty() {
        steps.push(Target::Cpu);
    }
    let is_from_python = |step: &Target| *step != Target::Cpu;
    if let Some(step) = steps.iter().find(|step| is_from_python(step)).filter(|_| options.via == Some(Via::Npm)) {
        return Err(Error::option("via", format!("is `npm`, which has no package of `{step}`; use `uv` or `pip`")));
    }
    let mut installed: Vec<Installed> = Vec::new();
    for step in steps {
        match step {
            Target::Cpu => {
                let tools = options.via.map_or(Via::ALL.to_vec(), |via| vec![via]);
                installed.push(install(&library_folder()?, &packages_for_this_system()?, &tools, &mut fetch, notify)?);
            }
            Target::TensorRt => {
                // What it needs beside CUDA, which the step before this one has installed.
                let remains = tensorrt_remains()?;
                if let Some(cuda) = installed.iter_mut().find(|installed| installed.what == Target::Cuda.as_str()) {
                    cuda.remains = remains;
                }
            }
            provider => installed.push(install_provider(provider, options.via, notify)?),
        }
    }
    Ok(installed)
}

fn install_provider(provider: Target, via: Option<Via>, notify: &mut dyn FnMut(SetupEvent)) -> Result<Installed> {
    let Some(bundle) = bundle(provider.as_str()) else {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        return Err(Error::new(
            ErrorKind::Library,
            format!(
                "no packages of `{provider}` are known for {os} on {arch}: setup has those for Linux on x86-64 with the GNU C \
                 library; install them by hand, and name the library with the option `ort-library` or ORT_DYLIB_PATH, or a \
                 plugin with the provider's option `library`"
            ),
        ));
    };
    let tools = via.map_or(TOOLS.to_vec(), |via| vec![via]);
    ProviderSetup { bundle, providers: &providers_folder()?, tools: &tools, room }.run(&mut fetch_wheel, notify)
}

/// What is to be done for TensorRT, if its libraries lie nowhere.
fn tensorrt_remains() -> Result<Option<String>> {
    let own = tensorrt_folder()?;
    let folders: Vec<PathBuf> = std::iter::once(own.clone()).chain(library_directories()).collect();
    let is_missing = |name: &&&str| !folders.iter().any(|folder| is_library(&folder.join(name)));
    let missing: Vec<&str> = TENSORRT_LIBRARIES.iter().filter(is_missing).copied().collect();
    if missing.is_empty() {
        return Ok(None);
    }
    Ok(Some(format!(
        "`tensorrt` also needs {}, of TensorRT 10 for CUDA 13 (never 11), which no package tool can fetch from the Python \
         registry alone: take NVIDIA's archive or packages of TensorRT 10, or `pip download 'tensorrt-cu13-libs<11'` where \
         NVIDIA's own index can be reached, make the folder {} and copy all of its libraries (libnvinfer*.so*, libnvonnxparser.so*) into it; then \
         `dbcache-trt providers` shows whether they are found",
        missing.join(" and "),
        own.display()
    )))
}

/// Whether a file begins as a library of this system does.
fn is_library(path: &Path) -> bool {
    let mut begin = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut begin)).is_ok() && begin == *b"\x7fELF"
}

/// Says what [`run`] would find, reading all of it, and changes nothing.
#[doc(hidden)]
///
/// # Errors
/// [`ErrorKind::Usage`] if there is no home folder.
pub fn check() -> Result<Vec<Slot>> {
    inventory::slots(ReadDepth::Content)
}

/// As [`check`], but of large files only the sizes.
#[doc(hidden)]
///
/// # Errors
/// As [`check`].
pub fn list() -> Result<Vec<Slot>> {
    inventory::slots(ReadDepth::Library)
}

/// Removes all that setup has installed for a provider; returns how many bytes that were.
///
/// # Errors
/// [`ErrorKind::Io`] if something cannot be removed; [`ErrorKind::Usage`] for `tensorrt`, which has nothing of its own, or
/// without a home folder.
pub fn remove(target: Target, notify: &mut dyn FnMut(SetupEvent)) -> Result<u64> {
    inventory::remove(target, notify)
}

fn slot(package: &Package, folder: &Path) -> (PathBuf, SlotState) {
    (package.installed_path(folder), package.state(folder))
}

/// Runs a tool: returns the library in the folder it unpacked, or the reason why there is none.
type Fetch<'a> = dyn FnMut(Via, &Package, &Path, &mut dyn FnMut(SetupEvent)) -> Result<PathBuf, String> + 'a;

fn install(
    folder: &Path,
    packages: &[Package],
    tools: &[Via],
    fetch: &mut Fetch,
    notify: &mut dyn FnMut(SetupEvent),
) -> Result<Installed> {
    let package_of = |via: Via| packages.iter().find(|package| is_fetched_by(package, via));
    let wanted: Vec<(Via, &Package)> = tools.iter().filter_map(|via| Some((*via, package_of(*via)?))).collect();
    if let Some(installed) = find_installed(folder, &wanted) {
        return Ok(installed);
    }
    fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    let _lock = lock(&folder.join(".lock"), notify)?;
    if let Some(installed) = find_installed(folder, &wanted) {
        return Ok(installed);
    }
    remove_leftovers(folder);
    let mut refused = Vec::new();
    let mut planned = "";
    for &(via, package) in &wanted {
        if planned != package.version {
            planned = package.version;
            plan(package, folder, notify)?;
        }
        let staging = tempfile::Builder::new().prefix(STAGING_PREFIX).tempdir_in(folder);
        let staging = staging.map_err(|error| Error::io("write into", folder, error))?;
        let damaged = matches!(package.state(folder), SlotState::Damaged(_));
        let path = package.installed_path(folder);
        let placed = match fetch(via, package, staging.path(), notify) {
            Ok(library) => place(package, &library, &path)?,
            Err(reason) => Err(reason),
        };
        match placed {
            Ok(()) => {
                let outcome = if damaged { Outcome::Repaired(via) } else { Outcome::Installed(via) };
                return Ok(Installed { what: ONNX_RUNTIME, path, version: package.version, outcome, remains: None });
            }
            Err(reason) => {
                tracing::debug!(%via, reason, "cannot fetch ONNX Runtime");
                notify(SetupEvent::Failed { via, reason: reason.clone() });
                refused.push((via, reason));
            }
        }
    }
    Err(no_tool_worked(ONNX_RUNTIME, folder, &refused))
}

/// Says what a package will take, and looks whether the disk has room: the library lies there twice for a moment.
fn plan(package: &Package, folder: &Path, notify: &mut dyn FnMut(SetupEvent)) -> Result<()> {
    let Package { version, bytes, archive, .. } = *package;
    let parent = package.installed_path(folder).parent().unwrap_or(folder).to_owned();
    notify(SetupEvent::Planned { what: ONNX_RUNTIME, download: archive, disk: bytes, folder: parent, kept: 0 });
    check_room(ONNX_RUNTIME, archive + 2 * bytes, folder, room)?;
    notify(SetupEvent::Fetching { package: "onnxruntime", version, bytes: archive, place: 1, of: 1 });
    Ok(())
}

fn no_tool_worked(what: &str, folder: &Path, refused: &[(Via, String)]) -> Error {
    let mut message = format!("cannot fetch {what} into {}:", folder.display());
    for (via, reason) in refused {
        message += &format!("\n  {via}: {reason}");
    }
    if refused.iter().any(|(_, reason)| is_about_space(reason)) {
        message += &format!("\nmake room, or set {FOLDER_VARIABLE} to a folder on another disk");
        return Error::new(ErrorKind::Io, message);
    }
    if refused.iter().any(|(_, reason)| reason.starts_with(DELIVERED_ANOTHER)) {
        message += "\nwhat was fetched is not what this version pins, and was not installed: see whether the tool is set to a \
                    mirror or a cache that has another package under this name";
        return Error::new(ErrorKind::Library, message);
    }
    message += match what {
        ONNX_RUNTIME => {
            "\none of uv, pip and npm is needed, and a network; or name a library you have with ORT_DYLIB_PATH"
        }
        _ => {
            "\none of uv and pip is needed, and a network; what was fetched stays, and the next setup goes on from there"
        }
    };
    Error::new(ErrorKind::Library, message)
}

/// The library that would be loaded, if it is valid; a damaged one is worth a repair even if an older one is valid.
fn find_installed(folder: &Path, wanted: &[(Via, &Package)]) -> Option<Installed> {
    let mut slots = wanted.iter().map(|(_, package)| (package.version, slot(package, folder)));
    let (version, (path, state)) = slots.find(|(_, (_, state))| *state != SlotState::Empty)?;
    let outcome = Outcome::AlreadyInstalled;
    (state == SlotState::Valid).then_some(Installed { what: ONNX_RUNTIME, path, version, outcome, remains: None })
}

/// Lets one process at a time set up in a folder. Where a file system has no locks, two may: both then fetch the same
/// file, and the later one replaces it by its equal.
fn lock(path: &Path, notify: &mut dyn FnMut(SetupEvent)) -> Result<File> {
    let file = File::create(path).map_err(|error| Error::io("write", path, error))?;
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        notify(SetupEvent::Waiting);
        if let Err(error) = file.lock() {
            tracing::debug!(%error, "no lock");
        }
    }
    Ok(file)
}

const STAGING_PREFIX: &str = ".fetch-";

/// Removes what a killed setup left behind.
fn remove_leftovers(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(STAGING_PREFIX) {
            // What cannot be removed is only untidy.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Copies a fetched library to its place: complete and verified, or not at all. The inner error is a wrong library, for
/// which another tool may have the right one; the outer one is the data folder's fault.
fn place(package: &Package, library: &Path, target: &Path) -> Result<Result<(), String>> {
    let folder = target.parent().unwrap_or(target);
    let failed = |error| Error::io("write", target, error);
    fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    let mut source = match File::open(library) {
        Ok(source) => source,
        Err(error) => return Ok(Err(format!("it delivered no {}: {error}", package.file))),
    };
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)); // other users may read it too
    let mut copy = builder.prefix(STAGING_PREFIX).tempfile_in(folder).map_err(failed)?;
    let digest = copy_and_hash(&mut source, &mut copy).map_err(failed)?;
    if let Err(reason) = verify_digest(&digest, package.sha256) {
        return Ok(Err(format!("{DELIVERED_ANOTHER} library: {reason}")));
    }
    copy.as_file().sync_all().map_err(failed)?;
    copy.persist(target).map_err(|error| failed(error.error))?;
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packages::{FILE_NAME, Registry};

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_no_library_does_not_count_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libnvinfer.so.10");
        assert!(!is_library(&path) && !is_library(folder.path()));
        fs::write(&path, "junk").unwrap();
        assert!(!is_library(&path));
        assert!(is_library(&std::env::current_exe().unwrap()));
    }

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    const fn package(registry: Registry, version: &'static str) -> Package {
        Package { registry, version, os: "any", arch: "any", file: "library", bytes: 3, archive: 2, sha256: ABC }
    }

    const PACKAGES: [Package; 2] = [package(Registry::PyPi, "2.0"), package(Registry::Npm, "1.0")];

    /// Installs into `folder` with tools that deliver `content`, or fail with it; returns the events as well, in words.
    fn install_with(
        folder: &Path,
        tools: &[Via],
        deliver: fn(Via) -> Result<&'static str, &'static str>,
    ) -> (Result<Installed>, Vec<String>) {
        let mut events = Vec::new();
        let mut fetch = |via, package: &Package, staging: &Path, _: &mut dyn FnMut(SetupEvent)| {
            let path = staging.join(package.file);
            fs::write(&path, deliver(via)?).map_err(|error| error.to_string())?;
            Ok(path)
        };
        let result = install(folder, &PACKAGES, tools, &mut fetch, &mut |event| events.push(event.to_string()));
        (result, events)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn tools_are_known_by_their_names() {
        assert!(Via::ALL.iter().all(|via| via.to_string().parse::<Via>().is_ok_and(|parsed| parsed == *via)));
        assert_eq!("conda".parse::<Via>().unwrap_err().kind(), ErrorKind::Usage);
    }

    #[test]
    fn installs_once_and_repairs() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("onnxruntime");
        let library = folder.join("2.0").join(FILE_NAME);
        let outcome = |result: Result<Installed>| result.unwrap().outcome;

        let (result, events) = install_with(&folder, &Via::ALL, |_| Ok("abc"));
        let outcome_of_first = Outcome::Installed(Via::Uv);
        let expected = Installed {
            what: ONNX_RUNTIME,
            path: library.clone(),
            version: "2.0",
            outcome: outcome_of_first,
            remains: None,
        };
        let plan =
            format!("ONNX Runtime: 2 bytes to download, 3 bytes on the disk, in {}", folder.join("2.0").display());
        assert_eq!((result.unwrap(), events), (expected, vec![plan, "[1/1] onnxruntime 2.0, 2 bytes".into()]));
        assert_eq!(
            (names(&folder), names(library.parent().unwrap())),
            (vec![".lock".into(), "2.0".into()], vec![FILE_NAME.into()])
        );

        let broken = |_| Err("must not be called");
        assert_eq!(outcome(install_with(&folder, &Via::ALL, broken).0), Outcome::AlreadyInstalled);
        fs::write(&library, "abd").unwrap();
        assert_eq!(outcome(install_with(&folder, &[Via::Pip], |_| Ok("abc")).0), Outcome::Repaired(Via::Pip));
        fs::write(&library, "").unwrap();
        assert_eq!(outcome(install_with(&folder, &[Via::Uv], |_| Ok("abc")).0), Outcome::Repaired(Via::Uv));
        assert_eq!(fs::read(&library).unwrap(), b"abc");
    }

    #[test]
    fn an_older_version_will_do_unless_a_tool_is_named() {
        let home = tempfile::tempdir().unwrap();
        let (result, events) =
            install_with(home.path(), &Via::ALL, |via| if via == Via::Npm { Ok("abc") } else { Err("no") });
        assert_eq!(result.unwrap().version, "1.0");
        // The plan is told once for each package.
        let plans = events.iter().filter(|event| event.contains("to download")).count();
        assert_eq!((plans, &events[2], &events[3]), (2, &"uv: no".to_owned(), &"pip: no".to_owned()), "{events:?}");
        assert_eq!(install_with(home.path(), &Via::ALL, |_| Ok("abc")).0.unwrap().version, "1.0");
        assert_eq!(install_with(home.path(), &[Via::Uv], |_| Ok("abc")).0.unwrap().version, "2.0");
        assert_eq!(install_with(home.path(), &Via::ALL, |_| Ok("abc")).0.unwrap().version, "2.0");
    }

    #[test]
    fn every_reason_is_kept() {
        let home = tempfile::tempdir().unwrap();
        let (result, _) =
            install_with(home.path(), &Via::ALL, |via| if via == Via::Pip { Ok("abd") } else { Err("no network") });
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Library);
        let text = error.to_string();
        for part in [
            "uv: no network",
            "pip: it delivered another library: its SHA-256 is a52d",
            "npm: no network",
            ABC,
            "mirror",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(names(home.path()), [".lock", "2.0"]);
        assert_eq!(names(&home.path().join("2.0")), [""; 0]);
        let (result, _) = install_with(home.path(), &Via::ALL, |_| Err("OSError: [Errno 28] No space left on device"));
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Io);
    }

    #[test]
    fn names_a_folder_it_cannot_write() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        let error = install_with(&file.join("onnxruntime"), &Via::ALL, |_| Ok("abc")).0.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains(&*file.to_string_lossy()), "{error}");

        fs::create_dir_all(home.path().join("2.0").join(FILE_NAME)).unwrap();
        let error = install_with(home.path(), &Via::ALL, |_| Ok("abc")).0.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
    }

    #[test]
    fn a_killed_setup_leaves_nothing_for_long() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir_all(home.path().join(".fetch-killed").join("onnxruntime")).unwrap();
        install_with(home.path(), &Via::ALL, |_| Ok("abc")).0.unwrap();
        assert_eq!(names(home.path()), [".lock", "2.0"]);
    }

    #[test]
    fn setups_at_once_agree() {
        let home = tempfile::tempdir().unwrap();
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let run = || install_with(home.path(), &Via::ALL, |_| Ok("abc")).0.unwrap().outcome;
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let fetched = outcomes.iter().filter(|outcome| **outcome == Outcome::Installed(Via::Uv)).count();
        let found = outcomes.iter().filter(|outcome| **outcome == Outcome::AlreadyInstalled).count();
        assert_eq!((fetched, found), (1, 3));
    }
}
