//! How the decoder is asked to work in parts, and whether it can.

use super::latents::Grid;
use super::options::RequestOptions;
use crate::error::{Error, Result};
use crate::model::manifest::Manifest;
use crate::pixels::tiles::Cut;

/// Tiles overlap by a part of their side: a quarter, as in diffusers.
const TILE_OVERLAP: u64 = 4;

/// Refuses options of the decoder that have no effect, and tiles that it cannot make.
///
/// # Errors
/// `Usage`.
pub(crate) fn check(manifest: &Manifest, options: &RequestOptions, grid: &Grid, batch: usize) -> Result<()> {
    let refuse = |name, why: &str| Err(Error::option(name, format!("has no effect: {why}; leave it out")));
    let asked = [("decode-tile", options.decode_tile.is_some()), ("decode-slices", options.decode_slices)];
    if manifest.decode.is_none()
        && let Some((name, _)) = asked.iter().find(|(_, is_asked)| *is_asked)
    {
        return refuse(name, "this engine has no decode graph and gives latents");
    }
    if options.decode_slices && manifest.video.is_some() {
        return refuse("decode-slices", "videos are decoded one by one");
    }
    if options.decode_slices && batch == 1 {
        return refuse("decode-slices", "there is one picture");
    }
    let Some(pixels) = options.decode_tile else { return Ok(()) };
    let multiple = TILE_OVERLAP * manifest.latents.downscale;
    if pixels == 0 || pixels % multiple != 0 {
        return Err(Error::option("decode-tile", format!("is {pixels}; expected a multiple of {multiple} pixels")));
    }
    match tile(manifest, options, &grid.latents_shape(1)) {
        Some(_) => Ok(()),
        None => refuse("decode-tile", "the picture is not larger than one tile"),
    }
}

/// How latents `[…, height, width]` are cut into tiles; not at all where they are no larger than one.
pub(crate) fn tile(manifest: &Manifest, options: &RequestOptions, shape: &[usize]) -> Option<Cut> {
    let scale = manifest.latents.downscale;
    let size = (options.decode_tile? / scale) as usize;
    let cut = Cut { size, stride: size - size / TILE_OVERLAP as usize, scale: scale as usize };
    shape.iter().rev().take(2).any(|extent| *extent > size).then_some(cut)
}
