//! Weighted sums and inner products of tensors, for forecasts: the calibrators decide the weights, the tensors stay here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;

use super::library::Loaded;
use super::ops::Op;
use super::session::{Session, WeightsMode};
use super::tensor::{BufferId, Buffers};
use crate::error::Result;
use crate::model::graph::element_type;
use crate::model::manifest::DType;
use crate::model::onnx::{GraphProto, NodeProto, build, element};

const OPSET: i64 = 20;
/// ONNX's number of f64: inner products need it, since DMD tells modes apart down to 1e-4 of the strongest, which is 1e-8 of
/// a squared length.
const DOUBLE: i64 = 11;

/// Weighted sums of any number of tensors of one dtype and rank; a graph for each number, loaded when it is first needed.
pub(crate) struct Sums {
    library: Arc<Loaded>,
    dtype: DType,
    rank: usize,
    by_count: Mutex<BTreeMap<usize, Arc<Session>>>,
    dot: Mutex<Option<Arc<Session>>>,
}

impl Sums {
    pub(crate) fn new(library: Arc<Loaded>, dtype: DType, rank: usize) -> Self {
        Self { library, dtype, rank, by_count: Mutex::default(), dot: Mutex::default() }
    }

    /// out = sum over k of weights[k] · tensors[k]; each weight is f32 `[1 or batch]`.
    pub(crate) fn bind(
        &self,
        buffers: &mut Buffers,
        tensors: &[BufferId],
        weights: &[BufferId],
        out: BufferId,
    ) -> Result<Op> {
        let session = self.session(tensors.len())?;
        let mut inputs: Vec<(String, BufferId)> = Vec::new();
        for (k, (tensor, weight)) in tensors.iter().zip(weights).enumerate() {
            inputs.push((format!("x{k}"), *tensor));
            inputs.push((format!("w{k}"), *weight));
        }
        Op::bind(&session, buffers, &inputs, &[("out".to_owned(), out)])
    }

    /// high + low = the inner product of a and b for each batch item, summed in f64; both f32 `[batch]`.
    pub(crate) fn bind_dot(&self, buffers: &mut Buffers, a: BufferId, b: BufferId, out: [BufferId; 2]) -> Result<Op> {
        let mut dot = self.dot.lock().unwrap_or_else(PoisonError::into_inner);
        let session = match &*dot {
            Some(session) => Arc::clone(session),
            None => Arc::clone(dot.insert(self.load("dot", &dot_graph(self.dtype, self.rank))?)),
        };
        Op::bind(&session, buffers, &[("a", a), ("b", b)], &[("high", out[0]), ("low", out[1])])
    }

    fn session(&self, count: usize) -> Result<Arc<Session>> {
        let mut by_count = self.by_count.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = by_count.get(&count) {
            return Ok(Arc::clone(session));
        }
        let session = self.load("weighted-sum", &sum_graph(self.dtype, self.rank, count))?;
        by_count.insert(count, Arc::clone(&session));
        Ok(session)
    }

    fn load(&self, name: &str, model: &[u8]) -> Result<Arc<Session>> {
        Session::load(&self.library, name, model, None, WeightsMode::Packed, false).map(Arc::new)
    }
}

fn cast(input: &str, output: &str, to: i64) -> NodeProto {
    build::with_int(build::node("Cast", &[input], output), "to", to)
}

fn sum_graph(dtype: DType, rank: usize, count: usize) -> Vec<u8> {
    let axes: Vec<String> = (0..rank).map(|axis| format!("d{axis}")).collect();
    let axes: Vec<&str> = axes.iter().map(String::as_str).collect();
    let element = element_type(dtype);
    let (mut nodes, mut inputs, mut terms) = (Vec::new(), Vec::new(), Vec::new());
    for k in 0..count {
        let (x, w, term) = (format!("x{k}"), format!("w{k}"), format!("term{k}"));
        inputs.push(build::port(&x, element, &axes));
        inputs.push(build::port(&w, element::FLOAT, &["weights"]));
        nodes.push(cast(&x, &format!("{x}_f32"), element::FLOAT.into()));
        // [weights] → [weights, 1, …]: one for all, or one for each batch item.
        nodes.push(build::node("Reshape", &[&w, "column"], &format!("{w}_column")));
        nodes.push(build::node("Mul", &[&format!("{x}_f32"), &format!("{w}_column")], &term));
        terms.push(term);
    }
    let terms: Vec<&str> = terms.iter().map(String::as_str).collect();
    nodes.push(build::node("Sum", &terms, "sum"));
    nodes.push(cast("sum", "out", element.into()));
    let mut column = vec![1; rank];
    column[0] = -1;
    let graph = GraphProto {
        name: Some("weighted-sum".into()),
        node: nodes,
        input: inputs,
        output: vec![build::port("out", element, &axes)],
        initializer: vec![build::ints("column", &column)],
        ..GraphProto::default()
    };
    build::model(graph, OPSET).encode_to_vec()
}

fn dot_graph(dtype: DType, rank: usize) -> Vec<u8> {
    let axes: Vec<String> = (0..rank).map(|axis| format!("d{axis}")).collect();
    let axes: Vec<&str> = axes.iter().map(String::as_str).collect();
    let others: Vec<i64> = (1..rank as i64).collect();
    let element = element_type(dtype);
    let nodes = vec![
        cast("a", "a_f64", DOUBLE),
        cast("b", "b_f64", DOUBLE),
        build::node("Mul", &["a_f64", "b_f64"], "products"),
        build::with_int(build::node("ReduceSum", &["products", "others"], "total"), "keepdims", 0),
        // The host reads f32 only: the rounded number, and what rounding took away.
        cast("total", "high", element::FLOAT.into()),
        cast("high", "high_f64", DOUBLE),
        build::node("Sub", &["total", "high_f64"], "rest"),
        cast("rest", "low", element::FLOAT.into()),
    ];
    let graph = GraphProto {
        name: Some("dot".into()),
        node: nodes,
        input: vec![build::port("a", element, &axes), build::port("b", element, &axes)],
        output: vec![build::port("high", element::FLOAT, &["d0"]), build::port("low", element::FLOAT, &["d0"])],
        initializer: vec![build::ints("others", &others)],
        ..GraphProto::default()
    };
    build::model(graph, OPSET).encode_to_vec()
}
