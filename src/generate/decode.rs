//! Latents to pictures: the final ones, and those of a preview.

use std::sync::Arc;

use ndarray::{ArrayD, Axis};

use super::branch::bind_graph;
use super::chain::Named;
use super::image::Image;
use super::observer::Observer;
use super::request::Request;
use crate::error::{At, Error, Result};
use crate::runtime::ops::Op;
use crate::runtime::tensor::BufferId;

/// The decode graph, bound to tensors of the request.
pub(super) struct Decoder {
    graph: Op,
    /// `[batch, channels, latent height, latent width]`
    latents: BufferId,
    /// `[batch, 3, height, width]`
    image: BufferId,
}

impl Request {
    /// One picture for each of `latents`, `[batch, tokens, features]`; none for an engine without a decode graph.
    pub(super) fn decode(&mut self, latents: &ArrayD<f32>) -> Result<Vec<Image>> {
        let Some(decoder) = self.decoder()? else { return Ok(Vec::new()) };
        let (latents_id, image_id) = (decoder.latents, decoder.image);
        let unpacked: Vec<f32> = self.grid.unpack(latents)?.iter().copied().collect();
        self.buffers.write(latents_id, &unpacked)?;
        if let Some(decoder) = &self.decoder {
            decoder.graph.run().at("decode")?;
        }
        let shape: Vec<usize> = self.buffers.shape(image_id).iter().map(|extent| *extent as usize).collect();
        let pixels = ArrayD::from_shape_vec(shape, self.buffers.read(image_id)?)
            .map_err(|error| Error::internal("pixels of an impossible shape").with_source(error))?;
        pixels
            .axis_iter(Axis(0))
            .map(|picture| picture.into_dimensionality().map(Image::from_tensor))
            .collect::<std::result::Result<_, _>>()
            .map_err(|error| Error::internal("pixels that are not pictures").with_source(error))
    }

    fn decoder(&mut self) -> Result<Option<&Decoder>> {
        let engine = Arc::clone(&self.engine);
        let manifest = &engine.directory.manifest;
        let (Some(spec), Some(session)) = (&manifest.decode, &engine.decode) else { return Ok(None) };
        if self.decoder.is_none() {
            let mut named = Named::new();
            for tensor in spec.inputs.iter().chain(&spec.outputs) {
                let shape = manifest.shape(tensor, &self.extents)?;
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

    /// Shows the pictures that the model expects at this step, between its prediction and the scheduler's update.
    pub(super) fn preview(&mut self, step: usize, observer: &mut dyn Observer) -> Result<()> {
        let to_picture = self.schedule.to_picture(step, self.engine.directory.manifest.prediction);
        let prediction = self.buffers.read(self.prediction)?;
        let mut latents = self.latents()?;
        for (number, prediction) in latents.iter_mut().zip(prediction) {
            *number = to_picture.keep * *number + to_picture.take * prediction;
        }
        let images = self.decode(&latents)?;
        let is_over = !images.is_empty() && observer.on_preview(step, &images).is_break();
        if is_over { Err(Error::cancelled()) } else { Ok(()) }
    }
}
