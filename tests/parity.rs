//! Every recorded trace of the reference, replayed through the real engine: decisions, reasons, diffs, blocks run and
//! final latents.
//!
//! `tests/data/oracle` holds what cache-dit did on the model of `tests/data/tiny-flux` (random weights, made so that
//! decisions vary). Cases whose options this engine does not have yet are listed by name in [`NOT_YET`]; the test fails
//! when one of them becomes possible, so the list cannot grow stale.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;

use common::{data, emoji, json, relative_l1};
use dbcache_trt::cache::{Branch, PolicyConfig};
use dbcache_trt::{Engine, EngineOptions, Inputs, Output, RequestOptions, read_tensors};
use ndarray::ArrayD;
use serde_json::{Map, Value, json as value};

/// The reference and this engine sum in other orders; noise of 3e-6 on every block moves diffs by 3e-7 (absolute).
const DIFF_RELATIVE: f64 = 1e-4;
/// The same noise moves latents by 2e-6.
const LATENT_RELATIVE_L1: f64 = 1e-4;

/// Why a case cannot be run yet, by the start of its name.
const NOT_YET: &[(&str, &str)] = &[
    ("calib.taylor", "calibrators"),
    ("calib.foca", "calibrators"),
    ("calib.dmd", "calibrators"),
    ("calibscm.taylor", "calibrators"),
    ("calibscm.foca", "calibrators"),
    ("calibscm.dmd", "calibrators"),
    ("cfg.taylor1", "calibrators"),
    ("s50.scm_ultra_static_taylor1", "calibrators"),
    ("prune", "DBPrune"),
    ("split.two_lists", "separate decisions per block list"),
    ("gens.base", "one context over two generations"),
    ("gens.N28", "one context over two generations"),
    ("legacy.", "the rules of cache-dit 0.1.0"),
    ("r20_taylor1.panda", "calibrators"),
];

/// Cached against uncached pictures of the shipped model, in dB: the worst of the recorded cases has 37.
const PSNR_FLOOR: f64 = 33.0;

/// Traces of one model, and how to run it.
struct Oracle {
    engine: Engine,
    folder: &'static str,
    tensors: BTreeMap<String, ArrayD<f32>>,
}

impl Oracle {
    fn load(engine: PathBuf, folder: &'static str, tensors: &str) -> Self {
        Self {
            engine: Engine::load(engine, &EngineOptions::default()).unwrap(),
            folder,
            tensors: read_tensors(&data(&format!("{folder}/{tensors}"))).unwrap(),
        }
    }

    /// Replays every case of an index; gives how many ran, and how many are listed in [`NOT_YET`].
    fn replay(&self, index: &str) -> (usize, usize) {
        let (mut run, mut listed) = (0, 0);
        for entry in json(&format!("{}/{index}", self.folder))["configs"].as_array().unwrap() {
            let name = entry["name"].as_str().unwrap();
            let case = json(&format!("{}/{name}.json", self.folder));
            let is_listed = NOT_YET.iter().any(|(start, _)| name.starts_with(start)) && name != "gens.N28_refresh";
            match policy(&case) {
                Ok(policy) if !is_listed => {
                    check(self, name, &case, &policy);
                    run += 1;
                }
                Ok(_) => panic!("{name} is listed in NOT_YET, but its options are understood"),
                Err(error) if !is_listed => panic!("{name}: {error}"),
                Err(_) => listed += 1,
            }
        }
        println!("{}/{index}: {run} traces reproduced, {listed} not yet", self.folder);
        (run, listed)
    }
}

#[test]
fn every_trace_of_the_reference() {
    let oracle = Oracle::load(data("tiny-flux"), "oracle", "oracle.safetensors");
    assert_eq!(oracle.replay("index.json"), (56, 38));
    assert_eq!(oracle.replay("legacy_index.json"), (0, 23));
}

#[test]
fn the_shipped_model_decides_as_in_the_reference() {
    let oracle = Oracle::load(emoji(), "reference/emoji", "emoji.safetensors");
    assert_eq!(oracle.replay("index.json"), (18, 2));
}

/// The options of a case as a policy: the reference's defaults, then what was given.
fn policy(case: &Value) -> Result<PolicyConfig, String> {
    let config = &case["config"];
    let mut options: Map<String, Value> = value!({
        "cache_type": "DBCache",
        "Fn_compute_blocks": 8, "Bn_compute_blocks": 0, "residual_diff_threshold": 0.08, "max_warmup_steps": 8
    })
    .as_object()
    .unwrap()
    .clone();
    for part in ["given", "extra"] {
        if let Some(given) = config[part].as_object() {
            options.extend(given.clone());
        }
    }
    if case["algorithm"] == "none" {
        return Ok(PolicyConfig::None);
    }
    if case["semantics"] != "cache-dit 1.5.3" || case["algorithm"] != "DBCache" {
        return Err(format!("{} of {}", case["algorithm"], case["semantics"]));
    }
    if !config["calibrator"].is_null() {
        return Err(format!("calibrator {}", config["calibrator"]));
    }
    if config["block_lists"].as_array().unwrap().len() > 1 {
        return Err("two block lists".into());
    }
    if config["generations"] == 2 && config["refresh_between"] != true {
        return Err("one context over two generations".into());
    }
    // A step past the end of a mask counts as 0 in the reference; here masks have one digit a step.
    if let Some(Value::Array(mask)) = options.get_mut("steps_computation_mask") {
        mask.resize(case["steps"].as_u64().unwrap() as usize, value!(0));
    }
    // Tells the reference when a generation ends; here a generation is a request.
    options.remove("num_inference_steps");
    serde_json::to_string(&options).unwrap().parse().map_err(|error: dbcache_trt::Error| error.to_string())
}

fn check(oracle: &Oracle, name: &str, case: &Value, policy: &PolicyConfig) {
    let generations = case["config"]["generations"].as_u64().unwrap() as usize;
    let steps = case["steps"].as_u64().unwrap() as usize;
    for generation in 0..generations {
        let output = generate(oracle, case, policy, steps, generation);
        for (branch, key) in [(Branch::Cond, "cond"), (Branch::Uncond, "uncond")] {
            let recorded = &case["branches"][key];
            if recorded.is_null() {
                assert_eq!(output.trace.decisions(branch), "", "{name} {key}");
                continue;
            }
            let part = generation * steps..(generation + 1) * steps;
            let decisions = &recorded["decisions"].as_str().unwrap()[part.clone()];
            assert_eq!(output.trace.decisions(branch), decisions, "{name} {key}");
            for (record, step) in output.trace.branch(branch).zip(part) {
                let at = format!("{name} {key} step {step}");
                assert_eq!(record.blocks_run as u64, recorded["blocks_run"][step], "{at}");
                // A threshold that always hits compares nothing: the reference calls that a diff of -1, which is below.
                let theirs = recorded["diffs"][step].as_f64();
                let reason = if theirs == Some(-1.0) { &value!("always") } else { &recorded["reasons"][step] };
                assert_eq!(record.decision.reason.as_str(), *reason, "{at}");
                let theirs = theirs.filter(|diff| *diff >= 0.0);
                assert_eq!(record.diff.is_some(), theirs.is_some(), "{at}");
                if let (Some(ours), Some(theirs)) = (record.diff, theirs) {
                    let error = (f64::from(ours) - theirs).abs() / theirs;
                    assert!(error <= DIFF_RELATIVE, "{at}: {ours} {theirs}");
                }
            }
        }
        let key = if generations > 1 { format!("out.{name}.{generation}") } else { format!("out.{name}") };
        let theirs = &oracle.tensors[&key];
        let theirs = theirs.to_shape(output.latents.shape()).unwrap().into_owned();
        let error = relative_l1(&output.latents, &theirs);
        assert!(error <= LATENT_RELATIVE_L1, "{name}: latents differ by {error:e}");
        if let Some(image) = output.images.first() {
            let uncached = generate(oracle, case, &PolicyConfig::None, steps, generation);
            let psnr = image.psnr(&uncached.images[0]).unwrap();
            assert!(psnr >= PSNR_FLOOR, "{name}: {psnr:.1} dB against the uncached picture");
        }
    }
}

fn generate(oracle: &Oracle, case: &Value, policy: &PolicyConfig, steps: usize, generation: usize) -> Output {
    let scale = case["config"]["cfg_scale"].as_f64().map(|scale| scale as f32);
    let options = RequestOptions { cache: policy.clone(), ..RequestOptions::default() };
    let (inputs, options) = match case["prompt"].as_str() {
        Some(prompt) => {
            let seed = case["seed"].as_u64().unwrap();
            let options = RequestOptions { steps: Some(steps), seed, guidance: scale, ..options };
            (Inputs::prompt(prompt), options)
        }
        None => {
            let inputs = tensors(oracle, steps, generation, scale.is_some());
            (inputs, RequestOptions { guidance: Some(3.5), true_cfg: scale, ..options })
        }
    };
    oracle.engine.request(&inputs, &options).unwrap().run(&mut ()).unwrap()
}

fn tensors(oracle: &Oracle, steps: usize, generation: usize, is_guided: bool) -> Inputs {
    let latents = if generation == 0 { "in.latents" } else { "in.latents_b" };
    let sigmas = format!("in.sigmas{steps}");
    let mut names = vec![
        ("prompt_embeds", "in.prompt"),
        ("pooled_projections", "in.pooled"),
        ("latents", latents),
        ("sigmas", sigmas.as_str()),
    ];
    if is_guided {
        names.extend([("negative_prompt_embeds", "in.neg_prompt"), ("negative_pooled_projections", "in.neg_pooled")]);
    }
    let tensors = names.iter().map(|(ours, theirs)| (ours.to_string(), oracle.tensors[*theirs].clone())).collect();
    Inputs { tensors, ..Inputs::default() }
}
