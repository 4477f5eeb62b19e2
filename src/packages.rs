//! The libraries that setup installs, where it puts them, and their fingerprints. Fetching them is the business of `setup`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind, Result};
use crate::folders::data_folder;

mod bundle;
mod pins;

#[cfg(all(feature = "setup", test))]
pub(crate) use bundle::Pinned;
pub(crate) use bundle::{Bundle, ReadDepth, bundle_of_library, installed_bundle, is_installable, tensorrt_folder};
#[cfg(feature = "setup")]
pub(crate) use bundle::{Wheel, bundle, bundles, providers_folder};

/// What TensorRT's provider asks for beside CUDA, in the order in which it must be loaded.
pub(crate) const TENSORRT_LIBRARIES: [&str; 2] = ["libnvinfer.so.10", "libnvonnxparser.so.10"];

/// What the plugin of TensorRT for RTX asks for, as its package names the files, in the order in which they must be loaded.
pub(crate) const TENSORRT_RTX_LIBRARIES: [&str; 3] =
    ["libcudart.so.13.4.36", "libtensorrt_rtx.so.1.7.1", "libtensorrt_onnxparser_rtx.so.1.7.1"];

/// The file name of the library on this system.
pub const FILE_NAME: &str = if cfg!(windows) {
    "onnxruntime.dll"
} else if cfg!(target_vendor = "apple") {
    "libonnxruntime.dylib"
} else {
    "libonnxruntime.so"
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Registry {
    PyPi,
    Npm,
}

/// One library, in the package that carries it.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "setup"), expect(dead_code, reason = "only who fetches asks where a package comes from"))]
pub(crate) struct Package {
    pub(crate) registry: Registry,
    pub(crate) version: &'static str,
    pub(crate) os: &'static str,
    pub(crate) arch: &'static str,
    /// Where the library lies in the package.
    pub(crate) file: &'static str,
    pub(crate) bytes: u64,
    /// How many bytes are downloaded for it.
    pub(crate) archive: u64,
    pub(crate) sha256: &'static str,
}

type Text = &'static str;

const fn pypi(os: Text, arch: Text, file: Text, bytes: u64, archive: u64, sha256: Text) -> Package {
    Package { registry: Registry::PyPi, version: "1.31.1", os, arch, file, bytes, archive, sha256 }
}

/// One archive holds the libraries of all systems.
const fn npm(os: Text, arch: Text, file: Text, bytes: u64, sha256: Text) -> Package {
    Package { registry: Registry::Npm, version: "1.30.0", os, arch, file, bytes, archive: 113_507_888, sha256 }
}

/// Every library this program installs, best first. Computed from the packages `onnxruntime` 1.31.1 (wheels for Python
/// 3.12) and `onnxruntime-node` 1.30.0, the newest on npm that carries the library.
#[rustfmt::skip]
const PACKAGES: [Package; 10] = [
    pypi("linux", "x86_64", "libonnxruntime.so.1.31.1", 29_352_200, 23_760_988, "fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3"),
    pypi("linux", "aarch64", "libonnxruntime.so.1.31.1", 25_265_040, 21_420_803, "8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467"),
    pypi("macos", "aarch64", "libonnxruntime.1.31.1.dylib", 33_037_336, 20_882_125, "d586cbe89effc085a09d3341b3cfbd5c322517f9d397aeb20814af21433f2b36"),
    pypi("windows", "x86_64", "onnxruntime.dll", 19_288_376, 14_888_466, "e45f61e50d8650885452be538a00bb14a715e46a1bc3691000ce947e89ed0306"),
    pypi("windows", "aarch64", "onnxruntime.dll", 19_171_640, 14_740_724, "dc9e2fe646a72829386a24ac9185a7a4e26d7dbe5dc433d41df063603c00bbc7"),
    npm("linux", "x86_64", "linux/x64/libonnxruntime.so.1", 45_828_512, "ffb75a925ba05e47b235bb66e3e3911714a80b328a9c9425539feb204aa32a23"),
    npm("linux", "aarch64", "linux/arm64/libonnxruntime.so.1", 25_135_496, "1f549d46250b005580b597f4164984aaf75b3bcb9f3aeb07c7f8a8fe60b23c76"),
    npm("macos", "aarch64", "darwin/arm64/libonnxruntime.1.30.0.dylib", 44_589_928, "685d2be5dba1309c89d3a5324b7fd06a5c42f1a61bfea32d14c4cc28d072121d"),
    npm("windows", "x86_64", "win32/x64/onnxruntime.dll", 28_754_232, "508c362f5673483dd3a086379c392795b2e42d10d5e6f3f90ebd7ac21c97af67"),
    npm("windows", "aarch64", "win32/arm64/onnxruntime.dll", 29_815_136, "6c3a2abf5c6aca11c48a0d338a91af309f2266f25ce2e4084e6a87bbcb0fbfd0"),
];

/// What lies at a place that setup fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Nothing.
    Empty,
    /// The pinned library.
    Valid,
    /// Something else.
    Damaged(String),
    /// A part, of a setup that was ended before its end.
    #[cfg(feature = "setup")]
    Unfinished,
    /// What another version of this program installs.
    #[cfg(feature = "setup")]
    Outdated,
}

impl Package {
    pub(crate) fn installed_path(&self, folder: &Path) -> PathBuf {
        folder.join(self.version).join(FILE_NAME)
    }

    /// What lies where it is installed.
    pub(crate) fn state(&self, folder: &Path) -> SlotState {
        let path = self.installed_path(folder);
        match verify_size(&path, self.bytes).and_then(|()| verify_content(&path, self.sha256)) {
            Ok(()) => SlotState::Valid,
            Err(error) if error.kind() == io::ErrorKind::NotFound => SlotState::Empty,
            Err(error) => SlotState::Damaged(error.to_string()),
        }
    }
}

/// Whether a file of so many bytes is there.
fn verify_size(path: &Path, bytes: u64) -> io::Result<()> {
    let metadata = path.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    if metadata.len() != bytes {
        return Err(io::Error::other(format!("{} bytes instead of {bytes}", metadata.len())));
    }
    Ok(())
}

/// Whether a file has this SHA-256, read from its first byte to its last.
fn verify_content(path: &Path, sha256: &str) -> io::Result<()> {
    let digest = copy_and_hash(&mut File::open(path)?, &mut io::sink())?;
    verify_digest(&digest, sha256).map_err(io::Error::other)
}

pub(crate) fn verify_digest(digest: &str, sha256: &str) -> Result<(), String> {
    if digest == sha256 { Ok(()) } else { Err(format!("its SHA-256 is {digest}, expected {sha256}")) }
}

pub(crate) fn packages_for_this_system() -> Result<Vec<Package>> {
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

/// The libraries of ONNX Runtime that setup installs, best first: those for the CPU, then the build for GPUs where it is. None
/// if there is no folder or package for them.
pub(crate) fn expected_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    if let (Ok(folder), Ok(packages)) = (library_folder(), packages_for_this_system()) {
        files.extend(packages.iter().map(|package| package.installed_path(&folder)));
    }
    files.extend(installed_bundle("cuda").and_then(|(bundle, folder)| bundle.library(&folder)));
    files
}

/// What is wrong with one of [`expected_files`], read from its first byte to its last.
pub(crate) fn defect(path: &Path) -> Option<String> {
    let state = match bundle_of_library(path) {
        // The other files are gigabytes: their sizes must do here, and setup's check reads them all.
        Some((bundle, folder)) => bundle.state(&folder, ReadDepth::Library),
        None => {
            let (folder, packages) = (library_folder().ok()?, packages_for_this_system().ok()?);
            packages.iter().find(|package| package.installed_path(&folder) == path)?.state(&folder)
        }
    };
    match state {
        SlotState::Damaged(reason) => Some(reason),
        _ => None,
    }
}

/// The folder of all versions.
pub(crate) fn library_folder() -> Result<PathBuf> {
    Ok(data_folder()?.join("onnxruntime"))
}

/// Copies everything and returns the SHA-256 of it in hexadecimal.
pub(crate) fn copy_and_hash(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_well_formed() {
        for package in PACKAGES {
            assert_eq!(package.sha256.len(), 64);
            assert!(package.sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{package:?}");
            assert!(package.bytes > 10_000_000, "{package:?}");
        }
    }
}
