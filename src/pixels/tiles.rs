//! Decoding in overlapping pieces, whose edges are blended: less memory for large pictures and long videos.
//!
//! The arithmetic is that of diffusers' `tiled_decode` (0.42.1, `models/autoencoders/autoencoder_kl.py` and
//! `autoencoder_kl_hunyuan_video.py`), in its order: a tile is blended with the one above it, then with the one to its
//! left, both of which are blended already.

use std::ops::Range;

use ndarray::{ArrayD, ArrayViewD, Axis, Slice, concatenate};

use crate::error::{Error, Result};

/// How an axis of latents is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Cells of a piece; the last ones may have fewer.
    pub size: usize,
    /// Cells from one piece to the next.
    pub stride: usize,
    /// Pixels, or frames, of a cell.
    pub scale: usize,
}

impl Cut {
    /// The cells of each piece of an axis.
    pub(crate) fn pieces(self, extent: usize) -> impl Iterator<Item = Range<usize>> + Clone {
        (0..extent).step_by(self.stride).map(move |start| start..(start + self.size).min(extent))
    }

    /// Pixels of a piece that no later one replaces.
    fn kept(self) -> usize {
        self.stride * self.scale
    }

    /// Pixels of a piece's end that are blended with the beginning of the next one.
    fn blended(self) -> usize {
        self.size.saturating_sub(self.stride) * self.scale
    }
}

/// Decodes `[…, height, width]` in tiles that are cut alike along both axes; `decode` makes cells to pixels.
pub(crate) fn in_tiles(
    latents: ArrayViewD<'_, f32>,
    cut: Cut,
    decode: &mut dyn FnMut(ArrayViewD<'_, f32>) -> Result<ArrayD<f32>>,
) -> Result<ArrayD<f32>> {
    let axes = (latents.ndim() - 2, latents.ndim() - 1);
    let (rows, columns) = (Axis(axes.0), Axis(axes.1));
    let (mut above, mut strips) = (Vec::new(), Vec::new());
    for of_row in cut.pieces(latents.len_of(rows)) {
        let mut row: Vec<ArrayD<f32>> = Vec::new();
        for (index, of_column) in cut.pieces(latents.len_of(columns)).enumerate() {
            let strip = latents.slice_axis(rows, Slice::from(of_row.clone()));
            let mut tile = decode(strip.slice_axis(columns, Slice::from(of_column)))?;
            if let Some(above) = above.get(index) {
                blend(above, &mut tile, rows, cut.blended());
            }
            if let Some(left) = row.last() {
                blend(left, &mut tile, columns, cut.blended());
            }
            row.push(tile);
        }
        let kept = |tile| beginning(&beginning(tile, rows, cut.kept()), columns, cut.kept());
        strips.push(joined(columns, &row.iter().map(kept).collect::<Vec<_>>())?);
        above = row;
    }
    joined(rows, &strips)
}

/// Decodes `[batch, channels, frames, …]` in runs of frames, one longer than the cut's pieces. The first latent frame
/// becomes a single frame, which all runs but the first leave out.
pub(crate) fn in_runs(
    latents: ArrayViewD<'_, f32>,
    cut: Cut,
    decode: &mut dyn FnMut(ArrayViewD<'_, f32>) -> Result<ArrayD<f32>>,
) -> Result<ArrayD<f32>> {
    let frames = Axis(2);
    let extent = latents.len_of(frames);
    let (mut before, mut kept) = (None, Vec::new());
    for piece in cut.pieces(extent) {
        let is_first = piece.start == 0;
        let piece = piece.start..(piece.start + cut.size + 1).min(extent);
        if !is_first && piece.len() == 1 {
            continue; // Only the frame that is left out.
        }
        let mut run = decode(latents.slice_axis(frames, Slice::from(piece)))?;
        if let Some(before) = &before {
            run.slice_axis_inplace(frames, Slice::from(1..));
            blend(before, &mut run, frames, cut.blended());
        }
        kept.push(beginning(&run, frames, cut.kept() + usize::from(is_first)));
        before = Some(run);
    }
    joined(frames, &kept)
}

/// Fades the end of `before` into the beginning of `after`, over `extent` numbers along an axis.
fn blend(before: &ArrayD<f32>, after: &mut ArrayD<f32>, axis: Axis, extent: usize) {
    let extent = extent.min(before.len_of(axis)).min(after.len_of(axis));
    let first = before.len_of(axis) - extent;
    for (index, mut target) in after.axis_iter_mut(axis).take(extent).enumerate() {
        let share = index as f64 / extent as f64;
        let (old, new) = ((1.0 - share) as f32, share as f32);
        target.zip_mut_with(&before.index_axis(axis, first + index), |target, before| {
            *target = before * old + *target * new;
        });
    }
}

fn beginning(piece: &ArrayD<f32>, axis: Axis, most: usize) -> ArrayD<f32> {
    let end = most.min(piece.len_of(axis));
    piece.slice_axis(axis, Slice::from(..end)).to_owned()
}

fn joined(axis: Axis, parts: &[ArrayD<f32>]) -> Result<ArrayD<f32>> {
    let views: Vec<ArrayViewD<'_, f32>> = parts.iter().map(|part| part.view()).collect();
    concatenate(axis, &views).map_err(|error| Error::internal("tiles that do not fit").with_source(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::inputs::read_tensors;

    /// Sums of float32 in another order.
    const TOLERANCE: f32 = 1e-5;

    /// The decoder that `export/oracle/tiles.py` gave to diffusers.
    fn toy(latents: ArrayViewD<'_, f32>) -> ArrayD<f32> {
        let mean = latents.iter().sum::<f32>() / latents.len() as f32;
        let mut shape = latents.shape().to_vec();
        shape[1] = 1;
        let sides = shape.len() - 2;
        shape[sides..].iter_mut().for_each(|extent| *extent *= 8);
        if sides == 3 {
            shape[2] = 4 * (shape[2] - 1) + 1;
        }
        ArrayD::from_shape_fn(shape, |mut place| {
            if sides == 3 {
                place[2] = place[2].div_ceil(4);
            }
            for axis in sides..sides + 2 {
                place[axis] /= 8;
            }
            latents[place] + mean
        })
    }

    #[test]
    fn pieces_are_blended_as_in_diffusers() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/decode/toy.safetensors");
        let recorded = read_tensors(file.as_ref()).unwrap();
        let in_space = Cut { size: 4, stride: 3, scale: 8 };
        let in_time = Cut { size: 4, stride: 3, scale: 4 };
        let names: Vec<&str> = recorded.keys().filter_map(|name| name.strip_suffix(".latents")).collect();
        assert_eq!(names.len(), 9);
        for name in names {
            let latents = recorded[&format!("{name}.latents")].view();
            let mut whole = |latents: ArrayViewD<'_, f32>| Ok(toy(latents));
            let mut tiles = |latents: ArrayViewD<'_, f32>| in_tiles(latents, in_space, &mut |part| Ok(toy(part)));
            let pixels = match name {
                "both8" => in_runs(latents, in_time, &mut tiles),
                _ if name.starts_with("runs") => in_runs(latents, in_time, &mut whole),
                _ => tiles(latents),
            };
            let (pixels, expected) = (pixels.unwrap(), &recorded[&format!("{name}.pixels")]);
            assert_eq!(pixels.shape(), expected.shape(), "{name}");
            let error = pixels.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error <= TOLERANCE, "{name}: {error:e}");
        }
    }
}
