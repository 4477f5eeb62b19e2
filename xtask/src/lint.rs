//! Format, lints and documentation of the Rust code.

use anyhow::Result;

use crate::run::{cargo, step};

pub fn lint(_: &[String]) -> Result<()> {
    step(&mut cargo(&["fmt", "--all", "--check"]))?;
    step(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    let documents = ["doc", "--workspace", "--no-deps", "--document-private-items"];
    step(cargo(&documents).env("RUSTDOCFLAGS", "-D warnings"))
}
