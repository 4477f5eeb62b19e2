//! What the fields about texts and files must satisfy.

use std::collections::BTreeSet;

use super::fail;
use crate::error::Result;
use crate::model::manifest::{
    Dimension, Manifest, PadSide, Padding, Source, TensorSpec, TextGraphSpec, TextInputSpec, TextSpec,
};

/// Longest text around a prompt, in bytes. The longest that a pipeline asks with has 600.
const MAX_AROUND: usize = 1 << 14;

impl Manifest {
    pub(super) fn check_text(&self) -> Result<()> {
        let Some(text) = &self.text else { return Ok(()) };
        for (name, tokenizer) in &text.tokenizers {
            let length = tokenizer.length;
            if !(1..=1 << 16).contains(&length) {
                return fail(format!("tokenizer `{name}` has the length {length}; expected 1 to 65536"));
            }
            if tokenizer.drop >= length {
                return fail(format!("tokenizer `{name}` drops {} of {length} tokens", tokenizer.drop));
            }
            let around = tokenizer.prefix.len() + tokenizer.suffix.len();
            if around > MAX_AROUND {
                return fail(format!(
                    "tokenizer `{name}` puts {around} bytes around a prompt (`prefix`, `suffix`); expected at most {MAX_AROUND}"
                ));
            }
            let multiple = tokenizer.multiple_of;
            if multiple == 0 || (length - tokenizer.drop) % multiple != 0 {
                return fail(format!(
                    "tokenizer `{name}`: {length} tokens less {} are no multiple of {multiple} (`multiple_of`)",
                    tokenizer.drop
                ));
            }
            if multiple > 1 && tokenizer.padding == Padding::Length {
                return fail(format!("tokenizer `{name}` has `multiple_of` and one length"));
            }
            if tokenizer.drop > 0 && tokenizer.pad_side == PadSide::Left {
                return fail(format!("tokenizer `{name}` pads where it drops tokens"));
            }
        }
        if text.graphs.is_empty() {
            return fail("`text` has no graphs, so that prompts would have no effect");
        }
        let given = self.check_text_graphs(text)?;
        for graph in &text.graphs {
            self.check_length(text, graph)?;
        }
        match self.inputs.iter().find(|(name, input)| input.from == Source::Text && !given.contains(name.as_str())) {
            Some((name, _)) => fail(format!("no text graph gives `{name}`")),
            None => Ok(()),
        }
    }

    /// Gives what the text graphs give.
    fn check_text_graphs<'a>(&self, text: &'a TextSpec) -> Result<BTreeSet<&'a str>> {
        let mut given: BTreeSet<&str> = BTreeSet::new();
        for (index, graph) in text.graphs.iter().enumerate() {
            if graph.inputs.is_empty() || graph.outputs.is_empty() {
                return fail(format!("`text`: {} takes or gives nothing", graph.file));
            }
            for (port, input) in &graph.inputs {
                match input {
                    TextInputSpec::Tokens { tokenizer, .. } if !text.tokenizers.contains_key(tokenizer) => {
                        return fail(format!("text input `{port}` names the unknown tokenizer `{tokenizer}`"));
                    }
                    TextInputSpec::Tensor { tensor } if !given.contains(tensor.as_str()) => {
                        return fail(format!("text input `{port}` takes `{tensor}`, which no text graph before gives"));
                    }
                    _ => {}
                }
            }
            for output in &graph.outputs {
                let is_input = self.inputs.get(output).is_some_and(|input| input.from == Source::Text);
                let later = text.graphs.iter().skip(index + 1).flat_map(|graph| graph.inputs.values());
                let is_part = later
                    .filter_map(|input| if let TextInputSpec::Tensor { tensor } = input { Some(tensor) } else { None })
                    .any(|tensor| tensor == output);
                if !is_input && !is_part {
                    return fail(format!("text output `{output}` is not an input that comes from `text`"));
                }
                if !given.insert(output) {
                    return fail(format!("two text graphs give `{output}`"));
                }
            }
        }
        Ok(given)
    }

    /// The dynamic axes of what a graph gives must follow from the manifest, or from what the graph takes.
    fn check_length(&self, text: &TextSpec, graph: &TextGraphSpec) -> Result<()> {
        let file = &graph.file;
        let takes_tokens = graph.inputs.len() > graph.tensors().count();
        if graph.length.is_some() && (takes_tokens || graph.dynamic_axes(self).next().is_none()) {
            return fail(format!(
                "`text`: {file} states a `length`, which follows from what it takes, or has no effect"
            ));
        }
        let fixed = text.fixed_length(graph);
        for (output, dim) in graph.dynamic_axes(self) {
            if let (Some(length), Some(Dimension::Range { min, max })) = (fixed, self.dimensions.get(dim))
                && !(min..=max).contains(&&length)
            {
                return fail(format!("`text`: {file} gives {length} along `{dim}`, which has {min} to {max}"));
            }
            let taken = graph.tensors().filter_map(|tensor| self.tensors.get(tensor));
            let is_known = fixed.is_some() || graph.tokenizer().is_some();
            if !is_known && !taken.flat_map(TensorSpec::dynamic_axes).any(|axis| axis == dim) {
                return fail(format!(
                    "`text`: the extent of `{output}` along `{dim}` does not follow from what {file} takes; state its `length`"
                ));
            }
        }
        Ok(())
    }

    pub(super) fn check_files(&self) -> Result<()> {
        let mut seen = BTreeSet::new();
        for file in self.files() {
            check_plain_name(file.file)?;
            check_hash(file.file, file.sha256)?;
            if !seen.insert(file.file) {
                return fail(format!("file `{}` is named twice", file.file));
            }
        }
        let mut names = BTreeSet::new();
        for weights in &self.weights {
            check_plain_name(&weights.name)?;
            check_plain_name(&weights.file)?;
            if let Some(folder) = weights.folder.as_deref().filter(|folder| is_elsewhere(folder)) {
                return fail(format!(
                    "weights `{}` lie in {folder:?}, on another machine or device; copy them here and name their folder \
                     with the option `weights`",
                    weights.name
                ));
            }
            check_hash(&weights.name, &weights.header_sha256)?;
            if let Some(hash) = &weights.sha256 {
                check_hash(&weights.name, hash)?;
            }
            if !names.insert(&weights.name) {
                return fail(format!("weights `{}` are named twice", weights.name));
            }
        }
        Ok(())
    }
}

/// A network share, an address, or a device: opening one would reach another machine.
fn is_elsewhere(folder: &str) -> bool {
    let starts_twice = ["//", "\\\\", "/\\", "\\/"].iter().any(|start| folder.starts_with(start));
    // A single letter in front of the colon is a drive.
    let is_address = folder.split_once(':').is_some_and(|(scheme, _)| {
        scheme.len() > 1 && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    });
    starts_twice || is_address
}

/// No separators, no `..`, no drive letters, nothing hidden, nothing absurdly long.
fn check_plain_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.chars().all(plain) {
        return fail(format!("{name:?} is not a plain file name (letters, digits, `.`, `_`, `-`, `+`)"));
    }
    Ok(())
}

fn check_hash(name: &str, hash: &str) -> Result<()> {
    if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return fail(format!("the hash of `{name}` is not a lower-case SHA-256"));
    }
    Ok(())
}
