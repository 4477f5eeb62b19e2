//! Time of one decision: `cargo bench --bench decide`.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use dbcache_trt::cache::{Branch, DecisionPoint, Gate, PolicyConfig, RunShape};

const STEPS: usize = 1000;

fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide");
    for tag in ["f8b8", "f1b0w4i2m500mc3a90"] {
        let config: PolicyConfig = tag.parse().expect("a tag");
        let run = RunShape { n_blocks: 57, steps: STEPS, branches: 1 };
        group.throughput(criterion::Throughput::Elements(STEPS as u64));
        group.bench_function(tag, |bencher| {
            bencher.iter_batched(
                || config.policies(run).expect("a policy").remove(0).1,
                |mut policy| {
                    for step in 0..STEPS {
                        let at = DecisionPoint { step, steps: STEPS, branch: Branch::Cond, block: None };
                        if policy.gate(at) == Gate::NeedsDiff {
                            black_box(policy.judge(at, 0.05 * (step % 5) as f32));
                        }
                    }
                },
                criterion::BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, decide);
criterion_main!(benches);
