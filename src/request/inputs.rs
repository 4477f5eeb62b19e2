//! What a generation starts from: a prompt, or tensors; and what it must satisfy before anything runs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use half::{bf16, f16};
use ndarray::ArrayD;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::model::manifest::{Axis, DType, Manifest, Source};
use crate::runtime::tensor::{BufferId, Buffers};

/// Longest file of input tensors that is read into memory.
const MAX_INPUTS: u64 = 4 << 30;
/// Longest header of such a file, as the crate `safetensors` has it.
const MAX_HEADER: u64 = 100_000_000;
/// The initial latents, packed: `[batch, tokens, features]`.
pub(crate) const LATENTS: &str = "latents";
/// The noise levels: `[steps + 1]`.
pub(crate) const SIGMAS: &str = "sigmas";
/// The noise that a stochastic scheduler adds: `[steps, …]`, each of the latents' shape.
pub(crate) const NOISE: &str = "noise";
/// In front of the name of a text input: its value for the uncond branch.
pub(crate) const NEGATIVE: &str = "negative_";

/// The inputs of one generation.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// What to make; needs an engine with text graphs.
    pub prompt: Option<String>,
    /// What to keep away from, for classifier-free guidance; some models have none without it. An empty one counts.
    pub negative_prompt: Option<String>,
    /// Tensors that replace what the engine would compute, or that only the caller has: text inputs and such as class
    /// labels by the manifest's names (with `negative_` in front for the uncond branch); `latents`, as the transformer takes
    /// them; `sigmas` `[steps + 1]`; `noise` `[steps, …]` for schedulers that add some. Whole numbers where the model takes
    /// integers.
    pub tensors: BTreeMap<String, ArrayD<f32>>,
}

impl Inputs {
    /// Only a prompt.
    pub fn prompt(prompt: impl Into<String>) -> Self {
        Self { prompt: Some(prompt.into()), ..Self::default() }
    }

    /// Whether they say what to keep away from.
    pub(crate) fn has_negative(&self) -> bool {
        self.negative_prompt.is_some() || self.tensors.keys().any(|name| name.starts_with(NEGATIVE))
    }

    /// Refuses what this engine cannot use, by name.
    pub(crate) fn check(&self, manifest: &Manifest, is_guided: bool) -> Result<()> {
        self.check_tensors(manifest, is_guided)?;
        self.check_prompts(manifest, is_guided)
    }

    /// Each tensor is one that the engine takes, and holds finite numbers.
    fn check_tensors(&self, manifest: &Manifest, is_guided: bool) -> Result<()> {
        let text = text_tensors(manifest);
        let is_given = |source: &Source| matches!(source, Source::Given { .. });
        let given = manifest.inputs.iter().filter(|(_, input)| is_given(&input.from)).map(|(name, _)| name.as_str());
        let known: Vec<&str> = text.into_iter().chain(given).collect();
        let others = [LATENTS, SIGMAS, NOISE];
        for (name, tensor) in &self.tensors {
            if let Some(number) = tensor.iter().find(|number| !number.is_finite()) {
                return Err(Error::not_finite(format_args!("input `{name}`"), *number).about(name));
            }
            let plain = name.strip_prefix(NEGATIVE).unwrap_or(name);
            if !others.contains(&name.as_str()) && !known.contains(&plain) {
                let all: Vec<&str> = known.iter().copied().chain(others.into_iter().take(2)).collect();
                return Err(Error::input(format!(
                    "this engine has no input tensor `{name}`; it takes {} (and `{NEGATIVE}…` for the uncond branch)",
                    all.join(", ")
                ))
                .about(name));
            }
            if plain != name && !is_guided {
                return Err(Error::usage(format!(
                    "input `{name}` has no effect: this generation has no uncond branch; give {}, or leave it out",
                    manifest.guidance.asked_by()
                )));
            }
        }
        Ok(())
    }

    /// Each branch has its text once: as a prompt or as tensors.
    fn check_prompts(&self, manifest: &Manifest, is_guided: bool) -> Result<()> {
        let text = text_tensors(manifest);
        let has_tensors = |prefix: &str| text.iter().all(|name| self.tensors.contains_key(&format!("{prefix}{name}")));
        if self.prompt.is_some() && manifest.text.is_none() {
            return Err(Error::option(
                "prompt",
                "has no effect: this engine has no text graphs; give the text tensors",
            ));
        }
        if self.negative_prompt.is_some() && !is_guided {
            return Err(Error::option(
                "negative-prompt",
                format_args!(
                    "has no effect without classifier-free guidance; give {}, or leave the negative prompt out",
                    manifest.guidance.asked_by()
                ),
            ));
        }
        if self.prompt.is_some() && !text.is_empty() && has_tensors("") {
            return Err(Error::option(
                "prompt",
                "has no effect: the inputs hold all text tensors; leave one of them out",
            ));
        }
        if self.negative_prompt.is_some() && has_tensors(NEGATIVE) {
            return Err(Error::option("negative-prompt", "has no effect: the inputs hold all negative text tensors"));
        }
        if self.prompt.is_some() || has_tensors("") {
            return Ok(());
        }
        Err(match manifest.text {
            Some(_) => Error::usage("no prompt; give one with the option `prompt`").about("prompt"),
            None => {
                let message = format!("this engine has no text graphs; give {} as tensors", text.join(" and "));
                Error::usage(message).about("inputs")
            }
        })
    }

    /// Takes the sizes of the named dimensions from the tensors; two tensors that disagree are an error.
    pub(crate) fn extents(&self, manifest: &Manifest) -> Result<BTreeMap<String, (u64, String)>> {
        let mut found: BTreeMap<String, (u64, String)> = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            let plain = name.strip_prefix(NEGATIVE).unwrap_or(name);
            let spec = match plain {
                SIGMAS | NOISE => continue,
                LATENTS => manifest.input_from(&Source::Latents).map(|name| manifest.tensor(name)),
                name => Some(manifest.tensor(name)),
            };
            let Some(spec) = spec else { continue };
            let axes = &spec?.shape;
            let expected: Vec<String> = axes.iter().map(Axis::to_string).collect();
            let misfit = || {
                Error::input(format!(
                    "input `{name}` has the shape {:?}; the model takes [{}]",
                    tensor.shape(),
                    expected.join(", ")
                ))
                .about(name)
            };
            if axes.len() != tensor.ndim() {
                return Err(misfit());
            }
            for (axis, extent) in axes.iter().zip(tensor.shape()) {
                match axis {
                    Axis::Fixed(fixed) if *fixed == *extent as u64 => {}
                    Axis::Fixed(_) => return Err(misfit()),
                    Axis::Named(dim) => match found.get(dim) {
                        Some((other, by)) if *other != *extent as u64 => {
                            return Err(Error::input(format!(
                                "inputs `{by}` and `{name}` disagree about the dimension `{dim}`: {other} and {extent}"
                            )));
                        }
                        _ => {
                            found.insert(dim.clone(), (*extent as u64, name.clone()));
                        }
                    },
                }
            }
        }
        Ok(found)
    }
}

/// The inputs of the model that hold a text.
fn text_tensors(manifest: &Manifest) -> Vec<&str> {
    let inputs = manifest.inputs.iter().filter(|(_, input)| input.from == Source::Text);
    inputs.map(|(name, _)| name.as_str()).collect()
}

/// Reads tensors from a safetensors file as f32 (F32, F16, BF16, I32 and I64 are accepted).
///
/// # Errors
/// `Io` when it cannot be read; `Input` when it is damaged, or holds another dtype, or integers that f32 does not hold; `Numeric`
/// for numbers that are not finite.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, ArrayD<f32>>> {
    let bytes = read(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| no_tensors(path).with_source(error))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        let bytes = view.data();
        let numbers: Vec<f32> = match view.dtype() {
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::I32 => whole(bytes.chunks_exact(4).map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])))),
            Dtype::I64 => whole(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b))),
            other => {
                return Err(Error::input(format!(
                    "tensor `{name}` of {} is {other:?}; expected F32, F16, BF16, I32 or I64",
                    path.display()
                )));
            }
        };
        if let Some(number) = numbers.iter().find(|number| !number.is_finite()) {
            return Err(Error::not_finite(format_args!("tensor `{name}` of {}", path.display()), *number).about(name));
        }
        let tensor = ArrayD::from_shape_vec(view.shape().to_vec(), numbers)
            .map_err(|error| Error::input(format!("tensor `{name}` of {}", path.display())).with_source(error))?;
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(tensors)
}

/// The bytes of a safetensors file. They are counted while they are read, because devices and pipes have no length.
fn read(path: &Path) -> Result<Vec<u8>> {
    let fail = |error| Error::io("read", path, error);
    let too_long = || {
        let message = format!("{} is longer than {MAX_INPUTS} bytes, which is the most that is read", path.display());
        Error::input(message).about(path.display())
    };
    let mut file = File::open(path).map_err(fail)?;
    if file.metadata().map_err(fail)?.len() > MAX_INPUTS {
        return Err(too_long());
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => no_tensors(path),
        _ => fail(error),
    })?;
    if !(1..=MAX_HEADER).contains(&u64::from_le_bytes(length)) {
        return Err(no_tensors(path));
    }
    let mut bytes = length.to_vec();
    file.take(MAX_INPUTS - 7).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_INPUTS { Err(too_long()) } else { Ok(bytes) }
}

fn no_tensors(path: &Path) -> Error {
    let message = format!("{} is not a safetensors file", path.display());
    Error::input(message).about(path.display())
}

/// Integers as f32; NaN for those that it does not hold.
fn whole(integers: impl Iterator<Item = i64>) -> Vec<f32> {
    const LARGEST: u64 = 1 << f32::MANTISSA_DIGITS;
    integers.map(|integer| if integer.unsigned_abs() <= LARGEST { integer as f32 } else { f32::NAN }).collect()
}

/// Writes tensors to a safetensors file (F32), which appears only when it is complete.
///
/// # Errors
/// `Io` when the folder is missing, full or not writable.
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, ArrayD<f32>>) -> Result<()> {
    let bytes: BTreeMap<&str, Vec<u8>> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.iter().flat_map(|number| number.to_le_bytes()).collect()))
        .collect();
    let internal = |error| Error::internal("tensors that cannot be written").with_source(error);
    let views: BTreeMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, tensor)| {
            let view = TensorView::new(Dtype::F32, tensor.shape().to_vec(), &bytes[name.as_str()]).map_err(internal)?;
            Ok((name.as_str(), view))
        })
        .collect::<Result<_>>()?;
    let file = safetensors::serialize(views, None).map_err(internal)?;
    write_atomically(path, |out| std::io::Write::write_all(out, &file))
}

/// Writes a JSON file, which appears only when it is complete.
///
/// # Errors
/// `Io` when the folder is missing, full or not writable.
pub fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    // One write: serde_json would call the system for each word.
    let text = format!("{value:#}\n");
    write_atomically(path, |out| std::io::Write::write_all(out, text.as_bytes()))
}

/// Writes numbers that a user gives; integers must be whole.
pub(crate) fn write(name: &str, id: BufferId, numbers: &[f32], buffers: &mut Buffers) -> Result<()> {
    if buffers.dtype(id) != DType::I64 {
        return buffers.write(id, numbers);
    }
    if let Some(number) = numbers.iter().find(|number| number.fract() != 0.0) {
        return Err(Error::input(format!("input `{name}` holds {number}; the model takes whole numbers there")));
    }
    let ids: Vec<i64> = numbers.iter().map(|number| *number as i64).collect();
    buffers.write_ids(id, &ids)
}

pub(crate) fn numbers(tensor: &ArrayD<f32>) -> Vec<f32> {
    tensor.iter().copied().collect()
}
