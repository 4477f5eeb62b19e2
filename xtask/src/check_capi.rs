//! What holds for the C library beyond `cargo xtask test`: its programs under sanitizers and valgrind, and projects that
//! build against the installed files with pkg-config and CMake.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::install;
use crate::run::{build_command, cargo, root, set_up, step, succeeds, target_folder};

/// With the word `valgrind` also under valgrind, which takes long. With `--debug` the library of the tests is installed, not that
/// of a release, which takes minutes to build.
pub fn check_capi(arguments: &[String]) -> Result<()> {
    let (mut uses_valgrind, mut is_debug) = (false, false);
    for argument in arguments {
        match argument.as_str() {
            "valgrind" => uses_valgrind = true,
            "--debug" => is_debug = true,
            other => bail!("check-capi takes `--debug` and `valgrind`: {other:?}"),
        }
    }
    for tool in ["cc", "c++", "nm", "valgrind", "pkg-config", "cmake"] {
        if !succeeds(Command::new(tool).arg("--version")) {
            bail!("`{tool}` is missing; on Debian: apt-get install gcc g++ binutils valgrind pkg-config cmake");
        }
    }
    set_up(Command::new(build_command()?).current_dir(root()))?;
    for with in ["sanitizers"].into_iter().chain(uses_valgrind.then_some("valgrind")) {
        eprintln!("\nC programs with {with}");
        let mut programs = cargo(&["test", "--workspace", "--test", "capi", "programs::"]);
        step(programs.env("DBCACHE_CAPI_WITH", with))?;
    }
    consumers(is_debug)
}

/// Builds a project outside the tree, and loads an engine with what it built.
fn consumers(is_debug: bool) -> Result<()> {
    let folder = target_folder()?.join("capi-check");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let (prefix, project) = (folder.join("prefix"), folder.join("project"));
    fs::create_dir_all(&project)?;
    for name in ["CMakeLists.txt", "consumer.c", "consumer.cpp"] {
        fs::copy(root().join("capi/consumer").join(name), project.join(name))?;
    }
    if is_debug {
        step(&mut cargo(&["build", "--workspace", "--lib", "--tests"]))?;
        install::put(&target_folder()?.join("debug"), &prefix)?;
    } else {
        install::install(&["--prefix".to_owned(), prefix.display().to_string()])?;
    }

    let config = prefix.join("lib/pkgconfig");
    let of_shared = flags(&config, "dbcache_trt", &["--cflags", "--libs"])?;
    let rpath = format!("-Wl,-rpath,{}", prefix.join("lib").display());
    for (compiler, source, name) in [("cc", "consumer.c", "pkg_c"), ("c++", "consumer.cpp", "pkg_cpp")] {
        let mut build = Command::new(compiler);
        build.current_dir(&project).args([source, "-o", name]).args(&of_shared).arg(&rpath);
        step(&mut build)?;
    }
    let of_static = flags(&config, "dbcache_trt-static", &["--cflags", "--libs"])?;
    let mut build = Command::new("cc");
    step(build.current_dir(&project).args(["consumer.c", "-o", "pkg_static"]).args(&of_static))?;

    let cmake = project.join("build");
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(&project).arg("-B").arg(&cmake);
    step(configure.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display())))?;
    step(Command::new("cmake").arg("--build").arg(&cmake))?;

    let engine = root().join("tests/data/tiny-flux");
    let programs = ["pkg_c", "pkg_cpp", "pkg_static", "build/shared_c", "build/static_c", "build/shared_cpp"];
    for program in programs {
        step(Command::new(project.join(program)).arg(&engine).stdout(std::process::Stdio::null()))?;
    }
    describe(&prefix)
}

fn flags(config: &Path, library: &str, what: &[&str]) -> Result<Vec<String>> {
    let mut command = Command::new("pkg-config");
    command.args(what).arg(library).env("PKG_CONFIG_PATH", config);
    let output = command.output().context("cannot run pkg-config")?;
    if !output.status.success() {
        bail!("pkg-config {}: {}", what.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?.split_whitespace().map(str::to_owned).collect())
}

/// The library's size and needed libraries, which docs/c-api.md tells.
fn describe(prefix: &Path) -> Result<()> {
    let library: PathBuf = prefix.join("lib/libdbcache_trt.so").canonicalize()?;
    let output = Command::new("objdump").arg("-p").arg(&library).output().context("cannot run objdump")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let of = |name: &str| {
        let words = text.lines().filter_map(|line| line.trim().strip_prefix(name));
        words.map(|word| word.trim().to_owned()).collect::<Vec<_>>().join(", ")
    };
    let megabytes = |path: &Path| fs::metadata(path).map(|file| file.len() as f64 / 1e6);
    println!(
        "libdbcache_trt.so {:.1} MB, libdbcache_trt.a {:.1} MB; soname {}; needs {}; {}",
        megabytes(&library)?,
        megabytes(&prefix.join("lib/libdbcache_trt.a"))?,
        of("SONAME"),
        of("NEEDED"),
        env::consts::ARCH
    );
    Ok(())
}
