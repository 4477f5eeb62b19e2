//! What it costs to serve several policies with one engine: the table of docs/performance.md.
//!
//! `cargo run --release --example plans -- auto none f8b16` loads the shipped model for the first policy, makes a picture
//! with each, and prints the peak memory and the sessions after each. One process is one row: peaks do not fall. `add`
//! before the stages leaves each policy its own (`OtherPlan::Add`).

use dbcache_trt::{Engine, EngineOptions, Inputs, OtherPlan, RequestOptions};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    let other_plan = arguments.next_if(|word| word == "add").map_or(Ok(OtherPlan::Load), |word| word.parse())?;
    let stages = arguments.next().unwrap_or_else(|| "auto".to_owned()).parse()?;
    let tags: Vec<String> = arguments.collect();
    let cache = tags.first().map_or("none", String::as_str).parse()?;
    let engine =
        Engine::load("models/emoji", &EngineOptions { stages, cache, other_plan, ..EngineOptions::default() })?;
    for tag in &tags {
        let options = RequestOptions { cache: tag.parse()?, ..RequestOptions::default() };
        engine.request(&Inputs::prompt("lemon"), &options)?.run(&mut ())?;
        println!("{stages} {tag}: {} sessions of stages, peak {}", engine.stages().len(), peak()?);
    }
    Ok(())
}

/// The largest memory that this process has held, in kB.
fn peak() -> anyhow::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    Ok(status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap_or("unknown")
        .trim_start_matches("VmHWM:")
        .trim()
        .into())
}
