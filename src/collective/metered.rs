//! Counts what a rank gives the others, and how long it waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::Collective;
use crate::error::Result;

/// What this rank and the others gave each other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Exchanged {
    /// Bytes that this rank gave to others.
    pub bytes: u64,
    /// Wall time of the calls, waiting for other ranks included, in milliseconds.
    pub ms: f64,
}

impl Exchanged {
    /// What came on top of an earlier count.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { bytes: self.bytes - earlier.bytes, ms: self.ms - earlier.ms }
    }

    /// Both together.
    pub(crate) fn and(self, more: Self) -> Self {
        Self { bytes: self.bytes + more.bytes, ms: self.ms + more.ms }
    }
}

/// A group whose calls are counted.
#[derive(Debug)]
pub(super) struct Metered {
    group: Arc<dyn Collective>,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Metered {
    pub(super) fn new(group: Arc<dyn Collective>) -> Self {
        Self { group, bytes: AtomicU64::new(0), nanoseconds: AtomicU64::new(0) }
    }

    fn count<T>(&self, bytes: usize, call: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let done = call();
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let passed = u64::try_from(start.elapsed().as_nanos()).unwrap_or_default();
        self.nanoseconds.fetch_add(passed, Ordering::Relaxed);
        done
    }
}

impl Collective for Metered {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn ranks(&self) -> usize {
        self.group.ranks()
    }

    fn all_gather(&self, own: &[u8], lengths: &[usize], all: &mut [u8]) -> Result<()> {
        self.count(own.len() * (self.ranks() - 1), || self.group.all_gather(own, lengths, all))
    }

    fn all_to_all(&self, out: &[u8], out_lengths: &[usize], into: &mut [u8], in_lengths: &[usize]) -> Result<()> {
        let own = out_lengths.get(self.rank()).copied().unwrap_or_default();
        self.count(out.len() - own, || self.group.all_to_all(out, out_lengths, into, in_lengths))
    }

    fn all_sum(&self, numbers: &mut [f64]) -> Result<()> {
        self.count(size_of_val(numbers), || self.group.all_sum(numbers))
    }

    fn exchanged(&self) -> Exchanged {
        let ms = self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e6;
        Exchanged { bytes: self.bytes.load(Ordering::Relaxed), ms }
    }
}
