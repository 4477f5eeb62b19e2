//! The cache's arithmetic as plain loops, for tensors that lie in host memory: a loop over a small tensor is several
//! times cheaper than an ONNX Runtime session for it. The graphs of `ops` and `measure` do the same on any provider;
//! `EngineOptions::arithmetic` chooses, and tests/library/parity.rs runs both.

use multiversion::multiversion;

use super::measure::Compared;
use super::tensor::{BufferId, Buffers};
use crate::cache::DiffTensor;
use crate::error::Result;

/// Numbers that are summed in f32 before they are added to an f64 total: the error stays far below that of the blocks.
const RUN: usize = 512;
/// Sums that grow side by side, so that no addition waits for the one before it.
const LANES: usize = 64;

/// out = a - b, all f32 and of one shape.
pub(crate) fn subtract(buffers: &mut Buffers, a: BufferId, b: BufferId, out: BufferId) -> Result<()> {
    let ([a, b], out) = buffers.split([a, b], out)?;
    difference(a, b, out);
    Ok(())
}

/// out = a + b, all f32 and of one shape.
pub(crate) fn add(buffers: &mut Buffers, a: BufferId, b: BufferId, out: BufferId) -> Result<()> {
    let ([a, b], out) = buffers.split([a, b], out)?;
    sum(a, b, out);
    Ok(())
}

/// out = a, both f32 and of one shape.
pub(crate) fn copy(buffers: &mut Buffers, a: BufferId, out: BufferId) -> Result<()> {
    let ([a], out) = buffers.split([a], out)?;
    out.copy_from_slice(a);
    Ok(())
}

/// kept = what is compared now, of each stream. Gives sum|kept| over all streams: every later diff has it as its
/// denominator, so it is formed once.
pub(crate) fn keep(buffers: &mut Buffers, streams: &[Compared], tensor: DiffTensor) -> Result<f32> {
    let mut total = 0.0;
    for stream in streams {
        match tensor {
            DiffTensor::HeadResidual => subtract(buffers, stream.after, stream.before, stream.kept)?,
            DiffTensor::HeadOutput | DiffTensor::BlockInput => copy(buffers, stream.after, stream.kept)?,
        }
        total += size(buffers.floats(stream.kept)?);
    }
    Ok(total as f32)
}

/// sum|kept - now| over all streams.
pub(crate) fn change(buffers: &Buffers, streams: &[Compared], tensor: DiffTensor) -> Result<f32> {
    let mut change = 0.0;
    for stream in streams {
        let (after, kept) = (buffers.floats(stream.after)?, buffers.floats(stream.kept)?);
        change += match tensor {
            DiffTensor::HeadResidual => distance_of_difference(after, buffers.floats(stream.before)?, kept),
            DiffTensor::HeadOutput | DiffTensor::BlockInput => distance(after, kept),
        };
    }
    Ok(change as f32)
}

// Each of these loops is compiled for several instruction sets; the widest that the processor has is taken.

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn difference(a: &[f32], b: &[f32], out: &mut [f32]) {
    out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (a, b))| *out = a - b);
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn sum(a: &[f32], b: &[f32], out: &mut [f32]) {
    out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (a, b))| *out = a + b);
}

/// sum|a|.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn size(a: &[f32]) -> f64 {
    a.chunks(RUN).map(|a| total(a, a, |a, _| a.abs())).sum()
}

/// sum|a - b|.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.chunks(RUN).zip(b.chunks(RUN)).map(|(a, b)| total(a, b, |a, b| (b - a).abs())).sum()
}

/// sum|after - before - kept|.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn distance_of_difference(after: &[f32], before: &[f32], kept: &[f32]) -> f64 {
    let mut now = [0.0; RUN];
    let runs = after.chunks(RUN).zip(before.chunks(RUN)).zip(kept.chunks(RUN));
    runs.map(|((after, before), kept)| {
        now.iter_mut().zip(after.iter().zip(before)).for_each(|(now, (a, b))| *now = a - b);
        total(&now[..kept.len()], kept, |a, b| (b - a).abs())
    })
    .sum()
}

/// The sum of what `of` gives for the pairs of two runs.
#[inline(always)]
fn total(a: &[f32], b: &[f32], of: impl Fn(f32, f32) -> f32) -> f64 {
    let mut lanes = [0.0_f32; LANES];
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_lanes.remainder().iter().zip(b_lanes.remainder());
    lanes.iter_mut().zip(rest).for_each(|(lane, (a, b))| *lane += of(*a, *b));
    for (a, b) in a_lanes.zip(b_lanes) {
        for lane in 0..LANES {
            lanes[lane] += of(a[lane], b[lane]);
        }
    }
    f64::from(lanes.iter().sum::<f32>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ONNX Runtime allocates tensors, so the loops are tested on slices: shorter and longer than a lane and a run.
    #[test]
    fn sums_of_any_length() {
        for count in [1, 7, 63, 64, 65, 511, 512, 513, 2 * RUN + 65] {
            let wave = |factor: f32| (0..count).map(|i| (i as f32 * factor).sin()).collect::<Vec<f32>>();
            let (a, b, c) = (wave(0.7), wave(1.3), wave(0.1));
            let exact = |of: &dyn Fn(usize) -> f32| (0..count).map(|i| f64::from(of(i).abs())).sum::<f64>();
            for (found, expected) in [
                (size(&a), exact(&|i| a[i])),
                (distance(&a, &b), exact(&|i| b[i] - a[i])),
                (distance_of_difference(&a, &b, &c), exact(&|i| c[i] - (a[i] - b[i]))),
            ] {
                assert!((found - expected).abs() <= 1e-5 * expected, "{count}: {found}, expected {expected}");
            }
            let mut out = vec![0.0; count];
            difference(&a, &b, &mut out);
            assert!((0..count).all(|i| out[i] == a[i] - b[i]), "{count}");
            sum(&a, &b, &mut out);
            assert!((0..count).all(|i| out[i] == a[i] + b[i]), "{count}");
        }
    }
}
