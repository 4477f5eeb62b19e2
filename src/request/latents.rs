//! Latents on the host: their shape, noise, and the packing of a grid of cells into tokens.

use ndarray::{ArrayD, Axis};

use super::noise::Generator;
use crate::error::{Error, Result};
use crate::model::manifest::{Extents, LatentsSpec, Layout, VideoSpec};

/// The tokens of one picture or video, and what each holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    layout: Layout,
    channels: usize,
    downscale: usize,
    patch: usize,
    /// Frames of pixels per latent frame; none for pictures.
    temporal: Option<usize>,
    /// Latent frames; 1 for pictures.
    pub frames: usize,
    /// Tokens from top to bottom.
    pub rows: usize,
    /// Tokens from left to right.
    pub columns: usize,
}

impl Grid {
    /// The grid of a picture whose sides are multiples of `downscale * patch`, or of a video of so many frames, a multiple of
    /// its temporal downscale and one more.
    pub(crate) fn new(spec: LatentsSpec, video: Option<(VideoSpec, u64)>, width: u64, height: u64) -> Self {
        let cell = spec.downscale * spec.patch;
        let frames = video.map_or(1, |(video, frames)| (frames - 1) / video.temporal_downscale + 1);
        Self {
            layout: spec.layout,
            channels: spec.channels as usize,
            downscale: spec.downscale as usize,
            patch: spec.patch as usize,
            temporal: video.map(|(video, _)| video.temporal_downscale as usize),
            frames: frames as usize,
            rows: (height / cell) as usize,
            columns: (width / cell) as usize,
        }
    }

    pub(crate) fn tokens(&self) -> usize {
        self.frames * self.rows * self.columns
    }

    /// Frames of pixels.
    pub(crate) fn pixel_frames(&self) -> usize {
        self.temporal.map_or(1, |temporal| (self.frames - 1) * temporal + 1)
    }

    fn sides(&self) -> [usize; 2] {
        [self.rows * self.patch, self.columns * self.patch]
    }

    /// The dimensions that follow from the size and the batch.
    pub(crate) fn extents(&self, batch: usize) -> Extents {
        let [height, width] = self.sides();
        [
            ("batch", batch),
            ("image", self.tokens()),
            ("rows", self.rows),
            ("columns", self.columns),
            ("latent_frames", self.frames),
            ("latent_height", height),
            ("latent_width", width),
            ("frames", self.pixel_frames()),
            ("height", height * self.downscale),
            ("width", width * self.downscale),
        ]
        .into_iter()
        .map(|(name, extent)| (name.to_owned(), extent as u64))
        .collect()
    }

    /// The shape of the latents of so many pictures, as the decoder takes them.
    pub(crate) fn latents_shape(&self, batch: usize) -> Vec<usize> {
        let [height, width] = self.sides();
        let mut shape = vec![batch, self.channels, height, width];
        if self.temporal.is_some() {
            shape.insert(2, self.frames);
        }
        shape
    }

    /// The dimensions of a decoder that takes a part of the latents, of this shape.
    pub(crate) fn extents_of(&self, latents: &[usize]) -> Extents {
        let [height, width] = [latents[latents.len() - 2], latents[latents.len() - 1]];
        let mut extents = vec![
            ("batch", latents[0]),
            ("latent_height", height),
            ("latent_width", width),
            ("height", height * self.downscale),
            ("width", width * self.downscale),
        ];
        if let Some(temporal) = self.temporal {
            extents.extend([("latent_frames", latents[2]), ("frames", (latents[2] - 1) * temporal + 1)]);
        }
        extents.into_iter().map(|(name, extent)| (name.to_owned(), extent as u64)).collect()
    }

    /// The shape of the latents of so many pictures, as the transformer takes them.
    pub(crate) fn shape(&self, batch: usize) -> Vec<i64> {
        let [height, width] = self.sides();
        let (c, f) = (self.channels, self.frames);
        let shape = match self.layout {
            Layout::Tokens => vec![batch, self.tokens(), c * self.patch * self.patch],
            Layout::Bchw => vec![batch, c, height, width],
            Layout::Bcfhw => vec![batch, c, f, height, width],
            Layout::Bfchw => vec![batch, f, c, height, width],
        };
        shape.into_iter().map(|extent| extent as i64).collect()
    }

    /// The first noise of each picture, in the order of [`shape`](Self::shape): one generator for each, so that a picture
    /// does not depend on the others of its batch.
    pub(crate) fn noise(&self, generators: &mut [Generator]) -> Vec<f32> {
        let [height, width] = self.sides();
        let count = self.channels * self.frames * height * width;
        let packed = |noise: Vec<f32>| if self.layout == Layout::Tokens { self.pack(noise) } else { noise };
        generators.iter_mut().flat_map(|generator| packed(generator.normal(count))).collect()
    }

    /// The axes of one picture's cells: channels, frames, rows, and columns with the cells of each.
    fn cells(&self, batch: usize) -> [usize; 7] {
        [batch, self.channels, self.frames, self.rows, self.patch, self.columns, self.patch]
    }

    /// One picture: `[channels, frames, height, width]` → `[tokens, features]`.
    fn pack(&self, noise: Vec<f32>) -> Vec<f32> {
        let shape = self.cells(1);
        let cells = ArrayD::from_shape_vec(shape.to_vec(), noise).unwrap_or_else(|_| ArrayD::zeros(shape.to_vec()));
        cells.permuted_axes(vec![0, 2, 3, 5, 1, 4, 6]).iter().copied().collect()
    }

    /// Latents as the decoder takes them: `[batch, channels, (latent frames,) latent height, latent width]`.
    ///
    /// # Errors
    /// `Internal` if the latents are not of this grid.
    pub(crate) fn unpack(&self, latents: &ArrayD<f32>) -> Result<ArrayD<f32>> {
        let misfit = |_| Error::internal("latents that do not fit their grid");
        let batch = latents.len_of(Axis(0));
        let turned: Vec<f32> = match self.layout {
            Layout::Tokens => {
                let [_, c, f, rows, p, columns, _] = self.cells(batch);
                let cells = latents.to_shape(vec![batch, f, rows, columns, c, p, p]).map_err(misfit)?;
                cells.view().permuted_axes(vec![0, 4, 1, 2, 5, 3, 6]).iter().copied().collect()
            }
            Layout::Bfchw => latents.view().permuted_axes(vec![0, 2, 1, 3, 4]).iter().copied().collect(),
            Layout::Bchw | Layout::Bcfhw => latents.iter().copied().collect(),
        };
        ArrayD::from_shape_vec(self.latents_shape(batch), turned).map_err(misfit)
    }

    /// (latent frame, row, column) of each token, frame by frame and row by row: `[tokens, 3]`.
    pub(crate) fn positions(&self) -> Vec<f32> {
        let (rows, columns) = (self.rows, self.columns);
        let position = |t: usize| [t / (rows * columns), t / columns % rows, t % columns];
        (0..self.tokens()).flat_map(position).map(|number| number as f32).collect()
    }

    /// Latent frames, rows and columns.
    pub(crate) fn counts(&self) -> [f32; 3] {
        [self.frames, self.rows, self.columns].map(|count| count as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(layout: Layout, channels: u64, downscale: u64, patch: u64) -> LatentsSpec {
        LatentsSpec { layout, channels, downscale, patch }
    }

    fn video(temporal_downscale: u64) -> VideoSpec {
        let frames = crate::model::manifest::FramesSpec { default: 1, min: 1, max: 1 };
        VideoSpec { frames, temporal_downscale, fps: 8.0, runs: None }
    }

    #[test]
    fn unpack_undoes_pack() {
        let grid = Grid::new(spec(Layout::Tokens, 3, 2, 4), None, 32, 16);
        assert_eq!((grid.rows, grid.columns, grid.tokens()), (2, 4, 8));
        let picture: Vec<f32> = (0..3 * 8 * 16).map(|x| x as f32).collect();
        let packed = ArrayD::from_shape_vec(vec![1, 8, 48], grid.pack(picture.clone())).unwrap();
        // The second number of the second token: channel 0, row 0, column 4 + 1.
        assert_eq!(packed[[0, 1, 1]], 5.0);
        let unpacked = grid.unpack(&packed).unwrap();
        assert_eq!(unpacked.shape(), [1, 3, 8, 16]);
        assert_eq!(unpacked.into_raw_vec_and_offset().0, picture);
    }

    #[test]
    fn every_layout_of_a_video_is_decoded_as_channels_of_frames() {
        // 2 channels, 3 latent frames of 2 x 4 cells; a cell's value says where it is.
        let value = |c: usize, f: usize, y: usize, x: usize| (1000 * c + 100 * f + 10 * y + x) as f32;
        let fill = |shape: [usize; 4], at: fn([usize; 4]) -> [usize; 4]| -> Vec<f32> {
            let cells = ndarray::Array4::from_shape_fn(shape, |(a, b, c, d)| {
                let [c, f, y, x] = at([a, b, c, d]);
                value(c, f, y, x)
            });
            cells.iter().copied().collect()
        };
        let expected = fill([2, 3, 2, 4], |at| at);
        for (layout, patch, numbers) in [
            (Layout::Bcfhw, 2, expected.clone()),
            (Layout::Bfchw, 2, fill([3, 2, 2, 4], |[f, c, y, x]| [c, f, y, x])),
            (Layout::Tokens, 1, fill([3, 2, 4, 2], |[f, y, x, c]| [c, f, y, x])),
        ] {
            let grid = Grid::new(spec(layout, 2, 8, patch), Some((video(4), 9)), 32, 16);
            let shape: Vec<usize> = grid.shape(1).iter().map(|extent| *extent as usize).collect();
            let latents = ArrayD::from_shape_vec(shape, numbers).unwrap();
            let decoded = grid.unpack(&latents).unwrap();
            assert_eq!(decoded.shape(), [1, 2, 3, 2, 4], "{layout:?}");
            assert_eq!(decoded.into_raw_vec_and_offset().0, expected, "{layout:?}");
            assert_eq!((grid.frames, grid.pixel_frames()), (3, 9));
        }
    }

    #[test]
    fn a_picture_does_not_depend_on_its_batch() {
        let grid = Grid::new(spec(Layout::Tokens, 4, 1, 2), None, 8, 8);
        let noise = |seeds: &[u64]| {
            let mut generators: Vec<Generator> = seeds.iter().map(|seed| Generator::new(*seed)).collect();
            grid.noise(&mut generators)
        };
        let both = noise(&[7, 8]);
        assert_eq!(both[..256], noise(&[7]));
        assert_eq!(both[256..], noise(&[8]));
    }

    #[test]
    fn positions_are_row_major() {
        let grid = Grid::new(spec(Layout::Tokens, 1, 1, 1), None, 3, 2);
        assert_eq!(grid.positions()[..12], [0., 0., 0., 0., 0., 1., 0., 0., 2., 0., 1., 0.]);
        let grid = Grid::new(spec(Layout::Bcfhw, 1, 1, 1), Some((video(4), 5)), 1, 2);
        assert_eq!(grid.positions(), [0., 0., 0., 0., 1., 0., 1., 0., 0., 1., 1., 0.]);
        assert_eq!(grid.counts(), [2., 2., 1.]);
    }
}
