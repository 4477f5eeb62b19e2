//! Normalisers and pre-tokenizers one by one, so that what each makes of a text is bounded before the next one runs.

use std::cell::Cell;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokenizers::{
    NormalizedString, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizerWrapper,
};

use super::parts::{Normalizer, Pattern, PreTokenizer};
use super::{charsmap, patterns};

/// How many times as long as before a text may become, by all parts of one kind together, beside [`GROWTH`] bytes.
/// Unicode's own normalisation of one character makes eleven of one; of texts, two or three.
const FACTOR: usize = 8;
const GROWTH: usize = 32;
/// Longest text that a part puts in.
const MAX_CONTENT: usize = 64;
/// Longest text that a part looks for.
const MAX_PATTERN: usize = 256;

thread_local! {
    /// The crate passes over what a normaliser fails with, so it is kept here until the text is encoded.
    static TOO_LONG: Cell<Option<(usize, usize)>> = const { Cell::new(None) };
}

/// The normalisers of a file, in their order.
pub(super) struct Normalizers(Vec<Step>);

struct Step {
    normalizer: NormalizerWrapper,
    /// Where one of them puts in a text for each match.
    replaces: Option<(fancy_regex::Regex, usize)>,
}

impl Step {
    fn new(part: Normalizer) -> Result<Self, String> {
        let replaces = match &part {
            Normalizer::Precompiled { precompiled_charsmap } => {
                charsmap::check(precompiled_charsmap)?;
                None
            }
            Normalizer::Prepend { prepend } => {
                check_content(prepend)?;
                None
            }
            Normalizer::Replace { pattern, content } => {
                check_content(content)?;
                Some((compiled(pattern)?, content.len()))
            }
            _ => None,
        };
        Ok(Self { normalizer: into_crate(&part)?, replaces })
    }
}

/// The pre-tokenizers of a file, in their order.
pub(super) struct PreTokenizers(Vec<PreTokenizerWrapper>);

impl Normalizers {
    pub(super) fn new(part: Option<Normalizer>) -> Result<Self, String> {
        let parts = part.map_or(Ok(Vec::new()), Normalizer::flat)?;
        Ok(Self(parts.into_iter().map(Step::new).collect::<Result<_, String>>()?))
    }

    /// What becomes of a text.
    pub(super) fn apply(&self, text: &str) -> Result<String, String> {
        let mut normalized = NormalizedString::from(text);
        bounded(|| tokenizers::Normalizer::normalize(self, &mut normalized))?;
        Ok(normalized.get().to_owned())
    }
}

impl tokenizers::Normalizer for Normalizers {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        let most = FACTOR * text.len_original() + GROWTH;
        for Step { normalizer, replaces } in &self.0 {
            // Before it is made: what a table of characters or a replacement gives can be much longer than the text.
            let expected = match (normalizer, replaces) {
                (NormalizerWrapper::Precompiled(table), _) => table.normalize_string(text.get()).len(),
                (_, Some((pattern, content))) => text.len() + pattern.find_iter(text.get()).count() * content,
                _ => 0,
            };
            check_size(expected, most)?;
            normalizer.normalize(text)?;
            check_size(text.len(), most)?;
        }
        Ok(())
    }
}

impl PreTokenizers {
    pub(super) fn new(part: Option<PreTokenizer>) -> Result<Self, String> {
        let parts = part.map_or(Ok(Vec::new()), PreTokenizer::flat)?;
        Ok(Self(parts.into_iter().map(checked).collect::<Result<_, String>>()?))
    }
}

fn checked(part: PreTokenizer) -> Result<PreTokenizerWrapper, String> {
    match &part {
        PreTokenizer::FixedLength { length: 0 } => return Err("the `length` is 0; expected at least 1".into()),
        PreTokenizer::Split { pattern, .. } => drop(compiled(pattern)?),
        _ => {}
    }
    into_crate(&part)
}

impl tokenizers::PreTokenizer for PreTokenizers {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        let size = |text: &PreTokenizedString| {
            let pieces = text.get_splits(OffsetReferential::Normalized, OffsetType::None);
            pieces.iter().map(|(piece, ..)| piece.len()).sum::<usize>()
        };
        let most = FACTOR * size(text) + GROWTH;
        for part in &self.0 {
            part.pre_tokenize(text)?;
            check_size(size(text), most)?;
        }
        Ok(())
    }
}

/// Runs `work`, which tokenizes on this thread; fails where a text has become too long in it.
pub(super) fn bounded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    TOO_LONG.set(None);
    let outcome = work();
    match TOO_LONG.take() {
        Some((bytes, most)) => Err(format!("it becomes {bytes} bytes; at most {most} are read")),
        None => outcome.map_err(|error| error.to_string()),
    }
}

fn check_size(bytes: usize, most: usize) -> tokenizers::Result<()> {
    if bytes > most {
        TOO_LONG.set(Some((bytes, most)));
        return Err("too long".into());
    }
    Ok(())
}

fn check_content(content: &str) -> Result<(), String> {
    if content.len() > MAX_CONTENT {
        return Err(format!("puts in {} bytes; expected at most {MAX_CONTENT}", content.len()));
    }
    Ok(())
}

fn compiled(pattern: &Pattern) -> Result<fancy_regex::Regex, String> {
    let expression = match pattern {
        Pattern::String(text) if text.len() > MAX_PATTERN => {
            return Err(format!("looks for {} bytes; expected at most {MAX_PATTERN}", text.len()));
        }
        Pattern::String(text) => fancy_regex::escape(text),
        Pattern::Regex(expression) => {
            patterns::check(expression)?;
            expression.into()
        }
    };
    fancy_regex::Regex::new(&expression).map_err(|error| error.to_string())
}

/// A checked part as the crate's own type.
fn into_crate<T: DeserializeOwned>(part: &impl Serialize) -> Result<T, String> {
    let json = serde_json::to_value(part).map_err(|error| error.to_string())?;
    serde_json::from_value(json).map_err(|error| error.to_string())
}
