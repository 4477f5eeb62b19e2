//! All Rust tests.

use std::process::Command;

use anyhow::Result;

use crate::run::{built, cargo, root, set_up, step};

/// All but the examples, which clippy has compiled already.
const TESTS: [&str; 5] = ["test", "--workspace", "--lib", "--bins", "--tests"];

pub fn test(arguments: &[String]) -> Result<()> {
    // Building the tests builds the command too, with the same features; building it alone would compile twice.
    step(cargo(&TESTS).arg("--no-run"))?;
    set_up(Command::new(built("dbcache-trt")?).current_dir(root()))?;
    step(cargo(&TESTS).args(arguments))?;
    step(&mut cargo(&["test", "--workspace", "--doc"]))
}
