//! The tensors that a calibrator's forecasts are made of. It decides the weights; they never leave the device.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use crate::cache::{Calibrator, Gram, Sum};
use crate::error::{Error, Result};
use crate::model::manifest::DType;
use crate::runtime::op::Op;
use crate::runtime::ops::Arithmetic;
use crate::runtime::sums::Sums;
use crate::runtime::tensor::{BufferId, Buffers, TensorPlace};

/// Forecasts what a stream gains in one unit of blocks (or what it becomes there); or several streams that are one tensor
/// to the calibrator.
pub(crate) struct Forecast {
    calibrator: Box<dyn Calibrator>,
    /// Whether the forecast replaces the stream, or is added to it.
    replaces: bool,
    lanes: Vec<Lane>,
    /// Where an inner product goes: its high and low part, f32 `[batch]`.
    dot: Option<[BufferId; 2]>,
}

/// One stream, and what is kept of it.
pub(crate) struct Lane {
    arithmetic: Arc<Arithmetic>,
    sums: Arc<Sums>,
    before: BufferId,
    after: BufferId,
    /// Of the tensors that are kept.
    dtype: DType,
    kept: Vec<BufferId>,
    /// Tensors that hold nothing at the moment.
    free: Vec<BufferId>,
    /// Weights of a sum, by the number of rows: f32 `[1 or batch]` each.
    weights: [Vec<BufferId>; 2],
}

impl Forecast {
    pub(crate) fn new(calibrator: Box<dyn Calibrator>, replaces: bool, lane: Lane) -> Self {
        Self { calibrator, replaces, lanes: vec![lane], dot: None }
    }

    /// From now on forecasts the streams of `other` as well, as if all were one tensor.
    pub(crate) fn join(&mut self, other: Self) {
        self.lanes.extend(other.lanes);
    }

    /// After the unit's blocks ran.
    ///
    /// `fresh` replaces the calibrator where everything begins anew.
    pub(crate) fn put(&mut self, step: usize, fresh: Option<Box<dyn Calibrator>>, buffers: &mut Buffers) -> Result<()> {
        if let Some(calibrator) = fresh {
            self.calibrator = calibrator;
            self.lanes.iter_mut().for_each(Lane::forget);
        }
        let rows = self.calibrator.put(step);
        self.lanes.iter_mut().try_for_each(|lane| lane.put(&rows, self.replaces, buffers))
    }

    /// Instead of the unit's blocks.
    pub(crate) fn apply(&mut self, step: usize, buffers: &mut Buffers) -> Result<()> {
        if let Some(range) = self.calibrator.needs_gram() {
            let grams = self.grams(&range, buffers)?;
            self.calibrator.set_gram(&grams);
        }
        let rows = self.calibrator.get(step);
        let next = self.calibrator.after_get();
        self.lanes.iter_mut().try_for_each(|lane| lane.apply(&rows, next.as_deref(), self.replaces, buffers))
    }

    /// Inner products of these kept tensors, one table for each batch item: of several streams, their sums.
    fn grams(&mut self, range: &Range<usize>, buffers: &mut Buffers) -> Result<Vec<Gram>> {
        let first = self.lanes.first().ok_or_else(mismatch)?;
        let batch = buffers.shape(first.after).first().copied().unwrap_or(1);
        let parts = match self.dot {
            Some(parts) => parts,
            None => {
                let mut part = || buffers.add_at(TensorPlace::Host, DType::F32, &[batch]);
                *self.dot.insert([part()?, part()?])
            }
        };
        let mut grams = vec![vec![vec![0.0; range.len()]; range.len()]; batch as usize];
        for lane in &self.lanes {
            let tensors = lane.kept.get(range.clone()).ok_or_else(mismatch)?;
            for (i, a) in tensors.iter().enumerate() {
                for (j, b) in tensors.iter().enumerate().take(i + 1) {
                    let dot: Op = lane.sums.bind_dot(buffers, *a, *b, parts)?;
                    dot.run()?;
                    let (high, low) = (buffers.read(parts[0])?, buffers.read(parts[1])?);
                    for (gram, (high, low)) in grams.iter_mut().zip(high.iter().zip(&low)) {
                        gram[i][j] += f64::from(*high) + f64::from(*low);
                        gram[j][i] = gram[i][j];
                    }
                }
            }
        }
        Ok(grams)
    }

    /// Tensors allocated so far, in bytes.
    pub(crate) fn bytes(&self, buffers: &Buffers) -> u64 {
        self.lanes.iter().map(|lane| lane.bytes(buffers)).sum()
    }
}

impl Lane {
    /// `before` and `after` are the stream around the unit's blocks; tensors are kept as `dtype`.
    pub(crate) fn new(
        arithmetic: Arc<Arithmetic>,
        sums: Arc<Sums>,
        before: BufferId,
        after: BufferId,
        dtype: DType,
    ) -> Self {
        let (kept, free, weights) = Default::default();
        Self { arithmetic, sums, before, after, dtype, kept, free, weights }
    }

    /// What is kept is worth nothing any more.
    fn forget(&mut self) {
        self.free.append(&mut self.kept);
        self.free.sort();
        self.free.dedup();
    }

    fn put(&mut self, rows: &[Sum], replaces: bool, buffers: &mut Buffers) -> Result<()> {
        let computed = self.tensor(buffers)?;
        if replaces {
            self.arithmetic.bind_keep(buffers, self.after, computed)?.run()?;
        } else {
            self.arithmetic.bind_subtract(buffers, self.after, self.before, computed)?.run()?;
        }
        self.keep(rows, computed, buffers)
    }

    /// The forecast's rows, and those of what is kept from now on, where that changes.
    fn apply(&mut self, rows: &[Sum], next: Option<&[Sum]>, replaces: bool, buffers: &mut Buffers) -> Result<()> {
        match next {
            None => {
                let mut tensors = self.kept.clone();
                let mut rows = rows.to_vec();
                if !replaces {
                    tensors.push(self.before);
                    rows.iter_mut().for_each(|row| row.push(1.0));
                }
                self.sum(&rows, &tensors, self.after, buffers)
            }
            Some(next) => {
                let forecast = self.tensor(buffers)?;
                self.sum(rows, &self.kept.clone(), forecast, buffers)?;
                if replaces {
                    self.arithmetic.bind_put(buffers, forecast, self.after)?.run()?;
                } else {
                    self.arithmetic.bind_add(buffers, self.before, forecast, self.after)?.run()?;
                }
                self.keep(next, forecast, buffers)
            }
        }
    }

    /// The rows' sums over the kept tensors and, last, `newest` become the kept tensors.
    fn keep(&mut self, rows: &[Sum], newest: BufferId, buffers: &mut Buffers) -> Result<()> {
        let mut tensors = self.kept.clone();
        tensors.push(newest);
        let uses =
            |row: &Sum, tensor: BufferId| tensors.iter().zip(row).any(|(id, weight)| *id == tensor && *weight != 0.0);
        let mut next = vec![newest; rows.len()];
        // From last to first, each into a tensor that neither this row nor one still to be formed needs.
        for index in (0..rows.len()).rev() {
            next[index] = match picked(&rows[index]) {
                Some(tensor) => *tensors.get(tensor).ok_or_else(mismatch)?,
                None => {
                    let is_needed = |tensor: BufferId| {
                        next[index + 1..].contains(&tensor) || rows[..=index].iter().any(|row| uses(row, tensor))
                    };
                    let out = match self.kept.iter().copied().find(|tensor| !is_needed(*tensor)) {
                        Some(tensor) => tensor,
                        None => self.tensor(buffers)?,
                    };
                    self.sum(std::slice::from_ref(&rows[index]), &tensors, out, buffers)?;
                    out
                }
            };
        }
        tensors.sort();
        tensors.dedup();
        self.free.extend(tensors.into_iter().filter(|tensor| !next.contains(tensor)));
        self.free.sort();
        self.free.dedup();
        self.kept = next;
        Ok(())
    }

    /// out = for each batch item the row's sum over the tensors; one row serves all items.
    fn sum(&mut self, rows: &[Sum], tensors: &[BufferId], out: BufferId, buffers: &mut Buffers) -> Result<()> {
        if rows.iter().any(|row| row.len() != tensors.len()) {
            return Err(mismatch());
        }
        let used: Vec<usize> = (0..tensors.len()).filter(|k| rows.iter().any(|row| row[*k] != 0.0)).collect();
        let list = &mut self.weights[usize::from(rows.len() > 1)];
        while list.len() < used.len() {
            list.push(buffers.add_at(TensorPlace::Host, DType::F32, &[rows.len() as i64])?);
        }
        let weights = list[..used.len()].to_vec();
        for (weight, k) in weights.iter().zip(&used) {
            let column: Vec<f32> = rows.iter().map(|row| row[*k] as f32).collect();
            buffers.write(*weight, &column)?;
        }
        let tensors: Vec<BufferId> = used.iter().map(|k| tensors[*k]).collect();
        self.sums.bind(buffers, &tensors, &weights, out)?.run()
    }

    fn bytes(&self, buffers: &Buffers) -> u64 {
        // One tensor may be kept under two names.
        let tensors: BTreeSet<BufferId> = self.kept.iter().chain(&self.free).copied().collect();
        tensors.into_iter().map(|id| buffers.bytes(id)).sum()
    }

    /// A tensor that holds nothing, allocated only if there is none.
    fn tensor(&mut self, buffers: &mut Buffers) -> Result<BufferId> {
        if let Some(tensor) = self.free.pop() {
            return Ok(tensor);
        }
        let shape = buffers.shape(self.after).to_vec();
        buffers.add_kept(self.dtype, &shape)
    }
}

/// The index of the one tensor that a row takes as it is.
fn picked(row: &Sum) -> Option<usize> {
    let mut others = row.iter().enumerate().filter(|(_, weight)| **weight != 0.0);
    match (others.next(), others.next()) {
        (Some((index, weight)), None) if *weight == 1.0 => Some(index),
        _ => None,
    }
}

fn mismatch() -> Error {
    Error::internal("a calibrator's weights do not fit its tensors")
}
