//! The stages of the check, in the order of their worth, each with a time limit.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::libraries;
use super::programs::Programs;
use super::random_model::{self, Shape};
use super::report::{End, Report};

/// What the speed of a provider is measured with.
const POLICIES: [&str; 4] = ["none", "f1b0", "f8b8", "f8b16"];
/// The same for a model of a few blocks of random weights: nearly whatever changes, every second step is skipped.
const FEW_BLOCKS_POLICIES: [&str; 3] = ["none", "f1b0w2r0.9mc1", "f1b1w2r0.9mc1"];
/// The same for one of all blocks.
const WHOLE_POLICIES: [&str; 4] = ["none", "f1b0w2r0.9mc1", "f8b8w2r0.9mc1", "f8b16w2r0.9mc1"];
/// How a provider can run otherwise, behind a colon.
const WAYS: [&str; 4] = ["", "async", "graph-captures=8", "stream=own"];
/// Steps of the model of a few blocks.
const STEPS: &str = "10";
/// What its weights are made from.
const SEED: u64 = 7;

/// How long the parts may take, in seconds.
const CONFORMANCE_LIMIT: u64 = 240;
const RUN_LIMIT: u64 = 60;
/// 24 GB of weights come from the disk.
const WHOLE_RUN_LIMIT: u64 = 120;
const TORCH_LIMIT: u64 = 120;
const FIGURES_LIMIT: u64 = 300;

/// Runs all stages on one provider.
pub fn run(report: &mut Report, programs: &mut Programs, provider: &str, engine: &Path) -> Result<()> {
    let kind = provider.split(':').next().unwrap_or_default();
    let found = device(report, programs, provider)?;
    report.add(&format!("{provider}: libraries and device"), &found)?;
    if !found.has_passed() {
        // Nothing that follows could say more.
        return Ok(());
    }
    let mut conformance = programs.start(&programs.tests);
    conformance.arg("conformance::");
    // Without a name, the tests hold the CPU's graphs against its loops.
    if kind != "cpu" {
        conformance.env("DBCACHE_TEST_PROVIDER", provider);
    }
    let end = report.run("conformance", &mut conformance, CONFORMANCE_LIMIT)?;
    report.add(&format!("{provider}: the decisions of the CPU, for eight policies and all families"), &end)?;

    let is_on_gpu = matches!(kind, "cuda" | "tensorrt");
    let torch = Some(if is_on_gpu { "cuda" } else { "cpu" });
    let few =
        |shape| RandomModel { shape, ways: ways(provider), policies: &FEW_BLOCKS_POLICIES, limit: RUN_LIMIT, torch };
    if is_on_gpu {
        measure(report, programs, provider, few("wide"))?;
        // The same for PyTorch, which has no such operators.
        let other = RandomModel { ways: &WAYS[..1], torch: None, ..few("wide-opset-20") };
        measure(report, programs, provider, other)?;
    } else {
        measure(report, programs, provider, few("narrow"))?;
    }

    let name = engine.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let given = ["--prompt", "lemon", "--output"].map(PathBuf::from);
    let given = given.into_iter().chain([report.logs.join("picture.png")]).collect();
    let name = format!("steps of {name}");
    let (ways, policies, limit) = (ways(provider), &POLICIES, RUN_LIMIT);
    speed(report, programs, &Speed { name, provider, ways, engine, given, policies, limit })?;

    let mut figures = programs.start(&programs.figures);
    figures.args(["--provider", provider, "--repository"]).arg(&programs.root);
    let end = report.run("figures", &mut figures, FIGURES_LIMIT)?;
    report.add(&format!("{provider}: figures"), &end)?;

    let shape = if is_on_gpu { "whole" } else { "narrow-whole" };
    let whole = RandomModel { shape, ways: &WAYS[..1], policies: &WHOLE_POLICIES, limit: WHOLE_RUN_LIMIT, torch };
    measure(report, programs, provider, whole)
}

/// Whether the libraries load and a device is there.
fn device(report: &Report, programs: &mut Programs, provider: &str) -> Result<End> {
    let kind = provider.split(':').next().unwrap_or_default();
    let mut found = String::new();
    if programs.library.is_some() && matches!(kind, "cuda" | "tensorrt") {
        match libraries::find() {
            Ok(libraries) => {
                programs.search_path = Some(libraries.search_path());
                found = libraries.lines();
            }
            Err(error) => return Ok(End::Failed(error.to_string())),
        }
    }
    let mut doctor = programs.start(&programs.command);
    doctor.args(["providers", "--provider", provider]);
    let is_usable = |text: &str| text.lines().any(|line| line.starts_with(&format!("{kind:<12} usable")));
    Ok(match report.run("providers", &mut doctor, RUN_LIMIT)? {
        End::Passed(text) if is_usable(&text) => End::Passed(found + &text),
        End::Passed(text) | End::Failed(text) => End::Failed(found + &text),
        end => end,
    })
}

/// A model whose weights are random numbers, and how it is measured.
struct RandomModel {
    /// The name of its graphs.
    shape: &'static str,
    ways: &'static [&'static str],
    policies: &'static [&'static str],
    /// Seconds for each run.
    limit: u64,
    /// Where PyTorch runs the same model, if it does.
    torch: Option<&'static str>,
}

/// Makes the weights of a model of FLUX.1's architecture, and measures it with PyTorch beside it.
fn measure(report: &mut Report, programs: &Programs, provider: &str, model: RandomModel) -> Result<()> {
    let RandomModel { shape, ways, policies, limit, torch: device } = model;
    let graphs = programs.graphs.join(shape);
    let folder = report.logs.join(shape);
    if !graphs.is_dir() {
        let words = format!("{} is not there; `cargo xtask pack-gpu` makes it", graphs.display());
        return report.add(&format!("{provider}: steps of the model `{shape}`"), &End::LeftOut(words));
    }
    let made = Shape::read(&graphs).and_then(|shape| random_model::make(&graphs, &folder, SEED).map(|()| shape));
    let name = match made {
        Ok(shape) => format!("steps of {}", shape.words),
        Err(error) => return report.add(&format!("{provider}: making {shape}"), &End::Failed(format!("{error:#}"))),
    };
    let given = ["--steps", STEPS, "--inputs"].map(PathBuf::from);
    let given = given.into_iter().chain([folder.join("inputs.safetensors")]).collect();
    let engine = folder.join("engine");
    speed(report, programs, &Speed { name, provider, ways, engine: &engine, given, policies, limit })?;
    if let Some(device) = device {
        torch(report, programs, &folder, device)?;
    }
    // Gigabytes, which nothing else needs.
    Ok(fs::remove_dir_all(&folder)?)
}

/// The same model in PyTorch.
fn torch(report: &mut Report, programs: &Programs, folder: &Path, device: &str) -> Result<()> {
    let mut torch = programs.start(Path::new("python3"));
    torch.arg(&programs.torch_steps).arg(folder).args(["--device", device, "--steps", STEPS]);
    // PyTorch brings libraries of its own.
    match env::var_os("LD_LIBRARY_PATH") {
        Some(path) => torch.env("LD_LIBRARY_PATH", path),
        None => torch.env_remove("LD_LIBRARY_PATH"),
    };
    let end = match report.run("torch", &mut torch, TORCH_LIMIT)? {
        End::Failed(text) if text.contains("left out: ") => End::LeftOut(text),
        end => end,
    };
    report.add(&format!("{device}: the same in PyTorch"), &end)
}

/// How a provider is measured.
fn ways(provider: &str) -> &'static [&'static str] {
    if provider == "cuda" { &WAYS } else { &WAYS[..1] }
}

/// What is measured.
struct Speed<'a> {
    name: String,
    provider: &'a str,
    ways: &'a [&'a str],
    engine: &'a Path,
    /// What the command is given beside engine, provider and policy.
    given: Vec<PathBuf>,
    policies: &'a [&'a str],
    /// Seconds for each run.
    limit: u64,
}

/// One line for each way and policy, written as soon as it is known.
fn speed(report: &mut Report, programs: &Programs, asked: &Speed<'_>) -> Result<()> {
    let name = format!("{}: {}", asked.provider, asked.name);
    let (mut lines, mut has_failed) = (String::new(), false);
    for way in asked.ways {
        let spec = if way.is_empty() { asked.provider.to_owned() } else { format!("{}:{way}", asked.provider) };
        for policy in asked.policies {
            let mut run = programs.start(&programs.command);
            run.arg("--engine").arg(asked.engine).args(["--provider", &spec, "--cache", policy]).args(&asked.given);
            // The second picture is measured: the first one pays for what is prepared once.
            run.args(["--count", "2"]);
            let mut end = report.run("speed", &mut run, asked.limit)?;
            let mut note = "";
            if matches!(&end, End::Failed(text) if text.contains("allow-fallback")) {
                // Worth less, and said so, but better than no number.
                (end, note) =
                    (report.run("speed", run.arg("--allow-fallback"), asked.limit)?, "; with --allow-fallback");
            }
            has_failed |= !end.has_passed();
            lines += &format!("{spec:<22} {policy:<14} {}{note}\n", measured(&end));
            report.show(&name, &lines)?;
        }
    }
    let end = if has_failed { End::Failed(lines) } else { End::Passed(lines) };
    report.add(&name, &end)
}

/// Milliseconds a step, what the steps were, and where the time went.
fn measured(end: &End) -> String {
    let time = end.line("time ");
    let total = time.split_once("steps ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<f64>().ok());
    let decisions = end.line("cond ");
    let decisions = decisions.split_whitespace().nth(1).unwrap_or_default();
    match total {
        Some(total) if !decisions.is_empty() => {
            format!("{:.2} ms a step; {decisions}; {time}", total / decisions.len() as f64)
        }
        _ => time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_a_step_are_those_of_the_last_picture() {
        let text =
            "cond     CCCC\ntime     steps 80.0 ms = embed 1.0\ncond     CCSS\ntime     steps 40.0 ms = embed 1.0\n";
        let line = measured(&End::Passed(text.to_owned()));
        assert!(line.starts_with("10.00 ms a step; CCSS; time     steps 40.0 ms"), "{line}");
        assert_eq!(measured(&End::Failed("a\nerror: no".to_owned())), "failed: error: no");
        assert_eq!(measured(&End::Late(String::new())), "ended at its time limit");
    }
}
