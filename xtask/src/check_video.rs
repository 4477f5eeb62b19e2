//! Videos as MP4 and WebM, made by the command and a real ffmpeg: codec, frames, rate and size as ffprobe reads them.

use std::process::Command;

use anyhow::{Result, bail};

use crate::run::{built, cargo, command, root, set_up, step, succeeds};

/// How to get both programs.
const PACKAGE: &str = "the package `ffmpeg` holds both (Debian: apt-get install ffmpeg)";

pub fn check_video(_: &[String]) -> Result<()> {
    for program in ["ffmpeg", "ffprobe"] {
        if !succeeds(&mut command(program, &["-version"])) {
            bail!("{program} is not installed, or does not run; {PACKAGE}");
        }
    }
    step(&mut cargo(&["test", "--no-run", "--test", "command"]))?;
    set_up(Command::new(built("dbcache-trt")?).current_dir(root()))?;
    step(&mut cargo(&["test", "--test", "command", "video::", "--", "--include-ignored"]))
}
