//! Finds CUDA's libraries on a machine where ONNX Runtime was not set up: those that PyTorch has brought, those of CUDA's own
//! installer, or those that the system's loader knows.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

/// What ONNX Runtime's provider loads, and cuDNN, which it loads with the first graph.
const NEEDED: [&str; 5] =
    ["libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9"];
/// What single operators and cuDNN's compiled kernels load, if a model has them.
const SOMETIMES: [&str; 3] = ["libcufft.so.12", "libnvrtc.so.13", "libcuda.so.1"];
/// The one that says which CUDA an installation is, of the CUDA before.
const OLDER: &str = "libcudart.so.12";
/// Where containers have the driver, if the loader does not know it.
const DRIVER: [&str; 2] = ["/usr/local/nvidia/lib64", "/usr/lib/wsl/lib"];
/// Where Python's packages lie; `*` stands for any name.
const PACKAGES: [&str; 7] = [
    "/opt/*/.venv/lib/python3*/site-packages",
    "/opt/*/lib/python3*/site-packages",
    "/opt/venv/lib/python3*/site-packages",
    "/usr/local/lib/python3*/dist-packages",
    "/usr/local/lib/python3*/site-packages",
    "/usr/lib/python3*/dist-packages",
    "/root/.local/lib/python3*/site-packages",
];

/// The folders of the libraries, in the order in which they were searched.
#[derive(Debug)]
pub struct Found(Vec<PathBuf>);

impl Found {
    /// The folders, as the loader takes them.
    pub fn search_path(&self) -> String {
        self.0.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(":")
    }

    /// A line for each library.
    pub fn lines(&self) -> String {
        let line = |name: &&str| match folder_of(&self.0, name) {
            Some(folder) => format!("{name:<18} {}\n", folder.display()),
            None => format!("{name:<18} not found\n"),
        };
        NEEDED.iter().chain(&SOMETIMES).map(line).collect()
    }
}

/// Looks for the libraries on this machine.
///
/// # Errors
/// In one line: which are missing, and whether only an older CUDA is there.
pub fn find() -> Result<Found> {
    let mut folders = variable("LD_LIBRARY_PATH");
    for packages in python_packages() {
        folders.extend(matches(&packages.join("nvidia/*/lib")));
    }
    for pattern in ["/usr/local/cuda*/lib64", "/usr/local/cuda*/targets/x86_64-linux/lib"] {
        folders.extend(matches(Path::new(pattern)));
    }
    folders.extend(loader_folders());
    folders.extend(DRIVER.map(PathBuf::from));
    find_in(&folders)
}

fn find_in(folders: &[PathBuf]) -> Result<Found> {
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| folder_of(folders, name).is_none()).collect();
    if missing.is_empty() {
        let names = || NEEDED.iter().chain(&SOMETIMES);
        let mut used: Vec<PathBuf> = Vec::new();
        for folder in folders {
            let is_first = names().any(|name| folder_of(folders, name) == Some(folder));
            if is_first && !used.contains(folder) {
                used.push(folder.clone());
            }
        }
        return Ok(Found(used));
    }
    let missing = missing.join(", ");
    match folder_of(folders, OLDER) {
        Some(folder) if missing.contains(NEEDED[0]) => {
            bail!(
                "only CUDA 12 is there ({}); ONNX Runtime's build needs CUDA 13: {missing} not found",
                folder.display()
            )
        }
        _ => bail!(
            "{missing} not found; ONNX Runtime's build needs CUDA 13 and cuDNN 9: below any Python's site-packages/nvidia, in \
             /usr/local/cuda*/lib64, or on LD_LIBRARY_PATH"
        ),
    }
}

/// The first folder that has a library.
fn folder_of<'a>(folders: &'a [PathBuf], name: &str) -> Option<&'a PathBuf> {
    folders.iter().find(|folder| folder.join(name).is_file())
}

/// The folders that a variable lists.
fn variable(name: &str) -> Vec<PathBuf> {
    env::var_os(name)
        .map(|value| env::split_paths(&value).filter(|path| path.is_absolute()).collect())
        .unwrap_or_default()
}

/// The folders of Python's packages: of the Pythons on the path, then in the usual places.
fn python_packages() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for python in ["python3", "python"] {
        let output = Command::new(python).args(["-c", "import sys; print('\\n'.join(sys.path))"]).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        folders.extend(text.lines().filter(|line| line.starts_with('/')).map(PathBuf::from));
    }
    folders.extend(PACKAGES.iter().flat_map(|pattern| matches(Path::new(pattern))));
    folders
}

/// The folders of the libraries that the system's loader has listed.
fn loader_folders() -> Vec<PathBuf> {
    let output = ["ldconfig", "/sbin/ldconfig"].into_iter().find_map(|name| Command::new(name).arg("-p").output().ok());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let names = NEEDED.iter().chain(&SOMETIMES).chain([&OLDER]);
    let listed = |name: &&str| {
        let (_, path) = text.lines().find(|line| line.trim_start().starts_with(*name))?.split_once("=> ")?;
        Path::new(path).parent().map(Path::to_owned)
    };
    names.filter_map(listed).collect()
}

/// The folders that a pattern names, in which one `*` may be in each part of the path; in the order of their names.
fn matches(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let part = part.as_os_str().to_string_lossy();
        let Some((before, after)) = part.split_once('*') else {
            found.iter_mut().for_each(|path| path.push(&*part));
            continue;
        };
        let below = |path: &PathBuf| {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            let fits = |name: &String| {
                name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
            };
            let mut names: Vec<String> = names.filter(fits).collect();
            names.sort();
            names.into_iter().map(|name| path.join(name)).collect::<Vec<_>>()
        };
        found = found.iter().flat_map(below).collect();
    }
    found.retain(|path| path.is_dir());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_where_pytorch_puts_them() {
        let packages = tempfile::tempdir().unwrap();
        let (cuda, cudnn) = (packages.path().join("nvidia/cu13/lib"), packages.path().join("nvidia/cudnn/lib"));
        for (folder, names) in [(&cuda, &NEEDED[..4]), (&cudnn, &NEEDED[4..])] {
            fs::create_dir_all(folder).unwrap();
            names.iter().for_each(|name| fs::write(folder.join(name), "").unwrap());
        }
        let folders = matches(&packages.path().join("nvidia/*/lib"));
        assert_eq!(folders, [cuda.clone(), cudnn.clone()]);
        let found = find_in(&folders).unwrap();
        assert_eq!(found.search_path(), format!("{}:{}", cuda.display(), cudnn.display()));
        // What was searched first comes first.
        let turned = find_in(&[packages.path().to_owned(), cudnn.clone(), cuda.clone()]).unwrap();
        assert_eq!(turned.search_path(), format!("{}:{}", cudnn.display(), cuda.display()));
        assert!(found.lines().contains("libcufft.so.12     not found"), "{}", found.lines());
    }

    #[test]
    fn what_is_missing_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = || find_in(&[folder.path().to_owned()]).unwrap_err().to_string();
        assert!(refusal().contains("libcudart.so.13, libcublasLt.so.13"), "{}", refusal());
        fs::write(folder.path().join(OLDER), "").unwrap();
        assert!(refusal().contains("only CUDA 12 is there"), "{}", refusal());
        NEEDED[..4].iter().for_each(|name| fs::write(folder.path().join(name), "").unwrap());
        assert!(refusal().starts_with("libcudnn.so.9 not found"), "{}", refusal());
        assert!(!refusal().contains('\n'));
    }
}
