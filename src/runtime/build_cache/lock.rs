//! Locks between processes, and between threads of one: a builder has its key for itself, readers share it.
//!
//! The operating system lets go of a lock when its holder dies. Lock files are never removed, because two processes could
//! then hold "the" lock on two files; so there is one for each first byte of a key, not one for each key. Where a file
//! system has no locks, two builders may make the same build: each writes into a folder of its own, the later one finds
//! the result of the first.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::key::Key;
use crate::exit::outside;

/// Held until dropped.
#[derive(Debug)]
pub(super) struct HeldLock {
    /// `None`: this file system, or a store that this user may only read, has no locks.
    file: Option<File>,
}

impl HeldLock {
    /// For a caller that holds the lock already.
    pub(super) fn nothing() -> Self {
        Self { file: None }
    }

    /// Whether nobody else can be at work on this key.
    pub(super) fn excludes_others(&self) -> bool {
        self.file.is_some()
    }
}

fn path(store: &Path, key: &Key) -> PathBuf {
    store.join("locks").join(&key.as_str()[..2])
}

fn open(store: &Path, key: &Key) -> Option<File> {
    let path = path(store, key);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    file.or_else(|_| File::open(&path)).ok()
}

fn no_locks(error: &std::io::Error) -> HeldLock {
    tracing::debug!(%error, "no lock");
    HeldLock::nothing()
}

/// Waits until nobody makes or removes this build.
pub(super) fn shared(store: &Path, key: &Key) -> HeldLock {
    let Some(file) = open(store, key) else { return HeldLock::nothing() };
    match outside(|| file.lock_shared()) {
        Ok(()) => HeldLock { file: Some(file) },
        Err(error) => no_locks(&error),
    }
}

/// Waits until nobody else makes, removes or loads this build.
pub(super) fn exclusive(store: &Path, key: &Key) -> HeldLock {
    let Some(file) = open(store, key) else { return HeldLock::nothing() };
    match outside(|| file.lock()) {
        Ok(()) => HeldLock { file: Some(file) },
        Err(error) => no_locks(&error),
    }
}

/// How long a lock may outlive its holder: a process that another thread is starting has copies of all open files, and of their
/// locks, until its program begins.
const LINGERS: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_millis(10);

/// As [`exclusive`], but does not wait for those who are at work: `None` then, or when that cannot be known.
pub(super) fn try_exclusive(store: &Path, key: &Key) -> Option<HeldLock> {
    let file = open(store, key)?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Some(HeldLock { file: Some(file) }),
            Err(TryLockError::WouldBlock) if start.elapsed() < LINGERS => thread::sleep(PATIENCE),
            Err(TryLockError::WouldBlock) => return None,
            Err(TryLockError::Error(error)) => {
                tracing::debug!(%error, "no lock");
                return None;
            }
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// A copy of the file stands for that of a process which is being started.
    #[test]
    fn a_lock_that_only_lingers_is_waited_for() {
        let store = tempfile::tempdir().unwrap();
        std::fs::create_dir(store.path().join("locks")).unwrap();
        let key = Key::parse(&"ab".repeat(32)).unwrap();
        let held = try_exclusive(store.path(), &key).unwrap();
        let copy = held.file.as_ref().unwrap().as_fd().try_clone_to_owned().unwrap();
        drop(held);
        let ends = thread::spawn(move || {
            thread::sleep(PATIENCE);
            drop(copy);
        });
        let again = try_exclusive(store.path(), &key);
        ends.join().unwrap();
        assert!(again.is_some());
        assert!(try_exclusive(store.path(), &key).is_none(), "somebody is at work");
    }
}
