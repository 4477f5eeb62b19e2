//! The third pass: the nodes with the dtypes that were decided on, and casts where these differ.

use std::collections::{BTreeMap, BTreeSet};

use super::Attention;
use super::constants::{self, Narrowed, narrowed};
use super::demand::{Demand, Demands, MASK};
use super::kinds::{Kinds, NodeRole, ValueKind};
use crate::model::casts::INNER_COMPUTE;
use crate::model::onnx::{AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, build, element};

/// What the names of an Attention's bounded masks begin with.
const MASKS: &str = "dbcache-mask/";
const LOWEST: &str = "dbcache-mask/lowest";
const HIGHEST: &str = "dbcache-mask/highest";

/// Writes a graph again.
pub(super) struct Emitter<'g> {
    kinds: &'g Kinds,
    demands: &'g Demands,
    /// The 16-bit type.
    narrow: i32,
    attention: Attention,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    /// Values that are there in the 16-bit type under a name of the model: stored so.
    stored: BTreeMap<String, String>,
    /// Names that are made.
    made: BTreeSet<String>,
    has_masks: bool,
}

/// The graph in which the nodes run as decided; its ports stay.
pub(super) fn emit(
    graph: GraphProto,
    kinds: &Kinds,
    demands: &Demands,
    narrow: i32,
    attention: Attention,
) -> GraphProto {
    let mut emitter = Emitter {
        kinds,
        demands,
        narrow,
        attention,
        nodes: Vec::new(),
        initializers: Vec::new(),
        stored: BTreeMap::new(),
        made: BTreeSet::new(),
        has_masks: false,
    };
    for port in &graph.input {
        emitter.given(port.name.as_deref().unwrap_or_default());
    }
    for tensor in graph.initializer {
        emitter.initializer(tensor);
    }
    for (index, node) in graph.node.into_iter().enumerate() {
        emitter.node(node, kinds.roles[index], demands.runs[index]);
    }
    if emitter.has_masks {
        let highest = if narrow == element::FLOAT16 { half::f16::MAX.to_f32() } else { half::bf16::MAX.to_f32() };
        emitter.initializers.push(build::float(LOWEST, -highest));
        emitter.initializers.push(build::float(HIGHEST, highest));
    }
    let value_info = graph.value_info.into_iter().flat_map(|info| emitter.infos(info)).collect();
    GraphProto { node: emitter.nodes, initializer: emitter.initializers, value_info, ..graph }
}

impl Emitter<'_> {
    fn is_f32(&self, value: &str) -> bool {
        self.kinds.values.get(value).is_some_and(|value| !matches!(value.kind, ValueKind::Other(_)))
    }

    /// The name of a value in the 16-bit type.
    fn narrow_name(&self, value: &str) -> String {
        self.stored.get(value).cloned().unwrap_or_else(|| format!("{INNER_COMPUTE}{value}"))
    }

    /// A value of the model that is there in f32: cast where that is read.
    fn given(&mut self, value: &str) {
        if self.is_f32(value) && self.demands.of(value).narrow {
            self.cast(value, &self.narrow_name(value), self.narrow);
        }
        self.made.insert(value.to_owned());
    }

    fn cast(&mut self, from: &str, to: &str, element: i32) {
        self.nodes.push(build::with_int(build::node("Cast", &[from], to), "to", i64::from(element)));
        self.made.insert(to.to_owned());
    }

    fn initializer(&mut self, tensor: TensorProto) {
        let name = tensor.name.clone().unwrap_or_default();
        let demand = self.demands.of(&name);
        if self.is_f32(&name)
            && demand.narrow
            && let Some(Narrowed::To(constant)) = narrowed(&tensor, self.narrow)
        {
            let inner = self.narrow_name(&name);
            self.made.insert(inner.clone());
            self.initializers.push(TensorProto { name: Some(inner), ..*constant });
            if demand.wide {
                self.made.insert(name);
                self.initializers.push(tensor);
            }
            return;
        }
        self.initializers.push(tensor);
        self.given(&name);
    }

    fn node(&mut self, node: NodeProto, role: NodeRole, runs: Demand) {
        match role {
            NodeRole::Widen(from) => return self.widen(node, from),
            NodeRole::Untouched => {
                let mut node = node;
                for input in &mut node.input {
                    if self.is_f32(input) && !self.made.contains(input) {
                        *input = self.narrow_name(input);
                    }
                }
                self.made.extend(node.output.iter().cloned());
                self.nodes.push(node);
                return;
            }
            NodeRole::Wide | NodeRole::Narrow | NodeRole::Move { .. } => {}
        }
        if runs.wide {
            self.made.extend(node.output.iter().cloned());
            self.nodes.push(node.clone());
        }
        if runs.narrow {
            self.narrow_node(node.clone(), runs.wide);
        }
        for output in &node.output {
            if !self.is_f32(output) {
                continue;
            }
            let (demand, inner) = (self.demands.of(output), self.narrow_name(output));
            if demand.narrow && !self.made.contains(&inner) {
                self.cast(output, &inner, self.narrow);
            }
            if demand.wide && !self.made.contains(output) {
                self.cast(&inner, output, element::FLOAT);
            }
        }
    }

    /// The node in the 16-bit type; `is_second` where it is there in f32 as well.
    fn narrow_node(&mut self, mut node: NodeProto, is_second: bool) {
        if let Some(Narrowed::To(constant)) = constants::of_node(&node).and_then(|value| narrowed(&value, self.narrow))
            && matches!(node.op_type.as_deref(), Some("Constant" | "ConstantOfShape"))
        {
            node = constants::with_constant(node, *constant);
        }
        let is_attention = node.op_type.as_deref() == Some("Attention");
        for (place, input) in node.input.iter_mut().enumerate() {
            if !self.is_f32(input) {
                continue;
            }
            *input = if is_attention && place == MASK { self.bounded(input) } else { self.narrow_name(input) };
        }
        if is_attention && self.attention == Attention::SoftmaxInF32 {
            set_int(&mut node, "softmax_precision", element::FLOAT.into());
        }
        for output in node.output.iter_mut().filter(|output| !output.is_empty()) {
            if self.is_f32(output) {
                *output = self.narrow_name(output);
            }
        }
        if is_second {
            node.name = node.name.filter(|name| !name.is_empty()).map(|name| format!("{INNER_COMPUTE}{name}"));
        }
        self.made.extend(node.output.iter().cloned());
        self.nodes.push(node);
    }

    /// A mask in the 16-bit type. Masks say "never" by the lowest f32, which would become minus infinity, and a row of
    /// those no number at all.
    fn bounded(&mut self, mask: &str) -> String {
        let (bounded, inner) = (format!("{MASKS}{mask}"), format!("{INNER_COMPUTE}{MASKS}{mask}"));
        if !self.made.contains(&inner) {
            self.has_masks = true;
            self.nodes.push(build::node("Clip", &[mask, LOWEST, HIGHEST], &bounded));
            self.cast(&bounded, &inner, self.narrow);
        }
        inner
    }

    /// A cast of a stored 16-bit number to f32.
    fn widen(&mut self, node: NodeProto, from: i32) {
        let [Some(source), Some(value)] = [node.input.first().cloned(), node.output.first().cloned()] else { return };
        let demand = self.demands.of(&value);
        if demand.narrow && from == self.narrow {
            self.stored.insert(value.clone(), source);
        } else if demand.narrow {
            self.cast(&source, &self.narrow_name(&value), self.narrow);
        }
        if demand.wide || !demand.narrow {
            self.made.insert(value);
            self.nodes.push(node);
        }
    }

    /// What is known of the shape of a value, for each dtype in which it is there.
    fn infos(&self, info: ValueInfoProto) -> Vec<ValueInfoProto> {
        let name = info.name.clone().unwrap_or_default();
        let mut infos = Vec::new();
        let inner = format!("{INNER_COMPUTE}{name}");
        if self.made.contains(&inner) {
            let mut narrow = ValueInfoProto { name: Some(inner), ..info.clone() };
            if let Some(tensor) = narrow.r#type.as_mut().and_then(|kind| kind.tensor_type.as_mut()) {
                tensor.elem_type = Some(self.narrow);
            }
            infos.push(narrow);
        }
        if self.made.contains(&name) {
            infos.push(info);
        }
        infos
    }
}

fn set_int(node: &mut NodeProto, name: &str, value: i64) {
    const INT: i32 = 2;
    node.attribute.retain(|attribute| attribute.name.as_deref() != Some(name));
    node.attribute.push(AttributeProto {
        name: Some(name.into()),
        i: Some(value),
        r#type: Some(INT),
        ..AttributeProto::default()
    });
}
