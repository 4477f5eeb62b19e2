//! Arithmetic on tensors as small ONNX graphs, so that they never leave the provider.

use std::sync::Arc;

use prost::Message;

use super::library::Loaded;
use super::session::{Binding, Session, WeightsMode};
use super::tensor::{BufferId, Buffers};
use crate::error::Result;
use crate::model::graph::element_type;
use crate::model::manifest::DType;
use crate::model::onnx::{GraphProto, NodeProto, build, element};

/// Any opset from 13 on has these operators in the same form.
const OPSET: i64 = 20;

/// Sums and differences of tensors of one dtype and rank.
pub(crate) struct Arithmetic {
    subtract: Arc<Session>,
    add: Arc<Session>,
    copy: Arc<Session>,
}

/// The graphs over latents (f32, rank 3).
pub(crate) struct LatentArithmetic {
    update: Arc<Session>,
    guide: Arc<Session>,
}

impl Arithmetic {
    pub(crate) fn load(library: &Loaded, dtype: DType, rank: usize) -> Result<Self> {
        let axes: Vec<String> = (0..rank).map(|axis| format!("d{axis}")).collect();
        let element = element_type(dtype);
        let ports = [("a", element), ("b", element)];
        let out = [("out", element)];
        let one = |op: &str, inputs: &[&str]| {
            graph(op, vec![build::node(op, inputs, "out")], &ports[..inputs.len()], &out, &axes, &[])
        };
        Ok(Self {
            subtract: load(library, "residual", one("Sub", &["a", "b"]))?,
            add: load(library, "apply-residual", one("Add", &["a", "b"]))?,
            copy: load(library, "copy", one("Identity", &["a"]))?,
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

    /// out = a
    pub(crate) fn bind_copy(&self, buffers: &mut Buffers, a: BufferId, out: BufferId) -> Result<Op> {
        Op::bind(&self.copy, buffers, &[("a", a)], &[("out", out)])
    }
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

pub(super) fn encode(graph: GraphProto) -> Vec<u8> {
    build::model(graph, OPSET).encode_to_vec()
}

pub(super) fn load(library: &Loaded, name: &str, model: Vec<u8>) -> Result<Arc<Session>> {
    Session::load(library, name, &model, None, WeightsMode::Packed, false).map(Arc::new)
}
