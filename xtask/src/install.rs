//! Puts the C library where C and C++ projects find it: shared and static library, headers, pkg-config, CMake.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{cargo, root, step, target_folder};

pub fn install(arguments: &[String]) -> Result<()> {
    let prefix = match arguments {
        [flag, prefix] if flag == "--prefix" => std::path::absolute(prefix)?,
        _ => bail!("usage: cargo xtask install --prefix FOLDER"),
    };
    step(&mut cargo(&["build", "--release", "--package", "dbcache-trt-capi"]))?;
    put(&target_folder()?.join("release"), &prefix)
}

/// A line of the header that defines a name.
fn defined(header: &str, name: &str) -> Result<String> {
    let start = format!("#define {name} ");
    let value = header.lines().find_map(|line| line.strip_prefix(&start));
    Ok(value.with_context(|| format!("the header does not define {name}"))?.trim_matches('"').to_owned())
}

/// Copies what was built to `built`, and writes the files that describe it.
pub fn put(built: &Path, prefix: &Path) -> Result<()> {
    let include = root().join("capi/include");
    let header = fs::read_to_string(include.join("dbcache_trt.h"))?;
    let (version, abi) = (defined(&header, "DBCACHE_VERSION")?, defined(&header, "DBCACHE_ABI_VERSION")?);
    let folders = ["include", "lib", "lib/pkgconfig", "lib/cmake/dbcache_trt"];
    folders.iter().try_for_each(|folder| fs::create_dir_all(prefix.join(folder)))?;
    for name in ["dbcache_trt.h", "dbcache_trt.hpp"] {
        copy(&include.join(name), &prefix.join("include").join(name))?;
    }
    let lib = prefix.join("lib");
    copy(&built.join("libdbcache_trt.a"), &lib.join("libdbcache_trt.a"))?;
    strip("--strip-debug", &lib.join("libdbcache_trt.a"))?;
    if cfg!(target_os = "linux") {
        let file = format!("libdbcache_trt.so.{version}");
        copy(&built.join("libdbcache_trt.so"), &lib.join(&file))?;
        strip("--strip-unneeded", &lib.join(&file))?;
        link(&file, &lib.join(format!("libdbcache_trt.so.{abi}")))?;
        link(&format!("libdbcache_trt.so.{abi}"), &lib.join("libdbcache_trt.so"))?;
    } else {
        bail!(
            "shared libraries are laid out for Linux only; copy what `cargo build --release -p dbcache-trt-capi` made"
        );
    }
    let fill = |text: &str| text.replace("@VERSION@", &version).replace("@ABI@", &abi);
    let describe = root().join("capi/install");
    for (name, folder) in [
        ("dbcache_trt.pc", "lib/pkgconfig"),
        ("dbcache_trt-static.pc", "lib/pkgconfig"),
        ("dbcache_trt-config.cmake", "lib/cmake/dbcache_trt"),
        ("dbcache_trt-config-version.cmake", "lib/cmake/dbcache_trt"),
    ] {
        let text = fs::read_to_string(describe.join(name)).with_context(|| format!("capi/install/{name}"))?;
        fs::write(prefix.join(folder).join(name), fill(&text))?;
    }
    eprintln!("\ninstalled under {}", prefix.display());
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    // What is there may be in use by a running program: a new file leaves it alone.
    remove(to)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Lines for backtraces are five times as large as the library.
fn strip(what: &str, library: &Path) -> Result<()> {
    step(Command::new("strip").arg(what).arg(library))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot replace {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(unix)]
fn link(to: &str, at: &PathBuf) -> Result<()> {
    remove(at)?;
    std::os::unix::fs::symlink(to, at).with_context(|| format!("cannot make {}", at.display()))
}

#[cfg(not(unix))]
fn link(_: &str, at: &PathBuf) -> Result<()> {
    bail!("cannot make {}: this system has no links", at.display())
}
