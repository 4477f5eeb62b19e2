//! The set-up with a tool of our own in the place of uv: nothing is fetched.

#![cfg(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"))]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::common::shell::{Ran, Shell};
use crate::common::wait_until;

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

/// A set-up of `cuda` with `tool` in the place of uv, in a home of its own.
fn set_up(shell: &Shell, tool: &str) -> Command {
    let path = shell.path("uv");
    fs::write(&path, tool).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let others = std::env::var_os("PATH").unwrap_or_default();
    let folders = [shell.folder.path().to_owned()].into_iter().chain(std::env::split_paths(&others));
    let mut command = shell.command();
    command.args(["setup", "--provider", "cuda", "--via", "uv"]).env("PATH", std::env::join_paths(folders).unwrap());
    command.env("DBCACHE_TRT_HOME", shell.path("home")).env("UV_CACHE_DIR", shell.path("cache"));
    command
}

/// A file or a pipe gets lines, as before there was a bar, and nothing that moves a cursor.
#[test]
fn without_a_terminal_no_bar_is_drawn() {
    let shell = Shell::new();
    let mut command = set_up(&shell, TOOL);
    let ran =
        Ran::of(&mut command).code(3).stderr("cuda: 1.6 GB to download").stderr("uv: error: no network in this test");
    assert!(!ran.err.contains(['\r', '\u{1b}']), "{:?}", ran.err);
    let lines: Vec<&str> = ran.err.lines().collect();
    let begins = ["cuda: ", "[1/7] onnxruntime-gpu", "running uv ", "uv: error", "error: cannot fetch"];
    for (line, begin) in lines.iter().zip(begins) {
        assert!(line.starts_with(begin), "{lines:?}");
    }
}

/// The tool runs for longer than the test, and is ended with the set-up.
#[test]
fn a_signal_ends_it_and_it_says_how_to_go_on() {
    for signal in ["-INT", "-TERM"] {
        let shell = Shell::new();
        let mut command = set_up(
            &shell,
            "#!/bin/sh\nif [ \"$1\" = cache ]; then exit 1; fi\necho $$ > $UV_CACHE_DIR.pid\nexec sleep 3000\n",
        );
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_until("the tool runs", || fs::read_to_string(shell.path("cache.pid")).is_ok_and(|id| id.ends_with('\n')));
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let ran = Ran::new(&command, child.wait_with_output().unwrap()).code(130);
        assert!(ran.err.contains("running uv") && !ran.err.contains('\r'), "{ran}");
        ran.stderr("error: cancelled; what was fetched stays, and the same command goes on from there");
        let tool = fs::read_to_string(shell.path("cache.pid")).unwrap();
        // A process that has ended and that nobody has waited for yet has no command line.
        let words = || fs::read(format!("/proc/{}/cmdline", tool.trim())).unwrap_or_default();
        wait_until("the tool has ended", || words().is_empty());
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error_that_names_the_variable() {
    let shell = Shell::new();
    fs::write(shell.path("home"), "a file").unwrap();
    Ran::of(&mut set_up(&shell, TOOL)).code(9).stderr("set DBCACHE_TRT_HOME to a folder that you can write");
}
