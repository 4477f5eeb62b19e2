//! ONNX: nodes, attributes, constants and ports are changed in place.

use prost::Message;

use super::{bytes, changes, number, text};
use crate::random::Random;

/// The engine's own view of ONNX.
#[path = "../../../src/model/onnx.rs"]
#[allow(dead_code, reason = "it serves the engine")]
mod format;

use self::format::{AttributeProto, GraphProto, TensorProto};

/// A change of `seed`.
pub(crate) fn onnx(random: &mut Random, seed: &[u8]) -> Vec<u8> {
    let Ok(mut model) = format::decode(seed) else { return bytes(random, seed) };
    for _ in 0..changes(random) {
        if let Some(graph) = &mut model.graph {
            change(random, graph);
        }
    }
    let encoded = model.encode_to_vec();
    if random.below(8) == 0 { bytes(random, &encoded) } else { encoded }
}

fn change(random: &mut Random, graph: &mut GraphProto) {
    let at = random.below(graph.node.len());
    match random.below(12) {
        0 if !graph.initializer.is_empty() => {
            let at = random.below(graph.initializer.len());
            tensor(random, &mut graph.initializer[at]);
        }
        1 if !graph.initializer.is_empty() => drop(graph.initializer.remove(random.below(graph.initializer.len()))),
        2 if !graph.input.is_empty() => {
            let port = random.pick(&graph.input).clone();
            graph.output.push(port);
        }
        3 if !graph.output.is_empty() => drop(graph.output.pop()),
        _ if graph.node.is_empty() => {}
        4 => drop(graph.node.remove(at)),
        5 => graph.node.push(graph.node[at].clone()),
        6 => graph.node[at].op_type = Some(random.pick(&["Einsum", "Loop", "Conv", "Add", "Cast"]).to_string()),
        7 => graph.node[at].input.push(text(random)),
        8 => drop(graph.node[at].output.pop()),
        9 => graph.node[at].name = Some(text(random)),
        _ => attribute(random, &mut graph.node[at].attribute),
    }
}

fn attribute(random: &mut Random, attributes: &mut Vec<AttributeProto>) {
    if attributes.is_empty() {
        attributes.push(AttributeProto { name: Some("axis".into()), r#type: Some(2), ..Default::default() });
    }
    let at = random.below(attributes.len());
    let attribute = &mut attributes[at];
    let integer = number(random).parse().unwrap_or(-7);
    match random.below(6) {
        0 => attribute.i = Some(integer),
        1 => attribute.ints = vec![integer; 1 << random.below(13)],
        2 => attribute.f = Some(integer as f32),
        3 => attribute.s = Some(text(random).into()),
        4 => attribute.r#type = Some(integer as i32),
        _ => tensor(random, attribute.t.get_or_insert_default()),
    }
}

fn tensor(random: &mut Random, tensor: &mut TensorProto) {
    let integer = number(random).parse().unwrap_or(-7);
    let entry = random.below(tensor.external_data.len());
    match random.below(6) {
        0 => tensor.dims.push(integer),
        1 => tensor.dims = vec![integer; 1 << random.below(8)],
        2 => tensor.data_type = Some(integer as i32),
        3 => tensor.raw_data = Some(vec![0xff; random.below(100)]),
        4 => tensor.int64_data = vec![integer; random.below(100)],
        _ if tensor.external_data.is_empty() => tensor.name = Some(text(random)),
        _ if random.below(2) == 0 => tensor.external_data[entry].value = Some(number(random).into()),
        _ => tensor.external_data[entry].value = Some(text(random)),
    }
}
