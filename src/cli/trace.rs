//! `dbcache-trt trace diff`, and the traces that `--replay` reads.

use std::path::Path;

use dbcache_trt::options::read_trace;
use dbcache_trt::trace::{Comparison, compare, read};
use dbcache_trt::{Error, ErrorKind};
use serde_json::{Value, json};

use super::args::{TraceArgs, TraceCommand, TraceDiffArgs};
use super::print::line;

pub fn run(args: &TraceArgs) -> anyhow::Result<()> {
    match &args.command {
        TraceCommand::Diff(args) => diff(args),
    }
}

fn diff(args: &TraceDiffArgs) -> anyhow::Result<()> {
    let [a, b] = [&args.a, &args.b]
        .map(|path| -> anyhow::Result<_> { Ok(read(&read_trace(path)?).map_err(|error| at(path, &error))?) });
    let (a, b) = (a?, b?);
    if a.len() != b.len() {
        let message = format!("{} holds {} traces, {} holds {}", args.a.display(), a.len(), args.b.display(), b.len());
        anyhow::bail!(Error::with_kind(ErrorKind::Input, message));
    }
    let comparisons: Vec<Comparison> = a.iter().zip(&b).map(|(a, b)| compare(a, b)).collect();
    if args.json {
        let list: Vec<Value> = comparisons.iter().map(Comparison::to_json).collect();
        line(serde_json::to_string_pretty(&json!({ "version": 1, "comparisons": list }))?)?;
    } else {
        for (index, comparison) in comparisons.iter().enumerate() {
            if comparisons.len() > 1 {
                line(format_args!("trace {index}"))?;
            }
            line(comparison)?;
        }
    }
    if comparisons.iter().all(Comparison::is_equal) {
        return Ok(());
    }
    anyhow::bail!(Error::with_kind(
        ErrorKind::Check,
        format!("{} and {} hold different decisions", args.a.display(), args.b.display())
    ))
}

/// An error with the name of the file in front.
fn at(path: &Path, error: &Error) -> Error {
    Error::with_kind(error.kind(), format!("{}: {error}", path.display()))
}
