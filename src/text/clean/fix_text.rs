//! ftfy's `fix_text`, but for its repair of text that was read in a wrong encoding: such text is left as it is, and
//! [`suspicious`] finds it.

use tokenizers::NormalizedString;

use super::entities::{WINDOWS_1252, entity, named, table};

/// Letters that were joined for printing, or into one character for an old encoding.
const LIGATURES: [(char, &str); 22] = [
    ('Ĳ', "IJ"),
    ('ĳ', "ij"),
    ('ŉ', "'n"),
    ('Ǳ', "DZ"),
    ('ǲ', "Dz"),
    ('ǳ', "dz"),
    ('Ǆ', "DŽ"),
    ('ǅ', "Dž"),
    ('ǆ', "dž"),
    ('Ǉ', "LJ"),
    ('ǈ', "Lj"),
    ('ǉ', "lj"),
    ('Ǌ', "NJ"),
    ('ǋ', "Nj"),
    ('ǌ', "nj"),
    ('ﬀ', "ff"),
    ('ﬁ', "fi"),
    ('ﬂ', "fl"),
    ('ﬃ', "ffi"),
    ('ﬄ', "ffl"),
    ('ﬅ', "ſt"),
    ('ﬆ', "st"),
];
/// The longest entity that is looked at, without `&`, `#` and `;`.
const LONGEST: usize = 24;

/// Signs that every text has, and that say little about its encoding.
const COMMON: &str = "\u{a0}\u{ad}·´–—―…’";
/// Letters and numbers that stand for themselves, as signs do.
const ALONE: &str = "ªº¹²³¼½¾µƒˆˇ№";
/// Signs that stand before a letter.
const OPENING: &str = "¡«¿©΄΅‘“„•‹";
/// Signs that stand behind a letter.
const CLOSING: &str = "®»˝”›™";

/// Line by line; from the first line with a `<` on the text is taken for HTML, whose entities stay.
/// Gives as well what begins with two characters that are [`suspicious`], if there is any.
pub(super) fn fix(text: &str) -> (String, Option<String>) {
    let mut is_html = false;
    let mut odd = None;
    let mut line = |line: &str| {
        is_html |= line.contains('<');
        fix_line(line, !is_html, &mut odd)
    };
    let fixed = text.split_inclusive('\n').map(&mut line).collect();
    (fixed, odd)
}

/// Where the first two characters stand beside each other as they hardly do but in text that was read in a wrong
/// encoding, such as `Ã©`. ftfy repairs a part of what is found here, and nothing else.
fn suspicious(text: &str) -> Option<usize> {
    text.char_indices().find_map(|(at, character)| {
        let mut behind = text[at + character.len_utf8()..].chars();
        let (next, third) = (behind.next(), behind.next());
        let is_odd =
            ('\u{80}'..='\u{9f}').contains(&character) || next.is_some_and(|next| is_odd(character, next, third));
        is_odd.then_some(at)
    })
}

fn is_odd(first: char, second: char, third: Option<char>) -> bool {
    match first {
        'Œ' | 'œ' => return !second.is_ascii_alphabetic(),
        'Â' | 'Ã' if second == ' ' => return true,
        'Â' | 'Ã' | 'Î' | 'Ð' | 'Ø' | 'Ù' | '√' if "œŠšŸž".contains(second) || COMMON.contains(second) => {
            return true;
        }
        _ if first.is_ascii() || second.is_ascii() => return false,
        _ => {}
    }
    match (is_sign(first), is_sign(second)) {
        (true, true) => true,
        (true, false) => second.is_alphabetic() && !OPENING.contains(first),
        (false, true) if CLOSING.contains(second) => {
            first.is_alphabetic() && third.is_some_and(|third| third.is_alphanumeric() || third == '_')
        }
        (false, true) => first.is_alphabetic(),
        (false, false) => first.is_lowercase() && second.is_uppercase(),
    }
}

/// Punctuation, currency, mathematics and boxes of old encodings.
fn is_sign(character: char) -> bool {
    let is_old = ('\u{80}'..'\u{2600}').contains(&character) || matches!(character, '\u{f8ff}' | '\u{fffd}');
    is_old && !COMMON.contains(character) && (!character.is_alphanumeric() || ALONE.contains(character))
}

/// All steps in order, until nothing changes: what an entity stood for is mended in the next round.
fn fix_line(line: &str, unescapes: bool, odd: &mut Option<String>) -> String {
    let mut text = line.to_owned();
    loop {
        let mut next = String::with_capacity(text.len());
        let unescaped = if unescapes { unescape(&text) } else { text.clone() };
        if odd.is_none() {
            *odd = suspicious(&unescaped).map(|at| unescaped[at..].trim_end().to_owned());
        }
        unescaped.chars().for_each(|character| push_plain(&mut next, character));
        next = next.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}'], "\n");
        next = without_terminal_escapes(&next);
        next.retain(|character| !is_control(character));
        let mut normal = NormalizedString::from(next);
        normal.nfc();
        if normal.get() == text {
            return text;
        }
        text = normal.get().to_owned();
    }
}

/// Characters of the same meaning that are typed more often: for control characters those of Windows-1252, for joined
/// letters those letters, for full and half width the usual one, for curly quotes straight ones.
fn push_plain(text: &mut String, character: char) {
    let character = match character {
        '\u{80}'..='\u{9f}' => WINDOWS_1252[character as usize - 0x80],
        other => other,
    };
    match character {
        'ʼ' | '‘'..='‛' => text.push('\''),
        '“'..='‟' => text.push('"'),
        '\u{3000}' => text.push(' '),
        '\u{ff01}'..='\u{ffef}' => {
            let mut normal = NormalizedString::from(character.to_string());
            normal.nfkc();
            text.push_str(normal.get());
        }
        _ => match LIGATURES.iter().find(|(joined, _)| *joined == character) {
            Some((_, apart)) => text.push_str(apart),
            None => text.push(character),
        },
    }
}

/// Entities with a semicolon, those whose name is in capital letters among them.
fn unescape(text: &str) -> String {
    let mut found = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        found.push_str(&rest[..at]);
        rest = &rest[at..];
        let (meaning, length) = whole(&rest[1..]).unwrap_or_else(|| ("&".into(), 0));
        found.push_str(&meaning);
        rest = &rest[1 + length..];
    }
    found + rest
}

/// The meaning of an entity behind a `&` that ends in a semicolon, and its length.
fn whole(text: &str) -> Option<(String, usize)> {
    let is_number = text.starts_with('#');
    let start = usize::from(is_number);
    let length = text[start..].find(|c: char| !c.is_ascii_alphanumeric())?;
    let end = start + length;
    if !(1..=LONGEST).contains(&length) || !text[end..].starts_with(';') {
        return None;
    }
    let name = &text[..=end];
    if is_number {
        let (meaning, read) = entity(name)?;
        return (read == name.len() && meaning != ";").then_some((meaning, read));
    }
    if let Some(meaning) = table(name) {
        return Some((meaning.to_owned(), name.len()));
    }
    // As HTML reads it, something in front of the name may be an entity; then it is no name in capital letters.
    let lower = name.to_ascii_lowercase();
    let is_shouted = name == lower.to_ascii_uppercase() && named(name).is_none();
    let meaning = table(&lower).filter(|_| is_shouted)?;
    Some((meaning.to_uppercase(), name.len()))
}

/// Without colours and movements of a terminal: escape, `[`, numbers and semicolons, a letter.
fn without_terminal_escapes(text: &str) -> String {
    let mut found = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\u{1b}[") {
        let (before, escape) = rest.split_at(at);
        found.push_str(before);
        let end = escape[2..].find(|c: char| c != ';' && !c.is_ascii_digit()).map(|end| 2 + end);
        match end.filter(|end| escape[*end..].starts_with(|c: char| c.is_ascii_alphabetic())) {
            Some(end) => rest = &escape[end + 1..],
            None => {
                found.push_str(&escape[..2]);
                rest = &escape[2..];
            }
        }
    }
    found + rest
}

fn is_control(character: char) -> bool {
    matches!(
        character,
        '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}'
    )
}
