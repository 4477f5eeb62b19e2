//! Where the tensors of an engine lie: they are allocated there, moved to the host and back, and looked at.
//!
//! ONNX Runtime's own copy function knows plugins only. A graph of one node works with every provider: its input is
//! bound where the tensor lies, its output where it should lie.

use std::sync::Arc;

use ort::value::DynTensor;

use super::cached::{Cached, cached};
use super::device::Device;
use super::errors::runtime_error;
use super::graphs::{cast, encode};
use super::memory::{Tensors, host_tensor};
use super::provider::Role;
use super::session::Session;
use super::shelf::Shelf;
use super::source::{SessionSource, WeightsMode};
use crate::error::Result;
use crate::model::graph::element_type;
use crate::model::manifest::DType;
use crate::model::onnx::{GraphProto, NodeProto, TensorProto, ValueInfoProto, build, element};

/// The memory of one engine's device. Its small graphs have one node, by dtype and rank; they are loaded when they are first needed.
pub(crate) struct DeviceMemory {
    pub(super) device: Arc<Device>,
    /// Tensors of ended requests, where runs are recorded. Before the sessions that allocated them: it is dropped first.
    shelf: Shelf,
    copies: Cached<TensorKind, Session>,
    probes: Cached<TensorKind, Session>,
}

/// What such a graph is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TensorKind {
    pub dtype: DType,
    pub rank: usize,
}

impl TensorKind {
    fn port(self, name: &str) -> ValueInfoProto {
        let axes: Vec<String> = (0..self.rank).map(|axis| format!("d{axis}")).collect();
        let axes: Vec<&str> = axes.iter().map(String::as_str).collect();
        build::port(name, element_type(self.dtype), &axes)
    }
}

impl DeviceMemory {
    pub(crate) fn new(device: Arc<Device>) -> Self {
        let (shelf, copies, probes) = Default::default();
        Self { device, shelf, copies, probes }
    }

    /// Where tensors wait for the next request; `None` if nothing is recorded on them.
    pub(super) fn shelf(&self) -> Option<&Shelf> {
        self.device.spec().captures().map(|_| &self.shelf)
    }

    /// Allocates where tensors lie.
    ///
    /// # Errors
    /// `Runtime`, `Provider`.
    pub(super) fn tensors(&self) -> Result<Tensors> {
        Tensors::new(self.device.memory(), &self.device.library, |info| {
            self.copier(TensorKind { dtype: DType::F32, rank: 1 })?.allocator(info)
        })
    }

    /// to = from, wherever they lie.
    pub(super) fn copy(&self, kind: TensorKind, from: &DynTensor, to: &mut DynTensor) -> Result<()> {
        self.copier(kind)?.run_once("in", from, "out", to)
    }

    /// The session of such copies.
    fn copier(&self, kind: TensorKind) -> Result<Arc<Session>> {
        cached(&self.copies, kind, || {
            let nodes = vec![build::node("Identity", &["in"], "out")];
            load(
                &self.device,
                "copy",
                kind,
                Nodes { nodes, output: kind.port("out"), constants: Vec::new() },
                Role::Copy,
            )
        })
    }

    /// Whether all numbers of a tensor on the device are finite: one number comes back.
    pub(super) fn is_finite(&self, kind: TensorKind, tensor: &DynTensor) -> Result<bool> {
        let session = cached(&self.probes, kind, || {
            // Zero times a finite number is zero, and NaN otherwise. The zero is a parameter, so that no compiler knows it.
            let nodes = vec![
                cast("in", "wide", element::FLOAT),
                build::node("Mul", &["wide", "zero"], "zeros"),
                build::with_int(build::node("ReduceSum", &["zeros", "last"], "lines"), "keepdims", 1),
                build::with_int(build::node("ReduceSum", &["lines"], "total"), "keepdims", 0),
                build::node("Reshape", &["total", "one"], "out"),
            ];
            let constants = vec![build::float("zero", 0.0), build::ints("last", &[-1]), build::ints("one", &[1])];
            let nodes = Nodes { nodes, output: build::port("out", element::FLOAT, &["1"]), constants };
            load(&self.device, "finite", kind, nodes, Role::Arithmetic)
        })?;
        let mut probe = host_tensor(DType::F32, &[1])?;
        session.run_once("in", tensor, "out", &mut probe)?;
        let (_, numbers) = probe.try_extract_tensor::<f32>().map_err(runtime_error)?;
        Ok(numbers.iter().all(|number| number.is_finite()))
    }
}

/// What a graph does with its input `in`.
struct Nodes {
    nodes: Vec<NodeProto>,
    output: ValueInfoProto,
    constants: Vec<TensorProto>,
}

fn load(device: &Device, name: &str, kind: TensorKind, nodes: Nodes, role: Role) -> Result<Session> {
    let Nodes { nodes, output, constants } = nodes;
    let model = encode(GraphProto {
        name: Some(name.into()),
        node: nodes,
        input: vec![kind.port("in")],
        output: vec![output],
        initializer: constants,
        ..GraphProto::default()
    });
    let weights = WeightsMode::Packed;
    let source = SessionSource { name, model: &model, folder: None, weights, casts_weights: false, fixed: &[], role };
    Session::load(device, &source)
}
