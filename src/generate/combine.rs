//! Both branches of classifier-free guidance on the device: one batch for both where they are fused, and one prediction
//! of two.

use std::collections::HashMap;

use crate::cache::Branch;
use crate::engine::LoadedEngine;
use crate::error::{Error, Result};
use crate::model::manifest::{CfgMode, DType};
use crate::request::guidance::Cfg;
use crate::runtime::guidance::{GuideInputs, GuideSpec};
use crate::runtime::op::Op;
use crate::runtime::tensor::{BufferId, Buffers, TensorPlace};

/// The guidance of a request, bound.
pub(super) struct Combine {
    cfg: Cfg,
    /// Twice the latents, for a fused batch.
    double: Option<Op>,
    guide: Op,
    scale: BufferId,
    /// The latents of the pictures.
    pub latents: BufferId,
    /// The prediction after guidance.
    pub prediction: BufferId,
}

/// What guidance is made for.
pub(super) struct CombineSpec<'a> {
    pub cfg: Cfg,
    pub predictions: &'a HashMap<Branch, BufferId>,
    /// What embed takes.
    pub model_latents: BufferId,
    /// Of the latents of the pictures.
    pub shape: Vec<i64>,
}

impl Combine {
    pub(super) fn bind(engine: &LoadedEngine, spec: CombineSpec<'_>, buffers: &mut Buffers) -> Result<Self> {
        let CombineSpec { cfg, predictions, model_latents, shape } = spec;
        let missing = || Error::internal("a branch without a prediction");
        let cond = *predictions.get(&Branch::Cond).ok_or_else(missing)?;
        let is_fused = cfg.mode == CfgMode::Fused;
        let (latents, prediction, predictions) = if is_fused {
            (buffers.add(DType::F32, &shape)?, buffers.add(DType::F32, &shape)?, vec![cond])
        } else {
            (model_latents, cond, vec![cond, *predictions.get(&Branch::Uncond).ok_or_else(missing)?])
        };
        let double = if is_fused {
            let stack = engine.kernels.stack(DType::F32, shape.len())?;
            Some(stack.bind(buffers, latents, latents, model_latents)?)
        } else {
            None
        };
        let scale = buffers.add_at(TensorPlace::Host, DType::F32, &[1])?;
        let rescale = if cfg.rescale > 0.0 {
            let id = buffers.add_at(TensorPlace::Host, DType::F32, &[1])?;
            buffers.write(id, &[cfg.rescale])?;
            Some(id)
        } else {
            None
        };
        let spec = GuideSpec {
            rank: shape.len(),
            formula: cfg.formula,
            rescales: rescale.is_some(),
            halves: is_fused.then_some(cfg.cond_first),
        };
        let inputs = GuideInputs { predictions: &predictions, scale, rescale };
        let guide = engine.kernels.guide(spec)?.bind(buffers, &inputs, prediction)?;
        Ok(Self { cfg, double, guide, scale, latents, prediction })
    }

    /// Before the branches run.
    pub(super) fn begin(&self) -> Result<()> {
        self.double.as_ref().map_or(Ok(()), Op::run)
    }

    /// After they have run.
    pub(super) fn end(&self, expert: usize, timestep: f32, steps: usize, buffers: &mut Buffers) -> Result<()> {
        buffers.write(self.scale, &[self.cfg.scale_at(expert, timestep, steps)])?;
        self.guide.run()
    }
}
