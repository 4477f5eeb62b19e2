//! Providers without their hardware: OpenVINO compiles for any processor, and WebGPU runs on Mesa's software Vulkan, where
//! tensors lie on a device of its own. What they need is put into the target folder; nothing is installed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{build_command, cargo, command, root, set_up, step, succeeds, target_folder};

/// A Python wheel that carries a plugin.
struct Plugin {
    provider: &'static str,
    package: &'static str,
    version: &'static str,
    library: &'static str,
    /// Tests that read which provider to run on from the environment, by what their names begin with, and how they run.
    tests: &'static [(&'static str, &'static [&'static str])],
}

const OPENVINO: Plugin = Plugin {
    provider: "openvino",
    package: "onnxruntime-ep-openvino",
    version: "1.8.1",
    library: "onnxruntime_ep_openvino/libonnxruntime_providers_openvino_plugin.so",
    // Compiling takes all cores by itself; without the plugin these are ignored.
    tests: &[CONFORMANCE, ("builds::", &["--ignored", "--test-threads", "2"])],
};
const WEBGPU: Plugin = Plugin {
    provider: "webgpu",
    package: "onnxruntime-ep-webgpu",
    version: "0.4.0",
    library: "onnxruntime_ep_webgpu/libonnxruntime_providers_webgpu.so",
    tests: &[CONFORMANCE, ("conformance::no_fallback_is_silent", &["--ignored"])],
};

const CONFORMANCE: (&str, &[&str]) = ("conformance::", &[]);

/// Graphs of which WebGPU leaves a part to the CPU: f64 in embed, casts from i64 and to f16 that the renderer lacks.
const WEBGPU_FALLBACKS: &str = "embed,join-items,keep-items,keep,put,residual,apply-residual,diff";

pub fn check_openvino(arguments: &[String]) -> Result<()> {
    check(&OPENVINO, arguments, &[])
}

pub fn check_webgpu(arguments: &[String]) -> Result<()> {
    let folder = plugins()?;
    let [libraries, driver] = software_vulkan(&folder.join("mesa"))?;
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    let more = [
        ("PLUGIN_SHIM_DEVICE", "gpu".to_owned()),
        ("LD_LIBRARY_PATH", path(libraries)),
        ("VK_DRIVER_FILES", path(driver)),
        ("XDG_RUNTIME_DIR", path(folder.clone())),
        ("MESA_SHADER_CACHE_DIR", path(folder.join("shaders"))),
        ("DBCACHE_TEST_FALLBACK", WEBGPU_FALLBACKS.to_owned()),
    ];
    check(&WEBGPU, arguments, &more)
}

fn check(plugin: &Plugin, arguments: &[String], more: &[(&str, String)]) -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("this check needs Linux on x86-64: the packages are those of this system");
    }
    let library = fetch(plugin)?;
    let shim = build_shim()?;
    set_up(Command::new(build_command()?).current_dir(root()))?;
    for (names, how) in plugin.tests {
        let mut tests = cargo(&["test", "--workspace", "--test", "providers"]);
        // The caller's own choice takes the place of ours.
        if arguments.first().is_none_or(|argument| argument.starts_with('-')) {
            tests.arg(names);
        }
        tests.args(arguments);
        if !arguments.iter().any(|argument| argument == "--") {
            tests.arg("--");
        }
        tests.args(*how).env("PLUGIN_SHIM_LIBRARY", &library);
        tests.env("DBCACHE_TEST_PROVIDER", format!("{}:library={}", plugin.provider, shim.display()));
        tests.envs(more.iter().map(|(name, value)| (name, value)));
        step(&mut tests)?;
    }
    Ok(())
}

fn plugins() -> Result<PathBuf> {
    let folder = target_folder()?.join("plugins");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Unpacks the wheel; gives the plugin's library.
fn fetch(plugin: &Plugin) -> Result<PathBuf> {
    let folder = plugins()?.join(format!("{}-{}", plugin.package, plugin.version));
    let library = folder.join(plugin.library);
    if library.is_file() {
        return Ok(library);
    }
    let wanted = format!("{}=={}", plugin.package, plugin.version);
    let options = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.12", "--target"];
    let with = |words: &[&str]| {
        let mut command = command(words[0], &words[1..]);
        command.args(options).arg(&folder).arg(&wanted);
        command
    };
    let tools = [
        ("uv", with(&["uv", "pip", "install", "--quiet", "--python-platform", "x86_64-manylinux_2_28"])),
        ("pip", with(&["pip", "install", "--quiet", "--platform", "manylinux_2_28_x86_64"])),
        ("pip3", with(&["pip3", "install", "--quiet", "--platform", "manylinux_2_28_x86_64"])),
    ];
    let mut tools = tools.into_iter().filter(|(name, _)| succeeds(&mut command(name, &["--version"])));
    let (_, mut install) = tools.next().context("neither uv nor pip is installed")?;
    step(&mut install)?;
    if library.is_file() { Ok(library) } else { bail!("{wanted} holds no {}", plugin.library) }
}

/// What lets plugins load on machines that they do not offer themselves on; checked like the rest of the code.
fn build_shim() -> Result<PathBuf> {
    let manifest = "tests/plugin-shim/Cargo.toml";
    let folder = target_folder()?.join("plugin-shim");
    step(&mut cargo(&["fmt", "--manifest-path", manifest, "--check"]))?;
    let clippy = ["clippy", "--quiet", "--locked", "--manifest-path", manifest];
    step(cargo(&clippy).arg("--target-dir").arg(&folder).args(["--", "-D", "warnings"]))?;
    let build = ["build", "--quiet", "--locked", "--release", "--manifest-path", manifest];
    step(cargo(&build).arg("--target-dir").arg(&folder))?;
    let name = format!("{}plugin_shim{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    Ok(folder.join("release").join(name))
}

/// Unpacks Mesa 25 from Debian's packages; gives the folder of its libraries, and the file that names its driver.
fn software_vulkan(folder: &Path) -> Result<[PathBuf; 2]> {
    let libraries = folder.join("root/usr/lib/x86_64-linux-gnu");
    let driver = folder.join("driver.json");
    if driver.is_file() {
        return Ok([libraries, driver]);
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or_default();
    if !release.contains("ID=debian") || !succeeds(&mut command("apt-get", &["--version"])) {
        bail!("the packages of a software Vulkan come from Debian, which this system is not");
    }
    // Debian 12's own Mesa is too old for WebGPU.
    let suites = if codename == "bookworm" { vec!["bookworm", "bookworm-backports"] } else { vec![codename] };
    for part in ["lists/partial", "archives/partial", "root"] {
        fs::create_dir_all(folder.join(part))?;
    }
    let sources: String =
        suites.iter().map(|suite| format!("deb http://deb.debian.org/debian {suite} main\n")).collect();
    fs::write(folder.join("sources.list"), sources)?;
    let apt = |words: &[&str]| {
        let mut command = command("apt-get", &[]);
        for (option, value) in [
            ("Dir::Etc::sourcelist", folder.join("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::State::lists", folder.join("lists")),
            ("Dir::Cache", folder.to_owned()),
            ("Dir::Cache::archives", folder.join("archives")),
            ("APT::Sandbox::User", "root".into()),
            ("Debug::NoLocking", "1".into()),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        command.arg("-qq").args(words);
        command
    };
    step(&mut apt(&["update"]))?;
    let newest = suites.last().copied().unwrap_or_default();
    let install = ["install", "-y", "--reinstall", "--no-install-recommends", "--download-only", "-t", newest];
    step(apt(&install).args(["mesa-vulkan-drivers", "libvulkan1"]))?;
    for entry in fs::read_dir(folder.join("archives"))? {
        let package = entry?.path();
        if package.extension().is_some_and(|ending| ending == "deb") {
            step(command("dpkg", &["-x"]).arg(package).arg(folder.join("root")))?;
        }
    }
    let library = libraries.join("libvulkan_lvp.so");
    if !library.is_file() {
        bail!("the packages hold no {}", library.display());
    }
    // The package's own file names the library where it would be installed.
    let file = format!(
        "{{\"file_format_version\": \"1.0.0\", \"ICD\": {{\"api_version\": \"1.4.0\", \"library_path\": {:?}}}}}\n",
        library.display().to_string()
    );
    fs::write(&driver, file)?;
    Ok([libraries, driver])
}
