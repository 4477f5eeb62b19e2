//! `dbcache-trt builds` on a store that is written here by hand: its format is a promise to older and newer programs.

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

/// A store with builds for the devices `a` and `b`, used a day and ten days ago. Gives their keys.
fn store(folder: &Path) -> [String; 2] {
    for name in ["entries", "staging", "weights", "references", "timing", "locks"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    seal(&folder.join("dbcache-trt-builds.json"), &json!({ "holds": "builds" }));
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

fn builds(shell: &Shell, folder: &Path, arguments: &str) -> Ran {
    let all = format!("builds {arguments} --build-cache {}", folder.display());
    shell.run(&all.split_whitespace().collect::<Vec<_>>())
}

fn removed(report: &Value) -> Vec<String> {
    report["removed"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn lists_and_verifies() {
    let shell = Shell::new();
    let folder: PathBuf = shell.path("store");
    builds(&shell, &folder, "list").code(0).stdout("store: nothing is compiled yet");
    builds(&shell, &folder, "gc").code(0).stdout("nothing to remove");
    let missing = builds(&shell, &folder, "list --json").json();
    assert_eq!((missing["version"].clone(), missing["exists"].clone()), (json!(1), json!(false)));
    assert!(!folder.exists(), "looking makes no store");

    let [a, b] = store(&folder);
    builds(&shell, &folder, "list")
        .code(0)
        .stdout(&a[..12])
        .stdout("block_a.onnx for FakeProvider on a, built in 12.5 s, used 24 h ago")
        .stdout("used 10 days ago")
        .stdout("2 builds, 4.0 MB in");
    builds(&shell, &folder, "verify").code(0).stdout(&b[..12]);
    let list = builds(&shell, &folder, "verify --json").json();
    assert_eq!(list["builds"][0]["key"], json!(a));
    assert_eq!(list["builds"][0]["state"], "whole");
    assert_eq!(list["builds"][0]["record"]["ingredients"]["target"]["options"]["x"], "1");

    // One flipped byte: only reading all of it tells.
    let bin = folder.join("entries").join(&b).join("model.bin");
    let mut bytes = fs::read(&bin).unwrap();
    bytes[1_000_000] ^= 1;
    fs::write(&bin, bytes).unwrap();
    fs::create_dir(folder.join("entries/holiday")).unwrap();
    builds(&shell, &folder, "list").code(0).stdout("foreign: not a build, and left alone");
    builds(&shell, &folder, "verify")
        .code(8)
        .stdout("DAMAGED: model.bin does not have the SHA-256 with which it was built")
        .stderr("1 damaged in")
        .stderr("builds gc --verify");
    let list: Value = serde_json::from_str(&builds(&shell, &folder, "verify --json").code(8).out).unwrap();
    assert_eq!(list["builds"].as_array().unwrap().iter().filter(|build| build["state"] == "damaged").count(), 1);
    assert_eq!(removed(&builds(&shell, &folder, "gc --json").json()), Vec::<String>::new());
    assert_eq!(removed(&builds(&shell, &folder, "gc --verify --json").json()), [b]);
    builds(&shell, &folder, "verify").code(0);
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
        let report = builds(&shell, &folder, &format!("gc --dry-run --json {options}")).json();
        assert_eq!(removed(&report).iter().collect::<Vec<_>>(), expected, "{options}");
        assert_eq!(report["kept"], json!(2 - expected.len()), "{options}");
        assert_eq!(report["dry_run"], json!(true));
    }
    builds(&shell, &folder, &format!("gc --key {} --dry-run", &a[..8])).code(0).stdout("would remove").stdout("named");
    builds(&shell, &folder, "gc --max-age 5d").code(0).stdout("removed 1 (2.0 MB); 1 builds (2.0 MB) stay in");
    assert!(!folder.join("entries").join(&b).exists() && folder.join("entries").join(&a).exists());
}

#[test]
fn what_is_wrong_is_named() {
    let shell = Shell::new();
    let folder: PathBuf = shell.path("store");
    store(&folder);
    builds(&shell, &folder, "gc --max-age soon").code(2).stderr("expected a time, such as 3600, 90m, 12h or 30d");
    builds(&shell, &folder, "gc --max-size big").code(2).stderr("expected bytes");
    builds(&shell, &folder, "gc --key zzz").code(2).stderr("holds no build zzz");
    for place in [&folder, &shell.path("nowhere")] {
        builds(&shell, place, "gc --key=").code(2).stderr("'--key <KEY>': it is empty, and every key begins like that");
    }
    let help = shell.run(&["builds", "--help"]).code(0);
    help.stdout("builds whose files are incomplete").stdout("--verify").stdout("with a wrong byte");
    let home = shell.path("home");
    fs::create_dir(&home).unwrap();
    for command in ["list", "verify", "gc"] {
        builds(&shell, &home, command).code(2).stderr("home is not a build cache");
    }
    fs::write(folder.join("dbcache-trt-builds.json"), r#"{"version":2,"sha256":"","content":{"holds":""}}"#).unwrap();
    builds(&shell, &folder, "list").code(2).stderr("has version 2, this program reads 1");
}

#[test]
fn older_names_work_and_say_the_new_ones() {
    let shell = Shell::new();
    let folder: PathBuf = shell.path("store");
    let [a, _] = store(&folder);
    let place = folder.to_str().unwrap();
    let [command, flag] =
        ["note: engines is now builds\n", "note: --engine-cache is now --build-cache\n"].map(String::from);
    for (words, notes) in [
        (["builds", "list", "--build-cache", place], String::new()),
        (["engines", "list", "--build-cache", place], command.clone()),
        (["builds", "verify", "--engine-cache", place], flag.clone()),
        (["engines", "gc", "--engine-cache", place], command + &flag),
    ] {
        let ran = shell.run(&words).code(0);
        assert_eq!(ran.err, notes, "{words:?}");
        assert!(ran.out.contains(if words[1] == "gc" { "2 builds" } else { &a[..12] }), "{ran}");
    }
    for words in [&[][..], &["build"]] {
        let engine = crate::common::data("tiny-flux");
        let given = ["--engine", engine.to_str().unwrap(), "--engine-cache", place];
        shell
            .run(&[words, &given].concat())
            .code(2)
            .stderr(&flag)
            .stderr("--build-cache has no effect: the provider `cpu` compiles nothing");
    }
    shell.run(&["builds", "list", "--build-cache", "a", "--engine-cache", "b"]).code(2).stderr("cannot be used with");
    for words in [&["--help"][..], &["builds", "list", "--help"], &["build", "--help"]] {
        let help = shell.run(words).code(0);
        assert!(!help.out.contains("engine-cache") && !help.out.contains("  engines"), "{help}");
    }
}

#[test]
fn folders_of_older_versions_are_named() {
    const OLD: &str = "dbcache-trt-engines.json";
    let shell = Shell::new();
    let folder: PathBuf = shell.path("store");
    store(&folder);
    fs::rename(folder.join("dbcache-trt-builds.json"), folder.join(OLD)).unwrap();
    for command in ["list", "verify", "gc"] {
        builds(&shell, &folder, command)
            .code(2)
            .stderr("store holds builds of an older version of this program (dbcache-trt-engines.json)")
            .stderr("delete the folder, or name another one with --build-cache");
    }
    // The usual place had another name.
    let place = shell.path("place");
    fs::create_dir(&place).unwrap();
    fs::rename(&folder, place.join("engines")).unwrap();
    let mut command = shell.command();
    let ran = Ran::of(command.args(["builds", "list", "--json"]).env("DBCACHE_TRT_HOME", &place));
    let ran = ran.code(0).stderr("engines holds builds of an older version, which nothing uses any more; delete it");
    assert!(ran.out.contains("\"exists\": false"), "{ran}");
}

#[test]
fn what_cannot_be_built_is_named() {
    let shell = Shell::new();
    for (options, code, words) in [
        ("", 2, "--provider is `cpu`, which compiles nothing: there is nothing to build"),
        ("--provider tensorrt,cpu", 10, "the provider `tensorrt` cannot be used: "),
        ("--provider tensorrt,cpu", 10, "; and then: --provider is `cpu`, which compiles nothing: there is nothing"),
        ("--provider cuda,openvino,cpu", 10, "; and then: the provider `openvino` cannot be used: "),
        ("--provider webgpu,cpu", 2, "--provider is `webgpu`, which compiles nothing: there is nothing to build"),
        ("--provider cuda", 2, "those that compile are `tensorrt`, `tensorrt-rtx`, `openvino`"),
        ("--provider cuda --profile 16", 2, "--profile has no effect: the provider `cuda` compiles nothing"),
        ("--provider openvino --build-cache none", 2, "--build-cache is `none`: there is no place for what would be"),
        ("--provider openvino --require-built", 2, "--require-built has no effect on a build; leave it out"),
        ("--provider openvino --jobs 0", 2, "'--jobs <N>': expected a whole number from 1 to 256"),
        ("--provider openvino --jobs -1", 2, "'--jobs <N>': expected a whole number from 1 to 256"),
        (
            "--provider openvino --build-memory 1G",
            2,
            "--build-memory has no effect with --jobs 1, which makes one build",
        ),
        (
            "--provider openvino --jobs 2 --build-memory 0",
            2,
            "--build-memory is 0, in which no build fits; give the memory",
        ),
        ("--provider openvino --jobs 2 --build-memory -5G", 2, "--build-memory <BYTES>': expected bytes, such as"),
        ("--provider openvino --jobs 2 --build-memory 1T", 2, "--build-memory <BYTES>': expected bytes, such as"),
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
    shell.run(&["--help"]).code(0).stdout("  build ").stdout("  builds ");
}

#[test]
fn the_usual_place_is_in_the_cache_folder() {
    let shell = Shell::new();
    let list = |variable: &str, place: &Path| {
        let mut command = shell.command();
        command.args(["builds", "list", "--json"]).env_remove("DBCACHE_TRT_HOME").env(variable, place);
        Ran::of(&mut command).json()["folder"].as_str().unwrap().to_owned()
    };
    let place = shell.path("place");
    assert_eq!(list("DBCACHE_TRT_HOME", &place), place.join("builds").display().to_string());
    if cfg!(target_os = "linux") {
        assert_eq!(list("XDG_CACHE_HOME", &place), place.join("dbcache-trt/builds").display().to_string());
    }
}
