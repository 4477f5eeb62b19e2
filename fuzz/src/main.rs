//! `dbcache-fuzz TARGET --seconds N --seed S --running FILE`: what `cargo xtask fuzz` starts once per target.
#![allow(missing_docs, reason = "a program has no public items")]

use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, bail};
use dbcache_fuzz::judge::{Counting, judge};
use dbcache_fuzz::{Bench, TARGETS, corpus, corpus_folder, write_anew};

#[global_allocator]
static COUNTING: Counting = Counting;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [name, seconds, seed, running] = &arguments[..] else { bail!("start it with `cargo xtask fuzz`") };
    let target = TARGETS.iter().find(|target| target.name == name).with_context(|| {
        format!("no target {name:?}; there are {}", TARGETS.iter().map(|t| t.name).collect::<Vec<_>>().join(", "))
    })?;
    let (seconds, seed): (u64, u64) = (seconds.parse()?, seed.parse()?);
    // The panics of a case are what is looked for, and are told with it.
    std::panic::set_hook(Box::new(|_| {}));
    let bench = Bench::new()?;
    let mut seeds = (target.seeds)()?;
    let known = corpus(name)?;
    for (file, input) in &known {
        judge(target, &bench, input).map_err(|problem| anyhow::anyhow!("corpus/{name}/{file} {problem}"))?;
    }
    seeds.extend(known.into_iter().map(|(_, input)| input));
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut case, mut failures, mut longest, mut largest) = (0, 0, Duration::ZERO, 0);
    while Instant::now() < end {
        let input = target.case(seed, case, &seeds);
        // Kept for the case that this process does not live on.
        write_anew(Path::new(running), &input)?;
        match judge(target, &bench, &input) {
            Ok(cost) => (longest, largest) = (longest.max(cost.time), largest.max(cost.bytes)),
            Err(problem) => {
                failures += 1;
                let path = corpus_folder(name).join(format!("seed-{seed}-case-{case}"));
                fs::create_dir_all(corpus_folder(name))?;
                fs::write(&path, &input)?;
                eprintln!("{name}: case {case} of seed {seed} {problem}: {}", path.display());
            }
        }
        case += 1;
    }
    fs::remove_file(Path::new(running))?;
    println!("{name}: {case} cases of seed {seed}, at most {:.2} s and {} MB", longest.as_secs_f64(), largest >> 20);
    if failures > 0 {
        bail!("{failures} inputs failed; they lie in fuzz/corpus/{name}, where the tests replay them");
    }
    Ok(())
}
