//! Writing to standard output, where a closed pipe is no error.

use std::io::Write;

/// Prints a text and a line break.
pub fn line(text: impl std::fmt::Display) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

/// Whether the reader of our output went away (`dbcache-trt … | head`).
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The error with its causes. The library's own error tells its causes by itself.
pub fn story(error: &anyhow::Error) -> String {
    match error.downcast_ref::<dbcache_trt::Error>() {
        Some(error) => error.to_string(),
        None => format!("{error:#}"),
    }
}
