//! Classifier-free guidance as a small graph: from the predictions of both branches to one, in f32.

use std::sync::Arc;

use super::device::Device;
use super::graphs::encode;
use super::op::Op;
use super::ops::load;
use super::session::Session;
use super::tensor::{BufferId, Buffers};
use crate::error::Result;
use crate::model::graph::element_type;
use crate::model::manifest::{CfgFormula, DType};
use crate::model::onnx::{GraphProto, NodeProto, TensorProto, ValueInfoProto, build, element};

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
    let axes: Vec<String> = (0..spec.rank).map(|axis| format!("d{axis}")).collect();
    let axes: Vec<&str> = axes.iter().map(String::as_str).collect();
    let mut formula = Formula::default();
    let mut inputs = formula.predictions(spec, &axes);
    inputs.push(build::port("scale", element::FLOAT, &["1"]));
    let guided = formula.guided(spec);
    if spec.rescales {
        inputs.push(build::port("rescale", element::FLOAT, &["1"]));
        formula.rescale(guided);
    } else {
        formula.add("Identity", &[guided], "out");
    }
    if spec.rescales || spec.formula == CfgFormula::ZeroStar {
        let others: Vec<i64> = (1..spec.rank as i64).collect();
        formula.constants.push(build::ints("others", &others));
    }
    encode(GraphProto {
        name: Some("guide".into()),
        node: formula.nodes,
        input: inputs,
        output: vec![build::port("out", element::FLOAT, &axes)],
        initializer: formula.constants,
        ..GraphProto::default()
    })
}

/// A formula of guidance as nodes of a graph.
#[derive(Default)]
struct Formula {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl Formula {
    fn add(&mut self, op: &str, from: &[&str], to: &str) {
        self.nodes.push(build::node(op, from, to));
    }

    /// The inputs that hold the predictions; makes `cond` and `uncond` of them.
    fn predictions(&mut self, spec: GuideSpec, axes: &[&str]) -> Vec<ValueInfoProto> {
        let port = |name: &str, axes: &[&str]| build::port(name, element::FLOAT, axes);
        let Some(cond_first) = spec.halves else { return vec![port("cond", axes), port("uncond", axes)] };
        let both: Vec<&str> = ["rows"].into_iter().chain(axes[1..].iter().copied()).collect();
        let halves = if cond_first { ["cond", "uncond"] } else { ["uncond", "cond"] };
        let mut split = build::with_int(build::node("Split", &["both"], halves[0]), "num_outputs", 2);
        split.output.push(halves[1].into());
        self.nodes.push(split);
        vec![port("both", &both)]
    }

    /// Gives the name of the prediction after guidance.
    fn guided(&mut self, spec: GuideSpec) -> &'static str {
        let mut base = "uncond";
        if spec.formula == CfgFormula::ZeroStar {
            self.constants.push(build::float("tiny", 1e-8));
            self.add("Mul", &["cond", "uncond"], "products");
            self.add("ReduceSum", &["products", "others"], "dot");
            self.add("ReduceSumSquare", &["uncond", "others"], "square");
            self.add("Add", &["square", "tiny"], "square_up");
            self.add("Div", &["dot", "square_up"], "projection");
            self.add("Mul", &["uncond", "projection"], "projected");
            base = "projected";
        }
        self.add("Sub", &["cond", base], "direction");
        self.add("Mul", &["direction", "scale"], "scaled");
        self.add("Add", &[if spec.formula == CfgFormula::Difference { "cond" } else { base }, "scaled"], "guided");
        if spec.formula != CfgFormula::Renormalised {
            return "guided";
        }
        self.constants.push(build::ints("last", &[spec.rank as i64 - 1]));
        self.add("ReduceL2", &["cond", "last"], "cond_length");
        self.add("ReduceL2", &["guided", "last"], "guided_length");
        self.add("Div", &["cond_length", "guided_length"], "ratio");
        self.add("Mul", &["guided", "ratio"], "renormalised");
        "renormalised"
    }

    /// out = guided + rescale · (guided · ratio − guided), where ratio is that of the spreads of cond and guided.
    fn rescale(&mut self, guided: &str) {
        for name in ["cond", guided] {
            self.add("ReduceMean", &[name, "others"], &format!("{name}_mean"));
            self.add("Sub", &[name, &format!("{name}_mean")], &format!("{name}_centred"));
            self.add("ReduceL2", &[&format!("{name}_centred"), "others"], &format!("{name}_spread"));
        }
        self.add("Div", &["cond_spread", &format!("{guided}_spread")], "spreads");
        self.add("Mul", &[guided, "spreads"], "respread");
        self.add("Sub", &["respread", guided], "respread_change");
        self.add("Mul", &["respread_change", "rescale"], "respread_part");
        self.add("Add", &[guided, "respread_part"], "out");
    }
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
