//! What the fields of a manifest must satisfy among themselves, so that whatever follows can rely on it.

use std::collections::BTreeSet;

use super::manifest::{
    Axis, DType, Dimension, GraphSpec, GuidanceKind, LatentsSpec, Manifest, Per, Prediction, SchedulerSpec, Shift,
    SizeSpec, Source, TimeShift,
};
use crate::error::{At, Error, Result};

const MAX_BLOCKS: usize = 10_000;
/// No axis, picture side or count of a sane model is longer.
const MAX_EXTENT: u64 = 1 << 24;
/// A larger shift turns every sigma into 1, or overflows.
const MAX_SHIFT: f64 = 100.0;
/// The dimensions that follow from the picture's size and the number of pictures.
const PICTURE: [&str; 6] = ["batch", "image", "latent_height", "latent_width", "height", "width"];

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
        let texts = self.inputs.iter().filter(|(_, input)| input.from == Source::Text);
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
                Source::Latents | Source::Sigma => Per::Step,
                _ => Per::Request,
            };
            if input.per != per {
                return fail(format!("input `{name}` has the wrong `per` for its `from`"));
            }
            let named = |name: &str| Axis::Named(name.to_owned());
            let shape = match input.from {
                Source::Sigma | Source::Guidance => vec![named("batch")],
                Source::Grid => vec![named("image"), Axis::Fixed(3)],
                // The shape of latents follows from `latents`; text and zeros have any.
                Source::Latents | Source::Text | Source::Zeros => spec.shape.clone(),
            };
            let is_free = matches!(input.from, Source::Text | Source::Zeros);
            if shape != spec.shape || (!is_free && spec.dtype != DType::F32) {
                return fail(format!("input `{name}` has a dtype or shape that does not fit its `from`"));
            }
        }
        let mut single = BTreeSet::new();
        for input in self.inputs.values().filter(|i| !matches!(i.from, Source::Text | Source::Zeros | Source::Grid)) {
            if !single.insert(input.from as u8) {
                return fail(format!("two inputs come from `{:?}`", input.from).to_lowercase());
            }
        }
        if self.input_from(Source::Latents).is_none() {
            return fail("no input comes from `latents`");
        }
        if self.input_from(Source::Sigma).is_none() {
            return fail("no input comes from `sigma`");
        }
        if (self.guidance.kind == GuidanceKind::Embedded) != self.input_from(Source::Guidance).is_some() {
            return fail("`guidance.kind` is `embedded` exactly if an input comes from `guidance`");
        }
        Ok(())
    }

    /// Every graph takes only what an earlier one, or the outside, gives.
    fn check_flow(&self) -> Result<()> {
        let mut known: BTreeSet<&str> = self.inputs.keys().map(String::as_str).collect();
        let takes = |graph: &str, inputs: &[String], known: &BTreeSet<&str>| -> Result<()> {
            check_unique(graph, inputs)?;
            match inputs.iter().find(|input| !known.contains(input.as_str())) {
                Some(input) => fail(format!("{graph} takes `{input}`, which nothing before it gives")),
                None => Ok(()),
            }
        };
        takes("`embed`", &self.embed.inputs, &known)?;
        if let Some(unused) = self.inputs.keys().find(|name| !self.embed.inputs.contains(name)) {
            return fail(format!("input `{unused}` is not taken by `embed`"));
        }
        check_unique("`embed`", &self.embed.outputs)?;
        for output in &self.embed.outputs {
            self.tensor(output).at("`embed`")?;
            if !known.insert(output) {
                return fail(format!("`embed` gives `{output}`, which comes from outside"));
            }
        }
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
        // The blocks are bound once for both branches, whose texts differ.
        let is_text = |name: &str| self.inputs.get(name).is_some_and(|input| input.from == Source::Text);
        let shared: BTreeSet<&str> = known.iter().copied().filter(|name| !is_text(name)).collect();
        for (kind, ports) in &self.block_kinds {
            let graph = format!("block kind `{kind}`");
            if let Some(text) = ports.inputs.iter().find(|input| is_text(input)) {
                return fail(format!("{graph} takes the text input `{text}`; only `embed` and `final` may"));
            }
            takes(&graph, &ports.inputs, &shared)?;
            check_unique(&graph, &ports.outputs)?;
            if let Some(output) = ports.outputs.iter().find(|output| !self.streams.contains(output)) {
                return fail(format!("block kind `{kind}` gives `{output}`, which is not a stream"));
            }
            if ports.outputs.is_empty() {
                return fail(format!("block kind `{kind}` gives nothing"));
            }
            if let Some(output) = ports.outputs.iter().find(|output| !ports.inputs.contains(output)) {
                return fail(format!("block kind `{kind}` gives stream `{output}` without taking it"));
            }
        }
        if self.blocks.is_empty() || self.blocks.len() > MAX_BLOCKS {
            return fail(format!("`blocks` has {} entries; expected 1 to {MAX_BLOCKS}", self.blocks.len()));
        }
        for (index, block) in self.blocks.iter().enumerate() {
            if !self.block_kinds.contains_key(&block.kind) {
                return fail(format!("block {index} is of the unknown kind `{}`", block.kind));
            }
        }
        takes("`final`", &self.last.inputs, &known)?;
        Ok(())
    }

    /// `final` gives what the scheduler takes.
    fn check_result(&self) -> Result<()> {
        let [prediction] = self.last.outputs.as_slice() else {
            return fail(format!("`final` has {} outputs; expected one, the prediction", self.last.outputs.len()));
        };
        let latents = self.input_from(Source::Latents).unwrap_or_default();
        let (prediction_spec, latents_spec) = (self.tensor(prediction)?, self.tensor(latents)?);
        if prediction_spec.shape != latents_spec.shape {
            return fail(format!("`{prediction}` and `{latents}` differ in shape"));
        }
        if prediction_spec.dtype != DType::F32 {
            return fail(format!("`{prediction}` must be f32, as latents are"));
        }
        Ok(())
    }

    fn check_picture(&self) -> Result<()> {
        let LatentsSpec { channels, downscale, patch } = self.latents;
        let cell = downscale.saturating_mul(patch);
        if channels == 0 || channels > 65_536 || cell == 0 || cell > 65_536 {
            return fail("`latents` has a number outside 1 to 65536");
        }
        let SizeSpec { default, min, max, multiple_of } = self.size;
        if multiple_of == 0 || multiple_of % cell != 0 {
            return fail(format!(
                "`size.multiple_of` is {multiple_of}; expected a multiple of downscale x patch = {cell}"
            ));
        }
        if min == 0 || min > max || max > 65_536 {
            return fail(format!("`size` has the range {min} to {max}; expected 1 <= min <= max <= 65536"));
        }
        for side in default {
            if side % multiple_of != 0 || side < min || side > max {
                return fail(format!("`size.default` has a side of {side}, which its own limits forbid"));
            }
        }
        let [width, height] = default;
        let extents = [
            ("image", (width / cell) * (height / cell)),
            ("latent_height", height / downscale),
            ("latent_width", width / downscale),
            ("height", height),
            ("width", width),
        ];
        for (name, extent) in extents {
            if let Some(Dimension::Range { min, max }) = self.dimensions.get(name)
                && !(min..=max).contains(&&extent)
            {
                return fail(format!("`size.default` makes dimension `{name}` {extent}; its range is {min} to {max}"));
            }
        }
        let features = channels.saturating_mul(patch).saturating_mul(patch);
        let name = self.input_from(Source::Latents).unwrap_or_default();
        let shape = &self.tensor(name)?.shape;
        let expected = [Axis::Named("batch".into()), Axis::Named("image".into()), Axis::Fixed(features)];
        if shape[..] != expected {
            return fail(format!("`{name}` must have the shape [batch, image, {features}] that `latents` says"));
        }
        if !(1..=10_000).contains(&self.defaults.steps) {
            return fail(format!("`defaults.steps` is {}; expected 1 to 10000", self.defaults.steps));
        }
        if let Prediction::Sample { min_sigma } = self.prediction
            && !(min_sigma > 0.0 && min_sigma < 1.0)
        {
            return fail(format!("`prediction.min_sigma` is {min_sigma}; expected a number between 0 and 1"));
        }
        if !(self.guidance.default as f32).is_finite() {
            return fail(format!("`guidance.default` is {:e}; expected a finite f32", self.guidance.default));
        }
        Ok(())
    }

    /// The decoder takes latents and gives pixels, both of the picture's size.
    fn check_decode(&self) -> Result<()> {
        let Some(GraphSpec { inputs, outputs, .. }) = &self.decode else { return Ok(()) };
        if inputs != &["image_latents"] || outputs != &["image"] {
            return fail(format!("`decode` takes {inputs:?} and gives {outputs:?}; expected image_latents and image"));
        }
        for (name, channels, sides) in [
            ("image_latents", self.latents.channels, ["latent_height", "latent_width"]),
            ("image", 3, ["height", "width"]),
        ] {
            let spec = self.tensor(name).at("`decode`")?;
            let [height, width] = sides.map(|side| Axis::Named(side.to_owned()));
            if spec.shape != [Axis::Named("batch".into()), Axis::Fixed(channels), height, width]
                || spec.dtype == DType::I64
            {
                let sides = sides.join(", ");
                return fail(format!("`decode`: `{name}` must be floats of the shape [batch, {channels}, {sides}]"));
            }
        }
        Ok(())
    }

    fn check_scheduler(&self) -> Result<()> {
        let SchedulerSpec::FlowMatchEuler { shift, shift_terminal } = self.scheduler;
        let is_shift = |shift: f64| shift.abs() <= MAX_SHIFT;
        let fine = match shift {
            Shift::None {} => true,
            Shift::Static { shift } => is_shift(shift) && shift > 0.0,
            Shift::Dynamic { base_tokens, max_tokens, base_shift, max_shift, time_shift } => {
                let is_positive = time_shift == TimeShift::Exponential || (base_shift > 0.0 && max_shift > 0.0);
                base_tokens < max_tokens && is_shift(base_shift) && is_shift(max_shift) && is_positive
            }
        };
        if !fine || shift_terminal.is_some_and(|s| !(0.0..1.0).contains(&s)) {
            return fail("`scheduler` has an impossible number");
        }
        Ok(())
    }

    fn check_text(&self) -> Result<()> {
        let Some(text) = &self.text else { return Ok(()) };
        for (name, tokenizer) in &text.tokenizers {
            if !(1..=1 << 16).contains(&tokenizer.length) {
                return fail(format!("tokenizer `{name}` has the length {}; expected 1 to 65536", tokenizer.length));
            }
        }
        if text.graphs.is_empty() {
            return fail("`text` has no graphs, so that prompts would have no effect");
        }
        let mut given = BTreeSet::new();
        for graph in &text.graphs {
            if graph.inputs.is_empty() || graph.outputs.is_empty() {
                return fail(format!("`text`: {} takes or gives nothing", graph.file));
            }
            for (port, input) in &graph.inputs {
                if !text.tokenizers.contains_key(&input.tokenizer) {
                    return fail(format!("text input `{port}` names the unknown tokenizer `{}`", input.tokenizer));
                }
            }
            for output in &graph.outputs {
                if self.inputs.get(output).is_none_or(|input| input.from != Source::Text) {
                    return fail(format!("text output `{output}` is not an input that comes from `text`"));
                }
                if !given.insert(output) {
                    return fail(format!("two text graphs give `{output}`"));
                }
            }
        }
        match self.inputs.iter().find(|(name, input)| input.from == Source::Text && !given.contains(name)) {
            Some((name, _)) => fail(format!("no text graph gives `{name}`")),
            None => Ok(()),
        }
    }

    fn check_files(&self) -> Result<()> {
        let mut seen = BTreeSet::new();
        for file in self.files() {
            check_plain_name(file.file)?;
            check_hash(file.file, file.sha256)?;
            if !seen.insert(file.file) {
                return fail(format!("file `{}` is named twice", file.file));
            }
        }
        let mut names = BTreeSet::new();
        for weights in &self.weights {
            check_plain_name(&weights.name)?;
            check_plain_name(&weights.file)?;
            check_hash(&weights.name, &weights.header_sha256)?;
            if let Some(hash) = &weights.sha256 {
                check_hash(&weights.name, hash)?;
            }
            if !names.insert(&weights.name) {
                return fail(format!("weights `{}` are named twice", weights.name));
            }
        }
        Ok(())
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

/// No separators, no `..`, no drive letters, nothing hidden, nothing absurdly long.
fn check_plain_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.chars().all(plain) {
        return fail(format!("{name:?} is not a plain file name (letters, digits, `.`, `_`, `-`, `+`)"));
    }
    Ok(())
}

fn check_hash(name: &str, hash: &str) -> Result<()> {
    if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return fail(format!("the hash of `{name}` is not a lower-case SHA-256"));
    }
    Ok(())
}
