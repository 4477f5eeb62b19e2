//! Joins consecutive block graphs into the graph of one stage.
//!
//! Values of each part get a prefix of their own; a tensor that a part takes is whatever the parts before it made of
//! that tensor. Parameters stay references into the weights files, so a joined graph is as small as its parts.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use super::casts::drop_round_trips;
use super::graph::{Graph, output_port};
use super::onnx::{self, GraphProto, ModelProto, ValueInfoProto};
use crate::error::{Error, Result};

/// A graph with the tensors that it takes and gives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    pub graph: &'a Graph,
    pub inputs: &'a [String],
    pub outputs: &'a [String],
}

/// One step of a joined graph.
#[derive(Clone, Debug)]
pub(crate) enum Piece<'a> {
    Part(Part<'a>),
    /// From here on `name` means what the tensor `of` is now.
    Alias {
        name: String,
        of: String,
    },
}

/// What a sequence of pieces takes from outside, and what it gives, in order of first appearance.
pub(crate) fn boundary(pieces: &[Piece<'_>]) -> (Vec<String>, Vec<String>) {
    let (mut inputs, mut outputs, mut aliases): (Vec<String>, Vec<String>, Vec<&String>) = Default::default();
    for piece in pieces {
        let taken = match piece {
            Piece::Part(part) => part.inputs,
            Piece::Alias { of, .. } => std::slice::from_ref(of),
        };
        for tensor in taken {
            if !outputs.contains(tensor) && !aliases.contains(&tensor) && !inputs.contains(tensor) {
                inputs.push(tensor.clone());
            }
        }
        match piece {
            Piece::Part(part) => {
                let fresh: Vec<String> =
                    part.outputs.iter().filter(|tensor| !outputs.contains(tensor)).cloned().collect();
                outputs.extend(fresh);
            }
            Piece::Alias { name, .. } => aliases.push(name),
        }
    }
    (inputs, outputs)
}

/// One graph that does what the parts do one after the other; its ports are those of [`boundary`], but for outputs that
/// are not `wanted`.
///
/// # Errors
/// `EngineDirectory` if the parts refer to weights in several folders, which ONNX Runtime cannot load as one model.
pub(crate) fn join(name: &str, pieces: &[Piece<'_>], wanted: &[String]) -> Result<Graph> {
    let (inputs, _) = boundary(pieces);
    let mut joined = Graph { file: name.to_owned(), ..Graph::default() };
    let mut first: Option<ModelProto> = None;
    let mut joiner = Joiner {
        current: inputs.iter().map(|tensor| (tensor.clone(), tensor.clone())).collect(),
        pieces,
        inputs,
        wanted,
        seen_inputs: BTreeSet::new(),
        graph: GraphProto { name: Some(name.to_owned()), ..GraphProto::default() },
    };
    for (index, piece) in pieces.iter().enumerate() {
        match piece {
            Piece::Part(part) => {
                let mut decoded = onnx::decode(&part.graph.bytes).map_err(Error::internal)?;
                let own = decoded.graph.take().unwrap_or_default();
                // The first part is the model's: its opset counts, which the arithmetic between blocks does not depend on.
                first.get_or_insert(decoded);
                joiner.add(index, part, own);
                joined.absorb(part.graph)?;
            }
            Piece::Alias { name, of } => {
                joiner.current.insert(name.clone(), joiner.current[of].clone());
            }
        }
    }
    let mut graph = joiner.graph;
    debug_assert_eq!(graph.output.len(), wanted.len());
    let mut model = first.unwrap_or_default();
    drop_round_trips(&mut graph);
    joined.nodes = graph.node.len();
    model.graph = Some(graph);
    joined.bytes = model.encode_to_vec();
    Ok(joined)
}

/// A joined graph while parts are added to it.
struct Joiner<'a> {
    pieces: &'a [Piece<'a>],
    /// What the joined graph takes.
    inputs: Vec<String>,
    wanted: &'a [String],
    /// The value that each tensor has now.
    current: BTreeMap<String, String>,
    /// The inputs whose ports are in the graph.
    seen_inputs: BTreeSet<String>,
    graph: GraphProto,
}

impl Joiner<'_> {
    /// Adds the nodes and ports of a part, whose graph is `own`, with values renamed.
    fn add(&mut self, index: usize, part: &Part<'_>, own: GraphProto) {
        let given = self.given(index, part);
        let Self { inputs, current, seen_inputs, graph, .. } = self;
        let rename = |value: &str| -> String {
            if value.is_empty() {
                String::new()
            } else if part.inputs.iter().any(|tensor| tensor == value) {
                current[value].clone()
            } else {
                given.get(value).cloned().unwrap_or_else(|| format!("{index}/{value}"))
            }
        };
        let renamed_port = |mut port: ValueInfoProto| {
            port.name = Some(rename(port.name.as_deref().unwrap_or_default()));
            port
        };
        for mut node in own.node {
            let named = node.name.take().filter(|name| !name.is_empty());
            node.name = named.map(|name| format!("{index}/{name}"));
            node.input.iter_mut().chain(&mut node.output).for_each(|value| *value = rename(value));
            graph.node.push(node);
        }
        for mut tensor in own.initializer {
            tensor.name = Some(rename(tensor.name.as_deref().unwrap_or_default()));
            graph.initializer.push(tensor);
        }
        graph.value_info.extend(own.value_info.into_iter().map(renamed_port));
        for port in own.input {
            let tensor = port.name.clone().unwrap_or_default();
            if inputs.contains(&tensor) && current.get(&tensor) == Some(&tensor) && seen_inputs.insert(tensor) {
                graph.input.push(port);
            }
        }
        let last: Vec<String> = part.outputs.iter().map(|tensor| output_port(tensor, part.inputs)).collect();
        let is_last = |port: &ValueInfoProto| {
            let place = last.iter().position(|name| Some(name) == port.name.as_ref());
            place.is_some_and(|place| writes_last(self.pieces, self.wanted, index, &part.outputs[place]))
        };
        for port in own.output {
            if is_last(&port) {
                graph.output.push(renamed_port(port));
            }
        }
        for tensor in part.outputs {
            current.insert(tensor.clone(), given[&output_port(tensor, part.inputs)].clone());
        }
    }

    /// The values that a part's outputs become, by their ports.
    fn given(&self, index: usize, part: &Part<'_>) -> BTreeMap<String, String> {
        let value = |tensor: &String| {
            let port = output_port(tensor, part.inputs);
            let is_last = writes_last(self.pieces, self.wanted, index, tensor);
            let value = if is_last { output_port(tensor, &self.inputs) } else { format!("{index}/{port}") };
            (port, value)
        };
        part.outputs.iter().map(value).collect()
    }
}

/// Whether no piece after this one writes the tensor: then it is an output of the joined graph, if it is wanted.
fn writes_last(pieces: &[Piece<'_>], wanted: &[String], index: usize, tensor: &String) -> bool {
    let is_written = |later: &Piece<'_>| matches!(later, Piece::Part(part) if part.outputs.contains(tensor));
    wanted.contains(tensor) && !pieces[index + 1..].iter().any(is_written)
}
