//! The fields of a JSON object of a trace, each of the type that it must have.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A JSON object that has exactly the fields it should have.
pub(super) struct Fields<'j> {
    place: String,
    object: &'j Map<String, Value>,
}

impl<'j> Fields<'j> {
    pub(super) fn new(place: &str, json: &'j Value, names: &[&str]) -> Result<Self> {
        let Some(object) = json.as_object() else {
            return Err(Error::input(format!("`{place}` is damaged: expected an object")));
        };
        if let Some(name) = names.iter().find(|name| !object.contains_key(**name)) {
            return Err(Error::input(format!("`{place}` lacks `{name}`")));
        }
        if let Some(name) = object.keys().find(|name| !names.contains(&name.as_str())) {
            return Err(Error::input(format!("`{place}` has an unknown field `{name}`")));
        }
        Ok(Self { place: place.to_owned(), object })
    }

    pub(super) fn value(&self, name: &str) -> &'j Value {
        self.object.get(name).unwrap_or(&Value::Null)
    }

    pub(super) fn damaged(&self, name: &str, expected: &str) -> Error {
        let value = self.value(name).to_string();
        let shown: String = value.chars().take(60).collect();
        Error::input(format!("`{}.{name}` is {shown}; expected {expected}", self.place))
    }

    pub(super) fn number(&self, name: &str) -> Result<u64> {
        self.value(name).as_u64().ok_or_else(|| self.damaged(name, "a whole number"))
    }

    pub(super) fn number_or_null(&self, name: &str) -> Result<Option<u64>> {
        if self.value(name).is_null() { Ok(None) } else { self.number(name).map(Some) }
    }

    pub(super) fn count(&self, name: &str) -> Result<usize> {
        usize::try_from(self.number(name)?).map_err(|_| self.damaged(name, "a smaller number"))
    }

    pub(super) fn count_or_null(&self, name: &str) -> Result<Option<usize>> {
        if self.value(name).is_null() { Ok(None) } else { self.count(name).map(Some) }
    }

    pub(super) fn real(&self, name: &str) -> Result<f64> {
        self.value(name).as_f64().ok_or_else(|| self.damaged(name, "a number"))
    }

    pub(super) fn real_or_null(&self, name: &str) -> Result<Option<f64>> {
        if self.value(name).is_null() { Ok(None) } else { self.real(name).map(Some) }
    }

    pub(super) fn text(&self, name: &str) -> Result<&'j str> {
        self.value(name).as_str().ok_or_else(|| self.damaged(name, "text"))
    }

    pub(super) fn list(&self, name: &str) -> Result<&'j [Value]> {
        self.value(name).as_array().map(Vec::as_slice).ok_or_else(|| self.damaged(name, "a list"))
    }
}
