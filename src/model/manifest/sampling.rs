//! The fields that say what is made, and of what: the layout of latents, sizes, frames, and what the model predicts.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Prediction {
    Velocity {},
    /// The clean sample x0; velocity = (x - x0) / max(sigma, min_sigma).
    Sample {
        min_sigma: f64,
    },
    /// The noise: x = sqrt(a) x0 + sqrt(1 - a) noise.
    Epsilon {},
    /// sqrt(a) noise - sqrt(1 - a) x0.
    #[serde(rename = "v_prediction")]
    Change {},
}

/// The order of the axes of the latents, as the transformer takes and gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Layout {
    /// `[batch, tokens, features]`.
    Tokens,
    /// `[batch, channels, height, width]`.
    Bchw,
    /// `[batch, channels, frames, height, width]`.
    Bcfhw,
    /// `[batch, frames, channels, height, width]`.
    Bfchw,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LatentsSpec {
    pub layout: Layout,
    pub channels: u64,
    /// Pixels per latent cell along each side.
    pub downscale: u64,
    /// Latent cells per token along each side.
    pub patch: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VideoSpec {
    pub frames: FramesSpec,
    /// Frames per latent frame, after the first, which has a latent frame of its own.
    pub temporal_downscale: u64,
    /// Frames per second when none are asked for.
    pub fps: f64,
    /// Where the original decodes a long video in overlapping runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<RunsSpec>,
}

/// Overlapping runs of latent frames, whose frames are blended.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunsSpec {
    /// The most latent frames that are decoded whole; a run has one more, from which it goes on.
    pub latent_frames: u64,
    /// Latent frames from one run to the next.
    pub stride: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FramesSpec {
    pub default: u64,
    pub min: u64,
    pub max: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SizeSpec {
    /// `[width, height]` in pixels.
    pub default: [u64; 2],
    pub min: u64,
    pub max: u64,
    pub multiple_of: u64,
}
