//! Finds the attentions of a block's graph: softmax(query · key + mask) · value, in single steps (opset 20) or as one
//! `Attention` (opset 23). Their tensors are `[batch, heads, tokens, head width]`; the key of single steps is transposed.

use std::collections::BTreeMap;

use super::onnx::{GraphProto, NodeProto};
use crate::error::{Error, Result};

/// An input of a node, by their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub node: usize,
    pub input: usize,
}

/// One attention.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub query: Edge,
    pub key: Edge,
    /// Along which axis of `key` the tokens lie.
    pub key_axis: i64,
    pub value: Edge,
    /// Added to the scores, `[batch, 1, 1, keys]`.
    pub mask: Option<Edge>,
    /// The node whose first output is what the queries get.
    pub output: usize,
}

/// The axis of tokens in query, value and output.
pub(super) const TOKENS: i64 = -2;

/// What may lie between the product of query and key and the softmax, or between that and the product with the value.
const BETWEEN: [&str; 3] = ["Cast", "Mul", "Div"];

pub(super) fn operator(node: &NodeProto) -> &str {
    node.op_type.as_deref().unwrap_or_default()
}

/// All attentions, in the order in which they run.
///
/// # Errors
/// `EngineDirectory` for a softmax that belongs to no attention.
pub(super) fn attentions(graph: &GraphProto) -> Result<Vec<Attention>> {
    let makers: BTreeMap<&str, usize> = graph
        .node
        .iter()
        .enumerate()
        .flat_map(|(index, node)| node.output.iter().map(move |value| (value.as_str(), index)))
        .collect();
    let mut found = Vec::new();
    for (index, node) in graph.node.iter().enumerate() {
        match operator(node) {
            "Softmax" => {
                found.push(around(graph, &makers, index).ok_or_else(|| {
                    Error::directory("has a softmax that is no attention of queries, keys and values")
                })?)
            }
            "Attention" => {
                let edge = |input| Edge { node: index, input };
                let mask = node.input.get(3).filter(|mask| !mask.is_empty()).map(|_| edge(3));
                let [query, key, value] = [0, 1, 2].map(edge);
                found.push(Attention { query, key, key_axis: TOKENS, value, mask, output: index });
            }
            _ => {}
        }
    }
    Ok(found)
}

/// The attention of a softmax.
fn around(graph: &GraphProto, makers: &BTreeMap<&str, usize>, softmax: usize) -> Option<Attention> {
    let mut mask = None;
    let mut value = graph.node[softmax].input.first()?;
    let scores = loop {
        let index = *makers.get(value.as_str())?;
        let node = &graph.node[index];
        match operator(node) {
            "MatMul" => break index,
            "Add" if mask.is_none() => {
                let leads = |input: &String| scores_above(graph, makers, input);
                let of_scores = node.input.iter().position(leads)?;
                mask = Some(Edge { node: index, input: 1 - of_scores });
                value = &node.input[of_scores];
            }
            other if BETWEEN.contains(&other) => value = node.input.first()?,
            _ => return None,
        }
    };
    let mut given = graph.node[softmax].output.first()?;
    let output = loop {
        let takes = |node: &NodeProto| node.input.first() == Some(given);
        let index = graph.node.iter().position(takes)?;
        let node = &graph.node[index];
        match operator(node) {
            "MatMul" => break index,
            "Cast" => given = node.output.first()?,
            _ => return None,
        }
    };
    let edge = |node, input| Edge { node, input };
    Some(Attention { query: edge(scores, 0), key: edge(scores, 1), key_axis: -1, value: edge(output, 1), mask, output })
}

/// Whether a value is a product, but for what may lie between.
fn scores_above(graph: &GraphProto, makers: &BTreeMap<&str, usize>, value: &str) -> bool {
    let Some(node) = makers.get(value).map(|index| &graph.node[*index]) else { return false };
    match operator(node) {
        "MatMul" => true,
        other if BETWEEN.contains(&other) => node.input.first().is_some_and(|input| scores_above(graph, makers, input)),
        _ => false,
    }
}
