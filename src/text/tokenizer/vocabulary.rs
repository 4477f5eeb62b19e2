//! The models of tokenizer files: which there are, and in which ranges their numbers lie.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BpeBuilder, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordlevel::WordLevelBuilder;
use tokenizers::models::wordpiece::WordPieceBuilder;

use super::ids::check_id;

/// Longest piece that a Unigram model looks up at each character of a text, in bytes. sentencepiece makes 16 characters.
const MAX_PIECE: usize = 128;
/// Longest text that is put around each piece that is looked up.
const MAX_AFFIX: usize = 32;
/// Longest word that is divided; the time grows with its cube. BERT has 100.
const MAX_WORD: usize = 200;

#[derive(Deserialize)]
struct VocabularyKind {
    r#type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BpeFile {
    #[serde(rename = "type")]
    _type: String,
    #[serde(default)]
    dropout: Option<f32>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: BTreeMap<String, u32>,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UnigramFile {
    #[serde(rename = "type")]
    _type: String,
    unk_id: Option<usize>,
    vocab: Vec<(String, f64)>,
    #[serde(default)]
    byte_fallback: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WordLevelFile {
    #[serde(rename = "type")]
    _type: String,
    vocab: BTreeMap<String, u32>,
    unk_token: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WordPieceFile {
    #[serde(rename = "type")]
    _type: String,
    vocab: BTreeMap<String, u32>,
    unk_token: String,
    continuing_subword_prefix: String,
    max_input_chars_per_word: usize,
}

/// Two pieces that become one: a list of two, or a line with a space between them.
struct Merge(String, String);

pub(super) fn read(json: &str) -> Result<ModelWrapper, String> {
    let VocabularyKind { r#type } = parse(json)?;
    match r#type.as_str() {
        "BPE" => bpe(parse(json)?),
        "Unigram" => unigram(parse(json)?),
        "WordLevel" => {
            let WordLevelFile { vocab, unk_token, .. } = parse(json)?;
            let vocab = checked(vocab, Some(&unk_token))?;
            Ok(WordLevelBuilder::new().vocab(vocab).unk_token(unk_token).build().map_err(text)?.into())
        }
        "WordPiece" => word_piece(parse(json)?),
        other => Err(format!("the type is {other:?}; expected BPE, Unigram, WordLevel or WordPiece")),
    }
}

fn bpe(file: BpeFile) -> Result<ModelWrapper, String> {
    if file.dropout.is_some_and(|dropout| dropout != 0.0) {
        return Err("the `dropout` would make the ids of a prompt random; expected none".into());
    }
    let prefix = file.continuing_subword_prefix.as_deref().unwrap_or_default();
    check_affix("continuing_subword_prefix", prefix)?;
    check_affix("end_of_word_suffix", file.end_of_word_suffix.as_deref().unwrap_or_default())?;
    if let Some(Merge(_, second)) = file.merges.iter().find(|Merge(_, second)| !second.starts_with(prefix)) {
        return Err(format!("merges with {second:?}, which lacks the prefix {prefix:?}"));
    }
    let vocab = checked(file.vocab, file.unk_token.as_deref())?;
    let merges = file.merges.into_iter().map(|Merge(first, second)| (first, second)).collect();
    let mut builder = BpeBuilder::new()
        .vocab_and_merges(vocab, merges)
        .fuse_unk(file.fuse_unk)
        .byte_fallback(file.byte_fallback)
        .ignore_merges(file.ignore_merges);
    if let Some(unknown) = file.unk_token {
        builder = builder.unk_token(unknown);
    }
    if let Some(prefix) = file.continuing_subword_prefix {
        builder = builder.continuing_subword_prefix(prefix);
    }
    if let Some(suffix) = file.end_of_word_suffix {
        builder = builder.end_of_word_suffix(suffix);
    }
    Ok(builder.build().map_err(text)?.into())
}

fn unigram(file: UnigramFile) -> Result<ModelWrapper, String> {
    let UnigramFile { unk_id, vocab, byte_fallback, .. } = file;
    if unk_id.is_none_or(|id| id >= vocab.len()) {
        return Err(format!("the `unk_id` is {unk_id:?}; expected one of the {} pieces", vocab.len()));
    }
    if let Some((piece, _)) = vocab.iter().find(|(piece, _)| piece.len() > MAX_PIECE) {
        return Err(format!("a piece has {} bytes; expected at most {MAX_PIECE}", piece.len()));
    }
    Ok(Unigram::from(vocab, unk_id, byte_fallback).map_err(text)?.into())
}

fn word_piece(file: WordPieceFile) -> Result<ModelWrapper, String> {
    let WordPieceFile { vocab, unk_token, continuing_subword_prefix: prefix, max_input_chars_per_word: most, .. } =
        file;
    check_affix("continuing_subword_prefix", &prefix)?;
    if most > MAX_WORD {
        return Err(format!("the `max_input_chars_per_word` is {most}; expected at most {MAX_WORD}"));
    }
    let vocab = checked(vocab, Some(&unk_token))?;
    let builder = WordPieceBuilder::new().vocab(vocab).unk_token(unk_token).continuing_subword_prefix(prefix);
    Ok(builder.max_input_chars_per_word(most).build().map_err(text)?.into())
}

/// The crate's map of a vocabulary, whose ids are in range, and which has the token for what is unknown.
fn checked(vocab: BTreeMap<String, u32>, unknown: Option<&str>) -> Result<Vocab, String> {
    vocab.values().try_for_each(|id| check_id(*id))?;
    if let Some(unknown) = unknown.filter(|unknown| !vocab.contains_key(*unknown)) {
        return Err(format!("the vocabulary lacks the `unk_token` {unknown:?}"));
    }
    Ok(vocab.into_iter().collect())
}

fn check_affix(name: &str, affix: &str) -> Result<(), String> {
    if affix.len() > MAX_AFFIX {
        return Err(format!("the `{name}` has {} bytes; expected at most {MAX_AFFIX}", affix.len()));
    }
    Ok(())
}

fn parse<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, String> {
    serde_json::from_str(json).map_err(text)
}

fn text(error: impl fmt::Display) -> String {
    error.to_string()
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair;

        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two pieces with a space between them, or a list of them")
            }

            fn visit_str<E: de::Error>(self, line: &str) -> Result<Merge, E> {
                match line.split_once(' ') {
                    Some((first, second)) if !second.contains(' ') => Ok(Merge(first.into(), second.into())),
                    _ => Err(E::invalid_value(de::Unexpected::Str(line), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merge, A::Error> {
                match (list.next_element()?, list.next_element()?, list.next_element::<String>()?) {
                    (Some(first), Some(second), None) => Ok(Merge(first, second)),
                    _ => Err(de::Error::invalid_length(2, &self)),
                }
            }
        }

        deserializer.deserialize_any(Pair)
    }
}
