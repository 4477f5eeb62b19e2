//! Videos: frames, and the files that hold them.

use super::image::Image;

/// Frames of one size.
#[derive(Clone, Debug, PartialEq)]
pub struct Video {
    /// In order.
    pub frames: Vec<Image>,
    /// Frames per second.
    pub fps: f64,
}
