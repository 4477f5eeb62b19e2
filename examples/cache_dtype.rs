//! What `--cache-dtype` saves and costs on the model that ships: the table of docs/performance.md.
//!
//! `cargo run --example cache_dtype`

use dbcache_trt::cache::Branch;
use dbcache_trt::{CacheDType, Engine, EngineOptions, Inputs, Output, RequestOptions};

const PROMPTS: [&str; 3] = ["lemon", "panda face", "tulip"];
const TAGS: [&str; 4] = ["f8b8", "f8b8r0.2_t1", "f8b8r0.2_dmd6", "prune_f1b0r0.2"];

fn run(engine: &Engine, prompt: &str, tag: &str, cache_dtype: CacheDType) -> anyhow::Result<Output> {
    let options = RequestOptions { cache: tag.parse()?, cache_dtype, ..RequestOptions::default() };
    Ok(engine.request(&Inputs::prompt(prompt), &options)?.run(&mut ())?)
}

fn main() -> anyhow::Result<()> {
    let engine = Engine::load("models/emoji", &EngineOptions::default())?;
    println!(
        "| `--cache` | `--cache-dtype` | cache, kB | steps skipped | decisions changed | latents, relative L1 | PSNR, dB |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for tag in TAGS {
        let mut wide = Vec::new();
        for dtype in [CacheDType::Stream, CacheDType::F16, CacheDType::Bf16] {
            let (mut bytes, mut skipped, mut changed) = (0, Vec::new(), 0);
            let (mut errors, mut quality) = (Vec::new(), Vec::new());
            for (index, prompt) in PROMPTS.iter().enumerate() {
                let uncached = run(&engine, prompt, "none", CacheDType::Stream)?;
                let output = run(&engine, prompt, tag, dtype)?;
                let (trace, cache) = (&output.trace, output.trace.cache_bytes);
                bytes = cache.residuals + cache.calibrators + cache.compare;
                skipped.push(trace.skipped().to_string());
                quality.push(format!("{:.2}", output.images[0].psnr(&uncached.images[0])?));
                if dtype == CacheDType::Stream {
                    wide.push(output);
                    continue;
                }
                let wide: &Output = &wide[index];
                for branch in [Branch::Cond, Branch::Uncond] {
                    let pairs = trace.branch(branch).zip(wide.trace.branch(branch));
                    changed += pairs
                        .filter(|(a, b)| a.decision != b.decision || a.skipped_blocks().ne(b.skipped_blocks()))
                        .count();
                }
                let change: f32 = output.latents.iter().zip(&wide.latents).map(|(a, b)| (a - b).abs()).sum();
                errors.push(format!("{:.1e}", change / wide.latents.iter().map(|b| b.abs()).sum::<f32>()));
            }
            println!(
                "| `{tag}` | `{dtype}` | {:.0} | {} | {changed} | {} | {} |",
                bytes as f64 / 1e3,
                skipped.join(", "),
                errors.join(", "),
                quality.join(", ")
            );
        }
    }
    Ok(())
}
