//! Latents to pictures or video: the final ones, and those of a preview.

use std::sync::Arc;

use ndarray::{ArrayD, ArrayViewD, Axis, Ix3, Ix4};

use super::branch::bind_graph;
use super::chain::Named;
use super::decoder::Decoder;
use super::observer::Observer;
use super::request::Request;
use crate::collective::ContextParallel;
use crate::error::{At, Error, Result};
use crate::model::manifest::{Extents, Manifest};
use crate::pixels::tiles::{Cut, in_runs, in_tiles};
use crate::pixels::{Image, Video};
use crate::request::tiles::tile;

/// One for each of the batch.
pub(super) enum Decoded {
    /// The engine has no decode graph, or another rank decodes.
    Nothing,
    Images(Vec<Image>),
    Videos(Vec<Video>),
}

/// How latents `[batch, channels, frames, …]` are cut into runs; not at all where there are few frames.
fn runs(manifest: &Manifest, shape: &[usize]) -> Option<Cut> {
    let video = manifest.video?;
    let runs = video.runs?;
    let cut = Cut {
        size: runs.latent_frames as usize,
        stride: runs.stride as usize,
        scale: video.temporal_downscale as usize,
    };
    (shape[2] > cut.size).then_some(cut)
}

impl Request {
    /// Decodes latents of the request's shape. Videos are decoded one by one: a video needs far more memory than its
    /// latents.
    pub(super) fn decode(&mut self, latents: &ArrayD<f32>) -> Result<Decoded> {
        let engine = Arc::clone(&self.engine);
        let manifest = &engine.directory.manifest;
        let is_helper = engine.context_parallel.as_ref().is_some_and(ContextParallel::is_helper);
        if manifest.decode.is_none() || is_helper {
            return Ok(Decoded::Nothing);
        }
        let unpacked = self.grid.unpack(latents)?;
        let alone = self.fps.is_some() || self.options.decode_slices;
        let at_once = if alone { 1 } else { unpacked.len_of(Axis(0)) };
        let tile = tile(manifest, &self.options, unpacked.shape());
        let runs = runs(manifest, unpacked.shape());
        let mut images = Vec::new();
        let mut videos = Vec::new();
        for part in unpacked.axis_chunks_iter(Axis(0), at_once) {
            let mut whole = |latents: ArrayViewD<'_, f32>| self.pixels(latents);
            let mut in_space = |latents: ArrayViewD<'_, f32>| match tile {
                Some(cut) => in_tiles(latents, cut, &mut whole),
                None => whole(latents),
            };
            let pixels = match runs {
                Some(cut) => in_runs(part, cut, &mut in_space)?,
                None => in_space(part)?,
            };
            let odd = |error| Error::internal("pixels that are not pictures").with_source(error);
            for one in pixels.axis_iter(Axis(0)) {
                match self.fps {
                    None => images.push(Image::from_tensor(one.into_dimensionality::<Ix3>().map_err(odd)?)),
                    Some(fps) => {
                        let frames = one.into_dimensionality::<Ix4>().map_err(odd)?;
                        videos.push(Video { frames: frames.axis_iter(Axis(1)).map(Image::from_tensor).collect(), fps });
                    }
                }
            }
        }
        Ok(if self.fps.is_some() { Decoded::Videos(videos) } else { Decoded::Images(images) })
    }

    /// What the decode graph makes of latents `[batch, channels, (latent frames,) latent height, latent width]`.
    fn pixels(&mut self, latents: ArrayViewD<'_, f32>) -> Result<ArrayD<f32>> {
        self.options.cancel.check()?;
        let decoder = self.decoder(latents.shape())?;
        let (latents_id, image_id) = (self.decoders[decoder].latents, self.decoders[decoder].image);
        let numbers: Vec<f32> = latents.iter().copied().collect();
        self.buffers.write(latents_id, &numbers)?;
        self.decoders[decoder].graph.run().at("decode")?;
        let shape: Vec<usize> = self.buffers.shape(image_id).iter().map(|extent| *extent as usize).collect();
        ArrayD::from_shape_vec(shape, self.buffers.read(image_id)?)
            .map_err(|error| Error::internal("pixels that are not pictures").with_source(error))
    }

    /// The index of the decoder for latents of a shape, which is bound when it is first needed.
    fn decoder(&mut self, shape: &[usize]) -> Result<usize> {
        let is_bound = |decoder: &Decoder| {
            let bound = self.buffers.shape(decoder.latents);
            bound.iter().map(|extent| *extent as usize).eq(shape.iter().copied())
        };
        if let Some(index) = self.decoders.iter().position(is_bound) {
            return Ok(index);
        }
        let engine = Arc::clone(&self.engine);
        let manifest = &engine.directory.manifest;
        let (Some(spec), Some(session)) = (&manifest.decode, &engine.decode) else {
            return Err(Error::internal("no decode graph"));
        };
        let mut extents: Extents = self.extents.clone();
        extents.extend(self.grid.extents_of(shape));
        let mut named = Named::new();
        for tensor in spec.inputs.iter().chain(&spec.outputs) {
            let shape = manifest.shape(tensor, &extents)?;
            named.insert(tensor.clone(), self.buffers.add(manifest.tensor(tensor)?.dtype, &shape)?);
        }
        let (Some(&latents), Some(&image)) = (named.get("image_latents"), named.get("image")) else {
            return Err(Error::internal("a decode graph without its ports"));
        };
        self.decoders.push(Decoder { graph: bind_graph(session, spec, &named, &mut self.buffers)?, latents, image });
        Ok(self.decoders.len() - 1)
    }

    /// Shows the pictures that the model expects at this step, between its prediction and the scheduler's update; of a
    /// video the frame in its middle.
    pub(super) fn preview(&mut self, step: usize, observer: &mut dyn Observer) -> Result<()> {
        let sample = self.schedule.updates[step].sample;
        let prediction = self.buffers.read(self.prediction)?;
        let mut latents = self.latents()?;
        for (number, prediction) in latents.iter_mut().zip(prediction) {
            *number = sample.latents as f32 * *number + sample.prediction as f32 * prediction;
        }
        let images = match self.decode(&latents)? {
            Decoded::Nothing => Vec::new(),
            Decoded::Images(images) => images,
            Decoded::Videos(videos) => {
                let middle = |mut video: Video| {
                    let middle = video.frames.len() / 2;
                    (middle < video.frames.len()).then(|| video.frames.swap_remove(middle))
                };
                videos.into_iter().filter_map(middle).collect()
            }
        };
        let is_over = !images.is_empty() && observer.on_preview(step, &images).is_break();
        if is_over { Err(Error::cancelled()) } else { Ok(()) }
    }
}
