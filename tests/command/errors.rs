//! What the command refuses: with which exit code, in which words, and leaving nothing behind.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use crate::common::damage::Copy;
use crate::common::shell::{Ran, Shell};
use crate::common::{data, emoji, tiny_inputs};
use dbcache_trt::write_tensors;
use ndarray::ArrayD;
use serde_json::json;

#[test]
fn usage() {
    let shell = Shell::new();
    for (options, words) in [
        ("--steps -1", "invalid value '-1' for '--steps <N>': expected a whole number of at least 0"),
        ("--steps many", "invalid value 'many' for '--steps <N>'"),
        ("--steps 0", "--steps is 0; expected 1 to 10000"),
        ("--steps 20000", "--steps is 20000; expected 1 to 10000"),
        ("--size 64", "expected WIDTHxHEIGHT, such as 1024x768"),
        ("--seed -1", "expected a whole number of at least 0"),
        ("--seed 99999999999999999999", "invalid value"),
        ("--seed 1", "--seed has no effect: the noise comes from --inputs"),
        ("--threads 0", "--threads is 0; expected 1 to 1024"),
        ("--threads 4000000", "--threads is 4000000; expected 1 to 1024"),
        ("--count 0", "--count and --batch must be at least 1"),
        ("--batch 0", "--count and --batch must be at least 1"),
        ("--batch 2", "--batch 2 has no effect beyond --count 1; raise --count"),
        ("--batch 2 --count 2", "--batch has no effect: the batch is that of the tensors of --inputs"),
        ("--count 2", "--count would repeat one picture"),
        ("--guidance NaN", "expected a number from -1000 to 1000"),
        ("--true-cfg inf", "expected a number from -1000 to 1000"),
        ("--inputs guided.safetensors", "`negative_pooled_projections` has no effect"),
        ("--prompt lemon", "--prompt has no effect: this engine has no text graphs"),
        ("--negative-prompt lemon", "--negative-prompt has no effect without classifier-free guidance"),
        ("--output a.png", "--output has no effect: this engine has no decode graph; use --save-latents"),
        ("--tolerance 1", "--check-outputs <FILE>"),
        ("--check-outputs in.safetensors --tolerance nan", "--tolerance is NaN; expected a number of at least 0"),
        ("--check-outputs in.safetensors --tolerance -1", "--tolerance is -1; expected a number of at least 0"),
        ("--save-latents a --check-outputs ./a", "with which --check-outputs compares; give two names"),
        ("--save-latents a --trace a", "--save-latents and --trace both write"),
        ("--quiet --json", "'--quiet' cannot be used with '--json'"),
        ("--weights-mode floating", "[possible values: auto, packed, mapped]"),
        ("--stages long", "expected `auto`, `per-block`, `fused`, or the most blocks of a stage"),
        ("--stages 0", "--stages is 0; this model has 1 to 12 blocks a stage"),
        ("--stages 13", "--stages is 13"),
        ("--stage-bytes 1K", "block 0 alone has"),
        ("--stages per-block --stage-bytes 1G", "--stage-bytes has no effect with --stages per-block; leave one out"),
        ("--threads 1 --spin", "--spin has no effect on one thread"),
        ("--max-cached-steps 3", "the policy `none` has no option max_cached_steps; choose a policy that has it"),
        ("--cache f1b0r-1", "`r` needs a number of at least 0"),
        ("--build-cache x", "--build-cache has no effect: the provider `cpu` compiles nothing; leave it out"),
        ("--require-built", "--require-built has no effect: the provider `cpu` compiles nothing; leave it out"),
        ("--compute int8", "[possible values: exported, fp32, fp16, bf16]"),
        ("--compute bf16", "--compute bf16 cannot run on the provider `cpu`, which has no products in it"),
        ("--provider cuda:bf16", "is chosen by --compute (fp32, fp16 or bf16)"),
        ("--provider tensorrt:int8", "`int8` has no effect: no graph of this engine quantises"),
        ("--profile 16", "--profile has no effect: the provider `cpu` compiles nothing; leave it out\n"),
        (
            "--profile 64 --provider cuda",
            "leave it out, or set the option `graph-captures` of `cuda`, with which it takes",
        ),
        (
            "--profile 64 --provider webgpu,cpu",
            "or set the option `graph-captures` of `webgpu`, with which it takes effect",
        ),
        ("--require-built --provider cuda", "the provider `cuda` compiles nothing; leave it out\n"),
        ("--provider tensorrt:fp16,cpu --compute fp16", "compute in f16, and carry their types; leave it out\n"),
        ("--profile 16..", "the profile `16..` does not parse; expected sizes and dimensions, such as 512..1024"),
        ("--cache f1b0cf1", "cfg_compute_first has no effect: this run has one guidance branch"),
        ("--cache f1b0cds0", "cfg_diff_compute_separate has no effect: this run has one guidance branch"),
        ("--cache prune_f1b1cf1", "cfg_compute_first has no effect"),
        ("--cache f1b0ds1000", "downsample_factor is 1000, but the compared stream has"),
        ("--cache f1b1z3", "policy `f1b1z3`"),
        ("--cache f99b0", "more than the model's 12 blocks"),
        ("--cache f1b0_scm:101", "3 digits"),
        ("--cache {", "EOF"),
        ("--cache {\"Fn\":1}", "Fn"),
        ("--fn-compute-blocks 4", "the policy `none` has no option Fn_compute_blocks"),
        ("--cache f1b0 --steps-computation-policy static", "there is no steps_computation_mask"),
        ("--cache f1b0 --force-refresh-step-policy repeat", "there is no force_refresh_step_hint"),
        ("--cache f1b0 --residual-diff-threshold -0.5", "residual_diff_threshold"),
        ("--cache f1b0 --residual-diff-threshold nan", "residual_diff_threshold"),
        ("--cache f1b0 --warmup-interval 0", "warmup_interval"),
        ("--cache f1b0 --downsample-factor 0", "downsample_factor"),
        ("--cache f1b0 --max-cached-steps few", "expected a whole number of at least 0, or `none`"),
        ("--cache fb --max-pruned-steps 3", "the policy `fb` has no option max_pruned_steps"),
        ("--cache f1b0fn4", "unknown part `fn4` (did you mean `f`?)"),
        ("--guidance 1e30", "expected a number from -1000 to 1000"),
        ("--guidance-2 3", "--guidance-2 has no effect: this model has no second transformer"),
        ("--decode-tile 64", "--decode-tile has no effect"),
        ("--decode-slices", "--decode-slices has no effect"),
        ("--true-cfg -1e30", "expected a number from -1000 to 1000"),
        ("--true-cfg 0.5", "--true-cfg is 0.5, which has no effect: it guides above 1 only"),
        ("--true-cfg 2", "--true-cfg has no effect without a negative prompt"),
        ("--cache prune_f8b4", "no block could ever be pruned"),
        ("--engine x inspect y", "subcommand 'inspect' cannot be used with"),
    ] {
        shell.tiny(options).code(2).stderr(words);
    }
    for (options, words) in [
        ("--true-cfg 2", "--true-cfg has no effect: the guidance of this model is classifier-free; use --guidance"),
        ("--negative-prompt melon", "--negative-prompt has no effect without classifier-free guidance"),
        ("--negative-prompt melon --guidance 1", "give --guidance above 1, or leave the negative prompt out"),
        ("--negative-prompt melon --guidance 0.5", "give --guidance above 1, or leave the negative prompt out"),
    ] {
        shell.lemon(options).code(2).stderr(words);
    }
    shell.run::<&str>(&[]).code(2).stderr("--engine <DIR>");
    shell.run(&["--nonsense"]).code(2).stderr("unexpected argument '--nonsense'");
    shell.run(&["inspect"]).code(2).stderr("<PATH>");
    shell.run(&["inspect", "a.png", "--verify"]).code(2).stderr("have no effect on a picture");
    shell.run(&["setup", "--check", "--via", "pip"]).code(2).stderr("cannot be used with");
    shell.run(&["--engine", emoji().to_str().unwrap()]).code(2).stderr("no prompt; give one with --prompt");
    let last = ["--engine", emoji().to_str().unwrap(), "--prompt", "owl", "--seed", "18446744073709551615", "-n", "2"]
        .map(String::from);
    let last: Vec<&str> = last.iter().map(String::as_str).collect();
    shell.run(&last).code(2).stderr("--seed is too large for --count pictures");
    shell.lemon("--output a.jpg").code(2).stderr("--output ends in .jpg, but pictures are PNG files; end it in .png");
    shell
        .run(&["--engine", data("tiny-flux").to_str().unwrap()])
        .code(2)
        .stderr("give pooled_projections and prompt_embeds");
    assert_eq!(shell.files().len(), 2);
}

#[test]
fn libraries() {
    let shell = Shell::new();
    let hidden = |value: &str| {
        let mut command = shell.command();
        let engine = data("tiny-flux");
        let arguments = ["--engine", engine.to_str().unwrap(), "--inputs", "in.safetensors"];
        Ran::of(command.args(arguments).env("ORT_DYLIB_PATH", value))
    };
    hidden("nonsense.so").code(3).stderr("nonsense.so (ORT_DYLIB_PATH)").stderr("unset it and run `dbcache-trt setup`");
    hidden(&shell.path("in.safetensors").display().to_string()).code(3).stderr("no usable ONNX Runtime library");
    shell
        .tiny("--ort-library in.safetensors")
        .code(3)
        .stderr("in.safetensors (given path)")
        .stderr("dbcache-trt setup");
    shell.tiny("--ort-library nowhere/a.so").code(3).stderr("nowhere/a.so (given path)");
    // What needs no library works without one.
    let mut command = shell.command();
    let inspect = ["inspect", data("tiny-flux").to_str().unwrap()].map(str::to_owned);
    Ran::of(command.args(inspect).env("ORT_DYLIB_PATH", "nonsense.so")).code(0).stdout("tiny-flux");
}

/// A large model takes minutes to load: what can be known before is told before. Here nothing could be loaded.
#[test]
fn nothing_is_loaded_in_vain() {
    let shell = Shell::new();
    for folder in ["folder.png", "many-1.png", "many-12345678901.png"] {
        fs::create_dir(shell.path(folder)).unwrap();
    }
    let before = shell.files();
    let long = format!("--output {}.png", "a".repeat(300));
    let long_of_many = format!("--count 2 --output {}.png", "a".repeat(250));
    for (options, code, words) in [
        ("--steps 0", 2, "--steps is 0"),
        ("--size 65x64", 5, "--size is 65x64"),
        ("--frames 9", 2, "--frames has no effect"),
        ("--fps 9", 2, "--fps has no effect"),
        ("--guidance-rescale 2", 2, "--guidance-rescale is 2"),
        ("--true-cfg 2", 2, "--true-cfg has no effect"),
        ("--cache f40b40", 2, "more than the model's 57 blocks"),
        ("--cache-dtype f16", 2, "--cache-dtype f16 has no effect"),
        ("--per-sample", 2, "--per-sample has no effect on one picture"),
        ("--decode-tile 1", 2, "--decode-tile is 1"),
        ("--decode-slices", 2, "--decode-slices has no effect"),
        ("--inputs in.safetensors", 2, "--prompt has no effect: the inputs hold all text tensors"),
        ("--negative-prompt rose", 2, "--negative-prompt has no effect"),
        ("--prompt lemno", 5, "does not know the word `lemno`"),
        ("--output a.jpg", 2, "--output ends in .jpg"),
        ("--output folder.png", 9, "cannot write folder.png: it is a folder"),
        ("--count 2 --output many.png", 9, "cannot write many-1.png: it is a folder"),
        ("--count 99999999999 --seed 2 --output many.png", 9, "cannot write many-12345678901.png: it is a folder"),
        (&long, 9, "File name too long"),
        (&long_of_many, 9, "File name too long"),
        // Nothing is wrong with these.
        ("--count 2 --seed 2 --output many.png", 3, "no usable ONNX Runtime library"),
        ("--steps 1", 3, "no usable ONNX Runtime library"),
    ] {
        let mut command = shell.command();
        let engine = emoji();
        command.args(["--engine", engine.to_str().unwrap()]).args(options.split_whitespace());
        if !options.contains("--prompt") {
            command.args(["--prompt", "lemon"]);
        }
        Ran::of(command.env("ORT_DYLIB_PATH", "nonsense.so")).code(code).stderr(words);
    }
    assert_eq!(shell.files(), before);
}

#[test]
fn engines_runtimes_and_numbers() {
    let shell = Shell::new();
    for arguments in [["--engine", "nowhere"], ["inspect", "nowhere"]] {
        shell.run(&arguments).code(4).stderr("nowhere: does not exist; name a folder that the exporter wrote");
    }
    shell.run(&["--engine", "in.safetensors"]).code(4).stderr("is not a folder; name a folder that");
    let run = |engine: &Copy, options: &str| {
        let all = format!("--engine {} --steps 1 {options}", engine.folder.path().display());
        shell.run(&all.split_whitespace().collect::<Vec<_>>())
    };
    let copy = Copy::tiny();
    copy.set("/dimensions/total/sum", json!(["image"]));
    run(&copy, "--inputs in.safetensors").code(6).stderr("step 0: cond: embed and blocks 0..");

    let mut tensors = tiny_inputs(false).tensors;
    tensors.insert("latents".into(), ArrayD::from_elem(tensors["latents"].raw_dim(), f32::MAX));
    write_tensors(&shell.path("huge"), &tensors).unwrap();
    shell.tiny("--inputs huge --steps 2").code(7).stderr("step 0: cond: the prediction holds").stderr("it comes from");
}

#[test]
fn names_that_collide() {
    let shell = Shell::new();
    for (options, words) in [
        ("--trace out.png", "--trace would overwrite the picture out.png"),
        ("--save-latents ./out.png", "--save-latents would overwrite the picture ./out.png"),
        ("--output a.png --count 2 --seed 7 --trace a-8.png", "--trace would overwrite the picture a-8.png"),
        // Without a list of all of them.
        ("--output a.png --count 99999999999 --trace a-12345678901.png", "--trace would overwrite the picture a-1234"),
    ] {
        shell.lemon(options).code(2).stderr(words);
    }
    fs::create_dir(shell.path("out.png")).unwrap();
    shell.lemon("--steps 1").code(9).stderr("cannot write out.png: it is a folder");
}

#[test]
fn inputs() {
    let shell = Shell::new();
    for (prompt, words) in [
        ("lemno", "does not know the word `lemno`; the nearest that it knows: lemon"),
        ("a red apple", "does not know the word `a`"),
        ("\u{1f34b}", "does not know the word `\u{1f34b}`"),
        ("lemon\u{1b}[2J", "does not know the word `lemon\\u{1b}[2J`"),
        ("\u{202e}lemon", "does not know the word"),
        ("<unk>", "does not know the word `<unk>`"),
        ("red red red red red red red red red", "the prompt has 9 words; the model takes at most 8"),
        (&"x".repeat(60_000), "xxxx`; the nearest that it knows"),
        (&"lemon ".repeat(10_000), "the prompt has 10000 words; the model takes at most 8"),
        (&"lemon ".repeat(20_000), "the prompt has 120000 bytes; at most 65536 are read"),
    ] {
        let ran = shell.run(&["--engine", emoji().to_str().unwrap(), "--prompt", prompt]).code(5).stderr(words);
        assert!(ran.err.len() < 400, "{ran}");
    }
    // No words at all are a prompt as well.
    shell.run(&["--engine", emoji().to_str().unwrap(), "--prompt", " \t\n", "--steps", "1"]).code(0);
    for (options, words) in [
        ("--size 65x64", "--size is 65x64; this model makes sides of 64 to 64 pixels that are multiples of 64"),
        ("--size 0x0", "--size is 0x0"),
        ("--count 65 --batch 65", "dimension `batch` would be 65; the model takes 1 to 64"),
    ] {
        shell.lemon(options).code(5).stderr(words);
    }

    let tensor = |shape: &[usize], value: f32| ArrayD::from_elem(shape.to_vec(), value);
    for (name, value, words) in [
        ("nose", tensor(&[1], 0.0), "this engine has no input tensor `nose`; it takes"),
        ("latents", tensor(&[1, 64], 0.0), "input `latents` has the shape [1, 64]; the model takes [batch, image, 16]"),
        ("latents", tensor(&[1, 36, 16], 0.0), "has 36 along `image`, but the picture's size makes it 64"),
        ("latents", tensor(&[2, 64, 16], 0.0), "disagree about the dimension `batch`"),
        ("prompt_embeds", tensor(&[1, 600, 32], 0.0), "dimension `text` would be 600; the model takes 1 to 512"),
        ("sigmas", tensor(&[3], 1.0), "input `sigmas` must be one row of at least two numbers that fall"),
        ("sigmas", tensor(&[1, 2], 1.0), "input `sigmas` must be one row"),
        ("sigmas", tensor(&[0], 1.0), "input `sigmas` must be one row"),
    ] {
        let mut tensors = tiny_inputs(false).tensors;
        tensors.insert(name.into(), value);
        write_tensors(&shell.path("t"), &tensors).unwrap();
        shell.tiny("--inputs t").code(5).stderr(words);
    }
    let mut tensors = tiny_inputs(false).tensors;
    tensors.insert("latents".into(), tensor(&[1, 64, 16], f32::NAN));
    write_tensors(&shell.path("t"), &tensors).unwrap();
    shell.tiny("--inputs t").code(7).stderr("tensor `latents` of t holds NaN");
    fs::write(shell.path("t"), b"not tensors").unwrap();
    shell.tiny("--inputs t").code(5).stderr("t is not a safetensors file");
    shell.tiny("--check-outputs t").code(5).stderr("t is not a safetensors file");
    fs::write(shell.path("t"), [b"\x40\0\0\0\0\0\0\0".as_slice(), &integers()].concat()).unwrap();
    shell.tiny("--inputs t").code(5).stderr("tensor `latents` of t is U64; expected F32");
    write_tensors(&shell.path("none"), &[].into()).unwrap();
    let engine = emoji();
    let nothing = ["--engine", engine.to_str().unwrap(), "--prompt", "lemon", "--inputs", "none"];
    shell.run(&nothing).code(2).stderr("--inputs has no effect: none holds no tensors; leave it out");
    write_tensors(&shell.path("t"), &[("x".to_owned(), tensor(&[1], 0.0))].into()).unwrap();
    shell.tiny("--check-outputs t").code(5).stderr("t holds no tensor `latents`");
    fs::write(shell.path("a.png"), huge_png()).unwrap();
    shell.run(&["inspect", "a.png"]).code(5).stderr("a.png is larger than 1073741824 bytes");
    shell.run(&["inspect", "in.safetensors"]).code(5).stderr("in.safetensors is not a readable PNG");
}

/// A safetensors header of 64 bytes, and its data.
fn integers() -> Vec<u8> {
    let header = r#"{"latents":{"dtype":"U64","shape":[1],"data_offsets":[0,8]}}"#;
    format!("{header:64}\0\0\0\0\0\0\0\0").into_bytes()
}

/// A PNG of 600,000 x 600,000 pixels, or so its header says.
fn huge_png() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 600_000, 600_000);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, &[]).unwrap();
    drop(writer);
    bytes
}

#[test]
fn files() {
    let shell = Shell::new();
    fs::create_dir(shell.path("folder")).unwrap();
    for (options, words) in [
        ("--save-latents nowhere/a", "cannot write nowhere/a: the folder nowhere does not exist"),
        ("--trace folder", "cannot write folder: it is a folder"),
        ("--inputs nowhere", "cannot read nowhere"),
        ("--check-outputs nowhere", "cannot read nowhere"),
        ("--cache nowhere.json", "cannot read the policy nowhere.json"),
        #[cfg(target_os = "linux")]
        ("--trace /proc/a", "cannot write /proc/a: nothing can be written into /proc"),
    ] {
        shell.tiny(options).code(9).stderr(words);
    }
    shell.lemon("--output nowhere/a.png").code(9).stderr("the folder nowhere does not exist");
    shell.run(&["inspect", "nowhere.png"]).code(9).stderr("cannot open nowhere.png");
}

/// Links and devices are written through, never replaced; what is written obeys the umask.
#[cfg(target_os = "linux")]
#[test]
fn special_files() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let shell = Shell::new();
    fs::write(shell.path("old"), "").unwrap();
    symlink("old", shell.path("link")).unwrap();
    symlink("/dev/full", shell.path("full")).unwrap();
    shell.tiny("--inputs /dev/zero").code(5).stderr("/dev/zero is not a safetensors file");
    shell.tiny("--check-outputs /dev/zero").code(5).stderr("/dev/zero is not a safetensors file");
    shell.tiny("--replay /dev/zero").code(5).stderr("is too long for a trace: at most 268435456 bytes are read");
    shell.tiny("--steps 1 --trace link").code(0);
    assert!(shell.path("link").is_symlink() && shell.json("old").is_array());
    shell.tiny("--steps 1 --trace full").code(9).stderr("cannot write full").stderr("No space left");
    assert!(shell.path("full").is_symlink());
    let said = shell.tiny("--steps 1 --quiet --trace /dev/stdout").code(0).out;
    assert!(said.starts_with('[') && said.ends_with("]\n"), "{said}");

    let all = format!(
        "umask 077; exec $0 --engine {} --inputs in.safetensors --steps 1 --save-latents private",
        data("tiny-flux").display()
    );
    let mut shell_command = std::process::Command::new("sh");
    let program = env!("CARGO_BIN_EXE_dbcache-trt");
    Ran::of(shell_command.args(["-c", &all, program]).current_dir(shell.folder.path())).code(0);
    assert_eq!(shell.path("private").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    shell.tiny("--steps 1 --save-latents public").code(0);
    assert_ne!(shell.path("public").metadata().unwrap().permissions().mode() & 0o044, 0);
}

/// A file name that is not UTF-8 is used as it is, and printed as well as can be.
#[cfg(target_os = "linux")]
#[test]
fn other_file_names() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let shell = Shell::new();
    let name = OsStr::from_bytes(b"\xff.png");
    let engine = emoji();
    let arguments = ["--engine", engine.to_str().unwrap(), "--prompt", "lemon", "--steps", "1", "--json", "--output"];
    let listed = ["builds", "list", "--json", "--build-cache"].map(OsStr::new);
    assert_eq!(shell.run(&[listed.as_slice(), &[name]].concat()).json()["exists"], false);
    shell.run(&["builds", "list", "--build-cache", "none"]).code(2).stderr("name a folder");
    let said = shell.run(&[arguments.map(OsStr::new).as_slice(), &[name]].concat()).json();
    assert_eq!(said["files"], json!(["\u{fffd}.png"]));
    assert!(shell.folder.path().join(name).is_file());
}

/// Ctrl-C and SIGTERM stop within one block; nothing is left behind.
#[cfg(unix)]
#[test]
fn interrupted() {
    let shell = Shell::new();
    let before = shell.files();
    let all = format!(
        "--engine {} --inputs in.safetensors --steps 10000 --save-latents a --trace b",
        data("tiny-flux").display()
    );
    for signal in ["-INT", "-TERM"] {
        let mut command = shell.command();
        let child = command.args(all.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The handler is there from the start; after this time steps run.
        std::thread::sleep(Duration::from_secs(2));
        kill(signal, &child);
        let ran = Ran::new(&command, child.wait_with_output().unwrap()).code(130).stderr("cancelled");
        assert_eq!((ran.out.as_str(), shell.files()), ("", before.clone()));
    }
}

#[cfg(unix)]
fn kill(signal: &str, child: &std::process::Child) {
    assert!(std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// Where the first signal is not obeyed, because a file does not come, the second one ends the program at once.
#[cfg(unix)]
#[test]
fn interrupted_twice() {
    let shell = Shell::new();
    let made = std::process::Command::new("mkfifo").arg(shell.path("pipe")).status().unwrap();
    assert!(made.success());
    let mut command = shell.command();
    let engine = data("tiny-flux");
    command.args(["--engine", engine.to_str().unwrap(), "--inputs", "pipe"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for _ in 0..2 {
        std::thread::sleep(Duration::from_secs(1));
        assert!(child.try_wait().unwrap().is_none(), "nothing to wait for");
        kill("-TERM", &child);
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// `ulimit -f` makes a long file an error, as a full disk does; nothing is left of it.
#[cfg(target_os = "linux")]
#[test]
fn files_that_may_not_be_so_long() {
    let shell = Shell::new();
    let before = shell.files();
    let all = format!(
        "ulimit -f 1; exec $0 --engine {} --inputs in.safetensors --steps 1 --save-latents a --trace b",
        data("tiny-flux").display()
    );
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &all, env!("CARGO_BIN_EXE_dbcache-trt")]).current_dir(shell.folder.path());
    Ran::of(&mut command).code(9).stderr("cannot write a: File too large");
    assert_eq!(shell.files(), before);
}

/// A standard error that cannot be written (a full disk) changes nothing of how the command ends.
#[cfg(target_os = "linux")]
#[test]
fn a_standard_error_that_is_full() {
    let shell = Shell::new();
    for (arguments, code) in [
        (&["--engine", "nope", "--prompt", "lemon"][..], 4),
        (&["--engine", "nope", "--prompt", "lemon", "--steps", "-1"], 2),
        (&["inspect", "nope.png"], 9),
    ] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_dbcache-trt"));
        command.args(arguments).current_dir(shell.folder.path()).stdout(Stdio::null()).stderr(full);
        assert_eq!(command.status().unwrap().code(), Some(code), "{arguments:?}");
    }
}
