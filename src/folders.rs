//! The folders in which this program keeps what it fetches and compiles.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// The environment variable that moves the data folder.
pub(crate) const FOLDER_VARIABLE: &str = "DBCACHE_TRT_HOME";

/// The folder in which this program keeps what it fetches.
///
/// # Errors
/// `Usage` if the environment names neither the folder nor a home.
pub(crate) fn data_folder() -> Result<PathBuf> {
    folder(&[], "XDG_DATA_HOME", &["Library", "Application Support"], &[".local", "share"])
}

/// The folder of builds, which are what providers compiled, unless another is named: it may be deleted at any time.
///
/// # Errors
/// As [`data_folder`].
pub(crate) fn build_folder() -> Result<PathBuf> {
    folder(&["builds"], "XDG_CACHE_HOME", &["Library", "Caches"], &[".cache"])
}

/// A folder of this program: `inside` the one that [`FOLDER_VARIABLE`] names, else where the system keeps such things.
fn folder(inside: &[&str], xdg: &str, apple: &[&str], unix: &[&str]) -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = variable(FOLDER_VARIABLE) {
        let folder = std::path::absolute(&folder).map_err(|error| Error::io("resolve", &folder, error))?;
        return Ok(extended(folder, inside));
    }
    let home = || {
        let home = std::env::home_dir().filter(|home| home.is_absolute());
        home.ok_or_else(|| Error::usage(format!("no home folder; set {FOLDER_VARIABLE} to a folder for downloads")))
    };
    let base = if cfg!(windows) {
        variable("LOCALAPPDATA").map_or_else(|| home().map(|home| home.join("AppData").join("Local")), Ok)?
    } else if cfg!(target_vendor = "apple") {
        extended(home()?, apple)
    } else {
        // The specification of these variables says that a relative path is to be ignored.
        let named = variable(xdg).filter(|folder| folder.is_absolute());
        named.map_or_else(|| home().map(|home| extended(home, unix)), Ok)?
    };
    Ok(extended(base.join("dbcache-trt"), inside))
}

fn extended(folder: PathBuf, parts: &[&str]) -> PathBuf {
    parts.iter().fold(folder, |folder, part| folder.join(part))
}

/// Where the system's loader looks, as far as that can be known.
pub(crate) fn library_directories() -> Vec<PathBuf> {
    let variable = if cfg!(target_vendor = "apple") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };
    let mut directories = Vec::new();
    if cfg!(unix) {
        if let Some(value) = std::env::var_os(variable) {
            directories.extend(
                std::env::split_paths(&value).map(|directory| std::path::absolute(&directory).unwrap_or(directory)),
            );
        }
        let multiarch = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        let known = ["/usr/local/lib", &multiarch, "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/opt/homebrew/lib"];
        directories.extend(known.iter().map(PathBuf::from));
    }
    directories
}
