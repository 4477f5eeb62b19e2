//! A batch whose pictures decide for themselves: each decides, and becomes, what it would alone.

use crate::common::shell::Shell;
use crate::common::{damage, data, emoji, relative_l1, tiny_inputs};
use dbcache_trt::cache::Branch;
use dbcache_trt::trace::{StepRecord, Trace, compare, recording};
use dbcache_trt::{CacheDType, Engine, EngineOptions, ErrorKind, Inputs, Output, RequestOptions, write_tensors};
use ndarray::{ArrayD, Axis, concatenate};
use serde_json::json;

const PICTURES: usize = 3;
/// A batch sums in another order than one picture; see tests/library/parity.rs for what that moves.
const DIFF_RELATIVE: f32 = 1e-4;
const LATENT_RELATIVE_L1: f64 = 1e-4;

fn run(engine: &Engine, inputs: &Inputs, options: &RequestOptions) -> Output {
    engine.request(inputs, options).unwrap().run(&mut ()).unwrap()
}

/// The inputs of three pictures, alone: texts of three strengths, whose noise has three seeds.
fn singles(is_guided: bool) -> Vec<Inputs> {
    let scaled = |factor: f32| {
        let mut inputs = tiny_inputs(is_guided);
        inputs.tensors.remove("latents");
        inputs.tensors.values_mut().for_each(|tensor| tensor.mapv_inplace(|number| number * factor));
        inputs
    };
    [1.0, 3.0, 0.2].map(scaled).into()
}

/// The inputs of several pictures as those of one batch.
fn joined(singles: &[Inputs]) -> Inputs {
    let join = |name: &String| {
        let views: Vec<_> = singles.iter().map(|inputs| inputs.tensors[name].view()).collect();
        (name.clone(), concatenate(Axis(0), &views).unwrap())
    };
    Inputs { tensors: singles[0].tensors.keys().map(join).collect(), ..Inputs::default() }
}

fn picture(latents: &ArrayD<f32>, index: usize) -> ArrayD<f32> {
    latents.slice_axis(Axis(0), (index..index + 1).into()).into_owned()
}

/// How many pictures computed at each step of a branch, in each list of blocks.
fn computed(trace: &Trace, branch: Branch) -> Vec<usize> {
    let each = trace.decisions_each(branch);
    let of_list = |list: &[String]| {
        let count = |step: usize| list.iter().filter(|decisions| decisions.as_bytes()[step] == b'C').count();
        (0..list[0].len()).map(count).collect::<Vec<_>>()
    };
    each.chunks(PICTURES).flat_map(of_list).collect()
}

/// Runs the batch per sample, and each picture alone; gives the batch and the decisions of the single runs.
fn check(engine: &Engine, singles: &[Inputs], batch: &Inputs, options: &RequestOptions) -> (Output, Vec<String>) {
    let tag = options.cache.to_string();
    let output = run(engine, batch, &RequestOptions { per_sample: true, ..options.clone() });
    let mut decisions = Vec::new();
    for (index, inputs) in singles.iter().enumerate() {
        let seed = options.seed + index as u64;
        let single = run(engine, inputs, &RequestOptions { seed, batch: None, ..options.clone() });
        decisions.push(single.trace.decisions(Branch::Cond));
        let ours: Vec<&StepRecord> =
            output.trace.records.iter().filter(|record| record.sample == Some(index)).collect();
        assert_eq!(ours.len(), single.trace.records.len(), "{tag} {index}");
        for (ours, theirs) in ours.into_iter().zip(&single.trace.records) {
            let at = format!("{tag} picture {index} {} step {}", theirs.branch, theirs.step);
            assert_eq!((ours.step, ours.branch, ours.decision), (theirs.step, theirs.branch, theirs.decision), "{at}");
            assert_eq!((ours.blocks_run, ours.threshold), (theirs.blocks_run, theirs.threshold), "{at}");
            assert_eq!(ours.diff.is_some(), theirs.diff.is_some(), "{at}");
            if let (Some(ours), Some(theirs)) = (ours.diff, theirs.diff) {
                assert!((ours - theirs).abs() <= DIFF_RELATIVE * theirs, "{at}: {ours} {theirs}");
            }
        }
        let error = relative_l1(&picture(&output.latents, index), &single.latents);
        println!("{tag} {index}: {error:.1e} {}", single.trace.decisions(Branch::Cond));
        assert!(error <= LATENT_RELATIVE_L1, "{tag} picture {index}: {error:e}");
    }
    (output, decisions)
}

#[test]
fn pictures_of_the_shipped_model_decide_as_if_alone() {
    let engine = Engine::load(emoji(), &EngineOptions::default()).unwrap();
    let inputs = Inputs::prompt("lemon");
    for tag in ["f8b8r0.2", "f1b0r0.3"] {
        let options =
            RequestOptions { cache: tag.parse().unwrap(), batch: Some(PICTURES), seed: 5, ..RequestOptions::default() };
        let (output, _) = check(&engine, &vec![inputs.clone(); PICTURES], &inputs, &options);
        assert_eq!(output.images.len(), PICTURES);
        assert!(output.trace.summary().to_string().contains("\ncond 2 "));
    }
}

#[test]
fn pictures_decide_differently_and_as_if_alone() {
    let engine = Engine::load(data("tiny-flux"), &EngineOptions::default()).unwrap();
    let singles = singles(true);
    let without = |inputs: &Inputs| {
        let mut inputs = inputs.clone();
        inputs.tensors.retain(|name, _| !name.starts_with("negative_"));
        inputs
    };
    let unguided: Vec<Inputs> = singles.iter().map(without).collect();
    let mut parts = [0; PICTURES + 1];
    for (tag, true_cfg) in [
        ("f1b0w4r0.15", None),
        ("f4b4w4r0.1", None),
        ("f1b0w4r0.15mc8", None),
        ("f1b0w4i2r0.15a0.8", None),
        ("f1b0w4l0.1", None),
        ("f1b0w4r0.15ic0.1", None),
        ("f1b0w4r0.15ds3", None),
        ("f1b0w4r0.1fr12:repeat", None),
        ("f1b0w4r0.15", Some(2.0)),
        ("f1b0w4r0.15cds0", Some(2.0)),
        ("f1b0w4r0.15cf1", Some(2.0)),
        ("f1b0w4r0.1sl1", Some(2.0)),
    ] {
        let singles = if true_cfg.is_some() { &singles } else { &unguided };
        let batch = joined(singles);
        let options = RequestOptions { cache: tag.parse().unwrap(), true_cfg, ..RequestOptions::default() };
        let (output, alone) = check(&engine, singles, &batch, &options);
        assert!(alone.iter().any(|decisions| *decisions != alone[0]), "{tag}: {alone:?}");
        for branch in [Branch::Cond, Branch::Uncond] {
            computed(&output.trace, branch).into_iter().for_each(|count| parts[count] += 1);
        }
        // As one, the batch cannot decide as each of three that differ.
        let together = run(&engine, &batch, &options).trace.decisions(Branch::Cond);
        assert!(alone.iter().any(|decisions| *decisions != together), "{tag}: {together}");
    }
    assert!(parts.iter().all(|steps| *steps > 0), "steps by the number of pictures that computed: {parts:?}");
}

#[test]
fn they_keep_half_precision_as_if_alone() {
    let engine = Engine::load(data("tiny-flux"), &EngineOptions::default()).unwrap();
    let singles = singles(false);
    for cache_dtype in [CacheDType::F16, CacheDType::Bf16] {
        let cache = "f1b0w4r0.15".parse().unwrap();
        let options = RequestOptions { cache, cache_dtype, ..RequestOptions::default() };
        check(&engine, &singles, &joined(&singles), &options);
    }
}

#[test]
fn it_is_refused_with_the_reason() {
    let engine = Engine::load(data("tiny-flux"), &EngineOptions::default()).unwrap();
    let singles = singles(false);
    let batch = joined(&singles);
    for (tag, inputs, reason) in [
        ("f1b0w4r0.3", &singles[0], "has no effect on one picture"),
        ("none", &batch, "has no effect with the option `cache=none`"),
        ("prune_f1b0w4r0.3", &batch, "decides on each block alone"),
        ("f1b0w4r0.3_t1", &batch, "calibrator"),
        ("f1b0w4r0.3er0", &batch, "keeps nothing of the text"),
        (
            r#"{"Fn_compute_blocks": 1, "Bn_compute_blocks": 2, "Bn_compute_blocks_ids": [0]}"#,
            &batch,
            "decided on alone",
        ),
    ] {
        let options = RequestOptions { cache: tag.parse().unwrap(), per_sample: true, ..RequestOptions::default() };
        let error = engine.request(inputs, &options).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Usage, "{tag}");
        let text = error.to_string();
        assert!(text.contains("`per-sample`") && text.contains(reason), "{tag}: {text}");
    }
}

#[test]
fn traces_are_read_back_and_compared_by_picture() {
    let engine = Engine::load(data("tiny-flux"), &EngineOptions::default()).unwrap();
    let batch = joined(&singles(true));
    let trace = |cache: &str, per_sample: bool| {
        let cache = cache.parse().unwrap();
        let options = RequestOptions { cache, per_sample, true_cfg: Some(2.0), ..RequestOptions::default() };
        run(&engine, &batch, &options).trace
    };
    let (loose, strict) = (trace("f1b0w4r0.15", true), trace("f1b0w4r0", true));
    let good = loose.to_json();
    let again = Trace::from_json(&good).unwrap();
    assert_eq!((again.to_json(), &again.records), (good.clone(), &loose.records));
    assert!(compare(&loose, &again).is_equal());

    let comparison = compare(&loose, &strict);
    let skipped = loose.records.iter().find(|record| record.letter() == 'S').unwrap();
    let first = comparison.first.as_ref().unwrap();
    assert_eq!((first.step, first.branch, first.sample), (skipped.step, skipped.branch, skipped.sample));
    assert_eq!((comparison.steps, comparison.differing_steps), (loose.records.len(), loose.skipped()));
    assert!(comparison.to_string().contains(&format!(", sample {}: skipped", skipped.sample.unwrap())), "{comparison}");
    assert_eq!(comparison.to_json()["first"]["sample"], json!(skipped.sample));
    let settings = compare(&loose, &trace("f1b0w4r0.15", false)).settings;
    assert_eq!(settings.iter().map(|setting| setting.name).collect::<Vec<_>>(), ["per_sample"]);

    for (pointer, value, words) in [
        ("/records/1/sample", json!(2), "`records[1].sample` is 2; expected 1"),
        ("/records/1/sample", json!(null), "`records[1].sample` is null; expected 1"),
        ("/records/1/sample", json!("1"), "`records[1].sample` is \"1\"; expected a whole number"),
        ("/records/0/sample", json!(null), "`records[1].step` is 0; expected 1"),
        ("/records/3/step", json!(1), "`records[3].step` is 1; expected 0"),
        ("/batch", json!(5), "expected as many for each of 1 lists of blocks and 5 pictures"),
        ("/batch", json!(0), "`records[1].step` is 0; expected 1"),
    ] {
        let mut bad = good.clone();
        damage::set(&mut bad, pointer, Some(value));
        let error = Trace::from_json(&bad).expect_err(pointer);
        assert!(error.kind() == ErrorKind::Input && error.to_string().contains(words), "{pointer}: {error}");
    }
    let refused = recording(&good).unwrap_err();
    assert!(refused.kind() == ErrorKind::Input && refused.to_string().contains("`per-sample`"), "{refused}");
}

#[test]
fn what_it_keeps_is_known_before() {
    // A new engine each: what streams add depends on how other policies have divided its stages.
    let load = || Engine::load(data("tiny-flux"), &EngineOptions::default()).unwrap();
    let batch = joined(&singles(false));
    let options = |per_sample| {
        let cache = "f1b0w4r0.15ds3".parse().unwrap();
        RequestOptions { cache, cache_dtype: CacheDType::F16, per_sample, ..RequestOptions::default() }
    };
    let kept = [false, true].map(|per_sample| run(&load(), &batch, &options(per_sample)).trace.cache_bytes);
    assert_eq!(kept[0], kept[1]);
    let allow = |limit| {
        let request = load().request(&batch, &RequestOptions { cache_memory: Some(limit), ..options(true) });
        request.map(|_| ()).map_err(|error| error.kind())
    };
    assert_eq!((allow(kept[1].total()), allow(kept[1].total() - 1)), (Ok(()), Err(ErrorKind::Usage)));
}

#[test]
fn sums_that_overflow_name_the_picture() {
    let engine = Engine::load(data("tiny-flux"), &EngineOptions::default()).unwrap();
    let cache = "f1b0w1l0.9".parse().unwrap();
    let true_cfg = Some(1e38);
    let options = RequestOptions { cache, steps: Some(4), true_cfg, per_sample: true, ..RequestOptions::default() };
    let error = engine.request(&joined(&singles(true)), &options).unwrap().run(&mut ()).expect_err("it runs");
    assert_eq!(error.kind(), ErrorKind::Numeric);
    let message = error.to_string();
    let words = "step 1: cond: sample 0, before blocks 1..12: what is compared is not finite";
    assert!(message.starts_with(words) && message.contains("it comes from what the cache compares"), "{message}");
}

#[test]
fn the_command_decides_by_sample() {
    let shell = Shell::new();
    write_tensors(&shell.path("three.safetensors"), &joined(&singles(false)).tensors).unwrap();
    let make = |options: &str| shell.tiny(&format!("--inputs three.safetensors --cache f1b0w4r0.15 {options}"));
    make("--per-sample --trace a.json").code(0).stdout("cond 0   CCCC").stdout("cond 2   CCCC");
    shell.run(&["trace", "diff", "a.json", "a.json"]).code(0).stdout("decisions    equal on all");
    shell.tiny("--inputs three.safetensors --replay a.json").code(5).stderr("a.json: holds a run with --per-sample");
    make("--trace b.json").code(0);
    shell.tiny("--inputs three.safetensors --replay b.json --per-sample").code(2).stderr("does not go with a replay");
    shell.run(&["trace", "diff", "a.json", "b.json"]).code(8).stdout("per_sample   true | false");
}
