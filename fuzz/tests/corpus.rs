//! Replays the corpora, and some cases of each target: no panic, no hang, no flood of memory.

use dbcache_fuzz::judge::{Counting, judge};
use dbcache_fuzz::{Bench, TARGETS, corpus};

#[global_allocator]
static COUNTING: Counting = Counting;

/// Cases of each target beside its corpus. `cargo xtask fuzz` tries thousands.
const CASES: u64 = 20;

/// One test for all, as the memory is counted for the process.
#[test]
fn corpora_and_a_few_cases_of_each_target() {
    let bench = Bench::new().unwrap();
    let mut failures = Vec::new();
    for target in TARGETS {
        let seeds = (target.seeds)().unwrap();
        let known = corpus(target.name).unwrap();
        let cases = (0..CASES).map(|case| (format!("case {case}"), target.case(0, case, &seeds)));
        let good = seeds.iter().enumerate().map(|(i, seed)| (format!("good input {i}"), seed.clone()));
        for (name, input) in known.into_iter().chain(good).chain(cases) {
            if let Err(problem) = judge(target, &bench, &input) {
                failures.push(format!("{} {name}: {problem}", target.name));
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn a_case_is_always_the_same() {
    for target in TARGETS {
        let seeds = (target.seeds)().unwrap();
        let cases = |seed: u64| (0..5).map(|case| target.case(seed, case, &seeds)).collect::<Vec<_>>();
        assert_eq!(cases(3), cases(3));
        assert_ne!(cases(3), cases(4), "{}", target.name);
    }
}
