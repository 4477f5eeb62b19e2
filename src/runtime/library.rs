//! Finds and loads ONNX Runtime's shared library, once per process.
//!
//! Nothing of `ort` may be called before [`environment`](fn@environment) succeeded: `ort` would look for a library by itself, and panic
//! if it found none. So every candidate is examined before it is loaded: a file that is missing, empty, cut off, built
//! for another machine or too old becomes a line of the error, never a crash in the system's loader.
//!
//! ONNX Runtime allows one environment per process, and with it one thread pool that all sessions share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ort::environment::Environment;
use ort::logging::LogLevel;

use super::provider::failure::{refused, setup_command};
use super::provider::kind::ProviderKind;
use super::provider::spec::Providers;
use crate::contain::contain;
use crate::error::{Error, ErrorKind, Result};
use crate::exit::{come_before_destructors, come_first, enter, lock};
use crate::packages;

mod cores;
mod environment;
mod inspect;
mod places;
mod reports;
mod status;

use cores::physical_cores;
pub(crate) use environment::Pool;
use environment::build_environment;
use inspect::NOT_THERE;
#[cfg(test)]
use places::PATH_VARIABLE;
pub use places::{FoundBy, Place, places};
use places::{absolute, places_for};

/// The oldest release of ONNX Runtime that is accepted is 1.x with this x.
pub const OLDEST: u32 = ort::MINOR_VERSION;

/// More threads than any machine has cores; a typing error should not start them.
const MAX_THREADS: usize = 1024;

/// Which library to load, and how it computes on the CPU. Whatever is left out accepts what is already loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LibraryOptions {
    /// The library file. Default: the first usable one of [`places()`].
    pub path: Option<PathBuf>,
    /// Threads of the pool that all sessions share. Default: one for each physical core this process may use; only one
    /// for an engine whose blocks are so small that handing work over costs more than it gains.
    pub threads: Option<usize>,
    /// Whether idle threads of the pool wait by spinning: faster for long uninterrupted work on a quiet machine, several
    /// times slower on a busy one.
    pub spin: bool,
}

/// What was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibraryInfo {
    /// The library file, or the bare name by which the system found it.
    pub path: PathBuf,
    /// Where it was found.
    pub found_by: FoundBy,
    /// Its version, such as `1.31.1`.
    pub version: String,
    /// How it was built, in its own words.
    pub build: String,
    /// Threads of the pool that all sessions share, or of each session's where a host has started ONNX Runtime without one;
    /// 0 where the pool is such a host's.
    pub threads: usize,
    /// Whether idle threads spin.
    pub spin: bool,
}

/// Loads the library unless that has happened, and says what it is.
///
/// # Errors
/// [`ErrorKind::Library`] if no usable library is found, or another one is already loaded; [`ErrorKind::Usage`] for an
/// impossible number of threads.
pub fn info(options: &LibraryOptions) -> Result<LibraryInfo> {
    environment(options).map(|loaded| loaded.info.clone())
}

/// Only loads the library of a path, unless that has happened. How it computes is still open: the first engine says.
///
/// # Errors
/// [`ErrorKind::Library`] if the file is unusable, or another one is already loaded.
pub fn load(path: &Path) -> Result<()> {
    let options = LibraryOptions { path: Some(path.to_owned()), ..LibraryOptions::default() };
    let _inside = enter()?;
    let mut process = lock(&PROCESS);
    if let Some(library) = &process.library {
        return check_same_library(library, &options);
    }
    process.library = Some(load_first_usable(places(&options), &Providers::default())?);
    Ok(())
}

/// The loaded library and its environment.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) environment: Environment,
    pub(crate) info: LibraryInfo,
    pub(crate) pool: Pool,
    /// Plugins by their provider. They stay as long as the environment.
    plugins: Mutex<BTreeMap<ProviderKind, PathBuf>>,
}

impl Loaded {
    /// Makes ONNX Runtime load the plugin of a provider, once.
    ///
    /// # Errors
    /// `Library` when another file already serves this provider; `Provider` with ONNX Runtime's text.
    pub(crate) fn register_plugin(&self, kind: ProviderKind, path: &Path) -> Result<()> {
        let mut plugins = lock(&self.plugins);
        match plugins.get(&kind) {
            Some(loaded) if loaded == path => return Ok(()),
            Some(loaded) => {
                return Err(Error::new(
                    ErrorKind::Library,
                    format!(
                        "this process has already loaded the plugin {} and cannot load {} as well",
                        loaded.display(),
                        path.display()
                    ),
                ));
            }
            None => {}
        }
        self.environment
            .register_ep_library(kind.as_str(), path)
            .map_err(|error| refused(kind, &self.info.path, error.message()))?;
        plugins.insert(kind, path.to_owned());
        Ok(())
    }
}

/// What this process has loaded. A library stays loaded even if its environment could not be built.
#[derive(Default)]
struct Process {
    library: Option<Place>,
    loaded: Option<Arc<Loaded>>,
    /// What ONNX Runtime was asked to tell: the most that anyone wanted to hear.
    log_level: Option<LogLevel>,
}

impl Process {
    /// Makes ONNX Runtime tell what this thread's listener wants to hear, in sessions that are loaded from now on.
    fn raise_log_level(&mut self) {
        let wanted = wanted_log_level();
        if let Some(loaded) = &self.loaded
            && self.log_level.is_none_or(|level| wanted < level)
        {
            loaded.environment.set_log_level(wanted);
            self.log_level = Some(wanted);
        }
    }
}

static PROCESS: Mutex<Process> = Mutex::new(Process { library: None, loaded: None, log_level: None });

/// The environment of this process; the first call loads the library.
///
/// # Errors
/// See [`info`].
pub(crate) fn environment(options: &LibraryOptions) -> Result<Arc<Loaded>> {
    environment_for(options, &Providers::default(), Work::Large)
}

/// How much one session computes at a time: decides the number of threads where the options do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Less than waking a second thread costs.
    Small,
    /// Enough for all cores.
    Large,
}

/// As [`environment`](fn@environment), for an engine on these providers whose blocks do so much work.
///
/// # Errors
/// See [`info`].
pub(crate) fn environment_for(options: &LibraryOptions, providers: &Providers, work: Work) -> Result<Arc<Loaded>> {
    let _inside = enter()?;
    if let Some(threads) = options.threads.filter(|threads| !(1..=MAX_THREADS).contains(threads)) {
        return Err(
            Error::usage(format!("the option `threads` is {threads}; expected 1 to {MAX_THREADS}")).about("threads")
        );
    }
    if options.spin && options.threads == Some(1) {
        return Err(Error::usage(
            "the option `spin` has no effect on one thread, which nothing waits for; leave it out",
        )
        .about("spin"));
    }
    let mut process = lock(&PROCESS);
    if let Some(library) = &process.library {
        check_same_library(library, options)?;
    }
    if let Some(loaded) = &process.loaded {
        check_same_pool(loaded, options)?;
        if work == Work::Large
            && options.threads.is_none()
            && loaded.info.threads < physical_cores()
            && loaded.pool != Pool::OfHost
        {
            tracing::warn!(threads = loaded.info.threads, "this engine would use more threads than the process has");
        }
        let loaded = Arc::clone(loaded);
        process.raise_log_level();
        return Ok(loaded);
    }
    let library = match process.library.take() {
        Some(library) => library,
        None => load_first_usable(places_for(options, providers), providers)?,
    };
    process.library = Some(library.clone());
    let loaded = Arc::new(build_environment(library, options, work)?);
    process.loaded = Some(Arc::clone(&loaded));
    check_same_pool(&loaded, options)?;
    process.raise_log_level();
    Ok(loaded)
}

fn check_same_library(library: &Place, options: &LibraryOptions) -> Result<()> {
    let Some(path) = &options.path else { return Ok(()) };
    let loaded = &library.path;
    let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| absolute(path));
    if canonical(path) == canonical(loaded) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Library,
        format!(
            "this process has already loaded {} and cannot load {} as well; use one library in one process",
            loaded.display(),
            path.display()
        ),
    ))
}

/// Refuses what the pool of this process, which the first engine or a host has made, does not do.
fn check_same_pool(loaded: &Loaded, options: &LibraryOptions) -> Result<()> {
    let LibraryInfo { threads, spin, .. } = loaded.info;
    let (name, asked) = match options.threads.filter(|asked| *asked != threads) {
        Some(asked) => ("threads", format!("is {asked}")),
        None if options.spin && (!spin || loaded.pool == Pool::OfHost) => ("spin", "asks for threads that spin".into()),
        None => return Ok(()),
    };
    if loaded.pool == Pool::OfHost {
        return Err(Error::option(
            name,
            format!(
                "{asked}, which has no effect: the host of this process has started ONNX Runtime with a thread pool of its \
                 own; leave it out"
            ),
        ));
    }
    let how = if spin { "with" } else { "without" };
    Err(Error::option(
        name,
        format!(
            "{asked}, but this process already computes with {threads} thread(s) {how} spinning, which all its engines \
             share; leave it out, or give it to the first engine"
        ),
    ))
}

/// Loads the first usable library; remembers why the places before it were not.
fn load_first_usable(places: Vec<Place>, providers: &Providers) -> Result<Place> {
    // Another build than that of the first provider serves those that follow it.
    let may_go_on = providers.iter().any(|spec| spec.kind().built_in_file().is_none());
    let mut refused = Vec::new();
    for place in places {
        match place.defect().map_or_else(|| load_place(&place), Err) {
            Ok(()) => {
                tracing::debug!(path = %place.path.display(), found_by = %place.found_by, "loaded ONNX Runtime");
                return Ok(place);
            }
            Err(reason) => {
                if reason != NOT_THERE {
                    tracing::warn!(path = %place.path.display(), found_by = %place.found_by, reason, "unusable ONNX Runtime");
                }
                let is_damaged = place.found_by == FoundBy::Setup && reason != NOT_THERE;
                let is_of_provider = packages::bundle_of_library(&place.path).is_some();
                refused.push((place, reason));
                if is_damaged && !(is_of_provider && may_go_on) {
                    break; // Another one in its place would compute in silence.
                }
            }
        }
    }
    Err(no_usable_library(&refused, providers))
}

fn no_usable_library(refused: &[(Place, String)], providers: &Providers) -> Error {
    let mut message = format!("no usable ONNX Runtime library (1.{} or newer):", ort::MINOR_VERSION);
    for (place, reason) in refused {
        message += &format!("\n  {} ({}): {reason}", place.path.display(), place.found_by);
    }
    let of_provider = refused.last().and_then(|(place, _)| packages::bundle_of_library(&place.path));
    let found_by = refused.first().map(|(place, _)| place.found_by);
    let setup =
        providers.iter().find_map(|spec| setup_command(spec.kind())).unwrap_or_else(|| "dbcache-trt setup".to_owned());
    message += &match found_by {
        Some(FoundBy::Option) => "\ncorrect the path, or leave it out and run `dbcache-trt setup`".to_owned(),
        Some(FoundBy::Variable) => "\ncorrect the variable, or unset it and run `dbcache-trt setup`".to_owned(),
        _ => match of_provider {
            Some((bundle, _)) => format!("\nrun `dbcache-trt setup --provider {}`, which repairs it", bundle.name),
            None => {
                format!("\nrun `{setup}`, which installs one, or repairs what it has installed")
            }
        },
    };
    let error = Error::new(ErrorKind::Library, message);
    match refused.first() {
        Some((place, _)) if place.found_by == FoundBy::Option => error.about(place.path.display()),
        _ => error,
    }
}

/// Loads the library for the life of the process, or says why it cannot be used.
fn load_place(place: &Place) -> Result<(), String> {
    use ort::LoadDynamicError::{BadVersion, Dlopen, InvalidVersionString, MissingApi};
    // A library that exports the right name with the wrong content makes `ort` panic.
    come_first();
    let outcome = contain(|| ort::init_from(&place.path).map(drop));
    outcome.unwrap_or(Err(InvalidVersionString)).map_err(|error| match error {
        Dlopen { error, .. } => with_causes(&error),
        MissingApi { .. } => "another library: it lacks the function OrtGetApiBase".to_owned(),
        BadVersion { version_str, .. } => format!("version {version_str} is too old"),
        InvalidVersionString => "not ONNX Runtime: it does not tell its version".to_owned(),
    })?;
    // Before anything asks `ort` for the functions.
    status::read_codes(&place.path)?;
    come_before_destructors(ort::api().CreateStatus as *const () as usize);
    Ok(())
}

/// `ort` lets ONNX Runtime write every message and leaves the choice to `tracing`; what nobody reads is better not
/// written at all.
fn wanted_log_level() -> LogLevel {
    const TARGET: &str = "ort::logging";
    if tracing::enabled!(target: TARGET, tracing::Level::TRACE) {
        LogLevel::Verbose
    } else if tracing::enabled!(target: TARGET, tracing::Level::INFO) {
        LogLevel::Info
    } else {
        LogLevel::Warning
    }
}

/// An error and all its causes in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::folders::FOLDER_VARIABLE;
    use crate::packages::FILE_NAME;

    #[test]
    fn a_given_path_is_the_only_place() {
        let options = LibraryOptions { path: Some("lib/x.so".into()), ..Default::default() };
        let expected = std::env::current_dir().unwrap().join("lib/x.so");
        assert_eq!(places(&options), [Place::new(FoundBy::Option, expected)]);
    }

    #[test]
    fn impossible_threads_are_refused() {
        for threads in [0, MAX_THREADS + 1] {
            let error = environment(&LibraryOptions { threads: Some(threads), ..Default::default() }).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
        }
        assert!((1..=MAX_THREADS).contains(&physical_cores()));
    }

    /// What a session makes for the whole process is destroyed after the end has waited for all threads.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn onnx_runtime_registers_its_destructors_here() {
        environment(&LibraryOptions::default()).unwrap();
        assert!(crate::exit::destructors() > 10);
    }

    /// Loading is for the life of a process, so each case of loading has its own: [`loading_case`], run again alone.
    fn in_own_process(case: &str, variables: &[(&str, &Path)]) -> String {
        let name = concat!(module_path!(), "::loading_case").split_once("::").unwrap().1;
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--ignored", "--nocapture"]).env("LOADING_CASE", case);
        let output = command.envs(variables.iter().copied()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{case}: {}: {text}", output.status);
        text
    }

    #[test]
    #[ignore = "run by the tests below, each in a process of its own"]
    fn loading_case() {
        let case = std::env::var("LOADING_CASE").unwrap();
        let one = LibraryOptions { threads: Some(1), ..Default::default() };
        let tell = |options: &LibraryOptions| println!("{}", environment(options).unwrap_err());
        match case.as_str() {
            "refuse" => tell(&LibraryOptions { path: std::env::var_os("LOADING_PATH").map(Into::into), ..one }),
            "search" => match environment(&one) {
                Ok(loaded) => println!("{} has a library", loaded.info.found_by),
                Err(error) => println!("{error}"),
            },
            "once" => {
                let first = environment(&one).unwrap();
                println!("version {}, threads {}", first.info.version, first.info.threads);
                let same_path = LibraryOptions { path: Some(first.info.path.clone()), ..one.clone() };
                // What is not asked for accepts what there is.
                for options in [&one, &same_path, &LibraryOptions::default()] {
                    assert!(Arc::ptr_eq(&first, &environment(options).unwrap()));
                }
                tell(&LibraryOptions { threads: Some(2), ..one.clone() });
                tell(&LibraryOptions { spin: true, ..LibraryOptions::default() });
                tell(&LibraryOptions { spin: true, ..one.clone() });
                tell(&LibraryOptions { path: Some("other.so".into()), ..one });
            }
            other => panic!("no case {other}"),
        }
    }

    #[test]
    fn one_library_and_one_pool_for_a_process() {
        let text = in_own_process("once", &[]);
        for part in [
            "threads 1",
            "the option `threads` is 2, but this process already computes with 1 thread(s) without spinning",
            "the option `spin` asks for threads that spin, but this process already computes with 1 thread(s) without spinning",
            "the option `spin` has no effect on one thread",
            "cannot load other.so as well",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }

    #[test]
    fn a_bad_path_is_an_error_and_never_passed_over() {
        let missing = Path::new("/no/such/file");
        let text = in_own_process("refuse", &[("LOADING_PATH", missing)]);
        assert!(text.contains("/no/such/file (given path): not there"), "{text}");
        let text = in_own_process("refuse", &[("LOADING_PATH", &std::env::current_exe().unwrap())]);
        assert!(text.contains("(given path): "), "{text}");
        let text = in_own_process("search", &[(PATH_VARIABLE, missing)]);
        assert!(text.contains("/no/such/file (ORT_DYLIB_PATH): not there"), "{text}");
        assert!(text.contains("dbcache-trt setup"), "{text}");
    }

    /// The system is the last place. If it has a usable library of its own, that one is loaded.
    #[test]
    fn every_place_is_named_when_none_has_a_library() {
        let empty = tempfile::tempdir().unwrap();
        let text = in_own_process("search", &[(PATH_VARIABLE, Path::new("")), (FOLDER_VARIABLE, empty.path())]);
        let named =
            ["(beside the program): not there", "(placed by setup): not there", "(system)", "run `dbcache-trt setup`"];
        let parts = if text.contains("has a library") { &["system has a library"][..] } else { &named };
        for part in parts {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }

    /// The loader of Linux crashes on such files.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_that_is_cut_off_does_not_crash() {
        let usable = places(&LibraryOptions::default()).into_iter().find(|place| place.examine().is_ok()).unwrap();
        let whole = std::fs::read(usable.path).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        for length in [1000, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let text = in_own_process("refuse", &[("LOADING_PATH", &path)]);
            assert!(text.contains("cut off"), "{text}");
        }
    }
}
