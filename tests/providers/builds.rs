//! Builds with a real compiler: OpenVINO's plugin on the CPU. `cargo xtask check-openvino` installs the plugin and
//! runs these; elsewhere they are ignored.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

#[cfg(unix)]
use crate::common::capi::{Capi, With, runtime};
use crate::common::damage::{Copy, WEIGHTS};
use crate::common::shell::{Ran, Shell};
use crate::common::{copy_files, data, relative_l1, tiny_inputs, wait_until};
use dbcache_trt::{BuildCache, Engine, EngineOptions, RequestOptions, write_tensors};
use serde_json::Value;

/// Two compilers that compute in f32 agree as well as two machines do; the decisions below have margins that are larger.
const LATENT_RELATIVE_L1: f64 = 1e-4;
const CACHE: &str = "--cache f1b1w2r0.5";

/// OpenVINO, with its plugin where `cargo xtask check-openvino` put it.
fn openvino() -> String {
    std::env::var("DBCACHE_TEST_PROVIDER").expect("DBCACHE_TEST_PROVIDER is openvino:library=FILE")
}

/// A shell with a cache of builds of its own.
struct Compiled {
    shell: Shell,
    store: PathBuf,
}

impl Compiled {
    fn new() -> Self {
        let shell = Shell::new();
        let store = shell.path("builds");
        Self { shell, store }
    }

    fn on(&self) -> String {
        format!("--provider {} --build-cache {}", openvino(), self.store.display())
    }

    fn lemon(&self, options: &str) -> Ran {
        self.shell.lemon(&format!("--weights-mode packed --steps 8 {CACHE} {} {options}", self.on()))
    }

    fn tiny(&self, options: &str) -> Ran {
        let steps = if options.contains("--steps") { "" } else { "--steps 6" };
        self.shell.tiny(&format!("{steps} {} {options}", self.on()))
    }

    fn run(&self, all: &str) -> Ran {
        self.shell.run(&all.split_whitespace().collect::<Vec<_>>())
    }

    /// Compiled and loaded, as the trace of this name says.
    fn counts(&self, trace: &str) -> (u64, u64) {
        let builds = &self.shell.json(trace)[0]["builds"];
        (builds["built"].as_u64().unwrap(), builds["loaded"].as_u64().unwrap())
    }

    fn decisions(&self, trace: &str) -> Value {
        self.shell.json(trace)[0]["decisions"].clone()
    }

    fn build(&self, engine: &Path, options: &str) -> Ran {
        self.run(&format!("build --engine {} {} {options}", engine.display(), self.on()))
    }

    fn entries(&self) -> BTreeSet<String> {
        names(&self.store.join("entries"))
    }

    /// Name and folder of each build, in the order of their names.
    fn builds(&self) -> Vec<(String, PathBuf)> {
        let list = self.run(&format!("builds list --json --build-cache {}", self.store.display())).json();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let build =
            |entry: &Value| (text(&entry["record"]["name"]), self.store.join("entries").join(text(&entry["key"])));
        list["builds"].as_array().unwrap().iter().map(build).collect()
    }
}

fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
#[ignore = "needs OpenVINO's plugin: cargo xtask check-openvino"]
fn what_is_reloaded_decides_and_draws_the_same() {
    let compiled = Compiled::new();
    let plain = compiled.shell.lemon(&format!("--steps 8 {CACHE} -o cpu.png --save-latents cpu --trace cpu.json"));
    plain.code(0);
    compiled.lemon("-o first.png --save-latents first --trace first.json").code(0).stdout("0 loaded from the cache");
    compiled.lemon("-o again.png --save-latents again --trace again.json").code(0).stdout("0 compiled in 0.0 s");

    let (built, loaded) = compiled.counts("first.json");
    assert!(built >= 4 && loaded == 0, "{built} {loaded}");
    assert_eq!(compiled.counts("again.json"), (0, built), "a second start compiles nothing");
    assert_eq!(compiled.entries().len() as u64, built);
    assert_eq!(compiled.decisions("first.json"), compiled.decisions("cpu.json"));
    assert_eq!(compiled.decisions("again.json"), compiled.decisions("cpu.json"));
    assert!(compiled.decisions("cpu.json")["cond"].as_str().unwrap().contains('S'), "the case must skip something");
    assert_eq!(compiled.shell.latents("first"), compiled.shell.latents("again"));
    let error = relative_l1(&compiled.shell.latents("again"), &compiled.shell.latents("cpu"));
    assert!(error <= LATENT_RELATIVE_L1, "{error:e}");
    assert!(compiled.shell.image("again.png").psnr(&compiled.shell.image("cpu.png")).unwrap() > 50.0);
    compiled.run(&format!("builds verify --build-cache {}", compiled.store.display())).code(0);
}

#[test]
#[ignore = "needs OpenVINO's plugin: cargo xtask check-openvino"]
fn a_build_ahead_of_time_leaves_nothing_to_compile() {
    let compiled = Compiled::new();
    let refused = compiled.tiny(&format!("{CACHE} --require-built")).code(11);
    let count: usize = refused.err.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(refused.err.contains(&format!("{count} of {count} builds are missing (")), "{refused}");
    let (_, command) = refused.err.split_once("compile with `dbcache-trt ").unwrap();
    let (command, _) = command.split_once('`').unwrap();
    assert!(compiled.entries().is_empty());

    // The command of the message is the one that helps.
    compiled.run(command).code(0).stdout(&format!("[{count}/{count}]")).stdout("0 found, 0 failed");
    compiled.tiny(&format!("{CACHE} --require-built --trace a.json")).code(0);
    assert_eq!(compiled.counts("a.json"), (0, count as u64));
    let again = compiled.build(&data("tiny-flux"), &format!("{CACHE} --jobs 3 --json")).json();
    assert_eq!((again["built"].as_u64(), again["found"].as_u64()), (Some(0), Some(count as u64)));
    // Another policy has most of its stages in common with this one.
    compiled.tiny("--cache f2b0w2r0.5 --require-built").code(11).stderr("builds are missing");
    let more = compiled.build(&data("tiny-flux"), "--cache f2b0w2r0.5 --json").json();
    assert!(more["found"].as_u64().unwrap() >= 1 && more["built"].as_u64().unwrap() >= 1, "{more}");

    let options = EngineOptions {
        provider: openvino().parse().unwrap(),
        build_cache: BuildCache::Folder(compiled.store.clone()),
        cache: "f1b1w2r0.5".parse().unwrap(),
        ..EngineOptions::default()
    };
    let engine = Engine::load(data("tiny-flux"), &options).unwrap();
    let counts = engine.info().builds.unwrap();
    assert_eq!((counts.built, counts.loaded), (0, count));
    let options = RequestOptions { steps: Some(2), ..RequestOptions::default() };
    engine.request(&tiny_inputs(false), &options).unwrap().run(&mut ()).unwrap();
}

#[test]
#[ignore = "needs OpenVINO's plugin: cargo xtask check-openvino"]
fn memory_bounds_how_many_builds_are_made_at_once() {
    let tiny = data("tiny-flux");
    for (bound, is_too_small) in [("1M", true), ("100G", false)] {
        let compiled = Compiled::new();
        let built = compiled.build(&tiny, &format!("{CACHE} --jobs 3 --json --build-memory {bound}")).code(0);
        let report: Value = serde_json::from_str(&built.out).unwrap();
        let builds = report["builds"].as_array().unwrap();
        let warnings = built.err.matches("more than the 1.0 MB of --build-memory; so it runs alone").count();
        assert_eq!(warnings, if is_too_small { builds.len() } else { 0 }, "{built}");
        assert_eq!(
            (report["built"].as_u64(), built.err.is_empty()),
            (Some(builds.len() as u64), !is_too_small),
            "{built}"
        );
        let weights: u64 = builds.iter().map(|build| build["weight_bytes"].as_u64().unwrap()).sum();
        assert!(weights > 100_000, "{report}");
        if cfg!(unix) {
            assert!(builds.iter().all(|build| build["peak_bytes"].as_u64().unwrap() > 10_000_000), "{report}");
        }
        let again = compiled.build(&tiny, &format!("{CACHE} --json")).json();
        assert!(again["builds"].as_array().unwrap().iter().all(|build| build["peak_bytes"].is_null()), "{again}");
    }
    let compiled = Compiled::new();
    let built = compiled.build(&tiny, CACHE).code(0);
    assert!(!cfg!(unix) || built.out.contains(" s, peak memory "), "{built}");
}

/// A build that another option of the provider was given for is not used, and that is said.
#[test]
#[ignore = "needs OpenVINO's plugin: cargo xtask check-openvino"]
fn a_build_for_something_else_is_refused_by_name() {
    let compiled = Compiled::new();
    let tiny = data("tiny-flux");
    let on = |options: &str, more: &str| {
        let store = compiled.store.display();
        compiled
            .shell
            .tiny(&format!("--steps 6 --provider {}{options} --build-cache {store} {CACHE} {more}", openvino()))
    };
    compiled.build(&tiny, &format!("{CACHE} --profile 8..16")).code(0);
    let refused = on("", "--require-built").code(11);
    let profile = "; the cache holds them for the profile `batch=1, image=16..64, usually 64, text=1..512, ";
    assert!(
        refused.err.contains(profile) && refused.err.contains("`; this one is `any batch, any image, "),
        "{refused}"
    );

    on("", "").code(0).stdout("builds are missing: the cache holds them for the profile `");
    assert!(!on("", "").code(0).out.contains("builds are missing"), "now they are there");
    let refused = on(",threads=1", "--require-built").code(11);
    assert!(refused.err.contains("the cache holds them for the provider's settings `"), "{refused}");
    let noted = compiled.run(&format!(
        "build --engine {} --provider {},threads=1 --build-cache {} {CACHE} --json",
        tiny.display(),
        openvino(),
        compiled.store.display()
    ));
    let report: Value = serde_json::from_str(&noted.out).unwrap();
    let held_for = report["builds"][0]["held_for"].as_str().unwrap();
    assert!(held_for.starts_with("for the provider's settings `"), "{held_for}");
    assert!(noted.err.contains(&format!("builds are missing: the cache holds them {held_for}")), "{noted}");
}

#[test]
#[ignore = "needs OpenVINO's plugin: cargo xtask check-openvino"]
fn damaged_builds_are_made_again() {
    type Damage = fn(&Path, &Path);
    const BIN: &str = "model_OpenVINOExecutionProvider.bin";
    fn flip(path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    let damages: &[(Damage, &str)] = &[
        (|entry, _| flip(&entry.join(BIN)), "does not have the SHA-256 with which it was built"),
        (|entry, _| flip(&entry.join("model.onnx")), "model.onnx does not have the SHA-256"),
        (
            |entry, _| {
                let bytes = fs::read(entry.join(BIN)).unwrap();
                fs::write(entry.join(BIN), &bytes[..bytes.len() / 2]).unwrap();
            },
            "bytes instead of",
        ),
        (|entry, _| fs::remove_file(entry.join(BIN)).unwrap(), "cannot be opened"),
        (|entry, _| fs::remove_file(entry.join("record.json")).unwrap(), "record.json cannot be opened"),
        (
            |entry, other| {
                for name in names(entry) {
                    fs::copy(other.join(&name), entry.join(&name)).unwrap();
                }
            },
            "under another name",
        ),
        (|entry, other| assert!(fs::copy(other.join(BIN), entry.join(BIN)).unwrap() > 0), BIN),
    ];
    let compiled = Compiled::new();
    compiled.tiny(&format!("{CACHE} --save-latents good")).code(0);
    let builds = compiled.builds();
    let [(name, entry), (_, other), ..] = &builds[..] else { panic!("{builds:?}") };
    let rest = builds.len() as u64 - 1;
    for (damage, reason) in damages {
        damage(entry, other);
        compiled.tiny(&format!("{CACHE} --require-built")).code(11).stderr(name);
        let told = compiled.tiny(&format!("{CACHE} --save-latents new --trace new.json")).code(0);
        let words = format!("was made again: {name}: ");
        assert!(told.out.contains(&words) && told.out.contains(reason), "{reason}: {told}");
        assert_eq!(compiled.counts("new.json"), (1, rest), "{reason}");
        assert_eq!(compiled.shell.latents("new"), compiled.shell.latents("good"), "{reason}");
        compiled.tiny(&format!("{CACHE} --require-built")).code(0);
    }
}

#[test]
#[ignore = "needs OpenVINO's plugin: cargo xtask check-openvino"]
fn swapped_weights_are_compiled_anew() {
    let compiled = Compiled::new();
    let model = Copy::tiny();
    let run = |options: &str| {
        let engine = model.folder.path().display();
        compiled.run(&format!("--engine {engine} --inputs in.safetensors --steps 2 --stages per-block {options}"))
    };
    let on = compiled.on();
    run(&format!("{on} --save-latents before")).code(0);
    let builds = compiled.entries().len();

    // The parameters of blocks 0 and 1 change places; size, header and manifest stay, and so does everything else.
    let swap = |bytes: &mut Vec<u8>| {
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
        let place = |name: &str| {
            let offsets = &header[name]["data_offsets"];
            let at = |k: usize| end + offsets[k].as_u64().unwrap() as usize;
            at(0)..at(1)
        };
        let mut swapped = 0;
        for name in header.as_object().unwrap().keys() {
            if let Some(rest) = name.strip_prefix("transformer_blocks.0.") {
                let (a, b) = (place(name), place(&format!("transformer_blocks.1.{rest}")));
                for (i, j) in a.zip(b) {
                    bytes.swap(i, j);
                }
                swapped += 1;
            }
        }
        assert!(swapped > 10, "{swapped}");
    };
    model.bytes(WEIGHTS, swap);
    run(&format!("{on} --save-latents after --trace after.json")).code(0);
    run("--save-latents cpu").code(0);
    assert_eq!(compiled.counts("after.json").0, 2, "the two blocks, and nothing else");
    assert_eq!(compiled.entries().len(), builds + 2);
    let error = relative_l1(&compiled.shell.latents("after"), &compiled.shell.latents("cpu"));
    assert!(error <= LATENT_RELATIVE_L1, "{error:e}");
    let change = relative_l1(&compiled.shell.latents("before"), &compiled.shell.latents("after"));
    assert!(change > 100.0 * LATENT_RELATIVE_L1, "the swap must show: {change:e}");

    // And back: what was compiled first fits again.
    model.bytes(WEIGHTS, swap);
    run(&format!("{on} --require-built --save-latents back")).code(0);
    assert_eq!(compiled.shell.latents("back"), compiled.shell.latents("before"));
}

#[test]
#[ignore = "needs OpenVINO's plugin: cargo xtask check-openvino"]
fn profiles_bound_the_shapes() {
    let compiled = Compiled::new();
    let mut text = tiny_inputs(false).tensors;
    text.remove("latents");
    write_tensors(&compiled.shell.path("text"), &text).unwrap();
    let run = |options: &str| compiled.tiny(&format!("--inputs text --steps 2 {options}"));
    run("--profile 8..16 --size 8x8 --save-latents small").code(0);
    run("--profile 8..16 --size 16x16 --require-built").code(0);
    run("--profile 8..16 --size 8x16 --require-built").code(0);
    let refused = run("--profile 8..16 --size 32x32").code(5);
    let words = "dimension `image` would be 256, but this engine is made for 16 to 64; compile others with";
    assert!(refused.err.contains(words), "{refused}");
    run("--profile 8..16 --size 4x4").code(5).stderr("would be 4, but this engine is made for 16 to 64");
    // Bounds are a part of the key.
    run("--profile 8..32 --size 32x32 --require-built").code(11);
    run("--size 8x8 --require-built").code(11);
    compiled.build(&data("tiny-flux"), "--profile 8..32").code(0).stdout("0 found");
    run("--profile 8..32 --size 32x32 --require-built").code(0);
    run("--profile 8..32 --size 8x8 --require-built --check-outputs small --tolerance 0.0001").code(0);
    run("--profile total=3").code(2).stderr("names `total`, which is text + image; name those");
    run("--profile 8,batch=99").code(5).stderr("dimension `batch` would be 99; the model takes 1 to 16");
}

#[test]
#[ignore = "needs OpenVINO's plugin: cargo xtask check-openvino"]
fn every_option_of_the_provider_is_in_the_key() {
    let compiled = Compiled::new();
    let run = |options: &str, more: &str| {
        let provider = format!("--provider {}{options}", openvino());
        let cache = format!("--build-cache {}", compiled.store.display());
        compiled.shell.tiny(&format!("--steps 1 {provider} {cache} {more}"))
    };
    run("", "").code(0);
    for options in [",threads=1", ",streams=1", ",precision=bf16"] {
        run(options, "--require-built").code(11);
    }
    run(",threads=1", "").code(0);
    run(",threads=1", "--require-built").code(0);
    run("", "--require-built").code(0);
    run(",cache=x", "").code(2).stderr("`cache` has no effect beside the build cache");
    let none = format!("--steps 1 --provider {} --build-cache none --trace none.json", openvino());
    compiled.shell.tiny(&none).code(0);
    assert!(compiled.counts("none.json").0 > 0 && compiled.counts("none.json").1 == 0);
}

/// Through the C library: what a load will find in the cache, and what it will compile.
#[cfg(unix)]
#[test]
#[ignore = "needs OpenVINO's plugin: cargo xtask check-openvino"]
fn a_plan_tells_hits_and_misses() {
    let compiled = Compiled::new();
    let capi = Capi::build();
    let program = capi.compile("capi/tests/c/plan.c", With::Nothing);
    let plan = |cache: &str| -> (u64, u64, BTreeSet<String>) {
        let mut command = Command::new(&program);
        command.arg(data("tiny-flux")).args(["provider", &openvino(), "cache", cache, "build-cache"]);
        let output = command.arg(&compiled.store).env("ORT_DYLIB_PATH", runtime()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        let of = &plan["build_cache"];
        let built = of["builds"].as_array().unwrap().iter().filter(|build| build["is_built"] == true);
        let keys = built.map(|build| build["key"].as_str().unwrap().to_owned()).collect();
        (of["hits"].as_u64().unwrap(), of["misses"].as_u64().unwrap(), keys)
    };
    let (hits, misses, keys) = plan("f1b1w2r0.5");
    assert!(hits == 0 && misses >= 4 && keys.is_empty(), "{hits} {misses}");
    compiled.build(&data("tiny-flux"), CACHE).code(0);
    assert_eq!(plan("f1b1w2r0.5"), (misses, 0, compiled.entries()));
    // Another policy has most of its stages in common with this one.
    let (hits, misses, keys) = plan("f2b0w2r0.5");
    assert!(hits >= 1 && misses >= 1 && keys.is_subset(&compiled.entries()), "{hits} {misses}");
    assert_eq!(hits, keys.len() as u64);
}

#[test]
#[ignore = "needs OpenVINO's plugin: cargo xtask check-openvino"]
fn starts_at_once_make_each_build_once() {
    let compiled = Compiled::new();
    let start = |trace: &str| {
        let on = compiled.on();
        let all = format!(
            "--engine {} --inputs in.safetensors --steps 1 {CACHE} {on} --trace {trace}",
            data("tiny-flux").display()
        );
        let mut command = compiled.shell.command();
        command.args(all.split_whitespace()).stdout(Stdio::null()).spawn().unwrap()
    };
    let traces = ["a.json", "b.json", "c.json"];
    let children: Vec<Child> = traces.iter().map(|trace| start(trace)).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let counts: Vec<(u64, u64)> = traces.iter().map(|trace| compiled.counts(trace)).collect();
    let count = compiled.entries().len() as u64;
    assert_eq!(counts.iter().map(|(built, _)| built).sum::<u64>(), count, "{counts:?}");
    assert_eq!(counts.iter().map(|(_, loaded)| loaded).sum::<u64>(), 2 * count, "{counts:?}");
}

#[test]
#[ignore = "needs OpenVINO's plugin: cargo xtask check-openvino"]
fn a_graph_that_cannot_be_compiled_is_named_and_the_others_are_compiled() {
    let compiled = Compiled::new();
    let model = Copy::tiny();
    model.graph("block_003.onnx", |graph| graph.node[0].op_type = Some("Where".into()));
    let failed = compiled.build(model.folder.path(), "--stages per-block --jobs 2").code(6);
    let others = compiled.entries().len();
    let said = [format!("{others} compiled in"), "block_003.onnx FAILED: ".to_owned()];
    assert!(others >= 12 && said.iter().all(|words| failed.out.contains(words)), "{failed}");
    let words = format!("1 of {} builds could not be made:\nblock_003.onnx (exit code 6)", others + 1);
    assert!(failed.err.contains(&words), "{failed}");
    assert!(failed.err.contains("Where"), "{failed}");
    assert!(names(&compiled.store.join("staging")).is_empty());
}

/// Starts `dbcache-trt build` and waits until some builds are there.
fn build_in_the_middle(compiled: &Compiled) -> Child {
    let all = format!("build --engine {} --stages per-block --jobs 2 {}", data("tiny-flux").display(), compiled.on());
    let mut command = compiled.shell.command();
    let child = command.args(all.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let entries = compiled.store.join("entries");
    wait_until("two builds are there", || entries.is_dir() && names(&entries).len() >= 2);
    child
}

#[cfg(unix)]
#[test]
#[ignore = "needs OpenVINO's plugin: cargo xtask check-openvino"]
fn a_build_that_is_stopped_goes_on_where_it_was() {
    for signal in ["-INT", "-KILL"] {
        let compiled = Compiled::new();
        let child = build_in_the_middle(&compiled);
        let sent = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let ended = child.wait_with_output().unwrap();
        if signal == "-INT" {
            let told = String::from_utf8(ended.stderr).unwrap();
            assert_eq!(ended.status.code(), Some(130), "{told}");
            assert!(told.contains("what is compiled stays, and the same command goes on from there"), "{told}");
            assert!(names(&compiled.store.join("staging")).is_empty(), "Ctrl-C leaves a clean store");
        }
        // The processes of a command that was killed end by themselves: they let go of their locks.
        let store = dbcache_trt::BuildStore::open_existing(&compiled.store).unwrap().unwrap();
        wait_until("no process builds any more", || {
            store.gc(&dbcache_trt::GcOptions::default()).unwrap().in_use.is_empty()
        });
        assert!(names(&compiled.store.join("staging")).is_empty());
        let before = compiled.entries().len();
        compiled.run(&format!("builds verify --build-cache {}", compiled.store.display())).code(0);
        let rest = compiled.build(&data("tiny-flux"), "--stages per-block --jobs 2 --json").json();
        assert_eq!(rest["found"].as_u64().unwrap() as usize, before, "{rest}");
        let all = rest["builds"].as_array().unwrap().len();
        assert!((2..all).contains(&before), "{before} of {all}");
        assert_eq!(rest["built"].as_u64().unwrap() as usize, all - before, "{rest}");
    }
}

/// What an error names as the remedy is one: of damage, of stages that hold a cache of another dtype, of a replay.
#[test]
#[ignore = "needs OpenVINO's plugin: cargo xtask check-openvino"]
fn the_command_that_an_error_names_mends_it() {
    let compiled = Compiled::new();
    let tiny = data("tiny-flux");
    compiled.build(&tiny, CACHE).code(0);
    let (name, entry) = compiled.builds().remove(0);
    let bin = entry.join("model_OpenVINOExecutionProvider.bin");
    let mut bytes = fs::read(&bin).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&bin, bytes).unwrap();
    compiled.tiny(&format!("{CACHE} --require-built")).code(11).stderr(&name);
    let built = compiled.build(&tiny, CACHE).code(0);
    assert!(built.out.contains("1 compiled"), "{built}");
    compiled.tiny(&format!("{CACHE} --require-built --trace run.json")).code(0);

    let stages = format!("{CACHE} --arithmetic stages --cache-dtype f16");
    let missing = compiled.tiny(&format!("{stages} --require-built")).code(11);
    assert!(missing.err.contains("--arithmetic stages --cache-dtype f16"), "{missing}");
    compiled.build(&tiny, &stages).code(0);
    compiled.tiny(&format!("{stages} --require-built")).code(0);

    let replay = compiled.tiny("--replay run.json --stages per-block --require-built").code(11);
    assert!(replay.err.contains("--cache f1b1w2i1r0.5 ") && !replay.err.contains("replay("), "{replay}");

    for (options, words) in [
        (format!("{CACHE} --cache-dtype f16"), "--cache-dtype has no effect on a build without --arithmetic stages"),
        (
            "--cache prune_f1b1 --arithmetic stages".into(),
            "--arithmetic is `stages`, which refuses requests with the policy",
        ),
        ("--arithmetic stages".into(), "refuses requests with the policy `none`"),
    ] {
        compiled.build(&tiny, &options).code(2).stderr(words);
    }
    let changed = compiled.shell.path("changed");
    fs::create_dir(&changed).unwrap();
    copy_files(&tiny, &changed, |_| true);
    let weights = changed.join("transformer.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    compiled.build(&changed, &format!("{CACHE} --verify")).code(4).stderr("transformer.safetensors");
}
