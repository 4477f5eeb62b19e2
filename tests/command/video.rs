//! Videos from the command, read back with other readers than those that wrote them: frames, size, rate, metadata. MP4 and
//! WebM need ffmpeg and ffprobe: `cargo xtask check-video` runs them. (A script in ffmpeg's place: `video.rs`.)

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::process::Command;

use crate::common::data;
use crate::common::shell::{Ran, Shell};
use dbcache_trt::{Image, Video, write_tensors};
use ndarray::ArrayD;
use serde_json::{Value, json};

/// By which the mean of a channel may change in a palette of 256 colours, or with colours at half the resolution: these
/// videos are noise, the worst case of both.
const LEVELS: f64 = 10.0;
/// In dB: by which a neighbour may be closer than the frame itself, in a slow part of a video.
const NEIGHBOURS: f64 = 0.5;

/// Options of a run, and the video that it makes.
struct Case {
    engine: &'static str,
    options: &'static str,
    frames: usize,
    fps: f64,
    size: (u32, u32),
}

const CASES: [Case; 3] = [
    // The engine's own frames, rate and size; decoded in one go, and in runs of frames.
    Case { engine: "tiny-video/engine", options: "", frames: 9, fps: 25.0, size: (128, 128) },
    Case { engine: "decode/video/engine", options: "", frames: 21, fps: 15.0, size: (48, 32) },
    Case {
        engine: "tiny-video/engine",
        options: "--frames 17 --fps 12.5 --size 96x64",
        frames: 17,
        fps: 12.5,
        size: (96, 64),
    },
];

struct Studio(Shell);

impl Studio {
    fn new() -> Self {
        let shell = Shell::new();
        for engine in ["tiny-video/engine", "decode/video/engine"] {
            let numbers = |shape: &[usize], phase: f32| {
                let numbers = (0..shape.iter().product()).map(|k: usize| (k as f32 * 1.7 + phase).sin());
                ArrayD::from_shape_vec(shape, numbers.collect()).unwrap()
            };
            let mut tensors = BTreeMap::new();
            let branches: &[_] =
                if engine == "tiny-video/engine" { &[("", 0.0), ("negative_", 1.0)] } else { &[("", 0.0)] };
            for (branch, phase) in branches {
                tensors.insert(format!("{branch}prompt_embeds"), numbers(&[1, 5, 20], *phase));
                tensors.insert(format!("{branch}prompt_attention_mask"), ArrayD::ones(vec![1, 5]));
            }
            if engine == "decode/video/engine" {
                tensors.insert("pooled_projections".into(), numbers(&[1, 12], 0.0));
            }
            write_tensors(&shell.path(inputs(engine)), &tensors).unwrap();
        }
        Self(shell)
    }

    fn film(&self, case: &Case, more: &str) -> Ran {
        let engine = data(case.engine);
        let all = format!("--inputs {} --steps 2 {} {more}", inputs(case.engine), case.options);
        let engine = ["--engine", engine.to_str().unwrap()];
        self.0.run(&engine.into_iter().chain(all.split_whitespace()).collect::<Vec<_>>())
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path(name)
    }

    fn png(&self, name: &str) -> Png {
        read_png(&self.path(name))
    }
}

fn inputs(engine: &str) -> &'static str {
    if engine == "tiny-video/engine" { "guided.safetensors" } else { "in.safetensors" }
}

/// What a PNG holds: one frame, or all of an animation with the seconds of each.
struct Png {
    frames: Vec<Image>,
    delays: Vec<f64>,
    text: BTreeMap<String, String>,
}

fn read_png(path: &Path) -> Png {
    let mut reader = png::Decoder::new(BufReader::new(File::open(path).unwrap())).read_info().unwrap();
    let (width, height) = reader.info().size();
    assert_eq!(reader.info().color_type, png::ColorType::Rgb);
    let count = reader.info().animation_control().map_or(1, |animation| animation.num_frames);
    let (mut frames, mut delays) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut rgb).unwrap();
        frames.push(Image { width, height, rgb });
        if let Some(frame) = reader.info().frame_control() {
            delays.push(f64::from(frame.delay_num) / f64::from(frame.delay_den));
        }
    }
    reader.finish().unwrap();
    let text = reader.info().utf8_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.get_text().unwrap())).collect();
    Png { frames, delays, text }
}

/// Frames and their delays in hundredths of a second.
fn read_gif(path: &Path) -> (Vec<Image>, Vec<u16>) {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    let mut decoder = options.read_info(File::open(path).unwrap()).unwrap();
    assert_eq!(decoder.repeat(), gif::Repeat::Infinite);
    let (width, height) = (u32::from(decoder.width()), u32::from(decoder.height()));
    let (mut frames, mut delays) = (Vec::new(), Vec::new());
    while let Some(frame) = decoder.read_next_frame().unwrap() {
        let rgb = frame.buffer.chunks(4).flat_map(|pixel| pixel[..3].to_vec()).collect();
        frames.push(Image { width, height, rgb });
        delays.push(frame.delay);
    }
    (frames, delays)
}

fn check_text(text: &BTreeMap<String, String>, case: &Case, seed: u64) {
    for (key, value) in [
        ("Software", concat!("dbcache-trt ", env!("CARGO_PKG_VERSION")).to_owned()),
        ("seed", seed.to_string()),
        ("steps", "2".into()),
        ("frames", case.frames.to_string()),
        ("fps", case.fps.to_string()),
        ("cache", "none".into()),
        ("decisions", "CC".into()),
    ] {
        assert_eq!(text.get(key), Some(&value), "{key}");
    }
}

fn check_size(frames: &[Image], case: &Case) {
    assert_eq!(frames.len(), case.frames);
    for frame in frames {
        assert_eq!(((frame.width, frame.height), frame.rgb.len() as u32), (case.size, case.size.0 * case.size.1 * 3));
    }
}

/// Frames that a format with loss has kept: each in its place, with its colours.
fn check_kept(frames: &[Image], originals: &[Image]) {
    assert_eq!(frames.len(), originals.len());
    for (k, frame) in frames.iter().enumerate() {
        let psnr: Vec<f64> = originals.iter().map(|original| frame.psnr(original).unwrap()).collect();
        let best = psnr.iter().copied().fold(f64::MIN, f64::max);
        assert!(psnr[k] >= best - NEIGHBOURS, "frame {k}: {psnr:.1?} dB");
        for (channel, (ours, theirs)) in colour(frame).into_iter().zip(colour(&originals[k])).enumerate() {
            assert!((ours - theirs).abs() <= LEVELS, "frame {k}, channel {channel}: {ours}, not {theirs}");
        }
    }
    // It would not be noticed if they all looked the same.
    let turned = frames[0].psnr(&originals[originals.len() - 1]).unwrap();
    assert!(turned < frames[0].psnr(&originals[0]).unwrap() - 2.0 * NEIGHBOURS, "{turned} dB");
}

/// The mean of each channel.
fn colour(image: &Image) -> [f64; 3] {
    let pixels = image.rgb.len() as f64 / 3.0;
    [0, 1, 2]
        .map(|channel| image.rgb.iter().skip(channel).step_by(3).map(|level| f64::from(*level)).sum::<f64>() / pixels)
}

#[test]
fn every_format_holds_the_same_video() {
    for case in &CASES {
        let studio = Studio::new();
        studio.film(case, "--seed 3 -o a.png").code(0).stdout("a.png");
        let animation = studio.png("a.png");
        check_size(&animation.frames, case);
        check_text(&animation.text, case, 3);
        assert_eq!(animation.delays, vec![1.0 / case.fps; case.frames]);
        assert!(animation.frames.windows(2).all(|pair| pair[0] != pair[1]), "it stands still");

        // PNG loses nothing.
        studio.film(case, "--seed 3 -o f_%04d.png").code(0).stdout("f_0000.png");
        studio.film(case, "--seed 3 -o frames").code(0).stdout("frames");
        let names = |k: usize| [format!("f_{k:04}.png"), format!("frames/frame_{k:04}.png")];
        for (k, frame) in animation.frames.iter().enumerate() {
            for name in names(k) {
                let one = studio.png(&name);
                assert!(one.frames == std::slice::from_ref(frame) && one.delays.is_empty(), "{name}");
                check_text(&one.text, case, 3);
            }
        }
        assert!(names(case.frames).iter().all(|name| !studio.path(name).exists()));

        studio.film(case, "--seed 3 -o a.gif").code(0).stdout("a.gif");
        let (frames, delays) = read_gif(&studio.path("a.gif"));
        check_size(&frames, case);
        check_kept(&frames, &animation.frames);
        // Hundredths of a second: each frame starts as near to its time as they allow.
        let start = |frame: usize| (100.0 * frame as f64 / case.fps).round() as u16;
        assert_eq!(delays, (0..case.frames).map(|frame| start(frame + 1) - start(frame)).collect::<Vec<_>>());
    }
}

#[test]
fn several_videos_are_those_of_their_seeds() {
    let (case, studio) = (&CASES[1], Studio::new());
    for output in ["a.png", "b_%04d.png", "c", "d.gif"] {
        studio.film(case, &format!("--count 2 --seed 5 -o {output}")).code(0);
    }
    for seed in [5, 6] {
        studio.film(case, &format!("--seed {seed} -o one.png")).code(0);
        let one = studio.png("one.png");
        let animation = studio.png(&format!("a-{seed}.png"));
        assert!(animation.frames == one.frames, "{seed}");
        check_text(&animation.text, case, seed);
        for (k, frame) in one.frames.iter().enumerate() {
            for name in [format!("b_{k:04}-{seed}.png"), format!("c-{seed}/frame_{k:04}.png")] {
                let picture = studio.png(&name);
                assert!(picture.frames == std::slice::from_ref(frame), "{name}");
                check_text(&picture.text, case, seed);
            }
        }
        check_kept(&read_gif(&studio.path(&format!("d-{seed}.gif"))).0, &one.frames);
    }
    assert!(studio.png("a-5.png").frames != studio.png("a-6.png").frames);
}

#[test]
fn a_missing_ffmpeg_is_told_before_the_work() {
    let studio = Studio::new();
    let nothing = tempfile::tempdir().unwrap();
    // What is found later is wrong as well, and must not be what is told.
    for (output, code, words) in [
        ("a.mp4", 9, "cannot write a.mp4: ffmpeg is not installed"),
        ("a.webm", 9, "cannot write a.webm: ffmpeg is not installed"),
        ("a.avi", 2, "ends in .avi"),
        ("a.gif", 5, "--frames is 999"),
    ] {
        let mut command = studio.0.command();
        command.env("PATH", nothing.path()).arg("--engine").arg(data("tiny-video/engine"));
        command.args(["--inputs", "guided.safetensors", "--frames", "999", "-o", output]);
        Ran::of(&mut command).code(code).stderr(words);
    }
    let mut command = studio.0.command();
    command.arg("--engine").arg(data("tiny-video/engine"));
    command.args(["--inputs", "guided.safetensors", "--fps", "60", "-o", "a.gif"]);
    Ran::of(&mut command).code(2).stderr("a GIF has at most 50 frames a second, this video has 60");
}

#[test]
fn rates_that_no_format_holds() {
    let (case, studio) = (&CASES[0], Studio::new());
    for (fps, outputs) in [("nan", "a.gif a.png"), ("0", "a.gif"), ("0.001", "a.gif a.png"), ("1001", "a.png")] {
        for output in outputs.split(' ') {
            let ran = studio.film(case, &format!("--fps {fps} -o {output}")).code(2);
            ran.stderr("--fps is ").stderr("expected 0.01 to 1000");
        }
    }
}

/// What is there already is found before the model is loaded, which it cannot be here, and stays as it is.
#[test]
fn frames_of_two_videos_are_not_mixed() {
    let studio = Studio::new();
    for folder in ["empty", "full", "many-6"] {
        fs::create_dir(studio.path(folder)).unwrap();
    }
    for file in ["full/frame_0000.png", "many-6/notes", "file"] {
        fs::write(studio.path(file), "mine").unwrap();
    }
    let taken = "it is there and not an empty folder; name another one, or remove it";
    for (options, code, words) in [
        ("-o full", 9, taken),
        ("-o full/", 9, taken),
        ("-o file", 9, taken),
        ("-o .", 9, taken),
        ("-o many --count 2 --seed 5", 9, "cannot write frames to many-6: it is there"),
        ("-o many --count 999999999 --seed 1", 9, "cannot write frames to many-6: it is there"),
        ("-o nowhere/new", 9, "the folder nowhere does not exist"),
        ("-o many --count 2 --seed 7", 3, "no usable ONNX Runtime library"),
        ("-o empty", 3, "no usable ONNX Runtime library"),
        ("-o new", 3, "no usable ONNX Runtime library"),
    ] {
        let mut command = studio.0.command();
        command.arg("--engine").arg(data("tiny-video/engine")).args(["--inputs", "guided.safetensors"]);
        command.args(options.split_whitespace()).env("ORT_DYLIB_PATH", "nonsense.so");
        Ran::of(&mut command).code(code).stderr(words);
    }
    for file in ["full/frame_0000.png", "many-6/notes", "file"] {
        assert_eq!(fs::read_to_string(studio.path(file)).unwrap(), "mine");
    }
}

/// What ffprobe says of the only stream of a file, after it has decoded every frame.
fn probe(path: &Path) -> Value {
    let options = ["-v", "error", "-count_frames", "-show_streams", "-of", "json"];
    let output = Command::new("ffprobe").args(options).arg(path).output().expect("ffprobe is needed");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let streams = serde_json::from_slice::<Value>(&output.stdout).unwrap()["streams"].take();
    let [stream] = streams.as_array().unwrap().as_slice() else { panic!("{streams}") };
    stream.clone()
}

/// All frames, as ffmpeg decodes them.
fn decode(path: &Path, size: (u32, u32)) -> Vec<Image> {
    let (width, height) = size;
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-nostdin", "-i"]).arg(path).args(["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]);
    let output = ffmpeg.output().expect("ffmpeg is needed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let frames = output.stdout.chunks((width * height * 3) as usize);
    frames.map(|rgb| Image { width, height, rgb: rgb.to_vec() }).collect()
}

fn check_stream(path: &Path, codec: &str, pixels: &str, frames: usize, fps: f64, size: (u32, u32)) {
    let stream = probe(path);
    for (key, value) in [
        ("codec_name", json!(codec)),
        ("pix_fmt", json!(pixels)),
        ("nb_read_frames", json!(frames.to_string())),
        ("width", json!(size.0)),
        ("height", json!(size.1)),
    ] {
        assert_eq!(stream[key], value, "{key} of {}", path.display());
    }
    let rate = stream["avg_frame_rate"].as_str().unwrap();
    let (numerator, denominator) = rate.split_once('/').unwrap();
    let rate = numerator.parse::<f64>().unwrap() / denominator.parse::<f64>().unwrap();
    assert!((rate - fps).abs() < 0.01, "{}: {rate} frames per second, expected {fps}", path.display());
}

#[test]
#[ignore = "needs ffmpeg: `cargo xtask check-video`"]
fn ffmpeg_makes_mp4_and_webm() {
    for case in &CASES {
        let studio = Studio::new();
        studio.film(case, "--seed 3 -o a.png").code(0);
        let originals = studio.png("a.png").frames;
        for (name, codec) in [("a.mp4", "h264"), ("a.webm", "vp9")] {
            studio.film(case, &format!("--seed 3 -o {name}")).code(0).stdout(name);
            let path = studio.path(name);
            check_stream(&path, codec, "yuv420p", case.frames, case.fps, case.size);
            check_kept(&decode(&path, case.size), &originals);
        }
    }
}

/// No model here makes odd sides, which cannot be halved.
#[test]
#[ignore = "needs ffmpeg: `cargo xtask check-video`"]
fn ffmpeg_takes_odd_sides() {
    let size = (33, 17);
    let frame = |k: u32| {
        let rgb =
            (0..17 * 33).flat_map(|at: u32| [(at % 33 * 7) as u8, (at / 33 * 15) as u8, (40 * k) as u8]).collect();
        Image { width: 33, height: 17, rgb }
    };
    let video = Video { frames: (0..6).map(frame).collect(), fps: 24.0 };
    let folder = tempfile::tempdir().unwrap();
    for (name, codec) in [("a.mp4", "h264"), ("a.webm", "vp9")] {
        let path = folder.path().join(name);
        video.write(&path, &[]).unwrap();
        check_stream(&path, codec, "yuv444p", 6, 24.0, size);
        check_kept(&decode(&path, size), &video.frames);
    }
}
