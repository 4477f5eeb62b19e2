//! Every provider decides as the CPU does, and keeps its tensors where it computes.
//!
//! The environment variable `DBCACHE_TEST_PROVIDER` names the provider (`cargo xtask check-openvino` and `check-webgpu` set
//! it); without it, the CPU's graphs are held against its loops. `DBCACHE_TEST_FALLBACK` lists, by what their names
//! begin with, the graphs of which a part may run elsewhere; of the first it must.

use std::time::Instant;

use crate::common::family::Family;
use crate::common::{data, relative_l1, tiny_inputs};
use dbcache_trt::cache::Branch;
use dbcache_trt::trace::{Trace, Warning};
use dbcache_trt::{
    ArithmeticChoice, BuildCache, CacheDType, CachePlace, ComputeChoice, Engine, EngineOptions, ErrorKind, Inputs,
    Output, ProviderKind, Providers, RequestOptions, StagesChoice,
};
use ndarray::{Axis, concatenate};

/// Other kernels sum in other orders: what 3e-6 on every block does to diffs, with room for fast division.
const DIFF_RELATIVE: f32 = 2e-3;
/// The same for latents.
const LATENT_RELATIVE_L1: f64 = 1e-3;
/// The same in f16 against f32: GPUs may sum products in f16 as well.
const F16_LATENT_RELATIVE_L1: f64 = 5e-3;
/// Two sums, scales and weights of one f32 each, and a flag an item: all that may lie in host memory.
const HOST_BYTES: u64 = 1024;

fn provider() -> Option<Providers> {
    std::env::var("DBCACHE_TEST_PROVIDER").ok().map(|text| text.parse().unwrap())
}

/// The graphs of which a part runs elsewhere, by what their names begin with.
fn fallbacks() -> Vec<String> {
    let listed = std::env::var("DBCACHE_TEST_FALLBACK").unwrap_or_default();
    listed.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn load(options: EngineOptions) -> dbcache_trt::Result<Engine> {
    Engine::load(data("tiny-flux"), &options)
}

fn tested() -> Engine {
    load(on_tested(match provider() {
        Some(_) => ArithmeticChoice::Auto,
        None => ArithmeticChoice::Graphs,
    }))
    .unwrap()
}

fn on_tested(arithmetic: ArithmeticChoice) -> EngineOptions {
    let provider = provider().unwrap_or_default();
    // What is compiled is for this process: nobody's cache grows.
    let compiling = [ProviderKind::OpenVino, ProviderKind::TensorRt, ProviderKind::TensorRtRtx];
    let compiles = provider.iter().any(|spec| compiling.contains(&spec.kind()));
    let build_cache = if compiles { BuildCache::None } else { BuildCache::User };
    let allow_fallback = !fallbacks().is_empty();
    EngineOptions { provider, arithmetic, allow_fallback, build_cache, ..EngineOptions::default() }
}

fn run(engine: &Engine, inputs: &Inputs, options: &RequestOptions) -> Output {
    engine.request(inputs, options).unwrap().run(&mut ()).unwrap()
}

/// Two pictures that differ.
fn two_pictures() -> Inputs {
    let mut inputs = tiny_inputs(false);
    for tensor in inputs.tensors.values_mut() {
        *tensor = concatenate(Axis(0), &[tensor.view(), (&*tensor * 0.7_f32).view()]).unwrap();
    }
    inputs
}

fn options(cache: &str) -> RequestOptions {
    RequestOptions { cache: cache.parse().unwrap(), steps: Some(10), ..RequestOptions::default() }
}

#[test]
fn every_provider_decides_as_the_cpu() {
    let cpu = load(EngineOptions::default()).unwrap();
    let other = tested();
    let (one, guided, two) = (tiny_inputs(false), tiny_inputs(true), two_pictures());
    for (name, inputs, options) in [
        ("uncached", &one, options("none")),
        ("head and tail", &one, options("f2b2w2r0.1")),
        ("TaylorSeer", &one, options("f1b0w2r0.1_t1")),
        ("output, not residual", &one, options("f1b0w2r0.2l0.2")),
        ("pruning", &one, options("prune_f1b1w2r0.1")),
        ("two branches", &guided, RequestOptions { true_cfg: Some(2.0), ..options("f1b0w2r0.1") }),
        ("each for itself", &two, RequestOptions { per_sample: true, ..options("f1b0w2r0.1") }),
        ("kept as f16", &one, RequestOptions { cache_dtype: CacheDType::F16, ..options("f1b0w2r0.1") }),
    ] {
        let expected = run(&cpu, inputs, &options);
        let found = run(&other, inputs, &options);
        for branch in [Branch::Cond, Branch::Uncond] {
            assert_eq!(found.trace.decisions(branch), expected.trace.decisions(branch), "{name}, {branch}");
        }
        if name != "uncached" {
            assert!(expected.trace.skipped() > 0, "{name} skips nothing, and so tests nothing");
        }
        compare_diffs(name, &found.trace, &expected.trace);
        let difference = relative_l1(&found.latents, &expected.latents);
        assert!(difference < LATENT_RELATIVE_L1, "{name}: latents differ by {difference}");
        check_places(name, &found.trace);
        eprintln!("{name}: {} as on the CPU, latents {difference:.1e}", found.trace.decisions(Branch::Cond));
    }
}

/// The same for every family of models: its operators, its lists, its guidance.
#[test]
fn every_family_decides_as_the_cpu() {
    // Without a provider the CPU's graphs are held against its loops.
    let (arithmetic, allow_fallback) = match provider() {
        Some(_) => (ArithmeticChoice::Auto, true),
        None => (ArithmeticChoice::Graphs, false),
    };
    let mut differences = Vec::new();
    for family in Family::all() {
        let start = Instant::now();
        let options = EngineOptions { allow_fallback, ..on_tested(arithmetic) };
        let engine = Engine::load(family.folder(), &options).unwrap();
        let mut cases = family.cases();
        let (case, cache) = cases.remove(0);
        let (inputs, options) = (family.inputs(), family.options(cache));
        let (expected, found) = (run(&family.engine, &inputs, &options), run(&engine, &inputs, &options));
        let name = format!("{}, {}", family.name, case["name"]);
        for branch in [Branch::Cond, Branch::Uncond] {
            let [ours, theirs] = [&found, &expected].map(|output| output.trace.decisions(branch));
            if ours != theirs {
                differences.push(format!("{name}, {branch}: decided {ours}, the CPU {theirs}"));
            }
        }
        let difference = relative_l1(&found.latents, &expected.latents);
        if difference > LATENT_RELATIVE_L1 {
            differences.push(format!("{name}: latents differ by {difference:e}"));
        }
        let decisions = found.trace.decisions(Branch::Cond);
        eprintln!(
            "{name}: {decisions} as on the CPU, latents within {difference:.1e}, {:.1} s",
            start.elapsed().as_secs_f64()
        );
        for warning in &found.trace.warnings {
            eprintln!("    {warning}");
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// The cache's arithmetic may be part of the stages, on every provider: the same decisions in fewer session runs.
#[test]
fn arithmetic_in_the_stages_decides_as_the_cpu() {
    let cpu = load(EngineOptions::default()).unwrap();
    let graphs = load(on_tested(ArithmeticChoice::Graphs)).unwrap();
    let (one, guided) = (tiny_inputs(false), tiny_inputs(true));
    for (cache, stages, inputs) in [
        ("f2b2w2r0.1", StagesChoice::Fused, &one),
        ("f1b0w2r0.2l0.2", StagesChoice::Fused, &one),
        ("f3b4w2r0.1ds3", StagesChoice::Auto, &one),
        ("f1b0w2r0.1", StagesChoice::Blocks(2), &guided),
    ] {
        let options =
            RequestOptions { true_cfg: (inputs.tensors.len() > one.tensors.len()).then_some(2.0), ..options(cache) };
        let load_stages = EngineOptions { stages, cache: options.cache.clone(), ..on_tested(ArithmeticChoice::Stages) };
        let expected = run(&cpu, inputs, &options);
        let found = run(&load(load_stages).unwrap(), inputs, &options);
        assert_eq!(found.trace.decisions(Branch::Cond), expected.trace.decisions(Branch::Cond), "{cache}");
        assert!(expected.trace.skipped() > 0, "{cache} skips nothing, and so tests nothing");
        compare_diffs(cache, &found.trace, &expected.trace);
        let difference = relative_l1(&found.latents, &expected.latents);
        assert!(difference < LATENT_RELATIVE_L1, "{cache}: latents differ by {difference}");
        check_places(cache, &found.trace);
        let runs = |trace: &Trace| trace.records.iter().map(|record| record.session_runs).sum::<usize>();
        let beside = run(&graphs, inputs, &options);
        assert!(runs(&found.trace) < runs(&beside.trace), "{cache}");
        eprintln!("{cache} in the stages: {} as on the CPU", found.trace.decisions(Branch::Cond));
    }
}

/// Runs of stages are recorded once and replayed: on other numbers, by later requests, under other policies in between.
#[test]
fn captured_runs_decide_as_others() {
    let tested = provider().unwrap_or_default();
    let spec = tested.iter().next().unwrap().clone();
    let captures = |limit: &str| spec.clone().with("graph-captures", Some(limit));
    if !matches!(spec.kind(), ProviderKind::WebGpu | ProviderKind::Cuda) {
        let error = captures("32").unwrap_err();
        assert!(error.to_string().contains("`graph-captures`"), "{error}");
        return;
    }
    let engine = |limit: &str| {
        let provider = captures(limit).unwrap().into();
        let profile = Some("16,text=12".parse().unwrap());
        load(EngineOptions { provider, profile, ..on_tested(ArithmeticChoice::Auto) }).unwrap()
    };
    let cpu = load(EngineOptions::default()).unwrap();
    let all = engine("32");
    let (one, guided) = (tiny_inputs(false), tiny_inputs(true));
    let mut other = tiny_inputs(false);
    other.tensors.values_mut().for_each(|tensor| *tensor *= 0.7);
    let head_and_tail = options("f2b2w2r0.1");
    let two_branches = RequestOptions { true_cfg: Some(2.0), ..options("f1b0w2r0.1") };
    for (name, inputs, options, is_known) in [
        ("first", &one, &head_and_tail, false),
        ("again", &one, &head_and_tail, true),
        ("other numbers", &other, &head_and_tail, true),
        ("two branches", &guided, &two_branches, false),
        ("two branches again", &guided, &two_branches, true),
        // The other policy has divided the stages.
        ("the first once more", &one, &head_and_tail, false),
        ("and again", &other, &head_and_tail, true),
    ] {
        let (expected, found) = (run(&cpu, inputs, options), run(&all, inputs, options));
        for branch in [Branch::Cond, Branch::Uncond] {
            assert_eq!(found.trace.decisions(branch), expected.trace.decisions(branch), "{name}");
        }
        compare_diffs(name, &found.trace, &expected.trace);
        let difference = relative_l1(&found.latents, &expected.latents);
        assert!(difference < LATENT_RELATIVE_L1, "{name}: latents differ by {difference}");
        let counts = found.trace.captures.unwrap();
        assert!(
            counts.replayed > counts.recorded && (counts.recorded == 0) == is_known,
            "{name}: {counts}; {:?}",
            found.trace.warnings
        );
        eprintln!("{name}: {} as on the CPU; runs {counts}", found.trace.decisions(Branch::Cond));
    }
    // With the arithmetic in the stages, a step is replays and two sums that are read.
    let load_stages = EngineOptions {
        provider: captures("32").unwrap().into(),
        profile: Some("16,text=12".parse().unwrap()),
        stages: StagesChoice::Blocks(2),
        cache: head_and_tail.cache.clone(),
        ..on_tested(ArithmeticChoice::Stages)
    };
    let in_stages = load(load_stages).unwrap();
    for (name, inputs, is_known) in [("in the stages", &one, false), ("in the stages again", &other, true)] {
        let (expected, found) = (run(&cpu, inputs, &head_and_tail), run(&in_stages, inputs, &head_and_tail));
        assert_eq!(found.trace.decisions(Branch::Cond), expected.trace.decisions(Branch::Cond), "{name}");
        assert!(relative_l1(&found.latents, &expected.latents) < LATENT_RELATIVE_L1, "{name}");
        let counts = found.trace.captures.unwrap();
        assert!((counts.recorded == 0) == is_known, "{name}: {counts}");
        let told: Vec<String> = found.trace.warnings.iter().map(ToString::to_string).collect();
        assert!(!told.iter().any(|warning| warning.contains("takes from the host")), "{name}: {told:?}");
        eprintln!("{name}: runs {counts}, {} bytes read", found.trace.read_bytes);
    }
    let told = |trace: &Trace, words: &str| trace.warnings.iter().any(|warning| warning.to_string().contains(words));
    let (few, alone) = (engine("1"), run(&all, &one, &head_and_tail));
    assert!(!told(&alone.trace, "allow more `graph-captures`"), "{:?}", alone.trace.warnings);
    // Two requests at once have tensors of their own; one of them finds no room.
    let both: Vec<Output> = std::thread::scope(|scope| {
        let requests = [(); 2].map(|()| few.request(&one, &head_and_tail).unwrap());
        let threads = requests.map(|request| scope.spawn(|| request.run(&mut ()).unwrap()));
        threads.map(|thread| thread.join().unwrap()).into()
    });
    assert!(both.iter().any(|output| told(&output.trace, "allow more `graph-captures`")));
    assert!(both.iter().any(|output| output.trace.captures.unwrap().replayed > 0));
    for output in &both {
        assert_eq!(output.trace.decisions(Branch::Cond), alone.trace.decisions(Branch::Cond));
        assert!(relative_l1(&output.latents, &alone.latents) < LATENT_RELATIVE_L1);
    }
    // Graphs are fixed to the shapes of the profile.
    let error = all.request(&one, &RequestOptions { size: Some((8, 8)), ..options("none") }).err().unwrap();
    assert_eq!((error.kind(), error.field()), (ErrorKind::Input, Some("profile")), "{error}");
}

/// In f16, chosen at load, the decisions of f32: on the provider itself, between tensors that stay f32.
#[test]
fn f16_decides_as_f32_on_the_cpu() {
    let load_f16 = EngineOptions { compute: ComputeChoice::Fp16, ..on_tested(ArithmeticChoice::Auto) };
    if provider().is_some_and(|list| list.iter().any(|spec| spec.kind() == ProviderKind::OpenVino)) {
        let error = load(load_f16).err().unwrap();
        assert!(error.to_string().contains("ask for it by the option `provider=openvino:precision=fp16`"), "{error}");
        return;
    }
    let (f32, f16) = (load(EngineOptions::default()).unwrap(), load(load_f16).unwrap());
    for cache in ["none", "f2b2w2r0.1", "prune_f1b1w2r0.1"] {
        let (expected, found) =
            (run(&f32, &tiny_inputs(false), &options(cache)), run(&f16, &tiny_inputs(false), &options(cache)));
        assert_eq!(found.trace.decisions(Branch::Cond), expected.trace.decisions(Branch::Cond), "{cache}");
        assert!(cache == "none" || expected.trace.skipped() > 0, "{cache} skips nothing, and so tests nothing");
        let difference = relative_l1(&found.latents, &expected.latents);
        assert!(difference > 1e-6 && difference < F16_LATENT_RELATIVE_L1, "{cache}: latents differ by {difference}");
        check_places(cache, &found.trace);
        eprintln!("{cache} in f16: {} as in f32, latents {difference:.1e}", found.trace.decisions(Branch::Cond));
    }
}

fn compare_diffs(name: &str, found: &Trace, expected: &Trace) {
    for (found, expected) in found.records.iter().zip(&expected.records) {
        for (found, expected) in found.diffs().zip(expected.diffs()) {
            assert!(
                (found - expected).abs() <= DIFF_RELATIVE * expected,
                "{name}: diff {found}, on the CPU {expected}"
            );
        }
    }
}

/// Tensors stay where the provider computes, over a whole generation.
fn check_places(name: &str, trace: &Trace) {
    let host = trace.memory.get("Cpu").copied().unwrap_or_default();
    let elsewhere: u64 = trace.memory.values().sum::<u64>() - host;
    let kind = provider().map_or(ProviderKind::Cpu, |provider| provider.iter().next().unwrap().kind());
    if kind == ProviderKind::Cpu {
        assert_eq!((elsewhere, trace.read_bytes), (0, 0), "{name}");
        return;
    }
    assert!(host <= HOST_BYTES && elsewhere > 20 * HOST_BYTES, "{name}: {:?}", trace.memory);
    assert_eq!(trace.read_bytes, 0, "{name}: tensors were read while the steps ran");
    let told = |warning: &Warning| match warning {
        Warning::Provider(text) => Some(text.clone()),
        _ => None,
    };
    let told: Vec<String> = trace.warnings.iter().filter_map(told).collect();
    let is_listed = |text: &String| fallbacks().iter().any(|graph| text.contains(&format!(": {graph}")));
    assert!(told.iter().all(is_listed), "{name}: {told:?}");
    let is_first = |text: &String| fallbacks().first().is_some_and(|graph| text.contains(&format!(": {graph}")));
    assert!(fallbacks().is_empty() || told.iter().any(is_first), "{name}: {told:?}");
}

/// What the cache keeps may lie in host memory where the provider has memory of its own; elsewhere that is an error.
#[test]
fn the_cache_can_lie_on_the_host() {
    let engine = tested();
    let asked = RequestOptions { cache_place: CachePlace::Host, ..options("f1b0w2r0.1_t1") };
    let has_own = provider().is_some_and(|provider| provider.iter().any(|spec| spec.kind() == ProviderKind::WebGpu));
    if !has_own {
        let error = engine.request(&tiny_inputs(false), &asked).err().unwrap();
        assert_eq!((error.kind(), error.field()), (ErrorKind::Usage, Some("cache-place")), "{error}");
        return;
    }
    let on_device = run(&engine, &tiny_inputs(false), &options("f1b0w2r0.1_t1"));
    let on_host = run(&engine, &tiny_inputs(false), &asked);
    assert_eq!(on_host.trace.decisions(Branch::Cond), on_device.trace.decisions(Branch::Cond));
    assert!(relative_l1(&on_host.latents, &on_device.latents) < LATENT_RELATIVE_L1);
    let kept = on_host.trace.cache_bytes.calibrators + on_host.trace.cache_bytes.compare;
    assert_eq!(on_host.trace.memory["Cpu"], on_device.trace.memory["Cpu"] + kept);
    let error =
        engine.request(&tiny_inputs(false), &RequestOptions { cache_place: CachePlace::Host, ..options("none") });
    assert_eq!(error.err().unwrap().kind(), ErrorKind::Usage);
}

/// Without leave, a graph that would partly run elsewhere is an error that names it, and what of it. Providers that run
/// every graph as a whole have nothing to show here: `every_provider_decides_as_the_cpu` has seen no warning of theirs.
#[test]
#[ignore = "needs a provider that leaves a part of a graph to the CPU: cargo xtask check-webgpu"]
fn no_fallback_is_silent() {
    let (provider, graph) = (provider().unwrap(), fallbacks()[0].clone());
    let error = load(EngineOptions { provider, ..EngineOptions::default() }).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Provider, "{error}");
    let text = error.to_string();
    for words in [graph.as_str(), "nodes on CPUExecutionProvider (", "pass the option `allow-fallback`"] {
        assert!(text.contains(words), "`{words}` is missing: {text}");
    }
}

/// What a device holds is checked there; only a tensor that is not finite is looked at.
#[test]
fn numbers_that_are_none_are_found_on_the_device() {
    let engine = tested();
    let mut inputs = tiny_inputs(false);
    // The first product overflows f32.
    inputs.tensors.get_mut("latents").unwrap().mapv_inplace(|x| x.signum() * 3e38);
    let error = engine.request(&inputs, &options("none")).unwrap().run(&mut ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Numeric, "{error}");
}
