//! Which prompt each branch of a request has, and how long its tokens are.

use std::collections::BTreeMap;

use crate::cache::Branch;
use crate::error::{Error, ErrorKind, Result};
use crate::request::guidance::Guidance;
use crate::request::inputs::Inputs;
use crate::text::PromptReader;

/// What the text graphs read for one branch.
pub(super) fn prompt<'a>(reader: &'a PromptReader, inputs: &'a Inputs, branch: Branch) -> Option<&'a str> {
    match branch {
        Branch::Cond => inputs.prompt.as_deref(),
        Branch::Uncond => inputs.negative_prompt.as_deref().or_else(|| Some(reader.unconditional())),
    }
}

/// What people call the prompt of a branch.
pub(super) fn called(branch: Branch) -> &'static str {
    match branch {
        Branch::Cond => "the prompt",
        Branch::Uncond => "the negative prompt",
    }
}

/// Names the option that gave the prompt of a branch.
pub(super) fn about(branch: Branch, error: Error) -> Error {
    match (error.kind(), branch) {
        (ErrorKind::Input, Branch::Cond) => error.about("prompt"),
        (ErrorKind::Input, Branch::Uncond) => error.about("negative-prompt").at(called(branch)),
        _ => error,
    }
}

/// Refuses prompts that the model cannot read, by the option that gave them.
///
/// # Errors
/// `Input`.
pub(crate) fn check(reader: &PromptReader, inputs: &Inputs, guidance: &Guidance) -> Result<()> {
    let one = |branch: Branch| match prompt(reader, inputs, branch) {
        Some(prompt) => reader.check(prompt).map_err(|error| about(branch, error)),
        None => Ok(()),
    };
    guidance.texts().into_iter().try_for_each(one)
}

/// How many tokens each tokenizer gives: all branches have one length.
///
/// # Errors
/// As [`check`].
pub(super) fn lengths(reader: &PromptReader, inputs: &Inputs, guidance: &Guidance) -> Result<BTreeMap<String, usize>> {
    check(reader, inputs, guidance)?;
    let branches = guidance.texts();
    let prompts: Vec<&str> = branches.iter().filter_map(|branch| prompt(reader, inputs, *branch)).collect();
    reader.lengths(&prompts)
}
