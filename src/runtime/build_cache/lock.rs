//! Locks between processes, and between threads of one: a builder has its key for itself, readers share it.
//!
//! The operating system lets go of a lock when its holder dies. Lock files are never removed, because two processes could
//! then hold "the" lock on two files; so there is one for each first byte of a key, not one for each key. Where a file
//! system has no locks, two builders may make the same build: each writes into a folder of its own, the later one finds
//! the result of the first.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

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

/// As [`exclusive`], but does not wait: `None` when somebody is at work, or when that cannot be known.
pub(super) fn try_exclusive(store: &Path, key: &Key) -> Option<HeldLock> {
    let file = open(store, key)?;
    match file.try_lock() {
        Ok(()) => Some(HeldLock { file: Some(file) }),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(error)) => {
            tracing::debug!(%error, "no lock");
            None
        }
    }
}
