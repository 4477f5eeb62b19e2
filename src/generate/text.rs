//! From a prompt to the text inputs of the model: tokenizers and text graphs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokenizers::Tokenizer;

use crate::error::{At, Error, Result};
use crate::model::directory::EngineDirectory;
use crate::model::graph::Port;
use crate::model::manifest::{Axis, DType, FileRef, TextSpec, TokenField, TokenizerSpec};
use crate::nearest::edit_distance;
use crate::runtime::session::Session;
use crate::runtime::tensor::{BufferId, Buffers, Place};

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
    tokenizers: BTreeMap<String, Tokenizer>,
    graphs: Vec<Arc<Session>>,
}

/// Token ids and mask of one prompt, padded to the tokenizer's length.
struct Tokens {
    ids: Vec<i64>,
    mask: Vec<i64>,
    is_cut: bool,
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
                let TokenizerSpec { file, bytes, sha256, .. } = tokenizer;
                let content = directory.read(FileRef { file, bytes: *bytes, sha256 })?;
                Ok((name.clone(), read_tokenizer(&content, tokenizer).at(file).at(place())?))
            })
            .collect::<Result<_>>()?;
        let encoder = Self { spec: spec.clone(), tokenizers, graphs };
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
        let vocabulary = self.tokenizers.get(name)?.get_vocab(true);
        let words: BTreeSet<String> = vocabulary
            .into_iter()
            .filter(|(word, id)| Some(*id) != spec.unknown_id && !word.starts_with('<'))
            .map(|(word, _)| word)
            .collect();
        (words.len() <= MAX_LISTED_WORDS).then(|| words.into_iter().collect())
    }

    /// What of this prompt does not reach the model.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub(crate) fn warnings(&self, prompt: &str) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for (name, spec) in &self.spec.tokenizers {
            if self.tokens(name, prompt)?.is_cut {
                warnings.push(format!("the prompt is cut: tokenizer `{name}` reads its first {} tokens", spec.length));
            }
        }
        Ok(warnings)
    }

    /// Runs the text graphs over one prompt per picture; gives each text input of the model: its name and tensor.
    ///
    /// # Errors
    /// `Input` for a word that the model does not know.
    pub(crate) fn encode(
        &self,
        prompts: &[String],
        ports: &[Port],
        buffers: &mut Buffers,
    ) -> Result<Vec<(String, BufferId)>> {
        let batch = prompts.len() as i64;
        let mut tokens: BTreeMap<&str, Vec<Tokens>> = BTreeMap::new();
        for name in self.tokenizers.keys() {
            tokens.insert(name, prompts.iter().map(|prompt| self.tokens(name, prompt)).collect::<Result<_>>()?);
        }
        let mut encoded = Vec::new();
        for (graph, session) in self.spec.graphs.iter().zip(&self.graphs) {
            let mut inputs = Vec::new();
            for (port, input) in &graph.inputs {
                let rows = tokens.get(input.tokenizer.as_str()).map(Vec::as_slice).unwrap_or_default();
                let numbers: Vec<i64> = rows
                    .iter()
                    .flat_map(|row| if input.field == TokenField::Ids { &row.ids } else { &row.mask })
                    .copied()
                    .collect();
                let id = buffers.add_at(Place::Host, DType::I64, &[batch, numbers.len() as i64 / batch])?;
                buffers.write_ids(id, &numbers)?;
                inputs.push((port.clone(), id));
            }
            let tokenizer = graph.inputs.values().next().and_then(|input| self.spec.tokenizers.get(&input.tokenizer));
            let length = tokenizer.map_or(0, |tokenizer| tokenizer.length as i64);
            let mut outputs = Vec::new();
            for name in &graph.outputs {
                let Some(port) = ports.iter().find(|port| port.name == *name) else { continue };
                let shape: Vec<i64> = port.shape.iter().map(|axis| text_extent(axis, batch, length)).collect();
                outputs.push((name.clone(), buffers.add(port.dtype, &shape)?));
            }
            let binding = session.bind(buffers, &inputs, &outputs)?;
            session.run(&binding)?;
            encoded.extend(outputs);
        }
        Ok(encoded)
    }

    fn tokens(&self, name: &str, prompt: &str) -> Result<Tokens> {
        let (tokenizer, spec) = (&self.tokenizers[name], &self.spec.tokenizers[name]);
        if prompt.len() > MAX_PROMPT {
            return Err(Error::input(format!("the prompt has {} bytes; at most {MAX_PROMPT} are read", prompt.len())));
        }
        let encoding = tokenizer
            .encode(prompt, true)
            .map_err(|error| Error::input(format!("the prompt {prompt:?} cannot be tokenized: {error}")))?;
        let ids = encoding.get_ids();
        if let Some(position) = ids.iter().position(|id| Some(*id) == spec.unknown_id) {
            let (start, end) = encoding.get_offsets().get(position).copied().unwrap_or_default();
            return Err(self.unknown_word(prompt.get(start..end).unwrap_or(prompt)));
        }
        let length = spec.length as usize;
        // A tokenizer may cut by itself, before the token that ends a text.
        let is_cut = ids.len() > length || !encoding.get_overflowing().is_empty();
        if is_cut && spec.unknown_id.is_some() {
            let words = prompt.split_whitespace().count();
            return Err(Error::input(format!("the prompt has {words} words; the model takes at most {length}")));
        }
        let kept = ids.len().min(length);
        let mut row: Vec<i64> = ids[..kept].iter().map(|id| i64::from(*id)).collect();
        row.resize(length, i64::from(spec.pad_id));
        let mask = (0..length).map(|i| i64::from(i < kept)).collect();
        Ok(Tokens { ids: row, mask, is_cut })
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
    let tokenizer = Tokenizer::from_bytes(content)
        .map_err(|error| Error::directory(format!("does not parse as a tokenizer: {error}")))?;
    for (field, id) in [("pad_id", Some(spec.pad_id)), ("unknown_id", spec.unknown_id)] {
        if let Some(id) = id.filter(|id| tokenizer.id_to_token(*id).is_none()) {
            return Err(Error::directory(format!("has no token {id}, which the manifest calls its `{field}`")));
        }
    }
    if tokenizer.get_padding().is_some() {
        return Err(Error::directory("pads by itself, which would make padding look like text; export again"));
    }
    Ok(tokenizer)
}

/// The dynamic axes of a text output are the batch, and the tokens of the graph's tokenizer.
fn text_extent(axis: &Axis, batch: i64, tokens: i64) -> i64 {
    match axis {
        Axis::Fixed(extent) => *extent as i64,
        Axis::Named(name) if name == "batch" => batch,
        Axis::Named(_) => tokens,
    }
}
