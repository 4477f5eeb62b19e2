//! What 16 bits do to each operator, and so in which dtype it runs.

/// How an operator takes 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Runs in 16 bits: nearly all of the time, and accumulated in f32 by every provider.
    Narrow,
    /// Runs in f32.
    Wide,
    /// Element by element: in f32 as soon as one operand is f32, else in 16 bits. A constant follows the others.
    Follow,
    /// Moves numbers without changing them, or commutes with rounding: in the dtype in which they are read.
    Move,
    /// Takes numbers of any dtype in f32, and gives integers or booleans.
    Judge,
    /// Asks for shapes, or takes no floats at all.
    Sizes,
}

/// Products: sums of many terms, for which hardware has 16-bit units.
const NARROW: [&str; 6] = ["MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention"];

const WIDE: [&str; 38] = [
    // Mean and variance: squares overflow f16 above 256, and their sum loses what is small.
    "LayerNormalization",
    "RMSNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
    // Normalisations that are written out: squares, means, roots and their reciprocals.
    "Pow",
    "Sqrt",
    "Reciprocal",
    "ReduceMean",
    "ReduceSumSquare",
    "ReduceL1",
    "ReduceL2",
    // Sums over thousands of terms.
    "ReduceSum",
    "ReduceProd",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "CumSum",
    "GlobalAveragePool",
    "AveragePool",
    // Exponentials: the sum of a softmax is over all tokens.
    "Softmax",
    "LogSoftmax",
    "Exp",
    "Log",
    "Softplus",
    // Angles of positions and timesteps reach thousands; bf16 knows only every eighth number there.
    "Sin",
    "Cos",
    "Tan",
    "Asin",
    "Acos",
    "Atan",
    "Sinh",
    "Cosh",
    // Positions and counts.
    "Range",
    "Mod",
    "Floor",
    "Ceil",
    "Round",
];

/// Sums, products and activations.
const FOLLOW: [&str; 23] = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Sum",
    "Max",
    "Min",
    "Clip",
    "Sign",
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Elu",
    "Selu",
    "Gelu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Swish",
    "Mish",
    "Tanh",
    "Erf",
    "RotaryEmbedding",
];

const MOVE: [&str; 25] = [
    "Identity",
    "Reshape",
    "Flatten",
    "Transpose",
    "Concat",
    "Split",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    "Expand",
    "Tile",
    "Gather",
    "GatherElements",
    "GatherND",
    "ScatterElements",
    "ScatterND",
    "Pad",
    "Where",
    "Trilu",
    "DepthToSpace",
    "SpaceToDepth",
    // Rounding keeps the order and the sign.
    "ReduceMax",
    "ReduceMin",
    "Neg",
    "Abs",
];

/// Exact, because every 16-bit float is an f32.
const JUDGE: [&str; 9] =
    ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf", "ArgMax", "ArgMin"];

const SIZES: [&str; 6] = ["Shape", "Size", "And", "Or", "Not", "Xor"];

/// Operators that quantise, or compute with what is.
pub(super) const QUANTISED: [&str; 7] = [
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "QLinearMatMul",
    "QLinearConv",
];

/// Functions of angles: what leads to them is an angle.
pub(super) const OF_ANGLES: [&str; 3] = ["Sin", "Cos", "Tan"];

/// How an operator takes 16 bits; none for one of which that is not known.
pub(super) fn class(operator: &str) -> Option<Class> {
    let lists: [(&[&str], Class); 6] = [
        (&NARROW, Class::Narrow),
        (&WIDE, Class::Wide),
        (&FOLLOW, Class::Follow),
        (&MOVE, Class::Move),
        (&JUDGE, Class::Judge),
        (&SIZES, Class::Sizes),
    ];
    lists.iter().find(|(names, _)| names.contains(&operator)).map(|(_, class)| *class)
}
