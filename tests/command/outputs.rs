//! Files of the command: where they go, and what is left of them when something stops it. (Kills between two changes of a
//! name: `src/files/tests.rs`.)

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::common::shell::{Ran, Shell};
use crate::common::{data, wait_until};
use dbcache_trt::{library_places, write_tensors};
use ndarray::ArrayD;

/// A shell with inputs of the small video model: 21 frames.
fn studio() -> Shell {
    let shell = Shell::new();
    let tensors = [
        ("prompt_embeds", [1, 5, 20].as_slice()),
        ("prompt_attention_mask", &[1, 5]),
        ("pooled_projections", &[1, 12]),
    ];
    let tensors = tensors.map(|(name, shape)| (name.to_owned(), ArrayD::<f32>::ones(shape)));
    write_tensors(&shell.path("video.safetensors"), &tensors.into()).unwrap();
    shell
}

fn film(options: &str) -> String {
    let engine = data("decode/video/engine");
    format!("--engine {} --inputs video.safetensors --steps 1 {options}", engine.display())
}

fn words(all: &str) -> Vec<&OsStr> {
    all.split_whitespace().map(OsStr::new).collect()
}

#[test]
fn a_video_is_replaced_whole_or_not_at_all() {
    let shell = studio();
    let frames = |shell: &Shell| {
        let names = shell.files().into_iter().filter(|name| name.starts_with("x_"));
        names.map(|name| (fs::read(shell.path(&name)).unwrap(), name)).collect::<Vec<_>>()
    };
    shell.run(&words(&film("--seed 1 -o x_%04d.png"))).code(0).stdout("x_0020.png");
    let older = frames(&shell);
    let before = shell.files();
    assert_eq!(older.len(), 21);

    // A disk that is full after a kilobyte.
    let mut command = Command::new("sh");
    let all = film("--seed 2 -o x_%04d.png");
    command.args(["-c", &format!("ulimit -f 1; exec $0 {all}"), env!("CARGO_BIN_EXE_dbcache-trt")]);
    Ran::of(command.current_dir(shell.folder.path())).code(9).stderr("cannot write").stderr("x_0000.png");
    assert!(frames(&shell) == older && shell.files() == before);

    // A video of more frames leaves nothing behind a shorter one; what is no part of it stays.
    fs::copy(shell.path("x_0000.png"), shell.path("x_0021.png")).unwrap();
    fs::write(shell.path("x_0023.png"), "no part of it").unwrap();
    shell.run(&words(&film("--seed 2 -o x_%04d.png"))).code(0);
    let newer = frames(&shell);
    assert!(newer.len() == 22 && newer[21].1 == "x_0023.png", "{:?}", shell.files());
    assert!(newer.iter().zip(&older).all(|(newer, older)| newer.0 != older.0));
}

/// What a killed command leaves goes with the next one that writes there.
#[test]
fn leftovers_of_kills_go() {
    let shell = Shell::new();
    let before = shell.files();
    fs::write(shell.path(".dbcache-trt-abc"), "half a file").unwrap();
    fs::create_dir_all(shell.path(".dbcache-trt-def/new")).unwrap();
    shell.tiny("--steps 1 --save-latents a").code(0);
    let after: Vec<_> = shell.files().difference(&before).cloned().collect();
    assert_eq!(after, ["a"]);
}

#[test]
fn a_link_stays_and_its_target_is_written() {
    let shell = studio();
    let folder = shell.path("elsewhere");
    fs::create_dir(&folder).unwrap();
    for (name, options) in [
        ("a.gif", film("-o a.gif")),
        ("frames", film("-o frames")),
        ("trace.json", film("-o b.png --trace trace.json")),
        ("latents", film("-o c.png --save-latents latents")),
    ] {
        // Relative to the folder of the link, and dangling; then as a link to what is there.
        symlink(PathBuf::from("elsewhere").join(name), shell.path(name)).unwrap();
        shell.run(&words(&options)).code(0);
        assert!(shell.path(name).is_symlink() && folder.join(name).exists(), "{name}");
        if name == "frames" {
            assert_eq!(fs::read_dir(folder.join(name)).unwrap().count(), 21);
            continue; // It is not empty any more.
        }
        fs::write(folder.join(name), "").unwrap();
        shell.run(&words(&options)).code(0);
        assert!(shell.path(name).is_symlink() && folder.join(name).metadata().unwrap().len() > 0, "{name}");
    }
}

/// File names are bytes.
#[test]
fn names_need_not_be_unicode() {
    let shell = studio();
    let lemon = |output: &[u8], more: &str| {
        let all = film(more);
        let output = OsString::from_vec(output.to_vec());
        shell.run(&[words(&all), vec![OsStr::new("-o"), &output]].concat()).code(0);
    };
    lemon(b"a\xff.gif", "--count 2 --seed 7");
    lemon(b"b\xff_%04d.png", "--count 2 --seed 7");
    lemon(b"c\xff_%04d.png", "");
    for name in [&b"a\xff-7.gif"[..], b"a\xff-8.gif", b"b\xff_0020-7.png", b"b\xff_0000-8.png", b"c\xff_0020.png"] {
        assert!(shell.folder.path().join(OsStr::from_bytes(name)).is_file(), "{name:?}");
    }
}

/// The command would wait for it for a while, and then tell of it with another code.
#[test]
fn a_program_that_hangs_when_asked_for_its_version_does_not_delay_an_interrupt() {
    let shell = studio();
    fs::write(shell.path("ffmpeg"), "#!/bin/sh\necho $$ > started\nexec /bin/sleep 1000\n").unwrap();
    fs::set_permissions(shell.path("ffmpeg"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = shell.command();
    command.args(words(&film("-o a.mp4"))).env("PATH", shell.folder.path());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = || fs::read_to_string(shell.path("started")).unwrap_or_default();
    wait_until("ffmpeg is asked", || started().ends_with('\n'));
    let kill = |signal: &str, program: &str| {
        Command::new("kill").args([signal, program]).stderr(Stdio::null()).status().unwrap().success()
    };
    assert!(kill("-INT", &child.id().to_string()));
    let ran = Ran::new(&command, child.wait_with_output().unwrap()).code(130).stderr("cancelled");
    assert!(!ran.err.contains("has not ended"), "{ran}");
    assert!(!kill("-0", started().trim()), "ffmpeg still runs");
}

/// The report of a picture comes when the picture is there, and a reader who goes away stops nothing.
#[test]
fn each_picture_is_reported_when_it_is_done() {
    let shell = Shell::new();
    let ran = shell.lemon("--count 3 --steps 2 --seed 4").code(0);
    let places: Vec<usize> = (4..7).map(|seed| ran.out.find(&format!("picture  out-{seed}.png")).unwrap()).collect();
    assert!(places.is_sorted(), "{ran}");
    assert_eq!(ran.out.matches("engine   loaded in").count(), 1, "{ran}");
    assert_eq!(shell.lemon("--count 2 --steps 2 --json").json()["traces"].as_array().unwrap().len(), 2);

    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = shell.command();
    let inputs = shell.path("in.safetensors");
    command.args([
        "--engine",
        data("tiny-flux").to_str().unwrap(),
        "--inputs",
        inputs.to_str().unwrap(),
        "--steps",
        "1",
    ]);
    command.args(["--save-latents", "kept"]).stdout(full).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    Ran::new(&command, output).code(9).stderr("cannot write to the standard output");
    assert!(shell.path("kept").is_file());
}

/// A library of the right size with one other byte is not the one that setup has placed.
#[test]
fn a_damaged_library_is_told_and_not_loaded() {
    let places = library_places(&Default::default());
    let Some(good) = places.iter().find(|place| place.examine().is_ok()) else { panic!("no library") };
    let folder = tempfile::tempdir().unwrap();
    let version = good.path.parent().unwrap().file_name().unwrap();
    let damaged = folder.path().join("onnxruntime").join(version);
    fs::create_dir_all(&damaged).unwrap();
    let damaged = damaged.join(good.path.file_name().unwrap());
    let mut bytes = fs::read(&good.path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let shell = Shell::new();
    let run = |arguments: &[&str]| {
        let mut command = shell.command();
        command.args(arguments).env("DBCACHE_TRT_HOME", folder.path()).env_remove("ORT_DYLIB_PATH");
        Ran::of(&mut command)
    };
    let engine = data("tiny-flux");
    let generate =
        ["--engine", engine.to_str().unwrap(), "--inputs", "in.safetensors", "--steps", "1", "--save-latents", "a"];
    for arguments in [&["setup", "--check"][..], &generate] {
        let ran = run(arguments).code(3).stderr("damaged: its SHA-256 is");
        ran.stderr(damaged.to_str().unwrap()).stderr("run `dbcache-trt setup`");
    }
    assert!(!shell.path("a").exists());
    fs::copy(&good.path, &damaged).unwrap();
    run(&["setup", "--check"]).code(0);
    run(&generate).code(0);
}

/// `ulimit -v` stands for a machine whose memory is full: wherever that is noticed, the command says so, and what may help.
#[test]
fn a_full_memory_is_told() {
    let shell = Shell::new();
    let engine = data("tiny-flux");
    let tensors = [("prompt_embeds", vec![16, 12, 32]), ("pooled_projections", vec![16, 24])];
    let tensors = tensors.map(|(name, shape)| (name.to_owned(), ArrayD::<f32>::ones(shape)));
    write_tensors(&shell.path("many.safetensors"), &tensors.into()).unwrap();
    let before = shell.files();
    let mut told = 0;
    for kilobytes in (100_000..=400_000).step_by(25_000) {
        let mut command = Command::new("sh");
        let limit = format!(
            "ulimit -v {kilobytes}; exec $0 --engine {} --inputs many.safetensors --steps 1 --save-latents a",
            engine.display()
        );
        let ran =
            Ran::of(command.args(["-c", &limit, env!("CARGO_BIN_EXE_dbcache-trt")]).current_dir(shell.folder.path()));
        // 3: the library is mapped as a whole.
        assert!(matches!(ran.code, Some(0 | 3 | 12)), "{kilobytes}: {ran}");
        told += usize::from(ran.err.contains("the memory is full") && ran.err.contains("a smaller batch"));
        match ran.code {
            // A run with more room may still fail after it.
            Some(0) => fs::remove_file(shell.path("a")).unwrap(),
            _ => assert_eq!(shell.files(), before, "{kilobytes}: {ran}"),
        }
    }
    assert!(told > 0);
}
