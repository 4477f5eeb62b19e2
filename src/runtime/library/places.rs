//! Where ONNX Runtime's library may lie, and in which order the places are tried.

use std::fmt;
use std::path::{Path, PathBuf};

use super::LibraryOptions;
use super::inspect::inspect_file;
use crate::error::{Error, ErrorKind, Result};
use crate::folders::library_directories;
use crate::packages::{self, FILE_NAME};
use crate::runtime::provider::kind::ProviderKind;
use crate::runtime::provider::spec::Providers;

/// The environment variable that names the library file; `ort` and other programs know it too.
pub(super) const PATH_VARIABLE: &str = "ORT_DYLIB_PATH";

/// The name under which Linux distributions ship the library without its development files.
const SONAME: &str = "libonnxruntime.so.1";

/// The ways to find the library, in the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FoundBy {
    /// [`LibraryOptions::path`].
    Option,
    /// The environment variable `ORT_DYLIB_PATH`.
    Variable,
    /// The folder of the running program.
    BesideExecutable,
    /// Where `dbcache-trt setup` puts it.
    Setup,
    /// The system's loader.
    System,
}

impl fmt::Display for FoundBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Option => "given path",
            Self::Variable => PATH_VARIABLE,
            Self::BesideExecutable => "beside the program",
            Self::Setup => "placed by setup",
            Self::System => "system",
        })
    }
}

/// One place where the library may lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Why it is looked for there.
    pub found_by: FoundBy,
    /// The file, or a bare name for the system's loader.
    pub path: PathBuf,
}

impl Place {
    pub(super) fn new(found_by: FoundBy, path: impl Into<PathBuf>) -> Self {
        Self { found_by, path: path.into() }
    }

    /// Whether a library for this machine seems to lie there, without loading it.
    ///
    /// # Errors
    /// [`ErrorKind::Library`], with the reason alone: what is wrong with the file, or that it has a bare name, of which
    /// only the system's loader knows what it means.
    pub fn examine(&self) -> Result<()> {
        let unknown =
            self.is_bare_name().then(|| "not in the usual directories, but the system may know it".to_owned());
        unknown.or_else(|| self.defect()).map_or(Ok(()), |reason| Err(Error::new(ErrorKind::Library, reason)))
    }

    /// Whether the file is ONNX Runtime's build for NVIDIA's GPUs: its providers are files beside it.
    fn has_providers(&self) -> bool {
        let is_there =
            |kind: ProviderKind| kind.built_in_file().is_some_and(|file| self.path.with_file_name(file).is_file());
        !self.is_bare_name() && ProviderKind::ALL.into_iter().any(is_there)
    }

    pub(super) fn is_bare_name(&self) -> bool {
        self.found_by == FoundBy::System && self.path.components().count() == 1
    }

    /// Why loading must not even be tried.
    pub(super) fn defect(&self) -> Option<String> {
        if self.is_bare_name() {
            return None;
        }
        // The content of what setup has placed is known: a damaged library may crash, or compute something else.
        let damage = || (self.found_by == FoundBy::Setup).then(|| packages::defect(&self.path)).flatten();
        let damage = || damage().map(|reason| format!("damaged: {reason}"));
        match inspect_file(&self.path) {
            // Of a provider's folder every file must be there.
            Err(reason) => Some(damage().unwrap_or(reason)),
            Ok(()) => damage(),
        }
    }
}

/// The places where the library is looked for, in this order. A path given by option or variable is the only place.
pub fn places(options: &LibraryOptions) -> Vec<Place> {
    if let Some(path) = &options.path {
        return vec![Place::new(FoundBy::Option, absolute(path))];
    }
    if let Some(path) = std::env::var_os(PATH_VARIABLE).filter(|value| !value.is_empty()) {
        return vec![Place::new(FoundBy::Variable, absolute(Path::new(&path)))];
    }
    let mut places = Vec::new();
    if let Ok(program) = std::env::current_exe() {
        places.push(Place::new(FoundBy::BesideExecutable, program.with_file_name(FILE_NAME)));
    }
    places.extend(packages::expected_files().into_iter().map(|path| Place::new(FoundBy::Setup, path)));
    places.extend(system_places());
    places
}

/// The places in the order in which they are tried for these providers: `cuda` and `tensorrt` are parts of a build of ONNX
/// Runtime of their own, so the places that have such a build come first.
pub(super) fn places_for(options: &LibraryOptions, providers: &Providers) -> Vec<Place> {
    let mut places = places(options);
    if providers.iter().any(|spec| spec.kind().built_in_file().is_some()) {
        places.sort_by_key(|place| !place.has_providers());
    }
    places
}

/// Where the system's loader would look. The directories that can be known are searched here, so that a damaged file
/// is examined like any other; the rest is left to the loader.
fn system_places() -> Vec<Place> {
    let names: &[&str] = if cfg!(target_os = "linux") { &[FILE_NAME, SONAME] } else { &[FILE_NAME] };
    let found = library_directories()
        .iter()
        .flat_map(|directory| names.iter().map(move |name| directory.join(name)))
        .find(|path| path.symlink_metadata().is_ok());
    match found {
        Some(path) => vec![Place::new(FoundBy::System, path)],
        None => names.iter().map(|name| Place::new(FoundBy::System, *name)).collect(),
    }
}

/// Makes a path independent of the working directory; `ort` would first try it beside the executable.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
