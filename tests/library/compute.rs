//! The dtype in which transformers compute, chosen at load: which operators run in 16 bits, in the graphs of every family;
//! what it does to results and decisions; and what is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::damage::Copy;
use crate::common::onnx::{self, GraphProto, NodeProto, TensorProto, ValueInfoProto, element};
use crate::common::shell::Shell;
use crate::common::{data, emoji, relative_l1, tiny_inputs};
use dbcache_trt::cache::Branch;
use dbcache_trt::{
    ArithmeticChoice, ComputeChoice, Engine, EngineOptions, ErrorKind, Inputs, Model, Output, Profile, RequestOptions,
    StagesChoice, write_stages,
};
use serde_json::{Value, json};

/// Latents of 28 steps that computed in f16 against f32: every product rounds its operands and its result to 11 bits (2e-4
/// on average), errors of either sign that the sums of a block and the scheduler's small steps mostly take away.
const F16_LATENT_RELATIVE_L1: f64 = 5e-4;
/// A forecast over k steps multiplies what its differences lost to rounding by k, here up to 24.
const FORECAST: f64 = 10.0;

const DOUBLE: i32 = 11;
const BOOL: i32 = 9;
const FLOATS: [i32; 4] = [element::FLOAT, element::FLOAT16, element::BFLOAT16, DOUBLE];
/// Where 16 bits lose too much.
const IN_F32: [&str; 14] = [
    "LayerNormalization",
    "Softmax",
    "Pow",
    "Sqrt",
    "Reciprocal",
    "ReduceMean",
    "ReduceSum",
    "Sin",
    "Cos",
    "Range",
    "Exp",
    "Ceil",
    "Round",
    "Mod",
];
const PRODUCTS: [&str; 3] = ["MatMul", "Gemm", "Conv"];

/// Every model of the tests, and the one that ships.
fn models() -> Vec<PathBuf> {
    let families = fs::read_dir(data("families")).unwrap().map(|entry| entry.unwrap().path().join("engine"));
    let mut models: Vec<PathBuf> = families.filter(|path| path.is_dir()).collect();
    assert!(models.len() >= 14);
    models.extend([data("tiny-flux"), emoji()]);
    models.sort();
    models
}

fn element_of(port: &ValueInfoProto) -> i32 {
    port.r#type.as_ref().unwrap().tensor_type.as_ref().unwrap().elem_type.unwrap()
}

fn operator(node: &NodeProto) -> &str {
    node.op_type.as_deref().unwrap()
}

fn is_cast_to(node: &NodeProto, to: i32) -> bool {
    operator(node) == "Cast" && int(node, "to") == Some(to)
}

fn int(node: &NodeProto, name: &str) -> Option<i32> {
    let attribute = node.attribute.iter().find(|attribute| attribute.name.as_deref() == Some(name))?;
    attribute.i.map(|value| value as i32)
}

/// The element type of what a node gives, from what it takes. Operands of two float types would be no ONNX.
fn result(node: &NodeProto, types: &BTreeMap<String, i32>) -> i32 {
    let inputs: Vec<i32> = node.input.iter().filter(|name| !name.is_empty()).map(|name| types[name]).collect();
    let floats: BTreeSet<i32> = inputs.iter().copied().filter(|element| FLOATS.contains(element)).collect();
    assert!(floats.len() <= 1, "{} of {inputs:?}", operator(node));
    let constant = |tensor: Option<&TensorProto>| tensor.map_or(element::FLOAT, |tensor| tensor.data_type.unwrap());
    match operator(node) {
        "Cast" => int(node, "to").unwrap(),
        "Shape" | "Size" => element::INT64,
        "Constant" | "ConstantOfShape" => constant(node.attribute.iter().find_map(|attribute| attribute.t.as_ref())),
        "Equal" | "Less" | "Greater" | "And" | "IsNaN" => BOOL,
        "Where" => inputs[1],
        _ => inputs[0],
    }
}

/// The element type of every value of a graph; that of its ports and of what is said of its values must agree.
fn types(graph: &GraphProto) -> BTreeMap<String, i32> {
    let name = |port: &ValueInfoProto| port.name.clone().unwrap();
    let mut types: BTreeMap<String, i32> = graph.input.iter().map(|port| (name(port), element_of(port))).collect();
    types.extend(graph.initializer.iter().map(|t| (t.name.clone().unwrap(), t.data_type.unwrap())));
    for node in &graph.node {
        let element = result(node, &types);
        for output in node.output.iter().filter(|output| !output.is_empty()) {
            assert_eq!(types.insert(output.clone(), element), None, "{output} is made twice");
        }
    }
    for port in graph.output.iter().chain(&graph.value_info) {
        assert_eq!(types[&name(port)], element_of(port), "{}", name(port));
    }
    types
}

/// The graphs of the transformers, by file, as they are written for other tools.
fn graphs(model: &Path, compute: ComputeChoice, stages: StagesChoice) -> BTreeMap<String, GraphProto> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("stages");
    let load = EngineOptions { compute, stages, ..EngineOptions::default() };
    let files = write_stages(model, &load, &Profile::default(), &out).unwrap();
    let list: Value = serde_json::from_slice(&fs::read(out.join("stages.json")).unwrap()).unwrap();
    let dtype = match compute {
        ComputeChoice::Exported | ComputeChoice::Fp32 => "f32",
        ComputeChoice::Fp16 => "f16",
        ComputeChoice::Bf16 => "bf16",
    };
    assert_eq!(list["compute_dtype"], dtype);
    let of_transformer = files.iter().filter(|file| file.name != "decode");
    let graph = |file: &str| onnx::decode(&fs::read(out.join(file)).unwrap()).unwrap().graph.unwrap();
    of_transformer.map(|file| (file.file.clone(), graph(&file.file))).collect()
}

/// Judges a graph that should compute in `narrow`; how many of its nodes do.
fn check(graph: &GraphProto, narrow: i32) -> usize {
    let types = types(graph);
    let floats = |node: &NodeProto| -> BTreeSet<i32> {
        let inputs = node.input.iter().filter_map(|input| types.get(input).copied());
        inputs.filter(|element| FLOATS.contains(element)).collect()
    };
    for node in &graph.node {
        let name = operator(node);
        if IN_F32.contains(&name) {
            assert!(!floats(node).contains(&narrow), "{name} in 16 bits ({:?})", node.name);
        }
        if PRODUCTS.contains(&name) {
            assert_eq!(floats(node), [narrow].into(), "{name} ({:?})", node.name);
        }
    }
    // To f32 and back is nowhere, and nothing is cast twice.
    let maker: BTreeMap<&String, &NodeProto> =
        graph.node.iter().flat_map(|node| node.output.iter().map(move |output| (output, node))).collect();
    let mut seen = BTreeSet::new();
    for cast in graph.node.iter().filter(|node| is_cast_to(node, narrow)) {
        assert!(seen.insert(&cast.input[0]), "{} is cast twice", cast.input[0]);
        let widened = maker.get(&cast.input[0]).filter(|node| is_cast_to(node, element::FLOAT));
        let from = widened.map(|node| types[&node.input[0]]);
        assert_ne!(from, Some(narrow), "{} goes to f32 and back", cast.input[0]);
    }
    let runs = |node: &&NodeProto| node.output.iter().any(|output| types[output] == narrow);
    graph.node.iter().filter(runs).count()
}

fn ports(graph: &GraphProto) -> (&[ValueInfoProto], &[ValueInfoProto]) {
    (&graph.input, &graph.output)
}

#[test]
fn products_run_in_16_bits_and_the_rest_in_f32_in_every_family() {
    for model in models() {
        for stages in [StagesChoice::PerBlock, StagesChoice::Fused] {
            let exported = graphs(&model, ComputeChoice::Exported, stages);
            assert_eq!(exported, graphs(&model, ComputeChoice::Fp32, stages), "{}", model.display());
            for (choice, narrow) in [(ComputeChoice::Fp16, element::FLOAT16), (ComputeChoice::Bf16, element::BFLOAT16)]
            {
                let cast = graphs(&model, choice, stages);
                assert_eq!(exported.keys().collect::<Vec<_>>(), cast.keys().collect::<Vec<_>>());
                for (file, graph) in &cast {
                    let at = format!("{} {file} {choice}", model.display());
                    assert_eq!(ports(graph), ports(&exported[file]), "{at}");
                    let narrow_nodes = check(graph, narrow);
                    let products = |graph: &GraphProto| {
                        graph.node.iter().filter(|node| PRODUCTS.contains(&operator(node))).count()
                    };
                    assert_eq!(products(graph), products(&exported[file]), "{at}");
                    assert!(products(graph) > 0 && narrow_nodes > products(graph), "{at}");
                }
            }
        }
    }
}

fn run(engine: &Engine, inputs: &Inputs, tag: &str) -> Output {
    let options = RequestOptions { cache: tag.parse().unwrap(), ..RequestOptions::default() };
    engine.request(inputs, &options).unwrap().run(&mut ()).unwrap()
}

/// On the CPU, which computes in f16 what it can and the rest between casts of its own.
#[test]
fn f16_decides_the_same_and_hardly_changes_latents() {
    for (model, inputs, tags) in [
        (data("tiny-flux"), tiny_inputs(false), vec!["none", "f1b0w4r0.3", "f4b4w4r0.3_t1", "prune_f1b0w4r0.3"]),
        (emoji(), Inputs::prompt("lemon"), vec!["none", "f8b8r0.2"]),
    ] {
        let load = |compute| Engine::load(&model, &EngineOptions { compute, ..EngineOptions::default() }).unwrap();
        let (exported, f32, f16) =
            (load(ComputeChoice::Exported), load(ComputeChoice::Fp32), load(ComputeChoice::Fp16));
        assert_eq!((f16.info().compute_dtype.as_str(), f16.info().exported_dtype.as_str()), ("f16", "f32"));
        for tag in tags {
            let [exported, f32, f16] = [&exported, &f32, &f16].map(|engine| run(engine, &inputs, tag));
            assert_eq!(f32.latents, exported.latents, "{tag}");
            let error = relative_l1(&f16.latents, &f32.latents);
            println!("{} {tag}: {error:.1e} {}", model.display(), f16.trace.decisions(Branch::Cond));
            let is_forecast = f16.trace.cache_bytes.calibrators > 0;
            let tolerance = F16_LATENT_RELATIVE_L1 * if is_forecast { FORECAST } else { 1.0 };
            assert!(error > 0.0 && error <= tolerance, "{tag}: {error:e}");
            assert_eq!(f16.trace.decisions(Branch::Cond), f32.trace.decisions(Branch::Cond), "{tag}");
            assert_eq!(
                [&exported, &f32, &f16].map(|output| output.trace.compute),
                [ComputeChoice::Fp32, ComputeChoice::Fp32, ComputeChoice::Fp16]
            );
            assert!(tag == "none" || f16.trace.skipped() > 0, "{tag}");
            // What lies between graphs is f32 as before: the same bytes.
            assert_eq!(f16.trace.cache_bytes, f32.trace.cache_bytes, "{tag}");
            assert_eq!(f16.trace.tensor_bytes, f32.trace.tensor_bytes, "{tag}");
        }
    }
}

/// However blocks are joined, and with the cache's arithmetic among them, the numbers are the same: casts between blocks
/// that are taken out were exact.
#[test]
fn stages_of_any_length_give_the_same_in_f16() {
    let with = |stages, arithmetic| {
        let compute = ComputeChoice::Fp16;
        Engine::load(data("tiny-flux"), &EngineOptions { compute, stages, arithmetic, ..EngineOptions::default() })
            .unwrap()
    };
    let inputs = tiny_inputs(false);
    let blocks = run(&with(StagesChoice::PerBlock, ArithmeticChoice::Graphs), &inputs, "f1b1w4r0.3");
    for (stages, arithmetic) in [
        (StagesChoice::Blocks(5), ArithmeticChoice::Graphs),
        (StagesChoice::Fused, ArithmeticChoice::Auto),
        (StagesChoice::Fused, ArithmeticChoice::Stages),
    ] {
        let joined = run(&with(stages, arithmetic), &inputs, "f1b1w4r0.3");
        assert_eq!(joined.latents, blocks.latents, "{stages} {arithmetic:?}");
        assert_eq!(joined.trace.decisions(Branch::Cond), blocks.trace.decisions(Branch::Cond));
    }
}

#[test]
fn what_cannot_be_cast_is_refused_with_the_remedy() {
    let refused = |option: &str, model: &Path, compute, provider: &str, words: &[&str]| {
        let load = EngineOptions { compute, provider: provider.parse().unwrap(), ..EngineOptions::default() };
        let error = Model::open(model, &load).map(drop).and_then(|()| Engine::load(model, &load).map(drop));
        let error = error.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::Usage, Some(option)), "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    };
    // Exported in 16 bits, as its manifest says.
    for (exported, flag) in [("f16", "fp16"), ("bf16", "bf16")] {
        let copy = Copy::tiny();
        copy.set("/compute_dtype", json!(exported));
        let other = if flag == "fp16" { ComputeChoice::Bf16 } else { ComputeChoice::Fp16 };
        for (compute, asked) in [(ComputeChoice::Fp32, "fp32"), (other, if flag == "fp16" { "bf16" } else { "fp16" })] {
            let words = [
                &format!("the option `compute` is `{asked}`, but this engine was exported with `{flag}`"),
                &format!("or export the model with `dbcache-export --compute {asked}`"),
            ];
            refused("compute", copy.folder.path(), compute, "cuda", &words.map(String::as_str));
        }
        let same = if flag == "fp16" { ComputeChoice::Fp16 } else { ComputeChoice::Bf16 };
        let load = EngineOptions { compute: same, ..EngineOptions::default() };
        assert_eq!(Model::open(copy.folder.path(), &load).unwrap().info().compute_dtype, exported);
    }
    // Operators of which nobody knows what 16 bits do to them, and quantised ones.
    for (operator, reason) in [("DequantizeLinear", "is quantised"), ("MaxPool", "runs an operator of which")] {
        let copy = Copy::tiny();
        copy.model("block_003.onnx", |model| {
            let graph = model.graph.as_mut().unwrap();
            let input = graph.input[0].name.clone().unwrap();
            graph.node.push(onnx::build::node(operator, &[&input], "unread"));
        });
        let (reason, named) = (format!("block_003.onnx {reason}"), format!("(`{operator}`)"));
        let words = ["the option `compute` is `fp16`, but", &reason, &named, "dbcache-export --compute fp16"];
        refused("compute", copy.folder.path(), ComputeChoice::Fp16, "cpu", &words);
    }
    use ComputeChoice::{Bf16, Fp16};
    for (compute, provider, words) in [
        (
            Bf16,
            "cpu",
            [
                "the option `compute` bf16 cannot run on the provider `cpu`",
                "leave it out, or take the option `compute=fp16` or another provider",
            ],
        ),
        (Bf16, "cuda,cpu", ["the option `compute` bf16 cannot run on the provider `cpu`", "in it; leave it out"]),
        (Bf16, "webgpu", ["the option `compute` bf16 cannot run on the provider `webgpu`", "`compute=fp16`"]),
        (
            Fp16,
            "openvino",
            ["the option `compute` fp16 does not decide on the provider `openvino`", "openvino:precision=fp16"],
        ),
    ] {
        refused("compute", &data("tiny-flux"), compute, provider, &words);
        let load = EngineOptions { compute, provider: provider.parse().unwrap(), ..EngineOptions::default() };
        let planned = Model::open(data("tiny-flux"), &load)
            .and_then(|model| model.dry_run(&RequestOptions::default(), None))
            .unwrap_err();
        assert_eq!((planned.kind(), planned.field()), (ErrorKind::Usage, Some("compute")), "{planned}");
    }
    let load = EngineOptions { compute: Fp16, ..EngineOptions::default() };
    let planned = Model::open(data("tiny-flux"), &load)
        .and_then(|model| model.dry_run(&RequestOptions::default(), None))
        .unwrap();
    assert_eq!((planned.compute_dtype.as_str(), &planned.to_json()["compute_dtype"]), ("f16", &json!("f16")));
    let words = ["the option `provider` tensorrt: `fp16` has no effect: this engine's graphs compute in f16"];
    refused("provider", &data("tiny-flux"), ComputeChoice::Fp16, "tensorrt:fp16", &words);
}

#[test]
fn the_command_says_in_which_dtype_it_computes() {
    let shell = Shell::new();
    let inspect = |options: &[&str]| {
        let model = data("tiny-flux");
        shell.run(&[&["inspect", model.to_str().unwrap()], options].concat())
    };
    let said = inspect(&["--json", "--compute", "bf16", "--stages", "fused"]).code(0).json();
    assert_eq!((&said["compute_dtype"], &said["exported_dtype"]), (&json!("bf16"), &json!("f32")));
    assert_ne!(said["stages"], inspect(&["--json", "--stages", "fused"]).code(0).json()["stages"]);
    inspect(&["--compute", "fp16"]).code(0).stdout("computed in f16 (exported in f32)");
    inspect(&[]).code(0).stdout("computed in f32\n");
    shell.run(&["inspect", "x.png", "--compute", "fp16"]).code(2).stderr("have no effect on a picture");
    shell.tiny("--steps 4 --save-latents a").code(0);
    shell.tiny("--steps 4 --compute fp32 --check-outputs a --tolerance 0").code(0);
    shell.tiny("--steps 4 --compute fp16 --check-outputs a --tolerance 0").code(8);
    shell.tiny("--steps 4 --compute fp16 --check-outputs a --tolerance 0.01").code(0);
    // Two runs that differ in it are told apart, and a picture says how it was made.
    let traced = "--steps 6 --cache f1b0w2r0.9 --quiet";
    shell.tiny(&format!("{traced} --trace a.json")).code(0);
    shell.tiny(&format!("{traced} --compute fp16 --trace b.json")).code(0);
    let said = shell.run(&["trace", "diff", "a.json", "b.json", "--json"]).code(0).json();
    assert_eq!(said["comparisons"][0]["settings"], json!([{ "name": "compute", "a": "fp32", "b": "fp16" }]));
    let mut damaged = shell.json("b.json");
    damaged[0]["compute"] = json!("exported");
    fs::write(shell.path("c.json"), damaged.to_string()).unwrap();
    shell.run(&["trace", "diff", "a.json", "c.json"]).code(5).stderr("`fp32`, `fp16` or `bf16`");
    shell.lemon("--steps 2 --compute fp16 -o half.png").code(0);
    shell.run(&["inspect", "half.png"]).code(0).stdout("compute          fp16");
}
