//! Everything that must hold for the Rust code.

use std::process::Command;

use anyhow::Result;

use crate::run::{built, cargo, root, set_up, step};

pub fn test(arguments: &[String]) -> Result<()> {
    step(&mut cargo(&["fmt", "--all", "--check"]))?;
    step(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    // Building the tests builds the command too, with the same features; building it alone would compile twice.
    step(&mut cargo(&["test", "--workspace", "--no-run"]))?;
    set_up(Command::new(built("dbcache-trt")?).current_dir(root()))?;
    step(cargo(&["test", "--workspace"]).args(arguments))
}
