//! Lists of blocks, each decided on by itself. That they decide as in the reference is shown by tests/library/parity.rs
//! (`split.two_lists`); here: what a trace shows of them, replays, limits, and refusals.

use std::fs;

use crate::common::damage::{Copy, set};
use crate::common::{data, emoji, tiny_inputs};
use dbcache_trt::cache::{Action, Branch, PolicyConfig};
use dbcache_trt::trace::{StepRecord, Trace, compare, recording};
use dbcache_trt::{Engine, EngineOptions, ErrorKind, Inputs, Output, RequestOptions, StagesChoice, read_tensors};
use serde_json::json;

/// Blocks of the model of tests/data/tiny-flux: double, single.
const LISTS: [usize; 2] = [4, 8];
const STEPS: usize = 28;

fn engine() -> Engine {
    Engine::load(data("tiny-flux"), &EngineOptions::default()).unwrap()
}

fn options(cache: &str, true_cfg: Option<f32>) -> RequestOptions {
    RequestOptions { cache: cache.parse().unwrap(), steps: Some(STEPS), true_cfg, ..RequestOptions::default() }
}

fn run(engine: &Engine, cache: &str, true_cfg: Option<f32>) -> Output {
    let request = engine.request(&tiny_inputs(true_cfg.is_some()), &options(cache, true_cfg)).unwrap();
    let records = request.records();
    let output = request.run(&mut ()).unwrap();
    assert_eq!(output.trace.records.len(), records, "{cache}");
    output
}

fn of_list(trace: &Trace, branch: Branch, list: usize) -> Vec<&StepRecord> {
    trace.branch(branch).filter(|record| record.list == Some(list)).collect()
}

#[test]
fn a_trace_has_a_record_for_each_list() {
    let engine = engine();
    let trace = run(&engine, "f1b0w4r0.0775sl1", None).trace;
    assert_eq!((trace.lists.as_slice(), trace.blocks()), (LISTS.as_slice(), 12));
    let each = trace.decisions_each(Branch::Cond);
    assert!(each.len() == 2 && each[0] != each[1] && each.iter().all(|letters| letters.len() == STEPS), "{each:?}");
    assert_eq!(trace.decisions(Branch::Cond), each.join(" "));
    for (list, blocks) in LISTS.into_iter().enumerate() {
        let records = of_list(&trace, Branch::Cond, list);
        assert!(records.iter().enumerate().all(|(step, record)| record.step == step));
        let run = |record: &&StepRecord| if record.decision.action == Action::Compute { blocks } else { 1 };
        assert!(records.iter().all(|record| record.blocks_run == run(record)), "list {list}");
    }
    let summary = trace.summary().to_string();
    for line in [
        format!("cond list 0 {}", each[0]),
        format!("cond list 1 {}", each[1]),
        format!("of {} run", 12 * STEPS),
        "f1b0w4i1r0.0775sl1".into(),
    ] {
        assert!(summary.contains(&line), "{summary}\nlacks `{line}`");
    }
    assert_eq!(trace.statistics()["blocks"], json!(12 * STEPS));

    let json = trace.to_json();
    assert_eq!((&json["lists"], &json["records"][1]["list"]), (&json!([4, 8]), &json!(1)));
    assert_eq!(Trace::from_json(&json).unwrap().to_json(), json);
    for (pointer, value, words) in [
        ("/lists", json!([4, 9]), "positive numbers of blocks that add up to 12"),
        ("/lists", json!([12, 0]), "positive numbers of blocks"),
        ("/lists", json!([12]), "`records[0].list` is 0; expected null"),
        ("/lists", json!([8, 4]), "outside of its list, which holds the blocks 8..12"),
        ("/records/1/list", json!(0), "`records[1].list` is 0; expected 1"),
        ("/records/1/list", json!(null), "`records[1].list` is null; expected 1"),
        ("/records/1/ran", json!([[3, 11]]), "outside of its list"),
    ] {
        let mut damaged = json.clone();
        *damaged.pointer_mut(pointer).unwrap() = value;
        let error = Trace::from_json(&damaged).unwrap_err();
        assert!(error.kind() == ErrorKind::Input && error.to_string().contains(words), "{pointer}: {error}");
    }
}

#[test]
fn each_list_has_its_own_limits_diffs_and_blocks() {
    let engine = engine();
    let skips =
        |records: &[&StepRecord]| records.iter().filter(|record| record.decision.action == Action::Skip).count();
    let trace = run(&engine, "f1b0w2r0.9m3sl1", Some(2.0)).trace;
    for (branch, list) in [(Branch::Cond, 0), (Branch::Cond, 1), (Branch::Uncond, 0), (Branch::Uncond, 1)] {
        assert_eq!(skips(&of_list(&trace, branch, list)), 3, "{branch} {list}");
    }
    // A list of the uncond branch shares the diff of the same list of the cond branch.
    let trace = run(&engine, "f1b0w2r0.1cds0sl1", Some(2.0)).trace;
    for list in [0, 1] {
        let (cond, uncond) = (of_list(&trace, Branch::Cond, list), of_list(&trace, Branch::Uncond, list));
        let shared = cond.iter().zip(&uncond).filter(|(a, b)| a.diff.is_some() && b.diff.is_some());
        assert!(shared.clone().count() > 0 && shared.clone().all(|(a, b)| a.diff == b.diff), "list {list}");
    }
    // Options count blocks from the start of a list; records count from the start of the model.
    let trace = run(&engine, "prune_f1b1w2r0.3np2sl1", None).trace;
    for (list, expected) in [(0, vec![1]), (1, vec![5, 7, 8, 9, 10])] {
        let records = of_list(&trace, Branch::Cond, list);
        let blocks: Vec<usize> = records[5].blocks.iter().map(|block| block.block).collect();
        assert_eq!(blocks, expected, "list {list}");
        assert!(records.iter().any(|record| record.letter() == 'P'), "list {list}");
    }
    // The time of all records is that of the steps.
    let recorded: f64 = trace.records.iter().map(|record| record.elapsed_ms).sum();
    let spent = trace.timings.embed_ms + trace.timings.blocks_ms + trace.timings.cache_ms + trace.timings.final_ms;
    assert!((recorded - spent).abs() < 0.05 * spent, "{recorded} {spent}");
}

#[test]
fn comparisons_and_replays_know_the_list() {
    let engine = engine();
    let (a, b) = (run(&engine, "f1b0w4r0.0775sl1", None), run(&engine, "f1b0w4r0.0775m9sl1", None));
    let comparison = compare(&a.trace, &b.trace);
    let first = comparison.first.as_ref().unwrap();
    assert!(first.list.is_some() && comparison.to_string().contains(", block list "), "{comparison}");
    assert_eq!(comparison.to_json()["first"]["list"], json!(first.list));
    let joined = compare(&a.trace, &run(&engine, "f1b0w4r0.0775", None).trace);
    assert!(joined.settings.iter().any(|setting| setting.name == "lists" && setting.b == "[12]"), "{joined}");

    let (config, recording) = recording(&a.trace.to_json()).unwrap();
    let replay = PolicyConfig::replay(config, recording);
    let large = Engine::load(emoji(), &EngineOptions::default()).unwrap();
    let request = RequestOptions { cache: replay, ..options("none", None) };
    let error = large.request(&Inputs::prompt("lemon"), &request).err().unwrap();
    let words = "block list 0 (blocks 0..19): the recording is of a model of 4 blocks, this one has 19";
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn what_does_not_fit_a_list_is_refused_with_the_list() {
    let engine = engine();
    let one_kind = Copy::tiny();
    one_kind.manifest(|manifest| {
        let blocks = manifest["blocks"].as_array_mut().unwrap();
        blocks.truncate(LISTS[0]);
        manifest["lists"].as_array_mut().unwrap().truncate(1);
    });
    for block in LISTS[0]..12 {
        fs::remove_file(one_kind.path(&format!("block_{block:03}.onnx"))).unwrap();
    }
    let one_kind = Engine::load(one_kind.folder.path(), &EngineOptions::default()).unwrap();
    for (engine, tag, words) in [
        (&one_kind, "f1b0sl1", "separate_block_lists has no effect: all 4 blocks of this model are one list"),
        (&engine, "f5b0sl1", "block list 0 (blocks 0..4): Fn_compute_blocks 5 + Bn_compute_blocks 0 is more"),
        (&engine, "prune_f4b0sl1", "block list 0 (blocks 0..4): no block could ever be pruned"),
        (&engine, "prune_f1b0np6sl1", "block list 0 (blocks 0..4): non_prune_block_ids names block 6"),
    ] {
        let error = engine.request(&tiny_inputs(false), &options(tag, None)).err().unwrap();
        assert!(error.kind() == ErrorKind::Usage && error.to_string().contains(words), "{tag}: {error}");
    }
    // What is so of one list only is said of that one.
    let trace = run(&engine, "f4b0w4sl1m99", None).trace;
    let warnings: Vec<String> = trace.warnings.iter().map(|warning| warning.to_string()).collect();
    for (words, count) in [("block list 0 (blocks 0..4): nothing is saved", 1), ("max_cached_steps has no effect", 1)] {
        assert_eq!(warnings.iter().filter(|warning| warning.contains(words)).count(), count, "{warnings:?}");
    }
}

/// FLUX.2's second list takes picture and text as one tensor: without that word its text is a stream of its own.
#[test]
fn a_joined_list_is_compared_kept_and_forecast_as_one() {
    let (joined, apart) = (Copy::family("flux2"), Copy::family("flux2"));
    apart.manifest(|manifest| set(manifest, "/lists/1/joined", None));
    let recorded = read_tensors(&data("families/flux2/vectors.safetensors")).unwrap();
    let given = recorded.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("in.")?, tensor.clone())));
    let inputs =
        Inputs { tensors: given.map(|(name, tensor)| (name.to_owned(), tensor)).collect(), ..Inputs::default() };
    let text = recorded["in.prompt_embeds"].shape()[1] as u64;
    // Whether bytes and latents differ.
    for (tag, differs) in [
        ("f1b0w2r0.8842sl1", [true, true]),
        ("f1b1w2r0.9mc2sl1er0", [true, true]),
        ("f1b1w6r0.9mc2sl1_dmd4", [true, true]),
        ("f1b1w2r0.9mc2_t1_ce0sl1", [true, true]),
        // Without the word for lists all blocks are one list, which is not joined.
        ("f1b0w2r0.8842", [false, false]),
    ] {
        let [one, other] = [&joined, &apart].map(|copy| {
            let load = EngineOptions { stages: StagesChoice::PerBlock, ..EngineOptions::default() };
            let engine = Engine::load(copy.folder.path(), &load).unwrap();
            let options = RequestOptions { cache: tag.parse().unwrap(), steps: Some(10), ..RequestOptions::default() };
            let output = engine.request(&inputs, &options).unwrap().run(&mut ()).unwrap();
            assert_eq!(engine.cache_bytes(&options, Some(text)).unwrap(), output.trace.cache_bytes, "{tag}");
            output
        });
        assert_eq!(one.trace.cache_bytes != other.trace.cache_bytes, differs[0], "{tag}");
        assert_eq!(one.latents != other.latents, differs[1], "{tag}");
    }
}
