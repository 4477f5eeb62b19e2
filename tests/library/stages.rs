//! Stages: every division of the blocks computes the same, and an engine finds the stages that a policy needs.

use std::ops::Range;
use std::path::Path;
use std::thread;

use crate::common::shell::Shell;
use crate::common::{data, emoji, relative_l1, tiny_inputs};
use dbcache_trt::cache::Branch;
use dbcache_trt::{
    ArithmeticChoice, CacheDType, Engine, EngineOptions, ErrorKind, Inputs, Model, OtherPlan, RequestOptions,
    StageInfo, StagesChoice, WeightsChoice,
};
use serde_json::{Value, json};

const CHOICES: [StagesChoice; 5] =
    [StagesChoice::PerBlock, StagesChoice::Auto, StagesChoice::Fused, StagesChoice::Blocks(2), StagesChoice::Blocks(5)];

/// Policies that cut in different places: nowhere, around a middle, after each block, and in a tail.
const TINY_POLICIES: [&str; 6] =
    ["none", "f1b0w2r0.3", "f3b4w2r0.3", "f1b0w4r0.4_t1", "prune_f1b2w2r0.3", "f2b6w2r0.9mc3_id0.2nt0.5"];

fn engine(options: EngineOptions) -> Engine {
    Engine::load(data("tiny-flux"), &options).unwrap()
}

fn names(engine: &Engine) -> Vec<String> {
    engine.stages().iter().map(|stage| stage.name().to_owned()).collect()
}

fn options(cache: &str, steps: usize) -> RequestOptions {
    RequestOptions { cache: cache.parse().unwrap(), steps: Some(steps), ..RequestOptions::default() }
}

/// Bits of the latents; of each step the branch, the letter, the bits of all diffs, and the skipped blocks.
type Facts = (Vec<u32>, Vec<(Branch, char, Vec<u32>, Vec<usize>)>);

fn facts(engine: &Engine, inputs: &Inputs, options: &RequestOptions) -> Facts {
    let output = engine.request(inputs, options).unwrap().run(&mut ()).unwrap();
    let record = |record: &dbcache_trt::trace::StepRecord| {
        let diffs = record.diffs().map(f32::to_bits).collect();
        (record.branch, record.letter(), diffs, record.skipped_blocks().collect())
    };
    (output.latents.iter().map(|x| x.to_bits()).collect(), output.trace.records.iter().map(record).collect())
}

fn tiny(engine: &Engine, cache: &str) -> Facts {
    facts(engine, &tiny_inputs(true), &RequestOptions { true_cfg: Some(2.0), ..options(cache, 10) })
}

/// On the CPU provider a block computes the same bits wherever its stage ends.
#[test]
fn every_division_decides_and_computes_the_same() {
    let per_block = engine(EngineOptions { stages: StagesChoice::PerBlock, ..EngineOptions::default() });
    for cache in TINY_POLICIES {
        let expected = tiny(&per_block, cache);
        let decisions: String = expected.1.iter().map(|record| record.1).collect();
        assert_eq!(cache != "none", decisions.contains(['S', 'P']), "{cache}: {decisions}");
        for stages in CHOICES {
            let load = EngineOptions { stages, cache: cache.parse().unwrap(), ..EngineOptions::default() };
            assert!(tiny(&engine(load), cache) == expected, "{cache} {stages}");
        }
    }
    let blocks = (0..12).map(|block| format!("block {block}"));
    let all: Vec<String> = ["embed".to_owned()].into_iter().chain(blocks).chain(["final".to_owned()]).collect();
    assert_eq!(names(&per_block), all);
}

#[test]
fn the_shipped_model_is_the_same_in_long_stages() {
    let load = |stages| Engine::load(emoji(), &EngineOptions { stages, ..EngineOptions::default() }).unwrap();
    let (per_block, auto) = (load(StagesChoice::PerBlock), load(StagesChoice::Auto));
    assert!(auto.stages().len() < 20, "{:?}", auto.stages());
    for cache in ["none", "f8b16w2r0.3"] {
        let facts = |engine| facts(engine, &Inputs::prompt("lemon"), &options(cache, 6));
        assert!(facts(&per_block) == facts(&auto), "{cache}");
    }
}

/// Where plans are added to each other, one engine serves all policies one after the other, and several at once; what it
/// has loaded stays.
#[test]
fn an_engine_loads_the_stages_that_a_policy_needs() {
    let other_plan = OtherPlan::Add;
    let fused = || engine(EngineOptions { stages: StagesChoice::Fused, other_plan, ..EngineOptions::default() });
    let per_block = engine(EngineOptions { stages: StagesChoice::PerBlock, ..EngineOptions::default() });
    let expected: Vec<Facts> = TINY_POLICIES.iter().map(|cache| tiny(&per_block, cache)).collect();
    let one = fused();
    assert_eq!(names(&one), ["embed and blocks 0..12 and final"]);
    for (cache, fresh) in [
        // Its diff needs the streams before the first block, and its residual those after the last one.
        ("f1b0w2r0.3", vec!["embed", "block 0", "blocks 1..12", "final"]),
        ("f1b0w4r0.4_t1", vec![]),
        ("f1b0w2l0.3", vec!["embed and block 0"]),
        ("f3b4w2r0.3", vec!["blocks 0..3", "blocks 3..8", "blocks 8..12 and final"]),
        ("none", vec![]),
    ] {
        let before = one.stages().len();
        assert!(tiny(&one, cache) == tiny(&per_block, cache), "{cache}");
        assert_eq!(names(&one)[before..], fresh, "{cache}");
    }
    let shared = fused();
    thread::scope(|scope| {
        for (cache, expected) in TINY_POLICIES.iter().zip(&expected).cycle().take(2 * TINY_POLICIES.len()) {
            let shared = &shared;
            scope.spawn(move || assert!(tiny(shared, cache) == *expected, "{cache}"));
        }
    });
    let mut loaded = names(&shared);
    let count = loaded.len();
    loaded.sort();
    loaded.dedup();
    assert_eq!(loaded.len(), count, "a stage was loaded twice");
}

/// By default a new policy divides the stages that are loaded: no block's weights are held twice, and all compute the
/// same as before.
#[test]
fn an_engine_divides_the_stages_that_a_policy_cuts() {
    let load = |stages, other_plan| engine(EngineOptions { stages, other_plan, ..EngineOptions::default() });
    let bytes = |engine: &Engine| engine.stages().iter().map(|stage| stage.weight_bytes).sum::<u64>();
    let per_block = load(StagesChoice::PerBlock, OtherPlan::Load);
    let [divided, added] = [OtherPlan::Load, OtherPlan::Add].map(|other| load(StagesChoice::Fused, other));
    for (cache, expected) in [
        ("none", vec!["embed and blocks 0..12 and final"]),
        ("f3b4w2l0.3", vec!["embed and blocks 0..3", "blocks 3..8", "blocks 8..12 and final"]),
        ("none", vec!["embed and blocks 0..3", "blocks 3..8", "blocks 8..12 and final"]),
        ("f1b0w2r0.3", vec!["embed", "block 0", "blocks 1..3", "blocks 3..8", "blocks 8..12", "final"]),
        ("f3b4w2r0.3", vec!["embed", "block 0", "blocks 1..3", "blocks 3..8", "blocks 8..12", "final"]),
        ("f1b0w2l0.3", vec!["embed", "block 0", "blocks 1..3", "blocks 3..8", "blocks 8..12", "final"]),
    ] {
        for engine in [&divided, &added] {
            assert!(tiny(engine, cache) == tiny(&per_block, cache), "{cache}");
        }
        assert_eq!(names(&divided), expected, "{cache}");
        assert_eq!(bytes(&divided), bytes(&per_block), "{cache}");
    }
    assert!(bytes(&added) > 2 * bytes(&per_block), "{}", bytes(&added));
    // Stages that a request runs stay until it ends, whoever divides them.
    let shared = load(StagesChoice::Fused, OtherPlan::Load);
    let running = shared.request(&tiny_inputs(false), &options("none", 10)).unwrap();
    let expected = tiny(&per_block, "prune_f1b2w2r0.3");
    assert!(tiny(&shared, "prune_f1b2w2r0.3") == expected);
    let alone = per_block.request(&tiny_inputs(false), &options("none", 10)).unwrap().run(&mut ()).unwrap();
    assert_eq!(running.run(&mut ()).unwrap().latents, alone.latents);
    let shared = load(StagesChoice::Fused, OtherPlan::Load);
    thread::scope(|scope| {
        for cache in TINY_POLICIES.iter().cycle().take(2 * TINY_POLICIES.len()) {
            let shared = &shared;
            let expected = tiny(&per_block, cache);
            scope.spawn(move || assert!(tiny(shared, cache) == expected, "{cache}"));
        }
    });
    // Mapped weights are in memory once whatever is loaded: nothing is divided.
    let mapped = EngineOptions { weights: WeightsChoice::Mapped, stages: StagesChoice::Fused, ..Default::default() };
    let mapped = engine(mapped);
    assert!(mapped.request(&tiny_inputs(false), &options("f3b4w2r0.3", 10)).is_ok());
    assert_eq!(mapped.stages().len(), 5);
}

#[test]
fn an_engine_that_may_load_nothing_refuses_other_cuts() {
    let load = |stages, cache: &str| {
        let cache = cache.parse().unwrap();
        engine(EngineOptions { stages, cache, other_plan: OtherPlan::Refuse, ..EngineOptions::default() })
    };
    let middle = load(StagesChoice::Fused, "f3b4");
    let loaded = middle.stages();
    for (cache, refused) in [
        ("f3b4w2r0.3", None),
        // All its stages together are all blocks.
        ("none", None),
        ("f3b4w2r0.3_t1", None),
        // What follows the last block is part of a stage.
        ("f3b0w2r0.3", Some("the blocks 0 to 3, 3 to 12")),
        ("f1b4", Some("the blocks 0 to 1, 1 to 8, 8 to 12, but the stages of this engine (embed; blocks 0..3; ")),
        ("prune_f3b4", Some("3 to 4, 4 to 5")),
    ] {
        match (middle.request(&tiny_inputs(false), &options(cache, 12)), refused) {
            (Ok(_), None) => {}
            (Err(error), Some(words)) => {
                assert_eq!(error.kind(), ErrorKind::Usage);
                assert!(error.to_string().contains(words), "{cache}: {error}");
                assert!(error.to_string().contains("`stages=per-block`"), "{cache}: {error}");
            }
            (request, _) => panic!("{cache}: {:?}", request.err()),
        }
    }
    assert_eq!(middle.stages(), loaded);
    let per_block = load(StagesChoice::PerBlock, "none");
    for cache in TINY_POLICIES {
        assert!(per_block.request(&tiny_inputs(false), &options(cache, 12)).is_ok(), "{cache}");
    }
}

/// The cache's arithmetic within the stages sums in another order than loops over host memory.
const DIFF_RELATIVE: f32 = 1e-4;
const LATENTS_RELATIVE_L1: f64 = 1e-6;

/// Decides, computes and keeps the same as with small graphs; a skipped step is two session runs, a computed one three.
fn check_in_stages(directory: &Path, inputs: &Inputs, options: &RequestOptions) {
    let load = |arithmetic| {
        let cache = options.cache.clone();
        let load = EngineOptions { arithmetic, cache, stages: StagesChoice::Fused, ..EngineOptions::default() };
        Engine::load(directory, &load).unwrap()
    };
    let in_stages = load(ArithmeticChoice::Stages);
    let predicted = in_stages.cache_bytes(options, None).unwrap();
    let request = in_stages.request(inputs, options).unwrap();
    // One reading of the predictions is made for the largest text.
    assert!(request.cache_bytes().total() <= predicted.total());
    let ours = request.run(&mut ()).unwrap();
    let at = options.cache.to_string();
    for arithmetic in [ArithmeticChoice::Graphs, ArithmeticChoice::Auto] {
        let theirs = load(arithmetic).request(inputs, options).unwrap().run(&mut ()).unwrap();
        let error = relative_l1(&ours.latents, &theirs.latents);
        assert!(error <= LATENTS_RELATIVE_L1, "{at} {arithmetic:?}: {error:e}");
        assert_eq!(ours.trace.records.len(), theirs.trace.records.len());
        for (a, b) in ours.trace.records.iter().zip(&theirs.trace.records) {
            assert_eq!((a.branch, a.decision, a.blocks_run), (b.branch, b.decision, b.blocks_run), "{at} {}", a.step);
            assert!(a.session_runs < b.session_runs || arithmetic == ArithmeticChoice::Auto, "{at} {}", a.step);
            match (a.diff, b.diff) {
                (Some(a), Some(b)) => assert!((a - b).abs() <= DIFF_RELATIVE * b, "{at}: {a} {b}"),
                (a, b) => assert_eq!(a, b, "{at}"),
            }
        }
    }
    let runs = |letter| {
        let of_letter = ours.trace.records.iter().filter(|record| record.letter() == letter);
        of_letter.map(|record| record.session_runs).collect::<Vec<_>>()
    };
    let (computed, skipped) = (runs('C'), runs('S'));
    assert!(!skipped.is_empty() && skipped.iter().all(|runs| *runs == 2), "{at}: {skipped:?}");
    assert!(!computed.is_empty() && computed.iter().all(|runs| *runs == 3), "{at}: {computed:?}");
}

#[test]
fn a_skipped_step_is_two_session_runs_and_a_computed_one_three() {
    for (cache, is_guided) in [
        ("f1b0w2r0.3", false),
        ("f3b4w2r0.3", true),
        ("f3b4w2r0.3cds0", true),
        ("f2b2w2l0.3", false),
        ("f2b2w2r0.3ds3", false),
        ("f2b2w2r0.4ic0.1", false),
        ("f2b2w4i2r0.3mc2", false),
    ] {
        let true_cfg = is_guided.then_some(2.0);
        check_in_stages(
            &data("tiny-flux"),
            &tiny_inputs(is_guided),
            &RequestOptions { true_cfg, ..options(cache, 10) },
        );
    }
    let half = RequestOptions { cache_dtype: CacheDType::F16, ..options("f3b4w2r0.3", 10) };
    check_in_stages(&data("tiny-flux"), &tiny_inputs(false), &half);
    check_in_stages(&emoji(), &Inputs::prompt("lemon"), &options("f8b16w2r0.3", 8));
}

#[test]
fn arithmetic_in_stages_keeps_what_is_predicted_and_refuses_other_policies() {
    let load = EngineOptions { arithmetic: ArithmeticChoice::Stages, ..EngineOptions::default() };
    let engine = engine(load);
    for (cache, true_cfg) in [("f3b4w2r0.3", Some(2.0)), ("f1b0w2l0.3", None), ("f2b2w2r0.3ds3", None)] {
        let options = RequestOptions { true_cfg, ..options(cache, 10) };
        let request = engine.request(&tiny_inputs(true_cfg.is_some()), &options).unwrap();
        assert_eq!(request.cache_bytes(), engine.cache_bytes(&options, Some(12)).unwrap(), "{cache}");
    }
    for (cache, words) in [
        ("none", "has no middle that it reuses"),
        ("prune_f1b2w2r0.3", "has no middle that it reuses"),
        ("f1b0w4r0.4_t1", "forecasts with a calibrator"),
        ("f2b6w2r0.9mc3_id0.2nt0.5", "decides on single blocks"),
        ("f1b0w2r0.3al1", "does not keep each step"),
    ] {
        let error = engine.request(&tiny_inputs(false), &options(cache, 10)).err().unwrap();
        assert_eq!((error.kind(), error.field()), (ErrorKind::Usage, Some("arithmetic")), "{error}");
        assert!(error.to_string().contains(words), "{cache}: {error}");
    }
}

#[test]
fn a_limit_on_bytes_divides_or_refuses() {
    let with = |stages, stage_bytes| EngineOptions { stages, stage_bytes, ..EngineOptions::default() };
    let plan = |load: &EngineOptions| Model::open(data("tiny-flux"), load).and_then(|model| model.stages());
    let graphs = plan(&with(StagesChoice::PerBlock, None)).unwrap();
    let bytes = |range: Range<usize>| graphs[range].iter().map(StageInfo::bytes).sum::<u64>();
    let largest = graphs.iter().map(StageInfo::bytes).max().unwrap();
    let sessions = |stages: &[StageInfo]| stages.iter().map(|stage| stage.name().to_owned()).collect::<Vec<_>>();
    // Embed and the first three blocks.
    let limit = bytes(0..4);
    for stages in [StagesChoice::Auto, StagesChoice::Fused, StagesChoice::Blocks(12)] {
        let limited = plan(&with(stages, Some(limit))).unwrap();
        assert_eq!(sessions(&limited)[0], "embed and blocks 0..3", "{stages}");
        assert!(limited.iter().all(|stage| stage.bytes() <= limit), "{stages}");
        assert_eq!(limited.iter().map(StageInfo::bytes).sum::<u64>(), bytes(0..14));
        assert_eq!(engine(with(stages, Some(limit))).stages(), limited);
        assert_eq!(sessions(&plan(&with(stages, Some(limit - 1))).unwrap())[..2], ["embed", "blocks 0..3"], "{stages}");
        let fewer = plan(&with(stages, Some(bytes(1..4) - 1))).unwrap();
        assert!(sessions(&fewer)[0].contains("blocks 0..2") || sessions(&fewer)[1] == "blocks 0..2", "{stages}");
        let tight = plan(&with(stages, Some(largest - 1))).unwrap_err();
        let words =
            format!("alone has {largest} bytes of weights and graph, the option `stage-bytes` allows {}", largest - 1);
        assert!(tight.kind() == ErrorKind::Usage && tight.to_string().contains(&words), "{tight}");
    }
    let useless = plan(&with(StagesChoice::PerBlock, Some(largest))).unwrap_err();
    assert!(
        useless.to_string().contains("the option `stage-bytes` has no effect with the option `stages=per-block`"),
        "{useless}"
    );
}

#[test]
fn the_command_plans_as_it_loads() {
    let shell = Shell::new();
    let tiny = data("tiny-flux");
    let inspect = |options: &str| {
        let all = format!("inspect {} {options}", tiny.display());
        shell.run(&all.split_whitespace().collect::<Vec<_>>()).code(0)
    };
    let stages = |options: &str| -> String {
        let said = inspect(&format!("--json {options}")).json();
        let one = |stage: &Value| {
            let end = |key: &str, text: &'static str| if stage[key] == json!(true) { text } else { "" };
            format!("{}{}{}", end("embed", "e"), stage["blocks"], end("final", "f"))
        };
        said["stages"].as_array().unwrap().iter().map(one).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(stages("--stages fused"), "e[0,12]f");
    assert_eq!(stages("--stages 5"), "e[0,5] [5,10] [10,12]f");
    assert_eq!(stages("--cache f1b1 --stages 5"), "e[0,0] [0,1] [1,5] [5,10] [10,11] [11,12]f");
    assert_eq!(stages("--cache f1b0 --stages fused"), "e[0,0] [0,1] [1,12] [12,12]f");
    assert_eq!(stages("--stages per-block").split(' ').count(), 14);
    assert_eq!(stages("--stage-bytes 1M --stages fused"), "e[0,0] [0,3] [3,9] [9,12]f");
    assert_eq!(inspect("--json").json()["stages"], json!(null));
    let text = inspect("--cache f3b4 --stages fused");
    text.stdout("stages      4 sessions")
        .stdout("  embed: ")
        .stdout("  blocks 0..3: ")
        .stdout("blocks 8..12 and final: ");
    shell.tiny("--steps 2 --cache f1b0w0r0.9 --stages 5 --stage-bytes 1M --save-latents a").code(0);
    shell.tiny("--steps 2 --cache f1b0w0r0.9 --stages per-block --check-outputs a --tolerance 0").code(0);
    let few = shell.tiny("--stage-bytes 4K --stages fused").code(2);
    few.stderr("block 0 alone has").stderr("--stage-bytes allows 4096");
    shell.run(&["inspect", "x.png", "--stages", "fused"]).code(2).stderr("have no effect on a picture");
}
