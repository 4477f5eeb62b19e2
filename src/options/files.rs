//! Policies and recordings that an option names by their file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::cache::PolicyConfig;
use crate::error::{At, Error, Result};
use crate::trace::recording;

/// Longest policy file that is read.
const MAX_POLICY: u64 = 1 << 20;

/// Longest trace file that is read.
const MAX_TRACE: u64 = 256 << 20;

/// A policy from a tag, a JSON object, or the path of a `.json` file that holds one of them.
///
/// # Errors
/// `Usage` for what is no policy; `Io` for a file that cannot be read.
pub fn read_policy(text: &str) -> Result<PolicyConfig> {
    if !text.to_ascii_lowercase().ends_with(".json") {
        return text.parse();
    }
    let bytes = read("policy", text.as_ref(), MAX_POLICY)?;
    let policy = String::from_utf8(bytes).map_err(|_| Error::usage(format!("the policy {text} is not UTF-8")))?;
    policy.parse()
}

/// The policy that repeats the decisions of a trace file.
///
/// # Errors
/// `Input` for a file that holds no trace of one request; `Io` for one that cannot be read.
pub fn read_replay(path: &Path) -> Result<PolicyConfig> {
    let (config, recording) = recording(&read_trace(path)?).at(path.display())?;
    Ok(PolicyConfig::replay(config, recording))
}

/// The JSON of a trace file, not yet checked.
///
/// # Errors
/// `Input` for a file that is too long or no JSON; `Io` for one that cannot be read.
pub fn read_trace(path: &Path) -> Result<Value> {
    serde_json::from_slice(&read("trace", path, MAX_TRACE)?).map_err(|error| {
        Error::input(format!("{} does not parse as JSON: {error}; it is no trace", path.display()))
            .about(path.display())
    })
}

fn read(what: &str, path: &Path, longest: u64) -> Result<Vec<u8>> {
    let fail = |error| Error::io(&format!("read the {what}"), path, error);
    let mut bytes = Vec::new();
    // Not by the file's length: devices and pipes have none.
    let file = File::open(path).map_err(fail)?;
    file.take(longest + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > longest {
        let message = format!("{} is too long for a {what}: at most {longest} bytes are read", path.display());
        return Err(Error::input(message).about(path.display()));
    }
    Ok(bytes)
}
