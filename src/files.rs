//! Files and folders that appear under their names whole, or not at all; several files as one: `together.rs`.
//!
//! What is not whole yet lies beside its place under a name of [`PREFIX`] and is locked by the process that writes it. What
//! a killed process left is not locked: the next one that writes into the same folder removes it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

use crate::error::{Error, ErrorKind, Result};

// What a killed process left of several files is put in order whether or not this one would write such.
#[cfg_attr(not(feature = "media"), expect(dead_code, reason = "only the frames of videos are written together"))]
mod together;

#[cfg(feature = "media")]
pub(crate) use together::{check_replaceable, write_together};

/// Begins the names of files and folders that are not whole yet.
const PREFIX: &str = ".dbcache-trt-";
/// As many links may lead from one to the next; the system's own limit on Linux.
const MAX_LINKS: usize = 40;

/// Writes to a temporary file in the same folder, and renames it when it is complete. A link stays, and its target is
/// replaced or made; what is no file (a pipe, a device) is written in place.
pub(crate) fn write_atomically<E>(path: &Path, write: impl FnOnce(&mut File) -> Result<(), E>) -> Result<()>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let io = |error| Error::io("write", path, error);
    let failed = |error: E| {
        Error::new(ErrorKind::Io, format!("cannot write {}", path.display())).about(path.display()).with_source(error)
    };
    check_named(path)?;
    if path.is_dir() {
        let message = format!("cannot write {}: it is a folder", path.display());
        return Err(Error::new(ErrorKind::Io, message).about(path.display()));
    }
    if path.exists() && !path.is_file() {
        let mut file = OpenOptions::new().write(true).open(path).map_err(io)?;
        return write(&mut file).map_err(failed);
    }
    let target = behind_links(path)?;
    let folder = folder_of(&target);
    let mut file = temporary_file(folder).map_err(|error| no_place(path, folder, &error))?;
    write(file.as_file_mut()).map_err(failed)?;
    file.persist(&target).map_err(|error| io(error.error))?;
    Ok(())
}

/// A folder that is not whole yet. Dropped, it is removed with all that it holds.
pub(crate) struct Partial {
    folder: TempDir,
    _lock: Option<File>,
}

impl Partial {
    /// An empty one, beside `target`; `path` is how the user calls that.
    pub(crate) fn beside(target: &Path, path: &Path) -> Result<Self> {
        let folder = folder_of(target);
        Self::new(folder, PREFIX).map_err(|error| no_place(path, folder, &error))
    }

    fn new(parent: &Path, prefix: &str) -> io::Result<Self> {
        remove_leftovers(parent);
        loop {
            let folder = tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?;
            let lock = File::open(folder.path()).ok();
            if lock.as_ref().is_none_or(|lock| is_kept(lock, folder.path())) {
                return Ok(Self { folder, _lock: lock });
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves it as it is.
    fn keep(self) {
        let _ = self.folder.keep();
    }

    /// Gives it its name, which nothing but an empty folder may have.
    pub(crate) fn persist(self, target: &Path) -> io::Result<()> {
        #[cfg(unix)]
        {
            // Temporary folders are private; a result is as readable as any other new folder.
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(self.path(), fs::Permissions::from_mode(0o755))?;
        }
        if cfg!(not(unix)) && target.is_dir() {
            fs::remove_dir(target)?; // Elsewhere a folder takes the place of an empty one in one step.
        }
        fs::rename(self.path(), target)?;
        self.keep(); // It is no temporary folder any more.
        Ok(())
    }
}

fn temporary_file(folder: &Path) -> io::Result<NamedTempFile> {
    remove_leftovers(folder);
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        // Temporary files are private; a result is as readable as any other new file.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    loop {
        let file = builder.prefix(PREFIX).tempfile_in(folder)?;
        if is_kept(file.as_file(), file.path()) {
            return Ok(file);
        }
    }
}

/// Locks what was just made. False if another process took it for a leftover before, and removed it; where a file system
/// has no locks, nobody does that.
fn is_kept(lock: &File, path: &Path) -> bool {
    lock.lock().is_err() || path.symlink_metadata().is_ok()
}

/// Removes what killed processes left in a folder. What cannot be removed is only untidy.
fn remove_leftovers(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        if !kind.is_file() && !kind.is_dir() {
            continue;
        }
        let Ok(lock) = File::open(&path) else { continue };
        if lock.try_lock().is_err() {
            continue; // Somebody still writes it.
        }
        if kind.is_file() {
            drop(fs::remove_file(&path));
        } else if together::finish(&path).is_ok() {
            drop(fs::remove_dir_all(&path));
        }
    }
}

/// The place to which links lead, whether or not something is there.
pub(crate) fn behind_links(path: &Path) -> Result<PathBuf> {
    let mut place = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&place) {
            Ok(target) => place = folder_of(&place).join(target),
            Err(_) => return Ok(place), // No link, or nothing at all.
        }
    }
    let message = format!("cannot write {}: its links lead in a circle; remove it", path.display());
    Err(Error::new(ErrorKind::Io, message).about(path.display()))
}

pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(crate) fn check_named(path: &Path) -> Result<()> {
    if path.as_os_str().is_empty() {
        return Err(Error::new(ErrorKind::Io, "cannot write a file without a name; name one").about(path.display()));
    }
    Ok(())
}

/// Why there can be no temporary file or folder for `path` in `folder`: its name, which the error holds, says nothing to a
/// user.
fn no_place(path: &Path, folder: &Path, error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        let (path, folder) = (path.display(), folder.display());
        let message = format!("cannot write {path}: the folder {folder} does not exist; make it, or name another one");
        return Error::new(ErrorKind::Io, message).about(path);
    }
    Error::io("write", path, error.kind().into())
}

#[cfg(test)]
mod tests;
