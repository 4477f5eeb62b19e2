//! Small graphs that requests share: each is loaded once, when the first of them needs it.

use std::sync::{Arc, Mutex};

use super::cached::{Cached, cached};
use super::device::Device;
use super::graphs::StreamType;
use super::guidance::{Guide, GuideSpec, Stack};
use super::items::{Gather, Items};
use super::measure::{Measure, Over};
use super::ops::Arithmetic;
use super::sums::Sums;
use crate::cache::DiffOptions;
use crate::error::Result;
use crate::model::manifest::DType;

/// The small graphs of one device.
pub(crate) struct Kernels {
    device: Arc<Device>,
    arithmetic: Cached<(DType, DType, usize), Arithmetic>,
    sums: Cached<usize, Sums>,
    measures: Cached<(Vec<StreamType>, DiffOptions, Over), Measure>,
    gathers: Cached<(DType, usize, usize), Gather>,
    items: Cached<(DType, DType, usize), Items>,
    guides: Cached<GuideSpec, Guide>,
    stacks: Cached<(DType, usize), Stack>,
}

impl Kernels {
    pub(crate) fn new(device: Arc<Device>) -> Self {
        Self {
            device,
            arithmetic: Mutex::default(),
            sums: Mutex::default(),
            measures: Mutex::default(),
            gathers: Mutex::default(),
            items: Mutex::default(),
            guides: Mutex::default(),
            stacks: Mutex::default(),
        }
    }

    /// What is kept of streams of one kind, in the dtype `kept`; loaded once.
    pub(crate) fn arithmetic(&self, dtype: DType, kept: DType, rank: usize) -> Result<Arc<Arithmetic>> {
        cached(&self.arithmetic, (dtype, kept, rank), || Arithmetic::load(&self.device, dtype, kept, rank))
    }

    /// Weighted sums of tensors of one rank; loaded once.
    pub(crate) fn sums(&self, rank: usize) -> Result<Arc<Sums>> {
        cached(&self.sums, rank, || Ok(Sums::new(Arc::clone(&self.device), rank)))
    }

    /// The diff of streams of these kinds; loaded once for each way to compare.
    pub(crate) fn measure(&self, streams: &[StreamType], options: DiffOptions, over: Over) -> Result<Arc<Measure>> {
        let key = (streams.to_vec(), options, over);
        cached(&self.measures, key, || Measure::load(&self.device, streams, options, over))
    }

    /// Takes items out of tensors of one kind, along one axis; loaded once.
    pub(crate) fn gather(&self, dtype: DType, rank: usize, axis: usize) -> Result<Arc<Gather>> {
        cached(&self.gathers, (dtype, rank, axis), || Gather::load(&self.device, dtype, rank, axis))
    }

    /// Puts items back into streams of one kind, and keeps them in the dtype `kept`; loaded once.
    pub(crate) fn items(&self, dtype: DType, kept: DType, rank: usize) -> Result<Arc<Items>> {
        cached(&self.items, (dtype, kept, rank), || Items::load(&self.device, dtype, kept, rank))
    }

    /// Guidance of one kind; loaded once.
    pub(crate) fn guide(&self, spec: GuideSpec) -> Result<Arc<Guide>> {
        cached(&self.guides, spec, || Guide::load(&self.device, spec))
    }

    /// Two tensors of one kind, one above the other; loaded once.
    pub(crate) fn stack(&self, dtype: DType, rank: usize) -> Result<Arc<Stack>> {
        cached(&self.stacks, (dtype, rank), || Stack::load(&self.device, dtype, rank))
    }
}
