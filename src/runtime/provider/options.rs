//! Options of providers: how they are written and checked, and what of them reaches ONNX Runtime.

use std::fmt;

use crate::error::{Error, Result};
use crate::units::parse_bytes;

/// One option of a provider.
#[derive(Debug)]
pub(super) struct OptionDef {
    /// As users write it: lower case, words joined by `-`.
    pub name: &'static str,
    pub form: Form,
    /// ONNX Runtime's name for it; none for what this library does by itself.
    pub key: Option<&'static str>,
    /// For the table of `dbcache-trt providers`.
    pub about: &'static str,
}

/// What an option's value may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// `name`, `name=on` or `name=off`.
    Flag,
    /// A whole number from `min` to `max`.
    Number { min: i64, max: i64 },
    /// Bytes, with K, M or G for powers of 1024; from `min` on.
    Bytes { min: u64 },
    /// One of several words: ours, and ONNX Runtime's.
    Choice(&'static [(&'static str, &'static str)]),
    /// A path or another text, taken as it is; a list separates by commas, so it holds none.
    Text,
}

/// A checked value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Value {
    Flag(bool),
    Number(i64),
    Bytes(u64),
    /// The place in the list of choices.
    Choice(usize),
    Text(String),
}

/// Of 1024, largest first.
const UNITS: [(char, u32); 3] = [('G', 30), ('M', 20), ('K', 10)];

impl OptionDef {
    /// Reads a value; none stands for the name alone.
    ///
    /// # Errors
    /// `Usage` with what is expected.
    pub(super) fn parse(&self, provider: &str, text: Option<&str>) -> Result<Value> {
        let parsed = match (self.form, text) {
            (Form::Flag, None | Some("on" | "1" | "true")) => Some(Value::Flag(true)),
            (Form::Flag, Some("off" | "0" | "false")) => Some(Value::Flag(false)),
            (Form::Number { min, max }, Some(text)) => {
                text.parse().ok().filter(|number| (min..=max).contains(number)).map(Value::Number)
            }
            (Form::Bytes { min }, Some(text)) => parse_bytes(text).ok().filter(|bytes| *bytes >= min).map(Value::Bytes),
            (Form::Choice(choices), Some(text)) => {
                choices.iter().position(|(ours, _)| ours.eq_ignore_ascii_case(text)).map(Value::Choice)
            }
            (Form::Text, Some(text)) if is_text(text) => Some(Value::Text(text.to_owned())),
            _ => None,
        };
        parsed.ok_or_else(|| {
            let given = match text {
                Some(text) => format!("is `{text}`"),
                None => "has no value".to_owned(),
            };
            Error::usage(format!("the option `provider={provider}`: `{}` {given}; expected {}", self.name, self.form))
        })
    }

    /// As ONNX Runtime reads it.
    pub(super) fn raw(&self, value: &Value) -> String {
        match (self.form, value) {
            (Form::Choice(choices), Value::Choice(place)) => {
                choices.get(*place).map_or_else(String::new, |(_, theirs)| (*theirs).to_owned())
            }
            (_, Value::Flag(is_on)) => u8::from(*is_on).to_string(),
            (_, Value::Number(number)) => number.to_string(),
            (_, Value::Bytes(bytes)) => bytes.to_string(),
            (_, Value::Text(text)) => text.clone(),
            (_, Value::Choice(place)) => place.to_string(),
        }
    }

    /// As users write it, so that it reads back to the same value.
    pub(super) fn print(&self, value: &Value) -> String {
        let name = self.name;
        match (self.form, value) {
            (_, Value::Flag(true)) => name.to_owned(),
            (_, Value::Flag(false)) => format!("{name}=off"),
            (_, Value::Bytes(bytes)) => format!("{name}={}", print_bytes(*bytes)),
            (Form::Choice(choices), Value::Choice(place)) => {
                format!("{name}={}", choices.get(*place).map_or("", |(ours, _)| ours))
            }
            _ => format!("{name}={}", self.raw(value)),
        }
    }
}

/// A text that prints and reads back within a list.
fn is_text(text: &str) -> bool {
    !text.is_empty() && !text.contains(',') && !text.chars().any(char::is_control)
}

/// With the largest unit that holds it exactly.
fn print_bytes(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, shift)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    unit.map_or_else(|| bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("nothing, `on` or `off`"),
            Self::Number { min, max } => write!(f, "a whole number from {min} to {max}"),
            Self::Bytes { min } => {
                write!(f, "bytes, such as 512M or 4G, of at least {}", print_bytes(*min))
            }
            Self::Choice(choices) => {
                let ours: Vec<String> = choices.iter().map(|(ours, _)| format!("`{ours}`")).collect();
                f.write_str(&ours.join(" or "))
            }
            Self::Text => f.write_str("a text without commas"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_print_with_the_largest_unit() {
        for (bytes, text) in [(0, "0"), (1, "1"), (1 << 10, "1K"), (1536, "1536"), (3 << 30, "3G"), (5 << 20, "5M")] {
            assert_eq!(print_bytes(bytes), text);
        }
    }
}
