//! Stops a generation from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::exit;

/// Shared by whoever may cancel and the request that obeys, within one block. Cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

/// A flag that somebody else sets, such as a signal handler.
impl From<Arc<AtomicBool>> for CancelToken {
    fn from(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }
}

impl CancelToken {
    /// Asks the request to stop. Atomic, does not wait, may be called from any thread and more than once.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether someone asked, or the process ends.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) || exit::is_over()
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    }
}
