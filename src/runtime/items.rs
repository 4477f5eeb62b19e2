//! The items of a batch: some of them taken out, put back among the others, and kept one by one.
//!
//! Whether an item takes part is a number for each, i64 `[batch]`: 1 or 0.

use std::sync::Arc;

use super::device::Device;
use super::graphs::{Narrow, cast, encode, widen};
use super::op::Op;
use super::ops::load;
use super::session::Session;
use super::tensor::{BufferId, Buffers};
use crate::error::Result;
use crate::model::graph::element_type;
use crate::model::manifest::DType;
use crate::model::onnx::{GraphProto, NodeProto, TensorProto, ValueInfoProto, build, element};

/// ONNX's number of bool.
const BOOL: i32 = 9;

/// Takes items out of tensors of one dtype and rank along one axis.
pub(crate) struct Gather(Arc<Session>);

/// Puts items back into streams of one dtype and rank, and keeps them.
pub(crate) struct Items {
    join: Arc<Session>,
    keep: Arc<Session>,
}

/// A stream around blocks that ran for some of its items.
#[derive(Clone, Copy)]
pub(crate) struct Joined {
    pub before: BufferId,
    pub after: BufferId,
    /// The residual of the last computed step.
    pub kept: BufferId,
}

/// Which items ran, and where what they gave is.
#[derive(Clone, Copy)]
pub(crate) struct JoinItems {
    /// 1 for those that ran, i64 `[batch]`.
    pub computes: BufferId,
    /// Their places among those that ran, i64 `[batch]`.
    pub places: BufferId,
    /// What they gave, `[count, ...]`.
    pub ran: BufferId,
}

impl Gather {
    pub(crate) fn load(device: &Device, dtype: DType, rank: usize, axis: usize) -> Result<Self> {
        let node = build::with_int(build::node("Gather", &["all", "items"], "some"), "axis", axis as i64);
        let ports = [port("all", dtype, rank, "all"), build::port("items", element::INT64, &["items"])];
        graph(device, "take-items", vec![node], ports.into(), port("some", dtype, rank, "some"), Vec::new()).map(Self)
    }

    /// some = those of all whose indices are in `items`, i64 `[count]`.
    pub(crate) fn bind(&self, buffers: &mut Buffers, all: BufferId, items: BufferId, some: BufferId) -> Result<Op> {
        Op::bind(&self.0, buffers, &[("all", all), ("items", items)], &[("some", some)])
    }
}

impl Items {
    pub(crate) fn load(device: &Device, dtype: DType, kept: DType, rank: usize) -> Result<Self> {
        let stream = |name: &str| port(name, dtype, rank, "d0");
        let flags = |name: &str| build::port(name, element::INT64, &["d0"]);

        let gather = build::node("Gather", &["ran", "places"], "computed");
        let mut nodes =
            vec![gather, widen("kept", "wide", kept, dtype), build::node("Add", &["before", "wide"], "skipped")];
        nodes.extend(select("computes", "computed", "skipped", "after", dtype));
        let ran = port("ran", dtype, rank, "ran");
        let inputs = vec![flags("computes"), flags("places"), ran, stream("before"), port("kept", kept, rank, "d0")];
        let join = graph(device, "join-items", nodes, inputs, stream("after"), vec![column(rank)])?;

        let mut narrow = Narrow::default();
        let mut nodes = vec![build::node("Sub", &["after", "before"], "difference")];
        nodes.extend(narrow.nodes("difference", "residual", dtype, kept));
        nodes.extend(select("keeps", "residual", "kept", "out", kept));
        let inputs = vec![flags("keeps"), stream("after"), stream("before"), port("kept", kept, rank, "d0")];
        let constants = narrow.constants().into_iter().chain([column(rank)]).collect();
        let keep = graph(device, "keep-items", nodes, inputs, port("out", kept, rank, "d0"), constants)?;
        Ok(Self { join, keep })
    }

    /// after = for items that compute theirs of `ran`, at their `places` (i64 `[batch]`); for others before + kept.
    pub(crate) fn bind_join(&self, buffers: &mut Buffers, items: JoinItems, stream: Joined) -> Result<Op> {
        let JoinItems { computes, places, ran } = items;
        let Joined { before, after, kept } = stream;
        let inputs = [("computes", computes), ("places", places), ("ran", ran), ("before", before), ("kept", kept)];
        Op::bind(&self.join, buffers, &inputs, &[("after", after)])
    }

    /// kept = after - before for the items that are kept, in place.
    pub(crate) fn bind_keep(&self, buffers: &mut Buffers, keeps: BufferId, stream: Joined) -> Result<Op> {
        let Joined { before, after, kept } = stream;
        let inputs = [("keeps", keeps), ("after", after), ("before", before), ("kept", kept)];
        Op::bind(&self.keep, buffers, &inputs, &[("out", kept)])
    }
}

/// output = `yes` for the items whose flag is 1, `no` for the others. Needs [`column`](fn@column).
pub(super) fn select(flags: &str, yes: &str, no: &str, output: &str, dtype: DType) -> Vec<NodeProto> {
    let name = |part: &str| format!("{output}_{part}");
    let (flag, rows, yes_f32, no_f32, chosen) = (name("flag"), name("rows"), name("yes"), name("no"), name("chosen"));
    let mut nodes = vec![cast(flags, &flag, BOOL), build::node("Reshape", &[&flag, "column"], &rows)];
    if dtype == DType::F32 {
        nodes.push(build::node("Where", &[&rows, yes, no], output));
        return nodes;
    }
    // The CPU provider has no Where of 16-bit floats; through f32 they come back as they were.
    nodes.extend([
        cast(yes, &yes_f32, element::FLOAT),
        cast(no, &no_f32, element::FLOAT),
        build::node("Where", &[&rows, &yes_f32, &no_f32], &chosen),
        cast(&chosen, output, element_type(dtype)),
    ]);
    nodes
}

/// The shape that spreads one number an item over tensors of this rank.
pub(super) fn column(rank: usize) -> TensorProto {
    let mut column = vec![1; rank];
    column[0] = -1;
    build::ints("column", &column)
}

fn port(name: &str, dtype: DType, rank: usize, items: &str) -> ValueInfoProto {
    let mut axes: Vec<String> = (0..rank).map(|axis| format!("d{axis}")).collect();
    if items != "d0" {
        // Which axis holds the items is not said here, so none is named alike in two ports.
        axes.iter_mut().for_each(|axis| *axis = format!("{items}_{axis}"));
    }
    let axes: Vec<&str> = axes.iter().map(String::as_str).collect();
    build::port(name, element_type(dtype), &axes)
}

fn graph(
    device: &Device,
    name: &str,
    nodes: Vec<NodeProto>,
    input: Vec<ValueInfoProto>,
    output: ValueInfoProto,
    initializer: Vec<TensorProto>,
) -> Result<Arc<Session>> {
    let output = vec![output];
    let graph =
        GraphProto { name: Some(name.into()), node: nodes, input, output, initializer, ..GraphProto::default() };
    load(device, name, encode(graph))
}
