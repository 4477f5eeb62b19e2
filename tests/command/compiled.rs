//! `dbcache-trt engines` on a store that is written here by hand: its format is a promise to older and newer programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::common::shell::{Ran, Shell};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A record with its checksum.
fn seal(path: &Path, content: &Value) {
    let checksum = sha256(&serde_json::to_vec(content).unwrap());
    let sealed = json!({ "version": 1, "sha256": checksum, "content": content });
    fs::write(path, serde_json::to_vec_pretty(&sealed).unwrap()).unwrap();
}

/// A store with engines for the devices `a` and `b`, used a day and ten days ago. Gives their keys.
fn store(folder: &Path) -> [String; 2] {
    for name in ["entries", "staging", "weights", "references", "timing", "locks"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    seal(&folder.join("dbcache-trt-engines.json"), &json!({ "holds": "engines" }));
    [("a", 1), ("b", 10)].map(|(device, days)| {
        let ingredients = json!({
            "key_version": 1,
            "graph": sha256(b"graph"),
            "weights": sha256(b"weights"),
            "profiles": { "image": [64, 256, 1024] },
            "target": {
                "provider": "FakeProvider", "options": { "x": "1" }, "session": {}, "onnxruntime": "1.31.1",
                "sdk": "1", "driver": "", "device": device,
            },
        });
        let key = sha256(&serde_json::to_vec(&ingredients).unwrap());
        let entry = folder.join("entries").join(&key);
        fs::create_dir(&entry).unwrap();
        fs::write(entry.join("model.onnx"), "model").unwrap();
        fs::write(entry.join("model.bin"), vec![7; 2_000_000]).unwrap();
        let file = |name: &str| {
            let bytes = fs::read(entry.join(name)).unwrap();
            json!({ "file": name, "bytes": bytes.len(), "sha256": sha256(&bytes) })
        };
        let record = json!({
            "key": key, "name": format!("block_{device}.onnx"), "ingredients": ingredients, "model": "model.onnx",
            "files": [file("model.bin"), file("model.onnx")],
            "created_s": 1_700_000_000, "build_seconds": 12.5, "built_by": "dbcache-trt 0.1.0",
        });
        seal(&entry.join("record.json"), &record);
        let file = fs::File::options().append(true).open(entry.join("record.json")).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(86_400 * days + 60)).unwrap();
        key
    })
}

fn engines(shell: &Shell, folder: &Path, arguments: &str) -> Ran {
    let all = format!("engines {arguments} --engine-cache {}", folder.display());
    shell.run(&all.split_whitespace().collect::<Vec<_>>())
}

fn removed(report: &Value) -> Vec<String> {
    report["removed"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn lists_and_verifies() {
    let shell = Shell::new();
    let folder: PathBuf = shell.path("store");
    engines(&shell, &folder, "list").code(0).stdout("store: nothing is compiled yet");
    engines(&shell, &folder, "gc").code(0).stdout("removed 0");
    let missing = engines(&shell, &folder, "list --json").json();
    assert_eq!((missing["version"].clone(), missing["exists"].clone()), (json!(1), json!(false)));
    assert!(!folder.exists(), "looking makes no store");

    let [a, b] = store(&folder);
    engines(&shell, &folder, "list")
        .code(0)
        .stdout(&a[..12])
        .stdout("block_a.onnx for FakeProvider on a, built in 12.5 s, used 24 h ago")
        .stdout("used 10 days ago")
        .stdout("2 engines, 4.0 MB in");
    engines(&shell, &folder, "verify").code(0).stdout(&b[..12]);
    let list = engines(&shell, &folder, "verify --json").json();
    assert_eq!(list["engines"][0]["key"], json!(a));
    assert_eq!(list["engines"][0]["state"], "whole");
    assert_eq!(list["engines"][0]["record"]["ingredients"]["target"]["options"]["x"], "1");

    // One flipped byte: only reading all of it tells.
    let bin = folder.join("entries").join(&b).join("model.bin");
    let mut bytes = fs::read(&bin).unwrap();
    bytes[1_000_000] ^= 1;
    fs::write(&bin, bytes).unwrap();
    fs::create_dir(folder.join("entries/holiday")).unwrap();
    engines(&shell, &folder, "list").code(0).stdout("foreign: not an engine, and left alone");
    engines(&shell, &folder, "verify")
        .code(8)
        .stdout("DAMAGED: model.bin does not have the SHA-256 with which it was built")
        .stderr("1 damaged in")
        .stderr("engines gc --verify");
    let list: Value = serde_json::from_str(&engines(&shell, &folder, "verify --json").code(8).out).unwrap();
    assert_eq!(list["engines"].as_array().unwrap().iter().filter(|engine| engine["state"] == "damaged").count(), 1);
    assert_eq!(removed(&engines(&shell, &folder, "gc --json").json()), Vec::<String>::new());
    assert_eq!(removed(&engines(&shell, &folder, "gc --verify --json").json()), [b]);
    engines(&shell, &folder, "verify").code(0);
}

#[test]
fn collects() {
    let shell = Shell::new();
    let folder: PathBuf = shell.path("store");
    let [a, b] = store(&folder);
    for (options, expected) in [
        ("--max-age 5d", vec![&b]),
        ("--max-age 1h", vec![&a, &b]),
        ("--max-age 30d", vec![]),
        ("--max-size 3M", vec![&b]),
        ("--max-size 1G", vec![]),
        ("--unreferenced", vec![&a, &b]),
        ("", vec![]),
    ] {
        let report = engines(&shell, &folder, &format!("gc --dry-run --json {options}")).json();
        assert_eq!(removed(&report).iter().collect::<Vec<_>>(), expected, "{options}");
        assert_eq!(report["kept"], json!(2 - expected.len()), "{options}");
        assert_eq!(report["dry_run"], json!(true));
    }
    engines(&shell, &folder, &format!("gc --key {} --dry-run", &a[..8])).code(0).stdout("would remove").stdout("named");
    engines(&shell, &folder, "gc --max-age 5d").code(0).stdout("removed 1 (2.0 MB); 1 engines (2.0 MB) stay in");
    assert!(!folder.join("entries").join(&b).exists() && folder.join("entries").join(&a).exists());
}

#[test]
fn what_is_wrong_is_named() {
    let shell = Shell::new();
    let folder: PathBuf = shell.path("store");
    store(&folder);
    engines(&shell, &folder, "gc --max-age soon").code(2).stderr("expected a time, such as 3600, 90m, 12h or 30d");
    engines(&shell, &folder, "gc --max-size big").code(2).stderr("expected bytes");
    engines(&shell, &folder, "gc --key zzz").code(2).stderr("holds no engine zzz");
    for place in [&folder, &shell.path("nowhere")] {
        engines(&shell, place, "gc --key=")
            .code(2)
            .stderr("'--key <KEY>': it is empty, and every key begins like that");
    }
    let help = shell.run(&["engines", "--help"]).code(0);
    help.stdout("engines whose files are incomplete").stdout("--verify").stdout("with a wrong byte");
    let home = shell.path("home");
    fs::create_dir(&home).unwrap();
    for command in ["list", "verify", "gc"] {
        engines(&shell, &home, command).code(2).stderr("home is not an engine cache");
    }
    fs::write(folder.join("dbcache-trt-engines.json"), r#"{"version":2,"sha256":"","content":{"holds":""}}"#).unwrap();
    engines(&shell, &folder, "list").code(2).stderr("has version 2, this program reads 1");
}

#[test]
fn what_cannot_be_built_is_named() {
    let shell = Shell::new();
    for (options, code, words) in [
        ("", 2, "--provider is `cpu`, which compiles no engines: there is nothing to build"),
        ("--provider tensorrt,cpu", 10, "the provider `tensorrt` cannot be used: "),
        ("--provider tensorrt,cpu", 10, "; and then: --provider is `cpu`, which compiles no engines: there is nothing"),
        ("--provider cuda,openvino,cpu", 10, "; and then: the provider `openvino` cannot be used: "),
        ("--provider webgpu,cpu", 2, "--provider is `cpu`, which compiles no engines: there is nothing to build"),
        ("--provider cuda --profile 16", 2, "--profile has no effect: the provider `cuda` compiles no engines"),
        ("--provider openvino --engine-cache none", 2, "--engine-cache is `none`: there is no place for what would be"),
        ("--provider openvino --require-built", 2, "--require-built has no effect on a build; leave it out"),
        ("--provider openvino --jobs 0", 2, "--jobs is 0; expected 1 to 256"),
        ("--provider openvino --profile a", 2, "the profile `a` does not parse"),
        ("--provider openvino --cache f99b0", 2, "more than the model's 12 blocks"),
        ("--provider openvino:library=nowhere.so", 10, "nowhere.so"),
        ("--engine nowhere --provider openvino", 4, "does not exist; name a folder"),
    ] {
        let engine = crate::common::data("tiny-flux");
        let engine =
            if options.contains("--engine ") { String::new() } else { format!("--engine {}", engine.display()) };
        let all = format!("build {engine} {options}");
        shell.run(&all.split_whitespace().collect::<Vec<_>>()).code(code).stderr(words);
    }
    assert!(!shell.path("nowhere").exists());
    shell.run(&["--help"]).code(0).stdout("build").stdout("engines");
}

#[test]
fn the_usual_place_is_in_the_cache_folder() {
    let shell = Shell::new();
    let list = |variable: &str, place: &Path| {
        let mut command = shell.command();
        command.args(["engines", "list", "--json"]).env_remove("DBCACHE_TRT_HOME").env(variable, place);
        Ran::of(&mut command).json()["folder"].as_str().unwrap().to_owned()
    };
    let place = shell.path("place");
    assert_eq!(list("DBCACHE_TRT_HOME", &place), place.join("engines").display().to_string());
    if cfg!(target_os = "linux") {
        assert_eq!(list("XDG_CACHE_HOME", &place), place.join("dbcache-trt/engines").display().to_string());
    }
}
