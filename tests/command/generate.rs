//! The command from outside: what it prints and writes. (What it refuses: `errors.rs`.)

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;

use crate::common::shell::{Ran, Shell};
use crate::common::{copy_files, data, emoji, relative_l1, tiny_inputs};
use dbcache_trt::cache::PolicyOption;
use dbcache_trt::{ErrorKind, write_tensors};
use ndarray::{ArrayD, Axis};
use serde_json::{Value, json};

/// Mapped and packed weights, one picture and a batch: kernels may sum in another order.
const LATENT_RELATIVE_L1: f64 = 1e-5;

#[test]
fn a_picture_tells_how_it_was_made() {
    let shell = Shell::new();
    let engine = emoji();
    let options =
        ["--prompt", "lemon", "--steps", "6", "--cache", "f1b0w2r0.9", "--seed", "3", "--output", "lemon.png"];
    let all = [["--engine", engine.to_str().unwrap()].as_slice(), &options].concat();
    let made = shell.run(&all).code(0).stdout("picture  lemon.png").out;
    assert!(shell.files().contains("lemon.png"));
    let told = shell.run(&["inspect", "lemon.png", "--json"]).json();
    assert_eq!((&told["width"], &told["height"]), (&json!(64), &json!(64)));
    let told = &told["metadata"];
    for (key, value) in [
        ("Software", concat!("dbcache-trt ", env!("CARGO_PKG_VERSION"))),
        ("prompt", "lemon"),
        ("seed", "3"),
        ("steps", "6"),
        ("cache", "f1b0w2i1r0.9"),
        ("engine", "emoji"),
    ] {
        assert_eq!(told[key], value, "{key}");
    }
    let decisions = made.lines().find_map(|line| line.strip_prefix("cond     ")).unwrap();
    assert!(decisions.starts_with("CC") && decisions.len() == 6 && decisions.contains('S'), "{decisions}");
    assert_eq!(told["decisions"], decisions);
    let engine = shell.run(&["inspect", engine.to_str().unwrap(), "--json"]).json();
    assert_eq!(told["engine_hash"], engine["hash"]);
    assert!(engine["words"].as_array().unwrap().contains(&json!("lemon")));
    shell.run(&["inspect", "lemon.png"]).code(0).stdout("lemon.png: 64x64 pixels").stdout("prompt           lemon\n");

    shell.lemon("--steps 2 --guidance 2 --negative-prompt melon").code(0).stdout("picture  out.png");
    let told = &shell.run(&["inspect", "out.png", "--json"]).json()["metadata"];
    assert_eq!((&told["negative_prompt"], &told["cfg"]), (&json!("melon"), &json!("2")));
    assert_eq!(told["decisions_uncond"], "CC");
}

#[test]
fn several_pictures_are_those_of_their_seeds() {
    let shell = Shell::new();
    shell.lemon("--count 3 --batch 2 --seed 5 --steps 2 -o a.png --save-latents all").code(0).stdout("a-7.png");
    let pictures: Vec<String> = shell.files().into_iter().filter(|name| name.ends_with(".png")).collect();
    assert_eq!(pictures, ["a-5.png", "a-6.png", "a-7.png"]);
    let all = shell.latents("all");
    for (k, seed) in (5..8).enumerate() {
        shell.lemon(&format!("--seed {seed} --steps 2 -o one.png --save-latents one")).code(0);
        let one = shell.latents("one");
        let error = relative_l1(&all.index_axis(Axis(0), k).to_owned(), &one.index_axis(Axis(0), 0).to_owned());
        assert!(error <= LATENT_RELATIVE_L1, "{seed}: {error:e}");
        let told = &shell.run(&["inspect", &format!("a-{seed}.png"), "--json"]).json()["metadata"];
        assert_eq!(told["seed"], seed.to_string());
        assert!(shell.image(&format!("a-{seed}.png")).psnr(&shell.image("one.png")).unwrap() > 60.0);
    }
}

/// Options against a picture of two steps: whether the picture stays the same.
#[test]
fn options_change_the_picture_or_not() {
    let shell = Shell::new();
    shell.lemon("--steps 2 -o base.png").code(0);
    shell.lemon("--steps 2 -o guided.png --guidance 3").code(0);
    for (options, base, is_same) in [
        ("--steps 2 --seed 0 --size 64x64 --guidance 1 --cache none --batch 1 --prompt LEMON", "base.png", true),
        ("--steps 2 --weights-mode packed --threads 2 --spin", "base.png", true),
        ("--steps 3", "base.png", false),
        ("--steps 2 --seed 1", "base.png", false),
        ("--steps 2 --prompt melon", "base.png", false),
        ("--steps 2 --guidance 3", "base.png", false),
        ("--steps 2 --guidance 3 --negative-prompt melon", "guided.png", false),
        ("--steps 3 --cache f1b0w1r0.9", "base.png", false),
    ] {
        shell.lemon(options).code(0);
        let psnr = shell.image("out.png").psnr(&shell.image(base)).unwrap();
        assert_eq!(psnr > 60.0, is_same, "{options}: {psnr} dB");
    }
}

#[test]
fn options_of_loading() {
    let shell = Shell::new();
    let said = shell.tiny("--json --threads 2 --spin --weights-mode mapped").json();
    assert_eq!((&said["onnxruntime"]["threads"], &said["onnxruntime"]["spin"]), (&json!(2), &json!(true)));
    assert_eq!(said["weights_mode"], "mapped");
    let said = shell.tiny("--json --threads 1 --weights-mode packed").json();
    assert_eq!((&said["onnxruntime"]["threads"], &said["onnxruntime"]["spin"]), (&json!(1), &json!(false)));
    assert_eq!(said["weights_mode"], "packed");
    let library = said["onnxruntime"]["path"].as_str().unwrap();
    shell.tiny(&format!("--ort-library {library}")).code(0);

    // An engine without its weights, and one with a flipped bit in them.
    let (bare, changed) = (shell.path("bare"), shell.path("changed"));
    fs::create_dir(&bare).unwrap();
    copy_files(&data("tiny-flux"), &bare, |name| !name.ends_with(".safetensors"));
    fs::create_dir(&changed).unwrap();
    copy_files(&data("tiny-flux"), &changed, |_| true);
    let mut bytes = fs::read(changed.join("transformer.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(changed.join("transformer.safetensors"), bytes).unwrap();
    let run = |options: &str| {
        let all = format!("{options} --inputs in.safetensors --steps 2");
        shell.run(&all.split_whitespace().collect::<Vec<_>>())
    };
    run("--engine bare").code(4).stderr("transformer.safetensors cannot be opened").stderr("--weights");
    run(&format!("--engine bare --weights {}", data("tiny-flux").display())).code(0);
    run("--engine changed").code(0);
    run("--engine changed --verify").code(4).stderr("the weights were changed");
    shell.run(&["inspect", "changed"]).code(0);
    shell.run(&["inspect", "changed", "--verify"]).code(4).stderr("the weights were changed");
    let tiny = data("tiny-flux");
    shell.run(&["inspect", tiny.to_str().unwrap(), "--verify"]).code(0).stdout("have the content that was exported");
    shell.run(&["inspect", "bare", "--weights", tiny.to_str().unwrap()]).code(0).stdout("12 (4 double, 8 single)");
}

#[test]
fn latents_are_saved_and_compared() {
    let shell = Shell::new();
    shell.tiny("--steps 4 --save-latents a").code(0);
    shell.tiny("--steps 4 --check-outputs a").code(0).stdout("check    latents equal those of a (relative L1");
    shell.tiny("--steps 4 --check-outputs a --tolerance 0 --stages fused").code(0);
    shell.tiny("--steps 4 --check-outputs a --tolerance 0.0001 --arithmetic graphs").code(0);
    assert_eq!(shell.tiny("--steps 4 --check-outputs a --quiet").code(0).out, "");
    shell.tiny("--steps 5 --check-outputs a").code(8).stderr("latents differ from a by").stderr("tolerance is 1e-4");
    shell.tiny("--steps 5 --check-outputs a --tolerance 10").code(0);
    shell.lemon("--steps 1 --check-outputs a").code(8).stderr("latents are [1, 64, 192], a holds [1, ");

    // Fewer tensors change what is computed: other noise, other sigmas.
    let mut inputs = tiny_inputs(false).tensors;
    inputs.insert("sigmas".into(), ArrayD::from_shape_vec(vec![3], vec![1.0, 0.5, 0.0]).unwrap());
    write_tensors(&shell.path("sigmas"), &inputs).unwrap();
    let two = shell.tiny("--inputs sigmas --json").json();
    assert_eq!(two["traces"][0]["decisions"]["cond"], "CC");
    inputs.remove("latents");
    write_tensors(&shell.path("noise"), &inputs).unwrap();
    shell.tiny("--inputs noise --seed 1 --save-latents b").code(0);
    shell.tiny("--inputs noise --seed 1 --check-outputs b").code(0);
    shell.tiny("--inputs noise --seed 2 --check-outputs b").code(8);
    shell.tiny("--inputs guided.safetensors --true-cfg 2 --steps 2 --save-latents c").code(0).stdout("uncond   CC");
    shell.tiny("--inputs guided.safetensors --true-cfg 3 --steps 2 --check-outputs c").code(8);
    shell.tiny("--steps 2 --guidance 1 --save-latents d").code(0);
    shell.tiny("--steps 2 --guidance 4 --check-outputs d").code(8);
}

#[test]
fn traces_and_json() {
    let shell = Shell::new();
    let ran = shell.tiny("--cache f1b0w2r0.1 --trace t.json").code(0).stdout("cache    f1b0w2i1r0.1\n");
    let traces = shell.json("t.json");
    let trace = &traces[0];
    let decisions = trace["decisions"]["cond"].as_str().unwrap();
    assert!(ran.out.contains(&format!("cond     {decisions}\n")));
    assert_eq!((&trace["version"], &trace["blocks"], &trace["guidance"]), (&json!(2), &json!(12), &json!(3.5)));
    assert_eq!((&trace["cache"], &trace["engine"]), (&json!("f1b0w2i1r0.1"), &json!("tiny-flux")));
    assert_eq!(trace["cache_options"]["Fn_compute_blocks"], 1);
    let records = trace["records"].as_array().unwrap();
    assert_eq!((records.len(), decisions.len()), (28, 28));
    let mut blocks = 0;
    for (step, record) in records.iter().enumerate() {
        assert_eq!((&record["step"], &record["branch"]), (&json!(step), &json!("cond")));
        let (diff, threshold) = (record["diff"].as_f64(), record["threshold"].as_f64());
        let (action, reason, run) = match diff.map(|diff| diff < 0.1) {
            None => ("C", "warmup", 12),
            Some(true) => ("S", "below", 1),
            Some(false) => ("C", "above", 12),
        };
        assert_eq!((&record["action"], &record["reason"]), (&json!(action), &json!(reason)), "step {step}");
        assert_eq!((&record["blocks_run"], threshold), (&json!(run), diff.map(|_| 0.1)), "step {step}");
        assert!(record["elapsed_ms"].as_f64().unwrap() > 0.0 && decisions[step..].starts_with(action));
        blocks += run;
    }
    assert!(ran.out.contains(&format!("blocks   {blocks} of 336 run")), "{ran}");

    let said = shell.tiny("--cache f1b0w2r0.1 --json --save-latents l").json();
    assert_eq!((&said["version"], &said["files"]), (&json!(1), &json!([])));
    assert_eq!(said["traces"][0]["decisions"], trace["decisions"]);
    assert_eq!(shell.lemon("--steps 1 -n 2 --json").json()["files"], json!(["out-0.png", "out-1.png"]));
    let quiet = shell.tiny("--quiet").code(0);
    assert_eq!((quiet.out.as_str(), quiet.err.as_str()), ("", ""));
    let picture = shell.lemon("--steps 1 -q").code(0);
    assert_eq!((picture.out.as_str(), picture.err.as_str()), ("", ""));
    assert!(shell.files().contains("out.png"));
}

#[test]
fn policies_in_all_forms() {
    let shell = Shell::new();
    let options =
        json!({"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 2, "residual_diff_threshold": 0.1});
    fs::write(shell.path("policy.json"), options.to_string()).unwrap();
    fs::write(shell.path("tag.json"), "f1b0w2r0.1\n").unwrap();
    let engine = data("tiny-flux");
    let decide = |cache: &str| {
        let all = ["--engine", engine.to_str().unwrap(), "--inputs", "in.safetensors", "--json", "--cache", cache];
        let trace = shell.run(&all).json()["traces"][0].clone();
        (trace["cache"].as_str().unwrap().to_owned(), trace["decisions"]["cond"].as_str().unwrap().to_owned())
    };
    let expected = decide("f1b0w2r0.1");
    assert!(expected.1.contains('S') && expected.0 == "f1b0w2i1r0.1");
    for same in ["r0.1_W2_B0_F1", "policy.json", "tag.json", &options.to_string(), "DBCache_F1B0_W2I1M0MC0_R0.1"] {
        assert_eq!(decide(same), expected, "{same}");
    }
    assert_eq!(decide("fb").0, "f1b0w8i1r0.08m8");
    assert_eq!(decide("cache-dit").0, "f8b0w8i1r0.08");
}

/// Each flag of the policy, on top of a cache: the tag that it makes, and that decisions or diffs change.
#[test]
fn every_flag_of_the_policy() {
    let shell = Shell::new();
    let decide = |options: &str| {
        let said = shell.tiny(&format!("--json {options}")).json();
        let trace = said["traces"][0].clone();
        let records = trace["records"].as_array().unwrap().clone();
        let facts = |record: Value| json!([record["branch"], record["action"], record["diff"], record["blocks_run"]]);
        (trace["cache"].as_str().unwrap().to_owned(), records.into_iter().map(facts).collect::<Value>())
    };
    let guided = "--inputs guided.safetensors --true-cfg 2 --cache f1b0w2r0.1";
    let mut bases = BTreeMap::new();
    for (base, flag, tag) in [
        ("--cache f1b0w2r0.1", "--fn-compute-blocks 3", "f3b0w2i1r0.1"),
        ("--cache f1b0w2r0.1", "--bn-compute-blocks 3", "f1b3w2i1r0.1"),
        ("--cache f1b0w2r0.1", "--residual-diff-threshold 0.05", "f1b0w2i1r0.05"),
        ("--cache f1b0w2r0.1", "--max-warmup-steps 6", "f1b0w6i1r0.1"),
        ("--cache f1b0w6r0.1", "--warmup-interval 2", "f1b0w6i2r0.1"),
        ("--cache f1b0w2r0.1", "--max-cached-steps 3", "f1b0w2i1r0.1m3"),
        ("--cache f1b0w2r0.1m3", "--max-cached-steps none", "f1b0w2i1r0.1"),
        ("--cache f1b0w2r0.1m3", "--max-cached-steps -1", "f1b0w2i1r0.1"),
        ("--cache f1b0w2r0.1", "--max-continuous-cached-steps 1", "f1b0w2i1r0.1mc1"),
        ("--cache f1b0w2r0.1", "--max-accumulated-residual-diff-threshold 0.3", "f1b0w2i1r0.1a0.3"),
        ("--cache f1b0w2r0.1", "--steps-computation-mask slow", "f1b0w2i1r0.1_scm:slow"),
        ("--cache f1b0w2r0.1_scm:fast", "--steps-computation-policy static", "f1b0w2i1r0.1_scm:fast:static"),
        ("--cache f1b0w2r0.1", "--force-refresh-step-hint 10", "f1b0w2i1r0.1_fr10"),
        ("--cache f1b0w2r0.1_fr10", "--force-refresh-step-policy repeat", "f1b0w2i1r0.1_fr10:repeat"),
        ("--cache f1b0w2r0.1", "--l1-hidden-states-diff-threshold 0.05", "f1b0w2i1r0.1l0.05"),
        ("--cache f1b0w2r0.1", "--important-condition-threshold 0.1", "f1b0w2i1r0.1ic0.1"),
        ("--cache f1b0w2r0.1", "--downsample-factor 4", "f1b0w2i1r0.1ds4"),
        (guided, "--cfg-compute-first true", "f1b0w2i1r0.1cf1"),
        (guided, "--cfg-diff-compute-separate false", "f1b0w2i1r0.1cds0"),
    ] {
        let without = bases.entry(base).or_insert_with(|| decide(base));
        let with = decide(&format!("{base} {flag}"));
        assert_eq!(with.0, tag, "{flag}");
        assert_ne!(with.1, without.1, "{flag} changes nothing");
    }
}

#[test]
fn suspicious_results_are_warnings() {
    let shell = Shell::new();
    let (never, always) =
        ("warning: the cache skipped nothing: the smallest diff was", "warning: the cache skipped all 27 steps");
    for (cache, words) in [("f1b0w1r0.0001", never), ("f1b0w1r0.999", always)] {
        shell.tiny(&format!("--cache {cache}")).code(0).stdout(words);
        let quiet = shell.tiny(&format!("--cache {cache} --quiet")).code(0).stderr(words);
        assert_eq!(quiet.out, "");
        let said = shell.tiny(&format!("--cache {cache} --json")).json();
        assert!(said["traces"][0]["warnings"][0].as_str().unwrap().contains(&words["warning: ".len()..]));
    }
    let calm = shell.tiny("--cache f1b0w2r0.1").code(0);
    assert!(!calm.out.contains("warning"), "{calm}");
}

/// Builds of ONNX Runtime write an identifier and reports for their maker into the user's cache folder, and send them, unless
/// an environment variable forbids it. (In a process of CI they do not, which is why this one has no other variables.)
#[cfg(target_os = "linux")]
#[test]
fn onnx_runtime_reports_nothing() {
    let shell = Shell::new();
    let home = tempfile::tempdir().unwrap();
    let (engine, library) = (data("tiny-flux"), crate::common::capi::runtime());
    let mut command = shell.command();
    command.env_clear().env("HOME", home.path()).env("ORT_DYLIB_PATH", library);
    command.args(["--engine", engine.to_str().unwrap(), "--inputs", "in.safetensors", "--steps", "1"]);
    Ran::of(&mut command).code(0);
    let written: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(written.is_empty(), "{written:?}");
}

/// What can be said without an MPI; `cargo xtask check-mpi` starts processes.
#[test]
fn several_processes_are_asked_for_by_a_method() {
    let shell = Shell::new();
    let engine = data("tiny-flux");
    for (method, library, code, words) in [
        ("ring", "", 2, "expected `ulysses` or `gather`"),
        ("gather=1", "", 2, "expected a number of processes of at least 2"),
        ("ulysses=x", "", 2, "expected a number of processes of at least 2"),
        ("ulysses", "/nowhere/libmpi.so", 3, "no MPI library is found"),
        #[cfg(target_os = "linux")]
        ("ulysses", "libm.so.6", 3, "libm.so.6 is no library of MPI; correct DBCACHE_TRT_MPI"),
    ] {
        let mut command = shell.command();
        command.args(["--engine", engine.to_str().unwrap(), "--inputs", "in.safetensors", "--steps", "1"]);
        command.args(["--context-parallel", method]).env("DBCACHE_TRT_MPI", library);
        Ran::of(&mut command).code(code).stderr(words);
    }
}

#[test]
fn help_and_version() {
    let shell = Shell::new();
    assert_eq!(shell.run(&["--version"]).code(0).out, concat!("dbcache-trt ", env!("CARGO_PKG_VERSION"), "\n"));
    let help = shell.run(&["--help"]).code(0).out;
    let (_, codes) = help.split_once("EXIT CODES").unwrap();
    let listed: Vec<u8> =
        codes.split(',').map(|code| code.split_whitespace().next().unwrap().parse().unwrap()).collect();
    let known: Vec<u8> = [0].into_iter().chain(ErrorKind::ALL.map(ErrorKind::exit_code)).collect();
    assert_eq!(listed, known);
    // Each option has a case that shows what it does: here, in the tests of its subject, or, for the options of the
    // cache, in the test that drives each of them through the command line.
    let cases = [
        include_str!("generate.rs"),
        include_str!("errors.rs"),
        include_str!("../library/replay.rs"),
        include_str!("../library/memory.rs"),
        include_str!("../library/cache_dtype.rs"),
        include_str!("../library/compute.rs"),
        include_str!("../library/per_sample.rs"),
        include_str!("../providers/conformance.rs"),
        include_str!("builds.rs"),
        include_str!("../library/guidance.rs"),
        include_str!("../providers/listed.rs"),
    ];
    let flags: Vec<String> = PolicyOption::all().iter().map(|option| format!("--{}", option.flag())).collect();
    let lines = help.lines().map(str::trim).filter(|line| line.starts_with('-'));
    for option in lines.filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--"))) {
        let is_shown = ["\"", " "].iter().any(|end| cases.iter().any(|c| c.contains(&format!("{option}{end}"))));
        assert!(is_shown || flags.iter().any(|flag| flag == option), "{option} lacks a case");
    }
    for subcommand in ["inspect", "setup", "trace", "build", "builds", "providers", "stages"] {
        shell.run(&[subcommand, "--help"]).code(0).stdout("Usage: dbcache-trt");
    }
}

/// `dbcache-trt … | head`: a reader that goes away is no error, but hides none either.
#[test]
fn a_closed_pipe_is_success() {
    let shell = Shell::new();
    shell.tiny("--steps 2 --save-latents a").code(0);
    let closed = |options: &str| {
        let all = format!("--engine {} --inputs in.safetensors {options}", data("tiny-flux").display());
        let mut command = shell.command();
        let mut child =
            command.args(all.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        Ran::new(&command, child.wait_with_output().unwrap())
    };
    assert_eq!(closed("--steps 2").code(0).err, "");
    assert_eq!(closed("--steps 2 --json").code(0).err, "");
    closed("--steps 3 --check-outputs a").code(8).stderr("latents differ");
}

/// What `stages` writes is what would be loaded: the same sessions, shapes within the profile, and the weights themselves.
#[test]
fn stages_are_written_as_files() {
    let shell = Shell::new();
    let engine = data("tiny-flux");
    let engine = engine.to_str().unwrap();
    for (options, files) in [
        ("--cache f1b1 --stages fused", "embed.onnx block_000.onnx blocks_001_010.onnx block_011_final.onnx"),
        ("--stages 5", "embed_blocks_000_004.onnx blocks_005_009.onnx blocks_010_011_final.onnx"),
        ("--stages fused --stage-bytes 1G", "embed_blocks_000_011_final.onnx"),
    ] {
        let words: Vec<&str> = options.split_whitespace().collect();
        let all =
            [&["stages", "--engine", engine, "-o", "out", "--profile", "16..32,text=12", "--json"], &*words].concat();
        let printed = shell.run(&all).json();
        let list: Value = serde_json::from_slice(&fs::read(shell.path("out/stages.json")).unwrap()).unwrap();
        assert_eq!(printed["graphs"], list["graphs"]);
        let names: Vec<&str> =
            list["graphs"].as_array().unwrap().iter().map(|graph| graph["file"].as_str().unwrap()).collect();
        assert_eq!(names.join(" "), files, "{options}");
        for graph in list["graphs"].as_array().unwrap() {
            let bytes = fs::metadata(shell.path("out").join(graph["file"].as_str().unwrap())).unwrap().len();
            assert_eq!(bytes, graph["bytes"].as_u64().unwrap());
        }
        let inputs = &list["graphs"][0]["inputs"];
        let image = json!({ "min": [1, 64, 16], "opt": [1, 64, 16], "max": [1, 256, 16] });
        assert_eq!((&inputs["latents"], &inputs["prompt_embeds"]["max"]), (&image, &json!([1, 12, 32])));
        for weights in list["weights"].as_array().unwrap() {
            let name = weights.as_str().unwrap();
            assert_eq!(
                fs::read(shell.path("out").join(name)).unwrap(),
                fs::read(data("tiny-flux").join(name)).unwrap()
            );
        }
        shell.run(&all).code(2).stderr("--output out exists; name a new folder");
        fs::remove_dir_all(shell.path("out")).unwrap();
    }
    let stages = ["stages", "--engine", engine, "-o", "out"];
    for (options, code, words) in [
        ("--profile 8..1024", 5, "1024x1024; this model makes sides of 4 to 32 pixels"),
        ("--cache f99", 2, "Fn_compute_blocks 99"),
        ("--stage-bytes 10", 2, "--stage-bytes"),
        ("--weights nowhere", 4, "nowhere"),
    ] {
        let options: Vec<&str> = options.split_whitespace().collect();
        shell.run(&[stages.as_slice(), &options].concat()).code(code).stderr(words);
    }
    shell.run(&["stages", "--engine", engine, "-o", "no/such/out"]).code(9).stderr("cannot write no/such/out");
    assert!(!shell.files().iter().any(|name| name.contains("out") || name.starts_with('.')));
}
