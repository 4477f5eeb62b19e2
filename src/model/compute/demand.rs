//! The second pass, from the end of a graph: in which dtypes each value is read.

use std::collections::BTreeMap;

use super::kinds::{Kinds, NodeRole, ValueKind};
use crate::model::onnx::{GraphProto, NodeProto};

/// The operand that an `Attention` adds to its scores.
pub(super) const MASK: usize = 3;

/// In which dtypes a value is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Demand {
    pub wide: bool,
    pub narrow: bool,
    /// Its shape is asked for, in whichever dtype there is.
    pub shape: bool,
}

impl Demand {
    pub(super) const WIDE: Self = Self { wide: true, narrow: false, shape: false };
    pub(super) const NARROW: Self = Self { wide: false, narrow: true, shape: false };
    pub(super) const SHAPE: Self = Self { wide: false, narrow: false, shape: true };

    pub(super) fn and(self, other: Self) -> Self {
        Self { wide: self.wide || other.wide, narrow: self.narrow || other.narrow, shape: self.shape || other.shape }
    }
}

/// What is read, and in which dtypes each node runs.
pub(super) struct Demands {
    pub values: BTreeMap<String, Demand>,
    pub runs: Vec<Demand>,
}

impl Demands {
    pub(super) fn new(graph: &GraphProto, kinds: &Kinds) -> Self {
        let mut found = Self { values: BTreeMap::new(), runs: vec![Demand::default(); graph.node.len()] };
        for port in &graph.output {
            found.read(kinds, port.name.as_deref().unwrap_or_default(), Demand::WIDE);
        }
        for (index, node) in graph.node.iter().enumerate().rev() {
            let runs = found.runs_of(node, kinds, kinds.roles[index]);
            found.runs[index] = runs;
            for (place, input) in node.input.iter().enumerate() {
                let is_mask = place == MASK && node.op_type.as_deref() == Some("Attention");
                let read = match kinds.roles[index] {
                    NodeRole::Untouched => Demand::SHAPE,
                    NodeRole::Narrow if is_mask => Demand::WIDE,
                    NodeRole::Narrow => Demand::NARROW,
                    NodeRole::Move { .. } => runs,
                    NodeRole::Wide | NodeRole::Widen(_) => Demand::WIDE,
                };
                found.read(kinds, input, read);
            }
        }
        found
    }

    /// In which dtypes a value is read, by anyone.
    pub(super) fn of(&self, name: &str) -> Demand {
        self.values.get(name).copied().unwrap_or_default()
    }

    fn read(&mut self, kinds: &Kinds, name: &str, how: Demand) {
        if kinds.values.get(name).is_some_and(|value| !matches!(value.kind, ValueKind::Other(_))) {
            let entry = self.values.entry(name.to_owned()).or_default();
            *entry = entry.and(how);
        }
    }

    fn runs_of(&self, node: &NodeProto, kinds: &Kinds, role: NodeRole) -> Demand {
        let NodeRole::Move { is_pinned } = role else {
            return if role == NodeRole::Narrow { Demand::NARROW } else { Demand::WIDE };
        };
        let demands = node.output.iter().map(|output| self.of(output));
        let demand = demands.fold(Demand::default(), Demand::and);
        let kind = node.output.first().and_then(|output| kinds.values.get(output)).map(|value| value.kind);
        match (demand.wide, demand.narrow) {
            _ if is_pinned => Demand::WIDE,
            (true, false) => Demand::WIDE,
            (false, true) => Demand::NARROW,
            // Twice where that is done when the graph is loaded; else once, and cast.
            (true, true) if kind == Some(ValueKind::Constant) => Demand { shape: false, ..demand },
            (true, true) | (false, false) if kind == Some(ValueKind::Narrow) => Demand::NARROW,
            _ => Demand::WIDE,
        }
    }
}
