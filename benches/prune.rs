//! What DBPrune costs on the model that ships: `cargo bench --bench prune`.
//!
//! `decision` is the time of one decision on real tensors: the diff, and what is kept or put in the place of the block.
//! `step` is the time of the steps of a run. It is printed beside its bound: a step that prunes p % of the blocks should
//! cost at most (1 - p) of a full step, and 5 % of one. Both come from the trace, so set-up, noise and decoding are not in
//! it.

use std::path::PathBuf;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use dbcache_trt::trace::Trace;
use dbcache_trt::{Engine, EngineOptions, Inputs, OtherPlan, RequestOptions};

/// Beyond the share of the blocks that run, of a full step.
const ALLOWANCE: f64 = 0.05;
/// Runs behind a printed figure.
const RUNS: usize = 5;
/// They prune about 24, 38 and 60 % of the blocks: with the first and last eight fixed, and with all but the first free.
const TAGS: [&str; 6] = [
    "prune_f8b8w0r0.048",
    "prune_f8b8w0r0.07",
    "prune_f8b8w0r0.22",
    "prune_f1b0w0r0.04",
    "prune_f1b0w0r0.05",
    "prune_f1b0w0r0.09",
];

fn run(engine: &Engine, cache: &str) -> Trace {
    let options = RequestOptions { cache: cache.parse().expect("a tag"), ..RequestOptions::default() };
    let request = engine.request(&Inputs::prompt("lemon"), &options).expect("a request");
    request.run(&mut ()).expect("a picture").trace
}

fn decision(trace: &Trace) -> Duration {
    let decisions: usize = trace.records.iter().map(|record| record.blocks.len()).sum();
    Duration::from_secs_f64(trace.timings.cache_ms / decisions as f64 / 1e3)
}

fn step_ms(trace: &Trace) -> f64 {
    trace.records.iter().map(|record| record.elapsed_ms).sum::<f64>() / trace.records.len() as f64
}

/// The smallest of some runs: what other programs take only ever adds to it.
fn least(engine: &Engine, tag: &str) -> (f64, Trace) {
    let runs = (0..RUNS).map(|_| run(engine, tag)).map(|trace| (step_ms(&trace), trace));
    runs.min_by(|a, b| a.0.total_cmp(&b.0)).expect("a run")
}

fn prune(criterion: &mut Criterion) {
    let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/emoji");
    let engine = Engine::load(model, &EngineOptions { other_plan: OtherPlan::Add, ..EngineOptions::default() })
        .expect("an engine");
    let (full, _) = least(&engine, "none");
    for tag in TAGS {
        let (step, trace) = least(&engine, tag);
        let pruned = 1.0 - trace.blocks_run() as f64 / trace.blocks_uncached() as f64;
        let bound = (1.0 - pruned + ALLOWANCE) * full;
        println!("{tag}: {:.1} % pruned, {step:.2} ms a step; bound {bound:.2} ms of {full:.2} ms", 100.0 * pruned);
    }
    let mut group = criterion.benchmark_group("prune/cpu");
    group.sample_size(10);
    for tag in TAGS {
        group.bench_function(format!("decision/{tag}"), |bencher| {
            bencher.iter_custom(|n| (0..n).map(|_| decision(&run(&engine, tag))).sum());
        });
        group.bench_function(format!("step/{tag}"), |bencher| {
            bencher.iter_custom(|n| (0..n).map(|_| Duration::from_secs_f64(step_ms(&run(&engine, tag)) / 1e3)).sum());
        });
    }
    group.finish();
}

criterion_group!(benches, prune);
criterion_main!(benches);
