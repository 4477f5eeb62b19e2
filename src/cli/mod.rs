//! The command: it parses, converts and prints, and uses only the public library.

pub mod args;
pub mod build;
pub mod builds;
pub mod generate;
pub mod heap;
pub mod inspect;
mod output;
pub mod print;
mod progress;
pub mod providers;
pub mod ranks;
mod remedy;
pub mod setup;
mod setup_bar;
mod signals;
pub mod stages;
pub mod trace;
