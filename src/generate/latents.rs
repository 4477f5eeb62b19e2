//! Latents on the host: noise, and the packing of a picture's grid into tokens.

use ndarray::{Array4, Array6, ArrayD, Axis, Ix3};

use super::noise::standard_normal;
use crate::error::{Error, Result};
use crate::model::manifest::{Extents, LatentsSpec};

/// The tokens of one picture, and what each holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    channels: usize,
    downscale: usize,
    patch: usize,
    /// Tokens from top to bottom.
    pub rows: usize,
    /// Tokens from left to right.
    pub columns: usize,
}

impl Grid {
    /// The grid of a picture; its sides are multiples of `downscale * patch`.
    pub(crate) fn new(spec: LatentsSpec, width: u64, height: u64) -> Self {
        let cell = spec.downscale * spec.patch;
        Self {
            channels: spec.channels as usize,
            downscale: spec.downscale as usize,
            patch: spec.patch as usize,
            rows: (height / cell) as usize,
            columns: (width / cell) as usize,
        }
    }

    pub(crate) fn tokens(&self) -> usize {
        self.rows * self.columns
    }

    /// The dimensions that follow from the picture's size and the batch.
    pub(crate) fn extents(&self, batch: usize) -> Extents {
        let (height, width) = (self.rows * self.patch, self.columns * self.patch);
        [
            ("batch", batch),
            ("image", self.tokens()),
            ("latent_height", height),
            ("latent_width", width),
            ("height", height * self.downscale),
            ("width", width * self.downscale),
        ]
        .into_iter()
        .map(|(name, extent)| (name.to_owned(), extent as u64))
        .collect()
    }

    /// Noise of `batch` pictures, packed: `[batch, tokens, features]`. Picture k has the seed `seed + k`, so that a
    /// picture does not depend on the others of its batch.
    pub(crate) fn noise(&self, seed: u64, batch: usize) -> Vec<f32> {
        let Grid { channels, patch, rows, columns, .. } = *self;
        let count = channels * rows * patch * columns * patch;
        (0..batch).flat_map(|k| self.pack(standard_normal(seed.wrapping_add(k as u64), count))).collect()
    }

    /// One picture: `[channels, height, width]` → `[tokens, features]`.
    fn pack(&self, noise: Vec<f32>) -> Vec<f32> {
        let Grid { channels: c, patch: p, rows, columns, .. } = *self;
        let shape = (1, c, rows, p, columns, p);
        let grid = Array6::from_shape_vec(shape, noise).unwrap_or_else(|_| Array6::zeros(shape));
        grid.permuted_axes([0, 2, 4, 1, 3, 5]).iter().copied().collect()
    }

    /// `[batch, tokens, features]` → `[batch, channels, latent height, latent width]`.
    ///
    /// # Errors
    /// `Internal` if the latents are not of this grid.
    pub(crate) fn unpack(&self, latents: &ArrayD<f32>) -> Result<Array4<f32>> {
        let Grid { channels: c, patch: p, rows, columns, .. } = *self;
        let misfit = |_| Error::internal("latents that do not fit their grid");
        let batch = latents.len_of(Axis(0));
        let packed = latents.view().into_dimensionality::<Ix3>().map_err(misfit)?;
        let grid = packed.to_shape((batch, rows, columns, c, p, p)).map_err(misfit)?;
        let moved: Vec<f32> = grid.view().permuted_axes([0, 3, 1, 4, 2, 5]).iter().copied().collect();
        Array4::from_shape_vec((batch, c, rows * p, columns * p), moved).map_err(misfit)
    }

    /// (0, row, column) of each token, row-major: `[tokens, 3]`.
    pub(crate) fn positions(&self) -> Vec<f32> {
        let columns = self.columns;
        (0..self.tokens()).flat_map(|t| [0.0, (t / columns) as f32, (t % columns) as f32]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpack_undoes_pack() {
        let grid = Grid::new(LatentsSpec { channels: 3, downscale: 2, patch: 4 }, 32, 16);
        assert_eq!((grid.rows, grid.columns, grid.tokens()), (2, 4, 8));
        let picture: Vec<f32> = (0..3 * 8 * 16).map(|x| x as f32).collect();
        let packed = ArrayD::from_shape_vec(vec![1, 8, 48], grid.pack(picture.clone())).unwrap();
        // The second number of the second token: channel 0, row 0, column 4 + 1.
        assert_eq!(packed[[0, 1, 1]], 5.0);
        assert_eq!(grid.unpack(&packed).unwrap().into_raw_vec_and_offset().0, picture);
    }

    #[test]
    fn a_picture_does_not_depend_on_its_batch() {
        let grid = Grid::new(LatentsSpec { channels: 4, downscale: 1, patch: 2 }, 8, 8);
        let both = grid.noise(7, 2);
        assert_eq!(both[..256], grid.noise(7, 1));
        assert_eq!(both[256..], grid.noise(8, 1));
    }

    #[test]
    fn positions_are_row_major() {
        let grid = Grid::new(LatentsSpec { channels: 1, downscale: 1, patch: 1 }, 3, 2);
        assert_eq!(grid.positions()[..12], [0., 0., 0., 0., 0., 1., 0., 0., 2., 0., 1., 0.]);
    }
}
