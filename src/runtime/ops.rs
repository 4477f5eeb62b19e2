//! Arithmetic on tensors as small ONNX graphs, so that they never leave the provider.

use std::sync::Arc;

use prost::Message;

use super::capture::State;
use super::device::Device;
use super::measure::StreamType;
use super::provider::Role;
use super::session::{Binding, Session, SessionSource, WeightsMode};
use super::tensor::{BufferId, Buffers};
use crate::error::Result;
use crate::model::graph::element_type;
use crate::model::manifest::DType;
use crate::model::onnx::{GraphProto, NodeProto, TensorProto, ValueInfoProto, build};

/// Any opset from 13 on has these operators in the same form.
const OPSET: i64 = 20;

/// What is kept of streams of one dtype and rank, in a dtype of its own, and how it is used again.
pub(crate) struct Arithmetic {
    subtract: Arc<Session>,
    add: Arc<Session>,
    keep: Arc<Session>,
    put: Arc<Session>,
}

impl Arithmetic {
    pub(crate) fn load(device: &Device, dtype: DType, kept: DType, rank: usize) -> Result<Self> {
        let axes: Vec<String> = (0..rank).map(|axis| format!("d{axis}")).collect();
        let axes: Vec<&str> = axes.iter().map(String::as_str).collect();
        let port = |name: &str, dtype: DType| build::port(name, element_type(dtype), &axes);
        let one = |name: &str, nodes, inputs, out, initializer| {
            let output = vec![port("out", out)];
            let name_in_graph = Some(name.into());
            let graph = GraphProto {
                name: name_in_graph,
                node: nodes,
                input: inputs,
                output,
                initializer,
                ..GraphProto::default()
            };
            load(device, name, encode(graph))
        };
        let mut narrow = Narrow::default();
        let mut subtract = vec![build::node("Sub", &["a", "b"], "difference")];
        subtract.extend(narrow.nodes("difference", "out", dtype, kept));
        let add = vec![widen("b", "wide", kept, dtype), build::node("Add", &["a", "wide"], "out")];
        let keep = narrow.nodes("a", "out", dtype, kept);
        let limits = narrow.constants();
        let keep: Arc<Session> = one("keep", keep, vec![port("a", dtype)], kept, limits.clone())?;
        let put = if kept == dtype {
            Arc::clone(&keep)
        } else {
            one("put", vec![widen("a", "out", kept, dtype)], vec![port("a", kept)], dtype, Vec::new())?
        };
        Ok(Self {
            subtract: one("residual", subtract, vec![port("a", dtype), port("b", dtype)], kept, limits)?,
            add: one("apply-residual", add, vec![port("a", dtype), port("b", kept)], dtype, Vec::new())?,
            keep,
            put,
        })
    }

    /// out = a - b; `out` is kept.
    pub(crate) fn bind_subtract(&self, buffers: &mut Buffers, a: BufferId, b: BufferId, out: BufferId) -> Result<Op> {
        Op::bind(&self.subtract, buffers, &[("a", a), ("b", b)], &[("out", out)])
    }

    /// out = a + b; `b` is kept.
    pub(crate) fn bind_add(&self, buffers: &mut Buffers, a: BufferId, b: BufferId, out: BufferId) -> Result<Op> {
        Op::bind(&self.add, buffers, &[("a", a), ("b", b)], &[("out", out)])
    }

    /// out = a; `out` is kept.
    pub(crate) fn bind_keep(&self, buffers: &mut Buffers, a: BufferId, out: BufferId) -> Result<Op> {
        Op::bind(&self.keep, buffers, &[("a", a)], &[("out", out)])
    }

    /// out = a; `a` is kept.
    pub(crate) fn bind_put(&self, buffers: &mut Buffers, a: BufferId, out: BufferId) -> Result<Op> {
        Op::bind(&self.put, buffers, &[("a", a)], &[("out", out)])
    }
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

/// A graph with its buffers.
pub(crate) struct Op {
    session: Arc<Session>,
    binding: Binding,
}

impl Op {
    pub(crate) fn bind<S: AsRef<str>>(
        session: &Arc<Session>,
        buffers: &mut Buffers,
        inputs: &[(S, BufferId)],
        outputs: &[(S, BufferId)],
    ) -> Result<Self> {
        Ok(Self { session: Arc::clone(session), binding: session.bind(buffers, inputs, outputs)? })
    }

    pub(crate) fn run(&self) -> Result<()> {
        self.session.run(&self.binding)
    }

    /// Runs a stage of the model. The first replay of a recording is held against a plain run, whose numbers then count.
    pub(crate) fn run_stage(&self, buffers: &mut Buffers) -> Result<()> {
        let Some((capture, outputs)) = self.binding.untrusted() else { return self.session.replay(&self.binding) };
        // A replay that leaves out a copy would find there what the run before it wrote.
        outputs.iter().try_for_each(|id| buffers.clear(*id))?;
        self.session.replay(&self.binding)?;
        let replayed = outputs.iter().map(|id| buffers.read(*id)).collect::<Result<Vec<_>>>()?;
        self.run()?;
        let mut difference = 0.0_f64;
        for (id, replayed) in outputs.iter().zip(&replayed) {
            difference = difference.max(relative(&buffers.read(*id)?, replayed));
        }
        let is_same = difference <= SAME_RUN;
        capture.settle(if is_same { State::Trusted } else { State::Refused });
        if !is_same {
            buffers.refuse_capture(format!(
                "{}: a replay differs from a run by {difference:.1e} of its numbers",
                self.session.name()
            ));
        }
        Ok(())
    }
}

/// Two runs over the same numbers differ by no more, relative L1: kernels may add in any order.
const SAME_RUN: f64 = 1e-5;

/// mean(abs(a − b)) / mean(abs(a)).
fn relative(a: &[f32], b: &[f32]) -> f64 {
    let sum = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(f64::abs).sum::<f64>();
    let difference = sum(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let all = sum(&mut a.iter().map(|a| f64::from(*a)));
    if difference == 0.0 { 0.0 } else { difference / all }
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

pub(super) fn load(device: &Device, name: &str, model: Vec<u8>) -> Result<Arc<Session>> {
    let (weights, role) = (WeightsMode::Packed, Role::Arithmetic);
    let source = SessionSource { name, model: &model, folder: None, weights, casts_weights: false, fixed: &[], role };
    Session::load(device, &source).map(Arc::new)
}
