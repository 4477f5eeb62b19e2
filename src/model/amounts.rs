//! How much the constants of a graph ask ONNX Runtime to make: a shape of a few bytes can stand for any amount of memory.
//!
//! Only constants are seen here. What a graph computes a shape from is bounded by what it is given.

use std::collections::BTreeMap;

use super::onnx::{EXTERNAL, GraphProto, NodeProto, TensorProto, element};

/// Most elements that one constant may ask for: a gigabyte of f32.
const MOST: f64 = (1u64 << 28) as f64;

/// Operators, and their inputs that say how large the output is: the product of the numbers bounds the growth.
const AMOUNTS: [(&str, usize); 6] =
    [("ConstantOfShape", 0), ("Expand", 1), ("Pad", 1), ("Resize", 2), ("Resize", 3), ("Tile", 1)];

/// Refuses a constant that asks for too much; the reason is a clause about a node.
pub(super) fn check(graph: &GraphProto) -> Result<(), String> {
    let mut constants: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let of_graph = graph.initializer.iter().filter_map(|tensor| Some((tensor.name.as_deref()?, numbers(tensor))));
    let of_nodes = graph.node.iter().filter_map(|node| Some((node.output.first()?.as_str(), of_constant(node)?)));
    constants.extend(of_graph.chain(of_nodes));
    graph.node.iter().try_for_each(|node| {
        let inputs: Vec<Option<&[f64]>> =
            node.input.iter().map(|name| constants.get(name.as_str()).map(Vec::as_slice)).collect();
        let operator = node.op_type.as_deref().unwrap_or_default();
        let asked = asked(operator, &inputs);
        // What is not a number is too much as well.
        if asked <= MOST {
            return Ok(());
        }
        let name = node.name.as_deref().unwrap_or_default();
        Err(format!("node `{name}` of {operator} asks for {asked:e} elements; at most {MOST} are made by a constant"))
    })
}

/// How many elements the constants among a node's inputs ask for.
fn asked(operator: &str, inputs: &[Option<&[f64]>]) -> f64 {
    if let ("Range", [Some([from]), Some([to]), Some([by])]) = (operator, inputs) {
        return (to - from) / by;
    }
    let amounts = AMOUNTS.iter().filter(|(known, _)| *known == operator);
    let constants = amounts.filter_map(|(_, index)| inputs.get(*index).copied().flatten());
    constants.flatten().map(|number| number.abs().max(1.0)).product()
}

/// The numbers that a node `Constant` holds.
fn of_constant(node: &NodeProto) -> Option<Vec<f64>> {
    if node.op_type.as_deref() != Some("Constant") {
        return None;
    }
    let attribute = node.attribute.first()?;
    let integers = attribute.ints.iter().chain(&attribute.i).map(|number| *number as f64);
    let floats = attribute.floats.iter().chain(&attribute.f).map(|number| f64::from(*number));
    Some(attribute.t.as_ref().map_or_else(|| integers.chain(floats).collect(), numbers))
}

/// The numbers of a tensor of one of the types that shapes and factors have; none of others.
fn numbers(tensor: &TensorProto) -> Vec<f64> {
    if tensor.data_location == Some(EXTERNAL) {
        return vec![f64::INFINITY]; // weights may say anything
    }
    let raw = tensor.raw_data.as_deref().unwrap_or_default();
    match tensor.data_type {
        Some(element::INT64) if raw.is_empty() => tensor.int64_data.iter().map(|number| *number as f64).collect(),
        Some(element::INT32) if raw.is_empty() => tensor.int32_data.iter().map(|number| f64::from(*number)).collect(),
        Some(element::FLOAT) if raw.is_empty() => tensor.float_data.iter().map(|number| f64::from(*number)).collect(),
        Some(element::INT64) => raw.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as f64).collect(),
        Some(element::INT32) => raw.as_chunks().0.iter().map(|bytes| f64::from(i32::from_le_bytes(*bytes))).collect(),
        Some(element::FLOAT) => raw.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect(),
        _ => Vec::new(),
    }
}
