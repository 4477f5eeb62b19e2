//! Every recorded trace of the reference, replayed through the real engine: decisions, reasons, diffs, blocks run and
//! final latents; for policies that decide per block also each block's decision, diff and threshold.
//!
//! `tests/data/oracle` holds what cache-dit did on the model of `tests/data/tiny-flux` (random weights, made so that
//! decisions vary). Every case must run: no list of exceptions.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::common::{data, emoji, json, oracle, relative_l1};
use dbcache_trt::cache::{Action, Branch, PolicyConfig, Reason};
use dbcache_trt::trace::StepRecord;
use dbcache_trt::{ArithmeticChoice, Engine, EngineOptions, Inputs, Output, RequestOptions, read_tensors};
use ndarray::ArrayD;
use serde_json::{Value, json as value};

/// The reference and this engine sum in other orders; noise of 3e-6 on every block moves diffs by 3e-7 (absolute).
const DIFF_RELATIVE: f64 = 1e-4;
/// The same noise moves latents by 2e-6.
const LATENT_RELATIVE_L1: f64 = 1e-4;

/// DMD inverts small singular values, which amplifies rounding.
const DMD_LATENT_RELATIVE_L1: f64 = 1e-3;

/// Cached against uncached pictures of the shipped model, in dB: the worst of the recorded cases has 37.
const PSNR_FLOOR: f64 = 33.0;
/// The same for DBPrune, whose one recorded case skips 38 % of all blocks.
const PRUNE_PSNR_FLOOR: f64 = 25.0;

/// Traces of one model, and how to run it.
struct Oracle {
    engine: Engine,
    folder: &'static str,
    tensors: BTreeMap<String, ArrayD<f32>>,
}

impl Oracle {
    fn load(engine: PathBuf, folder: &'static str, files: &[&str], arithmetic: ArithmeticChoice) -> Self {
        let engine = Engine::load(engine, &EngineOptions { arithmetic, ..EngineOptions::default() }).unwrap();
        let tensors = files.iter().flat_map(|file| read_tensors(&data(&format!("{folder}/{file}"))).unwrap()).collect();
        Self { engine, folder, tensors }
    }

    /// Replays every case of an index; gives how many there are.
    fn replay(&self, index: &str) -> usize {
        let mut run = 0;
        for entry in json(&format!("{}/{index}", self.folder))["configs"].as_array().unwrap() {
            let name = entry["name"].as_str().unwrap();
            let case = json(&format!("{}/{name}.json", self.folder));
            let policy = policy(&case).unwrap_or_else(|error| panic!("{name}: {error}"));
            check(self, name, &case, &policy);
            run += 1;
        }
        println!("{}/{index}: {run} traces reproduced", self.folder);
        run
    }
}

#[test]
fn every_trace_of_the_reference() {
    // Residuals and diffs as loops in host memory, and as graphs on the provider.
    for arithmetic in [ArithmeticChoice::Auto, ArithmeticChoice::Graphs] {
        let files = ["oracle.safetensors", "legacy.safetensors"];
        let oracle = Oracle::load(data("tiny-flux"), "oracle", &files, arithmetic);
        assert_eq!(oracle.replay("index.json"), 94, "{arithmetic:?}");
        assert_eq!(oracle.replay("legacy_index.json"), 23, "{arithmetic:?}");
    }
}

#[test]
fn the_shipped_model_decides_as_in_the_reference() {
    let oracle = Oracle::load(emoji(), "reference/emoji", &["emoji.safetensors"], ArithmeticChoice::Auto);
    assert_eq!(oracle.replay("index.json"), 20);
}

/// The policy of a case, with what only the reference does said in words that there are here.
fn policy(case: &Value) -> Result<PolicyConfig, String> {
    let options = oracle::options(case).map_err(|error| error.to_string())?;
    let Some(mut options) = options else { return Ok(PolicyConfig::None) };
    if case["algorithm"] == "DBPrune" || case["algorithm"] == "dbprune" {
        // The reference ignores these; here they are refused (0.1.0: l1 is the threshold under another name).
        options.remove("max_accumulated_residual_diff_threshold");
        if let Some(l1) = options.remove("l1_hidden_states_diff_threshold")
            && case["algorithm"] == "dbprune"
        {
            options.insert("residual_diff_threshold".into(), l1);
        }
    }
    if has_lists(case) {
        options.insert("separate_block_lists".into(), value!(true));
    }
    // A step past the end of a mask counts as 0 in the reference; here masks have one digit a step.
    if let Some(Value::Array(mask)) = options.get_mut("steps_computation_mask") {
        mask.resize(case["steps"].as_u64().unwrap() as usize, value!(0));
    }
    // Tells the reference when a generation ends; here a generation is a request. Where one cache serves two, the
    // reference starts over one call late.
    if let (Some(steps), true) = (options.remove("num_inference_steps"), is_one_cache(case)) {
        options.insert("force_refresh_step_hint".into(), value!(steps.as_u64().unwrap() + 1));
    }
    serde_json::to_string(&options).unwrap().parse().map_err(|error: dbcache_trt::Error| error.to_string())
}

/// Each list of blocks was decided on by itself.
fn has_lists(case: &Value) -> bool {
    case["config"]["block_lists"].as_array().is_some_and(|lists| lists.len() > 1)
}

/// Two generations that share one cache.
fn is_one_cache(case: &Value) -> bool {
    case["config"]["generations"] == 2 && case["config"]["refresh_between"] != true
}

/// One request over both generations, with the loop here, as in a host that owns it.
fn check_one_cache(oracle: &Oracle, name: &str, case: &Value, policy: &PolicyConfig) {
    let steps = case["steps"].as_u64().unwrap() as usize;
    let mut inputs = tensors(oracle, steps, 0, false);
    let sigmas = inputs.tensors.remove("sigmas").unwrap();
    let options = RequestOptions {
        cache: policy.clone(),
        guidance: Some(3.5),
        steps: Some(2 * steps),
        ..RequestOptions::default()
    };
    let mut request = oracle.engine.request(&inputs, &options).unwrap();
    for generation in 0..2 {
        let mut latents = oracle.tensors[["in.latents", "in.latents_b"][generation]].clone();
        for step in 0..steps {
            let (velocity, records) = request.velocity(&latents, sigmas[step]).unwrap();
            let at = generation * steps + step;
            assert_eq!(records.len(), 1, "{name} step {at}");
            let letter = case["branches"]["cond"]["decisions"].as_str().unwrap().chars().nth(at).unwrap();
            assert_eq!(records[0].letter(), letter, "{name} step {at}");
            check_step(&records[0], &case["branches"]["cond"], at, &format!("{name} step {at}"));
            latents += &(velocity * (sigmas[step + 1] - sigmas[step]));
        }
        let error = relative_l1(&latents, &oracle.tensors[&format!("out.{name}.{generation}")]);
        assert!(error <= LATENT_RELATIVE_L1, "{name}: latents differ by {error:e}");
    }
    assert!(request.velocity(&oracle.tensors["in.latents"], 1.0).is_err(), "{name}: a step too many");
}

fn check(oracle: &Oracle, name: &str, case: &Value, policy: &PolicyConfig) {
    if is_one_cache(case) {
        return check_one_cache(oracle, name, case, policy);
    }
    let generations = case["config"]["generations"].as_u64().unwrap_or(1) as usize;
    let steps = case["steps"].as_u64().unwrap() as usize;
    for generation in 0..generations {
        let output = generate(oracle, case, policy, steps, generation);
        let branches = [(Branch::Cond, "cond"), (Branch::Uncond, "uncond")];
        let lists = case["config"]["block_lists"].as_array().filter(|_| has_lists(case));
        let lists: Vec<Option<usize>> = lists.map_or(vec![None], |lists| (0..lists.len()).map(Some).collect());
        for (list, (branch, key)) in lists.iter().flat_map(|list| branches.map(|branch| (*list, branch))) {
            let key = list.map_or(key.to_owned(), |list| format!("list{list}.{key}"));
            let records: Vec<_> = output.trace.branch(branch).filter(|record| record.list == list).collect();
            let recorded = &case["branches"][&key];
            if recorded.is_null() {
                assert_eq!(records.len(), 0, "{name} {key}");
                continue;
            }
            let part = generation * steps..(generation + 1) * steps;
            let decisions = &recorded["decisions"].as_str().unwrap()[part.clone()];
            let ours: String = records.iter().map(|record| record.letter()).collect();
            assert_eq!(ours, decisions, "{name} {key}");
            for (record, step) in records.into_iter().zip(part) {
                check_step(record, recorded, step, &format!("{name} {key} step {step}"));
            }
        }
        let key = if generations > 1 { format!("out.{name}.{generation}") } else { format!("out.{name}") };
        let theirs = &oracle.tensors[&key];
        let theirs = theirs.to_shape(output.latents.shape()).unwrap().into_owned();
        let error = relative_l1(&output.latents, &theirs);
        let is_dmd = case["config"]["calibrator"]["type"] == "dmd";
        let tolerance = if is_dmd { DMD_LATENT_RELATIVE_L1 } else { LATENT_RELATIVE_L1 };
        assert!(error <= tolerance, "{name}: latents differ by {error:e}");
        if let Some(image) = output.images.first() {
            let uncached = generate(oracle, case, &PolicyConfig::None, steps, generation);
            let psnr = image.psnr(&uncached.images[0]).unwrap();
            let floor = if record_has_single_blocks(&output) { PRUNE_PSNR_FLOOR } else { PSNR_FLOOR };
            assert!(psnr >= floor, "{name}: {psnr:.1} dB against the uncached picture");
        }
    }
}

fn record_has_single_blocks(output: &Output) -> bool {
    output.trace.records.iter().any(|record| !record.blocks.is_empty())
}

/// One step and branch: what was decided for the step, and for single blocks.
fn check_step(record: &StepRecord, recorded: &Value, step: usize, at: &str) {
    let pruned = &recorded["pruned_blocks"][step];
    if let Some(pruned) = pruned.as_array() {
        let ours: Vec<Value> = record.skipped_blocks().map(|block| value!(block)).collect();
        assert_eq!(&ours, pruned, "{at}");
        check_blocks(record, &recorded["diffs"][step], 0, at);
    } else {
        // A threshold that always hits compares nothing: the reference calls that a diff of -1, which is below.
        let theirs = recorded["diffs"][step].as_f64();
        let is_always = theirs == Some(-1.0) && record.decision.action == Action::Skip;
        let reason = if is_always { &value!("always") } else { &recorded["reasons"][step] };
        // The recordings of 0.1.0 have no reasons.
        if !reason.is_null() {
            assert_eq!(record.decision.reason.as_str(), *reason, "{at}");
        }
        // An even step of the alter cache computes whatever its diff is, so here it takes none.
        let is_compared = record.decision.reason != Reason::AlterStep;
        let theirs = theirs.filter(|diff| *diff >= 0.0 && is_compared);
        assert_eq!(record.diff.is_some(), theirs.is_some(), "{at}");
        if let (Some(ours), Some(theirs)) = (record.diff, theirs) {
            check_diff(ours, theirs, at);
        }
        if recorded["bn_diffs"][step].is_array() {
            let first = record.blocks.first().map_or(0, |block| block.block);
            let tail = recorded["bn_diffs"][step].as_array().unwrap();
            let offset = tail.first().map_or(0, |entry| first - entry[0].as_u64().unwrap() as usize);
            check_blocks(record, &recorded["bn_diffs"][step], offset, at);
        }
    }
    assert_eq!(record.blocks_run as u64, recorded["blocks_run"][step], "{at}");
}

/// `theirs` holds `[block, diff, threshold, …]` for each comparison, counted from `offset`.
fn check_blocks(record: &StepRecord, theirs: &Value, offset: usize, at: &str) {
    let compared: Vec<_> = record.blocks.iter().filter(|block| block.diff.is_some()).collect();
    let theirs = theirs.as_array().map(Vec::as_slice).unwrap_or_default();
    assert_eq!(compared.len(), theirs.len(), "{at}");
    for (ours, theirs) in compared.iter().zip(theirs) {
        assert_eq!(ours.block - offset, theirs[0].as_u64().unwrap() as usize, "{at}");
        check_diff(ours.diff.unwrap(), theirs[1].as_f64().unwrap(), &format!("{at} block {}", ours.block));
        let threshold = theirs[2].as_f64().unwrap();
        assert!((ours.threshold.unwrap() - threshold).abs() <= DIFF_RELATIVE * threshold, "{at}: {ours:?} {threshold}");
    }
}

/// Recorded diffs have 7 decimals.
fn check_diff(ours: f32, theirs: f64, at: &str) {
    let error = (f64::from(ours) - theirs).abs();
    assert!(error <= DIFF_RELATIVE * theirs + 1e-7, "{at}: {ours} {theirs}");
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
