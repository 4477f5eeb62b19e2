//! Casts that this engine puts around graphs and into them, and what is left of them where graphs are joined.

use std::collections::{BTreeMap, BTreeSet};

use super::onnx::{GraphProto, NodeProto, element};

/// What names begin with of values that were ports, in the dtype that the ports had ([`super::boundary`]).
pub(super) const INNER_BOUNDARY: &str = "dbcache-boundary/";
/// What names begin with of values in 16 bits ([`super::compute`]).
pub(super) const INNER_COMPUTE: &str = "dbcache-compute/";

/// Whether the name of a value says that it is in the 16-bit type of the model. A model has one such type.
fn is_inner(value: &str) -> bool {
    value.rsplit_once('/').is_some_and(|(path, _)| {
        let path = format!("/{path}/");
        [INNER_BOUNDARY, INNER_COMPUTE].iter().any(|prefix| path.contains(&format!("/{prefix}")))
    })
}

/// The element type to which a node casts its input.
fn target(node: &NodeProto) -> Option<i64> {
    let is_cast = node.op_type.as_deref() == Some("Cast") && node.input.len() == 1 && node.output.len() == 1;
    node.attribute.iter().find(|attribute| is_cast && attribute.name.as_deref() == Some("to"))?.i
}

/// Takes out casts that are undone by the next graph: from 16 bits to f32, which holds them all, and back. What several
/// graphs take in 16 bits is cast once.
pub(super) fn drop_round_trips(graph: &mut GraphProto) {
    const FLOAT: i64 = element::FLOAT as i64;
    let widened: BTreeMap<String, String> = graph
        .node
        .iter()
        .filter(|node| target(node) == Some(FLOAT) && is_inner(&node.input[0]))
        .map(|node| (node.output[0].clone(), node.input[0].clone()))
        .collect();
    let given: BTreeSet<String> = graph.output.iter().filter_map(|port| port.name.clone()).collect();
    let mut same: BTreeMap<String, String> = BTreeMap::new();
    let mut narrowed: BTreeMap<(String, i64), String> = BTreeMap::new();
    graph.node.retain(|node| {
        let Some(to) = target(node).filter(|to| *to != FLOAT && is_inner(&node.output[0])) else { return true };
        let (input, output) = (&node.input[0], &node.output[0]);
        let source = widened.get(input).or_else(|| narrowed.get(&(input.clone(), to))).cloned();
        match source {
            Some(source) if !given.contains(output) => {
                same.insert(output.clone(), source);
                false
            }
            _ => {
                narrowed.insert((input.clone(), to), output.clone());
                true
            }
        }
    });
    for input in graph.node.iter_mut().flat_map(|node| &mut node.input) {
        if let Some(source) = same.get(input) {
            input.clone_from(source);
        }
    }
    let read: BTreeSet<&String> = graph.node.iter().flat_map(|node| &node.input).collect();
    let unread: BTreeSet<String> =
        widened.into_keys().filter(|value| !read.contains(value) && !given.contains(value)).collect();
    graph.node.retain(|node| !node.output.iter().any(|value| unread.contains(value)));
    graph
        .value_info
        .retain(|info| !info.name.as_ref().is_some_and(|name| same.contains_key(name) || unread.contains(name)));
}
