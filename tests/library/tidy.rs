//! Rules of ARCHITECTURE.md that a text search can check, and tables that must stay in step with the code.

use std::fs;
use std::path::{Path, PathBuf};

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file under a folder, with the code before its unit tests.
pub fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.ends_with("tests.rs") {
                // Unit tests in a file of their own.
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                let code = code.split("#[cfg(all(test").next().unwrap_or_default().to_owned();
                found.push((path, code));
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), &mut found);
    assert!(!found.is_empty(), "{folder}");
    found
}

/// Fails if a line of code (no comment) of `folder` holds one of the words; `allowed` are parts of paths.
fn forbid(folder: &str, words: &[&str], allowed: &[&str]) {
    for (path, code) in sources(folder) {
        if allowed.iter().any(|part| path.to_string_lossy().contains(part)) {
            continue;
        }
        for (number, line) in code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            if let Some(word) = words.iter().find(|word| line.contains(*word)) {
                panic!("{}:{}: `{word}` has no place here: {line}", path.display(), number + 1);
            }
        }
    }
}

#[test]
fn onnx_runtime_is_touched_only_in_runtime() {
    forbid("src", &["ort::"], &["src/runtime/"]);
}

#[test]
fn policies_see_scalars_only() {
    forbid(
        "src/cache",
        &["std::fs", "std::time", "Instant", "ndarray", "rand::", "rand_", "crate::runtime", "crate::generate"],
        &[],
    );
}

/// Words of families. A family is a file of the exporter; the engine knows concepts only.
const FAMILIES: [&str; 14] = [
    "flux",
    "flux2",
    "cogvideo",
    "cogvideox",
    "mochi",
    "emoji",
    "sd3",
    "qwen",
    "wan",
    "hunyuan",
    "ltx",
    "pixart",
    "dit",
    "zimage",
];

#[test]
fn no_model_family_is_named() {
    for (path, code) in sources("src") {
        for (number, line) in code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            // `cache-dit` is the reference, and a preset.
            let line = line.to_lowercase().replace("cache-dit", "").replace("cache_dit", "");
            let mut words = line.split(|c: char| !c.is_alphanumeric());
            if let Some(word) = words.find(|word| FAMILIES.contains(word)) {
                panic!("{}:{}: `{word}` is a family: {line}", path.display(), number + 1);
            }
        }
    }
}

/// As long as a reader scrolls: without its unit tests.
const FILE_LINES: usize = 400;

#[test]
fn files_stay_short() {
    for folder in ["src", "capi/src"] {
        for (path, code) in sources(folder) {
            let lines = code.lines().count();
            assert!(lines <= FILE_LINES, "{} has {lines} lines; divide it", path.display());
        }
    }
}

/// A host has no flags: texts of the library say "the option `name`", and the command spells that (src/cli/remedy.rs).
#[test]
fn the_library_names_no_flags() {
    // The command line of package tools.
    let allowed = ["src/cli/", "src/main.rs", "src/setup/tools.rs"];
    for (path, code) in sources("src") {
        if allowed.iter().any(|part| path.to_string_lossy().contains(part)) {
            continue;
        }
        for (number, line) in code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            let is_flag = |at: usize| line[at + 2..].starts_with(|c: char| c.is_ascii_lowercase() || c == '{');
            // The exporter and the set-up are commands, and have no other face.
            let is_command = ["dbcache-export", "dbcache-trt setup"].iter().any(|command| line.contains(command));
            let found = line.match_indices("--").any(|(at, _)| is_flag(at)) && !is_command;
            assert!(!found, "{}:{}: a flag in the library: {line}", path.display(), number + 1);
        }
    }
}

#[test]
fn the_library_prints_nothing() {
    forbid("src", &["println!", "print!(", "eprint", "dbg!", "process::exit"], &["src/cli/", "src/main.rs"]);
}

#[test]
fn the_readme_has_figures() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, rest) = readme.split_once("<!-- figures: begin -->").unwrap();
    let (figures, _) = rest.split_once("<!-- figures: end -->").unwrap();
    assert!(figures.contains("Measured on") && figures.contains("| `f8b16` |"), "run the figures example with --write");
    assert!(root().join("docs/grid.png").is_file());
}

#[test]
fn architecture_stays_short() {
    let lines = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap().lines().count();
    assert!(lines <= 200, "{lines}");
}
