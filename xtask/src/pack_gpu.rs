//! Packs `check-gpu` with all that it runs, for a machine that has an NVIDIA GPU, Python and PyTorch's or CUDA's own libraries,
//! but neither cargo nor a network (docs/gpu.md).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::check_export::environment;
use crate::check_gpu::{LIBRARY, PROGRAMS, Programs};
use crate::run::{cargo, command, root, step, succeeds, target_folder};

mod device_code;

use device_code::{Wanted, prune};

/// What is carried at once.
const LIMIT: u64 = 64 << 20;

/// The models of random weights (`few_blocks.py`): those of a few blocks, of which the numbers can be chosen, and those of all.
const FEW_BLOCKS: [&str; 3] = ["wide", "wide-opset-20", "narrow"];
const WHOLE: [&str; 2] = ["whole", "narrow-whole"];

/// ONNX Runtime's provider, and what it loads it through.
const PROVIDER: [&str; 2] = ["libonnxruntime_providers_cuda.so", "libonnxruntime_providers_shared.so"];

/// What models and tests are of the repository, in a package that is to stand alone.
const DATA: [&str; 4] = ["models/emoji", "tests/data/families", "tests/data/tiny-flux", "tests/data/oracle"];

const USAGE: &str =
    "pack-gpu takes --arch N, --all-kernels, --output DIR, --limit BYTES, --double N, --single N and --debug";

struct Asked {
    wanted: Wanted,
    output: PathBuf,
    limit: u64,
    /// What `few_blocks.py` is told.
    blocks: Vec<String>,
    profile: &'static str,
}

impl Asked {
    fn read(arguments: &[String]) -> Result<Self> {
        let mut asked = Self {
            wanted: Wanted { architecture: 90, with_language_models: false },
            output: target_folder()?.join("gpu-package/packed"),
            limit: LIMIT,
            blocks: Vec::new(),
            profile: "release",
        };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} lacks its value"));
            match word.as_str() {
                "--arch" => {
                    asked.wanted.architecture = value()?.parse().context("--arch takes a number, such as 90")?
                }
                "--all-kernels" => asked.wanted.with_language_models = true,
                "--output" => asked.output = value()?.into(),
                "--limit" => asked.limit = value()?.parse().context("--limit takes a number of bytes")?,
                "--double" | "--single" => asked.blocks.extend([word.clone(), value()?.clone()]),
                // For trying this task itself.
                "--debug" => asked.profile = "dev",
                other => bail!("{USAGE}: {other}"),
            }
        }
        Ok(asked)
    }
}

pub fn pack_gpu(arguments: &[String]) -> Result<()> {
    let asked = Asked::read(arguments)?;
    for (tool, package) in [("strip", "binutils"), ("tar", "tar"), ("xz", "xz-utils")] {
        ensure!(
            succeeds(&mut command(tool, &["--version"])),
            "`{tool}` is missing; on Debian: apt-get install {package}"
        );
    }
    let folder = target_folder()?.join("gpu-package");
    let staged = folder.join("staged");
    for old in [&staged, &asked.output] {
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
        fs::create_dir_all(old)?;
    }
    let programs = Programs::build(asked.profile)?;
    stage_programs(&programs, asked.profile, &staged)?;
    stage_graphs(&programs, &folder.join("graphs"), &asked.blocks)?;
    copy(&folder.join("graphs"), &staged.join("graphs"))?;
    stage_libraries(&programs, asked.wanted, &staged)?;
    for part in DATA {
        copy(&root().join(part), &staged.join(part))?;
    }
    let cuda = PROVIDER.map(|name| format!("libraries/{name}"));
    let cuda: Vec<&str> = cuda.iter().map(String::as_str).collect();
    compress(&staged, &asked.output.join("cuda.tar.xz"), &cuda)?;
    compress(&staged, &asked.output.join("programs.tar.xz"), &["programs", "graphs", "torch_steps.py", LIBRARY])?;
    compress(&staged, &asked.output.join("data.tar.xz"), &["models", "tests"])?;
    fs::copy(root().join("xtask/src/pack_gpu/run-check-gpu"), asked.output.join("run-check-gpu"))?;
    fs::remove_dir_all(&staged)?;
    tell(&asked)
}

/// The programs without their debug information, and this one.
fn stage_programs(programs: &Programs, profile: &str, staged: &Path) -> Result<()> {
    step(&mut cargo(&["build", "--package", "xtask", "--profile", profile]))?;
    let xtask = programs.command.with_file_name("xtask");
    let built = [&programs.command, &programs.tests, &programs.figures];
    let places = PROGRAMS.map(|(place, _)| place);
    for (from, place) in built.into_iter().chain([&xtask]).zip(places.into_iter().chain(["programs/xtask"])) {
        let to = staged.join(place);
        fs::create_dir_all(to.parent().context("a program has no folder")?)?;
        step(command("strip", &["-o"]).arg(&to).arg(from))?;
    }
    fs::copy(&programs.torch_steps, staged.join("torch_steps.py"))?;
    Ok(())
}

/// The graphs of the models of a few blocks, which hold no weights.
fn stage_graphs(programs: &Programs, graphs: &Path, blocks: &[String]) -> Result<()> {
    if graphs.exists() {
        fs::remove_dir_all(graphs)?;
    }
    let python = environment(&["dev"])?;
    for shape in FEW_BLOCKS.into_iter().chain(WHOLE) {
        let mut export = Command::new(&python);
        export.current_dir(root().join("export")).env("DBCACHE_TRT", &programs.command);
        export.arg("published/few_blocks.py").arg(shape).arg(graphs.join(shape));
        step(if FEW_BLOCKS.contains(&shape) { export.args(blocks) } else { &mut export })?;
    }
    Ok(())
}

/// ONNX Runtime's build for GPUs, with the device code of one architecture.
fn stage_libraries(programs: &Programs, wanted: Wanted, staged: &Path) -> Result<()> {
    step(Command::new(&programs.command).args(["setup", "--provider", "cuda"]))?;
    let output = Command::new(&programs.command).args(["setup", "--list"]).output()?;
    let installed = installed(&String::from_utf8_lossy(&output.stdout)).context("setup does not list `cuda`")?;
    let library = staged.join(LIBRARY);
    let folder = library.parent().context("the library has no folder")?;
    fs::create_dir_all(folder)?;
    fs::copy(installed.join(library.file_name().unwrap_or_default()), &library)?;
    fs::copy(installed.join(PROVIDER[1]), folder.join(PROVIDER[1]))?;
    let mut provider = fs::read(installed.join(PROVIDER[0]))?;
    let pruned = prune(&mut provider, wanted).with_context(|| PROVIDER[0].to_owned())?;
    fs::write(folder.join(PROVIDER[0]), provider)?;
    println!(
        "{}: {} containers of device code; {} entries of architecture {} kept, {} MB; {} entries that only language models use \
         and all other architectures left out; {} containers hold nothing for it",
        PROVIDER[0],
        pruned.containers,
        pruned.kept,
        wanted.architecture,
        megabytes(pruned.kept_bytes as u64),
        pruned.of_language_models,
        pruned.emptied,
    );
    Ok(())
}

/// The folder of CUDA's provider, as `setup --list` names it.
fn installed(list: &str) -> Option<PathBuf> {
    let line = list.lines().find(|line| line.starts_with("cuda "))?.strip_suffix(": installed")?;
    line.split_once(", /").map(|(_, path)| Path::new("/").join(path))
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        let to = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy(&path, &to)?;
        } else {
            fs::copy(&path, &to)?;
        }
    }
    Ok(())
}

/// Makes an archive of parts of a folder; the same files give the same bytes.
fn compress(folder: &Path, archive: &Path, parts: &[&str]) -> Result<()> {
    let mut tar =
        command("tar", &["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"]);
    // Machine code is what most of it is.
    tar.args(["--use-compress-program", "xz --threads=1 --x86 --lzma2=preset=7,dict=64MiB", "--file"]).arg(archive);
    step(tar.arg("--directory").arg(folder).args(parts))
}

/// Says what was packed.
///
/// # Errors
/// With the sizes of the parts, if they are more than the limit.
fn tell(asked: &Asked) -> Result<()> {
    let (mut lines, mut total) = (String::new(), 0);
    let mut names: Vec<PathBuf> = fs::read_dir(&asked.output)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    names.sort();
    for path in names {
        let bytes = path.metadata()?.len();
        total += bytes;
        lines += &format!("{bytes:>12}  {}\n", path.file_name().unwrap_or_default().to_string_lossy());
    }
    let output = asked.output.display();
    println!("\n{lines}{total:>12}  in all, of {} at most: {output}", asked.limit);
    let beside = total.saturating_sub(asked.output.join("data.tar.xz").metadata()?.len());
    println!("where this repository lies on the machine as well, data.tar.xz is not needed: {} MB", megabytes(beside));
    ensure!(
        total <= asked.limit,
        "the package has {total} bytes, more than {}: {}",
        asked.limit,
        lines.trim().replace('\n', ",")
    );
    Ok(())
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let asked = Asked::read(&words("--arch 80 --all-kernels --output a --limit 9 --double 3")).unwrap();
        assert_eq!((asked.wanted.architecture, asked.wanted.with_language_models), (80, true));
        assert_eq!((asked.output, asked.limit, asked.blocks), ("a".into(), 9, words("--double 3")));
        for (text, expected) in
            [("--arch", "lacks its value"), ("--arch sm_90", "takes a number"), ("x", "pack-gpu takes")]
        {
            let error = format!("{:#}", Asked::read(&words(text)).err().unwrap());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_package_that_is_too_large_is_refused_with_its_sizes() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in [("cuda.tar.xz", 30), ("data.tar.xz", 20)] {
            fs::write(folder.path().join(name), vec![0; bytes]).unwrap();
        }
        let mut asked = Asked::read(&[]).unwrap();
        (asked.output, asked.limit) = (folder.path().to_owned(), 49);
        let refusal = tell(&asked).unwrap_err().to_string();
        assert!(refusal.contains("50 bytes, more than 49: 30  cuda.tar.xz,"), "{refusal}");
        asked.limit = 50;
        tell(&asked).unwrap();
    }

    #[test]
    fn the_folder_of_the_provider_is_found_in_the_list() {
        let list =
            "cpu       1.31.1, 29.4 MB, /a/b: installed\ncuda      1.31.1-cuda13.0, 2.4 GB, /c, d/e: installed\n";
        assert_eq!(installed(list), Some("/c, d/e".into()));
        assert_eq!(installed("cuda      1.31.1, 2.4 GB, /c: not installed"), None);
    }
}
