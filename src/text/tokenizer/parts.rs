//! Which parts of a tokenizer file this engine takes, and in which ranges: the types are the list. Whatever is not here,
//! be it a part, a field or a value, is refused when the file is read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokenizers::AddedToken;

use super::ids::check_id;

/// Most parts of one kind, those inside of sequences counted one by one. Published tokenizers have up to four.
const MAX_PARTS: usize = 8;
/// Most tokens that are put around a text.
const MAX_AROUND: usize = 64;
/// Most pieces of a template.
const MAX_PIECES: usize = 64;
/// Most tokens that a text may be cut to.
const MAX_LENGTH: usize = 1 << 16;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum Normalizer {
    #[serde(rename = "BertNormalizer")]
    Bert {
        clean_text: bool,
        handle_chinese_chars: bool,
        strip_accents: Option<bool>,
        lowercase: bool,
    },
    Strip {
        strip_left: bool,
        strip_right: bool,
    },
    StripAccents {},
    #[serde(rename = "NFC")]
    Nfc {},
    #[serde(rename = "NFD")]
    Nfd {},
    #[serde(rename = "NFKC")]
    Nfkc {},
    #[serde(rename = "NFKD")]
    Nfkd {},
    Lowercase {},
    Nmt {},
    ByteLevel {},
    Precompiled {
        precompiled_charsmap: String,
    },
    Replace {
        pattern: Pattern,
        content: String,
    },
    Prepend {
        prepend: String,
    },
    Sequence {
        normalizers: Vec<Normalizer>,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum PreTokenizer {
    #[serde(rename = "BertPreTokenizer")]
    Bert {},
    ByteLevel {
        add_prefix_space: bool,
        trim_offsets: bool,
        #[serde(default = "yes")]
        use_regex: bool,
    },
    CharDelimiterSplit {
        delimiter: char,
    },
    Digits {
        individual_digits: bool,
    },
    FixedLength {
        length: usize,
    },
    Metaspace {
        replacement: char,
        prepend_scheme: PrependScheme,
        split: bool,
    },
    Punctuation {
        behavior: Behavior,
    },
    Split {
        pattern: Pattern,
        behavior: Behavior,
        invert: bool,
    },
    UnicodeScripts {},
    Whitespace {},
    WhitespaceSplit {},
    Sequence {
        pretokenizers: Vec<PreTokenizer>,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Pattern {
    String(String),
    Regex(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PrependScheme {
    First,
    Never,
    Always,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Behavior {
    Removed,
    Isolated,
    MergedWithPrevious,
    MergedWithNext,
    Contiguous,
}

/// Of these only the tokens that they put around a text are taken; the rest says where in the text a token lies.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum PostProcessor {
    BertProcessing {
        sep: (String, u32),
        cls: (String, u32),
    },
    RobertaProcessing {
        sep: (String, u32),
        cls: (String, u32),
        #[serde(rename = "trim_offsets")]
        _trim_offsets: bool,
        #[serde(rename = "add_prefix_space")]
        _add_prefix_space: bool,
    },
    ByteLevel {
        #[serde(rename = "add_prefix_space")]
        _add_prefix_space: bool,
        #[serde(rename = "trim_offsets")]
        _trim_offsets: bool,
        #[serde(default, rename = "use_regex")]
        _use_regex: bool,
    },
    TemplateProcessing {
        single: Vec<TextPiece>,
        #[serde(rename = "pair")]
        _pair: Vec<TextPiece>,
        special_tokens: BTreeMap<String, SpecialToken>,
    },
    Sequence {
        processors: Vec<PostProcessor>,
    },
}

#[derive(Clone, Debug, Deserialize)]
pub(super) enum TextPiece {
    Sequence {
        id: TextId,
        #[serde(rename = "type_id")]
        _type_id: u32,
    },
    SpecialToken {
        id: String,
        #[serde(rename = "type_id")]
        _type_id: u32,
    },
}

/// The text, and the second one of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub(super) enum TextId {
    A,
    B,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SpecialToken {
    #[serde(rename = "id")]
    _id: String,
    ids: Vec<u32>,
    #[serde(rename = "tokens")]
    _tokens: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Truncation {
    #[serde(default)]
    pub direction: Direction,
    pub max_length: usize,
    strategy: Strategy,
    stride: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub(in crate::text) enum Direction {
    Left,
    #[default]
    Right,
}

/// Which of two texts is cut: there is only one.
#[derive(Clone, Debug, Deserialize)]
enum Strategy {
    LongestFirst,
    OnlyFirst,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Added {
    pub id: u32,
    pub content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    pub normalized: bool,
    special: bool,
}

/// The tokens that post-processors put around a text.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Around {
    pub before: Vec<u32>,
    pub after: Vec<u32>,
}

fn yes() -> bool {
    true
}

impl Normalizer {
    /// All of a sequence, one behind the other.
    pub(super) fn flat(self) -> Result<Vec<Self>, String> {
        flat(self, |part| match part {
            Self::Sequence { normalizers } => Err(normalizers),
            part => Ok(part),
        })
    }
}

impl PreTokenizer {
    /// All of a sequence, one behind the other.
    pub(super) fn flat(self) -> Result<Vec<Self>, String> {
        flat(self, |part| match part {
            Self::Sequence { pretokenizers } => Err(pretokenizers),
            part => Ok(part),
        })
    }
}

fn flat<P>(part: P, open: impl Fn(P) -> Result<P, Vec<P>>) -> Result<Vec<P>, String> {
    let (mut waiting, mut parts) = (vec![part], Vec::new());
    while let Some(part) = waiting.pop() {
        match open(part) {
            Ok(part) => parts.push(part),
            Err(inner) => waiting.extend(inner.into_iter().rev()),
        }
    }
    check_count(parts.len())?;
    Ok(parts)
}

fn check_count(parts: usize) -> Result<(), String> {
    if parts > MAX_PARTS { Err(format!("has {parts} parts; expected at most {MAX_PARTS}")) } else { Ok(()) }
}

impl Added {
    pub(super) fn into_token(self) -> AddedToken {
        let Self { content, single_word, lstrip, rstrip, normalized, special, .. } = self;
        AddedToken { content, single_word, lstrip, rstrip, normalized, special }
    }
}

impl Truncation {
    pub(super) fn check(&self, around: &Around) -> Result<(), String> {
        let Self { max_length, stride, strategy, .. } = self;
        let (Strategy::LongestFirst | Strategy::OnlyFirst) = strategy;
        let least = around.count() + 1;
        if !(least..=MAX_LENGTH).contains(max_length) {
            return Err(format!("the `max_length` is {max_length}; expected {least} to {MAX_LENGTH}"));
        }
        if *stride != 0 {
            return Err(format!("the `stride` is {stride}; expected 0, as what is cut is not read"));
        }
        Ok(())
    }
}

impl Around {
    pub(super) fn of(processor: &PostProcessor) -> Result<Self, String> {
        let (mut waiting, mut around, mut parts) = (vec![processor], Self::default(), 0);
        while let Some(processor) = waiting.pop() {
            parts += 1;
            check_count(parts)?;
            let (before, after) = match processor {
                PostProcessor::Sequence { processors } => {
                    waiting.extend(processors.iter().rev());
                    continue;
                }
                PostProcessor::ByteLevel { .. } => continue,
                PostProcessor::BertProcessing { sep, cls } | PostProcessor::RobertaProcessing { sep, cls, .. } => {
                    (vec![cls.1], vec![sep.1])
                }
                PostProcessor::TemplateProcessing { single, special_tokens, .. } => template(single, special_tokens)?,
            };
            around.before.splice(0..0, before);
            around.after.extend(after);
            if around.count() > MAX_AROUND {
                return Err(format!("puts {} tokens around a text; expected at most {MAX_AROUND}", around.count()));
            }
        }
        around.before.iter().chain(&around.after).try_for_each(|id| check_id(*id))?;
        Ok(around)
    }

    pub(super) fn count(&self) -> usize {
        self.before.len() + self.after.len()
    }
}

fn template(pieces: &[TextPiece], tokens: &BTreeMap<String, SpecialToken>) -> Result<(Vec<u32>, Vec<u32>), String> {
    if pieces.len() > MAX_PIECES {
        return Err(format!("the template has {} pieces; expected at most {MAX_PIECES}", pieces.len()));
    }
    let texts: Vec<usize> = (0..pieces.len()).filter(|at| matches!(pieces[*at], TextPiece::Sequence { .. })).collect();
    let is_text = |at: &usize| matches!(pieces[*at], TextPiece::Sequence { id: TextId::A, .. });
    let [text] = texts[..] else { return Err("the template does not hold the text once".into()) };
    if !is_text(&text) {
        return Err("the template holds the second text of a pair instead of the text".into());
    }
    Ok((ids_of(&pieces[..text], tokens)?, ids_of(&pieces[text + 1..], tokens)?))
}

/// The ids of the special tokens among the pieces.
fn ids_of(pieces: &[TextPiece], tokens: &BTreeMap<String, SpecialToken>) -> Result<Vec<u32>, String> {
    let mut found = Vec::new();
    for piece in pieces {
        if let TextPiece::SpecialToken { id, .. } = piece {
            let token = tokens.get(id).ok_or(format!("the template names the token {id:?}, which is not there"))?;
            if token.ids.len() > MAX_AROUND {
                return Err(format!("the token {id:?} has {} ids", token.ids.len()));
            }
            found.extend(&token.ids);
        }
    }
    Ok(found)
}
