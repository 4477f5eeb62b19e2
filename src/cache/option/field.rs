//! Fields of configurations as values of any option.

use std::fmt;

use super::super::blocks::BlockIds;
use super::super::mask::StepsMask;
use crate::words::Word;

/// The value of an option.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cache) enum OptionValue {
    /// Switched off.
    None,
    Switch(bool),
    Count(usize),
    Number(f64),
    Blocks(BlockIds),
    Mask(StepsMask),
    /// One of a few words.
    Word(&'static str),
}

/// As a flag writes it.
impl fmt::Display for OptionValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Switch(is_on) => is_on.fmt(f),
            Self::Count(count) => count.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Blocks(blocks) => {
                let ids: Vec<String> = blocks.ids().iter().map(usize::to_string).collect();
                f.write_str(&ids.join("."))
            }
            Self::Mask(mask) => mask.fmt(f),
            Self::Word(word) => f.write_str(word),
        }
    }
}

/// Where an option lies in a configuration `C`.
#[derive(Debug)]
pub(in crate::cache) struct Lens<C> {
    get: fn(&C) -> Option<OptionValue>,
    set: fn(&mut C, &OptionValue) -> bool,
}

impl<C> Lens<C> {
    /// `get` gives none, and `set` false, where this configuration lacks the option (calibrators have types).
    pub(super) const fn new(get: fn(&C) -> Option<OptionValue>, set: fn(&mut C, &OptionValue) -> bool) -> Self {
        Self { get, set }
    }

    pub(in crate::cache) fn get(&self, config: &C) -> Option<OptionValue> {
        (self.get)(config)
    }

    /// Whether the option is there, and was set.
    pub(in crate::cache) fn set(&self, config: &mut C, value: &OptionValue) -> bool {
        (self.set)(config, value)
    }
}

/// A type of fields.
pub(super) trait Field: Sized {
    fn value(&self) -> OptionValue;

    /// None for a value of another kind.
    fn of(value: &OptionValue) -> Option<Self>;

    /// Whether the field takes a value of this kind, and has it now.
    fn assign(&mut self, value: &OptionValue) -> bool {
        Self::of(value).is_some_and(|value| {
            *self = value;
            true
        })
    }
}

impl Field for bool {
    fn value(&self) -> OptionValue {
        OptionValue::Switch(*self)
    }

    fn of(value: &OptionValue) -> Option<Self> {
        if let OptionValue::Switch(is_on) = value { Some(*is_on) } else { None }
    }
}

impl Field for usize {
    fn value(&self) -> OptionValue {
        OptionValue::Count(*self)
    }

    fn of(value: &OptionValue) -> Option<Self> {
        if let OptionValue::Count(count) = value { Some(*count) } else { None }
    }
}

impl Field for f64 {
    fn value(&self) -> OptionValue {
        OptionValue::Number(*self)
    }

    fn of(value: &OptionValue) -> Option<Self> {
        if let OptionValue::Number(number) = value { Some(*number) } else { None }
    }
}

impl Field for StepsMask {
    fn value(&self) -> OptionValue {
        OptionValue::Mask(self.clone())
    }

    fn of(value: &OptionValue) -> Option<Self> {
        if let OptionValue::Mask(mask) = value { Some(mask.clone()) } else { None }
    }
}

/// An empty list and none are the same, as in the reference.
impl Field for Vec<usize> {
    fn value(&self) -> OptionValue {
        if self.is_empty() { OptionValue::None } else { OptionValue::Blocks(BlockIds::new(self.clone())) }
    }

    fn of(value: &OptionValue) -> Option<Self> {
        match value {
            OptionValue::None => Some(Vec::new()),
            OptionValue::Blocks(blocks) => Some(blocks.ids().to_vec()),
            _ => None,
        }
    }
}

impl<T: Field> Field for Option<T> {
    fn value(&self) -> OptionValue {
        self.as_ref().map_or(OptionValue::None, Field::value)
    }

    fn of(value: &OptionValue) -> Option<Self> {
        if *value == OptionValue::None {
            return Some(None);
        }
        T::of(value).map(|inner| Some(inner).filter(|inner| inner.value() != OptionValue::None))
    }
}

impl<T: Word> Field for T {
    fn value(&self) -> OptionValue {
        OptionValue::Word(self.word())
    }

    fn of(value: &OptionValue) -> Option<Self> {
        let OptionValue::Word(word) = value else { return None };
        T::VALUES.iter().copied().find(|known| known.word() == *word)
    }
}
