//! HTML's entities, as Python's `html.unescape` reads them.
//!
//! It follows the standard's table, but takes numbers of characters that are none out of the text, and reads names
//! without a semicolon wherever they stand.

use htmlize::ENTITIES;

/// The longest name, without `&` and `;`, that is looked at.
const LONGEST: usize = 32;
/// What the numbers 128 to 159 mean: Windows-1252, with the control characters where it has none.
pub(super) const WINDOWS_1252: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘', '’',
    '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// `html.unescape(text)`.
pub(super) fn unescape(text: &str) -> String {
    let mut found = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        found.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match entity(rest) {
            Some((meaning, length)) => {
                found.push_str(&meaning);
                rest = &rest[length..];
            }
            None => found.push('&'),
        }
    }
    found + rest
}

/// What stands for the entity behind a `&`, and how many bytes it has.
pub(super) fn entity(text: &str) -> Option<(String, usize)> {
    match text.strip_prefix('#') {
        Some(digits) => number(digits).map(|(meaning, length)| (meaning, length + 1)),
        None => named(text).map(|(meaning, length)| (meaning.to_owned(), length)),
    }
}

/// The longest known name at the start of a text behind a `&`: its meaning, and how many bytes the name has.
pub(super) fn named(text: &str) -> Option<(&'static str, usize)> {
    let stops = |c: char| matches!(c, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';');
    let mut ends: Vec<usize> =
        text.char_indices().take(LONGEST).take_while(|(_, c)| !stops(*c)).map(|(at, c)| at + c.len_utf8()).collect();
    if let Some(end) = ends.last().filter(|end| text[**end..].starts_with(';')) {
        ends.push(end + 1);
    }
    // Names have two letters or more.
    ends.into_iter().rev().filter(|end| *end > 1).find_map(|end| Some((table(&text[..end])?, end)))
}

/// The meaning of a whole name, with its semicolon if it has one.
pub(super) fn table(name: &str) -> Option<&'static str> {
    let found = ENTITIES.get(format!("&{name}").as_bytes())?;
    std::str::from_utf8(found).ok()
}

/// The character with a number, and how many bytes the number has, a semicolon included.
fn number(text: &str) -> Option<(String, usize)> {
    let (radix, start) = if text.starts_with(['x', 'X']) { (16, 1) } else { (10, 0) };
    let digits = text[start..].find(|c: char| !c.is_digit(radix)).unwrap_or(text.len() - start);
    if digits == 0 {
        return None;
    }
    let end = start + digits;
    let length = end + usize::from(text[end..].starts_with(';'));
    // More digits than fit are the number of no character.
    let number = u32::from_str_radix(&text[start..end], radix).unwrap_or(u32::MAX);
    Some((meaning(number), length))
}

fn meaning(number: u32) -> String {
    match number {
        0 => "\u{fffd}".into(),
        0x0d => "\r".into(),
        0x80..=0x9f => WINDOWS_1252[number as usize - 0x80].into(),
        0x1..=0x8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef => String::new(),
        _ => match char::from_u32(number) {
            None => "\u{fffd}".into(),
            Some(_) if number & 0xfffe == 0xfffe => String::new(),
            Some(character) => character.into(),
        },
    }
}
