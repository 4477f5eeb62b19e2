//! What a user decides about one generation.

use super::cache_place::CachePlace;
use crate::cache::PolicyConfig;
use crate::cancel::CancelToken;
use crate::model::cache_dtype::CacheDType;

/// How one generation runs. What is left out takes the engine's default.
#[derive(Clone, Debug, Default)]
pub struct RequestOptions {
    /// The cache policy. Default: none.
    pub cache: PolicyConfig,
    /// The dtype of the tensors that the cache keeps: half the memory for a little accuracy. Default: the streams'.
    pub cache_dtype: CacheDType,
    /// Where the tensors of the cache lie, if the provider has memory of its own. Default: in the provider's memory.
    pub cache_place: CachePlace,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Guidance scale, dimensionless; an error for a model without guidance. Classifier-free guidance runs both branches
    /// above 1 (some models: above 0) only; with any other scale the prompt alone decides, at half the work.
    pub guidance: Option<f32>,
    /// Guidance scale of the second transformer of a model that has two, as diffusers' `guidance_scale_2`; if only
    /// `guidance` is given, both have that. Whether both branches run is decided by the first scale, for all steps.
    pub guidance_2: Option<f32>,
    /// Scale of classifier-free guidance for a model that does not have it by itself: a second run a step with the
    /// negative prompt, as diffusers' `true_cfg_scale`; an error for 1 or less, and without a negative prompt.
    pub true_cfg: Option<f32>,
    /// How far classifier-free guidance is drawn back to the spread of the cond prediction, 0 … 1, as diffusers'
    /// `guidance_rescale`.
    pub guidance_rescale: Option<f32>,
    /// `(width, height)` in pixels.
    pub size: Option<(u64, u64)>,
    /// Frames of a video.
    pub frames: Option<u64>,
    /// Frames per second of a video.
    pub fps: Option<f64>,
    /// Pictures. Default: 1, or what the input tensors say. A batch decides together, on the mean over its pictures.
    pub batch: Option<usize>,
    /// Each picture of a batch decides for itself, as if it were alone; those that skip leave the batch for the middle
    /// blocks. Only for policies that decide per step, without calibrators.
    pub per_sample: bool,
    /// Decode in tiles of so many pixels a side, which overlap by a quarter and are blended, as diffusers' `enable_tiling`
    /// does: less memory for large pictures, which then differ a little. A multiple of four latent cells.
    pub decode_tile: Option<u64>,
    /// Decode the pictures of a batch one by one: less memory, the same pictures.
    pub decode_slices: bool,
    /// Seed of the first picture; picture k of a batch has the seed `seed + k`.
    pub seed: u64,
    /// Most bytes that the policy may keep on the device: a request that would keep more is refused before anything is
    /// allocated, and so is a limit on a policy that keeps nothing. Default: no limit.
    pub cache_memory: Option<u64>,
    /// Stops the generation from another thread.
    pub cancel: CancelToken,
}

/// Who combines the guidance branches of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuidanceBy {
    /// The library, with the scale of the options: one call a step.
    Library,
    /// The host: one call a branch and step, always both; what the manifest names stands for a negative prompt that is not
    /// given. Options that say how to combine are refused.
    Host,
}
