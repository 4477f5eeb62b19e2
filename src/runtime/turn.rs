//! One thread at a time, for providers whose sessions share a device that is not made for several.

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard};

use crate::exit::lock;

static TURN: Mutex<()> = Mutex::new(());

thread_local! {
    /// Whether this thread has its turn: what it makes and frees meanwhile is part of that.
    static HAS_TURN: Cell<bool> = const { Cell::new(false) };
}

/// Kept by the thread whose turn it is.
pub(super) struct Turn(#[expect(dead_code, reason = "it is held")] MutexGuard<'static, ()>);

/// Waits until no other thread uses such a provider; nothing for the others.
pub(super) fn turn(takes_turns: bool) -> Option<Turn> {
    if !takes_turns || HAS_TURN.get() {
        return None;
    }
    let guard = lock(&TURN);
    HAS_TURN.set(true);
    Some(Turn(guard))
}

impl Drop for Turn {
    fn drop(&mut self) {
        HAS_TURN.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_waits_for_others_and_not_for_itself() {
        assert!(turn(false).is_none());
        let first = turn(true);
        assert!(first.is_some() && turn(true).is_none() && TURN.try_lock().is_err());
        drop(first);
        assert!(TURN.try_lock().is_ok() && turn(true).is_some());
    }
}
