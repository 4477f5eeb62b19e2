//! Classifier-free guidance as a small graph: from the predictions of both branches to one, in f32.

use std::sync::Arc;

use super::device::Device;
use super::ops::{Op, encode, load};
use super::session::Session;
use super::tensor::{BufferId, Buffers};
use crate::error::Result;
use crate::model::graph::element_type;
use crate::model::manifest::{CfgFormula, DType};
use crate::model::onnx::{GraphProto, NodeProto, TensorProto, build, element};

/// What the graph depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct GuideSpec {
    /// Axes of the predictions.
    pub rank: usize,
    pub formula: CfgFormula,
    /// Whether the result is drawn towards the spread of the cond prediction.
    pub rescales: bool,
    /// Both predictions are halves of one tensor: whether the first half is the cond one. Else they are two tensors.
    pub halves: Option<bool>,
}

/// The graph.
pub(crate) struct Guide {
    session: Arc<Session>,
}

/// The tensors that it takes: one prediction if they are halves, else cond and uncond; scale and rescale are f32 `[1]`.
pub(crate) struct GuideInputs<'a> {
    pub predictions: &'a [BufferId],
    pub scale: BufferId,
    /// Exactly where the graph rescales.
    pub rescale: Option<BufferId>,
}

impl Guide {
    pub(crate) fn load(device: &Device, spec: GuideSpec) -> Result<Self> {
        Ok(Self { session: load(device, "guide", graph(spec))? })
    }

    /// `out` may be the cond prediction itself.
    pub(crate) fn bind(&self, buffers: &mut Buffers, inputs: &GuideInputs<'_>, out: BufferId) -> Result<Op> {
        let names: &[&str] = if inputs.predictions.len() == 1 { &["both"] } else { &["cond", "uncond"] };
        let mut ports: Vec<(&str, BufferId)> = names.iter().copied().zip(inputs.predictions.iter().copied()).collect();
        ports.push(("scale", inputs.scale));
        ports.extend(inputs.rescale.map(|rescale| ("rescale", rescale)));
        Op::bind(&self.session, buffers, &ports, &[("out", out)])
    }
}

fn graph(spec: GuideSpec) -> Vec<u8> {
    let node = build::node;
    let axes: Vec<String> = (0..spec.rank).map(|axis| format!("d{axis}")).collect();
    let axes: Vec<&str> = axes.iter().map(String::as_str).collect();
    let port = |name: &str, axes: &[&str]| build::port(name, element::FLOAT, axes);
    let mut nodes: Vec<NodeProto> = Vec::new();
    let mut inputs = match spec.halves {
        None => vec![port("cond", &axes), port("uncond", &axes)],
        Some(cond_first) => {
            let both: Vec<&str> = ["rows"].into_iter().chain(axes[1..].iter().copied()).collect();
            let halves = if cond_first { ["cond", "uncond"] } else { ["uncond", "cond"] };
            let mut split = build::with_int(node("Split", &["both"], halves[0]), "num_outputs", 2);
            split.output.push(halves[1].into());
            nodes.push(split);
            vec![port("both", &both)]
        }
    };
    inputs.push(port("scale", &["1"]));
    if spec.rescales {
        inputs.push(port("rescale", &["1"]));
    }
    let others: Vec<i64> = (1..spec.rank as i64).collect();
    let mut constants: Vec<TensorProto> = Vec::new();
    let mut add = |op: &str, from: &[&str], to: &str| nodes.push(node(op, from, to));
    let mut base = "uncond";
    if spec.formula == CfgFormula::ZeroStar {
        constants.push(build::float("tiny", 1e-8));
        add("Mul", &["cond", "uncond"], "products");
        add("ReduceSum", &["products", "others"], "dot");
        add("ReduceSumSquare", &["uncond", "others"], "square");
        add("Add", &["square", "tiny"], "square_up");
        add("Div", &["dot", "square_up"], "projection");
        add("Mul", &["uncond", "projection"], "projected");
        base = "projected";
    }
    add("Sub", &["cond", base], "direction");
    add("Mul", &["direction", "scale"], "scaled");
    add("Add", &[if spec.formula == CfgFormula::Difference { "cond" } else { base }, "scaled"], "guided");
    let mut result = "guided";
    if spec.formula == CfgFormula::Renormalised {
        constants.push(build::ints("last", &[spec.rank as i64 - 1]));
        add("ReduceL2", &["cond", "last"], "cond_length");
        add("ReduceL2", &["guided", "last"], "guided_length");
        add("Div", &["cond_length", "guided_length"], "ratio");
        add("Mul", &["guided", "ratio"], "renormalised");
        result = "renormalised";
    }
    if spec.rescales {
        for name in ["cond", result] {
            add("ReduceMean", &[name, "others"], &format!("{name}_mean"));
            add("Sub", &[name, &format!("{name}_mean")], &format!("{name}_centred"));
            add("ReduceL2", &[&format!("{name}_centred"), "others"], &format!("{name}_spread"));
        }
        // out = result + rescale · (result · ratio − result)
        add("Div", &["cond_spread", &format!("{result}_spread")], "spreads");
        add("Mul", &[result, "spreads"], "respread");
        add("Sub", &["respread", result], "respread_change");
        add("Mul", &["respread_change", "rescale"], "respread_part");
        add("Add", &[result, "respread_part"], "out");
    } else {
        add("Identity", &[result], "out");
    }
    if spec.rescales || spec.formula == CfgFormula::ZeroStar {
        constants.push(build::ints("others", &others));
    }
    encode(GraphProto {
        name: Some("guide".into()),
        node: nodes,
        input: inputs,
        output: vec![port("out", &axes)],
        initializer: constants,
        ..GraphProto::default()
    })
}

/// out = a, then b, along the first axis.
pub(crate) struct Stack {
    session: Arc<Session>,
}

impl Stack {
    pub(crate) fn load(device: &Device, dtype: DType, rank: usize) -> Result<Self> {
        let axes: Vec<String> = (1..rank).map(|axis| format!("d{axis}")).collect();
        let port = |name: &str, first: &'static str| {
            let axes: Vec<&str> = [first].into_iter().chain(axes.iter().map(String::as_str)).collect();
            build::port(name, element_type(dtype), &axes)
        };
        let graph = GraphProto {
            name: Some("stack".into()),
            node: vec![build::with_int(build::node("Concat", &["a", "b"], "out"), "axis", 0)],
            input: vec![port("a", "rows"), port("b", "rows")],
            output: vec![port("out", "both")],
            ..GraphProto::default()
        };
        Ok(Self { session: load(device, "stack", encode(graph))? })
    }

    pub(crate) fn bind(&self, buffers: &mut Buffers, a: BufferId, b: BufferId, out: BufferId) -> Result<Op> {
        Op::bind(&self.session, buffers, &[("a", a), ("b", b)], &[("out", out)])
    }
}
