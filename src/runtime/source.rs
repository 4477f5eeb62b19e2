//! A graph on its way to a session.

use std::path::Path;

use super::provider::Role;

/// Where the weights live once a graph is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightsMode {
    /// ONNX Runtime folds casts and packs matrices: fastest to run, a private f32 copy of all weights.
    Packed,
    /// Weights stay in the page cache and are converted while running: no private copy, slower steps.
    Mapped,
}

/// A graph to be loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionSource<'g> {
    /// For errors.
    pub name: &'g str,
    /// The ONNX file.
    pub model: &'g [u8],
    /// Where its external data lies.
    pub folder: Option<&'g Path>,
    pub weights: WeightsMode,
    /// Whether nodes convert parameters.
    pub casts_weights: bool,
    /// Dimensions of which the extent is known.
    pub fixed: &'g [(String, u64)],
    pub role: Role,
}
