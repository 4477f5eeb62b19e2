use prost::Message;

use super::*;
use crate::ErrorKind;
use crate::model::onnx::{GraphProto, NodeProto, StringStringEntryProto, TensorProto, build, element};

const DOUBLE: i32 = 11;

/// Such as `MatMul(x,w)→y`, with the target of a cast in front and `~` for values in 16 bits.
fn lines(graph: &GraphProto) -> Vec<String> {
    let short = |value: &String| value.replace(super::super::casts::INNER_COMPUTE, "~");
    let line = |node: &NodeProto| {
        let attribute = node.attribute.iter().find_map(|attribute| attribute.i);
        let mark = match (node.op_type.as_deref().unwrap(), attribute) {
            ("Cast", Some(1)) => "f32 ".to_owned(),
            ("Cast", Some(7)) => "i64 ".to_owned(),
            ("Cast", Some(10)) => "f16 ".to_owned(),
            ("Cast", Some(16)) => "bf16 ".to_owned(),
            ("Cast", Some(11)) => "f64 ".to_owned(),
            (_, Some(value)) => format!("{value} "),
            (_, None) => String::new(),
        };
        let [inputs, outputs] =
            [&node.input, &node.output].map(|values| values.iter().map(short).collect::<Vec<_>>().join(","));
        format!("{mark}{}({inputs})→{outputs}", node.op_type.as_deref().unwrap())
    };
    graph.node.iter().map(line).collect()
}

/// `Op a b → c`, with `Op:7` for an integer attribute of a cast.
fn node(text: &str) -> NodeProto {
    let (left, right) = text.split_once(" → ").unwrap();
    let mut words = left.split(' ');
    let (operator, inputs) = (words.next().unwrap(), words.collect::<Vec<_>>());
    let (operator, to) = operator.split_once(':').map_or((operator, None), |(name, to)| (name, Some(to)));
    let mut node = build::node(operator, &inputs, right);
    node.output = right.split(' ').map(str::to_owned).collect();
    to.map_or(node.clone(), |to| build::with_int(node.clone(), "to", to.parse().unwrap()))
}

/// A parameter in a file.
fn parameter(name: &str, element: i32) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        data_type: Some(element),
        dims: vec![4, 4],
        data_location: Some(1),
        external_data: vec![StringStringEntryProto { key: Some("location".into()), value: Some("w".into()) }],
        ..TensorProto::default()
    }
}

/// f32 in `x`, `z` and, out, in `y`; i64 in `n`, f64 in `d`. Parameters: `w` and `v` in f32, `h` in f16, `b` in bf16.
fn graph(nodes: &[&str], constants: &[(&str, f32)]) -> Graph {
    let inner = GraphProto {
        node: nodes.iter().map(|text| node(text)).collect(),
        input: vec![
            build::port("x", element::FLOAT, &["r", "c"]),
            build::port("z", element::FLOAT, &["r", "c"]),
            build::port("n", element::INT64, &["r"]),
            build::port("d", DOUBLE, &["r"]),
        ],
        output: vec![build::port("y", element::FLOAT, &["r", "c"])],
        initializer: [("w", element::FLOAT), ("v", element::FLOAT), ("h", element::FLOAT16), ("b", element::BFLOAT16)]
            .map(|(name, element)| parameter(name, element))
            .into_iter()
            .chain(constants.iter().map(|(name, value)| build::float(name, *value)))
            .collect(),
        ..GraphProto::default()
    };
    Graph { file: "part.onnx".into(), bytes: build::model(inner, 23).encode_to_vec(), ..Graph::default() }
}

fn cast_graph(graph: &Graph, to: DType, attention: Attention) -> GraphProto {
    let found = cast(graph, to, attention).unwrap();
    let inner = onnx::decode(&found.bytes).unwrap().graph.unwrap();
    assert_eq!(found.nodes, inner.node.len());
    inner
}

#[test]
fn each_operator_runs_as_it_takes_16_bits() {
    for (what, nodes, constants, expected) in [
        (
            "a parameter in f32 is cast, and what the product gives is cast back for the port",
            &["MatMul x w → y"][..],
            &[][..],
            &["f16 Cast(x)→~x", "f16 Cast(w)→~w", "MatMul(~x,~w)→~y", "f32 Cast(~y)→y"][..],
        ),
        (
            "a parameter that is stored in f16 is read as it is, one in bf16 is cast to f16",
            &["Cast:1 h → h32", "Cast:1 b → b32", "Transpose h32 → t", "MatMul x t → p", "Add p b32 → y"],
            &[],
            &[
                "f16 Cast(x)→~x",
                "f16 Cast(b)→~b32",
                "Transpose(h)→~t",
                "MatMul(~x,~t)→~p",
                "Add(~p,~b32)→~y",
                "f32 Cast(~y)→y",
            ],
        ),
        (
            "both where it is read in both; a norm takes f32",
            &["Cast:1 h → h32", "LayerNormalization x h32 → q", "MatMul q h32 → p", "Add x p → y"],
            &[],
            &[
                "f32 Cast(h)→h32",
                "LayerNormalization(x,h32)→q",
                "f16 Cast(q)→~q",
                "MatMul(~q,h)→~p",
                "f32 Cast(~p)→p",
                "Add(x,p)→y",
            ],
        ),
        (
            "a constant is of the dtype of what it meets",
            &["MatMul x z → p", "Mul p half → q", "Add x half → r", "Add q r → y"],
            &[("half", 0.5)],
            &[
                "f16 Cast(x)→~x",
                "f16 Cast(z)→~z",
                "MatMul(~x,~z)→~p",
                "Mul(~p,~half)→~q",
                "f32 Cast(~q)→q",
                "Add(x,half)→r",
                "Add(q,r)→y",
            ],
        ),
        (
            "one that vanishes in f16 keeps the sum in f32",
            &["MatMul x z → p", "Add p tiny → y"],
            &[("tiny", 1e-6)],
            &["f16 Cast(x)→~x", "f16 Cast(z)→~z", "MatMul(~x,~z)→~p", "f32 Cast(~p)→p", "Add(p,tiny)→y"],
        ),
        (
            "one that f16 does not hold keeps all in f32 that it reaches, until a norm",
            &["Expand huge n → e", "Add x e → s", "MatMul s w → q", "Softmax q → t", "MatMul t w → y"],
            &[("huge", -1e9)],
            &[
                "f16 Cast(w)→~w",
                "Expand(huge,n)→e",
                "Add(x,e)→s",
                "MatMul(s,w)→q",
                "Softmax(q)→t",
                "f16 Cast(t)→~t",
                "MatMul(~t,~w)→~y",
                "f32 Cast(~y)→y",
            ],
        ),
        (
            "angles stay f32, with the product that makes them",
            &["MatMul x w → a", "Cos a → c", "Range x z x → g", "MatMul c v → p", "Add p g → y"],
            &[],
            &[
                "f16 Cast(v)→~v",
                "MatMul(x,w)→a",
                "Cos(a)→c",
                "f16 Cast(c)→~c",
                "Range(x,z,x)→g",
                "MatMul(~c,~v)→~p",
                "f32 Cast(~p)→p",
                "Add(p,g)→y",
            ],
        ),
        (
            "what is known at load is computed in f32: merged adapters",
            &["MatMul w v → a", "Add w a → m", "MatMul x m → y"],
            &[],
            &["f16 Cast(x)→~x", "MatMul(w,v)→a", "Add(w,a)→m", "f16 Cast(m)→~m", "MatMul(~x,~m)→~y", "f32 Cast(~y)→y"],
        ),
        (
            "numbers move in the dtype in which they are read, and a shape is asked of whichever there is",
            &[
                "Mul x x → s",
                "Transpose s → t",
                "Shape t → k",
                "Reshape t k → u",
                "MatMul u z → p",
                "Split p → q r",
                "Exp q → e",
                "Sub e r → y",
            ],
            &[],
            &[
                "f16 Cast(z)→~z",
                "Mul(x,x)→s",
                "f16 Cast(s)→~s",
                "Transpose(~s)→~t",
                "Shape(~t)→k",
                "Reshape(~t,k)→~u",
                "MatMul(~u,~z)→~p",
                "f32 Cast(~p)→p",
                "Split(p)→q,r",
                "Exp(q)→e",
                "Sub(e,r)→y",
            ],
        ),
        (
            "integers and f64 are left alone, and judgements are of f32",
            &[
                "Mul d d → f",
                "Cast:1 f → g",
                "MatMul x g → p",
                "Greater p x → o",
                "Cast:7 p → i",
                "Add i n → j",
                "Where o p x → y",
            ],
            &[],
            &[
                "f16 Cast(x)→~x",
                "Mul(d,d)→f",
                "f32 Cast(f)→g",
                "f16 Cast(g)→~g",
                "MatMul(~x,~g)→~p",
                "f32 Cast(~p)→p",
                "Greater(p,x)→o",
                "i64 Cast(p)→i",
                "Add(i,n)→j",
                "Where(o,p,x)→y",
            ],
        ),
    ] {
        let found = cast_graph(&graph(nodes, constants), DType::F16, Attention::SoftmaxInF32);
        assert_eq!(lines(&found), expected, "{what}");
    }
}

/// A mask's lowest number would be minus infinity in 16 bits, and a row of those no number.
#[test]
fn attention_has_a_bounded_mask_and_a_softmax_in_f32() {
    let part = graph(&["Attention x z w x → y"], &[]);
    for (dtype, attention, cast, mark, bound) in [
        (DType::F16, Attention::SoftmaxInF32, "f16", "1 ", 65504.0),
        (DType::Bf16, Attention::SoftmaxInF32, "bf16", "1 ", 3.3895314e38),
        (DType::F16, Attention::ByProvider, "f16", "", 65504.0),
    ] {
        let found = cast_graph(&part, dtype, attention);
        let expected = [
            format!("{cast} Cast(x)→~x"),
            format!("{cast} Cast(z)→~z"),
            format!("{cast} Cast(w)→~w"),
            "Clip(x,dbcache-mask/lowest,dbcache-mask/highest)→dbcache-mask/x".into(),
            format!("{cast} Cast(dbcache-mask/x)→~dbcache-mask/x"),
            format!("{mark}Attention(~x,~z,~w,~dbcache-mask/x)→~y"),
            "f32 Cast(~y)→y".into(),
        ];
        assert_eq!(lines(&found), expected);
        let constant = |name: &str| found.initializer.iter().find(|tensor| tensor.name.as_deref() == Some(name));
        assert_eq!(constant("dbcache-mask/highest").unwrap().float_data, [bound]);
        assert_eq!(constant("dbcache-mask/lowest").unwrap().float_data, [-bound]);
    }
}

#[test]
fn what_is_said_of_shapes_stays_with_the_values() {
    let mut part = graph(&["MatMul x w → p", "Exp p → e", "Add e p → y"], &[]);
    let mut model = onnx::decode(&part.bytes).unwrap();
    model.graph.as_mut().unwrap().value_info = ["p", "e"].map(|name| build::port(name, element::FLOAT, &["r"])).into();
    part.bytes = model.encode_to_vec();
    let found = cast_graph(&part, DType::Bf16, Attention::SoftmaxInF32);
    let infos: Vec<(&str, Option<i32>)> = found
        .value_info
        .iter()
        .map(|info| {
            let tensor = info.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
            (info.name.as_deref().unwrap(), tensor.and_then(|tensor| tensor.elem_type))
        })
        .collect();
    assert_eq!(infos, [("dbcache-compute/p", Some(16)), ("p", Some(1)), ("e", Some(1))]);
}

#[test]
fn graphs_that_cannot_be_cast_say_why() {
    for (nodes, kind, words) in [
        (&["DequantizeLinear n x → q"][..], ErrorKind::Usage, "is quantised (`DequantizeLinear`)"),
        (&["Loop x → q"], ErrorKind::Usage, "of which this engine does not know what 16 bits do to it (`Loop`)"),
        (&["Add x q → y", "Neg x → q"], ErrorKind::EngineDirectory, "`q` is used before it is made"),
        (&["Cast x → y"], ErrorKind::EngineDirectory, "a cast without a type"),
        (&["Constant → y"], ErrorKind::EngineDirectory, "a constant of an unknown type"),
    ] {
        let error = cast(&graph(nodes, &[]), DType::F16, Attention::SoftmaxInF32).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// Nodes of untrusted files, with too few operands: an error here or from ONNX Runtime, never a panic.
#[test]
fn nodes_without_operands_do_not_panic() {
    let operators = "MatMul Gemm Attention LayerNormalization Softmax Pow Add Div Clip Where Concat Split Reshape Pad Equal \
                     ArgMax Shape Not Cast Constant ConstantOfShape Range Cos Identity";
    for operator in operators.split_whitespace() {
        for (inputs, outputs) in
            [(&[][..], &[][..]), (&["x"], &[]), (&[], &["y"]), (&["", "x"], &["y"]), (&["n"], &["", "y"])]
        {
            let mut part = graph(&[], &[]);
            let mut model = onnx::decode(&part.bytes).unwrap();
            let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let node = NodeProto { input: names(inputs), output: names(outputs), ..build::node(operator, &[], "") };
            model.graph.as_mut().unwrap().node = vec![node];
            part.bytes = model.encode_to_vec();
            let _ = cast(&part, DType::F16, Attention::SoftmaxInF32);
        }
    }
}
