//! All Rust tests.

use std::process::Command;

use anyhow::Result;

use crate::run::{TESTED, build_command, cargo, root, set_up, step};

pub fn test(arguments: &[String]) -> Result<()> {
    set_up(Command::new(build_command()?).current_dir(root()))?;
    // The examples are compiled by clippy.
    step(cargo(&["test"]).args(TESTED).args(arguments))?;
    step(&mut cargo(&["test", "--workspace", "--doc"]))
}
