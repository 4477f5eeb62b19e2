//! Which provider each node of a loaded graph runs on, and whether that is what was asked for.
//!
//! ONNX Runtime gives nodes that a provider cannot run to the CPU, without a word. Some it puts there on purpose: nodes
//! that compute shapes from shapes are faster on the host, and touch no tensor's numbers. These are allowed; any other
//! node elsewhere is a fallback.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{CStr, c_char};
use std::ptr;

use ort::AsPointer;

use crate::error::Result;
use crate::model::onnx::{EXTERNAL, GraphProto, NodeProto, decode};
use crate::runtime::errors::runtime_error;

/// The key that makes ONNX Runtime remember the assignment.
pub(crate) const RECORD: &str = "session.record_ep_graph_assignment_info";

/// What ONNX Runtime's optimiser adds where it moves a transposition behind a `Shape`. It adds this operator nowhere else.
const PERMUTES_SHAPES: &str = "Gather";

/// A node as ONNX Runtime runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Assigned {
    /// ONNX Runtime's name of the provider.
    provider: String,
    name: String,
    operator: String,
}

/// Nodes of one graph that run on another provider than the one asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strays {
    /// ONNX Runtime's name of that provider.
    pub provider: String,
    pub nodes: usize,
    /// How many of each operator.
    pub operators: BTreeMap<String, usize>,
}

impl Strays {
    /// Such as `3 nodes on CPUExecutionProvider (2 Cast, 1 Mul)`.
    pub(crate) fn describe(&self) -> String {
        let operators: Vec<String> = self.operators.iter().map(|(name, count)| format!("{count} {name}")).collect();
        let nodes = if self.nodes == 1 { "node" } else { "nodes" };
        format!("{} {nodes} on {} ({})", self.nodes, self.provider, operators.join(", "))
    }
}

/// The nodes that do not run on `provider`, by the provider on which they do.
///
/// # Errors
/// `Runtime` for a session without a record.
pub(crate) fn strays(session: &ort::session::Session, model: &[u8], provider: &str) -> Result<Vec<Strays>> {
    let assigned = assigned(session).map_err(runtime_error)?;
    let graph = decode(model).ok().and_then(|model| model.graph).unwrap_or_default();
    Ok(judge(&assigned, &graph, provider))
}

fn judge(assigned: &[Assigned], graph: &GraphProto, provider: &str) -> Vec<Strays> {
    let about_sizes = about_sizes(graph);
    let ours: HashSet<&str> = graph.node.iter().filter_map(|node| node.name.as_deref()).collect();
    let mut found: BTreeMap<&str, Strays> = BTreeMap::new();
    for node in assigned {
        let is_made_of_shapes = node.operator == PERMUTES_SHAPES && !ours.contains(node.name.as_str());
        if node.provider == provider || is_made_of_shapes || about_sizes.contains(node.name.as_str()) {
            continue;
        }
        let strays = found.entry(&node.provider).or_insert_with(|| Strays {
            provider: node.provider.clone(),
            nodes: 0,
            operators: BTreeMap::new(),
        });
        strays.nodes += 1;
        *strays.operators.entry(node.operator.clone()).or_default() += 1;
    }
    found.into_values().collect()
}

/// The names of the nodes that see nothing but shapes and constants of the graph's own.
fn about_sizes(graph: &GraphProto) -> HashSet<&str> {
    let is_constant = |tensor: &&crate::model::onnx::TensorProto| tensor.data_location != Some(EXTERNAL);
    let constants = graph.initializer.iter().filter(is_constant).filter_map(|tensor| tensor.name.as_deref());
    let mut sizes: HashSet<&str> = constants.collect();
    let mut nodes = HashSet::new();
    // Nodes come after those that they read from: a rule of ONNX.
    for node in &graph.node {
        if is_about_sizes(node, &sizes) {
            sizes.extend(node.output.iter().map(String::as_str));
            nodes.extend(node.name.as_deref().filter(|name| !name.is_empty()));
        }
    }
    nodes
}

fn is_about_sizes(node: &NodeProto, sizes: &HashSet<&str>) -> bool {
    match node.op_type.as_deref() {
        Some("Shape" | "Size") => true,
        _ => node.input.iter().all(|input| input.is_empty() || sizes.contains(input.as_str())),
    }
}

fn assigned(session: &ort::session::Session) -> ort::Result<Vec<Assigned>> {
    let api = ort::api();
    let (mut subgraphs, mut count) = (ptr::null(), 0);
    // SAFETY: the session is alive, both places are ours to write.
    let status = unsafe { (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &mut subgraphs, &mut count) };
    // SAFETY: the status comes from ONNX Runtime and is used once.
    unsafe { ort::Error::result_from_status(status) }?;
    let mut assigned = Vec::new();
    for subgraph in list(subgraphs, count) {
        let provider = text(|out| {
            // SAFETY: the subgraph belongs to the session.
            unsafe { (api.EpAssignedSubgraph_GetEpName)(*subgraph, out) }
        })?;
        let (mut nodes, mut count) = (ptr::null(), 0);
        // SAFETY: the subgraph belongs to the session, both places are ours to write.
        let status = unsafe { (api.EpAssignedSubgraph_GetNodes)(*subgraph, &mut nodes, &mut count) };
        // SAFETY: the status comes from ONNX Runtime and is used once.
        unsafe { ort::Error::result_from_status(status) }?;
        for node in list(nodes, count) {
            assigned.push(Assigned {
                provider: provider.clone(),
                name: text(|out| {
                    // SAFETY: the node belongs to the session.
                    unsafe { (api.EpAssignedNode_GetName)(*node, out) }
                })?,
                operator: text(|out| {
                    // SAFETY: the node belongs to the session.
                    unsafe { (api.EpAssignedNode_GetOperatorType)(*node, out) }
                })?,
            });
        }
    }
    Ok(assigned)
}

/// An array that belongs to a session; empty where there is none.
fn list<'s, T>(first: *const *const T, count: usize) -> &'s [*const T] {
    if first.is_null() {
        return &[];
    }
    // SAFETY: ONNX Runtime has just given both; the array lives as long as the session, which outlives our loops.
    unsafe { std::slice::from_raw_parts(first, count) }
}

fn text(get: impl FnOnce(*mut *const c_char) -> ort::sys::OrtStatusPtr) -> ort::Result<String> {
    let mut text = ptr::null();
    let status = get(&mut text);
    // SAFETY: the status comes from ONNX Runtime and is used once.
    unsafe { ort::Error::result_from_status(status) }?;
    if text.is_null() {
        return Ok(String::new());
    }
    // SAFETY: not null, ends with a zero, and belongs to the session.
    Ok(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::onnx::{TensorProto, build};

    fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
        NodeProto { name: Some(output.into()), ..build::node(operator, inputs, output) }
    }

    #[test]
    fn only_nodes_that_compute_shapes_may_run_elsewhere() {
        let weight = TensorProto { name: Some("weight".into()), data_location: Some(EXTERNAL), ..Default::default() };
        let graph = GraphProto {
            initializer: vec![build::ints("axis", &[1]), weight],
            node: vec![
                node("Shape", &["x"], "shape"),
                node("Gather", &["shape", "axis"], "extent"),
                node("Mul", &["x", "x"], "square"),
                node("Reshape", &["square", "shape"], "flat"),
                node("Cast", &["weight"], "wide"),
            ],
            ..GraphProto::default()
        };
        let on = |provider: &str, names: &[&str]| -> Vec<Assigned> {
            let assigned = |name: &&str| Assigned {
                provider: provider.into(),
                name: (*name).into(),
                operator: if ["extent", "new"].contains(name) { "Gather" } else { "Other" }.into(),
            };
            names.iter().map(assigned).collect()
        };
        for (elsewhere, expected) in [
            (vec![], String::new()),
            (vec!["shape", "extent"], String::new()),
            (vec!["new"], String::new()),
            (vec!["extent", "flat"], "1 node on Cpu (1 Other)".to_owned()),
            // A cast of a parameter is work, though it sees no tensor that changes.
            (vec!["square", "wide"], "2 nodes on Cpu (2 Other)".to_owned()),
            // What the optimiser made, nobody knows.
            (vec!["fused"], "1 node on Cpu (1 Other)".to_owned()),
        ] {
            let assigned = [on("Gpu", &["square"]), on("Cpu", &elsewhere)].concat();
            let strays: Vec<String> = judge(&assigned, &graph, "Gpu").iter().map(Strays::describe).collect();
            assert_eq!(strays.join("; "), expected, "{elsewhere:?}");
        }
    }
}
