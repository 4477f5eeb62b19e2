//! A Hugging Face tokenizer file, of which only a checked subset is taken.
//!
//! The crate `tokenizers` trusts its files: some make it panic, others make it compute for hours or fill the memory. So
//! the file is read by types of ours first ([`parts`], [`vocabulary`]), which know each part and the range of each of its
//! parameters; the crate only gets what has passed, and no truncation, padding, post-processor or decoder at all: cutting
//! a text and putting tokens around it is done here. What normalisers and pre-tokenizers make of a text is bounded while
//! they run ([`bounds`]).

mod bounds;
mod charsmap;
mod ids;
mod parts;
mod patterns;
mod vocabulary;

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokenizers::models::ModelWrapper;
use tokenizers::{AddedToken, DecoderWrapper, PostProcessorWrapper, TokenizerImpl};

use self::bounds::{Normalizers, PreTokenizers, bounded};
use self::parts::{Around, Truncation};
use crate::contain::contain;
use crate::error::{Error, Result};

use self::ids::check_id;
pub(super) use self::parts::Direction;
pub(super) use self::patterns::is_repeated_class;

/// Longest text that is tokenized, in bytes: a prompt of the longest length, cleaned, with the manifest's text around it.
pub(super) const MAX_TEXT: usize = 3 << 16;
/// Most bytes of a part that is no vocabulary. A table of characters (`Precompiled`) takes 400 000.
const MAX_PART: usize = 2 << 20;
/// Most added tokens, and most bytes of one.
const MAX_ADDED: usize = 1 << 16;
const MAX_ADDED_BYTES: usize = 256;

const AGAIN: &str = "export again with dbcache-export, which writes what this engine takes";

/// A tokenizer whose work is bounded by the length of the text.
pub(super) struct Tokenizer {
    inner: TokenizerImpl<ModelWrapper, Normalizers, PreTokenizers, PostProcessorWrapper, DecoderWrapper>,
    cut: Option<Truncation>,
    around: Around,
}

/// Ids of a text, and where in the text each comes from: nowhere for those that are put around it.
pub(super) struct Encoded {
    pub ids: Vec<u32>,
    pub offsets: Vec<(usize, usize)>,
    pub is_cut: bool,
}

/// The file, part by part.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File<'a> {
    version: Cow<'a, str>,
    #[serde(borrow)]
    truncation: Option<&'a RawValue>,
    #[serde(borrow)]
    padding: Option<&'a RawValue>,
    #[serde(borrow)]
    added_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow)]
    pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow)]
    post_processor: Option<&'a RawValue>,
    /// Nothing is decoded here.
    #[serde(borrow, rename = "decoder")]
    _decoder: Option<&'a RawValue>,
    #[serde(borrow)]
    model: &'a RawValue,
}

impl Tokenizer {
    /// # Errors
    /// `EngineDirectory` with the part that this engine does not take, and why.
    pub(super) fn parse(content: &[u8]) -> Result<Self> {
        contain(|| Self::parse_parts(content)).unwrap_or_else(|panic| Err(broken(&panic)))
    }

    fn parse_parts(content: &[u8]) -> Result<Self> {
        let unreadable =
            |error: serde_json::Error| Error::directory(format!("does not parse as a tokenizer ({error}); {AGAIN}"));
        let file: File<'_> = serde_json::from_slice(content).map_err(unreadable)?;
        if file.version != "1.0" {
            return Err(Error::directory(format!("is a tokenizer of version {:?}; expected \"1.0\"", file.version)));
        }
        if file.padding.is_some() {
            return Err(Error::directory("pads by itself, which would make padding look like text; export again"));
        }
        let normalizers = Normalizers::new(optional(file.normalizer, "normalizer")?).map_err(in_part("normalizer"))?;
        let pre_tokenizers = optional(file.pre_tokenizer, "pre_tokenizer")?;
        let pre_tokenizers = PreTokenizers::new(pre_tokenizers).map_err(in_part("pre_tokenizer"))?;
        let around = match optional::<parts::PostProcessor>(file.post_processor, "post_processor")? {
            Some(processor) => Around::of(&processor).map_err(in_part("post_processor"))?,
            None => Around::default(),
        };
        let cut = optional::<Truncation>(file.truncation, "truncation")?;
        if let Some(cut) = &cut {
            cut.check(&around).map_err(in_part("truncation"))?;
        }
        let model = vocabulary::read(file.model.get()).map_err(in_part("model"))?;
        let added = optional::<Vec<parts::Added>>(file.added_tokens, "added_tokens")?.unwrap_or_default();
        let added = added_tokens(added, &normalizers).map_err(in_part("added_tokens"))?;

        let mut inner = TokenizerImpl::new(model);
        inner.with_normalizer(Some(normalizers)).with_pre_tokenizer(Some(pre_tokenizers));
        inner.add_tokens(&added);
        Ok(Self { inner, cut, around })
    }

    pub(super) fn has(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some()
    }

    pub(super) fn vocabulary(&self) -> HashMap<String, u32> {
        self.inner.get_vocab(true)
    }

    /// At which end it cuts what is too long.
    pub(super) fn cuts_at(&self) -> Direction {
        self.cut.as_ref().map_or(Direction::Right, |cut| cut.direction)
    }

    /// # Errors
    /// `Input` for a text that is too long, or becomes it; `EngineDirectory` where the file is at fault.
    pub(super) fn encode(&self, text: &str) -> Result<Encoded> {
        if text.len() > MAX_TEXT {
            return Err(Error::input(format!("the text has {} bytes; at most {MAX_TEXT} are tokenized", text.len())));
        }
        let encoding = contain(|| bounded(|| self.inner.encode(text, false))).map_err(|panic| broken(&panic))?;
        let encoding = encoding.map_err(|error| Error::input(format!("the text cannot be tokenized: {error}")))?;
        let (ids, offsets) = (encoding.get_ids(), encoding.get_offsets());
        let most = self.cut.as_ref().map_or(usize::MAX, |cut| cut.max_length - self.around.count()); // checked
        let surplus = ids.len().saturating_sub(most);
        let kept = match self.cuts_at() {
            Direction::Left => surplus..ids.len(),
            Direction::Right => 0..ids.len() - surplus,
        };
        let Around { before, after } = &self.around;
        let nowhere = |ids: &[u32]| vec![(0, 0); ids.len()];
        Ok(Encoded {
            ids: [before, &ids[kept.clone()], after].concat(),
            offsets: [&nowhere(before), &offsets[kept], &nowhere(after)].concat(),
            is_cut: surplus > 0,
        })
    }
}

/// What only the net below all checks has caught.
fn broken(panic: &str) -> Error {
    Error::directory(format!("has parts that contradict each other ({panic}); {AGAIN}"))
}

fn in_part(part: &str) -> impl Fn(String) -> Error {
    move |problem| Error::directory(format!("`{part}`: {problem}; {AGAIN}"))
}

fn optional<T: DeserializeOwned>(json: Option<&RawValue>, part: &str) -> Result<Option<T>> {
    let read = |json: &RawValue| {
        if json.get().len() > MAX_PART && part != "added_tokens" {
            return Err(format!("has {} bytes; expected at most {MAX_PART}", json.get().len()));
        }
        serde_json::from_str(json.get()).map_err(|error| error.to_string())
    };
    json.map(read).transpose().map_err(in_part(part))
}

fn added_tokens(added: Vec<parts::Added>, normalizers: &Normalizers) -> Result<Vec<AddedToken>, String> {
    if added.len() > MAX_ADDED {
        return Err(format!("are {}; expected at most {MAX_ADDED}", added.len()));
    }
    for token in &added {
        let content = &token.content;
        if content.is_empty() || content.len() > MAX_ADDED_BYTES {
            return Err(format!("one has {} bytes; expected 1 to {MAX_ADDED_BYTES}", content.len()));
        }
        check_id(token.id)?;
        if token.normalized && normalizers.apply(content)?.is_empty() {
            return Err(format!("{content:?} is nothing to the normalizer"));
        }
    }
    Ok(added.into_iter().map(parts::Added::into_token).collect())
}

#[cfg(test)]
mod tests;
