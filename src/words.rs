//! Values that are written as one word, and what is wrong with a text that should have been a value.

use std::any::Any;
use std::fmt::Display;
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};

use crate::error::{Error, Result};
use crate::nearest::did_you_mean;

/// An enum whose values are written as one word each, as values of options or in traces. [`words!`] implements it.
pub(crate) trait Word: Copy + 'static {
    /// What errors call it, such as `cache dtype`.
    const WHAT: &'static str;
    /// Every value.
    const VALUES: &'static [Self];

    /// The word of this value.
    fn word(self) -> &'static str;

    /// The value of a word, in upper or lower case.
    ///
    /// # Errors
    /// `Usage` with all words.
    fn read(text: &str) -> Result<Self> {
        Self::VALUES.iter().copied().find(|value| value.word().eq_ignore_ascii_case(text)).ok_or_else(|| {
            let words: Vec<&str> = Self::VALUES.iter().map(|value| value.word()).collect();
            let near = did_you_mean(text, words.iter().copied());
            Error::usage(format!("unknown {} `{text}`{near}; expected {}", Self::WHAT, one_of(&words)))
        })
    }
}

/// `` `a`, `b` or `c` ``.
pub(crate) fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, first)) if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => quoted.concat(),
    }
}

/// Gives an enum its words: [`Word`], and with it `ALL`, `NAMES`, `as_str`, `Display` and `FromStr`.
macro_rules! words {
    ($enum:ident, $what:literal, { $($value:ident = $word:literal),+ $(,)? }) => {
        impl $enum {
            /// Every value.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$value),+];
            /// The words of all values, in their order.
            pub const NAMES: [&'static str; Self::ALL.len()] = [$($word),+];

            /// The word of this value.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $word),+
                }
            }
        }

        impl $crate::words::Word for $enum {
            const WHAT: &'static str = $what;
            const VALUES: &'static [Self] = &Self::ALL;

            fn word(self) -> &'static str {
                self.as_str()
            }
        }

        impl std::fmt::Display for $enum {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $enum {
            type Err = $crate::error::Error;

            fn from_str(text: &str) -> $crate::error::Result<Self> {
                $crate::words::Word::read(text)
            }
        }
    };
}
pub(crate) use words;

/// The standard library's own words for numbers ("invalid digit found in string") leave out what would be right.
pub(crate) fn problem_of(error: &(impl Display + Any)) -> String {
    let any: &dyn Any = error;
    match any.downcast_ref::<ParseIntError>().map(ParseIntError::kind) {
        Some(IntErrorKind::PosOverflow) => return format!("expected a whole number of at most {}", u64::MAX),
        Some(_) => return "expected a whole number of at least 0".to_owned(),
        None => {}
    }
    match any.is::<ParseFloatError>() {
        true => "expected a number, such as 0.25".to_owned(),
        false => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_words_are_listed() {
        for (words, listed) in [(&["a"][..], "`a`"), (&["a", "b"], "`a` or `b`"), (&["a", "b", "c"], "`a`, `b` or `c`")]
        {
            assert_eq!(one_of(words), listed);
        }
    }

    #[test]
    fn what_was_expected_is_told() {
        for text in ["-1", "", "1e3", "x", "1.5"] {
            assert_eq!(
                problem_of(&text.parse::<u64>().unwrap_err()),
                "expected a whole number of at least 0",
                "{text}"
            );
        }
        let large = "18446744073709551616".parse::<usize>().unwrap_err();
        assert_eq!(problem_of(&large), "expected a whole number of at most 18446744073709551615");
        assert_eq!(problem_of(&"x".parse::<f64>().unwrap_err()), "expected a number, such as 0.25");
        assert_eq!(problem_of(&"maybe".parse::<bool>().unwrap_err()), "provided string was not `true` or `false`");
    }
}
