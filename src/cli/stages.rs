//! `dbcache-trt stages`: the graphs of a plan as ONNX files.

use dbcache_trt::options::read_policy;
use dbcache_trt::{EngineOptions, StageFile, write_stages};
use serde_json::json;

use super::args::WriteStagesArgs;
use super::print::line;

pub fn run(args: &WriteStagesArgs) -> anyhow::Result<()> {
    let load = EngineOptions {
        cache: read_policy(&args.cache)?,
        stages: args.stages.stages.unwrap_or_default(),
        stage_bytes: args.stages.stage_bytes,
        compute: args.compute.unwrap_or_default(),
        weights_folder: args.weights.clone(),
        provider: args.provider.clone().unwrap_or_default(),
        ..EngineOptions::default()
    };
    let profile = args.profile.clone().unwrap_or_default();
    let files = write_stages(&args.engine, &load, &profile, &args.output)?;
    if args.json {
        let graphs: Vec<_> = files.iter().map(StageFile::to_json).collect();
        return line(serde_json::to_string_pretty(&json!({ "version": 1, "graphs": graphs }))?);
    }
    for file in &files {
        let weights = file.weight_bytes as f64 / 1e6;
        line(format_args!("{:<22} {:>7.0} kB over {weights:.1} MB of weights", file.file, file.bytes as f64 / 1e3))?;
    }
    line(format_args!("{} graphs, their weights and stages.json in {}", files.len(), args.output.display()))
}
