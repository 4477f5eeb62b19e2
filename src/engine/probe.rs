//! One part of the transformer alone, on tensors that someone else computed: how a model is compared with its original.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use ndarray::ArrayD;

use super::Engine;
use super::stages::StageGraph;
use crate::cancel::CancelToken;
use crate::error::{At, Error, Result};
use crate::model::graph::output_port;
use crate::model::manifest::{Axis, Extents};
use crate::plan::Stage;
use crate::request::inputs;
use crate::runtime::op::Op;
use crate::runtime::provider::Role;
use crate::runtime::tensor::{BufferId, Buffers, TensorPlace};

/// A part of the transformer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelPart {
    /// From the inputs of a step to the streams.
    Embed,
    /// Consecutive blocks.
    Blocks(Range<usize>),
    /// From the streams to the prediction.
    Final,
}

impl Engine {
    /// Runs one part of the transformer on `tensors`, by the manifest's names; those that the part does not take are left
    /// alone. `expert` counts the transformers of a model that has several, from 0. Gives what the part gives. The part's
    /// graphs are loaded for this call.
    ///
    /// # Errors
    /// `Usage` for a transformer or blocks that the model does not have; `Input` for a tensor that is missing, of another
    /// shape than its axes allow, or that holds fractions where the model takes integers; `Runtime`.
    pub fn probe(
        &self,
        expert: usize,
        part: &ModelPart,
        tensors: &BTreeMap<String, ArrayD<f32>>,
    ) -> Result<BTreeMap<String, ArrayD<f32>>> {
        let loaded = self.loaded();
        let manifest = &loaded.directory.manifest;
        let experts = loaded.directory.experts.len();
        if expert >= experts {
            return Err(Error::usage(format!("expert {expert} of a model that has {experts}; they count from 0")));
        }
        let stage = stage(part, manifest.blocks.len())?;
        let StageGraph { graph, inputs, outputs } = StageGraph::new(&loaded.directory, expert, &stage)?;
        let sessions =
            loaded.loader.sessions(&loaded.device, Role::Model, &[graph.as_ref()], &CancelToken::default())?;
        let session = sessions.first().ok_or_else(|| Error::internal("a stage without a session"))?;

        let mut buffers = Buffers::new(&loaded.memory, TensorPlace::Device)?;
        let mut extents = Extents::new();
        let mut bound: Vec<(String, BufferId)> = Vec::new();
        for name in &inputs {
            let tensor = tensors.get(name).ok_or_else(|| Error::input(format!("no `{name}`")).about(name))?;
            let spec = manifest.tensor(name)?;
            let shape = fit(name, &spec.shape, tensor.shape(), &mut extents)?;
            let id = buffers.add(spec.dtype, &shape)?;
            inputs::write(name, id, &inputs::numbers(tensor), &mut buffers)?;
            bound.push((name.clone(), id));
        }
        // Where latents are no tokens, the number of these follows from the latents' sides.
        let of = |name: &str| extents.get(name).copied();
        if let (None, Some(height), Some(width)) = (of("image"), of("latent_height"), of("latent_width")) {
            let (rows, columns) = (height / manifest.latents.patch, width / manifest.latents.patch);
            extents.insert("image".into(), of("latent_frames").unwrap_or(1) * rows * columns);
        }
        let extents = manifest.complete(extents)?;
        let mut given: Vec<(String, BufferId)> = Vec::new();
        for name in &outputs {
            let id = buffers.add(manifest.tensor(name)?.dtype, &manifest.shape(name, &extents)?)?;
            given.push((name.clone(), id));
        }
        let ports: Vec<(String, BufferId)> = given.iter().map(|(name, id)| (output_port(name, &inputs), *id)).collect();
        Op::bind(&Arc::clone(session), &mut buffers, &bound, &ports)?.run().at(stage.name())?;
        let read = |(name, id): (String, BufferId)| {
            let shape: Vec<usize> = buffers.shape(id).iter().map(|extent| *extent as usize).collect();
            let odd = |error| Error::internal("a tensor of an impossible shape").with_source(error);
            Ok((name, ArrayD::from_shape_vec(shape, buffers.read(id)?).map_err(odd)?))
        };
        given.into_iter().map(read).collect()
    }
}

/// The stage that holds this part of a model of `count` blocks.
fn stage(part: &ModelPart, count: usize) -> Result<Stage> {
    let (embed, blocks, last) = match part {
        ModelPart::Embed => (true, 0..0, false),
        ModelPart::Blocks(blocks) => (false, blocks.clone(), false),
        ModelPart::Final => (false, 0..0, true),
    };
    if blocks.end > count || (!embed && !last && blocks.is_empty()) {
        return Err(Error::usage(format!("blocks {blocks:?} of a model that has {count}; name some of them")));
    }
    Ok(Stage { embed, blocks, last, arithmetic: Vec::new() })
}

/// The shape of a tensor that is given, if it goes with its axes and with the extents of the tensors before it.
fn fit(name: &str, axes: &[Axis], given: &[usize], extents: &mut Extents) -> Result<Vec<i64>> {
    let shape: Vec<i64> = given.iter().map(|extent| *extent as i64).collect();
    let fits = |(axis, extent): (&Axis, &usize)| match axis {
        Axis::Fixed(fixed) => *fixed == *extent as u64,
        Axis::Named(dim) => *extents.entry(dim.clone()).or_insert(*extent as u64) == *extent as u64,
    };
    if axes.len() == given.len() && axes.iter().zip(given).all(fits) {
        return Ok(shape);
    }
    let expected: Vec<String> = axes.iter().map(Axis::to_string).collect();
    let message = format!("`{name}` has the shape {shape:?}; expected [{}]", expected.join(", "));
    Err(Error::input(message).about(name))
}
