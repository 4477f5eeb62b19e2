//! What a second process buys: a double and two single blocks as wide as FLUX.1-dev's, in f32, at 512 x 512 pixels, with random
//! weights. Each process computes on one thread.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::check_export::environment;
use crate::check_gpu::random_model::make;
use crate::check_mpi::{REMEDY, STARTERS, version};
use crate::run::{cargo, root, set_up, step, target_folder};

/// Computes the first step, and then each second one: decided by no diff, so that all runs do the same.
const CACHED: &str = "f1b0w1r1mc1";
const SEED: u64 = 7;

pub fn measure_mpi(arguments: &[String]) -> Result<()> {
    let steps = match arguments {
        [] => "7",
        [name, steps] if name == "--steps" => steps,
        _ => bail!("expected --steps N"),
    };
    let (starter, options) = *STARTERS.iter().find(|(starter, _)| version(starter).is_some()).context(REMEDY)?;
    step(&mut cargo(&["build", "--release", "--bin", "dbcache-trt"]))?;
    let command = target_folder()?.join("release/dbcache-trt");
    set_up(Command::new(&command).current_dir(root()))?;
    let folder = target_folder()?.join("measure-mpi");
    model(&folder, &command)?;
    println!("\n{}, {steps} steps", version(starter).unwrap_or_default());
    println!(
        "\n| processes | cache | s a step computed | s a step skipped | all steps, s | of one process | MB given a computed step | ms of giving and waiting |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut of_one = Vec::new();
    for method in [None, Some("ulysses"), Some("gather")] {
        for (index, cache) in ["none", CACHED].into_iter().enumerate() {
            let mut run = match method {
                None => Command::new(&command),
                Some(method) => {
                    let mut run = Command::new(starter);
                    run.args(options).args(["-n", "2"]).arg(&command).args(["--context-parallel", method]);
                    run
                }
            };
            run.args(["--engine", "engine", "--inputs", "inputs.safetensors", "--threads", "1", "--quiet"]);
            run.args(["--steps", steps, "--cache", cache, "--trace", "trace.json"]).current_dir(&folder);
            step(&mut run)?;
            let timed = Timed::read(&folder.join("trace.json"))?;
            if method.is_none() {
                of_one.push(timed.all);
            }
            let share = of_one.get(index).map_or(0.0, |one| one / timed.all);
            let processes = method.map_or("1".to_owned(), |method| format!("2, {method}"));
            println!(
                "| {processes} | `{cache}` | {:.2} | {} | {:.1} | {share:.2} times as fast | {:.1} | {:.0} |",
                timed.computed,
                timed.skipped.map_or("-".to_owned(), |seconds| format!("{seconds:.2}")),
                timed.all,
                timed.bytes / 1e6,
                timed.ms,
            );
        }
    }
    Ok(())
}

/// Makes the engine directory, once.
fn model(folder: &Path, command: &Path) -> Result<()> {
    if folder.join("inputs.safetensors").exists() {
        return Ok(());
    }
    let graphs: PathBuf = folder.with_extension("graphs");
    if graphs.exists() {
        fs::remove_dir_all(&graphs)?;
    }
    let mut export = Command::new(environment(&["dev"])?);
    export.current_dir(root().join("export")).env("DBCACHE_TRT", command);
    step(export.args(["published/few_blocks.py", "ranks"]).arg(&graphs))?;
    make(&graphs, folder, SEED)
}

/// Of one run: means over its steps but for the first, in which memory is still new.
struct Timed {
    computed: f64,
    skipped: Option<f64>,
    /// Seconds of all steps.
    all: f64,
    /// Given to others in a computed step.
    bytes: f64,
    ms: f64,
}

impl Timed {
    fn read(trace: &Path) -> Result<Self> {
        let traces: Value = serde_json::from_slice(&fs::read(trace)?)?;
        let records = traces[0]["records"].as_array().context("a trace without records")?;
        let mean = |letter: &str, of: &dyn Fn(&Value) -> Option<f64>| {
            let numbers: Vec<f64> =
                records.iter().skip(1).filter(|record| record["action"] == letter).filter_map(of).collect();
            (!numbers.is_empty()).then(|| numbers.iter().sum::<f64>() / numbers.len() as f64)
        };
        let seconds = |record: &Value| record["elapsed_ms"].as_f64().map(|ms| ms / 1e3);
        let given = |name: &'static str| move |record: &Value| record["exchanged"][name].as_f64();
        let all = traces[0]["timings"]["steps_ms"].as_f64().context("a trace without timings")? / 1e3;
        let computed = mean("C", &seconds).context("no step was computed")?;
        ensure!(all > 0.0, "steps that took no time");
        let (bytes, ms) = (mean("C", &given("bytes")), mean("C", &given("ms")));
        let skipped = mean("S", &seconds);
        Ok(Self { computed, skipped, all, bytes: bytes.unwrap_or_default(), ms: ms.unwrap_or_default() })
    }
}
