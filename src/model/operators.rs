//! Which operators a graph may hold, and in which ranges their attributes lie.
//!
//! ONNX Runtime's kernels trust some attributes: a wrong one ends the process (a division by nothing, an index out of a
//! list), or asks for any amount of memory. So only what exporters write is taken: the operators and attributes of the
//! families' graphs, and their neighbours that `torch.onnx` writes for text encoders and decoders.

use super::onnx::{AttributeProto, NodeProto};

/// Operators of the standard domain, by name.
const OPERATORS: &[&str] = &[
    "Abs",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "Attention",
    "AveragePool",
    "Cast",
    "CastLike",
    "Ceil",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvTranspose",
    "Cos",
    "CumSum",
    "DepthToSpace",
    "DequantizeLinear",
    "QuantizeLinear",
    "Div",
    "Einsum",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "Greater",
    "GreaterOrEqual",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "MatMul",
    "Max",
    "MaxPool",
    "Mean",
    "MeanVarianceNormalization",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "NonZero",
    "Not",
    "Or",
    "PRelu",
    "Pad",
    "Pow",
    "RMSNormalization",
    "Range",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Relu",
    "Reshape",
    "Resize",
    "RotaryEmbedding",
    "Round",
    "ScatterElements",
    "ScatterND",
    "Selu",
    "Shape",
    "Sigmoid",
    "Sign",
    "Sin",
    "Size",
    "Slice",
    "Softmax",
    "Softplus",
    "SpaceToDepth",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Swish",
    "Tan",
    "Tanh",
    "Tile",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
    "Xor",
];

/// What an attribute may hold. Texts are those of ONNX's own lists, which ONNX Runtime compares them with.
enum Of {
    /// One number, or a list of them, from the first to the second.
    Integers(i64, i64),
    Floats,
    Text,
    Tensor,
    /// The equation of `Einsum`: letters of each input, an arrow, letters of the output.
    Equation,
}

use Of::{Equation, Floats, Integers, Tensor, Text};

/// Most axes of a tensor: the exporter's graphs have up to eight.
const AXES: i64 = 16;
/// Largest window, group, or number of parts.
const MANY: i64 = 1 << 16;

/// Attributes, by name: a name means the same in all operators that have it.
const ATTRIBUTES: &[(&str, Of)] = &[
    ("allowzero", Integers(0, 1)),
    ("alpha", Floats),
    ("antialias", Integers(0, 1)),
    ("approximate", Text),
    ("auto_pad", Text),
    ("axes", Integers(-AXES, AXES)),
    ("axis", Integers(-AXES, AXES)),
    ("batch_dims", Integers(0, AXES)),
    ("beta", Floats),
    ("block_size", Integers(0, MANY)),
    ("output_dtype", Integers(0, 32)),
    ("blocksize", Integers(1, 1 << 10)),
    ("ceil_mode", Integers(0, 1)),
    ("coordinate_transformation_mode", Text),
    ("count_include_pad", Integers(0, 1)),
    ("cubic_coeff_a", Floats),
    ("detect_negative", Integers(0, 1)),
    ("detect_positive", Integers(0, 1)),
    ("dilations", Integers(1, MANY)),
    ("end", Integers(-AXES, AXES)),
    ("epsilon", Floats),
    ("equation", Equation),
    ("exclude_outside", Integers(0, 1)),
    ("exclusive", Integers(0, 1)),
    ("extrapolation_value", Floats),
    ("fmod", Integers(0, 1)),
    ("gamma", Floats),
    ("group", Integers(1, MANY)),
    ("interleaved", Integers(0, 1)),
    ("is_causal", Integers(0, 1)),
    ("keep_aspect_ratio_policy", Text),
    ("keepdims", Integers(0, 1)),
    ("kernel_shape", Integers(1, 1 << 12)),
    ("kv_num_heads", Integers(1, MANY)),
    ("mode", Text),
    ("nearest_mode", Text),
    ("noop_with_empty_axes", Integers(0, 1)),
    ("num_groups", Integers(1, MANY)),
    ("num_heads", Integers(1, MANY)),
    ("num_outputs", Integers(1, 1 << 12)),
    ("output_padding", Integers(0, MANY)),
    ("p", Integers(1, 2)),
    ("pads", Integers(0, MANY)),
    ("perm", Integers(0, AXES)),
    ("q_num_heads", Integers(1, MANY)),
    ("qk_matmul_output_mode", Integers(0, 3)),
    ("reduction", Text),
    ("reverse", Integers(0, 1)),
    ("rotary_embedding_dim", Integers(0, MANY)),
    ("saturate", Integers(0, 1)),
    ("scale", Floats),
    ("select_last_index", Integers(0, 1)),
    ("softcap", Floats),
    ("softmax_precision", Integers(1, 16)),
    ("start", Integers(-AXES, AXES)),
    ("stash_type", Integers(1, 16)),
    ("storage_order", Integers(0, 1)),
    ("strides", Integers(1, MANY)),
    ("to", Integers(1, 32)),
    ("transA", Integers(0, 1)),
    ("transB", Integers(0, 1)),
    ("upper", Integers(0, 1)),
    ("value", Tensor),
    ("value_float", Floats),
    ("value_floats", Floats),
    ("value_int", Integers(i64::MIN, i64::MAX)),
    ("value_ints", Integers(i64::MIN, i64::MAX)),
];

/// Refuses a node whose operator or attributes are not listed; the reason is the end of a sentence about the node.
pub(super) fn check(node: &NodeProto) -> Result<(), String> {
    let operator = node.op_type.as_deref().unwrap_or_default();
    if !OPERATORS.contains(&operator) {
        let shown: String = operator.chars().take(40).collect();
        return Err(format!(
            "has the operator {shown:?}, which this engine does not run (src/model/operators.rs lists them)"
        ));
    }
    let parts = node.attribute.iter().find(|attribute| attribute.name.as_deref() == Some("num_outputs"));
    if let Some(parts) = parts.and_then(|attribute| attribute.i).filter(|parts| *parts != node.output.len() as i64) {
        return Err(format!("of {operator} has {} outputs, but its `num_outputs` is {parts}", node.output.len()));
    }
    node.attribute.iter().try_for_each(|attribute| {
        let name = attribute.name.as_deref().unwrap_or_default();
        let shown: String = name.chars().take(40).collect();
        let problem = match ATTRIBUTES.iter().find(|(known, _)| *known == name) {
            None => Some("is not known".to_owned()),
            Some((_, of)) => misfit(of, attribute),
        };
        let problem = problem.map(|problem| format!("of {operator}: the attribute {shown:?} {problem}"));
        problem.map_or(Ok(()), Err)
    })
}

/// What is wrong with an attribute.
fn misfit(of: &Of, attribute: &AttributeProto) -> Option<String> {
    let AttributeProto { f, i, s, t, floats, ints, strings, .. } = attribute;
    let kinds = [
        (i.is_some() || !ints.is_empty(), matches!(of, Integers(..))),
        (f.is_some() || !floats.is_empty(), matches!(of, Floats)),
        (s.is_some() || !strings.is_empty(), matches!(of, Text | Equation)),
        (t.is_some(), matches!(of, Tensor)),
    ];
    if kinds.iter().any(|(is_there, is_wanted)| *is_there && !is_wanted) {
        return Some("is of another type".into());
    }
    match of {
        Integers(least, most) => {
            let wrong = i.iter().chain(ints).find(|number| !(least..=most).contains(number));
            wrong.map(|number| format!("holds {number}; expected {least} to {most}"))
        }
        Equation => {
            let equation = s.as_deref().unwrap_or_default();
            let is_plain = |part: &[u8]| part.iter().all(|byte| byte.is_ascii_alphabetic() || b", ".contains(byte));
            let arrow = equation.windows(2).position(|pair| pair == b"->");
            let fits = arrow.is_some_and(|at| is_plain(&equation[..at]) && is_plain(&equation[at + 2..]));
            (!fits || equation.len() > 64).then(|| "is none of letters, commas and an arrow".into())
        }
        Floats | Text | Tensor => None,
    }
}
