//! A picture in one command.

use anyhow::Result;

use crate::run::{cargo, root, set_up, step};

pub fn demo(_: &[String]) -> Result<()> {
    const PICTURE: &str = "lemon.png";
    let run = ["run", "--quiet", "--release", "--"];
    step(&mut cargo(&["build", "--release"]))?;
    set_up(&mut cargo(&run))?;
    step(cargo(&run).args(["--engine", "models/emoji", "--cache", "f8b16", "--prompt", "lemon", "-o", PICTURE]))?;
    println!("\nThe picture is {}", root().join(PICTURE).display());
    Ok(())
}
