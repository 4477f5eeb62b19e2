//! What the C library adds to a generation: the same requests through Rust and through C, each in a process of its own,
//! in turns. The difference is not measurable by one run: compare the medians with their spread.

#[path = "../tests/common/capi.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod capi;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use capi::{Capi, With, runtime};
use dbcache_trt::trace::StepRecord;
use dbcache_trt::{Engine, EngineOptions, Inputs, RequestOptions};

const ROUNDS: usize = 10;
const RUNS: usize = 5;
const CACHE: &str = "f8b8";

fn engine() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji")
}

fn main() -> anyhow::Result<()> {
    if std::env::args().any(|argument| argument == "--rust") {
        return through_rust();
    }
    let built = Capi::build();
    let program = built.compile("benches/capi.c", With::Nothing);
    let library = runtime();
    let (mut rust, mut c) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let this = std::env::current_exe()?;
        rust.extend(times(Command::new(this).arg("--rust").env("ORT_DYLIB_PATH", &library))?);
        let run = |program: &Path| {
            let mut command = Command::new(program);
            command.arg(engine()).args([CACHE, &RUNS.to_string()]).env("ORT_DYLIB_PATH", &library);
            command
        };
        c.extend(times(&mut run(&program))?);
    }
    let ([rust_low, rust, rust_high], [c_low, c, c_high]) = (quartiles(&mut rust), quartiles(&mut c));
    println!("{} runs each, emoji {CACHE}, quartiles", ROUNDS * RUNS);
    println!("rust  {rust:.2} ms ({rust_low:.2} to {rust_high:.2})");
    println!("c     {c:.2} ms ({c_low:.2} to {c_high:.2})");
    println!("c / rust  {:.4}", c / rust);
    Ok(())
}

fn times(command: &mut Command) -> anyhow::Result<Vec<f64>> {
    let output = command.output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout)?;
    let times = lines.lines().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    anyhow::ensure!(times.len() == RUNS, "{} times instead of {RUNS}", times.len());
    Ok(times)
}

/// Low quartile, median, high quartile.
fn quartiles(times: &mut [f64]) -> [f64; 3] {
    times.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| times[times.len() * quarter / 4])
}

fn through_rust() -> anyhow::Result<()> {
    let engine = Engine::load(engine(), &EngineOptions { cache: CACHE.parse()?, ..EngineOptions::default() })?;
    for run in 0..=RUNS {
        let (start, mut blocks) = (Instant::now(), 0);
        let options = RequestOptions { cache: CACHE.parse()?, ..RequestOptions::default() };
        let mut observer = |record: &StepRecord| {
            blocks += record.blocks_run;
            ControlFlow::Continue(())
        };
        drop(engine.request(&Inputs::prompt("lemon"), &options)?.run(&mut observer)?);
        // The first one warms up.
        if run > 0 && blocks > 0 {
            println!("{:.6}", start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(())
}
