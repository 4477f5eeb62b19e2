//! Reads prompts: from the text that a user gives to the tokens of each tokenizer. Nothing runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::clean::{Cleaned, Cleaner};
use super::tokenizer::{Direction, Tokenizer};
use crate::error::{At, Error, Result};
use crate::model::directory::EngineDirectory;
use crate::model::manifest::{PadSide, Padding, TextSpec, TokenizerSpec};
use crate::nearest::edit_distance;

/// Longest prompt in bytes: far more than any model reads.
const MAX_PROMPT: usize = 1 << 16;
/// How much of an unknown word an error shows, in characters.
const SHOWN: usize = 40;
/// How many known words an error about an unknown one shows.
const SUGGESTIONS: usize = 3;
/// A vocabulary up to this size is one of words that people can read (see [`PromptReader::words`]).
const MAX_LISTED_WORDS: usize = 10_000;

/// The tokenizers of a model, and the rules that clean its prompts.
pub(crate) struct PromptReader {
    pub(super) spec: TextSpec,
    cleaner: Cleaner,
    pub(super) tokenizers: BTreeMap<String, Tokenizer>,
}

/// Token ids and mask of one prompt.
pub(super) struct Tokens {
    pub(super) ids: Vec<i64>,
    pub(super) mask: Vec<i64>,
    is_cut: bool,
}

impl Tokens {
    pub(super) fn padded(mut self, spec: &TokenizerSpec, length: usize) -> Self {
        let count = length.saturating_sub(self.ids.len());
        for (row, value) in [(&mut self.ids, i64::from(spec.pad_id)), (&mut self.mask, 0)] {
            let at = if spec.pad_side == PadSide::Left { 0 } else { row.len() };
            row.splice(at..at, std::iter::repeat_n(value, count));
        }
        self
    }
}

impl fmt::Debug for PromptReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PromptReader").finish_non_exhaustive()
    }
}

impl PromptReader {
    /// Of a model; `None` if it takes no text.
    ///
    /// # Errors
    /// `EngineDirectory` when a tokenizer file does not parse or contradicts the manifest.
    pub(crate) fn load(directory: &EngineDirectory) -> Result<Option<Self>> {
        let Some(spec) = &directory.manifest.text else { return Ok(None) };
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
        let reader = Self { spec: spec.clone(), cleaner, tokenizers };
        for name in reader.tokenizers.keys() {
            reader.tokens(name, &spec.unconditional).map_err(|error| {
                let reason = "manifest.json: `text.unconditional` is no prompt of this model";
                Error::directory(reason).with_source(error).at(place())
            })?;
        }
        Ok(Some(reader))
    }

    /// The prompt of the uncond branch when the user gives none.
    pub(crate) fn unconditional(&self) -> &str {
        &self.spec.unconditional
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
    /// As [`check`](Self::check).
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

    /// Refuses a prompt that the model cannot read.
    ///
    /// # Errors
    /// `Input` for a word that the model does not know, or a prompt that is too long.
    pub(crate) fn check(&self, prompt: &str) -> Result<()> {
        self.tokenizers.keys().try_for_each(|name| self.tokens(name, prompt).map(drop))
    }

    /// How many tokens each tokenizer gives for prompts that are to have one length.
    ///
    /// # Errors
    /// `Input` for a word that the model does not know, or a prompt that is too long.
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

    /// The tokens of a prompt by the tokenizer `name`.
    pub(super) fn tokens(&self, name: &str, prompt: &str) -> Result<Tokens> {
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
            "the model does not know the word `{word}`; the nearest that it knows: {} (`dbcache-trt inspect DIR` lists all {})",
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
