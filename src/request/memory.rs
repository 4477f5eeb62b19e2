//! What the policy of a request will keep, by the manifest alone: nothing is loaded or allocated for the answer.

use std::collections::BTreeMap;

use super::guidance::Guidance;
use super::inputs::Inputs;
use super::latents::Grid;
use super::lists::List;
use super::options::RequestOptions;
use super::shares::{self, Share};
use super::{per_sample, tiles};
use crate::cache::{KeptTensors, StreamKind, StreamLayout};
use crate::error::{Error, ErrorKind, Result};
use crate::model::cache_dtype::CacheDType;
use crate::model::manifest::{Dimension, Extents, Manifest, TensorSpec};
use crate::plan::Plan;
use crate::plan::places::count_places;
use crate::trace::CacheBytes;

/// What a request with these options keeps, at most, under its plan and the one that it would have without a cache.
///
/// # Errors
/// As preparing the request; `Usage` for a text length that a tokenizer fixes.
pub(crate) fn of_options(
    manifest: &Manifest,
    plan: &Plan,
    plain: &Plan,
    options: &RequestOptions,
    text_length: Option<u64>,
) -> Result<CacheBytes> {
    let guidance = Guidance::new(manifest, options, true)?; // At most: a negative prompt may be given.
    let batch = super::batch(options.batch, &Default::default())?;
    let grid = super::grid(manifest, options)?;
    let schedule = super::schedule(manifest, &Inputs::default(), options.steps, &grid)?;
    let shares = shares::shares(manifest, &options.cache, &schedule).map_err(|error| error.about("cache"))?;
    let branches = guidance.branches().len();
    shares::check(&shares, branches).map_err(|error| error.about("cache"))?;
    let mut given = Extents::new();
    if let Some(length) = text_length {
        if let Some(fixed) = text_extents(manifest).values().next() {
            return Err(Error::usage(format!(
                "the text length has no effect: the engine's tokenizer reads {fixed} tokens; leave it out"
            ))
            .about("text_length"));
        }
        given.extend(text_dimensions(manifest).into_iter().map(|dim| (dim, length)));
    }
    options.cache_dtype.check(manifest, &options.cache)?;
    tiles::check(manifest, options, &grid, batch)?;
    per_sample::check(options, manifest, batch)?;
    let extents = extents(manifest, &grid, guidance.rows(batch), given)?;
    let footprint = Footprint { manifest, plan, plain, options, shares: &shares, branches, extents: &extents };
    footprint.check()?;
    footprint.bytes()
}

/// What the memory of a request's cache depends on.
pub(crate) struct Footprint<'a> {
    pub manifest: &'a Manifest,
    pub plan: &'a Plan,
    /// The plan without a cache.
    pub plain: &'a Plan,
    pub options: &'a RequestOptions,
    pub shares: &'a [Share],
    /// The number of guidance branches.
    pub branches: usize,
    pub extents: &'a Extents,
}

fn within_limit(options: &RequestOptions, bytes: CacheBytes) -> Result<()> {
    let RequestOptions { cache, cache_memory: Some(limit), .. } = options else { return Ok(()) };
    if bytes.total() == 0 {
        let problem = format!("has no effect: the cache `{cache}` keeps nothing; leave it out, or choose a cache");
        return Err(Error::option("cache-memory", problem));
    }
    if bytes.total() <= *limit {
        return Ok(());
    }
    Err(Error::usage(format!(
        "the cache `{cache}` would keep {} bytes ({bytes}), the option `cache-memory` allows {limit}; allow more, or keep less: a \
         smaller size or batch, no calibrator or one of lower order, one guidance branch, or no cache",
        bytes.total()
    ))
    .about("cache-memory"))
}

impl Footprint<'_> {
    /// Refuses a policy that would keep more than the options allow.
    ///
    /// # Errors
    /// `Usage`, also for a limit on a policy that keeps nothing.
    pub(crate) fn check(&self) -> Result<()> {
        within_limit(self.options, self.bytes()?)
    }

    fn bytes(&self) -> Result<CacheBytes> {
        let Self { manifest, plan, plain, options, shares, branches, extents } = *self;
        let of_cache = layouts(manifest, extents, options.cache_dtype)?;
        let of_list = |(list, steps): (&List, usize)| {
            let of_list = |(stream, layout): (usize, &StreamLayout)| StreamLayout {
                kind: list.stream_kind(stream),
                ..layout.of_blocks(&list.blocks)
            };
            let layouts: Vec<StreamLayout> = of_cache.iter().enumerate().map(of_list).collect();
            list.cache.kept_tensors(list.run(steps, branches), &layouts)
        };
        let mut kept: Vec<KeptTensors> = Vec::new();
        for share in shares {
            kept.extend(share.lists.iter().map(|list| of_list((list, share.steps.len()))));
        }
        let bytes = |part: fn(&KeptTensors) -> u64| {
            kept.iter().fold(0, |sum: u64, kept| sum.saturating_add(part(kept))).saturating_mul(branches as u64)
        };
        let streams = layouts(manifest, extents, CacheDType::Stream)?;
        let mut pinned: Vec<usize> = shares.iter().flat_map(|share| &share.lists).flat_map(List::pinned).collect();
        pinned.retain(|cut| plan.seen().contains(cut));
        let extra = streams.iter().map(|stream| {
            let count = |plan: &Plan, pinned: &[usize]| count_places(plan, pinned, |block| stream.is_written[block]);
            count(plan, &pinned).saturating_sub(count(plain, &[])).saturating_mul(stream.bytes)
        });
        // Where stages hold the arithmetic, two tensors are compared with in turns, and the tail adds zeros on computed steps,
        // which branches and transformers share.
        let in_stages = plan.arithmetic().next().is_some();
        let residuals = bytes(|kept| kept.residuals.bytes);
        let (turns, zeros) = if in_stages { (2, residuals / (branches * shares.len()).max(1) as u64) } else { (1, 0) };
        Ok(CacheBytes {
            residuals: residuals.saturating_add(zeros),
            calibrators: bytes(|kept| kept.calibrators.bytes),
            compare: bytes(|kept| kept.compare.bytes).saturating_mul(turns),
            streams: extra.fold(0, u64::saturating_add),
        })
    }
}

/// The streams, as they are kept in `kept`.
fn layouts(manifest: &Manifest, extents: &Extents, kept: CacheDType) -> Result<Vec<StreamLayout>> {
    let layout = |(index, name): (usize, &String)| {
        let shape = manifest.shape(name, extents)?;
        let numbers = shape.iter().fold(1_u64, |product, extent| product.saturating_mul(*extent as u64));
        let blocks = 0..manifest.blocks.len();
        Ok(StreamLayout {
            kind: if index == 0 { StreamKind::Hidden } else { StreamKind::Encoder },
            bytes: numbers.saturating_mul(kept.of(manifest.tensor(name)?.dtype).bytes()),
            channels: shape.last().map_or(1, |channels| *channels as u64),
            is_written: blocks.clone().map(|block| manifest.writes(block, name)).collect(),
            is_joined: blocks.map(|block| manifest.compared_streams(block).contains(&index)).collect(),
        })
    };
    manifest.streams.iter().enumerate().map(layout).collect()
}

/// All dimensions of a request before its text is read: what is not `given` is the tokenizers', else the largest.
///
/// # Errors
/// `Input` for an extent that the model does not take.
pub(crate) fn extents(manifest: &Manifest, grid: &Grid, batch: usize, given: Extents) -> Result<Extents> {
    let mut extents = grid.extents(batch);
    let largest = text_dimensions(manifest).into_iter().filter_map(|dim| match manifest.dimensions.get(&dim) {
        Some(Dimension::Range { max, .. }) => Some((dim, *max)),
        _ => None,
    });
    for (dim, extent) in given.into_iter().chain(text_extents(manifest)).chain(largest) {
        extents.entry(dim).or_insert(extent);
    }
    manifest.complete(extents)
}

/// The dimensions that neither the size nor a sum decides, with their smallest and largest extents.
pub(crate) fn free_dimensions(manifest: &Manifest, of_size: &Extents) -> BTreeMap<String, [u64; 2]> {
    let fixed = text_extents(manifest);
    let bounds = |name: &String, dimension: &Dimension| match (fixed.get(name), dimension) {
        (Some(extent), _) => Some([*extent; 2]),
        (None, Dimension::Range { min, max }) => Some([*min, *max]),
        (None, Dimension::Sum { .. }) => None,
    };
    let free = manifest.dimensions.iter().filter(|(name, _)| !of_size.contains_key(*name));
    free.filter_map(|(name, dimension)| Some((name.clone(), bounds(name, dimension)?))).collect()
}

/// The dimensions of the text inputs that are not the batch.
fn text_dimensions(manifest: &Manifest) -> Vec<String> {
    let text = manifest.inputs.iter().filter(|(_, input)| input.from.differs_by_branch());
    let tensors = text.filter_map(|(name, _)| manifest.tensors.get(name));
    tensors.flat_map(TensorSpec::dynamic_axes).map(str::to_owned).collect()
}

/// The dimensions that the text graphs fix: each gives as many tokens as its tokenizer, unless that depends on the prompt,
/// or as the manifest says.
fn text_extents(manifest: &Manifest) -> Extents {
    let mut extents = Extents::new();
    let Some(text) = &manifest.text else { return extents };
    for graph in &text.graphs {
        if let Some(length) = text.fixed_length(graph) {
            extents.extend(graph.dynamic_axes(manifest).map(|(_, dim)| (dim.to_owned(), length)));
        }
    }
    extents
}

/// Refuses a run whose latents and pixels alone, as f32, are more than can be allocated at once: what is allocated later, bit by
/// bit, would end the process instead.
///
/// # Errors
/// `Resources`.
pub(crate) fn check_room(grid: &Grid, batch: usize) -> Result<()> {
    let extents = grid.extents(batch);
    let (width, height) = (extents["width"], extents["height"]); // Grid::extents gives both.
    let frames = grid.pixel_frames() as u64;
    let product = |extents: &[u64]| extents.iter().try_fold(4_u64, |bytes, extent| bytes.checked_mul(*extent));
    let latents: Vec<u64> = grid.shape(batch).into_iter().map(|extent| extent as u64).collect();
    let pixels = product(&[batch as u64, frames, 3, width, height]);
    let bytes = product(&latents).zip(pixels).and_then(|(latents, pixels)| latents.checked_add(pixels));
    let room = bytes.and_then(|bytes| usize::try_from(bytes).ok());
    if room.is_some_and(|room| Vec::<u8>::new().try_reserve_exact(room).is_ok()) {
        return Ok(());
    }
    let many = bytes.map_or_else(|| "more bytes than can be counted".to_owned(), |bytes| format!("{bytes} bytes"));
    let message = format!(
        "{batch} of {width}x{height} with {frames} frame(s) need {many} for latents and pixels alone, which are not to be had; \
         make fewer, smaller or shorter ones"
    );
    Err(Error::new(ErrorKind::Resources, message).about("size"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::manifest::{LatentsSpec, Layout};

    #[test]
    fn what_no_machine_can_allocate_is_refused_before() {
        let spec: LatentsSpec =
            serde_json::from_value(serde_json::json!({"layout": "bchw", "channels": 4, "downscale": 8, "patch": 2}))
                .unwrap();
        assert_eq!(spec.layout, Layout::Bchw);
        for (batch, side, is_possible) in
            [(1, 1024, true), (1, 1 << 26, false), (usize::MAX, 64, false), (1 << 40, 1024, false)]
        {
            let outcome = check_room(&Grid::new(spec, None, side, side), batch);
            assert_eq!(outcome.is_ok(), is_possible, "{batch} {side}");
            if let Err(error) = outcome {
                assert_eq!((error.kind(), error.field()), (ErrorKind::Resources, Some("size")), "{error}");
            }
        }
    }
}
