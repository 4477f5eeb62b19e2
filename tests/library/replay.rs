//! A recorded run repeated, and two runs compared: through the library and through the command.

use crate::common::shell::Shell;
use crate::common::{data, tiny_inputs};
use dbcache_trt::cache::{Action, Branch, PolicyConfig, Reason};
use dbcache_trt::trace::{Trace, compare, read, recording};
use dbcache_trt::{Engine, EngineOptions, ErrorKind, Output, RequestOptions, write_json};
use serde_json::{Value, json};

const STEPS: usize = 12;

fn engine() -> Engine {
    Engine::load(data("tiny-flux"), &EngineOptions::default()).unwrap()
}

fn run(engine: &Engine, cache: PolicyConfig, is_guided: bool) -> Output {
    let true_cfg = is_guided.then_some(2.0);
    let options = RequestOptions { cache, steps: Some(STEPS), true_cfg, ..RequestOptions::default() };
    engine.request(&tiny_inputs(is_guided), &options).unwrap().run(&mut ()).unwrap()
}

fn replay(trace: &Value) -> PolicyConfig {
    let (config, recording) = recording(trace).unwrap();
    PolicyConfig::replay(config, recording)
}

#[test]
fn a_replay_repeats_the_run_to_the_bit_without_a_diff() {
    let engine = engine();
    for (tag, is_guided, letters) in [
        ("f1b0w2r0.9", false, "CS"),
        ("f1b0w2r0.3mc2", true, "CS"),
        ("f1b0w4r0.9mc2_t1", false, "CS"),
        ("f1b0w4r0.9mc2_t2_hs1", true, "CS"),
        ("f1b0w2r0.9fr5:repeat", false, "CS"),
        ("f2b4w2r0.9mc3_id0.2nt0.5", false, "CS"),
        ("prune_f1b0w2r0.3", false, "CP"),
        ("prune_f1b1w4r0.4ui2_t1", true, "CP"),
        ("f1b0w2r0.9cf1", true, "CS"),
        ("f1b0w2r0.3mc2sl1", true, "CS"),
        ("f1b2w4r0.9mc2sl1_id0nt0.5_t1", false, "CS"),
        ("prune_f1b1w4r0.4ui2sl1_t1", true, "CP"),
    ] {
        let original = run(&engine, tag.parse().unwrap(), is_guided);
        let decisions = original.trace.decisions(Branch::Cond);
        assert!(letters.chars().all(|letter| decisions.contains(letter)), "{tag}: {decisions}");
        let repeated = run(&engine, replay(&json!([original.trace.to_json()])), is_guided);
        assert_eq!(repeated.latents, original.latents, "{tag}");
        let comparison = compare(&original.trace, &repeated.trace);
        assert!(comparison.is_equal(), "{tag}: {comparison}");
        for branch in [Branch::Cond, Branch::Uncond] {
            assert_eq!(repeated.trace.decisions(branch), original.trace.decisions(branch), "{tag}");
        }
        assert_eq!(repeated.trace.blocks_run(), original.trace.blocks_run(), "{tag}");
        for record in &repeated.trace.records {
            let blocks = record.blocks.iter().map(|block| (block.decision, block.diff));
            for (decision, diff) in blocks.chain([(record.decision, record.diff)]) {
                let expected = match decision.action {
                    Action::Compute => Reason::RecordedCompute,
                    Action::Skip => Reason::RecordedSkip,
                };
                assert_eq!((decision.reason, diff), (expected, None), "{tag}");
            }
        }
        // A replay of the replay is the same again, and its trace is read back whole.
        let json = repeated.trace.to_json();
        assert_eq!(replay(&json), repeated.trace.cache, "{tag}");
        assert_eq!(Trace::from_json(&json).unwrap().to_json(), json, "{tag}");
        let json = original.trace.to_json();
        assert_eq!(read(&json).unwrap()[0].to_json(), json, "{tag}");
    }
}

#[test]
fn a_recording_of_another_run_is_refused() {
    let engine = engine();
    let one = replay(&run(&engine, "f1b0w2r0.9".parse().unwrap(), false).trace.to_json());
    let two = replay(&run(&engine, "f1b0w2r0.9".parse().unwrap(), true).trace.to_json());
    let refusal = |engine: &Engine, cache: &PolicyConfig, steps: usize, is_guided: bool| {
        let true_cfg = is_guided.then_some(2.0);
        let options = RequestOptions { cache: cache.clone(), steps: Some(steps), true_cfg, ..Default::default() };
        let refused = engine.request(&tiny_inputs(is_guided), &options);
        refused.err().map(|error| (error.kind(), error.to_string())).expect("it is accepted")
    };
    for (cache, steps, is_guided, words) in [
        (&one, STEPS + 1, false, "has 12 steps, this run has 13"),
        (&one, STEPS, true, "has the branches cond, this run has cond and uncond"),
        (&two, STEPS, false, "has the branches cond and uncond, this run has cond"),
    ] {
        let (kind, message) = refusal(&engine, cache, steps, is_guided);
        assert!(kind == ErrorKind::Usage && message.contains(words), "{message}");
    }
    let emoji = Engine::load(crate::common::emoji(), &EngineOptions::default()).unwrap();
    let options = RequestOptions { cache: one, steps: Some(STEPS), ..Default::default() };
    let refused = emoji.request(&dbcache_trt::Inputs::prompt("lemon"), &options).err().unwrap().to_string();
    assert!(refused.contains("a model of 12 blocks, this one has 57"), "{refused}");
}

#[test]
fn counts_of_captured_runs_are_read_and_told() {
    let mut json = run(&engine(), "f1b0w2r0.9sl1".parse().unwrap(), false).trace.to_json();
    assert_eq!(json["captures"], Value::Null);
    json["captures"] = json!({ "recorded": 2, "replayed": 9, "plain": 1 });
    let trace = Trace::from_json(&json).unwrap();
    assert_eq!(trace.to_json(), json);
    let summary = trace.summary().to_string();
    assert!(summary.contains("captures 2 recorded, 9 replayed, 1 plain\n"), "{summary}");
    json["captures"]["replayed"] = json!(-1);
    let error = Trace::from_json(&json).unwrap_err().to_string();
    assert!(error.contains("`captures.replayed`") || error.contains("`replayed`"), "{error}");
}

#[test]
fn a_list_runs_no_blocks_of_another_one() {
    let mut trace = run(&engine(), "f1b0w2r0.9sl1".parse().unwrap(), false).trace.to_json();
    assert!(Trace::from_json(&trace).is_ok());
    trace["records"][0]["blocks_run"] = json!(12);
    trace["records"][0]["ran"] = json!([[0, 12]]);
    let error = Trace::from_json(&trace).unwrap_err().to_string();
    assert!(error.contains("`records[0]` runs or decides on blocks outside of its list"), "{error}");
}

#[test]
fn a_damaged_trace_is_refused_by_its_field() {
    let good = run(&engine(), "f2b4w2r0.9mc3_id0.2nt0.5".parse().unwrap(), false).trace.to_json();
    assert!(recording(&good).is_ok());
    let step = good["records"].as_array().unwrap().iter().position(|record| record["action"] == "S").unwrap();
    let at = |field: &str| format!("/records/{step}/{field}");
    for (pointer, value, words) in [
        ("/version", json!(3), "version 3, this program reads version 2; record the run again"),
        ("/version", json!(1), "version 1, this program reads version 2"),
        ("/compute", json!(null), "`trace.compute` is null; expected text"),
        ("/compute", json!("exported"), "expected `fp32`, `fp16` or `bf16`"),
        ("/blocks", json!("12"), "`trace.blocks` is \"12\"; expected a whole number"),
        ("/blocks", json!(3), "expected positive numbers of blocks that add up to 3"),
        ("/cache", json!("f1b0"), "`trace.cache` is \"f1b0\"; expected"),
        ("/cache_options/Fn_compute_blocks", json!(-1), "`cache_options` are damaged"),
        ("/cache_options/cache_type", json!("replay"), "`cache_options` are damaged"),
        ("/decisions/cond", json!("CCCCCCCCCCCC"), "`decisions.cond` is"),
        (&at("action"), json!("C"), "action` is \"C\"; expected `S`"),
        (&at("action"), json!("X"), "action` is \"X\""),
        (&at("reason"), json!("luck"), "reason` is \"luck\"; expected a known reason"),
        (&at("step"), json!(77), "is 77; expected"),
        (&at("branch"), json!("both"), "branch` is \"both\"; expected `cond` or `uncond`"),
        (&at("branch"), json!("uncond"), "11 cond and 1 uncond steps"),
        (&at("blocks"), json!({}), "expected a list"),
        (&at("blocks/0/block"), json!(12), "blocks[0].block` is 12; expected below 12"),
        (&at("blocks_run"), json!(13), "expected at most 12"),
        (&at("blocks_run"), json!(1), "expected 1 blocks, as `blocks_run` says"),
        (&at("ran"), json!([[0, 2], [2, 3]]), "expected a list of ranges"),
        (&at("ran"), json!([[2, 0]]), "expected a list of ranges"),
        (&at("ran"), json!([0]), "expected a list of ranges"),
        (&at("diff"), json!("0.1"), "expected a number"),
        ("/records", json!([]), "0 cond and 0 uncond steps"),
        ("/timings", json!(null), "`timings` is damaged: expected an object"),
        ("/cache_bytes", json!({"residuals": 1}), "`cache_bytes` lacks `calibrators`"),
        ("/surprise", json!(1), "`trace` has an unknown field `surprise`"),
    ] {
        let mut bad = good.clone();
        crate::common::damage::set(&mut bad, pointer, Some(value));
        let error = recording(&bad).expect_err(pointer);
        assert!(error.kind() == ErrorKind::Input && error.to_string().contains(words), "{pointer}: {error}");
    }
    for field in good.as_object().unwrap().keys() {
        let mut bad = good.clone();
        bad.as_object_mut().unwrap().shift_remove(field);
        let error = recording(&bad).expect_err(field).to_string();
        assert!(error.contains(field.as_str()), "{field}: {error}");
    }
    for list in [json!([]), json!([good, good])] {
        assert!(recording(&list).is_err_and(|error| error.to_string().contains("needs exactly one")));
    }
    assert!(recording(&json!(7)).is_err() && recording(&json!(null)).is_err());
}

#[test]
fn two_runs_part_where_a_threshold_makes_them() {
    let engine = engine();
    let run = |tag: &str, is_guided: bool| run(&engine, tag.parse().unwrap(), is_guided).trace;
    let (loose, strict) = (run("f1b0w2r0.9", false), run("f1b0w2r0", false));
    let comparison = compare(&loose, &strict);
    let first = comparison.first.as_ref().unwrap();
    let expected = loose.decisions(Branch::Cond).find('S').unwrap();
    assert_eq!((first.step, first.branch, first.block), (expected, Branch::Cond, None));
    assert_eq!(first.a.unwrap().decision.reason, Reason::Below);
    assert_eq!(first.b.unwrap().decision.reason, Reason::ThresholdOff);
    assert_eq!(comparison.differing_steps, loose.skipped());
    assert_eq!(comparison.settings.iter().map(|setting| setting.name).collect::<Vec<_>>(), ["cache"]);
    assert!(comparison.to_string().contains("parts at     step 2, cond: skipped (below, diff "), "{comparison}");

    let (loose, strict) = (run("prune_f1b0w2r0.4", false), run("prune_f1b0w2r0.2", false));
    let comparison = compare(&loose, &strict);
    assert!(comparison.first.is_some_and(|first| first.block.is_some()) && comparison.differing_blocks > 0);
    assert!(comparison.largest.is_some_and(|largest| largest.block.is_some()));

    let comparison = compare(&run("f1b0w2r0.9", true), &run("f1b0w2r0.9", false));
    assert_eq!(comparison.settings.iter().map(|s| s.name).collect::<Vec<_>>(), ["cfg", "branches"]);
    assert!(comparison.first.is_some_and(|first| first.branch == Branch::Uncond && first.b.is_none()));
}

#[test]
fn the_command_replays_and_compares() {
    let shell = Shell::new();
    let run = |arguments: &str| shell.run(&arguments.split_whitespace().collect::<Vec<_>>());
    let make = |options: &str| shell.tiny(&format!("--steps 8 {options}"));
    make("--cache f1b0w2r0.9 --trace a.json --save-latents a").code(0).stdout("memory   cache ");
    make("--replay a.json --trace b.json --check-outputs a --tolerance 0").code(0).stdout("replay(f1b0w2i1r0.9)");
    assert_eq!(shell.json("a.json")[0]["decisions"], shell.json("b.json")[0]["decisions"]);
    make("--cache f1b0w4r0.9 --trace c.json").code(0);

    let equal = run("trace diff a.json b.json").code(0);
    equal.stdout("decisions    equal on all 8 steps").stdout("cache        f1b0w2i1r0.9 | replay(f1b0w2i1r0.9)");
    let differing = run("trace diff a.json c.json").code(8).stderr("a.json and c.json hold different decisions");
    differing.stdout("parts at     step 2, cond: skipped (below, diff ").stdout("computed (warmup)");
    let json: Value = serde_json::from_str(&run("trace diff a.json c.json --json").code(8).out).unwrap();
    let first = &json["comparisons"][0]["first"];
    assert_eq!((&first["step"], &first["b"]["reason"]), (&json!(2), &json!("warmup")));

    write_json(&shell.path("two.json"), &json!([shell.json("a.json")[0], shell.json("b.json")[0]])).unwrap();
    for (arguments, code, words) in [
        ("trace diff a.json two.json", 5, "a.json holds 1 traces, two.json holds 2"),
        ("trace diff a.json in.safetensors", 5, "does not parse as JSON"),
        ("trace diff a.json missing.json", 9, "cannot read the trace missing.json"),
    ] {
        run(arguments).code(code).stderr(words);
    }
    for (options, code, words) in [
        ("--replay two.json", 5, "two.json: holds 2 traces"),
        ("--replay missing.json", 9, "cannot read the trace missing.json"),
        ("--replay a.json --cache f1b0", 2, "cannot be used with"),
        (
            "--replay a.json --max-warmup-steps 3 --l1-hidden-states-diff-threshold none",
            2,
            "so --max-warmup-steps, --l1-hidden-states-diff-threshold cannot be used with it",
        ),
        ("--replay a.json --inputs guided.safetensors --true-cfg 2", 2, "this run has cond and uncond"),
    ] {
        make(options).code(code).stderr(words);
    }
}
