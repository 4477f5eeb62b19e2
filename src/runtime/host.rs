//! The cache's arithmetic as plain loops, for tensors that lie in host memory: a loop over a small tensor is several
//! times cheaper than an ONNX Runtime session for it. The graphs of `ops` and `measure` do the same on any provider;
//! `EngineOptions::arithmetic` chooses, and tests/parity.rs runs both.

use super::measure::Compared;
use super::tensor::{BufferId, Buffers};
use crate::cache::DiffTensor;
use crate::error::Result;

/// Numbers that are summed in f32 before they are added to an f64 total: the error stays far below that of the blocks.
const RUN: usize = 256;
const LANES: usize = 8;

/// out = a - b, all f32 and of one shape.
pub(crate) fn subtract(buffers: &mut Buffers, a: BufferId, b: BufferId, out: BufferId) -> Result<()> {
    let ([a, b], out) = buffers.split([a, b], out)?;
    out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (a, b))| *out = a - b);
    Ok(())
}

/// out = a + b, all f32 and of one shape.
pub(crate) fn add(buffers: &mut Buffers, a: BufferId, b: BufferId, out: BufferId) -> Result<()> {
    let ([a, b], out) = buffers.split([a, b], out)?;
    out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (a, b))| *out = a + b);
    Ok(())
}

/// out = a, both f32 and of one shape.
pub(crate) fn copy(buffers: &mut Buffers, a: BufferId, out: BufferId) -> Result<()> {
    let ([a], out) = buffers.split([a], out)?;
    out.copy_from_slice(a);
    Ok(())
}

/// kept = what is compared now, of each stream.
pub(crate) fn keep(buffers: &mut Buffers, streams: &[Compared], tensor: DiffTensor) -> Result<()> {
    for stream in streams {
        match tensor {
            DiffTensor::HeadResidual => subtract(buffers, stream.after, stream.before, stream.kept)?,
            DiffTensor::HeadOutput | DiffTensor::BlockInput => {
                copy(buffers, stream.after, stream.kept)?;
            }
        }
    }
    Ok(())
}

/// sum|kept - now| and sum|kept| over all streams.
pub(crate) fn measure(buffers: &Buffers, streams: &[Compared], tensor: DiffTensor) -> Result<(f32, f32)> {
    let mut total = Sums::default();
    for stream in streams {
        let (after, kept) = (buffers.floats(stream.after)?, buffers.floats(stream.kept)?);
        let runs = after.chunks(RUN).zip(kept.chunks(RUN));
        match tensor {
            DiffTensor::HeadResidual => {
                let mut now = [0.0; RUN];
                for ((after, kept), before) in runs.zip(buffers.floats(stream.before)?.chunks(RUN)) {
                    now.iter_mut().zip(after.iter().zip(before)).for_each(|(now, (a, b))| *now = a - b);
                    total.add(&now[..kept.len()], kept);
                }
            }
            DiffTensor::HeadOutput | DiffTensor::BlockInput => runs.for_each(|(now, kept)| total.add(now, kept)),
        }
    }
    Ok((total.change as f32, total.size as f32))
}

#[derive(Default)]
struct Sums {
    change: f64,
    size: f64,
}

impl Sums {
    /// At most [`RUN`] numbers.
    fn add(&mut self, now: &[f32], kept: &[f32]) {
        let (mut changes, mut sizes) = ([0.0_f32; LANES], [0.0_f32; LANES]);
        let (now_lanes, kept_lanes) = (now.chunks_exact(LANES), kept.chunks_exact(LANES));
        let rest = now_lanes.remainder().iter().zip(kept_lanes.remainder());
        for (lane, (now, kept)) in rest.enumerate() {
            changes[lane] += (kept - now).abs();
            sizes[lane] += kept.abs();
        }
        for (now, kept) in now_lanes.zip(kept_lanes) {
            for lane in 0..LANES {
                changes[lane] += (kept[lane] - now[lane]).abs();
                sizes[lane] += kept[lane].abs();
            }
        }
        self.change += f64::from(changes.iter().sum::<f32>());
        self.size += f64::from(sizes.iter().sum::<f32>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ONNX Runtime allocates tensors, so the sums are tested on slices.
    #[test]
    fn sums_of_any_length() {
        for count in [1, 7, 8, 9, 255, 256] {
            let now: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7).sin()).collect();
            let kept: Vec<f32> = (0..count).map(|i| (i as f32 * 1.3).cos()).collect();
            let mut sums = Sums::default();
            sums.add(&now, &kept);
            let change: f64 = now.iter().zip(&kept).map(|(n, k)| f64::from((k - n).abs())).sum();
            let size: f64 = kept.iter().map(|k| f64::from(k.abs())).sum();
            assert!((sums.change - change).abs() < 1e-4 && (sums.size - size).abs() < 1e-4, "{count}");
        }
    }
}
