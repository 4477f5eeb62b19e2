//! Time of whole runs and of single steps on the model that ships: `cargo bench --bench generate`.
//!
//! A step's time is what the trace says about it, so set-up, noise and decoding are not in it.

use std::path::PathBuf;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use dbcache_trt::cache::Action;
use dbcache_trt::trace::Trace;
use dbcache_trt::{Engine, EngineOptions, Inputs, OtherPlan, RequestOptions, StagesChoice};

fn model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/emoji")
}

fn run(engine: &Engine, cache: &str) -> Trace {
    let options = RequestOptions { cache: cache.parse().expect("a tag"), ..RequestOptions::default() };
    let request = engine.request(&Inputs::prompt("lemon"), &options).expect("a request");
    request.run(&mut ()).expect("a picture").trace
}

/// Mean time of the steps with this action.
fn step_time(trace: &Trace, action: Action) -> Duration {
    let times: Vec<f64> = trace
        .records
        .iter()
        .filter(|record| record.decision.action == action)
        .map(|record| record.elapsed_ms)
        .collect();
    Duration::from_secs_f64(times.iter().sum::<f64>() / times.len() as f64 / 1e3)
}

fn runs(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("run/cpu");
    group.sample_size(10);
    for (name, stages) in [("per-block", StagesChoice::PerBlock), ("fused", StagesChoice::Fused)] {
        let engine =
            Engine::load(model(), &EngineOptions { stages, other_plan: OtherPlan::Add, ..EngineOptions::default() })
                .expect("an engine");
        group.bench_function(format!("uncached/{name}"), |bencher| {
            bencher.iter_custom(|n| {
                (0..n).map(|_| Duration::from_secs_f64(run(&engine, "none").timings.steps_ms / 1e3)).sum()
            });
        });
    }
    group.finish();
}

fn steps(criterion: &mut Criterion) {
    let engine = Engine::load(model(), &EngineOptions { other_plan: OtherPlan::Add, ..EngineOptions::default() })
        .expect("an engine");
    let mut group = criterion.benchmark_group("step/cpu");
    group.sample_size(10);
    for (tag, action) in [
        ("none", Action::Compute),
        ("f8b8", Action::Compute),
        ("f8b16", Action::Skip),
        ("f8b8", Action::Skip),
        ("f1b0", Action::Skip),
    ] {
        let name = if action == Action::Compute { "computed" } else { "skipped" };
        group.bench_function(format!("{name}/{tag}"), |bencher| {
            bencher.iter_custom(|n| (0..n).map(|_| step_time(&run(&engine, tag), action)).sum());
        });
    }
    group.finish();
}

criterion_group!(benches, runs, steps);
criterion_main!(benches);
