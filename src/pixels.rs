//! Pictures and videos as pixels: what decoded tensors become. `tiles.rs` cuts latents for the decoder; `media` writes files.

use ndarray::{ArrayView3, Axis};

use crate::error::{Error, Result};

pub(crate) mod tiles;

/// An RGB picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// `height * width * 3` bytes, row by row, red green blue.
    pub rgb: Vec<u8>,
}

/// Frames of one size.
#[derive(Clone, Debug, PartialEq)]
pub struct Video {
    /// In order.
    pub frames: Vec<Image>,
    /// Frames per second.
    pub fps: f64,
}

impl Image {
    /// From `[3, height, width]` in −1 … 1, with the operations of diffusers' `VaeImageProcessor` in its order:
    /// pixel = (x / 2 + 1/2) · 255, cut to 0 … 255 and rounded, halves to the even number.
    pub(crate) fn from_tensor(tensor: ArrayView3<'_, f32>) -> Self {
        let (height, width) = (tensor.len_of(Axis(1)), tensor.len_of(Axis(2)));
        let pixel = |x: &f32| ((x * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
        let rgb = tensor.permuted_axes([1, 2, 0]).iter().map(pixel).collect();
        Self { width: width as u32, height: height as u32, rgb }
    }

    /// Peak signal-to-noise ratio against a picture of the same size, in dB; infinite for equal pictures.
    ///
    /// # Errors
    /// `Input` if the sizes differ.
    pub fn psnr(&self, other: &Self) -> Result<f64> {
        if (self.width, self.height) != (other.width, other.height) {
            return Err(Error::input(format!(
                "cannot compare a picture of {}x{} with one of {}x{}",
                self.width, self.height, other.width, other.height
            )));
        }
        let squares = self.rgb.iter().zip(&other.rgb).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
        let mean = squares.sum::<f64>() / self.rgb.len() as f64;
        Ok(10.0 * (255.0 * 255.0 / mean).log10())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_rounded_to_the_nearest_and_halves_to_the_even_number() {
        // What NumPy makes of the same float32 numbers: `((x * 0.5 + 0.5).clip(0, 1) * 255).round()`.
        let cases = [
            (-1.0, 0),
            (-1.5, 0),
            (1.5, 255),
            (1.0, 255),
            (0.0, 128),            // 127.5
            (-0.007_843_137, 126), // 126.5
            (0.005, 128),          // 128.14
            (0.0039, 128),         // 127.997
            (0.998, 255),          // 254.745
            (-0.997, 0),           // 0.38
            (-0.99, 1),            // 1.275
            (f32::NAN, 0),
        ];
        for (x, pixel) in cases {
            let tensor = ndarray::Array3::from_elem((3, 1, 1), x);
            assert_eq!(Image::from_tensor(tensor.view()).rgb, [pixel; 3], "{x}");
        }
    }

    #[test]
    fn psnr_in_decibels() {
        let a = Image { width: 1, height: 1, rgb: vec![0, 0, 0] };
        let b = Image { width: 1, height: 1, rgb: vec![255, 255, 255] };
        assert_eq!(a.psnr(&b).unwrap(), 0.0);
        assert_eq!(a.psnr(&a).unwrap(), f64::INFINITY);
        assert!(a.psnr(&Image { width: 2, height: 1, rgb: vec![0; 6] }).is_err());
    }
}
