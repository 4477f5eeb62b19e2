//! Decoding in tiles, in slices and in runs of frames, against diffusers' autoencoders (`tests/data/decode/`).

use std::path::Path;

use crate::common::{copy_files, data};
use dbcache_trt::trace::Trace;
use dbcache_trt::{Engine, EngineOptions, ErrorKind, GuidanceBy, Inputs, RequestOptions};
use ndarray::ArrayD;
use safetensors::SafeTensors;

/// Of one picture's 255 levels: what is next to a step may fall to either side of it.
const LEVELS: u8 = 1;
/// The share of numbers that may: with an error of 1e-4 in −1 … 1, a step of 2 / 255 is missed by about one in 80.
const SHARE: f64 = 0.01;

/// A recorded engine: its latents, and bytes by name.
struct Recorded {
    engine: Engine,
    file: Vec<u8>,
    is_video: bool,
}

impl Recorded {
    fn read(name: &str) -> Self {
        let file = std::fs::read(data("decode").join(name).join("vectors.safetensors")).unwrap();
        Self { engine: load(&data("decode").join(name).join("engine")), file, is_video: name == "video" }
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.file).unwrap().tensor(name).unwrap().data().to_vec()
    }

    fn latents(&self) -> ArrayD<f32> {
        let file = SafeTensors::deserialize(&self.file).unwrap();
        let tensor = file.tensor("latents").unwrap();
        let numbers = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        ArrayD::from_shape_vec(tensor.shape(), numbers).unwrap()
    }

    fn options(&self, decode_tile: Option<u64>, decode_slices: bool) -> RequestOptions {
        RequestOptions { decode_tile, decode_slices, ..options(self.is_video) }
    }

    /// The recorded latents, decoded.
    fn decode(&self, decode_tile: Option<u64>, decode_slices: bool) -> Vec<u8> {
        decode(&self.engine, &self.latents(), &self.options(decode_tile, decode_slices), self.is_video)
    }
}

fn load(directory: &Path) -> Engine {
    Engine::load(directory, &EngineOptions::default()).unwrap()
}

fn options(is_video: bool) -> RequestOptions {
    match is_video {
        true => RequestOptions { steps: Some(1), ..RequestOptions::default() },
        false => {
            let size = Some((112, 80));
            RequestOptions { steps: Some(1), size, batch: Some(2), guidance: Some(1.0), ..RequestOptions::default() }
        }
    }
}

fn inputs(batch: usize, is_video: bool) -> Inputs {
    let shapes = match is_video {
        true => [("prompt_embeds", 20), ("pooled_projections", 12)].as_slice(),
        false => [("prompt_embeds", 24)].as_slice(),
    };
    let mut inputs = Inputs::default();
    for (name, width) in shapes {
        let shape = if *name == "prompt_embeds" { vec![batch, 5, *width] } else { vec![batch, *width] };
        inputs.tensors.insert((*name).into(), ArrayD::zeros(shape));
    }
    inputs.tensors.insert("prompt_attention_mask".into(), ArrayD::ones(vec![batch, 5]));
    inputs
}

fn decode(engine: &Engine, latents: &ArrayD<f32>, options: &RequestOptions, is_video: bool) -> Vec<u8> {
    let inputs = inputs(latents.shape()[0], is_video);
    let output = engine.denoiser(&inputs, options, GuidanceBy::Library).unwrap().output(latents).unwrap();
    let frames = output.videos.into_iter().flat_map(|video| video.frames);
    output.images.into_iter().chain(frames).flat_map(|image| image.rgb).collect()
}

fn agree(ours: &[u8], theirs: &[u8], case: &str) {
    assert_eq!(ours.len(), theirs.len(), "{case}");
    let other: Vec<u8> = ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b)).filter(|by| *by > 0).collect();
    assert!(other.iter().all(|by| *by <= LEVELS), "{case}: by {:?}", other.iter().max());
    assert!((other.len() as f64) < SHARE * ours.len() as f64, "{case}: {} of {}", other.len(), ours.len());
}

#[test]
fn tiles_slices_and_runs_are_those_of_diffusers() {
    for (name, tile, slices, expected) in [
        ("picture", None, false, "whole"),
        ("picture", None, true, "whole"),
        ("picture", Some(32), false, "tiled"),
        ("picture", Some(32), true, "tiled"),
        ("video", None, false, "whole"),
        ("video", Some(32), false, "tiled"),
    ] {
        let recorded = Recorded::read(name);
        assert_ne!(recorded.bytes("whole"), recorded.bytes("tiled"));
        let case = format!("{name}, tile {tile:?}, slices {slices}");
        agree(&recorded.decode(tile, slices), &recorded.bytes(expected), &case);
    }
}

#[test]
fn slices_take_less_memory() {
    let recorded = Recorded::read("picture");
    let bytes = |slices| {
        let options = recorded.options(None, slices);
        let mut session = recorded.engine.denoiser(&inputs(2, false), &options, GuidanceBy::Library).unwrap();
        session.output(&recorded.latents()).unwrap().trace.tensor_bytes
    };
    let (at_once, one_by_one) = (bytes(false), bytes(true));
    let picture = 4 * 3 * 112 * 80;
    assert!(at_once >= one_by_one + picture, "{at_once} {one_by_one}");
}

#[test]
fn runs_are_what_the_manifest_says() {
    let recorded = Recorded::read("video");
    let folder = tempfile::tempdir().unwrap();
    copy_files(&data("decode/video/engine"), folder.path(), |_| true);
    let path = folder.path().join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let mut write = |runs: Option<serde_json::Value>| {
        let video = manifest["video"].as_object_mut().unwrap();
        match runs {
            Some(runs) => video.insert("runs".into(), runs),
            None => video.remove("runs"),
        };
        std::fs::write(&path, manifest.to_string()).unwrap();
    };
    write(None);
    let whole = decode(&load(folder.path()), &recorded.latents(), &options(true), true);
    assert_eq!(whole.len(), recorded.bytes("whole").len());
    let differ = whole.iter().zip(recorded.bytes("whole")).filter(|(a, b)| a.abs_diff(*b) > LEVELS).count();
    assert!(differ > whole.len() / 20, "{differ} of {}", whole.len());
    for stride in [0, 5] {
        write(Some(serde_json::json!({"latent_frames": 4, "stride": stride})));
        let refused = Engine::load(folder.path(), &EngineOptions::default()).map(drop).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::EngineDirectory);
        assert!(refused.to_string().contains(&format!("`video.runs` has a stride of {stride}")), "{refused}");
    }
}

#[test]
fn what_has_no_effect_is_refused() {
    let (picture, video) = (Recorded::read("picture"), Recorded::read("video"));
    let one = RequestOptions { batch: Some(1), ..picture.options(None, true) };
    for (recorded, options, name, words) in [
        (&picture, picture.options(Some(40), false), "decode-tile", "is 40; expected a multiple of 32 pixels"),
        (&picture, picture.options(Some(0), false), "decode-tile", "is 0; expected a multiple of 32 pixels"),
        (&picture, picture.options(Some(128), false), "decode-tile", "the picture is not larger than one tile"),
        (&picture, one, "decode-slices", "there is one picture"),
        (&video, video.options(None, true), "decode-slices", "videos are decoded one by one"),
        (&video, video.options(Some(64), false), "decode-tile", "the picture is not larger than one tile"),
    ] {
        let inputs = inputs(options.batch.unwrap_or(1), recorded.is_video);
        let refused = recorded.engine.request(&inputs, &options).map(drop).unwrap_err();
        assert_eq!((refused.kind(), refused.field()), (ErrorKind::Usage, Some(name)), "{refused}");
        assert!(refused.to_string().contains(words), "{refused}");
    }
    let latents_only = load(&data("tiny-flux"));
    for (name, tile) in [("decode-tile", Some(32)), ("decode-slices", None)] {
        let options = RequestOptions { decode_tile: tile, decode_slices: tile.is_none(), ..RequestOptions::default() };
        let refused = latents_only.request(&crate::common::tiny_inputs(false), &options).map(drop).unwrap_err();
        assert_eq!((refused.kind(), refused.field()), (ErrorKind::Usage, Some(name)), "{refused}");
        assert!(refused.to_string().contains("no decode graph"), "{refused}");
    }
}

/// Tiles change pixels a little, so what is left of a run says that there were some.
#[test]
fn traces_and_pictures_tell_the_tiles() {
    let engine = load(&data("decode/picture/engine"));
    for tile in [None, Some(64)] {
        let options = RequestOptions { decode_tile: tile, ..options(false) };
        let inputs = inputs(2, false);
        let trace = engine.request(&inputs, &options).unwrap().run(&mut ()).unwrap().trace;
        assert_eq!(trace.decode_tile, tile);
        assert_eq!(Trace::from_json(&trace.to_json()).unwrap().decode_tile, tile);
        let text = trace.picture_metadata(&inputs, 0);
        let told = text.iter().find(|(name, _)| name == "decode_tile").map(|(_, text)| text.as_str());
        assert_eq!(told, tile.map(|_| "64"));
    }
}
