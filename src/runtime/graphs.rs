//! Small ONNX graphs, and the parts that they are made of. Nothing is loaded here.

use prost::Message;

use crate::model::graph::element_type;
use crate::model::manifest::DType;
use crate::model::onnx::{GraphProto, NodeProto, TensorProto, ValueInfoProto, build};

/// Any opset from 13 on has these operators in the same form.
const OPSET: i64 = 20;

/// What the tensors of a compared stream are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StreamType {
    pub dtype: DType,
    /// The dtype in which it is kept.
    pub kept: DType,
    pub rank: usize,
}

/// A graph to be joined to others: `residual{j}` = `ran{j}` - `from{j}`, kept.
pub(crate) fn residuals(streams: &[StreamType]) -> Vec<u8> {
    let mut narrow = Narrow::default();
    let mut graph = GraphProto { name: Some("residuals".into()), ..GraphProto::default() };
    for (j, stream) in streams.iter().enumerate() {
        let [ran, from, difference, out] = ["ran", "from", "difference", "residual"].map(|name| format!("{name}{j}"));
        graph.node.push(build::node("Sub", &[&ran, &from], &difference));
        graph.node.extend(narrow.nodes(&difference, &out, stream.dtype, stream.kept));
        graph.input.extend([port_of(&ran, stream.dtype, stream.rank), port_of(&from, stream.dtype, stream.rank)]);
        graph.output.push(port_of(&out, stream.kept, stream.rank));
    }
    graph.initializer = narrow.constants();
    encode(graph)
}

/// A graph to be joined to others: the tensors `written` = `base{j}` + `addend{j}`, which is kept.
pub(crate) fn additions(streams: &[StreamType], written: &[String]) -> Vec<u8> {
    let mut graph = GraphProto { name: Some("additions".into()), ..GraphProto::default() };
    for (j, (stream, out)) in streams.iter().zip(written).enumerate() {
        let [base, addend, wide] = ["base", "addend", "wide"].map(|name| format!("{name}{j}"));
        graph.node.push(widen(&addend, &wide, stream.kept, stream.dtype));
        graph.node.push(build::node("Add", &[&base, &wide], out));
        graph.input.extend([port_of(&base, stream.dtype, stream.rank), port_of(&addend, stream.kept, stream.rank)]);
        graph.output.push(port_of(out, stream.dtype, stream.rank));
    }
    encode(graph)
}

fn port_of(name: &str, dtype: DType, rank: usize) -> ValueInfoProto {
    let axes: Vec<String> = (0..rank).map(|axis| format!("{name}_{axis}")).collect();
    build::port(name, element_type(dtype), &axes.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The largest finite f16.
const F16_MAX: f32 = 65504.0;

/// Casts to narrower dtypes that never make an infinity of a finite number.
#[derive(Default)]
pub(super) struct Narrow {
    is_clamped: bool,
}

impl Narrow {
    /// output = input, from one dtype to another.
    pub(super) fn nodes(&mut self, input: &str, output: &str, from: DType, to: DType) -> Vec<NodeProto> {
        if to != DType::F16 || from == DType::F16 {
            return vec![widen(input, output, from, to)];
        }
        self.is_clamped = true;
        // Min and Max hand NaN on; Clip does not promise to.
        let (low, clamped) = (format!("{output}_low"), format!("{output}_clamped"));
        vec![
            build::node("Min", &[input, "f16_max"], &low),
            build::node("Max", &[&low, "f16_min"], &clamped),
            cast(&clamped, output, element_type(to)),
        ]
    }

    /// The constants that those nodes need.
    pub(super) fn constants(&self) -> Vec<TensorProto> {
        let limits = [build::float("f16_max", F16_MAX), build::float("f16_min", -F16_MAX)];
        if self.is_clamped { limits.into() } else { Vec::new() }
    }
}

/// output = input, from one dtype to another that holds all its numbers.
pub(super) fn widen(input: &str, output: &str, from: DType, to: DType) -> NodeProto {
    if from == to { build::node("Identity", &[input], output) } else { cast(input, output, element_type(to)) }
}

/// output = the sum of the inputs, in their order. ONNX has an operator for it, which not every provider has.
pub(super) fn add_all(inputs: &[&str], output: &str) -> Vec<NodeProto> {
    let Some((first, rest)) = inputs.split_first() else { return Vec::new() };
    if rest.is_empty() {
        return vec![build::node("Identity", &[first], output)];
    }
    let mut sum = (*first).to_owned();
    let mut nodes = Vec::new();
    for (index, input) in rest.iter().enumerate() {
        let next = if index + 1 == rest.len() { output.to_owned() } else { format!("{output}_{index}") };
        nodes.push(build::node("Add", &[&sum, input], &next));
        sum = next;
    }
    nodes
}

pub(super) fn cast(input: &str, output: &str, to: i32) -> NodeProto {
    build::with_int(build::node("Cast", &[input], output), "to", to.into())
}

pub(super) fn encode(graph: GraphProto) -> Vec<u8> {
    build::model(graph, OPSET).encode_to_vec()
}
