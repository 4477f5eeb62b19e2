//! Videos as MP4 and WebM, made by the command and a real ffmpeg: codec, frames, rate and size as ffprobe reads them.

use std::process::Command;

use anyhow::{Result, bail};

use crate::run::{build_command, cargo, command, root, set_up, step, succeeds};

/// How to get both programs.
const PACKAGE: &str = "the package `ffmpeg` holds both (Debian: apt-get install ffmpeg)";

pub fn check_video(_: &[String]) -> Result<()> {
    for program in ["ffmpeg", "ffprobe"] {
        if !succeeds(&mut command(program, &["-version"])) {
            bail!("{program} is not installed, or does not run; {PACKAGE}");
        }
    }
    set_up(Command::new(build_command()?).current_dir(root()))?;
    step(&mut cargo(&["test", "--workspace", "--test", "command", "video::", "--", "--include-ignored"]))
}
