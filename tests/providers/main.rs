//! Providers other than the CPU: what they say of themselves, that all decide alike, and what they compile.

#[path = "../common/mod.rs"]
mod common;

mod builds;
mod conformance;
mod listed;
