//! The tensors that embed takes besides latents and time: texts of each branch, and what the size and the manifest say.

use std::collections::{BTreeMap, HashMap};

use super::chain::Named;
use super::prompts;
use crate::cache::Branch;
use crate::engine::LoadedEngine;
use crate::error::{Error, Result};
use crate::model::graph::ports;
use crate::model::manifest::{Axis, DType, Extents, Manifest, Source};
use crate::request::guidance::{Cfg, Guidance};
use crate::request::inputs::{Inputs, NEGATIVE, numbers, write};
use crate::request::latents::Grid;
use crate::runtime::tensor::{BufferId, Buffers};

/// The inputs of every branch that differ from branch to branch, by branch: those of a fused batch are one.
pub(super) fn texts(
    engine: &LoadedEngine,
    inputs: &Inputs,
    guidance: &Guidance,
    batch: usize,
    buffers: &mut Buffers,
) -> Result<HashMap<Branch, Named>> {
    let branches = guidance.texts();
    let lengths = match &engine.text {
        Some(encoder) => prompts::lengths(&encoder.reader, inputs, guidance)?,
        None => BTreeMap::new(),
    };
    let of_batch = BranchTexts { engine, inputs, lengths, batch };
    let mut texts: HashMap<Branch, Named> = HashMap::new();
    for branch in branches {
        let named = of_batch.encode(branch, texts.get(&Branch::Cond), buffers)?;
        texts.insert(branch, named);
    }
    match guidance.cfg {
        Some(cfg) if guidance.is_fused() => {
            let stacked = stacked(engine, &texts, cfg, buffers)?;
            Ok(HashMap::from([(Branch::Cond, stacked)]))
        }
        _ => Ok(texts),
    }
}

/// What the texts of a batch are made of.
struct BranchTexts<'a> {
    engine: &'a LoadedEngine,
    inputs: &'a Inputs,
    /// Tokens along each dimension of text.
    lengths: BTreeMap<String, usize>,
    batch: usize,
}

impl BranchTexts<'_> {
    /// The text inputs of one branch: tensors that were given, else what the text graphs make of the prompt. `cond` are those
    /// of the cond branch, where that comes first.
    fn encode(&self, branch: Branch, cond: Option<&Named>, buffers: &mut Buffers) -> Result<Named> {
        let Self { engine, inputs, ref lengths, batch } = *self;
        let manifest = &engine.directory.manifest;
        let mut named = Named::new();
        if let Some(encoder) = &engine.text
            && let Some(prompt) = prompts::prompt(&encoder.reader, inputs, branch)
        {
            let names: Vec<String> = encoder.outputs().map(str::to_owned).collect();
            let (_, ports) = ports(manifest, &[], &names)?;
            let encoded = encoder.encode(&vec![prompt.to_owned(); batch], &ports, lengths, buffers);
            named.extend(encoded.map_err(|error| prompts::about(branch, error))?);
            named.retain(|name, _| manifest.inputs.contains_key(name));
        }
        for (name, input) in manifest.inputs.iter().filter(|(_, input)| input.from.differs_by_branch()) {
            let key = if branch == Branch::Uncond { format!("{NEGATIVE}{name}") } else { name.clone() };
            if let Some(tensor) = inputs.tensors.get(&key) {
                let shape: Vec<i64> = tensor.shape().iter().map(|extent| *extent as i64).collect();
                let id = buffers.add(manifest.tensor(name)?.dtype, &shape)?;
                write(&key, id, &numbers(tensor), buffers)?;
                named.insert(name.clone(), id);
            } else if let (Source::Given { unconditional: Some(value) }, Some(cond)) = (&input.from, cond)
                && let Some(cond) = cond.get(name)
            {
                let (dtype, shape) = (buffers.dtype(*cond), buffers.shape(*cond).to_vec());
                let id = buffers.add(dtype, &shape)?;
                fill(id, *value, buffers)?;
                named.insert(name.clone(), id);
            }
            if !named.contains_key(name) {
                return Err(Error::input(format!("no `{key}`; give it")).about(key));
            }
        }
        Ok(named)
    }
}

/// The texts of both branches, one above the other: all have a batch (the rules of manifests).
fn stacked(engine: &LoadedEngine, texts: &HashMap<Branch, Named>, cfg: Cfg, buffers: &mut Buffers) -> Result<Named> {
    let (cond, uncond) = (&texts[&Branch::Cond], &texts[&Branch::Uncond]); // Guidance::texts gives both.
    let mut named = Named::new();
    for (name, cond) in cond {
        let Some(uncond) = uncond.get(name) else { return Err(Error::internal(format!("no uncond `{name}`"))) };
        let mut shape = buffers.shape(*cond).to_vec();
        let other = buffers.shape(*uncond);
        if shape.len() != other.len() || shape.get(1..) != other.get(1..) {
            return Err(Error::input(format!(
                "`{name}` has the shape {shape:?}, but {other:?} for the uncond branch; both branches run as one batch, so \
                 that texts of one length are needed"
            )));
        }
        shape[0] *= 2;
        let id = buffers.add(buffers.dtype(*cond), &shape)?;
        let (first, second) = if cfg.cond_first { (*cond, *uncond) } else { (*uncond, *cond) };
        engine.kernels.stack(buffers.dtype(id), shape.len())?.bind(buffers, first, second, id)?.run()?;
        named.insert(name.clone(), id);
    }
    Ok(named)
}

/// All dimensions of the transformer's graphs: those of size and batch, and those of the text.
pub(super) fn extents(
    manifest: &Manifest,
    mut extents: Extents,
    given: &BTreeMap<String, (u64, String)>,
    texts: &HashMap<Branch, Named>,
    buffers: &Buffers,
) -> Result<Extents> {
    for (dim, (extent, by)) in given.iter().filter(|(dim, _)| *dim != "batch") {
        match extents.get(dim) {
            Some(known) if known != extent => {
                return Err(Error::input(format!(
                    "input `{by}` has {extent} along `{dim}`, but the picture's size makes it {known}; give the size that fits"
                )));
            }
            _ => extents.insert(dim.clone(), *extent),
        };
    }
    for named in texts.values() {
        for (name, id) in named {
            for (axis, extent) in manifest.tensor(name)?.shape.iter().zip(buffers.shape(*id)) {
                if let Axis::Named(dim) = axis {
                    let extent = *extent as u64;
                    if let Some(known) = extents.insert(dim.clone(), extent)
                        && known != extent
                    {
                        return Err(Error::input(format!(
                            "`{name}` has {extent} along `{dim}` where another tensor has {known}"
                        )));
                    }
                }
            }
        }
    }
    manifest.complete(extents)
}

/// Values of inputs that hold for all steps.
pub(super) struct Fixed {
    /// The scale that the model itself is given.
    pub guidance: Option<f32>,
    /// Frames per second.
    pub fps: f64,
}

/// The inputs of embed that all branches share, with the values that never change already written.
pub(super) fn shared(
    manifest: &Manifest,
    grid: &Grid,
    extents: &Extents,
    fixed: &Fixed,
    buffers: &mut Buffers,
) -> Result<Named> {
    let mut named = Named::new();
    for (name, input) in manifest.inputs.iter().filter(|(_, input)| !input.from.differs_by_branch()) {
        let id = buffers.add(manifest.tensor(name)?.dtype, &manifest.shape(name, extents)?)?;
        named.insert(name.to_owned(), id);
        match input.from {
            Source::Guidance => fill(id, f64::from(fixed.guidance.unwrap_or_default()), buffers)?,
            Source::Fps => fill(id, fixed.fps, buffers)?,
            Source::Constant(value) => fill(id, value, buffers)?,
            Source::Grid => buffers.write(id, &grid.positions())?,
            Source::GridSize => buffers.write(id, &grid.counts())?,
            Source::Size => {
                let rows = buffers.shape(id).first().copied().unwrap_or_default() as usize;
                let side = |name: &str| extents.get(name).copied().unwrap_or_default() as f32;
                buffers.write(id, &[side("height"), side("width")].repeat(rows))?;
            }
            // Tensors begin as zeros; what changes from step to step is written later.
            Source::Zeros | Source::Latents | Source::Sigma | Source::Timestep => {}
            Source::Text | Source::Given { .. } => {}
        }
    }
    Ok(named)
}

fn fill(id: BufferId, value: f64, buffers: &mut Buffers) -> Result<()> {
    let count = buffers.shape(id).iter().product::<i64>() as usize;
    if buffers.dtype(id) == DType::I64 {
        return buffers.write_ids(id, &vec![value as i64; count]);
    }
    buffers.write(id, &vec![value as f32; count])
}
