//! Pictures from a prompt or from tensors.

use std::path::{Path, PathBuf};

use dbcache_trt::trace::Trace;
use dbcache_trt::{
    CancelToken, Engine, EngineInfo, EngineOptions, Error, ErrorKind, Image, Inputs, Model, Output, RequestOptions,
    VideoFormat, read_tensors, write_tensors,
};
use ndarray::ArrayD;
use serde_json::{Value, json};

use super::args::GenerateArgs;
use super::output::{Expected, join, picture_path};
use super::print::{line, note};
use super::progress::StepBar;
use super::ranks;
use super::remedy::with_build_command;
use super::signals::cancel_token;

pub fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let Some(directory) = &args.engine else { anyhow::bail!(usage("no engine; name one with --engine")) };
    let asked = args.request()?;
    // Before signals are caught: where another process never comes, this waits.
    let context_parallel = args.context_parallel.map(ranks::join).transpose()?;
    let cancel = cancel_token()?;
    match &context_parallel {
        Some(parallel) => {
            ranks::end_when_told(&cancel);
            parallel.agree("number of pictures (--count, --batch)", &(args.count, args.batch))?;
        }
        None => ranks::note_alone(),
    }
    let inputs = inputs(args)?;
    check_options(args, &inputs)?;
    let is_helper = ranks::is_helper();
    let compared = args.check_outputs.as_deref().filter(|_| !is_helper);
    if !is_helper {
        check_targets(args)?;
    }
    let expected = compared.map(|path| Expected::read(path, args.tolerance)).transpose()?;
    let load = EngineOptions {
        cancel: cancel.clone(),
        cache_dtype: asked.cache_dtype,
        context_parallel,
        ..args.load.options(&asked.cache)
    };
    let options_of = |first: usize, batch: usize| RequestOptions {
        batch: inputs.tensors.is_empty().then_some(batch),
        // The last batch may be one picture, which decides for itself anyway.
        per_sample: asked.per_sample && (first == 0 || batch > 1),
        decode_slices: asked.decode_slices && (first == 0 || batch > 1),
        seed: asked.seed.wrapping_add(first as u64),
        cancel: cancel.clone(),
        ..asked.clone()
    };
    // All that can be known before: a large model takes minutes to load.
    let model = Model::open(directory, &load)?;
    if !is_helper {
        check_outputs(args, &model.info(), &cancel)?;
    }
    model.check(&inputs, &options_of(0, args.batch))?;
    let engine = model.load().map_err(|error| with_build_command(error, directory, &load))?;

    let mut kept = KeptOutputs::default();
    // A reader of the report that goes away must not hide that outputs differ.
    let mut reported = Ok(());
    let mut first = 0;
    while first < args.count {
        let batch = args.batch.min(args.count - first);
        let options = options_of(first, batch);
        let request = engine.request(&inputs, &options);
        let request = request.map_err(|error| with_build_command(error, directory, &load))?;
        first += batch;
        if is_helper {
            request.run(&mut ())?;
            continue;
        }
        let mut progress = StepBar::new(request.records(), args.quiet || args.json);
        let output = request.run(&mut progress);
        progress.clear();
        let done = write_pictures(args, &inputs, output?, &cancel)?;
        reported = reported.and_then(|()| report_one(args, &done));
        kept.keep(args, done);
    }
    if is_helper {
        return Ok(());
    }

    let latents = join(&kept.latents)?;
    if let (Some(path), Some(latents)) = (&args.save_latents, &latents) {
        write_tensors(path, &[("latents".to_owned(), latents.clone())].into())?;
    }
    if let Some(path) = &args.trace {
        dbcache_trt::write_json(path, &kept.traces())?;
    }
    let verdict = expected.zip(latents).map(|(expected, latents)| expected.check(&latents)).transpose();
    let reported = reported.and_then(|()| report_all(args, &engine, &kept));
    let verdict = verdict?;
    reported?;
    match verdict {
        Some(verdict) if !args.quiet && !args.json => line(format_args!("check    {verdict}")),
        _ => Ok(()),
    }
}

/// What is left of one request.
struct Done {
    files: Vec<PathBuf>,
    latents: ArrayD<f32>,
    trace: Trace,
}

/// What somebody asked for of all requests. Of thousands of pictures, the rest would fill the memory.
#[derive(Default)]
struct KeptOutputs {
    files: Vec<PathBuf>,
    latents: Vec<ArrayD<f32>>,
    traces: Vec<Trace>,
}

impl KeptOutputs {
    fn keep(&mut self, args: &GenerateArgs, done: Done) {
        if args.save_latents.is_some() || args.check_outputs.is_some() {
            self.latents.push(done.latents);
        }
        if args.json || args.trace.is_some() {
            self.traces.push(done.trace);
        }
        if args.json {
            self.files.extend(done.files);
        }
    }

    fn traces(&self) -> Value {
        self.traces.iter().map(Trace::to_json).collect()
    }
}

fn write_pictures(args: &GenerateArgs, inputs: &Inputs, output: Output, cancel: &CancelToken) -> anyhow::Result<Done> {
    let Output { latents, images, videos, trace } = output;
    let mut files = Vec::new();
    for (k, image) in images.iter().enumerate() {
        let seed = trace.seed.wrapping_add(k as u64);
        let path = picture_path(output_path(args), seed, args.count > 1 || images.len() > 1);
        image.write_png(&path, &trace.picture_metadata(inputs, k))?;
        files.push(path);
    }
    for (k, video) in videos.iter().enumerate() {
        let seed = trace.seed.wrapping_add(k as u64);
        let path = picture_path(output_path(args), seed, args.count > 1 || videos.len() > 1);
        files.extend(video.write_until(&path, &trace.picture_metadata(inputs, k), cancel)?);
    }
    Ok(Done { files, latents, trace })
}

/// What a person reads of one request, when it is done.
fn report_one(args: &GenerateArgs, done: &Done) -> anyhow::Result<()> {
    if args.quiet {
        done.trace.warnings.iter().for_each(|warning| note(format_args!("warning: {warning}")));
    }
    if args.quiet || args.json {
        return Ok(());
    }
    line(done.trace.summary())?;
    done.files.iter().try_for_each(|file| line(format_args!("picture  {}", file.display())))
}

/// What is told of all requests together.
fn report_all(args: &GenerateArgs, engine: &Engine, kept: &KeptOutputs) -> anyhow::Result<()> {
    let mode = if engine.is_mapped() { "mapped" } else { "packed" };
    let library = engine.library();
    if args.json {
        return line(serde_json::to_string_pretty(&json!({
            "version": 1,
            "files": kept.files.iter().map(|file| file.to_string_lossy()).collect::<Vec<_>>(),
            "load_ms": engine.load_ms(),
            "peak_rss_bytes": peak_rss_bytes(),
            "weights_mode": mode,
            "onnxruntime": {
                "version": library.version,
                "path": library.path.to_string_lossy(),
                "threads": library.threads,
                "spin": library.spin,
            },
            "traces": kept.traces(),
        }))?);
    }
    if args.quiet {
        return Ok(());
    }
    let (load, threads) = (engine.load_ms(), library.threads);
    line(format_args!("engine   loaded in {load:.0} ms, weights {mode}, threads {threads}"))?;
    engine.info().builds.map_or(Ok(()), |builds| line(format_args!("builds   {builds}")))
}

/// The largest memory that this process has held; null where the system has no /proc.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

fn inputs(args: &GenerateArgs) -> anyhow::Result<Inputs> {
    let tensors = args.inputs.as_deref().map(read_tensors).transpose()?.unwrap_or_default();
    Ok(Inputs { prompt: args.prompt.clone(), negative_prompt: args.negative_prompt.clone(), tensors })
}

/// What the library cannot know: options that the command alone gives a meaning.
fn check_options(args: &GenerateArgs, inputs: &Inputs) -> anyhow::Result<()> {
    if let Some(tolerance) = args.tolerance
        && !(tolerance.is_finite() && tolerance >= 0.0)
    {
        anyhow::bail!(usage(&format!("--tolerance is {tolerance}; expected a number of at least 0")));
    }
    if let (Some(path), true) = (&args.inputs, inputs.tensors.is_empty()) {
        anyhow::bail!(usage(&format!("--inputs has no effect: {} holds no tensors; leave it out", path.display())));
    }
    if args.seed.is_some() && inputs.tensors.contains_key("latents") {
        anyhow::bail!(usage("--seed has no effect: the noise comes from --inputs; leave one out"));
    }
    let last = args.seed.unwrap_or_default().checked_add(args.count.saturating_sub(1) as u64);
    if last.is_none() {
        anyhow::bail!(usage(
            "--seed is too large for --count pictures: the seeds of the last ones would start over at 0"
        ));
    }
    if args.count == 0 || args.batch == 0 {
        anyhow::bail!(usage("--count and --batch must be at least 1"));
    }
    if args.batch > args.count {
        anyhow::bail!(usage(&format!(
            "--batch {} has no effect beyond --count {}; raise --count",
            args.batch, args.count
        )));
    }
    if !inputs.tensors.is_empty() && args.batch > 1 {
        anyhow::bail!(usage("--batch has no effect: the batch is that of the tensors of --inputs"));
    }
    if inputs.tensors.contains_key("latents") && args.count > 1 {
        anyhow::bail!(usage("--count would repeat one picture: the noise comes from --inputs; put more latents there"));
    }
    Ok(())
}

/// The name of the output must fit what the engine makes, and what lies there must be something to replace.
fn check_outputs(args: &GenerateArgs, info: &EngineInfo, cancel: &CancelToken) -> anyhow::Result<()> {
    if !info.makes_pictures {
        if args.output.is_some() {
            anyhow::bail!(usage("--output has no effect: this engine has no decode graph; use --save-latents"));
        }
        return Ok(());
    }
    let path = output_path(args);
    let format = if info.makes_videos { Some(VideoFormat::of(path)?) } else { None };
    match format {
        Some(format) => format.check(path, args.fps, cancel)?,
        None => Image::check_name(path)?,
    }
    for (index, place) in places(args).iter().enumerate() {
        match format {
            Some(format) => format.check_place(place)?,
            None if place.is_dir() => anyhow::bail!(unwritten(place, "it is a folder")),
            None => {}
        }
        if index < 2 {
            check_target(place, format == Some(VideoFormat::Folder))?;
        }
    }
    check_pictures(args)
}

/// Where outputs will go, as far as something is there already; and the first and the last place. There may be too many
/// pictures to look at the names of all, but not in one folder.
fn places(args: &GenerateArgs) -> Vec<PathBuf> {
    let path = output_path(args);
    let first = args.seed.unwrap_or_default();
    let last = first.saturating_add(args.count as u64 - 1); // check_options has seen that there is one.
    let place = |seed| picture_path(path, seed, args.count > 1);
    let mut places = vec![place(first), place(last)];
    places.dedup();
    if args.count > 1 {
        for entry in std::fs::read_dir(folder_of(path)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            // What stands before the seed need not be Unicode.
            let stem = Path::new(&name).file_stem().unwrap_or_default().to_string_lossy();
            let seed = stem.rsplit('-').next().and_then(|digits| digits.parse().ok());
            places.extend(
                seed.filter(|seed| (first..=last).contains(seed))
                    .map(place)
                    .filter(|place| place.file_name() == Some(&name)),
            );
        }
    }
    places
}

/// The folder in which a file lies.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A typing error in a path should fail before the work, not after it.
fn check_targets(args: &GenerateArgs) -> anyhow::Result<()> {
    let options = [("--output", &args.output), ("--save-latents", &args.save_latents), ("--trace", &args.trace)];
    let mut targets: Vec<(&str, PathBuf)> = Vec::new();
    for (option, path) in options.into_iter().filter_map(|(option, path)| Some((option, path.as_deref()?))) {
        check_target(path, option == "--output")?;
        let path = std::path::absolute(path)?;
        if let Some((other, _)) = targets.iter().find(|(_, known)| *known == path) {
            anyhow::bail!(usage(&format!("{other} and {option} both write {}; give two names", path.display())));
        }
        targets.push((option, path));
    }
    if let (Some(written), Some(read)) = (&args.save_latents, &args.check_outputs)
        && std::path::absolute(written)? == std::path::absolute(read)?
    {
        anyhow::bail!(usage(&format!(
            "--save-latents would overwrite {}, with which --check-outputs compares; give two names",
            read.display()
        )));
    }
    Ok(())
}

/// The pictures of a run must not be overwritten by what is written after them.
fn check_pictures(args: &GenerateArgs) -> anyhow::Result<()> {
    let path = output_path(args);
    let first = args.seed.unwrap_or_default();
    for (option, target) in [("--save-latents", &args.save_latents), ("--trace", &args.trace)] {
        let Some(target) = target else { continue };
        // The seed that the name has, if any: there may be too many pictures to look at the names of all.
        let stem = target.file_stem().unwrap_or_default().to_string_lossy();
        let named = stem.rsplit('-').next().and_then(|digits| digits.parse().ok()).unwrap_or(first);
        let is_its = args.count == 1 || named.checked_sub(first).is_some_and(|k| k < args.count as u64);
        let picture = picture_path(path, named, args.count > 1);
        if is_its && std::path::absolute(target)? == std::path::absolute(picture)? {
            anyhow::bail!(usage(&format!("{option} would overwrite the picture {}; give two names", target.display())));
        }
    }
    Ok(())
}

/// Where the pictures go, before they are numbered.
fn output_path(args: &GenerateArgs) -> &Path {
    args.output.as_deref().unwrap_or(Path::new("out.png"))
}

/// Frames of a video may go to a folder; whether it is a video is known later.
fn check_target(path: &Path, may_be_folder: bool) -> anyhow::Result<()> {
    let fail = |reason: &str| unwritten(path, reason);
    if path.is_dir() && !may_be_folder {
        anyhow::bail!(fail("it is a folder"));
    }
    // Such as a name that is too long.
    if let Err(error) = path.metadata()
        && !matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
    {
        anyhow::bail!(fail(&error.to_string()));
    }
    let folder = folder_of(path);
    if !folder.is_dir() {
        anyhow::bail!(fail(&format!("the folder {} does not exist; make it, or name another one", folder.display())));
    }
    // Pipes and devices are written in place, whatever may be in their folder.
    if path.is_file() || !path.exists() {
        tempfile::tempfile_in(folder)
            .map_err(|error| fail(&format!("nothing can be written into {}: {error}", folder.display())))?;
    }
    Ok(())
}

fn unwritten(path: &Path, reason: &str) -> Error {
    Error::with_kind(ErrorKind::Io, format!("cannot write {}: {reason}", path.display()))
}

fn usage(message: &str) -> Error {
    Error::with_kind(ErrorKind::Usage, message)
}
