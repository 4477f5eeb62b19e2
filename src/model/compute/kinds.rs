//! The first pass: what each value of a graph is, and how each node runs.

use std::collections::{BTreeMap, BTreeSet};

use super::constants::{self, Narrowed, narrowed};
use super::operators::{Class, OF_ANGLES, QUANTISED, class};
use crate::error::{Error, Result};
use crate::model::onnx::{GraphProto, NodeProto, element};

const BOOL: i32 = 9;

/// What a value is; all but `Other` are f32 in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValueKind {
    /// Of another element type: an integer, a boolean, an f64, a parameter that is stored in 16 bits.
    Other(i32),
    Wide,
    Narrow,
    /// Known when the graph is loaded: in the dtype of what it meets.
    Constant,
}

/// A value of the model.
#[derive(Clone, Copy, Debug)]
pub(super) struct ValueType {
    pub kind: ValueKind,
    /// Whether it holds a finite number that 16 bits do not, as masks do: it stays f32.
    pub is_huge: bool,
}

/// How a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeRole {
    /// As it is: it takes and gives no f32, or asks for shapes only.
    Untouched,
    Wide,
    Narrow,
    /// In the dtype in which its outputs are read; f32 where that is pinned.
    Move {
        is_pinned: bool,
    },
    /// Makes an f32 of a 16-bit number of this element type.
    Widen(i32),
}

/// The values by name, and the roles of the nodes.
pub(super) struct Kinds {
    pub values: BTreeMap<String, ValueType>,
    pub roles: Vec<NodeRole>,
}

impl Kinds {
    /// # Errors
    /// `Usage` for an operator of which it is not known how it takes 16 bits; `EngineDirectory` for a value that no node
    /// before has made.
    pub(super) fn new(graph: &GraphProto, narrow: i32) -> Result<Self> {
        let mut found = Self { values: BTreeMap::new(), roles: Vec::new() };
        for port in &graph.input {
            let tensor = port.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
            let kind = kind_of(tensor.and_then(|tensor| tensor.elem_type).unwrap_or_default(), ValueKind::Wide);
            found.insert(port.name.as_deref().unwrap_or_default(), kind, false);
        }
        for tensor in &graph.initializer {
            let fate = narrowed(tensor, narrow);
            let kind = kind_of(tensor.data_type.unwrap_or_default(), of_constant(fate.as_ref()));
            found.insert(tensor.name.as_deref().unwrap_or_default(), kind, fate == Some(Narrowed::Overflows));
        }
        let angles = angles(graph);
        for node in &graph.node {
            let role = found.node(node, narrow, &angles)?;
            found.roles.push(role);
        }
        Ok(found)
    }

    fn insert(&mut self, name: &str, kind: ValueKind, is_huge: bool) {
        if !name.is_empty() {
            self.values.insert(name.to_owned(), ValueType { kind, is_huge });
        }
    }

    /// Enters what a node gives; how it runs.
    fn node(&mut self, node: &NodeProto, narrow: i32, angles: &BTreeSet<&str>) -> Result<NodeRole> {
        let operator = node.op_type.as_deref().unwrap_or_default();
        let mut inputs = Vec::new();
        for input in node.input.iter().filter(|input| !input.is_empty()) {
            let value = self.values.get(input);
            inputs.push(*value.ok_or_else(|| Error::directory(format!("`{input}` is used before it is made")))?);
        }
        let is_angle = node.output.iter().any(|output| angles.contains(output.as_str()));
        let (role, kind, is_huge) = match operator {
            "Cast" => of_cast(node, inputs.first())?,
            "Constant" | "ConstantOfShape" => of_generator(node, narrow)?,
            _ => of_class(node, &inputs, is_angle)?,
        };
        for output in &node.output {
            self.insert(output, kind, is_huge);
        }
        Ok(role)
    }
}

fn kind_of(element: i32, of_f32: ValueKind) -> ValueKind {
    if element == element::FLOAT { of_f32 } else { ValueKind::Other(element) }
}

/// A constant that does not survive 16 bits counts as any other f32.
fn of_constant(fate: Option<&Narrowed>) -> ValueKind {
    match fate {
        Some(Narrowed::Vanishes | Narrowed::Overflows) => ValueKind::Wide,
        // Parameters lie in a file: they are trained to survive it.
        Some(Narrowed::To(_)) | None => ValueKind::Constant,
    }
}

fn of_cast(node: &NodeProto, input: Option<&ValueType>) -> Result<(NodeRole, ValueKind, bool)> {
    let to = node.attribute.iter().find(|attribute| attribute.name.as_deref() == Some("to"));
    let to = to.and_then(|attribute| attribute.i).and_then(|to| i32::try_from(to).ok());
    let (Some(to), Some(input)) = (to, input) else { return Err(Error::directory("a cast without a type")) };
    Ok(match (input.kind, to) {
        (ValueKind::Other(from @ (element::FLOAT16 | element::BFLOAT16)), element::FLOAT) => {
            (NodeRole::Widen(from), ValueKind::Constant, false)
        }
        (ValueKind::Other(_), element::FLOAT) => (NodeRole::Wide, ValueKind::Wide, false),
        (ValueKind::Other(_), _) => (NodeRole::Untouched, ValueKind::Other(to), false),
        // From f32 to f32: f32 is meant.
        (_, element::FLOAT) => (NodeRole::Wide, ValueKind::Wide, input.is_huge),
        _ => (NodeRole::Wide, ValueKind::Other(to), false),
    })
}

fn of_generator(node: &NodeProto, narrow: i32) -> Result<(NodeRole, ValueKind, bool)> {
    let unknown = || Error::directory(format!("a constant of an unknown type (node {:?})", node.name));
    let element = constants::element_of(node).ok_or_else(unknown)?;
    if element != element::FLOAT {
        return Ok((NodeRole::Untouched, ValueKind::Other(element), false));
    }
    Ok(match constants::of_node(node).and_then(|constant| narrowed(&constant, narrow)) {
        Some(Narrowed::To(_)) => (NodeRole::Move { is_pinned: false }, ValueKind::Constant, false),
        Some(Narrowed::Overflows) => (NodeRole::Wide, ValueKind::Wide, true),
        Some(Narrowed::Vanishes) | None => (NodeRole::Wide, ValueKind::Wide, false),
    })
}

fn of_class(node: &NodeProto, inputs: &[ValueType], is_angle: bool) -> Result<(NodeRole, ValueKind, bool)> {
    let operator = node.op_type.as_deref().unwrap_or_default();
    let class = class(operator).ok_or_else(|| unknown(operator))?;
    let floats = || inputs.iter().filter(|value| !matches!(value.kind, ValueKind::Other(_)));
    // What the output is like: the second operand of `Where`, the first of all others.
    let data = inputs.get(usize::from(operator == "Where")).or(inputs.first());
    match (class, operator) {
        (Class::Sizes, "Shape" | "Size") => return Ok((NodeRole::Untouched, ValueKind::Other(element::INT64), false)),
        (Class::Sizes, _) => return Ok((NodeRole::Untouched, ValueKind::Other(BOOL), false)),
        (Class::Judge, _) => {
            let role = if floats().next().is_some() { NodeRole::Wide } else { NodeRole::Untouched };
            let gives = if operator.starts_with("Arg") { element::INT64 } else { BOOL };
            return Ok((role, ValueKind::Other(gives), false));
        }
        _ => {}
    }
    if let Some(ValueType { kind: ValueKind::Other(element), .. }) = data {
        let role = if floats().next().is_some() { NodeRole::Wide } else { NodeRole::Untouched };
        return Ok((role, ValueKind::Other(*element), false));
    }
    let is_constant = floats().next().is_some() && floats().all(|value| value.kind == ValueKind::Constant);
    let is_wide = floats().any(|value| value.kind == ValueKind::Wide);
    // A divisor makes nothing huge, and what Attention adds to its scores is cut (`emit.rs`).
    let of_value = match operator {
        "Div" => &inputs[..inputs.len().min(1)],
        "Attention" => &inputs[..inputs.len().min(3)],
        _ => inputs,
    };
    let is_huge = of_value.iter().any(|value| value.is_huge);
    let kind = if is_constant {
        ValueKind::Constant
    } else if is_wide || is_angle {
        ValueKind::Wide
    } else {
        ValueKind::Narrow
    };
    Ok(match class {
        Class::Move => (NodeRole::Move { is_pinned: is_angle || is_huge }, kind, is_huge),
        // Computed once, when the graph is loaded.
        _ if is_constant => (NodeRole::Wide, ValueKind::Constant, is_huge),
        Class::Narrow if !is_angle && !is_huge => (NodeRole::Narrow, ValueKind::Narrow, false),
        Class::Follow if kind == ValueKind::Narrow => (NodeRole::Narrow, ValueKind::Narrow, is_huge),
        Class::Follow => (NodeRole::Wide, ValueKind::Wide, is_huge),
        _ => (NodeRole::Wide, ValueKind::Wide, false),
    })
}

fn unknown(operator: &str) -> Error {
    let reason = if QUANTISED.contains(&operator) {
        "is quantised"
    } else {
        "runs an operator of which this engine does not know what 16 bits do to it"
    };
    Error::usage(format!("{reason} (`{operator}`)"))
}

/// Values that lead to an angle.
fn angles(graph: &GraphProto) -> BTreeSet<&str> {
    let mut found: BTreeSet<&str> = BTreeSet::new();
    for node in graph.node.iter().rev() {
        let is_function = node.op_type.as_deref().is_some_and(|operator| OF_ANGLES.contains(&operator));
        if is_function || node.output.iter().any(|output| found.contains(output.as_str())) {
            found.extend(node.input.iter().map(String::as_str));
        }
    }
    found
}
