//! Which values an option takes, and how texts and JSON write them.

use serde_json::{Value as Json, json};

use super::super::mask::StepsMask;
use super::OptionValue;
use crate::words::{one_of, problem_of};

/// What kind of value an option has.
#[derive(Clone, Copy, Debug)]
pub(in crate::cache) enum OptionForm {
    /// `true` or `false`; in tags 1 or 0.
    Switch,
    /// A whole number, 0 or more.
    Count(Absent),
    /// Any number.
    Number(Absent),
    /// A list of blocks, or none.
    Blocks(Absent),
    /// A mask of steps, or none.
    Mask,
    /// One of these words; in tags its number, from 0, where no other token carries it.
    Word(&'static [&'static str], Absent),
}

/// How JSON writes that an option is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) enum Absent {
    /// It cannot be.
    Never,
    Null,
    /// For limits, as in cache-dit.
    MinusOne,
    /// A value of 0 is none everywhere, also in texts and tags.
    Zero,
    /// An empty list.
    Empty,
}

impl OptionForm {
    pub(in crate::cache) fn absent(self) -> Absent {
        match self {
            Self::Switch => Absent::Never,
            Self::Mask => Absent::Null,
            Self::Count(absent) | Self::Number(absent) | Self::Blocks(absent) | Self::Word(_, absent) => absent,
        }
    }

    pub(in crate::cache) fn words(self) -> &'static [&'static str] {
        if let Self::Word(words, _) = self { words } else { &[] }
    }

    pub(super) fn value_name(self) -> String {
        match self {
            Self::Switch => "BOOL".into(),
            Self::Count(_) => "N".into(),
            Self::Number(_) => "X".into(),
            Self::Blocks(_) => "IDS".into(),
            Self::Mask => "MASK".into(),
            Self::Word(words, _) => words.join("|"),
        }
    }

    /// Where 0 means none, it is none.
    pub(in crate::cache) fn settle(self, value: OptionValue) -> OptionValue {
        let is_zero = value == OptionValue::Count(0) || value == OptionValue::Number(0.0);
        if is_zero && self.absent() == Absent::Zero { OptionValue::None } else { value }
    }

    /// Reads the text of a flag. `none` switches an option off where that is possible; so does `-1`, since no such option
    /// has values below 0.
    ///
    /// # Errors
    /// What was expected.
    pub(in crate::cache) fn parse(self, text: &str) -> Result<OptionValue, String> {
        let can_be_absent = self.absent() != Absent::Never;
        if can_be_absent && text.eq_ignore_ascii_case("none") {
            return Ok(OptionValue::None);
        }
        let parsed = match self {
            Self::Switch => read(text).map(OptionValue::Switch),
            Self::Count(_) => read(text).map(OptionValue::Count),
            Self::Number(_) if text == "-1" && can_be_absent => Ok(OptionValue::None),
            Self::Number(_) => read(text).map(OptionValue::Number),
            Self::Blocks(_) => read(text).map(OptionValue::Blocks),
            Self::Mask => read(text).map(OptionValue::Mask),
            Self::Word(words, _) => self.word(text).ok_or_else(|| format!("expected {}", one_of(words))),
        };
        match parsed {
            Ok(value) => Ok(self.settle(value)),
            Err(_) if can_be_absent && text == "-1" => Ok(OptionValue::None),
            Err(problem) if can_be_absent => Err(format!("{problem}, or `none`")),
            Err(problem) => Err(problem),
        }
    }

    fn word(self, text: &str) -> Option<OptionValue> {
        self.words().iter().find(|word| word.eq_ignore_ascii_case(text)).map(|word| OptionValue::Word(word))
    }

    /// Reads a value that is not null.
    ///
    /// # Errors
    /// What it must be.
    pub(in crate::cache) fn read_json(self, json: &Json) -> Result<OptionValue, String> {
        let can_be_absent = self.absent() != Absent::Never;
        if can_be_absent && !matches!(self, Self::Blocks(_) | Self::Mask) && json.as_i64() == Some(-1) {
            return Ok(OptionValue::None);
        }
        let value = match (self, json) {
            (Self::Switch, _) => json.as_bool().map(OptionValue::Switch),
            (Self::Count(_), _) => count(json).map(OptionValue::Count),
            (Self::Number(_), _) => json.as_f64().map(OptionValue::Number),
            (Self::Blocks(_) | Self::Mask | Self::Word(..), Json::String(text)) => return self.parse(text),
            (Self::Blocks(_), Json::Array(list)) => list
                .iter()
                .map(count)
                .collect::<Option<Vec<_>>>()
                .map(|ids| OptionValue::Blocks(super::super::blocks::BlockIds::new(ids))),
            (Self::Mask, Json::Array(list)) => {
                list.iter().map(digit).collect::<Option<Vec<_>>>().map(|mask| OptionValue::Mask(StepsMask::Steps(mask)))
            }
            _ => None,
        };
        value.map(|value| self.settle(value)).ok_or_else(|| {
            match self {
                Self::Switch => "true or false",
                Self::Count(Absent::Never) => "a whole number, 0 or more",
                Self::Count(_) => "a whole number, or -1 for no limit",
                Self::Number(_) => "a number",
                Self::Blocks(_) => "a list of blocks",
                Self::Mask => "a list of 1 and 0, or text",
                Self::Word(..) => "text",
            }
            .to_owned()
        })
    }

    /// The JSON that [`read_json`](Self::read_json) reads back to this value, or null.
    pub(in crate::cache) fn to_json(self, value: &OptionValue) -> Json {
        match value {
            OptionValue::None => match self.absent() {
                Absent::Never | Absent::Null => Json::Null,
                Absent::MinusOne => json!(-1),
                Absent::Zero => json!(0),
                Absent::Empty => json!([]),
            },
            OptionValue::Switch(is_on) => json!(is_on),
            OptionValue::Count(count) => json!(count),
            OptionValue::Number(number) => json!(number),
            OptionValue::Blocks(blocks) => json!(blocks.ids()),
            OptionValue::Mask(StepsMask::Steps(mask)) => {
                json!(mask.iter().map(|&digit| u8::from(digit)).collect::<Vec<_>>())
            }
            OptionValue::Mask(StepsMask::Preset(preset)) => json!(preset.as_str()),
            OptionValue::Word(word) => json!(word),
        }
    }
}

fn read<T: std::str::FromStr<Err: std::fmt::Display + 'static>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| problem_of(&error))
}

fn count(json: &Json) -> Option<usize> {
    json.as_u64().and_then(|count| usize::try_from(count).ok())
}

fn digit(json: &Json) -> Option<bool> {
    match json.as_u64() {
        Some(0) => Some(false),
        Some(1) => Some(true),
        _ => None,
    }
}
