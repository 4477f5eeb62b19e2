//! Blocks that run or are skipped together, and what is kept of them to skip them well.

use std::ops::Range;
use std::sync::Arc;

use super::binder::Binder;
use super::chain::Chain;
use super::forecast::{Forecast, Lane};
use super::in_stages::StageArithmetic;
use crate::cache::{CalibratorCacheType, DiffOptions, DiffTensor, PolicyConfig, StreamKind};
use crate::engine::LoadedEngine;
use crate::error::{Error, ErrorKind, Result};
use crate::model::cache_dtype::CacheDType;
use crate::model::manifest::DType;
use crate::request::lists::List;
use crate::runtime::graphs::StreamType;
use crate::runtime::host;
use crate::runtime::items::Joined;
use crate::runtime::measure::{Compared, Measure, Over};
use crate::runtime::op::Op;
use crate::runtime::tensor::{BufferId, Buffers, TensorPlace};
use crate::trace::CacheBytes;

/// One decision's worth of blocks: the middle of a step, or a single block.
pub(crate) struct Unit {
    pub blocks: Range<usize>,
    /// Set for a unit that is one block which the policy decides on by itself.
    pub block: Option<usize>,
    kept: Vec<Kept>,
    compare: Option<Compare>,
    /// Instead of both.
    in_stages: Option<Box<StageArithmetic>>,
}

/// What is kept of one stream.
enum Kept {
    /// The residual of the last computed step.
    Residual(Box<Residual>),
    /// Nothing is kept: a skipped step copies the stream as it is before the blocks. The graph of the copy is `None` where a
    /// loop over host memory copies.
    Nothing { before: BufferId, after: BufferId, copy: Option<Box<Op>> },
    /// What a calibrator needs.
    Forecast { forecast: Box<Forecast>, kind: StreamKind },
}

/// A kept residual.
struct Residual {
    stream: usize,
    tensors: Joined,
    /// Keep and apply as graphs; without them, as loops in host memory.
    graphs: Option<(Op, Op)>,
}

/// The tensor that a diff compares with, and its two sums.
struct Compare {
    streams: Vec<Compared>,
    tensor: DiffTensor,
    /// Without graphs, loops in host memory.
    graphs: Option<CompareGraphs>,
    /// Without graphs, the sum of the sizes of what is kept.
    size: f32,
}

struct CompareGraphs {
    measure: Op,
    keep: Op,
    change: BufferId,
    size: BufferId,
}

/// What a unit is made for.
pub(crate) struct UnitSpec<'a> {
    pub blocks: Range<usize>,
    pub block: Option<usize>,
    /// None where the policy never asks.
    pub diff: Option<DiffSpec>,
    pub list: &'a List,
    pub cache_dtype: CacheDType,
    /// Which items of the batch to keep, i64 `[batch]`, where each decides for itself.
    pub keeps: Option<BufferId>,
}

/// What is compared for a diff.
pub(crate) struct DiffSpec {
    pub options: DiffOptions,
    /// The blocks between whose ends it is taken.
    pub around: Range<usize>,
}

/// A stream before and after the blocks of a unit.
struct UnitStream {
    index: usize,
    before: BufferId,
    after: BufferId,
}

impl Unit {
    pub(super) fn bind(binder: &mut Binder<'_>, chain: &Chain, spec: UnitSpec<'_>) -> Result<Self> {
        let Range { start, end } = spec.blocks;
        let mut kept: Vec<Kept> = Vec::new();
        for (index, (before, after)) in chain.at_cut(start).iter().zip(chain.at_cut(end)).enumerate() {
            if before != after {
                let bound = Kept::bind(binder, &spec, UnitStream { index, before: *before, after: *after })?;
                match (bound, kept.last_mut()) {
                    // To the model they are one tensor, so one calibrator forecasts both.
                    (Kept::Forecast { forecast: next, kind }, Some(Kept::Forecast { forecast, kind: same }))
                        if kind == *same =>
                    {
                        forecast.join(*next);
                    }
                    (bound, _) => kept.push(bound),
                }
            }
        }
        let compare = spec.diff.as_ref().map(|diff| Compare::bind(binder, chain, &spec, diff)).transpose()?;
        Ok(Self { blocks: spec.blocks, block: spec.block, kept, compare, in_stages: None })
    }

    /// A middle whose arithmetic is part of the stages.
    pub(super) fn in_stages(blocks: Range<usize>, arithmetic: StageArithmetic) -> Self {
        Self { blocks, block: None, kept: Vec::new(), compare: None, in_stages: Some(Box::new(arithmetic)) }
    }

    /// The sums of which a diff is the quotient ([`relative`]): one pair, or one for each sample that decides for itself.
    /// They are all that leaves the device.
    pub(crate) fn sums(&self, buffers: &Buffers) -> Result<Vec<(f32, f32)>> {
        if let Some(arithmetic) = &self.in_stages {
            return Ok(vec![arithmetic.sums(buffers)?]);
        }
        let compare = self.compare.as_ref().ok_or_else(|| Error::internal("a diff of what is not compared"))?;
        match &compare.graphs {
            Some(graphs) => {
                graphs.measure.run()?;
                Ok(buffers.read(graphs.change)?.into_iter().zip(buffers.read(graphs.size)?).collect())
            }
            None => Ok(vec![(host::change(buffers, &compare.streams, compare.tensor)?, compare.size)]),
        }
    }

    /// The streams whose residuals are kept, by their index.
    pub(crate) fn residuals(&self) -> impl Iterator<Item = (usize, Joined)> {
        self.kept.iter().filter_map(|kept| match kept {
            Kept::Residual(residual) => Some((residual.stream, residual.tensors)),
            Kept::Nothing { .. } | Kept::Forecast { .. } => None,
        })
    }

    /// Before the blocks run on a step that is kept: later diffs compare with this one.
    pub(crate) fn keep_compared(&mut self, chain: &Chain, buffers: &mut Buffers) -> Result<()> {
        if let Some(arithmetic) = &mut self.in_stages {
            arithmetic.computes(chain);
        }
        match &mut self.compare {
            None => Ok(()),
            Some(Compare { graphs: Some(graphs), .. }) => graphs.keep.run(),
            Some(compare) => {
                compare.size = host::keep(buffers, &compare.streams, compare.tensor)?;
                Ok(())
            }
        }
    }

    /// After the blocks ran on a step that is kept.
    ///
    /// `step` counts from the last refresh of `cache`'s policy: at 0 its calibrators begin anew.
    pub(crate) fn keep(&mut self, step: usize, cache: &PolicyConfig, buffers: &mut Buffers) -> Result<()> {
        let block = self.block;
        self.kept.iter_mut().try_for_each(|kept| match kept {
            Kept::Residual(residual) => match &residual.graphs {
                Some((keep, _)) => keep.run(),
                None => {
                    let Joined { before, after, kept } = residual.tensors;
                    host::subtract(buffers, after, before, kept)
                }
            },
            Kept::Nothing { .. } => Ok(()),
            Kept::Forecast { forecast, kind } => {
                let fresh = if step == 0 { cache.calibrator(block, *kind) } else { None };
                forecast.put(step, fresh, buffers)
            }
        })
    }

    /// Instead of the blocks.
    pub(crate) fn apply(&mut self, step: usize, chain: &Chain, buffers: &mut Buffers) -> Result<()> {
        if let Some(arithmetic) = &self.in_stages {
            arithmetic.skips(chain);
        }
        self.kept.iter_mut().try_for_each(|kept| match kept {
            Kept::Residual(residual) => match &residual.graphs {
                Some((_, apply)) => apply.run(),
                None => {
                    let Joined { before, after, kept } = residual.tensors;
                    host::add(buffers, before, kept, after)
                }
            },
            Kept::Nothing { copy: Some(copy), .. } => copy.run(),
            Kept::Nothing { before, after, copy: None } => host::copy(buffers, *before, *after),
            Kept::Forecast { forecast, .. } => forecast.apply(step, buffers),
        })
    }

    /// Makes what comes after the blocks take what they have made, as on a computed step.
    pub(super) fn hand_on(&self, chain: &Chain) {
        if let Some(arithmetic) = &self.in_stages {
            arithmetic.hand_on(chain);
        }
    }

    /// Adds what the unit holds at the moment.
    pub(crate) fn count(&self, bytes: &mut CacheBytes, buffers: &Buffers) {
        if let Some(arithmetic) = &self.in_stages {
            arithmetic.count(bytes, buffers);
        }
        for kept in &self.kept {
            match kept {
                Kept::Residual(residual) => bytes.residuals += buffers.bytes(residual.tensors.kept),
                Kept::Nothing { .. } => {}
                Kept::Forecast { forecast, .. } => bytes.calibrators += forecast.bytes(buffers),
            }
        }
        if let Some(compare) = &self.compare {
            bytes.compare += compare.streams.iter().map(|stream| buffers.bytes(stream.kept)).sum::<u64>();
        }
    }
}

impl Kept {
    fn bind(binder: &mut Binder<'_>, spec: &UnitSpec<'_>, stream: UnitStream) -> Result<Self> {
        let UnitStream { index, before, after } = stream;
        let Binder { engine, buffers, .. } = binder;
        let (cache, block, kind) = (&spec.list.cache, spec.block, spec.list.stream_kind(index));
        let dtype = stream_dtype(engine, index)?;
        let shape = buffers.shape(after).to_vec();
        if !cache.corrects(block, kind) {
            let is_on_host = engine.computes_on_host(&[dtype]);
            let copy = || engine.kernels.arithmetic(dtype, dtype, shape.len())?.bind_keep(buffers, before, after);
            let copy = (!is_on_host).then(copy).transpose()?;
            return Ok(Self::Nothing { before, after, copy: copy.map(Box::new) });
        }
        let kept = spec.cache_dtype.of(dtype);
        let arithmetic = engine.kernels.arithmetic(dtype, kept, shape.len())?;
        if let Some(calibrator) = cache.calibrator(block, kind) {
            let replaces = cache.cache_type(block, kind) == CalibratorCacheType::HiddenStates;
            let sums = engine.kernels.sums(shape.len())?;
            let lane = Lane::new(arithmetic, sums, before, after, kept);
            return Ok(Self::Forecast { forecast: Box::new(Forecast::new(calibrator, replaces, lane)), kind });
        }
        let id = buffers.add_kept(kept, &shape)?;
        let graphs = if spec.keeps.is_none() && engine.computes_on_host(&[dtype, kept]) {
            None
        } else {
            let keep = arithmetic.bind_subtract(buffers, after, before, id)?;
            Some((keep, arithmetic.bind_add(buffers, before, id, after)?))
        };
        let tensors = Joined { before, after, kept: id };
        Ok(Self::Residual(Box::new(Residual { stream: index, tensors, graphs })))
    }
}

impl Compare {
    fn bind(binder: &mut Binder<'_>, chain: &Chain, spec: &UnitSpec<'_>, diff: &DiffSpec) -> Result<Self> {
        let UnitSpec { list, cache_dtype, keeps, .. } = *spec;
        let DiffSpec { options, around } = diff;
        let Binder { engine, buffers, .. } = binder;
        // A single block compares its input, so all that it sees is at one cut.
        let (before, after) = match options.tensor {
            DiffTensor::BlockInput => (around.start, around.start),
            DiffTensor::HeadOutput => (around.end, around.end),
            DiffTensor::HeadResidual => (around.start, around.end),
        };
        let manifest = &engine.directory.manifest;
        let joined = if options.tensor == DiffTensor::BlockInput && options.compare_all_streams {
            manifest.compared_streams(around.start)
        } else {
            Vec::new()
        };
        let is_compared = |stream: &usize| list.stream_kind(*stream) == StreamKind::Hidden || joined.contains(stream);
        let streams: Vec<usize> = (0..manifest.streams.len()).filter(is_compared).collect();
        let kinds: Vec<StreamType> = streams
            .iter()
            .map(|stream| {
                let (dtype, rank) = (stream_dtype(engine, *stream)?, buffers.shape(chain.at_cut(after)[*stream]).len());
                Ok(StreamType { dtype, kept: cache_dtype.of(dtype), rank })
            })
            .collect::<Result<_>>()?;
        let over = if keeps.is_some() { Over::Item } else { Over::Batch };
        let measure: Arc<Measure> = engine.kernels.measure(&kinds, *options, over)?;
        let mut compared = Vec::new();
        for (stream, kind) in streams.iter().zip(&kinds) {
            let (before, after) = (chain.at_cut(before)[*stream], chain.at_cut(after)[*stream]);
            let shape = measure.kept_shape(buffers.shape(after));
            compared.push(Compared { after, before, kept: buffers.add_kept(kind.kept, &shape)? });
        }
        let is_plain = options.downsample_factor == 1 && options.important_condition_threshold.is_none();
        let dtypes: Vec<DType> = kinds.iter().flat_map(|kind| [kind.dtype, kind.kept]).collect();
        // The loops have one sum for the whole batch.
        let graphs = if keeps.is_none() && is_plain && engine.computes_on_host(&dtypes) {
            None
        } else {
            let sums = keeps.map_or(1, |keeps| buffers.shape(keeps)[0]);
            let (change, size) = (
                buffers.add_at(TensorPlace::Host, DType::F32, &[sums])?,
                buffers.add_at(TensorPlace::Host, DType::F32, &[sums])?,
            );
            let keep = measure.bind_keep(buffers, &compared, keeps)?;
            Some(CompareGraphs { measure: measure.bind_measure(buffers, &compared, change, size)?, keep, change, size })
        };
        Ok(Self { streams: compared, tensor: options.tensor, graphs, size: 0.0 })
    }
}

/// Of two sums, the relative change.
///
/// # Errors
/// `Numeric` when one is NaN or infinity.
pub(super) fn relative(change: f32, size: f32) -> Result<f32> {
    if !change.is_finite() || !size.is_finite() {
        return Err(Error::new(
            ErrorKind::Numeric,
            format!("what is compared is not finite (sum of changes {change}, of sizes {size})"),
        ));
    }
    // Of nothing, any change is infinite: such blocks are computed, as in the reference.
    Ok(change / size)
}

fn stream_dtype(engine: &LoadedEngine, stream: usize) -> Result<DType> {
    let manifest = &engine.directory.manifest;
    Ok(manifest.tensor(&manifest.streams[stream])?.dtype)
}
