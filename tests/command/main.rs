//! The command as it is built: what it is told, what it says and writes, and how it ends.

#[path = "../common/mod.rs"]
mod common;

mod builds;
mod errors;
mod generate;
#[cfg(target_os = "linux")]
mod outputs;
#[cfg(unix)]
mod setup;
mod video;
