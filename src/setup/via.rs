//! The package tools that can fetch libraries.

use crate::words::words;

/// A package tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Via {
    /// uv, from PyPI.
    Uv,
    /// pip, from PyPI.
    Pip,
    /// npm, from the npm registry, whose package is larger and somewhat older.
    Npm,
}

words!(Via, "package tool", { Uv = "uv", Pip = "pip", Npm = "npm" });
