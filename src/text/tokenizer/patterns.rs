//! Which regular expressions a tokenizer file may hold.
//!
//! Searching again and again with one can take the square of a text's length, and one that looks around can take any
//! time at all. So an expression is taken if it is one repeated character class, of which that cannot be said, or if it
//! is in the list of those that published tokenizers have, whose worst texts a test tries.

use regex_syntax::hir::{Hir, HirKind};

/// Expressions of published tokenizers that are more than one class.
pub(super) const KNOWN: &[&str] = &[
    // GPT-2.
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    // CLIP, with and without its ends.
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    // Qwen2 to Qwen3, and Qwen3.5.
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // Llama 3 and GPT-4.
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // Mistral (tekken), and GPT-4o.
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // Normalisers of sentencepiece models.
    r"\s{2,}|[\n\r\t]",
    r" +▁",
    r"^▁+$",
];

/// Longest expression that is not in the list, in bytes, and most repetitions that it may count.
const MAX_PATTERN: usize = 256;
const MAX_COUNT: u32 = 256;

pub(super) fn check(pattern: &str) -> Result<(), String> {
    if KNOWN.contains(&pattern) {
        return Ok(());
    }
    let shown: String = pattern.chars().take(80).collect();
    match is_repeated_class(pattern) {
        true => Ok(()),
        false => Err(format!("the expression {shown:?} is none that this engine knows to be fast")),
    }
}

/// Whether an expression is a class of characters, or one that is repeated.
pub(in crate::text) fn is_repeated_class(pattern: &str) -> bool {
    let is_class = |hir: &Hir| matches!(hir.kind(), HirKind::Literal(_) | HirKind::Class(_));
    let is_plain = |hir: Hir| match hir.kind() {
        HirKind::Repetition(of) => {
            of.min > 0 && of.min <= MAX_COUNT && of.max.is_none_or(|max| max <= MAX_COUNT) && is_class(&of.sub)
        }
        _ => is_class(&hir),
    };
    pattern.len() <= MAX_PATTERN && regex_syntax::parse(pattern).is_ok_and(is_plain)
}
