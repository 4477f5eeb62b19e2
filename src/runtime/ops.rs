//! Residual arithmetic as small ONNX graphs, so that tensors never leave the provider.
//!
//! Sums are taken in f32 and in two stages, along the last axis and then over the rest: one long f32 sum depends on the
//! number of threads, and missed the diff of 12.6 million values by 1.9e-4; in two stages the error is below 1e-8.

use std::sync::Arc;

use prost::Message;

use super::library::Loaded;
use super::session::{Binding, Session, WeightsMode};
use super::tensor::{BufferId, Buffers};
use crate::cache::{DiffOptions, DiffTensor};
use crate::error::Result;
use crate::model::graph::element_type;
use crate::model::manifest::DType;
use crate::model::onnx::{GraphProto, NodeProto, build, element};

/// Any opset from 13 on has these operators in the same form.
const OPSET: i64 = 20;

/// The graphs for tensors of one dtype and rank.
pub(crate) struct Arithmetic {
    subtract: Arc<Session>,
    add: Arc<Session>,
    measure: Arc<Session>,
    keep: Arc<Session>,
    compares: DiffTensor,
}

/// The graphs over latents (f32, rank 3).
pub(crate) struct LatentArithmetic {
    update: Arc<Session>,
    guide: Arc<Session>,
}

impl Arithmetic {
    /// `options` say what the diff compares; without them, the head's residual as it is.
    pub(crate) fn load(library: &Loaded, dtype: DType, rank: usize, options: DiffOptions) -> Result<Self> {
        let axes: Vec<String> = (0..rank).map(|axis| format!("d{axis}")).collect();
        let element = element_type(dtype);
        let ports = [("a", element), ("b", element)];
        let binary = |op: &str| {
            let node = build::node(op, &["a", "b"], "out");
            graph(op, vec![node], &ports, &[("out", element)], &axes, &[])
        };
        let copy = vec![build::node("Identity", &["a"], "out")];
        let subtract = load(library, "residual", binary("Sub"))?;
        let keep = match options.tensor {
            DiffTensor::HeadResidual => Arc::clone(&subtract),
            DiffTensor::HeadOutput => {
                load(library, "keep", graph("keep", copy, &ports[..1], &[("out", element)], &axes, &[]))?
            }
        };
        Ok(Self {
            subtract,
            add: load(library, "apply-residual", binary("Add"))?,
            measure: load(library, "diff", measure_graph(element, &axes, options))?,
            keep,
            compares: options.tensor,
        })
    }

    /// out = a - b
    pub(crate) fn bind_subtract(&self, buffers: &mut Buffers, a: BufferId, b: BufferId, out: BufferId) -> Result<Op> {
        Op::bind(&self.subtract, buffers, &[("a", a), ("b", b)], &[("out", out)])
    }

    /// out = a + b
    pub(crate) fn bind_add(&self, buffers: &mut Buffers, a: BufferId, b: BufferId, out: BufferId) -> Result<Op> {
        Op::bind(&self.add, buffers, &[("a", a), ("b", b)], &[("out", out)])
    }

    /// current = what the diff compares (after - before, or after itself), without comparing.
    pub(crate) fn bind_keep(&self, buffers: &mut Buffers, ports: MeasurePorts) -> Result<Op> {
        let mut inputs = vec![("a", ports.after)];
        if self.compares == DiffTensor::HeadResidual {
            inputs.push(("b", ports.before));
        }
        Op::bind(&self.keep, buffers, &inputs, &[("out", ports.current)])
    }

    /// current as above; change = sum|previous - current|, size = sum|previous|, both f32 `[1]`.
    pub(crate) fn bind_measure(&self, buffers: &mut Buffers, ports: MeasurePorts) -> Result<Op> {
        let MeasurePorts { after, before, previous, current, change, size } = ports;
        let mut inputs = vec![("after", after), ("previous", previous)];
        if self.compares == DiffTensor::HeadResidual {
            inputs.push(("before", before));
        }
        Op::bind(&self.measure, buffers, &inputs, &[("current", current), ("change", change), ("size", size)])
    }
}

/// Buffers of the diff graph.
#[derive(Clone, Copy)]
pub(crate) struct MeasurePorts {
    pub after: BufferId,
    pub before: BufferId,
    pub previous: BufferId,
    pub current: BufferId,
    pub change: BufferId,
    pub size: BufferId,
}

impl LatentArithmetic {
    pub(crate) fn load(library: &Loaded) -> Result<Self> {
        let axes: Vec<String> = (0..3).map(|axis| format!("d{axis}")).collect();
        let f32_ports = |names: &[&'static str]| names.iter().map(|n| (*n, element::FLOAT)).collect::<Vec<_>>();
        let update = vec![
            build::node("Mul", &["latents", "keep"], "kept"),
            build::node("Mul", &["prediction", "take"], "taken"),
            build::node("Add", &["kept", "taken"], "out"),
        ];
        let guide = vec![
            build::node("Sub", &["cond", "uncond"], "direction"),
            build::node("Mul", &["direction", "scale"], "scaled"),
            build::node("Add", &["uncond", "scaled"], "out"),
        ];
        let tensors = f32_ports(&["out"]);
        let update =
            graph("update", update, &f32_ports(&["latents", "prediction"]), &tensors, &axes, &["keep", "take"]);
        let guide = graph("guide", guide, &f32_ports(&["cond", "uncond"]), &tensors, &axes, &["scale"]);
        Ok(Self { update: load(library, "update", update)?, guide: load(library, "guide", guide)? })
    }

    /// latents = keep * latents + take * prediction, in place; `keep` and `take` are f32 `[1]`.
    pub(crate) fn bind_update(
        &self,
        buffers: &mut Buffers,
        latents: BufferId,
        prediction: BufferId,
        keep: BufferId,
        take: BufferId,
    ) -> Result<Op> {
        let inputs = [("latents", latents), ("prediction", prediction), ("keep", keep), ("take", take)];
        Op::bind(&self.update, buffers, &inputs, &[("out", latents)])
    }

    /// out = uncond + scale * (cond - uncond); `scale` is f32 `[1]`.
    pub(crate) fn bind_guide(
        &self,
        buffers: &mut Buffers,
        cond: BufferId,
        uncond: BufferId,
        scale: BufferId,
        out: BufferId,
    ) -> Result<Op> {
        Op::bind(&self.guide, buffers, &[("cond", cond), ("uncond", uncond), ("scale", scale)], &[("out", out)])
    }
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
}

/// The diff graph of `options`. A slice of the channels and weights for the tokens are left out where they do nothing.
fn measure_graph(element: i32, axes: &[String], options: DiffOptions) -> Vec<u8> {
    let mut nodes = Vec::new();
    let mut constants = vec![build::ints("last", &[-1]), build::ints("one", &[1])];
    match options.tensor {
        DiffTensor::HeadResidual => nodes.push(build::node("Sub", &["after", "before"], "current")),
        DiffTensor::HeadOutput => nodes.push(build::node("Identity", &["after"], "current")),
    }
    for name in ["current", "previous"] {
        let mut input = name.to_owned();
        if options.downsample_factor > 1 {
            let output = format!("{name}_channels");
            nodes.push(build::node("Slice", &[&input, "zero", "end", "last", "stride"], &output));
            input = output;
        }
        let cast = build::node("Cast", &[&input], &format!("{name}_f32"));
        nodes.push(build::with_int(cast, "to", element::FLOAT.into()));
    }
    if options.downsample_factor > 1 {
        let stride = i64::try_from(options.downsample_factor).unwrap_or(i64::MAX);
        constants.extend([
            build::ints("zero", &[0]),
            build::ints("end", &[i64::MAX]),
            build::ints("stride", &[stride]),
        ]);
    }
    nodes.extend([
        build::node("Sub", &["previous_f32", "current_f32"], "difference"),
        build::node("Abs", &["difference"], "change_each"),
        build::node("Abs", &["previous_f32"], "size_each"),
    ]);
    for name in ["change", "size"] {
        let rows = build::node("ReduceSum", &[&format!("{name}_each"), "last"], &format!("{name}_rows"));
        nodes.push(build::with_int(rows, "keepdims", 0));
    }
    let mut suffix = "rows";
    if let Some(threshold) = options.important_condition_threshold {
        // Weight 1 for the tokens that changed enough, or for all if none did. 0/0 compares as false, as in PyTorch.
        constants.push(build::float("important", threshold as f32));
        constants.push(build::float("half", 0.5));
        nodes.extend([
            build::node("Div", &["change_rows", "size_rows"], "ratio"),
            build::node("Greater", &["ratio", "important"], "is_important"),
            build::with_int(build::node("Cast", &["is_important"], "weight"), "to", element::FLOAT.into()),
            build::with_int(build::node("ReduceMax", &["weight"], "any"), "keepdims", 0),
            build::node("Less", &["any", "half"], "none"),
            build::with_int(build::node("Cast", &["none"], "all"), "to", element::FLOAT.into()),
            build::node("Max", &["weight", "all"], "counted"),
            build::node("Mul", &["change_rows", "counted"], "change_counted"),
            build::node("Mul", &["size_rows", "counted"], "size_counted"),
        ]);
        suffix = "counted";
    }
    // A reshape to [1] at the end: the host reads one number.
    for name in ["change", "size"] {
        let total = build::node("ReduceSum", &[&format!("{name}_{suffix}")], &format!("{name}_total"));
        nodes.push(build::with_int(total, "keepdims", 0));
        nodes.push(build::node("Reshape", &[&format!("{name}_total"), "one"], name));
    }
    let axis_names: Vec<&str> = axes.iter().map(String::as_str).collect();
    let port = |name: &str| build::port(name, element, &axis_names);
    let scalar = |name: &str| build::port(name, element::FLOAT, &["1"]);
    let mut input = vec![port("after"), port("previous")];
    if options.tensor == DiffTensor::HeadResidual {
        input.push(port("before"));
    }
    encode(GraphProto {
        name: Some("diff".into()),
        node: nodes,
        input,
        output: vec![port("current"), scalar("change"), scalar("size")],
        initializer: constants,
        ..GraphProto::default()
    })
}

fn graph(
    name: &str,
    nodes: Vec<NodeProto>,
    inputs: &[(&str, i32)],
    outputs: &[(&str, i32)],
    axes: &[String],
    scalars: &[&str],
) -> Vec<u8> {
    let axes: Vec<&str> = axes.iter().map(String::as_str).collect();
    let mut input: Vec<_> = inputs.iter().map(|(name, element)| build::port(name, *element, &axes)).collect();
    input.extend(scalars.iter().map(|name| build::port(name, element::FLOAT, &["1"])));
    let output = outputs.iter().map(|(name, element)| build::port(name, *element, &axes)).collect();
    encode(GraphProto { name: Some(name.into()), node: nodes, input, output, ..GraphProto::default() })
}

fn encode(graph: GraphProto) -> Vec<u8> {
    build::model(graph, OPSET).encode_to_vec()
}

fn load(library: &Loaded, name: &str, model: Vec<u8>) -> Result<Arc<Session>> {
    Session::load(library, name, &model, None, WeightsMode::Packed, false).map(Arc::new)
}
