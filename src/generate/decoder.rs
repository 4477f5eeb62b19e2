//! The decode graph, and the shapes of latents that it must take.

use crate::engine::LoadedEngine;
use crate::error::Result;
use crate::request::latents::Grid;
use crate::request::options::RequestOptions;
use crate::request::tiles::tile;
use crate::runtime::op::Op;
use crate::runtime::tensor::BufferId;

/// The decode graph, bound to tensors of the request.
pub(super) struct Decoder {
    pub graph: Op,
    /// `[batch, channels, (latent frames,) latent height, latent width]`
    pub latents: BufferId,
    /// `[batch, 3, (frames,) height, width]`
    pub image: BufferId,
}

/// A provider that compiles has to have been told of shapes as small as those at the edges. The options were checked.
///
/// # Errors
/// `Input` where it was not.
pub(super) fn check_tiles(engine: &LoadedEngine, options: &RequestOptions, grid: &Grid) -> Result<()> {
    let whole = grid.latents_shape(1);
    let Some(cut) = tile(&engine.directory.manifest, options, &whole) else { return Ok(()) };
    let [height, width] = [whole[whole.len() - 2], whole[whole.len() - 1]];
    for rows in cut.pieces(height) {
        for columns in cut.pieces(width) {
            let mut shape = whole.clone();
            shape.splice(whole.len() - 2.., [rows.len(), columns.len()]);
            engine.loader.check_extents(&grid.extents_of(&shape)).map_err(|error| error.about("decode-tile"))?;
        }
    }
    Ok(())
}
