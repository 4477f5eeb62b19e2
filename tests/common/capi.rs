//! Builds the C library and programs against it, and runs them: plain, or as `DBCACHE_CAPI_WITH` says (`sanitizers`,
//! `valgrind`; `cargo xtask check-capi` sets it).

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dbcache_trt::{LibraryOptions, library_info};
use tempfile::TempDir;

/// How C programs are built and run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum With {
    Nothing,
    Sanitizers,
    Valgrind,
}

impl With {
    /// What the environment asks for.
    pub fn asked() -> Self {
        match env::var("DBCACHE_CAPI_WITH").as_deref() {
            Err(_) | Ok("") => Self::Nothing,
            Ok("sanitizers") => Self::Sanitizers,
            Ok("valgrind") => Self::Valgrind,
            Ok(other) => panic!("DBCACHE_CAPI_WITH is `{other}`; expected `sanitizers` or `valgrind`"),
        }
    }
}

/// The built library, laid out as the loader wants it, and a folder for programs.
pub struct Capi {
    pub folder: TempDir,
    pub shared: PathBuf,
    pub archive: PathBuf,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Capi {
    /// Builds the library with the profile of the tests; for valgrind with that of a release, which is several times faster
    /// there. A library that is no Rust crate is not built for tests by itself.
    pub fn build() -> Self {
        let mut built = Path::new(env!("CARGO_BIN_EXE_dbcache-trt")).parent().unwrap().to_owned();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet"]).current_dir(root());
        if With::asked() == With::Valgrind {
            built.set_file_name("release");
            // What `cargo xtask install` builds.
            cargo.args(["--package", "dbcache-trt-capi"]);
        } else {
            // As the tests were built: the same features, those of their own dependencies too, so nothing is compiled twice.
            cargo.args(["--workspace", "--lib", "--tests"]);
        }
        if built.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success());
        let folder = tempfile::tempdir().unwrap();
        let (shared, archive) = (built.join("libdbcache_trt.so"), built.join("libdbcache_trt.a"));
        let header = fs::read_to_string(root().join("capi/include/dbcache_trt.h")).unwrap();
        let version = header.lines().find_map(|line| line.strip_prefix("#define DBCACHE_ABI_VERSION ")).unwrap();
        std::os::unix::fs::symlink(&shared, folder.path().join("libdbcache_trt.so")).unwrap();
        std::os::unix::fs::symlink(&shared, folder.path().join(format!("libdbcache_trt.so.{version}"))).unwrap();
        Self { folder, shared, archive }
    }

    /// Compiles one source file of the repository; C++ by its ending.
    pub fn compile(&self, source: &str, with: With) -> PathBuf {
        let is_cpp = source.ends_with(".cpp");
        let mut compiler = Command::new(if is_cpp { "c++" } else { "cc" });
        compiler.arg(if is_cpp { "-std=c++17" } else { "-std=gnu11" });
        compiler.args(["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-g", "-O1", "-pthread"]);
        if with == With::Sanitizers {
            compiler.args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]);
        }
        let binary = self.folder.path().join(Path::new(source).file_stem().unwrap());
        compiler.arg("-I").arg(root().join("capi/include")).arg(root().join(source)).arg("-o").arg(&binary);
        // A program that calls nothing of the library by name is one that loads it by itself.
        compiler.arg("-L").arg(self.folder.path()).args(["-Wl,--as-needed", "-ldbcache_trt", "-ldl"]).arg("-lm");
        // Also for what a sanitizer opens in the name of the program.
        compiler.arg(format!("-Wl,--disable-new-dtags,-rpath,{}", self.folder.path().display()));
        succeed(&mut compiler);
        if with == With::Sanitizers {
            let symbols = Command::new("nm").arg(&binary).output().unwrap();
            assert!(String::from_utf8_lossy(&symbols.stdout).contains("__asan_init"), "built without AddressSanitizer");
        }
        binary
    }

    /// Runs a program, which must end well; what it printed.
    pub fn run(&self, binary: &Path, arguments: &[&Path], with: With) -> String {
        let mut command = match with {
            With::Valgrind => {
                let mut valgrind = Command::new("valgrind");
                valgrind.args([
                    "--quiet",
                    "--error-exitcode=9",
                    "--leak-check=full",
                    "--show-leak-kinds=definite",
                    "--errors-for-leak-kinds=definite",
                    "--num-callers=30",
                ]);
                valgrind.env("DBCACHE_CAPI_SMALL", "1");
                valgrind.arg(format!("--suppressions={}", root().join("capi/tests/c/valgrind.supp").display()));
                valgrind.arg(binary);
                valgrind
            }
            With::Nothing | With::Sanitizers => Command::new(binary),
        };
        if with == With::Sanitizers {
            // What no machine can allocate fails as it does without.
            let options = "detect_leaks=1:detect_stack_use_after_return=1:allocator_may_return_null=1";
            command.env("ASAN_OPTIONS", options);
            command.env("LSAN_OPTIONS", format!("suppressions={}", root().join("capi/tests/c/lsan.supp").display()));
            command.env("UBSAN_OPTIONS", "print_stacktrace=1");
        }
        let output = succeed(command.args(arguments));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

/// ONNX Runtime's library, as the tests found it.
pub fn runtime() -> PathBuf {
    library_info(&LibraryOptions::default()).unwrap().path
}
