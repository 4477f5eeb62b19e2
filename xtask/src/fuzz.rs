//! Hostile input, made from a seed (`fuzz/`).

use std::env::consts::EXE_SUFFIX;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::run::{build_command, built, cargo, root, step, target_folder};

/// The targets of `fuzz/src/targets.rs`.
const TARGETS: &[&str] = &["manifest", "graph", "tokenizer", "tag", "policy", "trace", "inputs", "png"];
/// All targets together, where nothing else is asked for.
const SECONDS: u64 = 60;

pub fn fuzz(arguments: &[String]) -> Result<()> {
    let (mut targets, mut seconds, mut seed, mut is_debug) = (Vec::new(), SECONDS, None, false);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let value = arguments.next().with_context(|| format!("{argument} takes a number"))?;
            value.parse::<u64>().with_context(|| format!("{argument} {value:?} is no number"))
        };
        match argument.as_str() {
            "--seconds" => seconds = number()?,
            "--seed" => seed = Some(number()?),
            // What the tests have built already: fewer cases, with overflow checks as well.
            "--debug" => is_debug = true,
            name if TARGETS.contains(&name) => targets.push(name),
            name => bail!("there is no target `{name}`; there are {}", TARGETS.join(", ")),
        }
    }
    if targets.is_empty() {
        targets = TARGETS.to_vec();
    }
    // Each run tries other inputs, unless it is to repeat one.
    let seed = seed.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()));
    let program = build(is_debug)?;
    let running = target_folder()?.join("fuzz-running");
    let mut failed = Vec::new();
    for target in &targets {
        let share = (seconds / targets.len() as u64).max(1).to_string();
        let seed = seed.to_string();
        let mut run = Command::new(&program);
        if step(run.args([*target, &share, &seed]).arg(&running).current_dir(root())).is_err() {
            failed.push(*target);
            // A crash or a hang ends the program before it can keep the input.
            if running.is_file() {
                let kept = root().join("fuzz/corpus").join(target).join(format!("crash-{seed}"));
                fs::create_dir_all(kept.with_file_name(""))?;
                fs::rename(&running, &kept)?;
                eprintln!("{target}: it crashed or hung with {}", kept.display());
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("inputs of {} failed", failed.join(", ")) }
}

/// The program that runs the targets.
fn build(is_debug: bool) -> Result<PathBuf> {
    if is_debug {
        build_command()?;
        return built("dbcache-fuzz");
    }
    step(&mut cargo(&["build", "--release", "-p", "dbcache-fuzz"]))?;
    Ok(target_folder()?.join("release").join(format!("dbcache-fuzz{EXE_SUFFIX}")))
}
