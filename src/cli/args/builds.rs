//! `dbcache-trt builds`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use dbcache_trt::options::parse_bytes;

#[derive(Debug, Args)]
pub struct BuildsArgs {
    #[command(subcommand)]
    pub command: BuildsCommand,
}

#[derive(Debug, Subcommand)]
pub enum BuildsCommand {
    /// Lists the builds
    List(StoreArgs),
    /// Compares every file with its SHA-256; exit code 8 if a build is damaged
    Verify(StoreArgs),
    /// Removes what killed processes left behind, builds whose files are incomplete (with --verify also those with a wrong
    /// byte), notes on what is gone, and what the options name
    Gc(GcArgs),
}

impl BuildsCommand {
    pub fn store(&self) -> &StoreArgs {
        match self {
            Self::List(args) | Self::Verify(args) => args,
            Self::Gc(args) => &args.store,
        }
    }
}

/// Which build cache.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// The folder of the builds [default: in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    pub build_cache: Option<PathBuf>,
    /// What --build-cache was called
    #[arg(long, value_name = "DIR", hide = true, conflicts_with = "build_cache")]
    pub engine_cache: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct GcArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// Builds that were not loaded for longer: seconds, or with m, h or d
    #[arg(long, value_name = "TIME", value_parser = parse_age)]
    pub max_age: Option<Duration>,
    /// Builds not loaded for the longest time, until the others have so many bytes: bytes, or with K, M or G
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub max_size: Option<u64>,
    /// Builds of no engine directory that is still there unchanged
    #[arg(long)]
    pub unreferenced: bool,
    /// Builds whose keys begin like this
    #[arg(long, value_name = "KEY", value_parser = parse_key)]
    pub key: Vec<String>,
    /// Builds of which any byte is wrong: reads all of them
    #[arg(long)]
    pub verify: bool,
    /// Remove nothing, only say what would go
    #[arg(long)]
    pub dry_run: bool,
}

/// Refuses what every key begins with, also where there is no store yet.
fn parse_key(text: &str) -> Result<String, &'static str> {
    if text.is_empty() {
        return Err(
            "it is empty, and every key begins like that; give the first characters of a key that `builds list` shows",
        );
    }
    Ok(text.to_owned())
}

/// Digits, and m, h or d for minutes, hours and days.
fn parse_age(text: &str) -> Result<Duration, String> {
    let units = [('m', 60), ('h', 3600), ('d', 86_400)];
    let unit = units.iter().find(|(unit, _)| text.ends_with(*unit));
    let (digits, seconds) = unit.map_or((text, 1), |(_, seconds)| (&text[..text.len() - 1], *seconds));
    let number = if digits.bytes().all(|digit| digit.is_ascii_digit()) { digits.parse::<u64>().ok() } else { None };
    let age = number.and_then(|number| number.checked_mul(seconds)).map(Duration::from_secs);
    age.ok_or_else(|| "expected a time, such as 3600, 90m, 12h or 30d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_units() {
        for (text, seconds) in [("0", 0), ("90", 90), ("2m", 120), ("3h", 10_800), ("30d", 2_592_000)] {
            assert_eq!(parse_age(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "d", "-1d", "1.5h", "1w", "1 d", "99999999999999999999", "9999999999999999999d"] {
            assert!(parse_age(text).is_err(), "{text}");
        }
    }
}
