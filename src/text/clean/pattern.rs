//! Regular expressions as Python's `re` reads them.
//!
//! Its classes of characters are others: a letter of a word is a letter or a number (no accent of its own), and white
//! space has four more characters.

/// The pattern as `fancy_regex` takes it.
pub(super) fn from_python(pattern: &str) -> String {
    let mut found = String::with_capacity(pattern.len());
    let mut in_class = false;
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('w') if in_class => found.push_str(r"\p{L}\p{N}_"),
                Some('w') => found.push_str(r"[\p{L}\p{N}_]"),
                Some('W') => found.push_str(r"[^\p{L}\p{N}_]"),
                Some('s') if in_class => found.push_str(r"\s\x1c-\x1f"),
                Some('s') => found.push_str(r"[\s\x1c-\x1f]"),
                Some('S') => found.push_str(r"[^\s\x1c-\x1f]"),
                Some('b') if !in_class => {
                    found.push_str(r"(?:(?<=[\p{L}\p{N}_])(?![\p{L}\p{N}_])|(?<![\p{L}\p{N}_])(?=[\p{L}\p{N}_]))");
                }
                Some(other) => found.extend(['\\', other]),
                None => found.push('\\'),
            },
            '[' if in_class => found.push_str(r"\["),
            // They join classes in Rust, and are characters in Python.
            '&' | '~' if in_class => found.extend(['\\', character]),
            _ => {
                in_class = (in_class || character == '[') && character != ']';
                found.push(character);
            }
        }
    }
    found
}
