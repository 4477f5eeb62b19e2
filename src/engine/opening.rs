//! What must be so before a directory is loaded, and what follows from its sizes.

use std::path::Path;

use super::stages::sizes;
use crate::cache::PolicyConfig;
use crate::collective::ContextParallel;
use crate::error::{At, Error, Result};
use crate::model::compute::Attention;
use crate::model::directory::{EngineDirectory, ExpertGraphs};
use crate::plan::{Limits, Plan};
use crate::request::cuts;
use crate::request::engine_options::{ArithmeticChoice, BuildCache, EngineOptions, WeightsChoice};
use crate::runtime::library::Work;
use crate::runtime::provider::{ProviderKind, ProviderSpec};
use crate::runtime::source::WeightsMode;

/// The plan that an engine would have for a policy; nothing is loaded.
pub(crate) fn planned(directory: &EngineDirectory, load: &EngineOptions, cache: &PolicyConfig) -> Result<Plan> {
    let sizes = sizes(directory);
    let limits = Limits::new(load.stages, load.stage_bytes, &sizes)?;
    let cuts = cuts::of_policy(&directory.manifest, cache, load.arithmetic)?;
    Ok(Plan::new(&sizes, limits, &cuts))
}

/// Opens a directory for the providers of these options: all of them can run what it gives.
///
/// # Errors
/// `EngineDirectory`; `Usage` for a dtype that its graphs cannot compute in, or a precision that has no effect on them.
pub(crate) fn open(directory: &Path, options: &EngineOptions) -> Result<EngineDirectory> {
    let path = directory;
    let takes_softmax = options.provider.iter().all(|spec| spec.kind().takes_softmax_precision());
    let attention = if takes_softmax { Attention::SoftmaxInF32 } else { Attention::ByProvider };
    let directory = EngineDirectory::open(path, options.weights_folder.as_deref())?;
    let directory = match options.compute.dtype() {
        Some(dtype) => directory.computing_in(dtype, attention).at(format!("engine {}", path.display()))?,
        None => directory,
    };
    let blocks = || directory.experts.iter().flat_map(|expert| &expert.blocks);
    let is_quantised = || blocks().any(|block| block.runs(&["QuantizeLinear", "DequantizeLinear"]));
    for spec in options.provider.iter() {
        spec.check_precision(directory.manifest.compute_dtype, is_quantised)?;
    }
    let takes_bf16 = options.provider.iter().all(|spec| spec.kind().takes_bf16_ports());
    let directory = if takes_bf16 { directory } else { directory.without_bf16_ports()? };
    match &options.context_parallel {
        Some(ContextParallel { method, group }) => directory.sharded(group.rank(), group.ranks(), *method),
        None => Ok(directory),
    }
}

/// Refuses what no provider of the list obeys, and a dtype in which one of them does not compute.
pub(crate) fn check_provider(options: &EngineOptions, directory: &EngineDirectory) -> Result<()> {
    let (computes, exported) = (directory.manifest.compute_dtype, directory.exported_dtype);
    options.provider.iter().try_for_each(|spec| spec.kind().check_dtype(computes, computes != exported))?;
    let is_cpu = |spec: &ProviderSpec| spec.kind() == ProviderKind::Cpu;
    if options.allow_fallback && options.provider.iter().all(is_cpu) {
        return Err(Error::usage(
            "the option `allow-fallback` has no effect: the provider `cpu` runs everything; leave it out",
        ));
    }
    if options.context_parallel.is_some()
        && let Some(spec) = options.provider.iter().find(|spec| !is_cpu(spec))
    {
        return Err(Error::option(
            "context-parallel",
            format!("takes the provider `cpu` so far, not `{}`; leave one of the two out", spec.kind()),
        ));
    }
    let compiles = options.provider.iter().any(|spec| spec.kind().compiles());
    let captures = options.provider.iter().any(|spec| spec.captures().is_some());
    let compiled = [
        ("build-cache", options.build_cache != BuildCache::User && !compiles),
        ("require-built", options.require_built && !compiles),
        ("profile", options.profile.is_some() && !compiles && !captures),
    ];
    if let Some((name, _)) = compiled.iter().find(|(_, is_idle)| *is_idle) {
        let provider = &options.provider;
        let recorder = provider.iter().map(ProviderSpec::kind).find(|kind| *name == "profile" && kind.can_capture());
        let other = recorder.map_or(String::new(), |kind| {
            format!(", or set the option `graph-captures` of `{kind}`, with which it takes effect")
        });
        return Err(Error::option(
            name,
            format!("has no effect: the provider `{provider}` compiles nothing; leave it out{other}"),
        ));
    }
    if options.require_built && options.build_cache == BuildCache::None {
        return Err(Error::option(
            "require-built",
            "and the option `build-cache=none` exclude each other: nothing could be built before",
        ));
    }
    if options.weights == WeightsChoice::Mapped && !options.provider.iter().all(is_cpu) {
        let message = "the option `weights-mode=mapped` has no effect: only the provider `cpu` runs from mapped weights; leave it out";
        return Err(Error::usage(message));
    }
    Ok(())
}

/// Compares the weights with the manifest's hashes.
pub(super) fn verify(directory: &EngineDirectory) -> Result<()> {
    let unknown = directory.verify()?;
    if unknown.is_empty() {
        return Ok(());
    }
    Err(Error::directory(format!(
        "cannot verify {}: the manifest has no content hash; export again, and keep the content hash",
        unknown.join(", ")
    )))
}

/// Whether a block that is part of two stages would have its weights twice, and may run in parts of them instead: not
/// where they are mapped, where builds are made for one division, or where stages hold a policy's arithmetic.
pub(super) fn copies_weights(kind: ProviderKind, weights: WeightsMode, arithmetic: ArithmeticChoice) -> bool {
    let is_mapped = kind == ProviderKind::Cpu && weights == WeightsMode::Mapped;
    !is_mapped && !kind.compiles() && arithmetic != ArithmeticChoice::Stages
}

/// A block that multiplies less than this at the default size gains nothing from a second thread (docs/speed-log.md):
/// about 3 ms on one core.
const LARGE_WORK: u64 = 200_000_000;

pub(super) fn work(directory: &EngineDirectory) -> Work {
    let manifest = &directory.manifest;
    let cell = manifest.latents.downscale * manifest.latents.patch;
    let frames = manifest.video.map_or(1, |video| (video.frames.default - 1) / video.temporal_downscale + 1);
    let tokens: u64 = frames * manifest.size.default.iter().map(|side| side / cell).product::<u64>();
    let blocks = directory.experts.iter().flat_map(|expert| &expert.blocks);
    let largest = blocks.map(|block| block.parameters).max().unwrap_or_default();
    let operations = largest.saturating_mul(2).saturating_mul(tokens);
    if operations < LARGE_WORK { Work::Small } else { Work::Large }
}

pub(crate) fn choose_weights(choice: WeightsChoice, directory: &EngineDirectory) -> WeightsMode {
    match choice {
        WeightsChoice::Packed => WeightsMode::Packed,
        WeightsChoice::Mapped => WeightsMode::Mapped,
        WeightsChoice::Auto => {
            let graphs = directory.experts.iter().flat_map(ExpertGraphs::all).chain(&directory.text);
            let needed = 4 * graphs.chain(&directory.decode).map(|graph| graph.parameters).sum::<u64>();
            match available_memory() {
                // Packing holds two copies for a moment, and a request needs room as well.
                Some(available) if needed > available / 4 * 3 => WeightsMode::Mapped,
                _ => WeightsMode::Packed,
            }
        }
    }
}

/// Bytes that can be had without swapping; unknown where the system has no /proc.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
