//! Arithmetic on tensors as small ONNX graphs, so that they never leave the provider.

use std::sync::Arc;

use super::device::Device;
use super::graphs::{Narrow, encode, widen};
use super::op::Op;
use super::provider::Role;
use super::session::Session;
use super::source::{SessionSource, WeightsMode};
use super::tensor::{BufferId, Buffers};
use crate::error::Result;
use crate::model::graph::element_type;
use crate::model::manifest::DType;
use crate::model::onnx::{GraphProto, build};

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

pub(super) fn load(device: &Device, name: &str, model: Vec<u8>) -> Result<Arc<Session>> {
    let (weights, role) = (WeightsMode::Packed, Role::Arithmetic);
    let source = SessionSource { name, model: &model, folder: None, weights, casts_weights: false, fixed: &[], role };
    Session::load(device, &source).map(Arc::new)
}
