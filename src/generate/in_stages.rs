//! A unit whose arithmetic is part of the stages around it: a computed step is a run of head, middle and tail, a skipped
//! one of head and tail.
//!
//! The head's last stage also gives the sums of the diff, the middle's last stage also gives its residual, and the tail's
//! first stage begins with a sum: of what the middle has made and zeros, or of what the middle would have started from and
//! the kept residual. Which tensors these are is a matter of bindings, of which each of the three stages has two; the one
//! that is not in use waits here.

use super::binder::Binder;
use super::chain::{Chain, Named, Streams};
use crate::error::{Error, Result};
use crate::model::manifest::DType;
use crate::plan::{InStages, Stage};
use crate::runtime::tensor::{BufferId, Buffers, TensorPlace};
use crate::trace::CacheBytes;

/// What one branch keeps, and which bindings take turns.
pub(crate) struct StageArithmetic {
    compared: Option<HeadDiff>,
    residuals: Vec<BufferId>,
    /// The stage that begins with a sum.
    tail: usize,
}

struct HeadDiff {
    /// The stage that gives the sums.
    head: usize,
    /// What the diff compares with, and what later ones will compare with: they take turns.
    tensors: [BufferId; 2],
    /// Which of them the head is bound to read.
    turn: usize,
    change: BufferId,
    size: BufferId,
}

/// The two bindings of the tail.
const COMPUTED: usize = 0;
const SKIPPED: usize = 1;

/// What is allocated before the stages are bound.
#[derive(Default)]
pub(super) struct StageTensors {
    /// What is compared, and the two sums.
    compared: Option<([BufferId; 2], [BufferId; 2])>,
    residuals: Vec<BufferId>,
}

impl StageArithmetic {
    /// Allocates what is kept, and adds to `named` what the stages are bound to first. `zeros` are shared by all branches.
    pub(super) fn allocate(
        binder: &mut Binder<'_>,
        shape: &InStages,
        streams_at: &Streams,
        zeros: &mut Vec<BufferId>,
        named: &mut Named,
    ) -> Result<StageTensors> {
        let manifest = binder.manifest();
        let Binder { extents, buffers, .. } = binder;
        let InStages { head, middle, diff, streams, kept } = shape;
        let mut name = |name: String, id: BufferId| named.insert(name, id);
        let mut tensors = StageTensors::default();
        if let Some(diff) = diff {
            let tensor = manifest.tensor(&manifest.streams[0])?;
            let mut extents = manifest.shape(&manifest.streams[0], extents)?;
            if let Some(channels) = extents.last_mut() {
                *channels = (*channels as u64).div_ceil(diff.downsample_factor as u64) as i64;
            }
            let mut add = || buffers.add_kept(kept.of(tensor.dtype), &extents);
            let pair = [add()?, add()?];
            // A run that gives something to the host cannot be recorded.
            let place = if buffers.records_runs() { TensorPlace::Device } else { TensorPlace::Host };
            let mut sum = || buffers.add_at(place, DType::F32, &[1]);
            let sums = [sum()?, sum()?];
            name("kept0".into(), pair[0]);
            name("out0".into(), pair[1]);
            name("change".into(), sums[0]);
            name("size".into(), sums[1]);
            if let Some(stream) = streams_at.at_cut(head.start).first() {
                name("before0".into(), *stream);
            }
            tensors.compared = Some((pair, sums));
        }
        for (j, stream) in streams.iter().enumerate() {
            let dtype = kept.of(manifest.tensor(&manifest.streams[*stream])?.dtype);
            let extents = manifest.shape(&manifest.streams[*stream], extents)?;
            if zeros.len() == j {
                zeros.push(buffers.add(dtype, &extents)?);
            }
            let residual = buffers.add_kept(dtype, &extents)?;
            name(format!("residual{j}"), residual);
            name(format!("from{j}"), streams_at.at_cut(middle.start)[*stream]);
            name(format!("base{j}"), streams_at.at_cut(middle.end)[*stream]);
            name(format!("addend{j}"), zeros[j]);
            tensors.residuals.push(residual);
        }
        Ok(tensors)
    }

    /// Binds the other way of the head and of the tail; the chain is bound to the first.
    pub(super) fn bind(
        binder: &mut Binder<'_>,
        shape: &InStages,
        tensors: StageTensors,
        chain: &mut Chain,
        named: &Named,
    ) -> Result<Self> {
        let manifest = binder.manifest();
        let (stages, start) = (chain.plan().stages.clone(), chain.at_cut(shape.middle.start).to_vec());
        let find = |wanted: &dyn Fn(&Stage) -> bool| {
            let place = stages.iter().position(|loaded| wanted(&loaded.stage));
            place.ok_or_else(|| Error::internal("a plan without the stages of its arithmetic"))
        };
        let has_blocks = |stage: &Stage| !stage.blocks.is_empty();
        let head = find(&|stage| stage.blocks.end == shape.head.end && has_blocks(stage))?;
        let tail = find(&|stage| stage.blocks.start == shape.middle.end && (stage.last || has_blocks(stage)))?;
        let mut with = |stage: usize, others: Vec<(String, BufferId)>| {
            let mut named = named.clone();
            named.extend(others);
            chain.bind_again(manifest, stage, &named, binder.buffers)
        };
        let mut compared = None;
        if let Some((tensors, [change, size])) = tensors.compared {
            with(head, vec![("kept0".to_owned(), tensors[1]), ("out0".to_owned(), tensors[0])])?;
            compared = Some(HeadDiff { head, tensors, turn: 0, change, size });
        }
        let skipped = shape.streams.iter().enumerate().flat_map(|(j, stream)| {
            [(format!("base{j}"), start[*stream]), (format!("addend{j}"), tensors.residuals[j])]
        });
        with(tail, skipped.collect())?;
        Ok(Self { compared, residuals: tensors.residuals, tail })
    }

    /// change and size of the diff, as the head has left them.
    pub(super) fn sums(&self, buffers: &Buffers) -> Result<(f32, f32)> {
        let compared = self.compared.as_ref().ok_or_else(|| Error::internal("a diff of what is not compared"))?;
        let first = |id| Ok::<_, Error>(buffers.read(id)?.first().copied().unwrap_or_default());
        Ok((first(compared.change)?, first(compared.size)?))
    }

    /// The middle runs, and replaces what is kept; later diffs compare with this step.
    pub(super) fn computes(&mut self, chain: &Chain) {
        if let Some(HeadDiff { head, turn, .. }) = &mut self.compared {
            *turn = 1 - *turn;
            chain.use_binding(*head, *turn);
        }
        self.hand_on(chain);
    }

    /// The tail begins with what the middle has made.
    pub(super) fn hand_on(&self, chain: &Chain) {
        chain.use_binding(self.tail, COMPUTED);
    }

    /// The tail begins with what is kept.
    pub(super) fn skips(&self, chain: &Chain) {
        chain.use_binding(self.tail, SKIPPED);
    }

    /// Adds what it holds.
    pub(super) fn count(&self, bytes: &mut CacheBytes, buffers: &Buffers) {
        bytes.residuals += self.residuals.iter().map(|id| buffers.bytes(*id)).sum::<u64>();
        let tensors = self.compared.iter().flat_map(|compared| compared.tensors);
        bytes.compare += tensors.map(|id| buffers.bytes(id)).sum::<u64>();
    }
}
