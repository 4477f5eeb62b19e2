//! Whole pipelines of every family, as a user has them on disk: through `dbcache-export`, then through the command with a
//! prompt and settings, and beside them through diffusers and cache-dit (export/pipelines/check.py).

use std::process::Command;

use anyhow::Result;

use crate::check_export::environment;
use crate::run::{build_command, root, set_up, step};

pub fn check_families(arguments: &[String]) -> Result<()> {
    let command = build_command()?;
    set_up(Command::new(&command).current_dir(root()))?;
    let python = environment(&["dev"])?;
    let mut check = Command::new(python);
    check.arg("check.py").args(arguments).current_dir(root().join("export/pipelines")).env("DBCACHE_TRT", command);
    // Two pipelines at a time, each with processes of its own.
    check.env("OMP_NUM_THREADS", "1");
    step(&mut check)
}
