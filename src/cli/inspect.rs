//! `dbcache-trt inspect`: an engine directory, or the metadata of a picture.

use dbcache_trt::cache::PolicyConfig;
use dbcache_trt::options::read_policy;
use dbcache_trt::trace::CacheBytes;
use dbcache_trt::{EngineOptions, Error, ErrorKind, Image, Model, RequestOptions, StageInfo};
use serde_json::{Value, json};

use super::args::InspectArgs;
use super::print::line;

pub fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let is_picture = args.path.is_file() || args.path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png"));
    if is_picture { picture(args) } else { engine(args) }
}

fn engine(args: &InspectArgs) -> anyhow::Result<()> {
    let cache = args.cache.as_deref().map(read_policy).transpose()?;
    let load = EngineOptions {
        weights_folder: args.weights.clone(),
        stages: args.stages.stages.unwrap_or_default(),
        stage_bytes: args.stages.stage_bytes,
        compute: args.compute.unwrap_or_default(),
        cache: cache.clone().unwrap_or_default(),
        ..EngineOptions::default()
    };
    let model = Model::open(&args.path, &load)?;
    let (info, words) = (model.info(), model.words()?);
    let unknown = if args.verify { Some(model.verify()?) } else { None };
    let verdict = unknown.map(|unknown| match unknown.as_slice() {
        [] => "all weights have the content that was exported".to_owned(),
        names => format!("the manifest has no content hash of {}: NOT verified", names.join(", ")),
    });
    let memory = cache.map(|cache| memory(args, &model, cache)).transpose()?;
    let is_planned = memory.is_some() || args.stages.stages.is_some() || args.stages.stage_bytes.is_some();
    let stages = is_planned.then(|| model.stages()).transpose()?;
    if args.json {
        let mut json = info.to_json();
        if let Some((cache, bytes)) = &memory {
            let mut bytes_json = bytes.to_json();
            bytes_json["total"] = json!(bytes.total());
            json["cache"] = json!({ "cache": cache.to_string(), "bytes": bytes_json });
        }
        if let Some(stages) = &stages {
            json["stages"] = stages.iter().map(StageInfo::to_json).collect();
        }
        json["words"] = words.map_or(Value::Null, |words| json!(words));
        json["verify"] = json!(verdict);
        return line(serde_json::to_string_pretty(&json)?);
    }
    line(info)?;
    if let Some(words) = words {
        line(format_args!("words       {}", words.join(" ")))?;
    }
    if let Some((cache, bytes)) = memory {
        line(format_args!("cache       {cache} keeps at most {bytes}"))?;
    }
    if let Some(stages) = stages {
        let sessions = if stages.len() == 1 { "session" } else { "sessions" };
        line(format_args!("stages      {} {sessions}", stages.len()))?;
        stages.iter().try_for_each(|stage| line(format_args!("            {stage}")))?;
    }
    if let Some(verdict) = verdict {
        line(format_args!("verify      {verdict}"))?;
    }
    Ok(())
}

/// What a policy would keep in the run that is described.
fn memory(args: &InspectArgs, model: &Model, cache: PolicyConfig) -> anyhow::Result<(PolicyConfig, CacheBytes)> {
    let run = &args.memory;
    let options = RequestOptions {
        cache,
        steps: run.steps,
        guidance: run.guidance,
        true_cfg: run.true_cfg,
        size: run.size,
        frames: run.frames,
        batch: run.batch,
        cache_dtype: run.cache_dtype.unwrap_or_default(),
        ..RequestOptions::default()
    };
    let bytes = model.cache_bytes(&options, run.text_length)?;
    Ok((options.cache, bytes))
}

fn picture(args: &InspectArgs) -> anyhow::Result<()> {
    let of_engine = [args.weights.is_some(), args.cache.is_some(), args.stages.stages.is_some()];
    if args.verify || of_engine.contains(&true) || args.stages.stage_bytes.is_some() || args.compute.is_some() {
        let message = "--verify, --weights, --cache, --compute, --stages and --stage-bytes have no effect on a picture; they \
                       are for engine directories";
        anyhow::bail!(Error::with_kind(ErrorKind::Usage, message));
    }
    let ([width, height], text) = Image::read_png_text(&args.path)?;
    if args.json {
        let text: serde_json::Map<String, Value> = text.into_iter().map(|(key, text)| (key, json!(text))).collect();
        return line(serde_json::to_string_pretty(
            &json!({"version": 1, "width": width, "height": height, "metadata": text}),
        )?);
    }
    line(format_args!("{}: {width}x{height} pixels", args.path.display()))?;
    if text.is_empty() {
        return line("no metadata: this picture was not made by dbcache-trt, or was saved again without it");
    }
    text.iter().try_for_each(|(key, text)| line(format_args!("{key:<16} {text}")))
}
