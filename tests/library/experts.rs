//! A model of two transformers that take turns. That each step is computed and decided as in the reference is shown by
//! tests/library/families.rs (`wan_two`); here: whose step it is, what belongs to each, and refusals.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::damage::{Cases, Copy, load, set};
use crate::common::data;
use dbcache_trt::ErrorKind::{EngineDirectory, Usage};
use dbcache_trt::cache::{Branch, PolicyConfig};
use dbcache_trt::trace::{Trace, recording};
use dbcache_trt::{
    Engine, EngineOptions, GuidanceBy, Inputs, Model, ModelPart, Output, RequestOptions, StagesChoice, read_tensors,
    write_stages,
};
use serde_json::json;

const STEPS: usize = 10;
/// Of the first transformer.
const FIRST: usize = 5;

fn engine() -> Engine {
    per_block(&data("families/wan_two/engine"))
}

/// One block a stage, so that a run without a cache has the same cuts as one with it.
fn per_block(path: &Path) -> Engine {
    let options = EngineOptions { stages: StagesChoice::PerBlock, ..EngineOptions::default() };
    Engine::load(path, &options).unwrap()
}

fn inputs() -> Inputs {
    let recorded = read_tensors(&data("families/wan_two/vectors.safetensors")).unwrap();
    let given = recorded.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("in.")?, tensor.clone())));
    Inputs { tensors: given.map(|(name, tensor)| (name.to_owned(), tensor)).collect(), ..Inputs::default() }
}

fn options(cache: &str) -> RequestOptions {
    RequestOptions { cache: cache.parse().unwrap(), steps: Some(STEPS), ..RequestOptions::default() }
}

fn run(engine: &Engine, options: &RequestOptions) -> Output {
    let request = engine.request(&inputs(), options).unwrap();
    let records = request.records();
    let output = request.run(&mut ()).unwrap();
    assert_eq!(output.trace.records.len(), records);
    output
}

#[test]
fn each_has_its_own_steps_warm_up_and_cache() {
    let engine = engine();
    let options = options("f1b0w2r1mc1");
    let trace = run(&engine, &options).trace;
    // Warm-up counts anew, and nothing is reused across the change: without it, the pattern would go on.
    assert_eq!(trace.decisions(Branch::Cond), "CCSCSCCSCS");
    for record in &trace.records {
        assert_eq!(record.expert, Some(usize::from(record.step >= FIRST)), "{record:?}");
        assert_eq!(record.steps, STEPS);
    }
    assert_eq!(engine.cache_bytes(&options, Some(7)).unwrap(), trace.cache_bytes);
    let one = Engine::load(data("families/wan/engine"), &EngineOptions::default()).unwrap();
    let of_one = one.request(&inputs(), &options).unwrap().run(&mut ()).unwrap().trace;
    assert_eq!(of_one.records[0].expert, None);
    assert_eq!(of_one.decisions(Branch::Cond), "CCSCSCSCSC");
    assert_eq!(2 * of_one.cache_bytes.residuals, trace.cache_bytes.residuals);

    let json = trace.to_json();
    assert_eq!((&json["version"], &json["records"][19]["expert"]), (&json!(2), &json!(1)));
    assert_eq!(Trace::from_json(&json).unwrap().to_json(), json);
}

#[test]
fn a_replay_repeats_the_decisions_of_both() {
    let engine = engine();
    for (cache, arithmetic) in [("f1b0w1r0.42", "auto"), ("f2b1w2r0.45", "auto"), ("f1b0w1r0.42", "stages")] {
        let load = EngineOptions { arithmetic: arithmetic.parse().unwrap(), ..EngineOptions::default() };
        let engine = if arithmetic == "auto" {
            engine.clone()
        } else {
            Engine::load(data("families/wan_two/engine"), &load).unwrap()
        };
        let recorded = run(&engine, &options(cache));
        let decisions = recorded.trace.decisions(Branch::Cond);
        assert!(decisions[..FIRST].contains('S') && decisions[FIRST..].contains('S'), "{decisions}");
        let (config, recording) = recording(&recorded.trace.to_json()).unwrap();
        let replayed = PolicyConfig::replay(config, recording);
        let again = run(&engine, &RequestOptions { cache: replayed.clone(), ..options("none") });
        assert_eq!(again.trace.decisions(Branch::Cond), decisions, "{cache}");
        assert_eq!(again.latents, recorded.latents, "{cache}");
        let shorter = RequestOptions { cache: replayed, steps: Some(STEPS - 1), ..options("none") };
        let refused = engine.request(&inputs(), &shorter).map(drop).unwrap_err();
        assert!(refused.to_string().contains("expert"), "{refused}");
    }
}

#[test]
fn each_has_its_own_scale() {
    let engine = engine();
    let mut seen: BTreeMap<String, (Option<f32>, Option<f32>)> = BTreeMap::new();
    for (guidance, guidance_2, expected) in [
        (None, None, (Some(4.0), Some(3.0))),
        (Some(4.0), None, (Some(4.0), Some(4.0))),
        (Some(5.0), None, (Some(5.0), Some(5.0))),
        (None, Some(2.0), (Some(4.0), Some(2.0))),
        (Some(5.0), Some(1.0), (Some(5.0), Some(1.0))),
    ] {
        let output = run(&engine, &RequestOptions { guidance, guidance_2, ..options("none") });
        assert_eq!((output.trace.cfg, output.trace.cfg_2), expected);
        let metadata: BTreeMap<_, _> = output.trace.picture_metadata(&inputs(), 0).into_iter().collect();
        assert_eq!(metadata.get("cfg_2").cloned(), expected.1.map(|scale| scale.to_string()));
        assert_eq!((metadata["frames"].as_str(), metadata["fps"].as_str()), ("9", "16"));
        let latents = format!("{:?}", output.latents.iter().take(8).collect::<Vec<_>>());
        assert_eq!(*seen.entry(latents).or_insert(expected), expected);
    }
    assert_eq!(seen.len(), 5);
}

#[test]
fn only_those_that_run_are_bound() {
    // All steps lie above the boundary, or all below it.
    for (below, expert) in [(1.0, 0), (99_999.0, 1)] {
        let copy = Copy::family("wan_two");
        copy.set("/low_noise/below", json!(below));
        let engine = per_block(copy.folder.path());
        let trace = run(&engine, &options("f1b0w2r1mc1")).trace;
        assert!(trace.records.iter().all(|record| record.expert == Some(expert)));
        assert_eq!(trace.decisions(Branch::Cond), "CCSCSCSCSC");
        assert_eq!(engine.cache_bytes(&options("f1b0w2r1mc1"), Some(7)).unwrap(), trace.cache_bytes);
    }
}

#[test]
fn what_an_engine_says_of_them() {
    let path = data("families/wan_two/engine");
    let info = Model::open(&path, &EngineOptions::default()).unwrap().info();
    assert_eq!((info.low_noise, info.blocks), (Some((800.0, 3.0)), 4));
    assert!(
        info.to_string().contains("experts     2 transformers; the second below timestep 800, guidance 3"),
        "{info}"
    );
    let one = Model::open(data("families/wan/engine"), &EngineOptions::default()).unwrap().info();
    assert_eq!((one.low_noise, info.parameters), (None, 2 * one.parameters));

    let load = EngineOptions { stages: StagesChoice::Blocks(2), ..EngineOptions::default() };
    let names: Vec<String> =
        Model::open(&path, &load).unwrap().stages().unwrap().iter().map(|stage| stage.name().to_owned()).collect();
    let expected = ["embed and blocks 0..2", "blocks 2..4 and final"];
    let expected: Vec<String> =
        [0, 1].iter().flat_map(|expert| expected.map(|name| format!("expert {expert}: {name}"))).collect();
    assert_eq!(names, expected);
    let loaded = Engine::load(&path, &load).unwrap().stages();
    assert_eq!(loaded.iter().map(|stage| stage.name().to_owned()).collect::<Vec<_>>(), expected);

    let folder = tempfile::tempdir().unwrap();
    let files = write_stages(&path, &load, &"64x64".parse().unwrap(), &folder.path().join("out")).unwrap();
    let names: Vec<&str> = files.iter().map(|file| file.file.as_str()).collect();
    assert_eq!(names[0], "expert_0_embed_blocks_000_001.onnx");
    assert_eq!(names[3], "expert_1_blocks_002_003_final.onnx");
}

#[test]
fn refusals() {
    let mut cases = Cases::default();
    for (name, pointer, value, words) in [
        ("below", "/low_noise/below", json!(0.0), "`low_noise.below` is 0; expected a timestep above 0"),
        ("no boundary", "/low_noise/below", json!(null), "does not parse"),
        ("too few blocks", "/low_noise/blocks", json!([]), "`low_noise` has 0 blocks; expected 4"),
        ("scale", "/low_noise/guidance", json!(1e300), "`low_noise.guidance` is not a finite f32"),
        ("twice", "/low_noise/embed/file", json!("embed.onnx"), "file `embed.onnx` is named twice"),
        ("hash", "/low_noise/final/sha256", json!("0"), "`low_noise_final.onnx`"),
        ("ports", "/low_noise/embed/inputs", json!([]), "does not parse"),
    ] {
        let copy = Copy::family("wan_two");
        copy.set(pointer, value);
        cases.judge(name, load(copy.folder.path(), &EngineOptions::default()), EngineDirectory, &[words]);
    }
    let copy = Copy::family("wan_two");
    copy.manifest(|manifest| set(manifest, "/low_noise", None));
    let words = ["low_noise", "not named by the manifest"];
    cases.judge("left out", load(copy.folder.path(), &EngineOptions::default()), EngineDirectory, &words);

    let engine = engine();
    let refused = |options: &RequestOptions| engine.request(&inputs(), options).map(drop).unwrap_err();
    for (cache, words) in [("f1b0scm:1110011100", "expert 0 (steps 0..5)"), ("f3b3", "blocks would run twice")] {
        let error = refused(&options(cache));
        assert!(error.kind() == Usage && error.to_string().contains(words), "{cache}: {error}");
    }
    let one = Engine::load(data("families/wan/engine"), &EngineOptions::default()).unwrap();
    let with_second = RequestOptions { guidance_2: Some(2.0), ..options("none") };
    let error = one.request(&inputs(), &with_second).map(drop).unwrap_err();
    assert!(error.to_string().contains("the option `guidance-2` has no effect: this model has no second"), "{error}");
    let error = engine.denoiser(&inputs(), &with_second, GuidanceBy::Host).map(drop).unwrap_err();
    assert!(error.to_string().contains("the option `guidance-2` has no effect: the host"), "{error}");
    let mut request = engine.request(&inputs(), &options("none")).unwrap();
    let latents = request.latents().unwrap();
    let error = request.velocity(&latents, 1.0).map(drop).unwrap_err();
    assert!(error.kind() == Usage && error.to_string().contains("two transformers"), "{error}");
    let error = engine.probe(2, &ModelPart::Embed, &BTreeMap::new()).unwrap_err();
    assert!(error.kind() == Usage && error.to_string().contains("expert 2 of a model that has 2"), "{error}");
}
