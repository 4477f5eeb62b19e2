//! Setting up providers as a user does it: real packages, ends in the middle, damage; and all that comes before a GPU, on a
//! stand-in for NVIDIA's driver (tests/stand-in-driver). Everything lies in the target folder, and nothing is installed.

mod plugins;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::run::{built, cargo, command, root, step, succeeds, target_folder};

/// Longer than any part of a set-up takes where the registry is reached.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

pub fn check_setup(_: &[String]) -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("this check needs Linux on x86-64: the packages are those of this system");
    }
    if !succeeds(command("cc", &["--version"]).stdin(Stdio::null())) {
        bail!("`cc` is missing; on Debian: apt-get install gcc libc6-dev");
    }
    step(&mut cargo(&["build", "--package", "dbcache-trt"]))?;
    // Alone, as `cargo xtask install` builds it: beside the command it would have the command's features.
    step(&mut cargo(&["build", "--package", "dbcache-trt-capi"]))?;
    let folder = target_folder()?.join("setup-check");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let check =
        Check { program: built("dbcache-trt")?, driver: build_driver(&folder)?, home: folder.join("home"), folder };
    check.set_up()?;
    check.chain()?;
    check.hosts()?;
    check.plugins()?;
    check.tensorrt_rtx()?;
    check.full_disk()?;
    check.remove()?;
    fs::remove_dir_all(&check.folder)?;
    Ok(())
}

struct Check {
    program: PathBuf,
    /// The folder of the stand-in driver.
    driver: PathBuf,
    /// The data folder of the program.
    home: PathBuf,
    folder: PathBuf,
}

/// What the stand-in driver stands for, and what `providers` says of it.
struct Case {
    driver: &'static str,
    variable: Option<(&'static str, &'static str)>,
    words: [&'static str; 2],
}

/// The stand-in for both libraries of NVIDIA's driver.
fn build_driver(folder: &Path) -> Result<PathBuf> {
    let driver = folder.join("driver");
    fs::create_dir_all(&driver)?;
    for name in ["libcuda.so.1", "libnvidia-ml.so.1"] {
        let flags = ["-std=c11", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"];
        let mut build = command("cc", &flags);
        build.arg(format!("-Wl,-soname,{name}")).arg("-o").arg(driver.join(name));
        step(build.arg("tests/stand-in-driver/driver.c"))?;
    }
    Ok(driver)
}

impl Check {
    /// The program, as on a machine without ONNX Runtime and NVIDIA's driver.
    fn program(&self, arguments: &[&str]) -> Command {
        self.bare(&self.program, arguments)
    }

    /// The program on the stand-in driver, which stands for what the variables say.
    fn with_driver(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut program = self.program(arguments);
        program.env("LD_LIBRARY_PATH", &self.driver).envs(variables.iter().copied());
        program
    }

    fn bare(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut program = Command::new(program);
        program.args(arguments).current_dir(&self.folder).env("DBCACHE_TRT_HOME", &self.home);
        program.env_remove("ORT_DYLIB_PATH").env_remove("LD_LIBRARY_PATH").env_remove("CUDA_VISIBLE_DEVICES");
        program
    }

    /// The folder of all versions of CUDA's provider, and the one version in it, if there is one.
    fn cuda(&self) -> (PathBuf, Option<PathBuf>) {
        let folder = self.home.join("providers").join("cuda");
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_version = |path: &PathBuf| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.'));
        let version = entries.filter(|path| path.is_dir()).find(is_version);
        (folder, version)
    }

    fn installed(&self) -> Result<PathBuf> {
        self.cuda().1.context("CUDA's provider is not installed")
    }

    /// Sets up, through every kind of trouble.
    fn set_up(&self) -> Result<()> {
        let cuda = ["setup", "--provider", "cuda"];
        expect(
            "a tool without such packages",
            &mut self.program(&["setup", "--provider", "cuda", "--via", "npm"]),
            2,
            &["--via is `npm`"],
        )?;

        let mut first = self.program(&cuda).stderr(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let files = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().count();
        let (folder, _) = self.cuda();
        // The last file of the first package: a package of which a part is there is fetched again as a whole.
        let has_package = |path: &Path| path.join("libonnxruntime_providers_tensorrt.so").is_file();
        let is_of_parts =
            |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".partial-"));
        let parts = || {
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
            entries.into_iter().find(|path| is_of_parts(path) && has_package(path))
        };
        let parts = wait_for(&mut first, "the first package", parts)?;
        first.kill()?;
        first.wait()?;
        ensure!(self.cuda().1.is_none(), "a killed set-up has left something under the final name");
        println!("ok   killed with {} files in {}", files(&parts), parts.display());
        expect(
            "what a killed set-up leaves is listed",
            &mut self.program(&["setup", "--list"]),
            0,
            &["unfinished: the same setup goes on from there"],
        )?;
        expect("a killed set-up is resumed", &mut self.program(&cuda), 0, &["are there already", "installed cuda"])?;
        ensure!(!parts.exists(), "{} is still there", parts.display());
        expect("all of it is what is pinned", &mut self.program(&["setup", "--check"]), 0, &[": installed"])?;
        expect("a second set-up has nothing to do", &mut self.program(&cuda), 0, &["is already installed"])?;

        let library = self.installed()?.join("libcublasLt.so.13");
        let mut bytes = fs::read(&library)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&library, bytes)?;
        let words = ["libcublasLt.so.13: its SHA-256 is", "run `dbcache-trt setup --provider cuda` to repair it"];
        expect("a flipped byte is found", &mut self.program(&["setup", "--check"]), 3, &words)?;
        expect(
            "and only its package is fetched again",
            &mut self.program(&cuda),
            0,
            &["[1/1] nvidia-cublas", "repaired cuda"],
        )?;
        expect("all of it is what is pinned again", &mut self.program(&["setup", "--check"]), 0, &[": installed"])
    }

    /// All that comes before a GPU.
    fn chain(&self) -> Result<()> {
        let model = root().join("models/emoji").display().to_string();
        let on = |provider: &'static str| ["providers", "--provider", provider];
        let installed = self.installed()?;
        let with_installed = format!("{}:{}", installed.display(), self.driver.display());
        for entry in fs::read_dir(&installed)? {
            let path = entry?.path();
            let is_of_tensorrt = path.ends_with("libonnxruntime_providers_tensorrt.so");
            let is_extension = path.ends_with("libonnxruntime_providers_shared.so");
            if is_of_tensorrt || is_extension {
                continue;
            }
            let output = command("ldd", &["-r"]).arg(&path).env("LD_LIBRARY_PATH", &with_installed).output()?;
            let text = both(&output);
            // What ONNX Runtime itself gives to its providers is not there before it is.
            let missing = text.lines().find(|line| line.contains("not found"));
            ensure!(output.status.success() && missing.is_none(), "{}: {}", path.display(), missing.unwrap_or(&text));
        }
        println!("ok   every library of CUDA's provider finds those that it needs");
        let old = "too old: release 550.54.14 knows CUDA up to 12.4";
        let cases = [
            Case {
                driver: "no device",
                variable: None,
                words: ["no CUDA device was found", "driver: release 580.65.06"],
            },
            Case {
                driver: "hidden devices",
                variable: Some(("CUDA_VISIBLE_DEVICES", "")),
                words: ["no CUDA device was found", "CUDA_VISIBLE_DEVICES is ``"],
            },
            Case {
                driver: "an old driver",
                variable: Some(("STAND_IN_CUDA", "12040")),
                words: [old, "install release 580"],
            },
            Case {
                driver: "a driver that does not start",
                variable: Some(("STAND_IN_FAILS", "803")),
                words: ["does not start: cuInit fails with", "(803)"],
            },
            Case {
                driver: "a device",
                variable: Some(("STAND_IN_GPU", "1")),
                words: ["device: Stand-in GPU, 16.0 GB, compute capability 9.0", "cudaSetDevice failed on GPU 0"],
            },
        ];
        for Case { driver, variable, words } in cases {
            expect(driver, &mut self.with_driver(&on("cuda"), variable.as_slice()), 0, &words)?;
        }
        expect("no driver", &mut self.program(&on("cuda")), 0, &["needs libcuda.so.1", "install the NVIDIA driver"])?;

        let generate = |provider| ["--engine", &model, "--prompt", "lemon", "--steps", "1", "--provider", provider];
        expect(
            "a run without a device",
            &mut self.with_driver(&generate("cuda"), &[]),
            10,
            &["no CUDA device was found"],
        )?;
        let own_stream = generate("cuda:stream=own");
        expect(
            "the same without a common stream",
            &mut self.with_driver(&own_stream, &[]),
            10,
            &["no CUDA device was found"],
        )?;
        expect(
            "TensorRT",
            &mut self.with_driver(&generate("tensorrt"), &[]),
            10,
            &["needs libnvinfer.so.10", "setup --provider tensorrt"],
        )?;
        let words = ["libnvinfer.so.10 and libnvonnxparser.so.10", "copy all of its libraries"];
        expect("what to do for TensorRT", &mut self.program(&["setup", "--provider", "tensorrt"]), 10, &words)?;

        expect("ONNX Runtime for the CPU", &mut self.program(&["setup"]), 0, &["ONNX Runtime 1.31.1"])?;
        let mut with_cpu_build = self.with_driver(&generate("cuda"), &[]);
        let cpu_build = self.home.join("onnxruntime/1.31.1/libonnxruntime.so");
        with_cpu_build.arg("--ort-library").arg(&cpu_build);
        expect(
            "a build for the CPU",
            &mut with_cpu_build,
            10,
            &["is built without it; setup has installed one that has it"],
        )?;

        // As where somebody has installed ONNX Runtime and CUDA by hand, and has forgotten cuDNN.
        let by_hand = self.folder.join("by-hand");
        fs::create_dir_all(&by_hand)?;
        for entry in fs::read_dir(&installed)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !name.starts_with("libcudnn") {
                fs::hard_link(&path, by_hand.join(name))?;
            }
        }
        let mut without_cudnn = self.with_driver(&generate("cuda"), &[]);
        without_cudnn.arg("--ort-library").arg(by_hand.join("libonnxruntime.so.1.31.1"));
        without_cudnn.env("LD_LIBRARY_PATH", format!("{}:{}", by_hand.display(), self.driver.display()));
        expect("without cuDNN", &mut without_cudnn, 10, &["cuDNN 9 is not there: libcudnn.so.9"])?;
        fs::remove_dir_all(&by_hand)?;

        let (cudnn, away) = (installed.join("libcudnn.so.9"), self.folder.join("libcudnn.so.9"));
        fs::rename(&cudnn, &away)?;
        let words = ["damaged: libcudnn.so.9: is missing", "run `dbcache-trt setup --provider cuda`, which repairs it"];
        expect("a part of it is gone", &mut self.with_driver(&generate("cuda"), &[]), 3, &words)?;
        let words = ["cpu          usable", "libcudnn.so.9: is missing", "mend it: dbcache-trt setup --provider cuda"];
        expect("and is told by providers", &mut self.with_driver(&["providers"], &[]), 0, &words)?;
        fs::rename(&away, &cudnn)?;
        Ok(())
    }

    /// A host of the C library finds the same, by itself.
    fn hosts(&self) -> Result<()> {
        let (host, library) = (self.folder.join("host"), self.folder.join("libdbcache_trt.so.1"));
        fs::copy(built("libdbcache_trt.so")?, &library)?;
        let flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-Icapi/include", "tests/stand-in-driver/host.c"];
        let mut build = command("cc", &flags);
        build.arg(&library).arg("-o").arg(&host);
        step(build.arg(format!("-Wl,-rpath,{}", self.folder.display())))?;
        let engine = root().join("tests/data/tiny-flux").display().to_string();
        for (provider, code, words) in [("cuda", 10, "no CUDA device was found"), ("cuda,cpu", 0, ""), ("cpu", 0, "")] {
            let mut run = self.bare(&host, &[&engine, provider]);
            run.env("LD_LIBRARY_PATH", &self.driver);
            expect(&format!("a host in C on {provider}"), &mut run, code, &[words])?;
        }
        Ok(())
    }

    /// A disk of 64 MB, where this user may have one.
    fn full_disk(&self) -> Result<()> {
        let disk = self.folder.join("disk");
        fs::create_dir_all(&disk)?;
        let own = ["--user", "--map-root-user", "--mount"];
        if !succeeds(command("unshare", &own).args(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(&disk)) {
            println!("skip a small disk: this user cannot make one (unshare --user --mount)");
            return Ok(());
        }
        let script = "mount -t tmpfs -o size=64m tmpfs \"$0\" && exec \"$1\" setup --provider cuda";
        let mut small = command("unshare", &own);
        small.args(["sh", "-c", script]).arg(&disk).arg(&self.program);
        small.env("DBCACHE_TRT_HOME", &disk).env_remove("ORT_DYLIB_PATH");
        expect(
            "a disk that is too small",
            &mut small,
            9,
            &["67.1 MB left, and setting up `cuda` needs", "set DBCACHE_TRT_HOME"],
        )
    }

    fn remove(&self) -> Result<()> {
        expect("removal", &mut self.program(&["setup", "--remove", "cuda"]), 0, &["removed cuda, 2."])?;
        expect("removal of nothing", &mut self.program(&["setup", "--remove", "cuda"]), 0, &["nothing was removed"])?;
        ensure!(self.cuda().1.is_none(), "{} is not empty", self.cuda().0.display());
        let words = [
            "is built without it; run `dbcache-trt setup --provider cuda`",
            "mend it: dbcache-trt setup --provider cuda",
        ];
        expect("without any set-up", &mut self.program(&["providers"]), 0, &words)
    }
}

/// Runs a command, and compares its exit code and what it prints.
fn expect(name: &str, command: &mut Command, code: i32, words: &[&str]) -> Result<()> {
    let start = Instant::now();
    let output = command.output().with_context(|| format!("{name}: cannot run {command:?}"))?;
    let text = both(&output);
    ensure!(output.status.code() == Some(code), "{name}: {}, expected code {code}:\n{text}", output.status);
    if let Some(words) = words.iter().find(|words| !text.contains(**words)) {
        bail!("{name}: {words:?} is missing in:\n{text}");
    }
    println!("ok   {name}, {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn both(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Waits until a child has made something.
fn wait_for<T>(child: &mut Child, what: &str, look: impl Fn() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(found) = look() {
            return Ok(found);
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended before {what} was there: {status}");
        }
        sleep(Duration::from_millis(20));
    }
    child.kill()?;
    bail!("{what} is not there after {PATIENCE:?}")
}
