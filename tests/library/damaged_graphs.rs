//! Damaged and hostile graphs whose sizes and hashes the manifest confirms, so that only their content gives them away.

use crate::common::damage::{Cases, Copy};
use crate::common::onnx::{self, AttributeProto, GraphProto, ModelProto, StringStringEntryProto, TensorProto};
use dbcache_trt::ErrorKind::{EngineDirectory, Runtime};

#[test]
fn graphs() {
    let mut cases = Cases::default();
    let mut check = |name: &str, edit: fn(&mut GraphProto), words: &[&str]| {
        cases.check(name, |e| e.graph("final.onnx", edit), EngineDirectory, &[&["final.onnx"], words].concat());
    };
    check("input name", |g| g.input[0].name = Some("x".into()), &["has the inputs", "the manifest says"]);
    check("output name", |g| g.output[0].name = Some("x".into()), &["has the outputs", "the manifest says"]);
    check("missing input", |g| drop(g.input.pop()), &["has the inputs"]);
    check("extra output", |g| g.output.push(g.input[0].clone()), &["has the outputs"]);
    check("input twice", |g| g.input.push(g.input[0].clone()), &["has the inputs"]);
    check("input of f16", |g| tensor(g).elem_type = Some(10), &["has element type 10", "the manifest says 1 (f32)"]);
    check("input of other width", |g| axis(g, 2).dim_value = Some(65), &["shape [batch, image, 65]", "64]"]);
    check("input of negative width", |g| axis(g, 2).dim_value = Some(-64), &["shape [batch, image, 0]"]);
    check("input of other axis", |g| axis(g, 1).dim_param = Some("text".into()), &["shape [batch, text, 64]"]);
    check("nameless axis", |g| *axis(g, 1) = Default::default(), &["shape [batch, , 64]"]);
    check("no shape", |g| tensor(g).shape = None, &["shape unknown"]);
    check("no tensor", |g| g.input[0].r#type = None, &["is not a tensor"]);
    check("node names", |g| g.node.iter_mut().for_each(|n| n.name = Some("a".into())), &["two nodes are called `a`"]);
    check("custom domain", |g| g.node[0].domain = Some("com.microsoft".into()), &["is of the domain", "com.microsoft"]);
    check("huge constant", |g| g.initializer.push(constant(vec![4097])), &["`c`", "at most 4096 values"]);
    check("overflowing constant", |g| g.initializer.push(constant(vec![1 << 62, 4])), &["at most 4096 values"]);
    check("negative constant", |g| g.initializer.push(constant(vec![-1, -1])), &["at most 4096 values"]);
    check("huge attribute", |g| attribute(g).t = Some(constant(vec![4097])), &["at most 4096 values"]);
    check("long attribute", |g| ints(g, "Conv", "pads", &[1; 4097]), &["at most 4096 values"]);
    check("attribute in a file", |g| attribute(g).t = Some(elsewhere()), &["attribute", "refer"]);
    check("constant in a file", constant_elsewhere, &["refer"]);

    let unknown = ["has the operator \"Frobnicate\"", "src/model/operators.rs", "export again with dbcache-export"];
    check("unknown operator", |g| g.node[0].op_type = Some("Frobnicate".into()), &unknown);
    check("no operator", |g| g.node[0].op_type = None, &["has the operator \"\""]);
    // These end the process inside ONNX Runtime.
    check(
        "dots of Einsum",
        |g| text(g, "Einsum", "equation", "....->a"),
        &["of Einsum", "\"equation\" is none of letters"],
    );
    check(
        "batch of GatherND",
        |g| ints(g, "GatherND", "batch_dims", &[-7]),
        &["of GatherND", "holds -7; expected 0 to 16"],
    );
    check("huge window", |g| ints(g, "Conv", "kernel_shape", &[1 << 31, 3]), &["of Conv", "expected 1 to 4096"]);
    check("huge pool", |g| ints(g, "MaxPool", "strides", &[0]), &["of MaxPool", "\"strides\" holds 0"]);
    check("no group", |g| ints(g, "ConvTranspose", "group", &[0]), &["of ConvTranspose", "\"group\" holds 0"]);
    check("no block", |g| ints(g, "DepthToSpace", "blocksize", &[0]), &["\"blocksize\" holds 0; expected 1 to 1024"]);
    check(
        "parts of Split",
        |g| number(g, "Split", "num_outputs", 3),
        &["of Split has 1 outputs", "`num_outputs` is 3"],
    );
    // These fill the memory.
    let many = ["asks for", "elements; at most 268435456 are made by a constant"];
    let fills = |operator| [&[operator], &many[..]].concat();
    check("huge filling", |g| of(g, "ConstantOfShape", &[&[1 << 14, 1 << 15]]), &fills("of ConstantOfShape"));
    check("huge border", |g| of(g, "Pad", &[&[], &[0, 0, 1 << 31, 0]]), &fills("of Pad"));
    check("huge copies", |g| of(g, "Tile", &[&[], &[i64::MIN]]), &fills("of Tile"));
    check("huge copies of an axis", |g| of(g, "Expand", &[&[], &[1, 1 << 40]]), &fills("of Expand"));
    check("huge picture", |g| of(g, "Resize", &[&[], &[], &[], &[1, 3, 1 << 20, 1 << 20]]), &fills("of Resize"));
    check("long range", |g| of(g, "Range", &[&[0], &[i64::MAX], &[1]]), &fills("of Range"));
    check("endless range", |g| of(g, "Range", &[&[0], &[1], &[0]]), &["of Range", "asks for inf elements"]);
    check("huge scale", huge_scale, &fills("of Resize"));
    check("shape among the weights", shape_among_weights, &["of Expand", "asks for inf elements"]);
    check("axis far away", |g| ints(g, "Concat", "axis", &[i64::MIN]), &["expected -16 to 16"]);
    check("unknown attribute", |g| ints(g, "Add", "magic", &[1]), &["of Add", "\"magic\" is not known"]);
    check("attribute of other type", |g| text(g, "Concat", "axis", "1"), &["\"axis\" is of another type"]);

    let mut check = |name: &str, edit: fn(&mut ModelProto), words: &[&str]| {
        cases.check(name, |e| e.model("final.onnx", edit), EngineDirectory, &[&["final.onnx"], words].concat());
    };
    check("other opset", |m| m.opset_import[0].version = Some(21), &["uses opset 21", "the manifest says 20"]);
    check("no opset", |m| m.opset_import.clear(), &["names no opset"]);
    check("opset of a domain", |m| m.opset_import[0].domain = Some("ai.onnx.ml".into()), &["domain \"ai.onnx.ml\""]);
    check("no graph", |m| m.graph = None, &["holds no graph"]);

    let mut check = |name: &str, edit: fn(&mut Vec<u8>), words: &[&str]| {
        cases.check(name, |e| e.lie("final.onnx", edit), EngineDirectory, &[&["final.onnx"], words].concat());
    };
    check("empty", Vec::clear, &["names no opset"]);
    check("cut", |b| b.truncate(1000), &["is not an ONNX file"]);
    check("not protobuf", |b| *b = b"{}".to_vec(), &["is not an ONNX file"]);
    check("unknown field", |b| b.extend([0xfa, 0x7, 1, 0]), &["ONNX fields that this engine does not know"]);
    // graph { initializer { dims: packed [1, 1] } }, one byte shorter than unpacked: a field 127 of no bytes fills it up.
    check(
        "hidden field",
        |b| b.extend([0x3a, 6, 0x2a, 4, 0x0a, 2, 1, 1, 0xfa, 0x7, 0]),
        &["that this engine does not know"],
    );
    check("local function", |b| b.extend([0xca, 1, 0]), &["ONNX fields that this engine does not know"]);
    // A second `graph` is merged with the first: graph { node { attribute { g {} } } }.
    check("subgraph", |b| b.extend([0x3a, 8, 0x0a, 6, 0x2a, 4, 0x32, 2, 0x12, 0]), &["a subgraph"]);

    // What only ONNX Runtime can know.
    let mut check = |name: &str, edit: fn(&mut GraphProto), words: &[&str]| {
        cases.check(name, |e| e.graph("final.onnx", edit), Runtime, &[&["final"], words].concat());
    };
    check("missing node", |g| drop(g.node.remove(0)), &[]);
    check("cycle", |g| g.node[0].input = g.node.last().unwrap().output.clone(), &[]);
    check("no nodes", |g| g.node.clear(), &[]);
    check("constant without data", |g| g.initializer[1].raw_data = None, &["c1'"]);
    check("constant of unknown dtype", |g| g.initializer[1].data_type = Some(99), &["c1"]);
    check("impossible output", impossible_output, &["dim_values must be -1"]);
    check("constant of other shape", |g| g.initializer[1].dims = vec![4096], &["ShapeInferenceError"]);
}

fn tensor(graph: &mut GraphProto) -> &mut onnx::TensorTypeProto {
    graph.input[0].r#type.as_mut().unwrap().tensor_type.as_mut().unwrap()
}

fn axis(graph: &mut GraphProto, index: usize) -> &mut onnx::DimensionProto {
    &mut tensor(graph).shape.as_mut().unwrap().dim[index]
}

fn constant(dims: Vec<i64>) -> TensorProto {
    TensorProto { name: Some("c".into()), dims, data_type: Some(onnx::element::FLOAT), ..Default::default() }
}

/// A tensor that would be read from a file outside of the engine directory.
fn elsewhere() -> TensorProto {
    let entry =
        |(key, value): (&str, &str)| StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) };
    TensorProto {
        data_location: Some(onnx::EXTERNAL),
        external_data: [("location", "/etc/passwd"), ("offset", "0"), ("length", "4")].map(entry).into(),
        ..constant(vec![1])
    }
}

fn constant_elsewhere(graph: &mut GraphProto) {
    graph.initializer.push(TensorProto { data_location: None, ..elsewhere() });
}

fn attribute(graph: &mut GraphProto) -> &mut AttributeProto {
    let mut node = onnx::build::node("Constant", &[], "unused");
    node.attribute.push(AttributeProto { name: Some("value".into()), r#type: Some(4), ..Default::default() });
    graph.node.insert(0, node);
    &mut graph.node[0].attribute[0]
}

/// A node in front of all others, with constants of integers for its inputs.
fn of(graph: &mut GraphProto, operator: &str, inputs: &[&[i64]]) {
    let names: Vec<String> = (0..inputs.len()).map(|index| format!("amount{index}")).collect();
    graph.initializer.extend(names.iter().zip(inputs).map(|(name, values)| onnx::build::ints(name, values)));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    graph.node.insert(0, onnx::build::node(operator, &names, "unused"));
}

/// An extent that overflows in ONNX Runtime, by steps of which none is too large.
fn impossible_output(graph: &mut GraphProto) {
    let output = graph.output[0].name.clone().unwrap();
    let maker = graph.node.iter_mut().find(|node| node.output[0] == output).unwrap();
    maker.output[0] = "unused".into();
    graph.initializer.push(onnx::build::ints("times", &[1, 1 << 21, 1]));
    graph.initializer.push(onnx::build::ints("second", &[1]));
    graph.node.push(onnx::build::node("Unsqueeze", &["temb", "second"], "copies0"));
    let names = ["copies0", "copies1", "copies2", &output];
    graph.node.extend(names.windows(2).map(|pair| onnx::build::node("Tile", &[pair[0], "times"], pair[1])));
}

fn huge_scale(graph: &mut GraphProto) {
    node(
        graph,
        "Constant",
        AttributeProto { name: Some("value_floats".into()), floats: vec![1.0, 1e30], ..Default::default() },
    );
    graph.node.insert(1, onnx::build::node("Resize", &["", "", "unused"], "larger"));
}

fn shape_among_weights(graph: &mut GraphProto) {
    let reference = graph.initializer.iter().find(|tensor| tensor.data_location == Some(onnx::EXTERNAL)).unwrap();
    let name = reference.name.clone().unwrap();
    graph.node.insert(0, onnx::build::node("Expand", &["", &name], "unused"));
}

/// A node in front of all others, with one attribute.
fn node(graph: &mut GraphProto, operator: &str, attribute: AttributeProto) {
    let mut node = onnx::build::node(operator, &[], "unused");
    node.attribute.push(attribute);
    graph.node.insert(0, node);
}

fn ints(graph: &mut GraphProto, operator: &str, name: &str, values: &[i64]) {
    node(graph, operator, AttributeProto { name: Some(name.into()), ints: values.to_vec(), ..Default::default() });
}

fn number(graph: &mut GraphProto, operator: &str, name: &str, value: i64) {
    node(graph, operator, AttributeProto { name: Some(name.into()), i: Some(value), ..Default::default() });
}

fn text(graph: &mut GraphProto, operator: &str, name: &str, value: &str) {
    node(graph, operator, AttributeProto { name: Some(name.into()), s: Some(value.into()), ..Default::default() });
}

#[test]
fn references() {
    let mut cases = Cases::default();
    for (key, value, words) in [
        ("location", "other.safetensors", "refers to \"other.safetensors\", which `weights` does not name"),
        ("location", "/etc/passwd", "refers to \"/etc/passwd\""),
        ("location", "../tiny-flux/transformer.safetensors", "which `weights` does not name"),
        ("location", "", "refers to \"\""),
        ("offset", "18446744073709551615", "where no parameter begins"),
        ("offset", "2337280", "where no parameter begins"),
        ("offset", "0", "where no parameter begins"),
        ("offset", "-1", "lacks a location, an offset or a length"),
        ("offset", "99999999999999999999", "lacks a location, an offset or a length"),
        ("length", "4", "4 bytes, but parameter"),
        ("length", "18446744073709551615", "18446744073709551615 bytes, but parameter"),
        ("length", "four", "lacks a location, an offset or a length"),
    ] {
        let name = format!("{key} {value}");
        cases.check(&name, |e| e.reference_key(key, value), EngineDirectory, &["final.onnx: initialiser `", words]);
    }
    let mut check = |name: &str, edit: fn(&mut TensorProto), words: &[&str]| {
        cases.check(name, |e| e.reference(edit), EngineDirectory, &[&["final.onnx: initialiser `"], words].concat());
    };
    check("inside a parameter", |t| shift(t, 64), &["where no parameter begins"]);
    check("other shape", |t| t.dims.push(1), &["shape", "but parameter"]);
    check("other dtype", |t| t.data_type = Some(16), &["has dtype Some(16)", "but parameter"]);
    check("no dtype", |t| t.data_type = None, &["has dtype None"]);
    check("no keys", |t| t.external_data.clear(), &["lacks a location, an offset or a length"]);
    for key in ["location", "offset", "length"] {
        let damage = |e: &Copy| e.reference(|t| t.external_data.retain(|entry| entry.key.as_deref() != Some(key)));
        cases.check(&format!("no {key}"), damage, EngineDirectory, &["lacks a location, an offset or a length"]);
        let damage = |e: &Copy| e.reference(|t| twice(t, key));
        cases.check(&format!("{key} twice"), damage, EngineDirectory, &[key, "twice"]);
    }
    let unknown = |t: &mut TensorProto| t.external_data[0].key = Some("checksum".into());
    cases.check("unknown key", |e| e.reference(unknown), EngineDirectory, &["unknown external data key", "checksum"]);
}

fn shift(tensor: &mut TensorProto, bytes: u64) {
    let offset = tensor.external_data.iter_mut().find(|entry| entry.key.as_deref() == Some("offset")).unwrap();
    let value: u64 = offset.value.as_deref().unwrap().parse().unwrap();
    offset.value = Some((value + bytes).to_string());
}

fn twice(tensor: &mut TensorProto, key: &str) {
    let entry = tensor.external_data.iter().find(|entry| entry.key.as_deref() == Some(key)).unwrap().clone();
    tensor.external_data.insert(0, StringStringEntryProto { value: Some("/etc/passwd".into()), ..entry });
}
