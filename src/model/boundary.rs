//! Graphs whose ports have other dtypes than the exporter gave them: casts at the boundary, the same numbers within.
//!
//! Some providers take no bf16 where a graph begins and ends. Between such graphs bf16 travels as f32, which holds every
//! bf16; where graphs are joined, the casts that meet are taken out again ([`drop_round_trips`](super::casts::drop_round_trips)).

use std::collections::BTreeMap;

use prost::Message;

use super::casts::INNER_BOUNDARY;
use super::directory::{EngineDirectory, ExpertGraphs};
use super::graph::{Graph, element_type};
use super::manifest::DType;
use super::onnx::{self, GraphProto, NodeProto, ValueInfoProto, build};
use crate::error::{Error, Result};

impl EngineDirectory {
    /// The same model with f32 wherever graphs meet in bf16.
    ///
    /// # Errors
    /// `Internal` for a graph that was not checked.
    pub(crate) fn without_bf16_ports(mut self) -> Result<Self> {
        let cast = |graph: &mut Graph| {
            *graph = cast_ports(graph, DType::Bf16, DType::F32)?;
            Ok::<_, Error>(())
        };
        let experts = self.experts.iter_mut().flat_map(ExpertGraphs::all_mut);
        experts.chain(&mut self.text).chain(&mut self.decode).try_for_each(cast)?;
        let tensors = self.manifest.tensors.values_mut().filter(|tensor| tensor.dtype == DType::Bf16);
        tensors.for_each(|tensor| tensor.dtype = DType::F32);
        Ok(self)
    }
}

/// The graph with each port of the dtype `from` as `to`.
fn cast_ports(graph: &Graph, from: DType, to: DType) -> Result<Graph> {
    let mut model = onnx::decode(&graph.bytes).map_err(Error::internal)?;
    let Some(inner) = &mut model.graph else { return Err(Error::internal("a graph without a graph")) };
    let [narrow, wide] = [from, to].map(element_type);
    let inputs = retype(&mut inner.input, narrow, wide);
    let outputs = retype(&mut inner.output, narrow, wide);
    if inputs.is_empty() && outputs.is_empty() {
        return Ok(graph.clone());
    }
    let names: BTreeMap<String, String> =
        inputs.iter().chain(&outputs).map(|name| (name.clone(), format!("{INNER_BOUNDARY}{name}"))).collect();
    rename(inner, &names);
    let before = inputs.iter().map(|name| cast(name, &names[name], narrow));
    let after = outputs.iter().map(|name| cast(&names[name], name, wide));
    inner.node = before.chain(std::mem::take(&mut inner.node)).chain(after).collect();
    let nodes = inner.node.len();
    Ok(Graph { bytes: model.encode_to_vec(), nodes, ..graph.clone() })
}

/// Changes the element type of ports; gives their names.
fn retype(ports: &mut [ValueInfoProto], from: i32, to: i32) -> Vec<String> {
    let mut names = Vec::new();
    for port in ports {
        let Some(tensor) = port.r#type.as_mut().and_then(|kind| kind.tensor_type.as_mut()) else { continue };
        if tensor.elem_type == Some(from) {
            tensor.elem_type = Some(to);
            names.extend(port.name.clone());
        }
    }
    names
}

/// Renames values, but for the ports themselves.
fn rename(graph: &mut GraphProto, names: &BTreeMap<String, String>) {
    let values = graph.node.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output));
    let constants = graph.initializer.iter_mut().filter_map(|tensor| tensor.name.as_mut());
    let infos = graph.value_info.iter_mut().filter_map(|info| info.name.as_mut());
    for value in values.chain(constants).chain(infos) {
        if let Some(name) = names.get(value) {
            value.clone_from(name);
        }
    }
}

fn cast(from: &str, to: &str, element: i32) -> NodeProto {
    build::with_int(build::node("Cast", &[from], to), "to", i64::from(element))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::join::{Part, Piece, boundary, join};
    use crate::model::onnx::element;

    /// A graph of this dtype with one node between its ports.
    fn square(dtype: i32) -> Graph {
        let inner = GraphProto {
            node: vec![build::node("Mul", &["x", "x"], "x_out"), build::node("Neg", &["x_out"], "y")],
            input: vec![build::port("x", dtype, &["n"]), build::port("scale", element::FLOAT, &["n"])],
            output: vec![build::port("x_out", dtype, &["n"]), build::port("y", dtype, &["n"])],
            value_info: vec![build::port("x_out", dtype, &["n"])],
            ..GraphProto::default()
        };
        Graph { file: "square".into(), bytes: build::model(inner, 20).encode_to_vec(), nodes: 2, ..Graph::default() }
    }

    fn graph_of(graph: &Graph) -> GraphProto {
        onnx::decode(&graph.bytes).unwrap().graph.unwrap()
    }

    /// Such as `Cast(a)→b`, with the target of a cast in front.
    fn nodes(graph: &GraphProto) -> Vec<String> {
        let to = |node: &NodeProto| match node.attribute.first().and_then(|attribute| attribute.i) {
            Some(16) => "bf16 ",
            Some(1) => "f32 ",
            _ => "",
        };
        let text = |node: &NodeProto| {
            let op = node.op_type.as_deref().unwrap_or_default();
            format!("{}{op}({})→{}", to(node), node.input.join(","), node.output.join(","))
        };
        graph.node.iter().map(text).collect()
    }

    fn elements(ports: &[ValueInfoProto]) -> Vec<i32> {
        let element = |port: &ValueInfoProto| port.r#type.clone().unwrap().tensor_type.unwrap().elem_type.unwrap();
        ports.iter().map(element).collect()
    }

    #[test]
    fn ports_are_cast_and_what_lies_within_is_not() {
        let found = cast_ports(&square(element::BFLOAT16), DType::Bf16, DType::F32).unwrap();
        let graph = graph_of(&found);
        assert_eq!(
            nodes(&graph),
            [
                "bf16 Cast(x)→dbcache-boundary/x",
                "Mul(dbcache-boundary/x,dbcache-boundary/x)→dbcache-boundary/x_out",
                "Neg(dbcache-boundary/x_out)→dbcache-boundary/y",
                "f32 Cast(dbcache-boundary/x_out)→x_out",
                "f32 Cast(dbcache-boundary/y)→y",
            ]
        );
        assert_eq!(found.nodes, 5);
        assert_eq!((elements(&graph.input), elements(&graph.output)), (vec![1, 1], vec![1, 1]));
        // The value within keeps its type.
        assert_eq!(
            (graph.value_info[0].name.as_deref(), elements(&graph.value_info)),
            (Some("dbcache-boundary/x_out"), vec![16])
        );
        let untouched = square(element::FLOAT);
        assert_eq!(cast_ports(&untouched, DType::Bf16, DType::F32).unwrap().bytes, untouched.bytes);
    }

    #[test]
    fn casts_that_meet_are_taken_out() {
        let part = cast_ports(&square(element::BFLOAT16), DType::Bf16, DType::F32).unwrap();
        let (inputs, outputs) = (["x".to_owned(), "scale".to_owned()], ["x".to_owned(), "y".to_owned()]);
        let piece = Piece::Part(Part { graph: &part, inputs: &inputs, outputs: &outputs });
        let pieces = [piece.clone(), piece];
        let (_, wanted) = boundary(&pieces);
        let graph = graph_of(&join("two", &pieces, &wanted).unwrap());
        assert_eq!(
            nodes(&graph),
            [
                "bf16 Cast(x)→0/dbcache-boundary/x",
                "Mul(0/dbcache-boundary/x,0/dbcache-boundary/x)→0/dbcache-boundary/x_out",
                "Neg(0/dbcache-boundary/x_out)→0/dbcache-boundary/y",
                "Mul(0/dbcache-boundary/x_out,0/dbcache-boundary/x_out)→1/dbcache-boundary/x_out",
                "Neg(1/dbcache-boundary/x_out)→1/dbcache-boundary/y",
                "f32 Cast(1/dbcache-boundary/x_out)→x_out",
                "f32 Cast(1/dbcache-boundary/y)→y",
            ]
        );
        assert_eq!((elements(&graph.input), elements(&graph.output)), (vec![1, 1], vec![1, 1]));
    }

    /// A model that computes in f32 has no such port, and stays as it is.
    #[test]
    fn a_model_without_bf16_stays() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-flux");
        let open = || EngineDirectory::open(&folder, None).unwrap();
        let (before, after) = (open(), open().without_bf16_ports().unwrap());
        assert_eq!(before.experts[0].blocks[0].bytes, after.experts[0].blocks[0].bytes);
        assert_eq!(before.experts[0].embed.bytes, after.experts[0].embed.bytes);
    }
}
