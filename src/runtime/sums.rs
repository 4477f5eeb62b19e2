//! Weighted sums and inner products of tensors, for forecasts: the calibrators decide the weights, the tensors stay here.

use std::sync::{Arc, Mutex};

use super::device::Device;
use super::graphs::{Narrow, add_all, cast, encode};
use super::op::Op;
use super::ops::load;
use super::session::Session;
use super::tensor::{BufferId, Buffers};
use crate::error::Result;
use crate::exit::lock;
use crate::model::graph::element_type;
use crate::model::manifest::DType;
use crate::model::onnx::{GraphProto, build, element};

/// ONNX's number of f64: inner products need it, since DMD tells modes apart down to 1e-4 of the strongest, which is 1e-8 of
/// a squared length.
const DOUBLE: i32 = 11;

/// Weighted sums of any number of tensors of one rank; a graph for each combination of dtypes, loaded when it is first
/// needed.
pub(crate) struct Sums {
    device: Arc<Device>,
    rank: usize,
    sums: Mutex<Sessions>,
    dots: Mutex<Sessions>,
}

/// By the dtypes of the tensors, the result's last.
type Sessions = Vec<(Vec<DType>, Arc<Session>)>;

impl Sums {
    pub(crate) fn new(device: Arc<Device>, rank: usize) -> Self {
        Self { device, rank, sums: Mutex::default(), dots: Mutex::default() }
    }

    /// `out = sum over k of weights[k] · tensors[k]`; each weight is f32 `[1 or batch]`.
    pub(crate) fn bind(
        &self,
        buffers: &mut Buffers,
        tensors: &[BufferId],
        weights: &[BufferId],
        out: BufferId,
    ) -> Result<Op> {
        let dtypes: Vec<DType> = tensors.iter().chain([&out]).map(|id| buffers.dtype(*id)).collect();
        let graph = || sum_graph(&dtypes[..tensors.len()], dtypes[tensors.len()], self.rank);
        let session = self.session(&self.sums, "weighted-sum", &dtypes, graph)?;
        let mut inputs: Vec<(String, BufferId)> = Vec::new();
        for (k, (tensor, weight)) in tensors.iter().zip(weights).enumerate() {
            inputs.push((format!("x{k}"), *tensor));
            inputs.push((format!("w{k}"), *weight));
        }
        Op::bind(&session, buffers, &inputs, &[("out".to_owned(), out)])
    }

    /// high + low = the inner product of a and b for each batch item, summed in f64; both f32 `[batch]`.
    pub(crate) fn bind_dot(&self, buffers: &mut Buffers, a: BufferId, b: BufferId, out: [BufferId; 2]) -> Result<Op> {
        let dtype = buffers.dtype(a);
        let session = self.session(&self.dots, "dot", &[dtype], || dot_graph(dtype, self.rank))?;
        Op::bind(&session, buffers, &[("a", a), ("b", b)], &[("high", out[0]), ("low", out[1])])
    }

    fn session(
        &self,
        sessions: &Mutex<Sessions>,
        name: &str,
        dtypes: &[DType],
        graph: impl FnOnce() -> Vec<u8>,
    ) -> Result<Arc<Session>> {
        let mut sessions = lock(sessions);
        if let Some((_, session)) = sessions.iter().find(|(known, _)| known == dtypes) {
            return Ok(Arc::clone(session));
        }
        let session = load(&self.device, name, graph())?;
        sessions.push((dtypes.to_vec(), Arc::clone(&session)));
        Ok(session)
    }
}

fn sum_graph(dtypes: &[DType], out: DType, rank: usize) -> Vec<u8> {
    let axes: Vec<String> = (0..rank).map(|axis| format!("d{axis}")).collect();
    let axes: Vec<&str> = axes.iter().map(String::as_str).collect();
    let (mut nodes, mut inputs, mut terms) = (Vec::new(), Vec::new(), Vec::new());
    for (k, dtype) in dtypes.iter().enumerate() {
        let (x, w, term) = (format!("x{k}"), format!("w{k}"), format!("term{k}"));
        inputs.push(build::port(&x, element_type(*dtype), &axes));
        inputs.push(build::port(&w, element::FLOAT, &["weights"]));
        nodes.push(cast(&x, &format!("{x}_f32"), element::FLOAT));
        // [weights] → [weights, 1, …]: one for all, or one for each batch item.
        nodes.push(build::node("Reshape", &[&w, "column"], &format!("{w}_column")));
        nodes.push(build::node("Mul", &[&format!("{x}_f32"), &format!("{w}_column")], &term));
        terms.push(term);
    }
    let terms: Vec<&str> = terms.iter().map(String::as_str).collect();
    nodes.extend(add_all(&terms, "sum"));
    let mut narrow = Narrow::default();
    nodes.extend(narrow.nodes("sum", "out", DType::F32, out));
    let mut column = vec![1; rank];
    column[0] = -1;
    let graph = GraphProto {
        name: Some("weighted-sum".into()),
        node: nodes,
        input: inputs,
        output: vec![build::port("out", element_type(out), &axes)],
        initializer: narrow.constants().into_iter().chain([build::ints("column", &column)]).collect(),
        ..GraphProto::default()
    };
    encode(graph)
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
        cast("total", "high", element::FLOAT),
        cast("high", "high_f64", DOUBLE),
        build::node("Sub", &["total", "high_f64"], "rest"),
        cast("rest", "low", element::FLOAT),
    ];
    let graph = GraphProto {
        name: Some("dot".into()),
        node: nodes,
        input: vec![build::port("a", element, &axes), build::port("b", element, &axes)],
        output: vec![build::port("high", element::FLOAT, &["d0"]), build::port("low", element::FLOAT, &["d0"])],
        initializer: vec![build::ints("others", &others)],
        ..GraphProto::default()
    };
    encode(graph)
}
