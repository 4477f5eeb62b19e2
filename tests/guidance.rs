//! Classifier-free guidance: every formula, fused and separate, in both orders, against the same arithmetic here on the
//! predictions of both branches; and the options of guidance and of video, which must change something or be refused.

mod common;

use common::damage::Copy;
use common::{data, relative_l1};
use dbcache_trt::cache::Branch;
use dbcache_trt::trace::{Trace, compare};
use dbcache_trt::{Engine, EngineOptions, ErrorKind, GuidanceBy, Inputs, RequestOptions, read_tensors};
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
    let size = common::json(&format!("families/{family}/reference.json"))["size"].clone();
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

#[test]
fn a_scale_of_one_runs_one_branch() {
    let family = "sd3";
    let engine = engine(family, |_| ());
    let (cond, _, latents) = branches(&engine, family);
    let mut inputs = inputs(family);
    inputs.tensors.retain(|name, _| !name.starts_with("negative_"));
    let options =
        RequestOptions { steps: Some(2), size: size(family), guidance: Some(1.0), ..RequestOptions::default() };
    let mut request = engine.request(&inputs, &options).unwrap();
    assert!(relative_l1(&request.velocity(&latents, SIGMA).unwrap().0, &cond) <= TOLERANCE);
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
        ("ltx", with(|o| o.frames = Some(10)), ErrorKind::Input, "--frames is 10; this model makes"),
        ("ltx", with(|o| o.frames = Some(0)), ErrorKind::Input, "--frames is 0"),
        ("ltx", with(|o| o.fps = Some(0.0)), ErrorKind::Usage, "--fps is 0"),
        ("ltx", with(|o| o.fps = Some(f64::NAN)), ErrorKind::Usage, "--fps is NaN"),
        ("sd3", with(|o| o.frames = Some(1)), ErrorKind::Usage, "--frames has no effect: this model makes pictures"),
        ("sd3", with(|o| o.fps = Some(8.0)), ErrorKind::Usage, "--fps has no effect"),
        ("sd3", with(|o| o.guidance_rescale = Some(1.5)), ErrorKind::Usage, "--guidance-rescale is 1.5"),
        (
            "hunyuan_video",
            with(|o| o.guidance_rescale = Some(0.5)),
            ErrorKind::Usage,
            "--guidance-rescale has no effect without",
        ),
        ("sd3", with(|o| o.per_sample = true), ErrorKind::Usage, "--per-sample"),
    ] {
        let error = run(family, options).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(words), "{family}: {error}");
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
