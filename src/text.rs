//! From a prompt to the text inputs of the model: tokenizers and text graphs.

mod clean;
mod tokenizer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::clean::{Cleaned, Cleaner};
use self::tokenizer::{Direction, Tokenizer};
use crate::error::{At, Error, Result};
use crate::model::directory::EngineDirectory;
use crate::model::graph::Port;
use crate::model::manifest::{
    Axis, DType, PadSide, Padding, TextGraphSpec, TextInputSpec, TextSpec, TokenField, TokenizerSpec,
};
use crate::nearest::edit_distance;
use crate::runtime::op::Op;
use crate::runtime::session::Session;
use crate::runtime::tensor::{BufferId, Buffers, TensorPlace};

/// Longest prompt in bytes: far more than any model reads.
const MAX_PROMPT: usize = 1 << 16;
/// How much of an unknown word an error shows, in characters.
const SHOWN: usize = 40;
/// How many known words an error about an unknown one shows.
const SUGGESTIONS: usize = 3;
/// A vocabulary up to this size is one of words that people can read (see [`TextEncoder::words`]).
const MAX_LISTED_WORDS: usize = 10_000;

/// Tokenizers and text graphs of an engine.
pub(crate) struct TextEncoder {
    spec: TextSpec,
    cleaner: Cleaner,
    tokenizers: BTreeMap<String, Tokenizer>,
    graphs: Vec<Arc<Session>>,
}

/// Token ids and mask of one prompt.
struct Tokens {
    ids: Vec<i64>,
    mask: Vec<i64>,
    is_cut: bool,
}

impl Tokens {
    fn padded(mut self, spec: &TokenizerSpec, length: usize) -> Self {
        let count = length.saturating_sub(self.ids.len());
        for (row, value) in [(&mut self.ids, i64::from(spec.pad_id)), (&mut self.mask, 0)] {
            let at = if spec.pad_side == PadSide::Left { 0 } else { row.len() };
            row.splice(at..at, std::iter::repeat_n(value, count));
        }
        self
    }
}

/// What is known of a prompt's tokens before its graphs run.
#[derive(Clone, Copy)]
struct Known<'a> {
    /// Tokens of each tokenizer.
    lengths: &'a BTreeMap<String, usize>,
    /// What the graphs give.
    ports: &'a [Port],
}

impl TextEncoder {
    /// # Errors
    /// `EngineDirectory` when a tokenizer file does not parse or contradicts the manifest.
    pub(crate) fn load(directory: &EngineDirectory, spec: &TextSpec, graphs: Vec<Arc<Session>>) -> Result<Self> {
        let place = || format!("engine {}", directory.path.display());
        let tokenizers = spec
            .tokenizers
            .iter()
            .map(|(name, tokenizer)| {
                let content = directory.tokenizers.get(name).map_or(&[][..], Vec::as_slice);
                Ok((name.clone(), read_tokenizer(content, tokenizer).at(&tokenizer.file).at(place())?))
            })
            .collect::<Result<_>>()?;
        let cleaner = Cleaner::new(&spec.clean).at(place())?;
        let encoder = Self { spec: spec.clone(), cleaner, tokenizers, graphs };
        for name in encoder.tokenizers.keys() {
            encoder.tokens(name, &spec.unconditional).map_err(|error| {
                let reason = "manifest.json: `text.unconditional` is no prompt of this model";
                Error::directory(reason).with_source(error).at(place())
            })?;
        }
        Ok(encoder)
    }

    /// The prompt of the uncond branch when the user gives none.
    pub(crate) fn unconditional(&self) -> &str {
        &self.spec.unconditional
    }

    /// Names of the text inputs that the graphs give.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = &str> {
        self.spec.graphs.iter().flat_map(|graph| &graph.outputs).map(String::as_str)
    }

    /// The words that the model knows, where it knows words rather than pieces of text; sorted.
    pub(crate) fn words(&self) -> Option<Vec<String>> {
        let (name, spec) = self.spec.tokenizers.iter().find(|(_, spec)| spec.unknown_id.is_some())?;
        let vocabulary = self.tokenizers.get(name)?.vocabulary();
        let words: BTreeSet<String> = vocabulary
            .into_iter()
            .filter(|(word, id)| Some(*id) != spec.unknown_id && !word.starts_with('<'))
            .map(|(word, _)| word)
            .collect();
        (words.len() <= MAX_LISTED_WORDS).then(|| words.into_iter().collect())
    }

    /// What of this prompt does not reach the model; `called` says which prompt it is.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub(crate) fn warnings(&self, called: &str, prompt: &str) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        if let Some(odd) = self.cleaned(prompt)?.suspicious {
            warnings.push(format!(
                "{called} looks as if it was read in a wrong encoding at {odd:?}; the model's own pipeline might repair \
                 that (ftfy), this engine reads it as it is: write it in the letters that you mean"
            ));
        }
        for (name, spec) in &self.spec.tokenizers {
            if self.tokens(name, prompt)?.is_cut {
                let end = if self.cuts_at(name) == Direction::Left { "last" } else { "first" };
                warnings.push(format!("{called} is cut: tokenizer `{name}` reads its {end} {} tokens", spec.length));
            }
        }
        Ok(warnings)
    }

    /// How many tokens each tokenizer gives for prompts that are to have one length.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub(crate) fn lengths(&self, prompts: &[&str]) -> Result<BTreeMap<String, usize>> {
        let mut lengths = BTreeMap::new();
        for (name, spec) in &self.spec.tokenizers {
            let mut length = spec.length as usize;
            if spec.padding == Padding::Longest {
                let counts = prompts.iter().map(|prompt| Ok(self.tokens(name, prompt)?.ids.len()));
                let most = counts.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or_default();
                // What the graphs leave out is there in any case, and a model is never given no text at all.
                let drop = spec.drop as usize;
                length = drop + most.saturating_sub(drop).max(1).next_multiple_of(spec.multiple_of as usize);
            }
            lengths.insert(name.clone(), length);
        }
        Ok(lengths)
    }

    /// Runs the text graphs over one prompt per picture, padded to `lengths`; gives each output: its name and tensor.
    ///
    /// # Errors
    /// `Input` for a word that the model does not know.
    pub(crate) fn encode(
        &self,
        prompts: &[String],
        ports: &[Port],
        lengths: &BTreeMap<String, usize>,
        buffers: &mut Buffers,
    ) -> Result<Vec<(String, BufferId)>> {
        let batch = prompts.len() as i64;
        let mut tokens: BTreeMap<&str, Vec<Tokens>> = BTreeMap::new();
        for name in self.tokenizers.keys() {
            let spec = &self.spec.tokenizers[name];
            let length = lengths.get(name).copied().unwrap_or(spec.length as usize);
            let padded = |prompt: &String| Ok(self.tokens(name, prompt)?.padded(spec, length));
            tokens.insert(name, prompts.iter().map(padded).collect::<Result<_>>()?);
        }
        let mut encoded: Vec<(String, BufferId)> = Vec::new();
        for (graph, session) in self.spec.graphs.iter().zip(&self.graphs) {
            let mut inputs = Vec::new();
            for (port, input) in &graph.inputs {
                let id = match input {
                    TextInputSpec::Tensor { tensor } => {
                        let known = encoded.iter().find(|(name, _)| name == tensor);
                        known.ok_or_else(|| Error::internal(format!("no text tensor `{tensor}`")))?.1
                    }
                    TextInputSpec::Tokens { tokenizer, field } => {
                        let rows = tokens.get(tokenizer.as_str()).map(Vec::as_slice).unwrap_or_default();
                        let field = |row: &Tokens| if *field == TokenField::Ids { &row.ids } else { &row.mask }.clone();
                        let numbers: Vec<i64> = rows.iter().flat_map(field).collect();
                        let id =
                            buffers.add_at(TensorPlace::Host, DType::I64, &[batch, numbers.len() as i64 / batch])?;
                        buffers.write_ids(id, &numbers)?;
                        id
                    }
                };
                inputs.push((port.clone(), id));
            }
            let mut outputs = Vec::new();
            for name in &graph.outputs {
                let Some(port) = ports.iter().find(|port| port.name == *name) else { continue };
                let extent = |axis: &Axis| match axis {
                    Axis::Fixed(extent) => Ok(*extent as i64),
                    Axis::Named(name) if name == "batch" => Ok(batch),
                    Axis::Named(dim) => self.tokens_along(dim, graph, Known { lengths, ports }, &encoded, buffers),
                };
                let shape = port.shape.iter().map(extent).collect::<Result<Vec<i64>>>()?;
                outputs.push((name.clone(), buffers.add(port.dtype, &shape)?));
            }
            Op::bind(session, buffers, &inputs, &outputs)?.run()?;
            encoded.extend(outputs);
        }
        Ok(encoded)
    }

    /// The extent of a dynamic axis of what a graph gives: its stated length, the tokens that it reads, or the axis of a
    /// tensor that it takes.
    fn tokens_along(
        &self,
        dim: &str,
        graph: &TextGraphSpec,
        known: Known<'_>,
        encoded: &[(String, BufferId)],
        buffers: &Buffers,
    ) -> Result<i64> {
        let Known { lengths, ports } = known;
        if let Some(length) = graph.length {
            return Ok(length as i64);
        }
        if let Some(tokenizer) = graph.tokenizer() {
            let drop = self.spec.tokenizers[tokenizer].drop as usize; // Manifest::parse has checked the name.
            return Ok(lengths.get(tokenizer).copied().unwrap_or_default().saturating_sub(drop) as i64);
        }
        let along = |tensor: &str| {
            let shape = &ports.iter().find(|port| port.name == tensor)?.shape;
            let place = shape.iter().position(|axis| *axis == Axis::Named(dim.to_owned()))?;
            let (_, id) = encoded.iter().find(|(name, _)| name == tensor)?;
            buffers.shape(*id).get(place).copied()
        };
        let found = graph.tensors().find_map(along);
        found.ok_or_else(|| Error::internal(format!("nothing gives the axis `{dim}` of {}", graph.file)))
    }

    /// The prompt as the tokenizers get it.
    fn cleaned(&self, prompt: &str) -> Result<Cleaned> {
        if prompt.len() > MAX_PROMPT {
            return Err(Error::input(format!("the prompt has {} bytes; at most {MAX_PROMPT} are read", prompt.len())));
        }
        self.cleaner.clean(prompt)
    }

    /// At which end a tokenizer cuts what is too long.
    fn cuts_at(&self, name: &str) -> Direction {
        self.tokenizers.get(name).map_or(Direction::Right, Tokenizer::cuts_at)
    }

    fn tokens(&self, name: &str, prompt: &str) -> Result<Tokens> {
        let (tokenizer, spec) = (&self.tokenizers[name], &self.spec.tokenizers[name]);
        let text = format!("{}{}{}", spec.prefix, self.cleaned(prompt)?.text, spec.suffix);
        let encoded = tokenizer.encode(&text).at(format!("tokenizer `{name}`"))?;
        let ids = encoded.ids;
        if let Some(position) = ids.iter().position(|id| Some(*id) == spec.unknown_id) {
            let (start, end) = encoded.offsets.get(position).copied().unwrap_or_default();
            return Err(self.unknown_word(text.get(start..end).unwrap_or(prompt)));
        }
        let length = spec.length as usize;
        // A tokenizer may cut by itself, before the token that ends a text.
        let is_cut = ids.len() > length || encoded.is_cut;
        if is_cut && spec.unknown_id.is_some() {
            let words = prompt.split_whitespace().count();
            return Err(Error::input(format!("the prompt has {words} words; the model takes at most {length}")));
        }
        let skipped = match self.cuts_at(name) {
            Direction::Left => ids.len().saturating_sub(length),
            Direction::Right => 0,
        };
        let ids: Vec<i64> = ids.iter().skip(skipped).take(length).map(|id| i64::from(*id)).collect();
        Ok(Tokens { mask: vec![1; ids.len()], ids, is_cut })
    }

    fn unknown_word(&self, word: &str) -> Error {
        let words = self.words().unwrap_or_default();
        let word: String = word.chars().take(SHOWN).collect();
        let mut near: Vec<(usize, &String)> = words.iter().map(|known| (edit_distance(&word, known), known)).collect();
        near.sort();
        let near: Vec<&str> = near.iter().take(SUGGESTIONS).map(|(_, known)| known.as_str()).collect();
        Error::input(format!(
            "the model does not know the word `{word}`; the nearest that it knows: {} (`dbcache-trt inspect` lists all {})",
            near.join(", "),
            words.len()
        ))
    }
}

fn read_tokenizer(content: &[u8], spec: &TokenizerSpec) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::parse(content)?;
    for (field, id) in [("pad_id", Some(spec.pad_id)), ("unknown_id", spec.unknown_id)] {
        if let Some(id) = id.filter(|id| !tokenizer.has(*id)) {
            return Err(Error::directory(format!("has no token {id}, which the manifest calls its `{field}`")));
        }
    }
    Ok(tokenizer)
}

#[cfg(test)]
mod tests;
