//! Measures every figure of README.md and docs/performance.md on this machine, and draws the README's picture grid.
//!
//! `cargo build --release && cargo run --release --example figures` prints the tables; with `-- --write` it puts them
//! into both pages (between the marks) and the grid into docs/grid.png. `-- --provider cuda` measures another provider, and
//! only prints. `-- --repository DIR` says where the repository lies, if it is not where this program was built.
//!
//! All runs that are compared take turns, so a slow moment of the machine hits each of them. A figure is the median,
//! with the smallest and the largest value; a ratio is the median of the ratios within each round.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use dbcache_trt::{Engine, EngineOptions, Image, Inputs, OtherPlan, Output, Providers, RequestOptions, StagesChoice};
use ndarray::ArrayD;
use serde_json::Value;

const PROMPTS: [&str; 8] =
    ["lemon", "panda face", "tulip", "strawberry", "fox face", "birthday cake", "turtle", "palm tree"];
/// The first one is what the others are compared with.
const TAGS: [&str; 7] = ["none", "f1b0", "f8b8", "f8b16", "f8b8r0.2", "f1b0r0.2", "f1b0r0.4w4mc4"];
/// What the first release of cache-dit measured on FLUX.1-dev at a share of saved work, and a policy that saves about as
/// much here: `(what, tag, its speed-up)`.
const SEED: [(&str, &str, f64); 13] = [
    ("DBCache F1 B0, 11 of 28 steps skipped", "f1b0r1m11", 1.59),
    ("DBCache F1 B0, 19 of 28 steps skipped", "f1b0r1m19", 2.90),
    ("DBCache F8 B8, 15 of 28 steps skipped", "f8b8r1m15", 1.61),
    ("DBPrune, 24 % of blocks pruned", "prune_f8b8w0r0.048", 1.28),
    ("DBPrune, 35 % of blocks pruned", "prune_f8b8w0r0.062", 1.48),
    ("DBPrune, 38 % of blocks pruned", "prune_f8b8w0r0.07", 1.56),
    ("DBPrune, 45 % of blocks pruned", "prune_f8b8w0r0.093", 1.75),
    ("DBPrune, 60 % of blocks pruned", "prune_f8b8w0r0.22", 2.33),
    ("the same, every block but the first decides", "prune_f1b0w0r0.04", 1.28),
    ("", "prune_f1b0w0r0.048", 1.48),
    ("", "prune_f1b0w0r0.05", 1.56),
    ("", "prune_f1b0w0r0.06", 1.75),
    ("", "prune_f1b0w0r0.09", 2.33),
];
/// Rows of the grid.
const SHOWN: [usize; 4] = [0, 1, 2, 3];
const ROUNDS: usize = 15;
const PROCESS_ROUNDS: usize = 5;
const MARKS: (&str, &str) = ("<!-- figures: begin -->", "<!-- figures: end -->");
const SCALE: u32 = 2;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let write = arguments.iter().any(|argument| argument == "--write");
    let value = |option: &str| {
        let named = arguments.iter().position(|argument| argument == option).map(|at| arguments.get(at + 1));
        named.map(|value| value.with_context(|| format!("{option} lacks its value")).cloned()).transpose()
    };
    let provider = value("--provider")?;
    ensure!(!write || provider.is_none(), "the pages hold the figures of the CPU; leave out --write or --provider");
    let provider = provider.as_deref().unwrap_or("cpu");
    let providers: Providers = provider.parse()?;
    let root = value("--repository")?.map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    let model = root.join("models/emoji");
    // Each policy in the longest stages, whatever was run before.
    let other_plan = OtherPlan::Add;
    let load = |stages| {
        let provider = providers.clone();
        Engine::load(&model, &EngineOptions { stages, provider, other_plan, ..EngineOptions::default() })
    };
    let (engine, per_block, fused) =
        (load(StagesChoice::Auto)?, load(StagesChoice::PerBlock)?, load(StagesChoice::Fused)?);
    let machine = machine(&engine, provider)?;
    let outputs = pictures(&engine)?;
    let caches = cache_table(&engine, &outputs)?;
    let mut others = seed_table(&engine)?;
    others += &overhead(&engine, &per_block, &fused)?;
    others += &processes(&model, provider)?;
    print!("{machine}{caches}\n{others}");
    if write {
        grid(&outputs)?.write_png(&root.join("docs/grid.png"), &[])?;
        for (page, tables) in [("README.md", caches), ("docs/performance.md", others)] {
            put(&root.join(page), &format!("{machine}{}\n", tables.trim_end()))?;
        }
    }
    Ok(())
}

/// Puts a text between the marks of a page.
fn put(page: &Path, text: &str) -> anyhow::Result<()> {
    let content = std::fs::read_to_string(page)?;
    let lacks = |which| format!("{} lacks the {which} mark", page.display());
    let (before, rest) = content.split_once(MARKS.0).with_context(|| lacks("first"))?;
    let (_, after) = rest.split_once(MARKS.1).with_context(|| lacks("second"))?;
    std::fs::write(page, format!("{before}{}\n{text}{}{after}", MARKS.0, MARKS.1))?;
    Ok(())
}

fn machine(engine: &Engine, provider: &str) -> anyhow::Result<String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown CPU").to_owned();
    let library = engine.library();
    let date = String::from_utf8(Command::new("date").arg("+%Y-%m-%d").output()?.stdout)?;
    Ok(format!(
        "Measured on {}: {cpu}, threads {}, ONNX Runtime {}, provider {provider}, dbcache-trt {},\n`models/emoji` (57 blocks, \
         width 96), 28 steps, prompt `{}`, seed 0. Median (minimum to maximum) of {ROUNDS} rounds in which all\nsettings \
         took turns; PSNR against the uncached picture, median (minimum) of {} prompts.\n\n",
        date.trim(),
        library.threads,
        library.version,
        env!("CARGO_PKG_VERSION"),
        PROMPTS[0],
        PROMPTS.len(),
    ))
}

fn run(engine: &Engine, tag: &str, prompt: &str) -> anyhow::Result<Output> {
    let options = RequestOptions { cache: tag.parse()?, ..RequestOptions::default() };
    Ok(engine.request(&Inputs::prompt(prompt), &options)?.run(&mut ())?)
}

/// One picture for each tag and prompt.
fn pictures(engine: &Engine) -> anyhow::Result<Vec<Vec<Output>>> {
    TAGS.iter().map(|tag| PROMPTS.iter().map(|prompt| run(engine, tag, prompt)).collect()).collect()
}

fn cache_table(engine: &Engine, outputs: &[Vec<Output>]) -> anyhow::Result<String> {
    let mut times = vec![Vec::new(); TAGS.len()];
    for _ in 0..ROUNDS {
        for (tag, times) in TAGS.iter().zip(&mut times) {
            times.push(run(engine, tag, PROMPTS[0])?.trace.timings.steps_ms);
        }
    }
    let mut text = String::from(
        "| `--cache` | steps skipped | blocks saved | promised | measured | kept of the promise | 28 steps, ms | PSNR, dB |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for (index, tag) in TAGS.iter().enumerate() {
        let trace = &outputs[index][0].trace;
        let all = trace.blocks_uncached();
        let promised = all as f64 / trace.blocks_run() as f64;
        let ratios: Vec<f64> = times[0].iter().zip(&times[index]).map(|(uncached, cached)| uncached / cached).collect();
        let measured = Spread::of(&ratios).median;
        let quality: Vec<f64> = outputs[index]
            .iter()
            .zip(&outputs[0])
            .map(|(cached, uncached)| Ok(cached.images[0].psnr(&uncached.images[0])?))
            .collect::<anyhow::Result<_>>()?;
        let quality = Spread::of(&quality);
        let quality = if index == 0 { "—".into() } else { format!("{:.1} ({:.1})", quality.median, quality.min) };
        writeln!(
            text,
            "| `{tag}` | {} of {} | {:.1} % | {promised:.2}x | {measured:.2}x | {:.0} % | {} | {quality} |",
            trace.skipped(),
            trace.records.len(),
            100.0 * (all - trace.blocks_run()) as f64 / all as f64,
            100.0 * measured / promised,
            Spread::of(&times[index]),
        )?;
    }
    text.push('\n');
    Ok(text)
}

/// Our speed-ups beside those of the first release, at about the same share of saved blocks.
fn seed_table(engine: &Engine) -> anyhow::Result<String> {
    let mut ratios = vec![Vec::new(); SEED.len()];
    let mut saved = vec![0.0; SEED.len()];
    for _ in 0..ROUNDS {
        let uncached = run(engine, "none", PROMPTS[0])?.trace.timings.steps_ms;
        for (index, (_, tag, _)) in SEED.iter().enumerate() {
            let trace = run(engine, tag, PROMPTS[0])?.trace;
            ratios[index].push(uncached / trace.timings.steps_ms);
            saved[index] = 1.0 - trace.blocks_run() as f64 / trace.blocks_uncached() as f64;
        }
    }
    let mut text = String::from(
        "| saved work | `--cache` | blocks saved here | promised | measured here | cache-dit 0.1.0, FLUX.1-dev |\n\
         | --- | --- | --- | --- | --- | --- |\n",
    );
    for (index, (what, tag, theirs)) in SEED.iter().enumerate() {
        let ratio = Spread { digits: 2, ..Spread::of(&ratios[index]) };
        let promised = 1.0 / (1.0 - saved[index]);
        writeln!(
            text,
            "| {what} | `{tag}` | {:.1} % | {promised:.2}x | {ratio}x | {theirs:.2}x |",
            100.0 * saved[index]
        )?;
    }
    text.push('\n');
    Ok(text)
}

/// What orchestration costs: the chain of stages against all blocks as one ONNX graph, and the price of a decision.
fn overhead(engine: &Engine, per_block: &Engine, fused: &Engine) -> anyhow::Result<String> {
    let (mut times, mut ratios, mut cache) = ([vec![], vec![], vec![]], [vec![], vec![]], Vec::new());
    let mut differences = Vec::new();
    for _ in 0..ROUNDS {
        let [auto, chain, one] = [engine, per_block, fused].map(|engine| run(engine, "none", PROMPTS[0]));
        let (auto, chain, one) = (auto?, chain?, one?);
        for other in [&auto, &chain] {
            differences.push(relative_l1(&other.latents, &one.latents));
        }
        let taken = [auto, chain, one].map(|output| output.trace.timings.steps_ms);
        times.iter_mut().zip(taken).for_each(|(times, taken)| times.push(taken));
        ratios.iter_mut().zip(taken).for_each(|(ratios, chain)| ratios.push(chain / taken[2]));
        let cached = run(engine, "f8b8", PROMPTS[0])?.trace;
        cache.push(cached.timings.cache_ms / cached.records.len() as f64);
    }
    let [auto, chain, one] = times.map(|times| Spread::of(&times));
    let [auto_ratio, chain_ratio] = ratios.map(|ratios| Spread { digits: 3, ..Spread::of(&ratios) });
    Ok(format!(
        "| what | value |\n| --- | --- |\n\
         | 28 uncached steps, default stages | {auto} ms |\n\
         | the same, one block a session | {chain} ms |\n\
         | the same, all 57 blocks as one ONNX graph | {one} ms |\n\
         | largest relative L1 difference of the latents among the three | {:.1e} |\n\
         | default stages against one graph | {auto_ratio} |\n\
         | one block a session against one graph | {chain_ratio} |\n\
         | residual, diff and decision of a step (`f8b8`) | {} ms |\n",
        differences.iter().copied().fold(0.0, f64::max),
        Spread { digits: 3, ..Spread::of(&cache) },
    ))
}

fn relative_l1(found: &ArrayD<f32>, expected: &ArrayD<f32>) -> f64 {
    let sum = |numbers: ArrayD<f32>| numbers.iter().map(|number| f64::from(number.abs())).sum::<f64>();
    sum(found - expected) / sum(expected.clone())
}

/// Peak memory and start-up of whole processes.
fn processes(model: &Path, provider: &str) -> anyhow::Result<String> {
    let command = std::env::current_exe()?;
    let command = command.ancestors().nth(2).context("no build folder")?.join("dbcache-trt");
    ensure!(command.is_file(), "{} is missing; run `cargo build --release` first", command.display());
    let folder = tempfile::tempdir()?;
    let settings: [(&str, &[&str]); 4] = [
        ("one block a session", &["--stages", "per-block"]),
        ("one graph", &["--stages", "fused"]),
        ("default stages", &[]),
        ("default stages, weights mapped", &["--weights-mode", "mapped"]),
    ];
    let mut measured = vec![(Vec::new(), Vec::new()); settings.len()];
    for _ in 0..PROCESS_ROUNDS {
        for ((_, arguments), (peak, load)) in settings.iter().zip(&mut measured) {
            let output = Command::new(&command)
                .args(["--json", "--provider", provider, "--prompt", PROMPTS[0], "--engine"])
                .arg(model)
                .args(*arguments)
                .arg("-o")
                .arg(folder.path().join("a.png"))
                .output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let report: Value = serde_json::from_slice(&output.stdout)?;
            peak.push(report["peak_rss_bytes"].as_f64().context("no peak memory on this system")? / 1e6);
            load.push(report["load_ms"].as_f64().context("no load time")?);
        }
    }
    let mut text = String::new();
    for ((name, _), (peak, load)) in settings.iter().zip(&measured) {
        writeln!(text, "| start-up, {name} | {} ms |", Spread { digits: 0, ..Spread::of(load) })?;
        writeln!(text, "| peak memory of the process, {name} | {} MB |", Spread::of(peak))?;
    }
    let ratio = Spread::of(&measured[2].0).median / Spread::of(&measured[1].0).median;
    writeln!(text, "| peak memory, default stages against one graph | {ratio:.2} |")?;
    Ok(text)
}

/// One row for each shown tag, one column for each prompt.
fn grid(outputs: &[Vec<Output>]) -> anyhow::Result<Image> {
    let first = &outputs[0][0].images[0];
    let (width, height) = (first.width * SCALE, first.height * SCALE);
    let mut rgb = Vec::new();
    for tag in SHOWN {
        for y in 0..height {
            for output in &outputs[tag] {
                let row = (y / SCALE * first.width * 3) as usize;
                for x in 0..width {
                    let at = row + (x / SCALE * 3) as usize;
                    rgb.extend_from_slice(&output.images[0].rgb[at..at + 3]);
                }
            }
        }
    }
    Ok(Image { width: width * PROMPTS.len() as u32, height: height * SHOWN.len() as u32, rgb })
}

/// Median with minimum and maximum.
struct Spread {
    median: f64,
    min: f64,
    max: f64,
    digits: usize,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self { median: sorted[sorted.len() / 2], min: sorted[0], max: sorted[sorted.len() - 1], digits: 1 }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, min, max, digits } = self;
        write!(f, "{median:.digits$} ({min:.digits$} to {max:.digits$})")
    }
}
