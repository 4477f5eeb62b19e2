//! `dbcache-trt setup`.

use dbcache_trt::setup::{self, SetupOptions, SlotState};
use dbcache_trt::{Error, ErrorKind, LibraryOptions, library_info, library_places};

use super::args::SetupArgs;
use super::print::{line, note};

pub fn run(args: &SetupArgs) -> anyhow::Result<()> {
    if args.check {
        return check();
    }
    let installed = setup::run(&SetupOptions { via: args.via }, &mut |event| note(event))?;
    line(installed)
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
        line(format_args!("  {} (ONNX Runtime {}): {}", slot.path.display(), slot.version, slot.state))?;
    }
    if let Some(slot) = slots.iter().find(|slot| matches!(slot.state, SlotState::Damaged(_))) {
        let message = format!("{} is {}; run `dbcache-trt setup` to repair it", slot.path.display(), slot.state);
        anyhow::bail!(Error::with_kind(ErrorKind::Library, message));
    }
    let info = library_info(&options)?;
    line(format_args!("ONNX Runtime {} at {}", info.version, info.path.display()))
}
