//! Latents to pictures or video: the final ones, and those of a preview.

use std::sync::Arc;

use ndarray::{ArrayD, Axis, Ix3, Ix4};

use super::branch::bind_graph;
use super::chain::Named;
use super::image::Image;
use super::observer::Observer;
use super::request::Request;
use super::video::Video;
use crate::error::{At, Error, Result};
use crate::model::manifest::Extents;
use crate::runtime::ops::Op;
use crate::runtime::tensor::BufferId;

/// The decode graph, bound to tensors of the request.
pub(super) struct Decoder {
    graph: Op,
    /// `[batch, channels, (latent frames,) latent height, latent width]`
    latents: BufferId,
    /// `[batch, 3, (frames,) height, width]`
    image: BufferId,
}

/// One for each of the batch.
pub(super) enum Decoded {
    /// The engine has no decode graph.
    Nothing,
    Images(Vec<Image>),
    Videos(Vec<Video>),
}

impl Request {
    /// Decodes latents of the request's shape. Videos are decoded one by one: a video needs far more memory than its
    /// latents.
    pub(super) fn decode(&mut self, latents: &ArrayD<f32>) -> Result<Decoded> {
        let Some(decoder) = self.decoder()? else { return Ok(Decoded::Nothing) };
        let (latents_id, image_id) = (decoder.latents, decoder.image);
        let unpacked = self.grid.unpack(latents)?;
        let at_once = self.buffers.shape(latents_id)[0] as usize;
        let mut images = Vec::new();
        let mut videos = Vec::new();
        for part in unpacked.axis_chunks_iter(Axis(0), at_once) {
            let numbers: Vec<f32> = part.iter().copied().collect();
            self.buffers.write(latents_id, &numbers)?;
            self.options.cancel.check()?;
            if let Some(decoder) = &self.decoder {
                decoder.graph.run().at("decode")?;
            }
            let shape: Vec<usize> = self.buffers.shape(image_id).iter().map(|extent| *extent as usize).collect();
            let odd = |error| Error::internal("pixels that are not pictures").with_source(error);
            let pixels = ArrayD::from_shape_vec(shape, self.buffers.read(image_id)?).map_err(odd)?;
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

    fn decoder(&mut self) -> Result<Option<&Decoder>> {
        let engine = Arc::clone(&self.engine);
        let manifest = &engine.directory.manifest;
        let (Some(spec), Some(session)) = (&manifest.decode, &engine.decode) else { return Ok(None) };
        if self.decoder.is_none() {
            let mut extents: Extents = self.extents.clone();
            if self.fps.is_some() {
                extents.insert("batch".into(), 1);
            }
            let mut named = Named::new();
            for tensor in spec.inputs.iter().chain(&spec.outputs) {
                let shape = manifest.shape(tensor, &extents)?;
                named.insert(tensor.clone(), self.buffers.add(manifest.tensor(tensor)?.dtype, &shape)?);
            }
            let (Some(&latents), Some(&image)) = (named.get("image_latents"), named.get("image")) else {
                return Err(Error::internal("a decode graph without its ports"));
            };
            self.decoder =
                Some(Decoder { graph: bind_graph(session, spec, &named, &mut self.buffers)?, latents, image });
        }
        Ok(self.decoder.as_ref())
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
