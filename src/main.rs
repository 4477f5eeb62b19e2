//! The command `dbcache-trt`: parse, run, and print the one error.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![allow(missing_docs, reason = "a program has no public items")]

mod cli;

use std::process::ExitCode;

use clap::Parser;
use dbcache_trt::ErrorKind;

#[global_allocator]
static HEAP: cli::heap::Heap = cli::heap::Heap;

fn main() -> ExitCode {
    let cli = match cli::args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::print::refused(&error),
    };
    // The hook of the standard library has told where it happened.
    let code = std::panic::catch_unwind(|| run(&cli)).unwrap_or_else(|_| {
        cli::print::note("error: this is a bug of dbcache-trt; please report it with the command and the lines above");
        ErrorKind::Internal.exit_code()
    });
    cli::ranks::leave(code);
    ExitCode::from(code)
}

/// The exit code.
fn run(cli: &cli::args::Cli) -> u8 {
    for (old, new) in cli.old_names() {
        cli::print::note(format_args!("note: {old} is now {new}"));
    }
    let result = match &cli.command {
        Some(cli::args::Command::Setup(args)) => cli::setup::run(args),
        Some(cli::args::Command::Providers(args)) => cli::providers::run(args),
        Some(cli::args::Command::Inspect(args)) => cli::inspect::run(args),
        Some(cli::args::Command::Trace(args)) => cli::trace::run(args),
        Some(cli::args::Command::Build(args)) => cli::build::run(args),
        Some(cli::args::Command::BuildOne(args)) => cli::build::one(args),
        Some(cli::args::Command::Builds(args) | cli::args::Command::Engines(args)) => cli::builds::run(args),
        Some(cli::args::Command::Stages(args)) => cli::stages::run(args),
        None => cli::generate::run(&cli.generate),
    };
    match result {
        Ok(()) => 0,
        Err(error) if cli::print::is_broken_pipe(&error) => 0,
        Err(error) => {
            let kind = error.downcast_ref::<dbcache_trt::Error>().map_or(ErrorKind::Io, |e| e.kind());
            // Each process hears Ctrl-C; one says so.
            if kind != ErrorKind::Cancelled || !cli::ranks::is_helper() {
                cli::print::note(format_args!("{}error: {}", cli::ranks::prefix(), cli::print::story(&error)));
            }
            kind.exit_code()
        }
    }
}
