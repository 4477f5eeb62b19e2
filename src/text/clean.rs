//! What a pipeline does with a prompt before it is tokenized: rules of the manifest, with the results of Python's.
//!
//! | rule | is Python's |
//! | --- | --- |
//! | `strip` | `text.strip()` |
//! | `lowercase` | `text.lower()` |
//! | `html_unescape` | `html.unescape(text)` |
//! | `url_unquote` | `urllib.parse.unquote_plus(text)` |
//! | `fix_text` | `ftfy.fix_text(text)`, but for text in a wrong encoding, which gives a warning |
//! | `refuse_markup` | refuses what BeautifulSoup's `html.parser` would take for tags or entities |
//! | `replace` | `re.sub(pattern, with, text)`, or nothing where there are no more than `if_more_than` matches |

mod entities;
mod fix_text;
mod pattern;

use std::borrow::Cow;

use fancy_regex::Regex;

use self::entities::unescape;
use super::tokenizer::is_repeated_class;
use crate::error::{Error, Result};
use crate::model::manifest::CleanRule;

/// How much of a prompt an error or a warning shows, in characters.
const SHOWN: usize = 40;

/// The expressions that the exporter writes, as Python spells them. Others can take hours for a prompt, so of them only
/// repeated classes of characters are taken.
const PATTERNS: &str = include_str!("clean/patterns.txt");
/// Most rules; the longest list of the exporter has 90.
const MAX_RULES: usize = 256;
/// Longest text that takes the place of a match, in bytes.
const MAX_WITH: usize = 64;
/// Longest text that a prompt may become, in bytes.
const MAX_CLEANED: usize = 2 << 16;

/// The rules of a manifest, ready to run.
pub(crate) struct Cleaner(Vec<Rule>);

enum Rule {
    Step(fn(&str) -> String),
    FixText,
    RefuseMarkup,
    Replace { regex: Regex, with: String, if_more_than: usize },
}

/// A prompt as the tokenizers get it.
#[derive(Debug, PartialEq)]
pub(crate) struct Cleaned {
    pub text: String,
    /// Where characters stand beside each other as in text that was read in a wrong encoding, which is left as it is.
    pub suspicious: Option<String>,
}

/// # Errors
/// `EngineDirectory` for a pattern that is none, or may take any time.
fn compile(rule: &CleanRule) -> Result<Rule> {
    Ok(match rule {
        CleanRule::Strip => Rule::Step(|text| text.trim_matches(is_space).to_owned()),
        CleanRule::Lowercase => Rule::Step(str::to_lowercase),
        CleanRule::HtmlUnescape => Rule::Step(unescape),
        CleanRule::UrlUnquote => Rule::Step(unquote),
        CleanRule::FixText => Rule::FixText,
        CleanRule::RefuseMarkup => Rule::RefuseMarkup,
        CleanRule::Replace { pattern, with, if_more_than } => {
            let shown: String = pattern.chars().take(SHOWN).collect();
            let translated = pattern::from_python(pattern);
            let regex = Regex::new(&translated).map_err(|error| {
                let reason = format!("manifest.json: `text.clean` has the bad pattern `{shown}`");
                Error::directory(reason).with_source(error)
            })?;
            let is_fast = PATTERNS.lines().any(|known| known == pattern) || is_repeated_class(&translated);
            if !is_fast || with.len() > MAX_WITH {
                return Err(Error::directory(format!(
                    "manifest.json: `text.clean` has the pattern `{shown}`, which is none of the exporter's and \
                     may take hours, or replaces it by more than {MAX_WITH} bytes; export again"
                )));
            }
            Rule::Replace { regex, with: with.clone(), if_more_than: *if_more_than }
        }
    })
}

impl Cleaner {
    /// # Errors
    /// `EngineDirectory` for a pattern that is none, or may take any time.
    pub(crate) fn new(rules: &[CleanRule]) -> Result<Self> {
        if rules.len() > MAX_RULES {
            let reason =
                format!("manifest.json: `text.clean` has {} rules; at most {MAX_RULES} are taken", rules.len());
            return Err(Error::directory(reason));
        }
        Ok(Self(rules.iter().map(compile).collect::<Result<_>>()?))
    }

    /// # Errors
    /// `Input` for a prompt that a rule refuses.
    pub(crate) fn clean(&self, prompt: &str) -> Result<Cleaned> {
        let shown = |text: &str| text.chars().take(SHOWN).collect::<String>();
        let mut cleaned = Cleaned { text: prompt.to_owned(), suspicious: None };
        for rule in &self.0 {
            let text = cleaned.text;
            cleaned.text = match rule {
                Rule::Step(step) => step(&text),
                Rule::FixText => {
                    let (fixed, odd) = fix_text::fix(&text);
                    cleaned.suspicious = cleaned.suspicious.or(odd.as_deref().map(shown));
                    fixed
                }
                Rule::RefuseMarkup => match markup(&text) {
                    None => text,
                    Some(at) => {
                        return Err(Error::input(format!(
                            "the prompt has HTML markup at {:?}: the model's own pipeline takes markup out, this engine \
                             does not; write the prompt as plain text",
                            shown(&text[at..])
                        )));
                    }
                },
                Rule::Replace { regex, with, if_more_than } => replace(regex, with, *if_more_than, &text)?.into_owned(),
            };
            let bytes = cleaned.text.len();
            if bytes > MAX_CLEANED {
                let reason =
                    format!("the prompt becomes {bytes} bytes when it is cleaned; at most {MAX_CLEANED} are read");
                return Err(Error::input(reason));
            }
        }
        Ok(cleaned)
    }
}

fn replace<'t>(regex: &Regex, with: &str, if_more_than: usize, text: &'t str) -> Result<Cow<'t, str>> {
    let failed = |error| Error::input("the prompt takes too long to clean; shorten it").with_source(error);
    if if_more_than > 0 {
        let mut matches = 0;
        // An expression that fails would fail at the same place for ever.
        for found in regex.find_iter(text) {
            found.map_err(failed)?;
            matches += 1;
        }
        if matches <= if_more_than {
            return Ok(Cow::Borrowed(text));
        }
    }
    regex.try_replacen(text, 0, with).map_err(failed)
}

/// White space of `str.strip` and of `\s`: with four separators of files, groups, records and units.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// Where `html.parser` sees a tag, a comment, a declaration, or an entity.
fn markup(text: &str) -> Option<usize> {
    text.char_indices().find_map(|(at, character)| {
        let rest = &text[at + character.len_utf8()..];
        let is_markup = match character {
            '<' => rest.starts_with(|next: char| next.is_ascii_alphabetic() || matches!(next, '/' | '!' | '?')),
            '&' => is_entity(rest),
            _ => false,
        };
        is_markup.then_some(at)
    })
}

/// Whether what is behind a `&` is the number of a character, or a name that is known or ends in a semicolon.
fn is_entity(text: &str) -> bool {
    if let Some(number) = text.strip_prefix('#') {
        let (digits, radix) = number.strip_prefix(['x', 'X']).map_or((number, 10), |digits| (digits, 16));
        return digits.starts_with(|digit: char| digit.is_digit(radix));
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let Some(end) = text.find(|c| !is_name(c)) else { return false };
    let name = &text[..end];
    let ends_well =
        text[end..].starts_with(';') || entities::table(name).or(entities::table(&format!("{name};"))).is_some();
    name.starts_with(|first: char| first.is_ascii_alphabetic()) && ends_well
}

/// Bytes behind per cent signs are UTF-8, as far as they stand beside each other and beside ASCII.
fn unquote(text: &str) -> String {
    let text = text.replace('+', " ");
    let mut found = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let ascii = rest.find(|c: char| !c.is_ascii()).unwrap_or(rest.len());
        let (run, behind) = rest.split_at(ascii);
        found.push_str(&String::from_utf8_lossy(&unquoted_bytes(run.as_bytes())));
        let other = behind.find(|c: char| c.is_ascii()).unwrap_or(behind.len());
        let (kept, next) = behind.split_at(other);
        found.push_str(kept);
        rest = next;
    }
    found
}

fn unquoted_bytes(text: &[u8]) -> Vec<u8> {
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        match (text[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                bytes.push(byte);
                at += 1;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests;
