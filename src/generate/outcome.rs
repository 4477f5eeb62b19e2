//! What a request gives: latents, pictures, and the trace of what happened.

use ndarray::ArrayD;

use super::decode::Decoded;
use super::request::{Output, Request};
use crate::model::compute_choice::ComputeChoice;
use crate::trace::{Ranks, StepRecord, Trace, Warning};

impl Request {
    pub(super) fn output(&self, latents: ArrayD<f32>, decoded: Decoded, records: Vec<StepRecord>) -> Output {
        let (images, videos) = match decoded {
            Decoded::Nothing => (Vec::new(), Vec::new()),
            Decoded::Images(images) => (images, Vec::new()),
            Decoded::Videos(videos) => (Vec::new(), videos),
        };
        Output { latents, images, videos, trace: self.trace(records) }
    }

    /// What happened, with the warnings that follow from it.
    pub(super) fn trace(&self, records: Vec<StepRecord>) -> Trace {
        let (width, height) = (self.extents["width"], self.extents["height"]); // Grid::extents gives both.
        let manifest = &self.engine.directory.manifest;
        let mut trace = Trace {
            engine: manifest.name.clone(),
            engine_hash: self.engine.directory.hash.clone(),
            cache: self.options.cache.clone(),
            cache_dtype: self.options.cache_dtype,
            seed: self.options.seed,
            batch: self.batch(),
            width,
            height,
            frames: self.fps.and_then(|_| self.extents.get("frames").copied()),
            fps: self.fps,
            guidance: self.guidance,
            cfg: self.cfg.map(|cfg| cfg.scale(0)),
            cfg_2: self.cfg.filter(|_| manifest.low_noise.is_some()).map(|cfg| cfg.scale(1)),
            decode_tile: self.options.decode_tile,
            guidance_rescale: self.cfg.map(|cfg| cfg.rescale).filter(|rescale| *rescale > 0.0),
            lists: self.experts[0].share.lists.iter().map(|list| list.blocks.len()).collect(),
            records,
            timings: self.timings,
            cache_bytes: self.cache_bytes(),
            tensor_bytes: self.tensor_bytes(),
            compute: ComputeChoice::of(manifest.compute_dtype),
            provider: self.engine.device.spec().to_string(),
            builds: self.engine.loader.counts(),
            captures: self.engine.device.spec().captures().map(|_| self.buffers.captures()),
            context_parallel: self
                .engine
                .context_parallel
                .as_ref()
                .map(|parallel| Ranks { method: parallel.method, ranks: parallel.group.ranks() }),
            memory: self.memory(),
            read_bytes: self.read_bytes.unwrap_or_else(|| self.buffers.read_bytes()),
            warnings: self.warnings.clone(),
        };
        let refused = self.buffers.refused_captures().map(|stage| format!("not captured: {stage}"));
        trace.warnings.extend(refused.map(Warning::Provider));
        trace.judge();
        trace.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        trace
    }
}
