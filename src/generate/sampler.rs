//! Moves the latents on the device: one weighted sum for them, and one for each tensor that the scheduler keeps.

use crate::engine::LoadedEngine;
use crate::error::{Error, Result};
use crate::model::manifest::DType;
use crate::request::noise::Generator;
use crate::request::scheduler::{Schedule, Terms, Update};
use crate::runtime::op::Op;
use crate::runtime::tensor::{BufferId, Buffers, TensorPlace};

/// Where the noise of stochastic schedulers comes from.
pub(super) enum NoiseSource {
    /// One generator for each picture.
    Drawn(Vec<Generator>),
    /// `[steps, batch, …]`, one step after the other.
    Given(Vec<f32>),
}

/// The scheduler's share of a request.
pub(super) struct Sampler {
    /// For even and for odd steps, which read what the other ones kept: each kept tensor, then the latents, which are
    /// written in place.
    targets: [Vec<UpdateTarget>; 2],
    kept: usize,
    noise: Option<(BufferId, NoiseSource)>,
}

/// One weighted sum.
struct UpdateTarget {
    sum: Op,
    /// Of latents, prediction, kept tensors and noise, each f32 `[1]`.
    weights: Vec<BufferId>,
}

/// What a sampler is made for. `latents` and `prediction` have one shape.
pub(super) struct SamplerSpec<'a> {
    pub schedule: &'a Schedule,
    pub latents: BufferId,
    pub prediction: BufferId,
    pub noise: NoiseSource,
}

impl Sampler {
    pub(super) fn bind(engine: &LoadedEngine, spec: SamplerSpec<'_>, buffers: &mut Buffers) -> Result<Self> {
        let SamplerSpec { schedule, latents, prediction, noise: source } = spec;
        let shape = buffers.shape(latents).to_vec();
        let sums = engine.kernels.sums(shape.len())?;
        let mut tensors =
            |count: usize| -> Result<Vec<BufferId>> { (0..count).map(|_| buffers.add(DType::F32, &shape)).collect() };
        let kept = [tensors(schedule.kept)?, tensors(schedule.kept)?];
        let noise =
            schedule.is_stochastic().then(|| buffers.add_at(TensorPlace::Host, DType::F32, &shape)).transpose()?;
        let mut targets = [Vec::new(), Vec::new()];
        for (parity, targets) in targets.iter_mut().enumerate() {
            let inputs: Vec<BufferId> =
                [latents, prediction].into_iter().chain(kept[parity].iter().copied()).chain(noise).collect();
            for out in kept[1 - parity].iter().copied().chain([latents]) {
                let weights = inputs
                    .iter()
                    .map(|_| buffers.add_at(TensorPlace::Host, DType::F32, &[1]))
                    .collect::<Result<Vec<_>>>()?;
                targets.push(UpdateTarget { sum: sums.bind(buffers, &inputs, &weights, out)?, weights });
            }
        }
        Ok(Self { targets, kept: schedule.kept, noise: noise.map(|id| (id, source)) })
    }

    /// The step `step`: latents and prediction become the next latents.
    pub(super) fn step(&mut self, step: usize, update: &Update, buffers: &mut Buffers) -> Result<()> {
        if let Some((id, source)) = &mut self.noise {
            let count = buffers.shape(*id).iter().product::<i64>() as usize;
            match source {
                NoiseSource::Given(numbers) => {
                    let numbers = numbers.get(step * count..(step + 1) * count);
                    buffers.write(*id, numbers.ok_or_else(|| Error::internal("noise for too few steps"))?)?;
                }
                NoiseSource::Drawn(generators) => {
                    let each = count / generators.len().max(1);
                    let mut numbers = Vec::new();
                    for _ in 0..update.draws {
                        numbers = generators.iter_mut().flat_map(|generator| generator.normal(each)).collect();
                    }
                    if update.draws > 0 {
                        buffers.write(*id, &numbers)?;
                    }
                }
            }
        }
        let outs = update.kept.iter().chain([&update.latents]);
        for (target, terms) in self.targets[step % 2].iter().zip(outs) {
            let Terms { latents, prediction, kept, noise } = terms;
            let weights = [latents, prediction].into_iter().chain(&kept[..self.kept]).chain([noise]);
            for (id, weight) in target.weights.iter().zip(weights) {
                buffers.write(*id, &[*weight as f32])?;
            }
            target.sum.run()?;
        }
        Ok(())
    }
}
