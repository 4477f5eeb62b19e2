//! One generation: from a prompt or tensors to latents and pictures.

mod binder;
mod blocks;
mod branch;
mod chain;
mod combine;
pub(crate) mod conditioning;
mod decode;
mod decoder;
pub(crate) mod denoiser;
mod expert;
mod forecast;
mod in_stages;
mod metadata;
mod meter;
mod numeric;
pub(crate) mod observer;
mod outcome;
mod parallel;
mod pass;
pub(crate) mod prepare;
pub(crate) mod prompts;
pub(crate) mod request;
mod sampler;
mod samples;
mod stepwise;
mod unit;
