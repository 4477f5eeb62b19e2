//! Fetches ONNX Runtime's shared library, so that a fresh machine needs one command and no account, compiler or root.
//!
//! The library comes from a package registry through whichever package tool the machine has: uv, pip or npm. What they
//! deliver is trusted only if it has the SHA-256 pinned in [`PACKAGES`]; it appears in the data folder under its final
//! name in one step, or not at all. Finding and loading it is the business of the `runtime` module.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::library::FILE_NAME;

/// The environment variable that moves the data folder.
pub const FOLDER_VARIABLE: &str = "DBCACHE_TRT_HOME";

/// How to set up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetupOptions {
    /// The only package tool to use. Default: the first of [`Via::ALL`] that works.
    pub via: Option<Via>,
}

/// A package tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Via {
    /// uv, from PyPI.
    Uv,
    /// pip, from PyPI.
    Pip,
    /// npm, from the npm registry, whose package is larger and somewhat older.
    Npm,
}

impl Via {
    /// Every tool, in the order in which they are tried.
    pub const ALL: [Via; 3] = [Via::Uv, Via::Pip, Via::Npm];

    fn registry(self) -> Registry {
        match self {
            Self::Uv | Self::Pip => Registry::PyPi,
            Self::Npm => Registry::Npm,
        }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uv => "uv",
            Self::Pip => "pip",
            Self::Npm => "npm",
        })
    }
}

impl FromStr for Via {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let via = Self::ALL.into_iter().find(|via| via.to_string() == name);
        via.ok_or_else(|| Error::usage(format!("unknown package tool {name:?}; expected uv, pip or npm")))
    }
}

/// What happens while setting up. `Display` is one line for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetupEvent {
    /// Another process sets up in the same folder; its result will do.
    Waiting,
    /// A tool starts to download.
    Running {
        /// The tool.
        via: Via,
        /// Its command line.
        command: String,
    },
    /// A tool failed; the next one is tried.
    Failed {
        /// The tool.
        via: Via,
        /// Why, in its own words.
        reason: String,
    },
}

impl fmt::Display for SetupEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("waiting for another setup"),
            Self::Running { command, .. } => write!(f, "running {command}"),
            Self::Failed { via, reason } => write!(f, "{via}: {reason}"),
        }
    }
}

/// The result of [`run`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The library.
    pub path: PathBuf,
    /// The version of ONNX Runtime.
    pub version: &'static str,
    /// What had to be done.
    pub outcome: Outcome,
}

/// What [`run`] had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Nothing: the library was there and is the pinned one.
    AlreadyInstalled,
    /// It was fetched.
    Installed(Via),
    /// It was there but damaged, and was fetched again.
    Repaired(Via),
}

impl fmt::Display for Installed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, version, outcome } = self;
        let path = path.display();
        match outcome {
            Outcome::AlreadyInstalled => write!(f, "ONNX Runtime {version} is already installed: {path}"),
            Outcome::Installed(via) => write!(f, "installed ONNX Runtime {version} with {via}: {path}"),
            Outcome::Repaired(via) => write!(f, "repaired ONNX Runtime {version} with {via}: {path}"),
        }
    }
}

/// What lies at one of the places that [`run`] fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The library.
    pub path: PathBuf,
    /// The version of ONNX Runtime that belongs there.
    pub version: &'static str,
    /// What is there.
    pub state: SlotState,
}

/// See [`Slot`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Nothing.
    Empty,
    /// The pinned library.
    Valid,
    /// Something else.
    Damaged(String),
}

impl fmt::Display for SlotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("not installed"),
            Self::Valid => f.write_str("installed"),
            Self::Damaged(reason) => write!(f, "damaged: {reason}"),
        }
    }
}

/// Installs the library unless a valid one is there. Writes only inside the data folder (and the tools' own caches).
///
/// # Errors
/// [`ErrorKind::Library`] if no tool could fetch it, with every tool's reason, or if there is no package for this
/// system; [`ErrorKind::Io`] if the data folder cannot be written or a disk is full; [`ErrorKind::Usage`] if there is no home folder.
pub fn run(options: &SetupOptions, notify: &mut dyn FnMut(SetupEvent)) -> Result<Installed> {
    let tools = options.via.map_or(Via::ALL.to_vec(), |via| vec![via]);
    install(&library_folder()?, &packages_for_this_system()?, &tools, &mut fetch, notify)
}

/// Says what [`run`] would find, and changes nothing.
///
/// # Errors
/// [`ErrorKind::Usage`] if there is no home folder, [`ErrorKind::Library`] if there is no package for this system.
pub fn check() -> Result<Vec<Slot>> {
    let folder = library_folder()?;
    Ok(packages_for_this_system()?.into_iter().map(|package| package.slot(&folder)).collect())
}

/// The folder in which this program keeps what it fetches.
///
/// # Errors
/// [`ErrorKind::Usage`] if the environment names neither the folder nor a home.
pub fn data_folder() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = variable(FOLDER_VARIABLE) {
        return std::path::absolute(&folder).map_err(|error| Error::io("resolve", &folder, error));
    }
    let home = || {
        let home = std::env::home_dir().filter(|home| home.is_absolute());
        home.ok_or_else(|| Error::usage(format!("no home folder; set {FOLDER_VARIABLE} to a folder for downloads")))
    };
    let base = if cfg!(windows) {
        variable("LOCALAPPDATA").map_or_else(|| home().map(|home| home.join("AppData").join("Local")), Ok)?
    } else if cfg!(target_vendor = "apple") {
        home()?.join("Library").join("Application Support")
    } else {
        // The specification of these variables says that a relative path is to be ignored.
        let data = variable("XDG_DATA_HOME").filter(|folder| folder.is_absolute());
        data.map_or_else(|| home().map(|home| home.join(".local").join("share")), Ok)?
    };
    Ok(base.join("dbcache-trt"))
}

/// The files that [`run`] installs, best first, with their sizes; none if there is no folder or package for them.
pub(crate) fn expected_files() -> Vec<(PathBuf, u64)> {
    let (Ok(folder), Ok(packages)) = (library_folder(), packages_for_this_system()) else { return Vec::new() };
    packages.iter().map(|package| (package.installed_path(&folder), package.bytes)).collect()
}

fn library_folder() -> Result<PathBuf> {
    Ok(data_folder()?.join("onnxruntime"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Registry {
    PyPi,
    Npm,
}

/// One library, in the package that carries it.
#[derive(Clone, Copy, Debug)]
struct Package {
    registry: Registry,
    version: &'static str,
    os: &'static str,
    arch: &'static str,
    /// Where the library lies in the package.
    file: &'static str,
    bytes: u64,
    sha256: &'static str,
}

const fn pypi(os: &'static str, arch: &'static str, file: &'static str, bytes: u64, sha256: &'static str) -> Package {
    Package { registry: Registry::PyPi, version: "1.31.1", os, arch, file, bytes, sha256 }
}

const fn npm(os: &'static str, arch: &'static str, file: &'static str, bytes: u64, sha256: &'static str) -> Package {
    Package { registry: Registry::Npm, version: "1.30.0", os, arch, file, bytes, sha256 }
}

/// Every library this program installs, best first. Computed from the packages `onnxruntime` 1.31.1 (wheels for Python
/// 3.12) and `onnxruntime-node` 1.30.0, the newest on npm that carries the library.
#[rustfmt::skip]
const PACKAGES: [Package; 10] = [
    pypi("linux", "x86_64", "libonnxruntime.so.1.31.1", 29_352_200, "fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3"),
    pypi("linux", "aarch64", "libonnxruntime.so.1.31.1", 25_265_040, "8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467"),
    pypi("macos", "aarch64", "libonnxruntime.1.31.1.dylib", 33_037_336, "d586cbe89effc085a09d3341b3cfbd5c322517f9d397aeb20814af21433f2b36"),
    pypi("windows", "x86_64", "onnxruntime.dll", 19_288_376, "e45f61e50d8650885452be538a00bb14a715e46a1bc3691000ce947e89ed0306"),
    pypi("windows", "aarch64", "onnxruntime.dll", 19_171_640, "dc9e2fe646a72829386a24ac9185a7a4e26d7dbe5dc433d41df063603c00bbc7"),
    npm("linux", "x86_64", "linux/x64/libonnxruntime.so.1", 45_828_512, "ffb75a925ba05e47b235bb66e3e3911714a80b328a9c9425539feb204aa32a23"),
    npm("linux", "aarch64", "linux/arm64/libonnxruntime.so.1", 25_135_496, "1f549d46250b005580b597f4164984aaf75b3bcb9f3aeb07c7f8a8fe60b23c76"),
    npm("macos", "aarch64", "darwin/arm64/libonnxruntime.1.30.0.dylib", 44_589_928, "685d2be5dba1309c89d3a5324b7fd06a5c42f1a61bfea32d14c4cc28d072121d"),
    npm("windows", "x86_64", "win32/x64/onnxruntime.dll", 28_754_232, "508c362f5673483dd3a086379c392795b2e42d10d5e6f3f90ebd7ac21c97af67"),
    npm("windows", "aarch64", "win32/arm64/onnxruntime.dll", 29_815_136, "6c3a2abf5c6aca11c48a0d338a91af309f2266f25ce2e4084e6a87bbcb0fbfd0"),
];

impl Package {
    fn installed_path(&self, folder: &Path) -> PathBuf {
        folder.join(self.version).join(FILE_NAME)
    }

    fn slot(&self, folder: &Path) -> Slot {
        let path = self.installed_path(folder);
        let state = match self.verify(&path) {
            Ok(()) => SlotState::Valid,
            Err(error) if error.kind() == io::ErrorKind::NotFound => SlotState::Empty,
            Err(error) => SlotState::Damaged(error.to_string()),
        };
        Slot { path, version: self.version, state }
    }

    fn verify(&self, path: &Path) -> io::Result<()> {
        let metadata = path.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        if metadata.len() != self.bytes {
            return Err(io::Error::other(format!("{} bytes instead of {}", metadata.len(), self.bytes)));
        }
        self.verify_digest(&copy_and_hash(&mut File::open(path)?, &mut io::sink())?).map_err(io::Error::other)
    }

    fn verify_digest(&self, digest: &str) -> Result<(), String> {
        if digest == self.sha256 { Ok(()) } else { Err(format!("its SHA-256 is {digest}, expected {}", self.sha256)) }
    }

    /// The wheel's platform tag.
    fn wheel_platform(&self) -> &'static str {
        match (self.os, self.arch) {
            ("linux", "x86_64") => "manylinux_2_28_x86_64",
            ("linux", _) => "manylinux_2_28_aarch64",
            ("macos", _) => "macosx_14_0_arm64",
            (_, "x86_64") => "win_amd64",
            (..) => "win_arm64",
        }
    }

    /// The same for uv.
    fn uv_platform(&self) -> &'static str {
        match (self.os, self.arch) {
            ("linux", "x86_64") => "x86_64-manylinux_2_28",
            ("linux", _) => "aarch64-manylinux_2_28",
            ("macos", _) => "aarch64-apple-darwin",
            (_, "x86_64") => "x86_64-pc-windows-msvc",
            (..) => "aarch64-pc-windows-msvc",
        }
    }
}

fn packages_for_this_system() -> Result<Vec<Package>> {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    // The packages for Linux need the GNU C library.
    let fits = |package: &Package| package.os == os && package.arch == arch && !cfg!(target_env = "musl");
    let packages: Vec<_> = PACKAGES.into_iter().filter(fits).collect();
    if packages.is_empty() {
        let system = format!("{os} on {arch}{}", if cfg!(target_env = "musl") { " with musl" } else { "" });
        return Err(Error::new(
            ErrorKind::Library,
            format!(
                "no package of ONNX Runtime is known for {system}; build its shared library and name it with ORT_DYLIB_PATH"
            ),
        ));
    }
    Ok(packages)
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
    let package_of = |via: Via| packages.iter().find(|package| package.registry == via.registry());
    let mut wanted: Vec<(Via, &Package)> = tools.iter().filter_map(|via| Some((*via, package_of(*via)?))).collect();
    if let Some(installed) = find_installed(folder, &wanted) {
        return Ok(installed);
    }
    let io_error = |action, path: &Path| {
        let path = path.to_owned();
        move |error| Error::io(action, &path, error)
    };
    fs::create_dir_all(folder).map_err(io_error("create", folder))?;
    let _lock = lock(&folder.join(".lock"), notify)?;
    if let Some(installed) = find_installed(folder, &wanted) {
        return Ok(installed);
    }
    remove_leftovers(folder);
    let mut refused = Vec::new();
    for (via, package) in wanted.drain(..) {
        let staging = tempfile::Builder::new().prefix(STAGING_PREFIX).tempdir_in(folder);
        let staging = staging.map_err(io_error("write into", folder))?;
        let damaged = matches!(package.slot(folder).state, SlotState::Damaged(_));
        let path = package.installed_path(folder);
        let placed = match fetch(via, package, staging.path(), notify) {
            Ok(library) => place(package, &library, &path)?,
            Err(reason) => Err(reason),
        };
        match placed {
            Ok(()) => {
                let outcome = if damaged { Outcome::Repaired(via) } else { Outcome::Installed(via) };
                return Ok(Installed { path, version: package.version, outcome });
            }
            Err(reason) => {
                tracing::debug!(%via, reason, "cannot fetch ONNX Runtime");
                notify(SetupEvent::Failed { via, reason: reason.clone() });
                refused.push((via, reason));
            }
        }
    }
    Err(no_tool_worked(folder, &refused))
}

fn no_tool_worked(folder: &Path, refused: &[(Via, String)]) -> Error {
    let mut message = format!("cannot fetch ONNX Runtime into {}:", folder.display());
    for (via, reason) in refused {
        message += &format!("\n  {via}: {reason}");
    }
    if refused.iter().any(|(_, reason)| is_about_space(reason)) {
        message += &format!("\nmake room, or set {FOLDER_VARIABLE} to a folder on another disk");
        return Error::new(ErrorKind::Io, message);
    }
    message += "\none of uv, pip and npm is needed, and a network; or name a library you have with ORT_DYLIB_PATH";
    Error::new(ErrorKind::Library, message)
}

/// The library that would be loaded, if it is valid; a damaged one is worth a repair even if an older one is valid.
fn find_installed(folder: &Path, wanted: &[(Via, &Package)]) -> Option<Installed> {
    let mut slots = wanted.iter().map(|(_, package)| package.slot(folder));
    let slot = slots.find(|slot| slot.state != SlotState::Empty).filter(|slot| slot.state == SlotState::Valid)?;
    Some(Installed { path: slot.path, version: slot.version, outcome: Outcome::AlreadyInstalled })
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
    if let Err(reason) = package.verify_digest(&digest) {
        return Ok(Err(format!("it delivered another library: {reason}")));
    }
    copy.as_file().sync_all().map_err(failed)?;
    copy.persist(target).map_err(|error| failed(error.error))?;
    Ok(Ok(()))
}

/// Copies everything and returns the SHA-256 of it in hexadecimal.
fn copy_and_hash(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(&buffer[..count]);
        to.write_all(&buffer[..count])?;
    }
}

fn fetch(via: Via, package: &Package, staging: &Path, notify: &mut dyn FnMut(SetupEvent)) -> Result<PathBuf, String> {
    match via {
        Via::Uv => fetch_with_uv(package, staging, notify),
        Via::Pip => fetch_with_pip(package, staging, notify),
        Via::Npm => fetch_with_npm(package, staging, notify),
    }
}

// The library belongs to no Python, but wheels do. Both commands ask for the wheel for Python 3.12, whatever Python the
// tool itself runs on: pip spells the version so that old releases understand it.

fn fetch_with_uv(package: &Package, staging: &Path, notify: &mut dyn FnMut(SetupEvent)) -> Result<PathBuf, String> {
    let mut command = Command::new("uv");
    command.args(["pip", "install", "--no-progress", "--no-deps", "--only-binary", ":all:"]);
    command.args(["--python-version", "3.12", "--python-platform", package.uv_platform(), "--target"]);
    command.arg(staging).arg(format!("onnxruntime=={}", package.version));
    // Without a Python, uv would download one: pip or npm need no such thing.
    command.env("UV_PYTHON_DOWNLOADS", "never");
    // The wheel for macOS needs 14.0, uv would assume an older one.
    command.env("MACOSX_DEPLOYMENT_TARGET", "14.0");
    run_tool(Via::Uv, command, staging, notify)?;
    Ok(staging.join("onnxruntime").join("capi").join(package.file))
}

fn fetch_with_pip(package: &Package, staging: &Path, notify: &mut dyn FnMut(SetupEvent)) -> Result<PathBuf, String> {
    let mut reasons = Vec::new();
    for pip in find_pips(staging) {
        let mut command = pip_command(pip);
        command.args(["install", "--no-deps", "--no-compile", "--only-binary=:all:", "--ignore-requires-python"]);
        command.args(["--python-version", "312", "--implementation", "cp", "--abi", "cp312"]);
        command.args(["--platform", package.wheel_platform(), "--retries", "2", "--target"]);
        command.arg(staging).arg(format!("onnxruntime=={}", package.version));
        match run_tool(Via::Pip, command, staging, notify) {
            Ok(()) => return Ok(staging.join("onnxruntime").join("capi").join(package.file)),
            Err(reason) => reasons.push(reason),
        }
    }
    Err(if reasons.is_empty() { NOT_INSTALLED.to_owned() } else { reasons.join("; ") })
}

/// The ways to call pip that work, each different pip once.
fn find_pips(staging: &Path) -> Vec<&'static [&'static str]> {
    const CALLS: [&[&str]; 5] =
        [&["pip"], &["pip3"], &["python3", "-m", "pip"], &["python", "-m", "pip"], &["py", "-m", "pip"]];
    let mut seen = Vec::new();
    let is_new = |call: &&[&str]| {
        let mut command = pip_command(call);
        command.arg("--version");
        match run_quietly(&mut command, staging, || ()) {
            // "pip 24.0 from /usr/lib/python3/dist-packages/pip (python 3.12)"
            Ok(version) if !seen.contains(&version) => {
                seen.push(version);
                true
            }
            _ => false,
        }
    };
    CALLS.into_iter().filter(is_new).collect()
}

/// A call of pip that the user's settings for real installations do not reach.
fn pip_command(call: &[&str]) -> Command {
    let mut words = call.iter();
    let mut command = Command::new(words.next().unwrap_or(&"pip"));
    command.args(words);
    for (name, value) in [
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
        ("PIP_NO_INPUT", "1"),
        ("PIP_REQUIRE_VIRTUALENV", "0"),
        ("PIP_ROOT_USER_ACTION", "ignore"),
        ("PIP_USER", "0"),
    ] {
        command.env(name, value);
    }
    for name in ["PIP_PREFIX", "PIP_ROOT", "PIP_TARGET"] {
        command.env_remove(name);
    }
    command
}

fn fetch_with_npm(package: &Package, staging: &Path, notify: &mut dyn FnMut(SetupEvent)) -> Result<PathBuf, String> {
    let mut command = Command::new(if cfg!(windows) { "npm.cmd" } else { "npm" });
    // The package's own script would download libraries for other processors.
    command.args(["install", "--ignore-scripts", "--no-save", "--no-package-lock", "--no-audit", "--no-fund"]);
    command.args(["--fetch-retries=1", "--fetch-retry-mintimeout=1000"]);
    command.arg("--prefix").arg(staging).arg(format!("onnxruntime-node@{}", package.version));
    run_tool(Via::Npm, command, staging, notify)?;
    Ok(staging.join("node_modules/onnxruntime-node/bin/napi-v6").join(package.file))
}

const NOT_INSTALLED: &str = "not installed";

/// A download that takes longer is stuck.
const TIME_LIMIT: Duration = Duration::from_secs(15 * 60);

fn run_tool(via: Via, mut command: Command, staging: &Path, notify: &mut dyn FnMut(SetupEvent)) -> Result<(), String> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let started = || notify(SetupEvent::Running { via, command: line });
    run_quietly(&mut command, staging, started).map(|_| ())
}

/// Runs a command and returns what it printed. It must not print over our caller's output, nor ask questions.
fn run_quietly(command: &mut Command, folder: &Path, started: impl FnOnce()) -> Result<String, String> {
    let describe = |error: io::Error| error.to_string();
    let log = tempfile::NamedTempFile::new_in(folder).map_err(describe)?;
    let out = log.reopen().map_err(describe)?;
    let err = out.try_clone().map_err(describe)?; // shares its place in the file, unlike another `reopen`
    command.current_dir(folder).stdin(Stdio::null()).stdout(out).stderr(err);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => NOT_INSTALLED.to_owned(),
        _ => error.to_string(),
    })?;
    started();
    let status = wait(&mut child)?;
    let output = fs::read(log.path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(describe)?;
    if status.success() { Ok(output) } else { Err(complaint(&output).unwrap_or_else(|| status.to_string())) }
}

fn wait(child: &mut Child) -> Result<ExitStatus, String> {
    let start = Instant::now();
    while start.elapsed() < TIME_LIMIT {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // Either fails only if the child has just ended by itself.
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("stopped after {} minutes", TIME_LIMIT.as_secs() / 60))
}

/// What a failed tool says, in one line.
fn complaint(output: &str) -> Option<String> {
    const LENGTH: usize = 600;
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = telling_lines(&lines).join(" | ");
    let end = text.char_indices().nth(LENGTH).map_or(text.len(), |(index, _)| index);
    if text.is_empty() { None } else { Some(text[..end].to_owned()) }
}

/// The lines that say what went wrong: those from the first error on, or else the last ones.
fn telling_lines<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    const COUNT: usize = 5;
    let starts_with = |line: &str, words: &[&str]| {
        let line = line.to_ascii_lowercase();
        words.iter().any(|word| line.starts_with(word))
    };
    if let Some(line) = lines.iter().find(|line| is_about_space(line)) {
        return vec![line];
    }
    if lines.iter().any(|line| line.starts_with("Traceback")) {
        return lines.last().copied().into_iter().collect();
    }
    let start = lines.iter().position(|line| starts_with(line, &["error", "npm err", "fatal"]));
    let start = start.unwrap_or(lines.len().saturating_sub(COUNT));
    // pip only warns that it has no connection; its error is that it knows of no version.
    let lost = lines.iter().any(|line| line.contains("after connection broken by")).then_some("no connection");
    lost.into_iter().chain(lines[start..].iter().take(COUNT).copied()).collect()
}

/// Whether a tool says that a disk is full.
fn is_about_space(text: &str) -> bool {
    ["No space left on device", "ENOSPC", "not enough space on the disk"].iter().any(|words| text.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    const fn package(registry: Registry, version: &'static str) -> Package {
        Package { registry, version, os: "any", arch: "any", file: "library", bytes: 3, sha256: ABC }
    }

    const PACKAGES: [Package; 2] = [package(Registry::PyPi, "2.0"), package(Registry::Npm, "1.0")];

    /// Installs into `folder` with tools that deliver `content`, or fail with it; returns the events as well.
    fn install_with(
        folder: &Path,
        tools: &[Via],
        deliver: fn(Via) -> Result<&'static str, &'static str>,
    ) -> (Result<Installed>, Vec<SetupEvent>) {
        let mut events = Vec::new();
        let mut fetch = |via, package: &Package, staging: &Path, _: &mut dyn FnMut(SetupEvent)| {
            let path = staging.join(package.file);
            fs::write(&path, deliver(via)?).map_err(|error| error.to_string())?;
            Ok(path)
        };
        let result = install(folder, &PACKAGES, tools, &mut fetch, &mut |event| events.push(event));
        (result, events)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn installs_once_and_repairs() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("onnxruntime");
        let library = folder.join("2.0").join(FILE_NAME);
        let outcome = |result: Result<Installed>| result.unwrap().outcome;

        let (result, events) = install_with(&folder, &Via::ALL, |_| Ok("abc"));
        let expected = Installed { path: library.clone(), version: "2.0", outcome: Outcome::Installed(Via::Uv) };
        assert_eq!((result.unwrap(), events), (expected, vec![]));
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
        let failed = |via| SetupEvent::Failed { via, reason: "no".into() };
        assert_eq!(events, [failed(Via::Uv), failed(Via::Pip)]);
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
        for part in ["uv: no network", "pip: it delivered another library: its SHA-256 is a52d", "npm: no network", ABC]
        {
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

    #[test]
    fn complaints_are_short_and_telling() {
        let check = |output: &str, expected: Option<&str>| assert_eq!(complaint(output).as_deref(), expected);
        check("", None);
        check("a\n\n  b\nc\nd\ne\nf\n", Some("b | c | d | e | f"));
        check("Collecting x\nERROR: no version\nERROR: no match\n", Some("ERROR: no version | ERROR: no match"));
        check("WARNING: Retrying after connection broken by 'X'\nERROR: none\n", Some("no connection | ERROR: none"));
        check("ERROR: Exception:\nTraceback (most recent call last):\n  File x\nOSError: y\n", Some("OSError: y"));
        check("error: failed\n cause: No space left on device\n", Some("cause: No space left on device"));
        assert_eq!(complaint(&"é".repeat(1000)).unwrap().chars().count(), 600);
    }

    #[test]
    fn a_missing_or_failing_tool_is_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let mut started = false;
            let result = run_quietly(Command::new(program).args(arguments), folder.path(), || started = true);
            (result, started)
        };
        assert_eq!(run("no-such-tool-at-all", &[]), (Err(NOT_INSTALLED.into()), false));
        if cfg!(unix) {
            assert_eq!(run("sh", &["-c", "echo one; echo two >&2"]), (Ok("one\ntwo\n".into()), true));
            assert_eq!(run("sh", &["-c", "echo error: x; exit 3"]), (Err("error: x".into()), true));
            assert_eq!(run("sh", &["-c", "exit 3"]), (Err("exit status: 3".into()), true));
        }
    }

    #[test]
    fn pins_are_well_formed() {
        for package in super::PACKAGES {
            assert_eq!(package.sha256.len(), 64);
            assert!(package.sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{package:?}");
            assert!(package.bytes > 10_000_000, "{package:?}");
        }
        assert!(Via::ALL.iter().all(|via| via.to_string().parse::<Via>().is_ok_and(|parsed| parsed == *via)));
        assert_eq!("conda".parse::<Via>().unwrap_err().kind(), ErrorKind::Usage);
    }
}
