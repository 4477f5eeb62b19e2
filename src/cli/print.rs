//! Writing to standard output, where a closed pipe is no error.

use std::borrow::Cow;
use std::io::Write;

/// Prints a text and a line break.
pub fn line(text: impl std::fmt::Display) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{}", harmless(&text.to_string()))?)
}

/// The text with control characters spelled out: prompts, pictures and manifests may hold what moves a terminal's cursor.
fn harmless(text: &str) -> Cow<'_, str> {
    let is_harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(is_harmful) {
        return text.into();
    }
    text.chars().map(|c| if is_harmful(c) { c.escape_default().to_string() } else { c.into() }).collect()
}

/// Whether the reader of our output went away (`dbcache-trt … | head`).
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The error with its causes. The library's own error tells its causes by itself.
pub fn story(error: &anyhow::Error) -> String {
    let story = match error.downcast_ref::<dbcache_trt::Error>() {
        Some(error) => error.to_string(),
        None => format!("{error:#}"),
    };
    harmless(&story).into_owned()
}
