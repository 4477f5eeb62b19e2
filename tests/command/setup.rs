//! The set-up with a tool of our own in the place of uv: nothing is fetched.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::common::shell::{Ran, Shell};

/// Writes a part of a package as uv does, twice, and fails.
const TOOL: &str = r#"#!/bin/sh
if [ "$1" = cache ]; then echo "$UV_CACHE_DIR"; exit; fi
folder=$UV_CACHE_DIR/.tmpnew/onnxruntime/capi
mkdir -p "$folder"
for part in 1 2; do
    head -c ${part}000000 /dev/zero > "$folder/libonnxruntime.so.1.31.1"
    sleep 0.5
done
echo "error: no network in this test"
exit 1
"#;

/// A file or a pipe gets lines, as before there was a bar, and nothing that moves a cursor.
#[cfg(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"))]
#[test]
fn without_a_terminal_no_bar_is_drawn() {
    let shell = Shell::new();
    let tool = shell.path("uv");
    fs::write(&tool, TOOL).unwrap();
    fs::set_permissions(&tool, PermissionsExt::from_mode(0o755)).unwrap();
    let path = std::env::join_paths(
        [shell.folder.path().to_owned()]
            .into_iter()
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    );
    let mut command = shell.command();
    command.args(["setup", "--provider", "cuda", "--via", "uv"]).env("PATH", path.unwrap());
    command.env("DBCACHE_TRT_HOME", shell.path("home")).env("UV_CACHE_DIR", shell.path("cache"));
    let ran =
        Ran::of(&mut command).code(3).stderr("cuda: 1.6 GB to download").stderr("uv: error: no network in this test");
    assert!(!ran.err.contains(['\r', '\u{1b}']), "{:?}", ran.err);
    let lines: Vec<&str> = ran.err.lines().collect();
    let begins = ["cuda: ", "[1/7] onnxruntime-gpu", "running uv ", "uv: error", "error: cannot fetch"];
    for (line, begin) in lines.iter().zip(begins) {
        assert!(line.starts_with(begin), "{lines:?}");
    }
}
