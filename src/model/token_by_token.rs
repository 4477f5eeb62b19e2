//! Whether all of a block's graph but its attentions works on each token alone, so that tokens may lie on several ranks.

use std::collections::{BTreeMap, BTreeSet};

use super::attention::{Attention, operator};
use super::manifest::refused;
use super::onnx::{AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto};
use crate::error::Result;

/// What works on single numbers, or along the last axis, or moves numbers without adding them.
const ALONE: [&str; 42] = [
    "Abs",
    "Add",
    "And",
    "Cast",
    "Clip",
    "Concat",
    "Cos",
    "Div",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "Gather",
    "Gelu",
    "Gemm",
    "Identity",
    "LayerNormalization",
    "Less",
    "Log",
    "Max",
    "Min",
    "Mul",
    "Neg",
    "Not",
    "Pow",
    "QuickGelu",
    "RMSNormalization",
    "Reciprocal",
    "Relu",
    "Reshape",
    "ScatterND",
    "Sigmoid",
    "Sin",
    "Slice",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tanh",
    "Transpose",
    "Unsqueeze",
    "Where",
];
/// What adds along axes.
const SUMS: [&str; 4] = ["ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare"];

/// Refuses what may mix tokens outside of an attention. `shared` are the values with a row for each of a rank's tokens.
pub(super) fn check_token_by_token(
    graph: &GraphProto,
    shared: &BTreeSet<String>,
    attentions: &[Attention],
) -> Result<()> {
    let is_shared = |value: &String| shared.contains(value);
    let ranks = AxisCounts::of(graph);
    for (index, node) in graph.node.iter().enumerate().filter(|(_, node)| node.input.iter().any(is_shared)) {
        let is_alone = match operator(node) {
            // `attentions` has found what a softmax belongs to, or refused it.
            "Shape" | "Softmax" | "Attention" => true,
            "MatMul" => {
                let is_part = |attention: &Attention| [attention.query.node, attention.output].contains(&index);
                attentions.iter().any(is_part) || node.input.iter().filter(|input| is_shared(input)).count() < 2
            }
            other if SUMS.contains(&other) => ranks.adds_along_last(node),
            other => ALONE.contains(&other),
        };
        if !is_alone {
            return Err(refused(&format!("its operator `{}` may mix tokens", operator(node))));
        }
    }
    Ok(())
}

/// How many axes values have, where that follows from the graph.
struct AxisCounts<'g> {
    constants: BTreeMap<&'g str, &'g TensorProto>,
    ranks: BTreeMap<&'g str, usize>,
}

impl<'g> AxisCounts<'g> {
    fn of(graph: &'g GraphProto) -> Self {
        let named = |tensor: &'g TensorProto| Some((tensor.name.as_deref()?, tensor));
        let constants: BTreeMap<_, _> = graph.initializer.iter().filter_map(named).collect();
        let mut ranks: BTreeMap<&str, usize> =
            constants.iter().map(|(name, tensor)| (*name, tensor.dims.len())).collect();
        let rank = |port: &'g ValueInfoProto| {
            Some((port.name.as_deref()?, port.r#type.as_ref()?.tensor_type.as_ref()?.shape.as_ref()?.dim.len()))
        };
        ranks.extend(graph.input.iter().filter_map(rank));
        let mut found = Self { constants, ranks };
        // What vectors of shapes are made of: each part is one number.
        let lengths: BTreeMap<&str, usize> = graph
            .node
            .iter()
            .filter(|node| operator(node) == "Concat")
            .filter_map(|node| Some((node.output.first()?.as_str(), node.input.len())))
            .collect();
        for node in &graph.node {
            if let Some(rank) = found.rank(node, &lengths) {
                found.ranks.extend(node.output.iter().map(|output| (output.as_str(), rank)));
            }
        }
        found
    }

    /// The rank of what a node gives.
    fn rank(&self, node: &'g NodeProto, lengths: &BTreeMap<&str, usize>) -> Option<usize> {
        let input = |place: usize| node.input.get(place).map(String::as_str);
        let of = |place: usize| self.ranks.get(input(place)?).copied();
        let axes = || self.constants.get(input(1)?).and_then(|axes| axes.dims.first()).map(|axes| *axes as usize);
        match operator(node) {
            "Reshape" => match self.constants.get(input(1)?) {
                Some(shape) => shape.dims.first().map(|length| *length as usize),
                None => lengths.get(input(1)?).copied(),
            },
            "Unsqueeze" => Some(of(0)? + axes()?),
            "Squeeze" => of(0)?.checked_sub(axes()?),
            "Shape" => Some(1),
            "Gather" => Some(of(0)? + of(1)? - 1),
            "Expand" | "ConstantOfShape" | "Range" => None,
            // Smaller tensors are spread over larger ones.
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "MatMul" | "Where" => {
                (0..node.input.len()).map(of).collect::<Option<Vec<_>>>()?.into_iter().max()
            }
            _ => of(0),
        }
    }

    /// Whether a sum runs along the last axis alone, and keeps it.
    fn adds_along_last(&self, node: &NodeProto) -> bool {
        let Some(axes) = node.input.get(1).and_then(|axes| self.constants.get(axes.as_str())) else { return false };
        let axis = match (axes.int64_data.as_slice(), axes.raw_data.as_deref()) {
            ([axis], _) => *axis,
            (_, Some(raw)) => raw.try_into().map_or(i64::MIN, i64::from_le_bytes),
            _ => return false,
        };
        let drops =
            |attribute: &AttributeProto| attribute.name.as_deref() == Some("keepdims") && attribute.i == Some(0);
        let last = node.input.first().and_then(|input| self.ranks.get(input.as_str())).map(|rank| *rank as i64 - 1);
        !node.attribute.iter().any(drops) && (axis == -1 || Some(axis) == last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::attention::attentions;
    use crate::model::onnx::{build, element};

    /// A graph over `x` `[batch, tokens, 4]`, of which all values are of tokens; why it is refused.
    fn refusal(nodes: Vec<NodeProto>, constants: Vec<TensorProto>) -> Option<String> {
        let shared = nodes.iter().flat_map(|node| node.output.clone()).chain(["x".to_owned()]).collect();
        let input = vec![build::port("x", element::FLOAT, &["batch", "tokens", "4"])];
        let graph = GraphProto { node: nodes, initializer: constants, input, ..GraphProto::default() };
        let found =
            attentions(&graph).and_then(|found| check_token_by_token(&graph, &shared, &found).map(|()| found.len()));
        found.err().map(|error| error.to_string())
    }

    #[test]
    fn what_mixes_tokens_is_refused() {
        let node = build::node;
        let along = |axis: i64| vec![build::ints("axes", &[axis])];
        let mean = || vec![node("ReduceMean", &["x", "axes"], "y")];
        let heads = || node("Reshape", &["x", "shape"], "h");
        let scores =
            || vec![node("MatMul", &["x", "t"], "s"), node("Softmax", &["s"], "p"), node("MatMul", &["p", "x"], "y")];
        let one = || vec![node("Attention", &["x", "x", "x"], "y")];
        for (nodes, constants, expected) in [
            (mean(), along(-1), None),
            (mean(), along(2), None),
            (mean(), along(1), Some("`ReduceMean`")),
            (mean(), Vec::new(), Some("`ReduceMean`")),
            // The third of four axes: heads, or tokens.
            (
                vec![heads(), node("ReduceMean", &["h", "axes"], "y")],
                vec![build::ints("axes", &[2]), build::ints("shape", &[0, 0, 2, 2])],
                Some("`ReduceMean`"),
            ),
            (vec![node("Conv", &["x", "w"], "y")], Vec::new(), Some("`Conv`")),
            (vec![node("CumSum", &["x", "axes"], "y")], along(1), Some("`CumSum`")),
            (vec![node("MatMul", &["x", "w"], "y")], Vec::new(), None),
            (vec![node("MatMul", &["x", "x"], "y")], Vec::new(), Some("`MatMul`")),
            (scores(), Vec::new(), None),
            (one(), Vec::new(), None),
            (vec![node("Softmax", &["x"], "y")], Vec::new(), Some("softmax that is no attention")),
        ] {
            let operators: Vec<_> = nodes.iter().map(operator).map(str::to_owned).collect();
            let refusal = refusal(nodes, constants);
            match (expected, &refusal) {
                (None, None) => {}
                (Some(words), Some(text)) if text.contains(words) => {}
                _ => panic!("{operators:?}: {refusal:?}"),
            }
        }
    }
}
