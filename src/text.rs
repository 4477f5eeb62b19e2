//! From a prompt to the text inputs of the model: tokenizers and text graphs.

mod clean;
mod reader;
mod tokenizer;

use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) use self::reader::PromptReader;
use self::reader::Tokens;
use crate::error::{Error, Result};
use crate::model::graph::Port;
use crate::model::manifest::{Axis, DType, TextGraphSpec, TextInputSpec, TokenField};
use crate::runtime::op::Op;
use crate::runtime::session::Session;
use crate::runtime::tensor::{BufferId, Buffers, TensorPlace};

/// Tokenizers and text graphs of an engine.
pub(crate) struct TextEncoder {
    pub(crate) reader: Arc<PromptReader>,
    graphs: Vec<Arc<Session>>,
}

/// What is known of a prompt's tokens before its graphs run.
#[derive(Clone, Copy)]
struct Known<'a> {
    /// Tokens of each tokenizer.
    lengths: &'a BTreeMap<String, usize>,
    /// What the graphs give.
    ports: &'a [Port],
}

impl TextEncoder {
    /// `graphs` are the text graphs of the manifest, in its order.
    pub(crate) fn new(reader: Arc<PromptReader>, graphs: Vec<Arc<Session>>) -> Self {
        Self { reader, graphs }
    }

    /// Names of the text inputs that the graphs give.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = &str> {
        self.reader.spec.graphs.iter().flat_map(|graph| &graph.outputs).map(String::as_str)
    }

    /// Runs the text graphs over one prompt per picture, padded to `lengths`; gives each output: its name and tensor.
    ///
    /// # Errors
    /// `Input` for a word that the model does not know.
    pub(crate) fn encode(
        &self,
        prompts: &[String],
        ports: &[Port],
        lengths: &BTreeMap<String, usize>,
        buffers: &mut Buffers,
    ) -> Result<Vec<(String, BufferId)>> {
        let batch = prompts.len() as i64;
        let mut tokens: BTreeMap<&str, Vec<Tokens>> = BTreeMap::new();
        for name in self.reader.tokenizers.keys() {
            let spec = &self.reader.spec.tokenizers[name];
            let length = lengths.get(name).copied().unwrap_or(spec.length as usize);
            let padded = |prompt: &String| Ok(self.reader.tokens(name, prompt)?.padded(spec, length));
            tokens.insert(name, prompts.iter().map(padded).collect::<Result<_>>()?);
        }
        let mut encoded: Vec<(String, BufferId)> = Vec::new();
        for (graph, session) in self.reader.spec.graphs.iter().zip(&self.graphs) {
            let mut inputs = Vec::new();
            for (port, input) in &graph.inputs {
                let id = match input {
                    TextInputSpec::Tensor { tensor } => {
                        let known = encoded.iter().find(|(name, _)| name == tensor);
                        known.ok_or_else(|| Error::internal(format!("no text tensor `{tensor}`")))?.1
                    }
                    TextInputSpec::Tokens { tokenizer, field } => {
                        let rows = tokens.get(tokenizer.as_str()).map(Vec::as_slice).unwrap_or_default();
                        let field = |row: &Tokens| if *field == TokenField::Ids { &row.ids } else { &row.mask }.clone();
                        let numbers: Vec<i64> = rows.iter().flat_map(field).collect();
                        let id =
                            buffers.add_at(TensorPlace::Host, DType::I64, &[batch, numbers.len() as i64 / batch])?;
                        buffers.write_ids(id, &numbers)?;
                        id
                    }
                };
                inputs.push((port.clone(), id));
            }
            let mut outputs = Vec::new();
            for name in &graph.outputs {
                let Some(port) = ports.iter().find(|port| port.name == *name) else { continue };
                let extent = |axis: &Axis| match axis {
                    Axis::Fixed(extent) => Ok(*extent as i64),
                    Axis::Named(name) if name == "batch" => Ok(batch),
                    Axis::Named(dim) => self.tokens_along(dim, graph, Known { lengths, ports }, &encoded, buffers),
                };
                let shape = port.shape.iter().map(extent).collect::<Result<Vec<i64>>>()?;
                outputs.push((name.clone(), buffers.add(port.dtype, &shape)?));
            }
            Op::bind(session, buffers, &inputs, &outputs)?.run()?;
            encoded.extend(outputs);
        }
        Ok(encoded)
    }

    /// The extent of a dynamic axis of what a graph gives: its stated length, the tokens that it reads, or the axis of a
    /// tensor that it takes.
    fn tokens_along(
        &self,
        dim: &str,
        graph: &TextGraphSpec,
        known: Known<'_>,
        encoded: &[(String, BufferId)],
        buffers: &Buffers,
    ) -> Result<i64> {
        let Known { lengths, ports } = known;
        if let Some(length) = graph.length {
            return Ok(length as i64);
        }
        if let Some(tokenizer) = graph.tokenizer() {
            let drop = self.reader.spec.tokenizers[tokenizer].drop as usize; // Manifest::parse has checked the name.
            return Ok(lengths.get(tokenizer).copied().unwrap_or_default().saturating_sub(drop) as i64);
        }
        let along = |tensor: &str| {
            let shape = &ports.iter().find(|port| port.name == tensor)?.shape;
            let place = shape.iter().position(|axis| *axis == Axis::Named(dim.to_owned()))?;
            let (_, id) = encoded.iter().find(|(name, _)| name == tensor)?;
            buffers.shape(*id).get(place).copied()
        };
        let found = graph.tensors().find_map(along);
        found.ok_or_else(|| Error::internal(format!("nothing gives the axis `{dim}` of {}", graph.file)))
    }
}
