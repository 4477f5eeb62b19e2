//! Streams of a build without the Cargo feature `cuda`: there are none.

use crate::error::{Error, ErrorKind, Result};

/// A stream that does not exist.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stream {}

impl Stream {
    /// # Errors
    /// `Provider` always.
    pub(crate) fn of_device(_: i32) -> Result<Self> {
        let message = "this program is built without the Cargo feature `cuda`; build it with the feature";
        Err(Error::new(ErrorKind::Provider, message))
    }

    pub(crate) fn pairs(self) -> [(String, String); 2] {
        match self {}
    }

    pub(crate) fn wait(self) -> Result<()> {
        match self {}
    }
}
