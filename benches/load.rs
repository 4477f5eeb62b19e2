//! Time from an engine directory to an engine that is ready: `cargo bench --bench load`.

use std::path::PathBuf;

use criterion::{Criterion, criterion_group, criterion_main};
use dbcache_trt::{Engine, EngineOptions, Model, WeightsChoice};

fn load(criterion: &mut Criterion) {
    let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/emoji");
    let mut group = criterion.benchmark_group("load/cpu");
    group.sample_size(10);
    group.bench_function("check only", |bencher| {
        bencher.iter(|| Model::open(&model, &EngineOptions::default()).expect("a directory"));
    });
    for (name, weights) in [("packed", WeightsChoice::Packed), ("mapped", WeightsChoice::Mapped)] {
        let options = EngineOptions { weights, ..EngineOptions::default() };
        group.bench_function(name, |bencher| bencher.iter(|| Engine::load(&model, &options).expect("an engine")));
    }
    group.finish();
}

criterion_group!(benches, load);
criterion_main!(benches);
