//! What one guidance branch keeps between steps: its policy, the residual of its middle blocks, and what its diffs compare.

use super::chain::{Chain, Named};
use crate::cache::{BlocksSplit, Branch, CachePolicy};
use crate::engine::Loaded;
use crate::error::{Error, ErrorKind, Result};
use crate::model::graph::output_port;
use crate::model::manifest::{DType, GraphSpec};
use crate::runtime::ops::{Arithmetic, MeasurePorts, Op};
use crate::runtime::tensor::{BufferId, Buffers};
use crate::trace::CacheBytes;

/// One branch of a request.
pub(crate) struct BranchState {
    pub branch: Branch,
    pub policy: Box<dyn CachePolicy>,
    pub embed: Op,
    pub last: Op,
    pub middle: Vec<Residual>,
    pub compare: Option<Compare>,
}

/// The residual of the middle blocks of one stream.
pub(crate) struct Residual {
    keep: Op,
    apply: Op,
}

/// The tensors that a diff compares: the last computed step's, and this step's. They change roles, nothing is copied.
pub(crate) struct Compare {
    sides: [Side; 2],
    /// Which side writes next: the other one's tensor is the last computed step's.
    next: usize,
    change: BufferId,
    size: BufferId,
}

struct Side {
    measure: Op,
    keep: Op,
}

/// Binds a graph whose tensors are all known by name.
pub(crate) fn bind_graph(
    session: &std::sync::Arc<crate::runtime::session::Session>,
    spec: &GraphSpec,
    named: &Named,
    buffers: &mut Buffers,
) -> Result<Op> {
    let find = |tensor: &String| {
        named.get(tensor).copied().ok_or_else(|| Error::internal(format!("no buffer for `{tensor}`")))
    };
    let inputs = spec.inputs.iter().map(|t| Ok((t.clone(), find(t)?))).collect::<Result<Vec<_>>>()?;
    let outputs =
        spec.outputs.iter().map(|t| Ok((output_port(t, &spec.inputs), find(t)?))).collect::<Result<Vec<_>>>()?;
    Op::bind(session, buffers, &inputs, &outputs)
}

impl Residual {
    /// For each stream that the middle blocks change.
    pub(crate) fn bind_all(
        engine: &Loaded,
        arithmetic: &[std::sync::Arc<Arithmetic>],
        chain: &Chain,
        split: &BlocksSplit,
        buffers: &mut Buffers,
        bytes: &mut CacheBytes,
    ) -> Result<Vec<Self>> {
        let manifest = &engine.directory.manifest;
        let mut residuals = Vec::new();
        for (stream, name) in manifest.streams.iter().enumerate() {
            let (before, after) = (chain.at_cut(split.middle.start)[stream], chain.at_cut(split.middle.end)[stream]);
            if before == after {
                continue;
            }
            let shape = buffers.shape(before).to_vec();
            let kept = buffers.add(manifest.tensor(name)?.dtype, &shape)?;
            bytes.residuals += buffers.bytes(kept);
            residuals.push(Self {
                keep: arithmetic[stream].bind_subtract(buffers, after, before, kept)?,
                apply: arithmetic[stream].bind_add(buffers, before, kept, after)?,
            });
        }
        Ok(residuals)
    }

    /// After the middle blocks ran.
    pub(crate) fn keep(&self) -> Result<()> {
        self.keep.run()
    }

    /// Instead of the middle blocks.
    pub(crate) fn apply(&self) -> Result<()> {
        self.apply.run()
    }
}

impl Compare {
    /// Compares the first stream around the head.
    pub(crate) fn bind(
        engine: &Loaded,
        arithmetic: &Arithmetic,
        chain: &Chain,
        split: &BlocksSplit,
        buffers: &mut Buffers,
        bytes: &mut CacheBytes,
    ) -> Result<Self> {
        let dtype = engine.directory.manifest.tensor(&engine.directory.manifest.streams[0])?.dtype;
        let (before, after) = (chain.at_cut(split.head.start)[0], chain.at_cut(split.head.end)[0]);
        let shape = buffers.shape(after).to_vec();
        let tensors = [buffers.add(dtype, &shape)?, buffers.add(dtype, &shape)?];
        bytes.compare += tensors.iter().map(|id| buffers.bytes(*id)).sum::<u64>();
        let (change, size) = (buffers.add(DType::F32, &[1])?, buffers.add(DType::F32, &[1])?);
        let mut side = |current: usize| {
            let previous = tensors[1 - current];
            let ports = MeasurePorts { after, before, previous, current: tensors[current], change, size };
            let measure = arithmetic.bind_measure(buffers, ports)?;
            Ok::<_, Error>(Side { measure, keep: arithmetic.bind_keep(buffers, ports)? })
        };
        Ok(Self { sides: [side(0)?, side(1)?], next: 0, change, size })
    }

    /// The relative L1 change against the last computed step; only two numbers leave the device.
    ///
    /// # Errors
    /// `Numeric` when a tensor holds NaN or infinity.
    pub(crate) fn diff(&self, buffers: &Buffers) -> Result<f32> {
        self.sides[self.next].measure.run()?;
        let (change, size) = (buffers.scalar(self.change)?, buffers.scalar(self.size)?);
        if !change.is_finite() || !size.is_finite() {
            return Err(Error::new(
                ErrorKind::Numeric,
                format!(
                    "the head's residual is not finite (sum of changes {change}, of sizes {size}); \
                         the inputs or weights hold NaN or infinity, or the compute dtype overflows"
                ),
            ));
        }
        // Of nothing, any change is infinite: such a step is computed, as in the reference.
        Ok(change / size)
    }

    /// After a computed step: this step's tensor becomes the one that later steps are compared with.
    pub(crate) fn commit(&mut self, was_measured: bool) -> Result<()> {
        if !was_measured {
            self.sides[self.next].keep.run()?;
        }
        self.next = 1 - self.next;
        Ok(())
    }
}
