//! One generation: from a prompt or tensors to latents and pictures.

mod branch;
pub(crate) mod cache_dtype;
pub(crate) mod cancel;
mod chain;
mod combine;
mod conditioning;
mod decode;
pub(crate) mod denoiser;
mod forecast;
mod guidance;
pub(crate) mod image;
pub(crate) mod inputs;
mod latents;
pub(crate) mod lists;
pub(crate) mod memory;
mod noise;
mod numeric;
pub(crate) mod observer;
pub(crate) mod prepare;
pub(crate) mod request;
mod sampler;
mod samples;
mod scheduler;
mod stepwise;
pub(crate) mod text;
mod unit;
pub(crate) mod video;
