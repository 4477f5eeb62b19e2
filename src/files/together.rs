//! Several files as one: under their names lie all the older ones, or all the new ones, whenever the process is killed.
//!
//! A file system gives one name at a time. So the names first become links through one folder, `shown`, which leads to the
//! older files; then one rename makes it lead to the new ones; then each file takes the place of its link. Whoever is
//! killed between leaves names under which everybody finds whole files, and [`finish`] puts the files in place.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::{PREFIX, Partial, check_named, folder_of, no_place};
use crate::error::{Error, ErrorKind, Result};

const OLD: &str = "old";
const NEW: &str = "new";
const SHOWN: &str = "shown";

/// Writes the files `names` of a folder and removes the files `gone`: all of it, or nothing. `path` is how the user calls
/// it, and `write` is given the number of a name.
///
/// Where a file system has no links, the files get their names one by one.
pub(crate) fn write_together<E>(
    path: &Path,
    names: &[OsString],
    gone: &[OsString],
    mut write: impl FnMut(usize, File) -> Result<(), E>,
) -> Result<()>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let io = |error| Error::io("write", path, error);
    check_named(path)?;
    let folder = folder_of(path);
    let partial = Partial::new(folder, PREFIX).map_err(|error| no_place(path, folder, &error))?;
    let new = partial.path().join(NEW);
    fs::create_dir(&new).map_err(io)?;
    for (number, name) in names.iter().enumerate() {
        let file = File::create_new(new.join(name)).map_err(io)?;
        write(number, file).map_err(|error| {
            let message = format!("cannot write {}", folder.join(name).display());
            Error::new(ErrorKind::Io, message).about(path.display()).with_source(error)
        })?;
    }
    // One process at a time gives names in a folder; where there are no locks, none waits.
    let lock = File::open(folder).ok();
    let _held = lock.as_ref().map(File::lock);
    names.iter().chain(gone).try_for_each(|name| check_replaceable(&folder.join(name)))?;
    let switched = switch(partial.path(), folder, names, gone);
    if let Err(error) = finish(partial.path()) {
        partial.keep(); // Files are still reached through it.
        return Err(io(error));
    }
    let has_no_links =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied);
    match switched {
        Err(error) if has_no_links(&error) => one_by_one(&new, folder, names, gone).map_err(io),
        switched => switched.map_err(io),
    }
}

/// Refuses a place that can be none of several: a link, or no file.
pub(crate) fn check_replaceable(place: &Path) -> Result<()> {
    if place.symlink_metadata().is_ok_and(|there| !there.is_file()) {
        let message = format!("cannot write {}: it is a link or no file; remove it", place.display());
        return Err(Error::new(ErrorKind::Io, message).about(place.display()));
    }
    Ok(())
}

/// Makes every name a link that leads to the new file, all at one moment.
fn switch(partial: &Path, folder: &Path, names: &[OsString], gone: &[OsString]) -> io::Result<()> {
    let old = partial.join(OLD);
    fs::create_dir(&old)?;
    step();
    link(Path::new(OLD), &partial.join(SHOWN))?;
    let hidden = partial.file_name().map(Path::new).unwrap_or(partial).join(SHOWN);
    let made = partial.join("link");
    for name in gone.iter().chain(names) {
        let place = folder.join(name);
        if place.symlink_metadata().is_ok() {
            step();
            fs::hard_link(&place, old.join(name)).or_else(|_| fs::copy(&place, old.join(name)).map(drop))?;
        }
        step();
        link(&hidden.join(name), &made)?;
        step();
        fs::rename(&made, &place)?;
    }
    step();
    link(Path::new(NEW), &made)?;
    step();
    fs::rename(&made, partial.join(SHOWN))
}

/// Puts files in place of the links that lead through the folder `partial`, and removes links to nothing. As long as that
/// has not succeeded, the folder must stay.
pub(super) fn finish(partial: &Path) -> io::Result<()> {
    let hidden = partial.file_name().map(Path::new).unwrap_or(partial).join(SHOWN);
    let entries = fs::read_dir(folder_of(partial))?.collect::<io::Result<Vec<_>>>()?;
    for entry in entries {
        let place = entry.path();
        if !fs::read_link(&place).is_ok_and(|target| target.starts_with(&hidden)) {
            continue;
        }
        step();
        let file = partial.join(SHOWN).join(entry.file_name());
        if file.exists() { fs::rename(&file, &place) } else { fs::remove_file(&place) }?;
    }
    Ok(())
}

fn one_by_one(new: &Path, folder: &Path, names: &[OsString], gone: &[OsString]) -> io::Result<()> {
    for name in names {
        fs::rename(new.join(name), folder.join(name))?;
    }
    gone.iter().try_for_each(|name| fs::remove_file(folder.join(name)))
}

#[cfg(unix)]
fn link(target: &Path, place: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, place)
}

#[cfg(not(unix))]
fn link(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Before each change of a name: where a test ends the process.
#[cfg(test)]
use super::tests::step;

#[cfg(not(test))]
fn step() {}
