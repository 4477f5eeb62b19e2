//! The library in one page: load an engine, make a picture, see what the cache did.
//!
//! `cargo run --release --example generate -- models/emoji lemon f8b16 lemon.png`

use std::ops::ControlFlow;
use std::path::Path;

use dbcache_trt::trace::StepRecord;
use dbcache_trt::{Engine, EngineOptions, Inputs, RequestOptions};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, prompt, cache, file] = arguments.as_slice() else {
        anyhow::bail!("usage: generate ENGINE PROMPT CACHE OUT.png");
    };
    let engine = Engine::load(directory, &EngineOptions::default())?;
    let options = RequestOptions { cache: cache.parse()?, ..RequestOptions::default() };
    let request = engine.request(&Inputs::prompt(prompt), &options)?;
    let mut observer = |record: &StepRecord| {
        println!("step {:2} {:?} because {}", record.step, record.decision.action, record.decision.reason.as_str());
        ControlFlow::Continue(())
    };
    let output = request.run(&mut observer)?;
    println!("{}", output.trace.summary());
    if let Some(image) = output.images.first() {
        image.write_png(Path::new(file), &[("prompt".to_owned(), prompt.clone())])?;
    }
    Ok(())
}
