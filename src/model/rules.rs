//! What the fields of a manifest must satisfy among themselves, so that whatever follows can rely on it.

mod sampling;
mod text;

use std::collections::BTreeSet;

use super::manifest::{Axis, DType, Dimension, GuidanceSpec, Manifest, Per, Source};
use crate::error::{At, Error, Result};

const MAX_BLOCKS: usize = 10_000;
/// No axis, picture side or count of a sane model is longer.
const MAX_EXTENT: u64 = 1 << 24;
/// Beyond it f64 does not hold every integer.
const MAX_INTEGER: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;
/// The dimensions that follow from the size of picture or video, and from how many there are.
const PICTURE: [&str; 10] = [
    "batch",
    "image",
    "rows",
    "columns",
    "latent_frames",
    "latent_height",
    "latent_width",
    "frames",
    "height",
    "width",
];

impl Manifest {
    /// # Errors
    /// `EngineDirectory` with the field that is wrong.
    pub(super) fn check(&self) -> Result<()> {
        if ![20, 23].contains(&self.opset) {
            return fail(format!("`opset` is {}; expected 20 or 23", self.opset));
        }
        if self.compute_dtype == DType::I64 {
            return fail("`compute_dtype` is i64; expected a float type");
        }
        self.check_dimensions()?;
        self.check_inputs()?;
        self.check_flow()?;
        self.check_result()?;
        self.check_picture()?;
        self.check_decode()?;
        self.check_guidance()?;
        self.check_low_noise()?;
        self.check_scheduler()?;
        self.check_text()?;
        self.check_files()
    }

    fn check_dimensions(&self) -> Result<()> {
        for (name, dimension) in &self.dimensions {
            match dimension {
                Dimension::Range { min, max } if *min == 0 || min > max || *max > MAX_EXTENT => {
                    return fail(format!(
                        "dimension `{name}` has the range {min} to {max}; expected 1 <= min <= max <= {MAX_EXTENT}"
                    ));
                }
                Dimension::Sum { .. } if PICTURE.contains(&name.as_str()) => {
                    return fail(format!("dimension `{name}` is a sum, but it follows from the picture"));
                }
                Dimension::Sum { sum } if sum.is_empty() => return fail(format!("dimension `{name}` adds nothing")),
                Dimension::Sum { sum } => {
                    for part in sum {
                        if !matches!(self.dimensions.get(part), Some(Dimension::Range { .. })) {
                            return fail(format!(
                                "dimension `{name}` adds `{part}`, which is not a dimension with a range"
                            ));
                        }
                    }
                }
                Dimension::Range { .. } => {}
            }
        }
        let known = self.known_dimensions();
        for (name, tensor) in &self.tensors {
            let mut elements: u64 = 1;
            for axis in &tensor.shape {
                let extent = match axis {
                    Axis::Fixed(extent) => *extent,
                    Axis::Named(dim) if known.contains(dim.as_str()) => 1,
                    Axis::Named(dim) if self.dimensions.contains_key(dim) => {
                        return fail(format!(
                            "tensor `{name}`: neither the picture nor a text input gives dimension `{dim}`"
                        ));
                    }
                    Axis::Named(dim) => return fail(format!("tensor `{name}` has the unknown dimension `{dim}`")),
                };
                elements = elements.saturating_mul(extent);
            }
            if elements == 0 || elements > 1 << 34 {
                return fail(format!("tensor `{name}` has an absurd shape"));
            }
        }
        Ok(())
    }

    /// The dimensions that have an extent in every request: from the picture, from text inputs, and sums of these.
    fn known_dimensions(&self) -> BTreeSet<&str> {
        let texts = self.inputs.iter().filter(|(_, input)| input.from.differs_by_branch());
        let axes = texts.filter_map(|(name, _)| self.tensors.get(name)).flat_map(|tensor| &tensor.shape);
        let named = axes.filter_map(|axis| if let Axis::Named(dim) = axis { Some(dim.as_str()) } else { None });
        let mut known: BTreeSet<&str> = named.chain(PICTURE).filter(|dim| self.dimensions.contains_key(*dim)).collect();
        for (name, dimension) in &self.dimensions {
            if let Dimension::Sum { sum } = dimension
                && sum.iter().all(|part| known.contains(part.as_str()))
            {
                known.insert(name);
            }
        }
        known
    }

    fn check_inputs(&self) -> Result<()> {
        for (name, input) in &self.inputs {
            let spec = self.tensor(name).map_err(|e| e.at(format!("input `{name}`")))?;
            let per = match input.from {
                Source::Latents | Source::Sigma | Source::Timestep => Per::Step,
                _ => Per::Request,
            };
            if input.per != per {
                return fail(format!("input `{name}` has the wrong `per` for its `from`"));
            }
            let named = |name: &str| Axis::Named(name.to_owned());
            let shape = match input.from {
                Source::Sigma | Source::Timestep | Source::Guidance => Some(vec![named("batch")]),
                Source::Grid => Some(vec![named("image"), Axis::Fixed(3)]),
                Source::GridSize => Some(vec![Axis::Fixed(3)]),
                Source::Size => Some(vec![named("batch"), Axis::Fixed(2)]),
                Source::Fps => Some(vec![Axis::Fixed(1)]),
                // The shape of latents follows from `latents`.
                Source::Latents => Some(spec.shape.clone()),
                Source::Text | Source::Given { .. } | Source::Zeros | Source::Constant(_) => None,
            };
            if shape.is_some_and(|shape| shape != spec.shape || spec.dtype != DType::F32) {
                return fail(format!("input `{name}` has a dtype or shape that does not fit its `from`"));
            }
            if let Source::Constant(value) | Source::Given { unconditional: Some(value) } = input.from
                && (!(value as f32).is_finite()
                    || (spec.dtype == DType::I64 && (value.fract() != 0.0 || value.abs() > MAX_INTEGER)))
            {
                return fail(format!("input `{name}` is filled with {value:e}, which its dtype does not hold"));
            }
        }
        let single = [Source::Latents, Source::Sigma, Source::Timestep, Source::Guidance];
        for source in single {
            if self.inputs.values().filter(|input| input.from == source).count() > 1 {
                return fail(format!("two inputs come from `{source:?}`").to_lowercase());
            }
        }
        if self.input_from(&Source::Latents).is_none() {
            return fail("no input comes from `latents`");
        }
        if self.input_from(&Source::Sigma).or(self.input_from(&Source::Timestep)).is_none() {
            return fail("no input comes from `sigma` or `timestep`");
        }
        let embeds = matches!(self.guidance, GuidanceSpec::Embedded { .. });
        if embeds != self.input_from(&Source::Guidance).is_some() {
            return fail("`guidance.kind` is `embedded` exactly if an input comes from `guidance`");
        }
        if self.video.is_none() && self.input_from(&Source::Fps).is_some() {
            return fail("an input comes from `fps`, but `video` is null");
        }
        Ok(())
    }

    /// Every graph takes only what an earlier one, or the outside, gives.
    fn check_flow(&self) -> Result<()> {
        let mut known: BTreeSet<&str> = self.inputs.keys().map(String::as_str).collect();
        takes("`embed`", &self.embed.inputs, &known)?;
        let is_taken = |name: &String| self.embed.inputs.contains(name) || self.last.inputs.contains(name);
        if let Some(unused) = self.inputs.keys().find(|name| !is_taken(name)) {
            return fail(format!("input `{unused}` is not taken by `embed` or `final`"));
        }
        check_unique("`embed`", &self.embed.outputs)?;
        for output in &self.embed.outputs {
            self.tensor(output).at("`embed`")?;
            if !known.insert(output) {
                return fail(format!("`embed` gives `{output}`, which comes from outside"));
            }
        }
        self.check_streams()?;
        // The blocks are bound once for both branches, whose texts differ.
        let shared: BTreeSet<&str> = known.iter().copied().filter(|name| !self.is_text(name)).collect();
        for kind in self.block_kinds.keys() {
            self.check_kind(kind, &shared)?;
        }
        self.check_blocks()?;
        takes("`final`", &self.last.inputs, &known)
    }

    fn is_text(&self, name: &str) -> bool {
        self.inputs.get(name).is_some_and(|input| input.from.differs_by_branch())
    }

    fn check_streams(&self) -> Result<()> {
        if self.streams.is_empty() || self.streams.len() > 8 {
            return fail(format!("`streams` has {} entries; expected 1 to 8", self.streams.len()));
        }
        if self.streams.iter().collect::<BTreeSet<_>>().len() != self.streams.len() {
            return fail("`streams` names one twice");
        }
        if let Some(stream) = self.streams.iter().find(|stream| !self.embed.outputs.contains(stream)) {
            return fail(format!("stream `{stream}` is not an output of `embed`"));
        }
        for stream in &self.streams {
            if self.tensor(stream)?.dtype == DType::I64 || self.tensor(stream)?.shape.is_empty() {
                return fail(format!("stream `{stream}` must be a float tensor with at least one axis"));
            }
        }
        Ok(())
    }

    /// Blocks of a kind take what all branches share, and give streams that they take.
    fn check_kind(&self, kind: &str, shared: &BTreeSet<&str>) -> Result<()> {
        let (graph, ports) = (format!("block kind `{kind}`"), &self.block_kinds[kind]);
        if let Some(text) = ports.inputs.iter().find(|input| self.is_text(input)) {
            return fail(format!("{graph} takes the text input `{text}`; only `embed` and `final` may"));
        }
        takes(&graph, &ports.inputs, shared)?;
        check_unique(&graph, &ports.outputs)?;
        if let Some(output) = ports.outputs.iter().find(|output| !self.streams.contains(output)) {
            return fail(format!("{graph} gives `{output}`, which is not a stream"));
        }
        if ports.outputs.is_empty() {
            return fail(format!("{graph} gives nothing"));
        }
        match ports.outputs.iter().find(|output| !ports.inputs.contains(output)) {
            Some(output) => fail(format!("{graph} gives stream `{output}` without taking it")),
            None => Ok(()),
        }
    }

    /// Each block has a kind, and is in one list.
    fn check_blocks(&self) -> Result<()> {
        if self.blocks.is_empty() || self.blocks.len() > MAX_BLOCKS {
            return fail(format!("`blocks` has {} entries; expected 1 to {MAX_BLOCKS}", self.blocks.len()));
        }
        for (index, block) in self.blocks.iter().enumerate() {
            if !self.block_kinds.contains_key(&block.kind) {
                return fail(format!("block {index} is of the unknown kind `{}`", block.kind));
            }
        }
        let listed = self.lists.iter().fold(0_usize, |sum, list| sum.saturating_add(list.blocks));
        if listed != self.blocks.len() || self.lists.iter().any(|list| list.blocks == 0) {
            return fail(format!("`lists` hold {listed} blocks, none of them empty; there are {}", self.blocks.len()));
        }
        let mut start = 0;
        for list in &self.lists {
            let blocks = &self.blocks[start..start + list.blocks]; // Together they are as many as there are.
            start += list.blocks;
            if list.joined && blocks.iter().any(|block| !self.block_kinds[&block.kind].joins_streams) {
                return fail(format!("list `{}` is `joined`, but holds a block that joins no streams", list.name));
            }
        }
        Ok(())
    }
}

/// A graph takes nothing but what is known.
fn takes(graph: &str, inputs: &[String], known: &BTreeSet<&str>) -> Result<()> {
    check_unique(graph, inputs)?;
    match inputs.iter().find(|input| !known.contains(input.as_str())) {
        Some(input) => fail(format!("{graph} takes `{input}`, which nothing before it gives")),
        None => Ok(()),
    }
}

/// A tensor that is named twice would be bound twice.
fn check_unique(graph: &str, tensors: &[String]) -> Result<()> {
    let mut seen = BTreeSet::new();
    match tensors.iter().find(|tensor| !seen.insert(*tensor)) {
        Some(tensor) => fail(format!("{graph} names `{tensor}` twice")),
        None => Ok(()),
    }
}

fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::directory(message.into()))
}
