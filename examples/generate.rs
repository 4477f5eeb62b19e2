//! The library in one page: load an engine, make a picture, see what the cache did. `generate.c` and `generate.cpp` are
//! the same program.
//!
//! `cargo run --release --example generate -- models/emoji lemon f8b16 lemon.png`

use std::ops::ControlFlow;
use std::path::Path;

use dbcache_trt::trace::StepRecord;
use dbcache_trt::{Engine, EngineOptions, Inputs, RequestOptions};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (directory, prompt, cache, file, trace) = match arguments.as_slice() {
        [directory, prompt, cache, file] => (directory, prompt, cache, file, None),
        [directory, prompt, cache, file, trace] => (directory, prompt, cache, file, Some(trace)),
        _ => anyhow::bail!("usage: generate ENGINE PROMPT CACHE OUT.png [TRACE.json]"),
    };
    let engine = Engine::load(directory, &EngineOptions::default())?;
    let options = RequestOptions { cache: cache.parse()?, ..RequestOptions::default() };
    let inputs = Inputs::prompt(prompt);
    let request = engine.request(&inputs, &options)?;
    let mut observer = |record: &StepRecord| {
        println!("step {:2} {:?} because {}", record.step, record.decision.action, record.decision.reason.as_str());
        ControlFlow::Continue(())
    };
    let output = request.run(&mut observer)?;
    println!("{}", output.trace.summary());
    if let Some(image) = output.images.first() {
        image.write_png(Path::new(file), &output.trace.picture_metadata(&inputs, 0))?;
    }
    if let Some(trace) = trace {
        std::fs::write(trace, serde_json::to_string_pretty(&output.trace.to_json())?)?;
    }
    Ok(())
}
