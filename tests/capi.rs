//! The C library: its test programs, what it exports, and the same request through every face.
#![cfg(unix)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use common::capi::{Capi, With, runtime};
use common::damage::Copy;
use common::{data, emoji};
use dbcache_trt::{Engine, EngineOptions, Image, Inputs, RequestOptions};
use serde_json::Value;
use tempfile::TempDir;

static CAPI: LazyLock<Capi> = LazyLock::new(Capi::build);

/// Builds and runs one of the test programs with what it needs. Gives the folder to which it wrote.
fn program(source: &str) -> TempDir {
    let with = With::asked();
    let binary = CAPI.compile(source, with);
    let few_blocks = Copy::few_blocks();
    let folder = tempfile::tempdir().unwrap();
    let engines = [data("tiny-flux"), few_blocks.folder.path().to_owned(), data("tiny-video/engine")];
    let [tiny, emoji, video] = &engines;
    let said = CAPI.run(&binary, &[&runtime(), tiny, emoji, video, folder.path()], with);
    assert!(said.ends_with(": ok\n"), "{said}");
    folder
}

/// Programs in C, which `cargo xtask check-capi` also runs under sanitizers and valgrind.
mod programs {
    use super::*;

    #[test]
    fn every_error_path() {
        program("capi/tests/c/errors.c");
    }

    #[test]
    fn requests_from_start_to_end() {
        program("capi/tests/c/lifecycle.c");
    }

    #[test]
    fn hosts_that_own_the_loop() {
        program("capi/tests/c/stepwise.c");
    }

    #[test]
    fn what_hosts_hear() {
        program("capi/tests/c/logs.c");
    }

    /// What the program wrote tells the seed of its video, not of a frame.
    #[test]
    fn results_that_are_videos() {
        let folder = program("capi/tests/c/video.c");
        let frame = |name: &str| Image::read_png(&folder.path().join(name)).unwrap();
        for (name, seed) in [("first_0000.png", "40"), ("first_0008.png", "40"), ("second/frame_0008.png", "41")] {
            let (image, text) = frame(name);
            assert_eq!((image.width, image.height), (128, 128), "{name}");
            assert!(text.contains(&("seed".to_owned(), seed.to_owned())), "{name}: {text:?}");
        }
        assert_eq!(frame("second.png").0, frame("second/frame_0000.png").0);
        assert!(folder.path().join("first.gif").is_file());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1 + 9 + 1 + 1);
    }

    #[test]
    fn ends_of_processes() {
        program("capi/tests/c/ends.c");
    }

    #[test]
    fn hosts_that_load_the_library_again() {
        program("capi/tests/c/reload.c");
    }

    #[test]
    fn systems_without_threads() {
        program("capi/tests/c/threads.c");
    }

    #[test]
    fn hosts_that_use_onnx_runtime_themselves() {
        program("capi/tests/c/host.c");
    }

    #[test]
    fn the_wrapper_for_cpp() {
        program("capi/tests/c/wrapper.cpp");
    }
}

/// The frozen list; a change of it is a change of the interface, which tests/abi.rs of `capi` asks a new version for.
#[test]
fn exactly_the_listed_symbols_are_exported() {
    let listed = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("capi/abi/symbols.txt")).unwrap();
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(&CAPI.shared).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let mut exported: Vec<&str> = output.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    exported.sort_unstable();
    assert_eq!(exported, listed.lines().collect::<Vec<_>>());
    let named = Command::new("objdump").arg("-p").arg(&CAPI.shared).output().unwrap();
    assert!(String::from_utf8_lossy(&named.stdout).contains("libdbcache_trt.so."), "no soname");
}

/// Steps, decisions, reasons, and the bits of diffs: everything of a trace but times.
fn facts(trace: &Value) -> Vec<Vec<Value>> {
    let names = ["step", "branch", "sample", "sigma", "action", "reason", "diff", "threshold", "blocks", "blocks_run"];
    let records = trace["records"].as_array().unwrap();
    records.iter().map(|record| names.iter().map(|name| record[name].clone()).collect()).collect()
}

/// A text without its values: lists and objects with their names.
fn shape(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(shape).collect(),
        Value::Object(members) => members.iter().map(|(name, member)| (name.clone(), shape(member))).collect(),
        _ => Value::Null,
    }
}

/// The same request through the command, Rust, C and C++: the same picture file, trace and decisions, to the bit.
#[test]
fn every_face_makes_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (engine, cache) = (emoji(), "f1b0w2r0.3");

    let mut command = Command::new(env!("CARGO_BIN_EXE_dbcache-trt"));
    command.arg("--engine").arg(&engine).args(["--prompt", "lemon", "--cache", cache]);
    command.arg("-o").arg(path("command.png")).arg("--trace").arg(path("command.json"));
    assert!(command.output().unwrap().status.success());
    let of_command: Value = serde_json::from_slice(&fs::read(path("command.json")).unwrap()).unwrap();

    let loaded = Engine::load(&engine, &EngineOptions::default()).unwrap();
    let options = RequestOptions { cache: cache.parse().unwrap(), ..RequestOptions::default() };
    let inputs = Inputs::prompt("lemon");
    let output = loaded.request(&inputs, &options).unwrap().run(&mut ()).unwrap();
    output.images[0].write_png(&path("rust.png"), &output.trace.picture_metadata(&inputs, 0)).unwrap();

    let mut said = BTreeMap::new();
    for source in ["examples/generate.c", "examples/generate.cpp"] {
        let ending = source.rsplit('.').next().unwrap();
        let binary = CAPI.compile(source, With::Nothing);
        let picture = path(&format!("{ending}.png"));
        let trace = path(&format!("{ending}.json"));
        let mut program = Command::new(&binary);
        program.arg(&engine).args(["lemon", cache]).args([&picture, &trace]).env("ORT_DYLIB_PATH", runtime());
        let output = program.output().unwrap();
        assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
        said.insert(ending, String::from_utf8(output.stdout).unwrap());
        assert!(fs::read(&picture).unwrap() == fs::read(path("command.png")).unwrap(), "{source}");
        let text = fs::read_to_string(trace).unwrap();
        let trace: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(facts(&trace[0]), facts(&of_command[0]), "{source}");
        assert_eq!(shape(&trace), shape(&of_command), "{source}");
        assert!(text.starts_with("[\n  {\n    \"version\": 2,\n"), "{source}: laid out as the command does");
    }
    assert!(fs::read(path("rust.png")).unwrap() == fs::read(path("command.png")).unwrap());
    assert_eq!(facts(&output.trace.to_json()), facts(&of_command[0]));
    assert!(output.trace.skipped() > 0);
    // The programs are the same, too: they print the same but for times.
    let steps =
        |text: &str| text.lines().filter(|line| line.starts_with("step ")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(steps(&said["c"]).len(), output.trace.records.len());
    assert_eq!(steps(&said["c"]), steps(&said["cpp"]));
}

#[test]
fn a_host_with_its_own_loop() {
    let binary = CAPI.compile("examples/own_loop.c", With::Nothing);
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("own.png");
    let mut program = Command::new(binary);
    program.arg(emoji()).args(["lemon", "f1b0w2r0.3", "2"]).arg(&picture).env("ORT_DYLIB_PATH", runtime());
    let output = program.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("uncond "));
    let loaded = Engine::load(emoji(), &EngineOptions::default()).unwrap();
    let options =
        RequestOptions { cache: "f1b0w2r0.3".parse().unwrap(), guidance: Some(2.0), ..RequestOptions::default() };
    let whole = loaded.request(&Inputs::prompt("lemon"), &options).unwrap().run(&mut ()).unwrap();
    let (own, _) = Image::read_png(&picture).unwrap();
    assert!(own.psnr(&whole.images[0]).unwrap() > 55.0);
}
