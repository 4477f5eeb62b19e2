//! Writing to standard output, where a closed pipe is no error.

use std::borrow::Cow;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;

use super::remedy::spelled;

/// Prints a text and a line break.
pub fn line(text: impl std::fmt::Display) -> anyhow::Result<()> {
    let written = writeln!(std::io::stdout().lock(), "{}", harmless(&text.to_string()));
    written.context("cannot write to the standard output; send it where there is room")
}

/// Prints a text and a line break to standard error. That it cannot be written (`2>&1 | head -1`, a full disk) is no reason to
/// end otherwise than without it.
pub fn note(text: impl std::fmt::Display) {
    // In one piece: another process may write, or end this one, in between.
    let line = format!("{}\n", harmless(&spelled(&text.to_string())));
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// The text with control characters spelled out: prompts, pictures and manifests may hold what moves a terminal's cursor, or
/// what turns the direction of the text, so that it reads as another one.
fn harmless(text: &str) -> Cow<'_, str> {
    let turns =
        |c: char| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let is_harmful = |c: char| (c.is_control() && c != '\n' && c != '\t') || turns(c);
    if !text.contains(is_harmful) {
        return text.into();
    }
    text.chars().map(|c| if is_harmful(c) { c.escape_default().to_string() } else { c.into() }).collect()
}

/// Whether the reader of our output went away (`dbcache-trt … | head`).
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Prints why a command line is no command, or the help that it asks for.
pub fn refused(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    // Texts of the library name options in its own way.
    if text.contains("option `") && error.use_stderr() {
        note(text.trim_end());
    } else {
        // A reader that went away, as in `dbcache-trt --help | head`, is no error.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1))
}

/// The error with its causes. The library's own error tells its causes by itself.
pub fn story(error: &anyhow::Error) -> String {
    let story = match error.downcast_ref::<dbcache_trt::Error>() {
        Some(error) => error.to_string(),
        None => format!("{error:#}"),
    };
    harmless(&story).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_the_cursor_or_turns_the_text_is_spelled_out() {
        for (text, shown) in [
            ("red\tapple\n", "red\tapple\n"),
            ("\u{1b}[2Jred", "\\u{1b}[2Jred"),
            ("a\u{202e}gnp.exe", "a\\u{202e}gnp.exe"),
            ("\u{2066}a\u{2069}\u{200f}\u{61c}", "\\u{2066}a\\u{2069}\\u{200f}\\u{61c}"),
            ("Zitrone 🍋 é \u{200d}", "Zitrone 🍋 é \u{200d}"),
        ] {
            assert_eq!(harmless(text), shown);
        }
    }
}
