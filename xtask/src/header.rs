//! Writes the header of the C library.

use anyhow::Result;

use crate::run::{cargo, step, succeeds};

pub fn header(_: &[String]) -> Result<()> {
    let test = ["test", "--package", "dbcache-trt-capi", "--test", "header"];
    // A header that was not current is written, and fails once.
    if succeeds(&mut cargo(&test)) { Ok(()) } else { step(&mut cargo(&test)) }
}
