//! Whether the exporter takes models as they are published: real configurations over files of holes
//! (export/published/check.py says what a plan leaves out).

use anyhow::Result;

use crate::check_export::environment;
use crate::run::{build_command, root, step};

pub fn check_published(arguments: &[String]) -> Result<()> {
    let command = build_command()?;
    let python = environment(&["dev"])?;
    let mut check = std::process::Command::new(python);
    check.arg("published/check.py").args(arguments);
    step(check.current_dir(root().join("export")).env("DBCACHE_TRT", command))
}
