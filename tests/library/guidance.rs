//! Classifier-free guidance: every formula, fused and separate, in both orders, against the same arithmetic here on the
//! predictions of both branches; and the options of guidance and of video, which must change something or be refused.

use crate::common::damage::Copy;
use crate::common::onnx::{build, element};
use crate::common::{data, relative_l1};
use dbcache_trt::cache::Branch;
use dbcache_trt::trace::{Trace, Warning, compare};
use dbcache_trt::{
    Engine, EngineOptions, ErrorKind, GuidanceBy, Inputs, Model, Output, RequestOptions, Result, read_tensors,
};
use ndarray::{ArrayD, Axis};
use serde_json::json;

const SCALE: f32 = 4.5;
const SIGMA: f32 = 0.9;
/// Sums in another order.
const TOLERANCE: f64 = 1e-5;

/// A family's engine with another `guidance`.
fn engine(family: &str, edit: impl FnOnce(&mut serde_json::Value)) -> Engine {
    let copy = Copy::family(family);
    copy.manifest(edit);
    Engine::load(copy.folder.path(), &EngineOptions::default()).unwrap()
}

/// What the family's recorded generation starts from, without its noise.
fn inputs(family: &str) -> Inputs {
    let vectors = read_tensors(&data(&format!("families/{family}/vectors.safetensors"))).unwrap();
    let named = vectors.into_iter().filter_map(|(name, tensor)| Some((name.strip_prefix("in.")?.to_owned(), tensor)));
    Inputs { tensors: named.collect(), ..Inputs::default() }
}

fn size(family: &str) -> Option<(u64, u64)> {
    let size = crate::common::json(&format!("families/{family}/reference.json"))["size"].clone();
    Some((size[0].as_u64().unwrap(), size[1].as_u64().unwrap()))
}

/// The predictions of both branches as the host sees them, and the latents that they are for.
fn branches(engine: &Engine, family: &str) -> (ArrayD<f32>, ArrayD<f32>, ArrayD<f32>) {
    let options = RequestOptions { steps: Some(2), size: size(family), ..RequestOptions::default() };
    let mut denoiser = engine.denoiser(&inputs(family), &options, GuidanceBy::Host).unwrap();
    let latents = denoiser.latents().unwrap();
    assert_eq!(denoiser.branches(), [Some(Branch::Cond), Some(Branch::Uncond)]);
    let mut of = |branch| denoiser.velocity(Some(branch), &latents, SIGMA).unwrap().0;
    (of(Branch::Cond), of(Branch::Uncond), latents.clone())
}

fn guided(formula: &str, rescale: f64, cond: &ArrayD<f32>, uncond: &ArrayD<f32>) -> ArrayD<f32> {
    let (c, u) = (cond.mapv(f64::from), uncond.mapv(f64::from));
    let s = f64::from(SCALE);
    let mut out = match formula {
        "difference" => &c + &((&c - &u) * s),
        "zero_star" => {
            let mut k = Vec::new();
            for (c, u) in c.outer_iter().zip(u.outer_iter()) {
                k.push((&c * &u).sum() / (&u * &u).sum());
            }
            let mut ku = u.clone();
            ku.outer_iter_mut().zip(k).for_each(|(mut row, k)| row *= k);
            &ku + &((&c - &ku) * s)
        }
        _ => &u + &((&c - &u) * s),
    };
    if formula == "renormalised" {
        let last = Axis(out.ndim() - 1);
        let length = |x: ndarray::ArrayViewD<'_, f64>| (&x * &x).sum().sqrt();
        for (mut row, c) in out.lanes_mut(last).into_iter().zip(c.lanes(last)) {
            let ratio = length(c.into_dyn()) / length(row.view().into_dyn());
            row *= ratio;
        }
    }
    if rescale > 0.0 {
        for (mut row, c) in out.outer_iter_mut().zip(c.outer_iter()) {
            let ratio = c.std(1.0) / row.std(1.0);
            row *= rescale * ratio + 1.0 - rescale;
        }
    }
    out.mapv(|x| x as f32)
}

#[test]
fn every_formula_in_every_mode() {
    let family = "sd3";
    let (cond, uncond, latents) = branches(&engine(family, |_| ()), family);
    assert!(relative_l1(&cond, &uncond) > 1e-2);
    for formula in ["standard", "difference", "renormalised", "zero_star"] {
        for (mode, order) in
            [("fused", ["uncond", "cond"]), ("fused", ["cond", "uncond"]), ("separate", ["cond", "uncond"])]
        {
            for rescale in [0.0, 0.7] {
                let at = format!("{formula}, {mode} {order:?}, rescale {rescale}");
                let engine = engine(family, |manifest| {
                    let guidance = &mut manifest["guidance"];
                    guidance["formula"] = json!(formula);
                    guidance["mode"] = json!(mode);
                    guidance["order"] = json!(order);
                    guidance["rescale"] = json!(rescale);
                });
                let options = RequestOptions {
                    steps: Some(2),
                    size: size(family),
                    guidance: Some(SCALE),
                    ..RequestOptions::default()
                };
                let mut request = engine.request(&inputs(family), &options).unwrap();
                let (ours, records) = request.velocity(&latents, SIGMA).unwrap();
                assert_eq!(records.len(), if mode == "fused" { 1 } else { 2 }, "{at}");
                let error = relative_l1(&ours, &guided(formula, rescale, &cond, &uncond));
                assert!(error <= TOLERANCE, "{at}: {error:e}");
                // The option, where the manifest has none.
                if rescale == 0.0 {
                    let options = RequestOptions { guidance_rescale: Some(0.4), ..options };
                    let mut request = engine.request(&inputs(family), &options).unwrap();
                    let ours = request.velocity(&latents, SIGMA).unwrap().0;
                    let error = relative_l1(&ours, &guided(formula, 0.4, &cond, &uncond));
                    assert!(error <= TOLERANCE, "{at}, by option: {error:e}");
                }
            }
        }
    }
}

#[test]
fn a_trace_tells_the_rescale() {
    // Of the manifest, of the option, which goes first, and none.
    let traces = [(0.0, None), (0.0, Some(0.4)), (0.7, None), (0.7, Some(0.4))].map(|(of_model, option)| {
        let engine = engine("sd3", |manifest| manifest["guidance"]["rescale"] = json!(of_model));
        let size = size("sd3");
        let options = RequestOptions {
            steps: Some(2),
            size,
            guidance_rescale: option,
            guidance: Some(SCALE),
            ..Default::default()
        };
        let inputs = inputs("sd3");
        let trace = engine.request(&inputs, &options).unwrap().run(&mut ()).unwrap().trace;
        let expected = option.or((of_model > 0.0).then_some(of_model as f32));
        assert_eq!(trace.guidance_rescale, expected);

        let json: serde_json::Value = serde_json::from_str(&trace.to_json().to_string()).unwrap();
        assert_eq!(json["guidance_rescale"].as_f64().map(|rescale| rescale as f32), expected);
        assert_eq!(Trace::from_json(&json).unwrap().guidance_rescale, expected);
        let text = trace.picture_metadata(&inputs, 0);
        let text = text.iter().find(|(key, _)| key == "guidance_rescale").map(|(_, text)| text.clone());
        assert_eq!(text, expected.map(|rescale| rescale.to_string()));
        trace
    });
    let rescale = |a: &Trace, b: &Trace| {
        let settings = compare(a, b).settings;
        settings.into_iter().find(|setting| setting.name == "guidance_rescale").map(|setting| (setting.a, setting.b))
    };
    assert_eq!(rescale(&traces[0], &traces[1]), Some(("none".into(), "0.4".into())));
    assert_eq!(rescale(&traces[2], &traces[3]), Some(("0.7".into(), "0.4".into())));
    assert_eq!(rescale(&traces[1], &traces[3]), None);
}

/// A family's inputs for a run with or without a negative prompt.
fn inputs_with(family: &str, has_negative: bool) -> Inputs {
    let mut inputs = inputs(family);
    inputs.tensors.retain(|name, _| has_negative || !name.starts_with("negative_"));
    inputs
}

/// Two steps with these scales.
fn run(engine: &Engine, family: &str, has_negative: bool, scales: [Option<f32>; 2]) -> Result<Output> {
    let [guidance, guidance_2] = scales;
    let options =
        RequestOptions { steps: Some(2), size: size(family), guidance, guidance_2, ..RequestOptions::default() };
    engine.request(&inputs_with(family, has_negative), &options)?.run(&mut ())
}

fn settings(trace: &Trace) -> Vec<String> {
    let settings = trace.warnings.iter().filter(|warning| matches!(warning, Warning::Setting(_)));
    settings.map(ToString::to_string).collect()
}

/// The scales above which the pipelines of diffusers run both branches; the others take the prompt alone, which a model
/// without any guidance does as well.
const ABOVE: &[(&str, f32)] = &[
    ("cogvideox", 1.0),
    ("dit", 1.0),
    ("ltx", 1.0),
    ("mochi", 1.0),
    ("pixart", 1.0),
    ("qwen_image", 1.0),
    ("sd3", 1.0),
    ("wan", 1.0),
    ("wan_two", 1.0),
    ("z_image", 0.0),
];

#[test]
fn scales_that_do_not_guide_take_the_prompt_alone() {
    for &(family, above) in ABOVE {
        let without = engine(family, |manifest| {
            manifest["guidance"] = json!({"kind": "none"});
            if let Some(second) = manifest.get_mut("low_noise") {
                second["guidance"] = json!(null);
            }
        });
        let alone = run(&without, family, false, [None; 2]).unwrap();
        let engine = engine(family, |_| ());
        let both = run(&engine, family, true, [None; 2]).unwrap();
        assert!(relative_l1(&both.latents, &alone.latents) > 1e-4, "{family}");
        for scale in [-5.0, 0.0, 0.5, 1.0, 1.0001, 5.0] {
            let at = format!("{family} at {scale}");
            let is_guided = scale > above;
            let Output { trace, latents, .. } = run(&engine, family, is_guided, [Some(scale), None]).unwrap();
            assert_eq!(trace.cfg, is_guided.then_some(scale), "{at}");
            assert_eq!(trace.cfg_2, trace.cfg.filter(|_| family == "wan_two"), "{at}");
            assert_eq!(latents == alone.latents, !is_guided, "{at}");
            let is_separate = ["qwen_image", "wan", "wan_two"].contains(&family);
            assert_eq!(trace.decisions(Branch::Cond), "CC", "{at}");
            assert_eq!(trace.decisions(Branch::Uncond).len(), if is_guided && is_separate { 2 } else { 0 }, "{at}");
            let told = settings(&trace);
            let is_odd = !is_guided && scale != 0.0 && scale != 1.0;
            assert_eq!(told.len(), usize::from(is_odd), "{at}: {told:?}");
            let words = format!("the option `guidance={scale}` is not above {above}, so there is no guidance");
            assert!(told.iter().all(|told| told.contains(&words)), "{at}: {told:?}");
            let json: serde_json::Value = serde_json::from_str(&trace.to_json().to_string()).unwrap();
            assert_eq!(Trace::from_json(&json).unwrap().cfg, trace.cfg, "{at}");
            // What is not used is refused.
            if !is_guided && family != "dit" {
                let error = run(&engine, family, true, [Some(scale), None]).unwrap_err();
                let words = format!("no uncond branch; give the option `guidance` above {above}, or");
                assert!(error.kind() == ErrorKind::Usage && error.to_string().contains(&words), "{at}: {error}");
            }
        }
    }
}

#[test]
fn a_scale_that_follows_the_steps_does_not_guide_by_itself() {
    let family = "cogvideox";
    let alone = run(&engine(family, |_| ()), family, false, [Some(1.0), None]).unwrap();
    let engine = engine(family, |manifest| manifest["guidance"]["scale"] = json!("cosine"));
    for scale in [-1.0, 0.0, 1.0] {
        assert_eq!(run(&engine, family, false, [Some(scale), None]).unwrap().latents, alone.latents, "{scale}");
    }
    assert_ne!(run(&engine, family, true, [Some(1.5), None]).unwrap().latents, alone.latents);
}

#[test]
fn a_model_that_needs_a_negative_prompt_is_not_guided_without_one() {
    let family = "qwen_image";
    let engine = engine(family, |_| ());
    let alone = run(&engine, family, false, [Some(1.0), None]).unwrap();
    assert_eq!(settings(&alone.trace), Vec::<String>::new());
    let missing = run(&engine, family, false, [None; 2]).unwrap();
    assert_eq!((missing.trace.cfg, &missing.latents), (None, &alone.latents));
    let told = settings(&missing.trace);
    assert!(told.len() == 1 && told[0].contains("for its guidance of 4, give one (an empty one counts)"), "{told:?}");
    let error = run(&engine, family, false, [Some(4.0), None]).unwrap_err();
    let words = "the option `guidance` has no effect without a negative prompt";
    assert!(error.kind() == ErrorKind::Usage && error.to_string().contains(words), "{error}");
    // A host combines by itself, and gets both branches or says what is missing.
    let options = RequestOptions { size: size(family), ..RequestOptions::default() };
    let error = engine.denoiser(&inputs_with(family, false), &options, GuidanceBy::Host).map(drop).unwrap_err();
    assert!(error.to_string().contains("no `negative_prompt_embeds"), "{error}");
    // The others have a negative prompt of their own; where it cannot be computed, its tensors must be given.
    let error = run(&self::engine("sd3", |_| ()), "sd3", false, [None; 2]).map(drop).unwrap_err();
    assert!(error.to_string().contains("no `negative_"), "{error}");
}

#[test]
fn the_first_of_two_scales_decides_for_both_transformers() {
    let family = "wan_two";
    let usual = engine(family, |_| ());
    let alone = run(&usual, family, false, [Some(0.0), None]).unwrap();
    for [first, second] in [[0.0, 0.0], [1.0, 1.0], [-1.0, 0.5]] {
        let same = run(&usual, family, false, [Some(first), Some(second)]).unwrap();
        assert_eq!((same.trace.cfg, same.trace.cfg_2), (None, None), "{first} {second}");
        assert_eq!(same.latents, alone.latents, "{first} {second}");
        assert_eq!(settings(&same.trace).len(), if first < 0.0 { 2 } else { 0 }, "{first} {second}");
    }
    let error = run(&usual, family, true, [Some(1.0), Some(3.0)]).unwrap_err();
    let words = "the option `guidance-2` has no effect: the first scale decides for both transformers, and it is 1";
    assert!(error.kind() == ErrorKind::Usage && error.to_string().contains(words), "{error}");

    // All steps are the second's, which at 0 takes the uncond branch: as if its text were the prompt.
    let second = engine(family, |manifest| manifest["low_noise"]["below"] = json!(99_999.0));
    let negative = run(&second, family, true, [Some(5.0), Some(0.0)]).unwrap();
    assert_eq!((negative.trace.cfg, negative.trace.cfg_2), (Some(5.0), Some(0.0)));
    assert_eq!(negative.trace.decisions(Branch::Uncond), "CC");
    assert!(settings(&negative.trace)[0].contains("the option `guidance-2=0` is below 1"));
    let mut swapped = Inputs::default();
    for (name, tensor) in inputs(family).tensors {
        if let Some(name) = name.strip_prefix("negative_") {
            swapped.tensors.insert(name.to_owned(), tensor);
        }
    }
    let options =
        RequestOptions { steps: Some(2), size: size(family), guidance: Some(0.0), ..RequestOptions::default() };
    let expected = second.request(&swapped, &options).unwrap().run(&mut ()).unwrap().latents;
    assert!(relative_l1(&negative.latents, &expected) <= TOLERANCE);
    assert!(relative_l1(&alone.latents, &expected) > 1e-4);
}

#[test]
fn true_cfg_guides_above_one_and_away_from_something() {
    for family in ["flux2", "hunyuan_video"] {
        let engine = engine(family, |_| ());
        let run = |true_cfg, tensors: &Inputs| {
            let options = RequestOptions { steps: Some(2), size: size(family), true_cfg, ..RequestOptions::default() };
            engine.request(tensors, &options)?.run(&mut ())
        };
        let plain = inputs(family);
        let mut with_negative = plain.clone();
        for (name, tensor) in &plain.tensors {
            with_negative.tensors.insert(format!("negative_{name}"), tensor.mapv(|x| 0.5 * x.round()));
        }
        let alone = run(None, &plain).unwrap();
        for scale in [-1.0, 0.0, 0.5, 1.0] {
            for tensors in [&plain, &with_negative] {
                let error = run(Some(scale), tensors).unwrap_err();
                let words = format!("the option `true-cfg` is {scale}, which has no effect: it guides above 1 only");
                assert!(error.kind() == ErrorKind::Usage && error.to_string().contains(&words), "{error}");
            }
        }
        let error = run(Some(1.0001), &plain).unwrap_err();
        let words = "the option `true-cfg` has no effect without a negative prompt";
        assert!(error.kind() == ErrorKind::Usage && error.to_string().contains(words), "{error}");
        let error = run(None, &with_negative).unwrap_err();
        assert!(error.to_string().contains("give the option `true-cfg` above 1, or leave it out"), "{error}");
        let guided = run(Some(1.0001), &with_negative).unwrap();
        assert_eq!(guided.trace.decisions(Branch::Uncond), "CC");
        assert!(guided.latents != alone.latents);
    }
}

#[test]
fn an_engine_says_when_it_guides() {
    for (family, above, needs_negative, words) in [
        ("sd3", Some(1.0), false, "guidance 7 (classifier_free above 1)"),
        ("z_image", Some(0.0), false, "guidance 5 (classifier_free above 0)"),
        ("qwen_image", Some(1.0), true, "guidance 4 (classifier_free above 1 with a negative prompt)"),
        ("flux2", None, false, "guidance 4 (embedded)"),
    ] {
        let info = Model::open(data(&format!("families/{family}/engine")), &EngineOptions::default()).unwrap().info();
        assert_eq!((info.guidance_above, info.needs_negative), (above, needs_negative), "{family}");
        assert!(info.to_string().contains(words), "{info}");
        let told = info.to_json();
        assert_eq!((&told["guidance_above"], &told["needs_negative"]), (&json!(above), &json!(needs_negative)));
    }
}

#[test]
fn options_change_something_or_are_refused() {
    let run = |family: &str, options: RequestOptions| {
        let engine = engine(family, |_| ());
        let options = RequestOptions { steps: Some(2), size: size(family), ..options };
        engine.request(&inputs(family), &options).and_then(|request| request.run(&mut ())).map(|output| output.latents)
    };
    let with = |edit: fn(&mut RequestOptions)| {
        let mut options = RequestOptions::default();
        edit(&mut options);
        options
    };
    let usual = run("ltx", RequestOptions::default()).unwrap();
    assert_eq!(run("ltx", with(|o| o.frames = Some(9))).unwrap().shape()[2], 2);
    // Positions in time depend on it.
    assert!(relative_l1(&run("ltx", with(|o| o.fps = Some(50.0))).unwrap(), &usual) > 1e-4);
    for (family, options, kind, words) in [
        ("ltx", with(|o| o.frames = Some(10)), ErrorKind::Input, "the option `frames` is 10; this model makes"),
        ("ltx", with(|o| o.frames = Some(0)), ErrorKind::Input, "the option `frames` is 0"),
        ("ltx", with(|o| o.fps = Some(0.0)), ErrorKind::Usage, "the option `fps` is 0"),
        ("ltx", with(|o| o.fps = Some(f64::NAN)), ErrorKind::Usage, "the option `fps` is NaN"),
        (
            "sd3",
            with(|o| o.frames = Some(1)),
            ErrorKind::Usage,
            "the option `frames` has no effect: this model makes pictures",
        ),
        ("sd3", with(|o| o.fps = Some(8.0)), ErrorKind::Usage, "the option `fps` has no effect"),
        ("sd3", with(|o| o.guidance_rescale = Some(1.5)), ErrorKind::Usage, "the option `guidance-rescale` is 1.5"),
        (
            "hunyuan_video",
            with(|o| o.guidance_rescale = Some(0.5)),
            ErrorKind::Usage,
            "the option `guidance-rescale` has no effect without",
        ),
        ("sd3", with(|o| o.per_sample = true), ErrorKind::Usage, "`per-sample`"),
    ] {
        let error = run(family, options).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(words), "{family}: {error}");
    }
}

/// Branches that run as one batch cannot share one number; those that run one by one have a number each.
#[test]
fn inputs_without_a_batch_go_with_separate_guidance() {
    for (family, is_fused) in [("dit", true), ("wan", false)] {
        let (copy, name) = (Copy::family(family), "strength");
        copy.manifest(|manifest| {
            manifest["tensors"][name] = json!({"dtype": "f32", "shape": []});
            manifest["inputs"][name] = json!({"per": "request", "from": {"given": {"unconditional": 0}}});
            manifest["embed"]["inputs"].as_array_mut().unwrap().push(json!(name));
        });
        copy.graph("embed.onnx", |graph| graph.input.push(build::port(name, element::FLOAT, &[])));
        let loaded = Engine::load(copy.folder.path(), &EngineOptions::default());
        if is_fused {
            let error = loaded.err().unwrap();
            assert_eq!(error.kind(), ErrorKind::EngineDirectory);
            assert!(error.to_string().contains("input `strength` has no `batch` as its first axis"), "{error}");
            continue;
        }
        let engine = loaded.unwrap();
        for shape in [vec![], vec![1], vec![2, 1]] {
            let (mut given, fits) = (inputs(family), shape.is_empty());
            given.tensors.insert(name.into(), ArrayD::from_elem(shape, 1.0));
            let options = RequestOptions { steps: Some(2), size: size(family), ..RequestOptions::default() };
            match engine.request(&given, &options).and_then(|request| request.run(&mut ())) {
                Ok(_) => assert!(fits),
                Err(error) => {
                    assert!(!fits && error.kind() == ErrorKind::Input && error.to_string().contains(name), "{error}");
                }
            }
        }
    }
}

#[test]
fn inputs_that_do_nothing_or_do_not_fit_are_refused() {
    let run = |family: &str, name: &str, tensor: ArrayD<f32>| {
        let engine = engine(family, |_| ());
        let mut inputs = inputs(family);
        inputs.tensors.insert(name.into(), tensor);
        let options = RequestOptions { steps: Some(2), size: size(family), ..RequestOptions::default() };
        engine.request(&inputs, &options).map(drop).unwrap_err()
    };
    let row = |numbers: &[f32]| ArrayD::from_shape_vec(vec![numbers.len()], numbers.to_vec()).unwrap();
    for (family, name, tensor, words) in [
        ("dit", "class_labels", row(&[1.5]), "holds 1.5; the model takes whole numbers"),
        ("dit", "sigmas", row(&[1.0, 0.5, 0.0]), "does not fit this model's scheduler"),
        ("mochi", "sigmas", row(&[0.0, 0.5, 1.0]), "does not fit this model's scheduler"),
        ("sd3", "noise", row(&[0.0]), "`noise` has no effect"),
        ("sd3", "class_labels", row(&[1.0]), "has no input tensor `class_labels`"),
    ] {
        let error = run(family, name, tensor).to_string();
        assert!(error.contains(words), "{family}: {error}");
    }
}
