//! One generation over several ranks gives what one process gives, and decides the same.

use std::path::Path;

use crate::common::family::Family;
use crate::common::ranks::on_ranks;
use crate::common::{data, relative_l1, tiny_inputs};
use dbcache_trt::cache::{Branch, PolicyConfig};
use dbcache_trt::trace::{Exchanged, Ranks, StepRecord, Trace};
use dbcache_trt::{
    ArithmeticChoice, CacheDType, ComputeChoice, ContextParallel, Engine, EngineOptions, ErrorKind, Inputs, Method,
    Output, RequestOptions, Result, StagesChoice,
};
use ndarray::{ArrayD, Axis, Slice, concatenate};

/// Sums in another order.
const LATENT_RELATIVE_L1: f64 = 1e-5;

/// A request, by a name for messages.
struct Case {
    name: String,
    inputs: Inputs,
    options: RequestOptions,
}

fn decisions(output: &Output) -> [Vec<String>; 2] {
    [Branch::Cond, Branch::Uncond].map(|branch| output.trace.decisions_each(branch))
}

fn run(engine: &Engine, case: &Case) -> Result<Output> {
    engine.request(&case.inputs, &case.options)?.run(&mut ())
}

/// Runs requests on one engine in one process, and over ranks; gives what differs.
fn compare(folder: &Path, options: &EngineOptions, cases: &[Case], ranks: usize, method: Method) -> Vec<String> {
    let at = format!("{}, {method}={ranks}", folder.display());
    let alone = Engine::load(folder, options).unwrap();
    let alone: Vec<Output> = cases.iter().map(|case| run(&alone, case).unwrap()).collect();
    let each = on_ranks(ranks, method, |parallel| -> Result<Vec<Output>> {
        let engine = Engine::load(folder, &EngineOptions { context_parallel: Some(parallel), ..options.clone() })?;
        cases.iter().map(|case| run(&engine, case)).collect()
    });
    let mut wrong = Vec::new();
    for (rank, outputs) in each.into_iter().enumerate() {
        let outputs = match outputs {
            Ok(outputs) => outputs,
            Err(error) => {
                wrong.push(format!("{at}, rank {rank}: {error}"));
                continue;
            }
        };
        for ((case, ours), alone) in cases.iter().zip(&outputs).zip(&alone) {
            let error = relative_l1(&ours.latents, &alone.latents);
            println!("{at}, rank {rank}, {}: {error:.1e}", case.name);
            if error > LATENT_RELATIVE_L1 || decisions(ours) != decisions(alone) {
                wrong.push(format!("{at}, rank {rank}, {}: {error:e}, {:?}", case.name, decisions(ours)));
            }
        }
    }
    wrong
}

fn none_wrong(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Tokens that no number of ranks divides, texts that all ranks hold whole, masks, one and two transformers.
#[test]
fn every_family() {
    let mut wrong = Vec::new();
    for (index, family) in Family::all().into_iter().enumerate() {
        let of_case =
            |name: &str, cache| Case { name: name.to_owned(), inputs: family.inputs(), options: family.options(cache) };
        let mut cases = vec![of_case("uncached", PolicyConfig::None)];
        cases.extend(family.cases().into_iter().map(|(case, cache)| of_case(case["name"].as_str().unwrap(), cache)));
        // Where head and tail overlap in a list, the policy is refused.
        cases.retain(|case| family.engine.request(&case.inputs, &case.options).is_ok());
        let options = EngineOptions::default();
        for (ranks, method) in [(2 + index % 2, Method::Gather), (3 - index % 2, Method::Ulysses)] {
            wrong.extend(compare(&family.folder(), &options, &cases, ranks, method));
        }
    }
    none_wrong(&wrong);
}

fn tiny(name: &str, cache: &str) -> Case {
    let is_guided = name == "guided";
    let options = RequestOptions {
        cache: cache.parse().unwrap(),
        steps: Some(8),
        true_cfg: is_guided.then_some(2.0),
        ..RequestOptions::default()
    };
    Case { name: format!("{name} {cache}"), inputs: tiny_inputs(is_guided), options }
}

/// Three pictures with texts of three strengths.
fn batch(cache: &str, per_sample: bool) -> Case {
    let mut case = tiny("batch", cache);
    let grown = |tensor: &ArrayD<f32>| {
        concatenate(Axis(0), &[tensor.view(), (tensor * 3.0).view(), (tensor * 0.2).view()]).unwrap()
    };
    case.inputs.tensors.values_mut().for_each(|tensor| *tensor = grown(tensor));
    case.options.per_sample = per_sample;
    case
}

#[test]
fn every_kind_of_policy() {
    let short = |tokens: usize| {
        let mut case = tiny("short", "f1b1w1");
        let cut = |tensor: &ArrayD<f32>| tensor.slice_axis(Axis(1), Slice::from(..tokens)).into_owned();
        case.inputs.tensors.entry("prompt_embeds".into()).and_modify(|tensor| *tensor = cut(tensor));
        case
    };
    let in_bf16 = |mut case: Case| {
        case.options.cache_dtype = CacheDType::Bf16;
        case
    };
    let cases = || {
        vec![
            tiny("plain", "none"),
            tiny("plain", "fb"),
            tiny("plain", "f2b2w2r0.2"),
            tiny("plain", "f1b1w2r0.3_t1"),
            tiny("plain", "prune_f1b0w2r0.3"),
            tiny(
                "plain",
                r#"{"cache_type": "dbcache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "separate_block_lists": true}"#,
            ),
            tiny("guided", "f1b1w2r0.3"),
            in_bf16(tiny("bf16", "f1b1w2r0.3")),
            batch("none", false),
            batch("f1b1w2r0.3", true),
            // Fewer tokens of text than ranks, and one more.
            short(1),
            short(5),
        ]
    };
    let folder = data("tiny-flux");
    let graphs = EngineOptions { arithmetic: ArithmeticChoice::Graphs, ..EngineOptions::default() };
    let engine = Engine::load(&folder, &EngineOptions::default()).unwrap();
    let skipping = cases().iter().filter(|case| run(&engine, case).unwrap().trace.skipped() > 0).count();
    assert!(skipping >= 6, "{skipping}");
    let mut wrong = compare(&folder, &EngineOptions::default(), &cases(), 4, Method::Ulysses);
    wrong.extend(compare(&folder, &EngineOptions::default(), &cases(), 3, Method::Gather));
    wrong.extend(compare(&folder, &graphs, &cases(), 2, Method::Ulysses));
    none_wrong(&wrong);
}

#[test]
fn every_division_into_stages() {
    let cases = [tiny("plain", "none"), tiny("plain", "f2b2w2r0.2")];
    let mut wrong = Vec::new();
    for (stages, arithmetic, compute) in [
        (StagesChoice::PerBlock, ArithmeticChoice::Auto, ComputeChoice::Exported),
        (StagesChoice::Fused, ArithmeticChoice::Auto, ComputeChoice::Exported),
        (StagesChoice::Auto, ArithmeticChoice::Stages, ComputeChoice::Exported),
    ] {
        let cache =
            if arithmetic == ArithmeticChoice::Stages { "f2b2w2r0.2".parse().unwrap() } else { PolicyConfig::None };
        let options = EngineOptions { stages, arithmetic, compute, cache, ..EngineOptions::default() };
        let cases = if arithmetic == ArithmeticChoice::Stages { &cases[1..] } else { &cases };
        wrong.extend(compare(&data("tiny-flux"), &options, cases, 2, Method::Ulysses));
    }
    none_wrong(&wrong);
}

fn load(parallel: ContextParallel) -> Result<Engine> {
    let options = EngineOptions { context_parallel: Some(parallel), ..EngineOptions::default() };
    Engine::load(data("tiny-flux"), &options)
}

/// Each record says what was exchanged; a skipped step exchanges only what head, tail and the final graph need.
#[test]
fn traces_say_what_was_exchanged() {
    let case = tiny("plain", "f1b1w2r0.3");
    let traces = on_ranks(2, Method::Gather, |parallel| run(&load(parallel).unwrap(), &case).unwrap().trace);
    for trace in &traces {
        assert_eq!(trace.context_parallel, Some(Ranks { method: Method::Gather, ranks: 2 }));
        let bytes = |letter: char| {
            let of_letter = trace.records.iter().filter(move |record: &&StepRecord| record.letter() == letter);
            let bytes: Vec<u64> = of_letter.map(|record| record.exchanged.unwrap().bytes).collect();
            assert!(!bytes.is_empty());
            bytes[bytes.len() - 1]
        };
        assert!(0 < bytes('S') && 3 * bytes('S') < bytes('C'), "{} {}", bytes('S'), bytes('C'));
        assert!(trace.records.iter().all(|record| record.exchanged.unwrap().ms > 0.0));
        let again = Trace::from_json(&trace.to_json()).unwrap();
        assert_eq!((&again.records, again.context_parallel), (&trace.records, trace.context_parallel));
        assert!(trace.summary().to_string().contains("\nranks    2 by gather: "));
    }
    let alone = run(&Engine::load(data("tiny-flux"), &EngineOptions::default()).unwrap(), &case).unwrap().trace;
    assert!(alone.context_parallel.is_none() && alone.records.iter().all(|record| record.exchanged.is_none()));
    assert!(!alone.summary().to_string().contains("ranks"));
    assert_eq!(Exchanged::default().bytes, 0);
}

/// What the ranks are asked for must be the same; each says which one differs.
#[test]
fn ranks_that_differ_are_refused() {
    let refused = |result: Result<Output>, words: &str| {
        let error = result.map(drop).unwrap_err();
        assert!(error.kind() == ErrorKind::Usage && error.to_string().contains(words), "{error}");
    };
    on_ranks(3, Method::Gather, |parallel| {
        let rank = parallel.group.rank();
        let folder = if rank == 2 { data("families/dit/engine") } else { data("tiny-flux") };
        let options = EngineOptions { context_parallel: Some(parallel), ..EngineOptions::default() };
        let error = Engine::load(folder, &options).map(drop).unwrap_err();
        assert!(error.to_string().contains("the engine directory of rank 2 differs"), "{error}");
    });
    on_ranks(3, Method::Gather, |parallel| {
        let rank = parallel.group.rank();
        let engine = load(parallel).unwrap();
        let mut case = tiny("plain", "none");
        case.options.seed = u64::from(rank == 1);
        refused(run(&engine, &case), "the request of rank 1 differs");
        let mut case = tiny("plain", "none");
        case.inputs.tensors.values_mut().filter(|_| rank == 1).for_each(|tensor| *tensor *= 2.0);
        refused(run(&engine, &case), "the input of rank 1 differs");
    });
}

/// What cannot be divided is refused before anything runs, by name.
#[test]
fn what_cannot_be_divided_is_refused() {
    on_ranks(2, Method::Ulysses, |parallel| {
        let of_all = r#"{"cache_type": "dbcache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "important_condition_threshold": 0.5}"#;
        let error = run(&load(parallel.clone()).unwrap(), &tiny("plain", of_all)).map(drop).unwrap_err();
        assert!(error.to_string().contains("important_condition_threshold"), "{error}");
        let options = EngineOptions {
            context_parallel: Some(parallel),
            provider: "openvino".parse().unwrap(),
            ..EngineOptions::default()
        };
        let error = Engine::load(data("tiny-flux"), &options).map(drop).unwrap_err();
        assert!(error.to_string().contains("takes the provider `cpu` so far, not `openvino`"), "{error}");
    });
}
