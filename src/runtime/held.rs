//! What ONNX Runtime has made, and when it may be freed.

use std::any::Any;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use super::turn::turn;
use crate::exit::enter;

/// What ONNX Runtime has made. It is freed when its owner drops it, and left alone once the process ends.
pub(super) struct Held<T: Send + 'static> {
    value: ManuallyDrop<T>,
    takes_turns: bool,
}

impl<T: Send + 'static> Held<T> {
    /// `takes_turns`: its device is not made for several threads, and they free one after the other, too.
    pub(super) fn new(value: T, takes_turns: bool) -> Self {
        Self { value: ManuallyDrop::new(value), takes_turns }
    }
}

impl<T: Send + 'static> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Send + 'static> DerefMut for Held<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// What was left alone. It is kept in sight of tools that look for leaks.
static KEPT: Mutex<Vec<Box<dyn Any + Send>>> = Mutex::new(Vec::new());

impl<T: Send + 'static> Drop for Held<T> {
    fn drop(&mut self) {
        // SAFETY: nobody uses it again: this is the only place that takes it, and it runs once.
        let value = unsafe { ManuallyDrop::take(&mut self.value) };
        match enter() {
            Ok(_inside) => {
                let _turn = turn(self.takes_turns);
                drop(value);
            }
            Err(_) => KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(value)),
        }
    }
}
