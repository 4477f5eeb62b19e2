//! `dbcache-trt setup`.

use std::io::IsTerminal;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use dbcache_trt::setup::{self, SetupOptions, Slot, SlotState, Target};
use dbcache_trt::{Error, ErrorKind, LibraryOptions, bytes_in_words, library_info, library_places};

use super::args::SetupArgs;
use super::print::{line, note};
use super::setup_bar::SetupBar;
use super::signals::cancel_token;

/// How often it is looked whether the user ends the program.
const PATIENCE: Duration = Duration::from_millis(50);

pub fn run(args: &SetupArgs) -> anyhow::Result<()> {
    match args.remove {
        _ if args.check => check(),
        _ if args.list => list(),
        Some(target) => remove(target),
        None => install(args),
    }
}

fn install(args: &SetupArgs) -> anyhow::Result<()> {
    let options = SetupOptions { via: args.via, providers: args.provider.clone().unwrap_or_default() };
    end_when_told()?;
    let mut bar = SetupBar::new();
    let installed = setup::run(&options, &mut |event| bar.hear(&event));
    bar.clear();
    let installed = installed.map_err(with_folder)?;
    for installed in &installed {
        line(installed)?;
    }
    let remains: Vec<&str> = installed.iter().filter_map(|installed| installed.remains.as_deref()).collect();
    if !remains.is_empty() {
        anyhow::bail!(Error::with_kind(ErrorKind::Provider, remains.join("; ")));
    }
    Ok(())
}

/// Names the variable that chooses another folder, where this one cannot be written.
fn with_folder(error: Error) -> Error {
    use std::io::ErrorKind::{NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    match cause.map(std::io::Error::kind) {
        Some(PermissionDenied | NotADirectory | ReadOnlyFilesystem) => {
            Error::with_kind(error.kind(), format!("{error}; set DBCACHE_TRT_HOME to a folder that you can write"))
        }
        _ => error,
    }
}

/// Ends the program when the user says so, at any moment: what was fetched stays for the next time.
fn end_when_told() -> anyhow::Result<()> {
    let cancel = cancel_token()?;
    let watch = thread::Builder::new().spawn(move || {
        while !cancel.is_cancelled() {
            thread::sleep(PATIENCE);
        }
        // On a line of its own, below the bar or what the terminal shows of Ctrl-C.
        let begin = if std::io::stderr().is_terminal() { "\n" } else { "" };
        note(format_args!("{begin}error: cancelled; what was fetched stays, and the same command goes on from there"));
        signal_hook::low_level::exit(ErrorKind::Cancelled.exit_code().into());
    });
    watch.map(drop).context("no thread is to be had")
}

fn list() -> anyhow::Result<()> {
    for slot in setup::list()? {
        show(&slot)?;
    }
    Ok(())
}

fn show(slot: &Slot) -> anyhow::Result<()> {
    let Slot { provider, path, version, bytes, state } = slot;
    line(format_args!("{provider:<12} {version}, {}, {}: {state}", bytes_in_words(*bytes), path.display()))
}

fn remove(target: Target) -> anyhow::Result<()> {
    match setup::remove(target, &mut |event| note(event))? {
        0 => line(format_args!("{target} is not installed: nothing was removed")),
        bytes => line(format_args!("removed {target}, {}", bytes_in_words(bytes))),
    }
}

fn check() -> anyhow::Result<()> {
    let options = LibraryOptions::default();
    line("places, in the order in which they are tried:")?;
    for place in library_places(&options) {
        match place.examine() {
            Ok(()) => line(format_args!("  {} ({}): there", place.path.display(), place.found_by))?,
            Err(error) => line(format_args!("  {} ({}): {}", place.path.display(), place.found_by, error.message()))?,
        }
    }
    line("installed by setup:")?;
    let slots = setup::check()?;
    for slot in &slots {
        show(slot)?;
    }
    if let Some(slot) = slots.iter().find(|slot| matches!(slot.state, SlotState::Damaged(_))) {
        let command = match slot.provider {
            "cpu" => "dbcache-trt setup".to_owned(),
            provider => format!("dbcache-trt setup --provider {provider}"),
        };
        let message = format!("{} is {}; run `{command}` to repair it", slot.path.display(), slot.state);
        anyhow::bail!(Error::with_kind(ErrorKind::Library, message));
    }
    let info = library_info(&options)?;
    line(format_args!("ONNX Runtime {} at {}", info.version, info.path.display()))
}
