//! Damaged and hostile engine directories: each is refused with a message that says what is wrong. None may panic, hang,
//! abort, or load silently. (Graphs: `damaged_graphs.rs`.)

use std::fs;

use crate::common::damage::{Cases, Copy, WEIGHTS, load, set};
use crate::common::tiny_inputs;
use dbcache_trt::ErrorKind::{EngineDirectory, Input, Runtime};
use dbcache_trt::{Engine, EngineOptions, Inputs, Model, RequestOptions};
use serde_json::{Value, json};

#[test]
fn an_undamaged_copy_loads() {
    load(Copy::tiny().folder.path(), &EngineOptions { verify: true, ..Default::default() }).unwrap();
    load(Copy::emoji().folder.path(), &EngineOptions::default()).unwrap();
}

#[test]
fn folders_and_files() {
    let mut cases = Cases::default();
    let mut check = |name: &str, damage: fn(&Copy), words: &[&str]| cases.check(name, damage, EngineDirectory, words);
    check("no folder", |e| fs::remove_dir_all(e.path("")).unwrap(), &["does not exist", "exporter"]);
    check("no manifest", |e| fs::remove_file(e.path("manifest.json")).unwrap(), &["manifest.json is missing"]);
    check("empty manifest", |e| e.bytes("manifest.json", Vec::clear), &["manifest.json", "does not parse", "EOF"]);
    check("half a manifest", |e| e.bytes("manifest.json", |b| b.truncate(b.len() / 2)), &["does not parse", "EOF"]);
    check("not JSON", |e| e.bytes("manifest.json", |b| *b = b"\x89PNG".to_vec()), &["does not parse"]);
    check("not UTF-8", |e| e.bytes("manifest.json", |b| b[60] = 0xff), &["does not parse"]);
    check("two manifests in one", |e| e.bytes("manifest.json", |b| b.extend(b.clone())), &["trailing characters"]);
    check("brackets", |e| e.bytes("manifest.json", |b| *b = vec![b'['; 1 << 20]), &["does not parse"]);
    check("NaN", |e| guidance(e, "NaN"), &["does not parse", "expected value"]);
    check("infinity", |e| guidance(e, "1e999"), &["does not parse", "number out of range"]);
    check("17 MB", |e| e.bytes("manifest.json", |b| b.resize(17 << 20, b' ')), &["at most 16777216 are read"]);
    check("missing graph", |e| fs::remove_file(e.path("block_003.onnx")).unwrap(), &["block_003.onnx is missing"]);
    check("extra graph", |e| fs::write(e.path("block_012.onnx"), "").unwrap(), &["block_012.onnx", "not named"]);
    check("extra weights", |e| fs::write(e.path("b.safetensors"), "").unwrap(), &["b.safetensors", "not named"]);
    check("cut graph", |e| e.bytes("embed.onnx", |b| b.truncate(100)), &["embed.onnx", "SHA-256 differ"]);
    check("flipped bit", |e| e.bytes("final.onnx", |b| b[700] ^= 1), &["final.onnx", "SHA-256 differ"]);
    check("swapped blocks", |e| swap(e, "block_005.onnx", "block_006.onnx"), &["block_005.onnx", "SHA-256 differ"]);
    check("swapped in the manifest", swap_names, &["block_006.onnx", "SHA-256 differ"]);
    check("a folder as graph", |e| folder_instead(e, "final.onnx"), &["final.onnx is not a regular file"]);
    check("a folder as weights", |e| folder_instead(e, WEIGHTS), &["is not a regular file"]);
    check("huge graph", |e| grow(e, "final.onnx"), &["final.onnx has 68157440 bytes; at most"]);
    #[cfg(unix)]
    for name in ["manifest.json", "block_000.onnx", WEIGHTS] {
        check_link(&mut cases, name);
    }
}

/// Writes what no JSON value can hold.
fn guidance(engine: &Copy, number: &str) {
    engine.bytes("manifest.json", |bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        let changed = text.replace("\"default\": 3.5", &format!("\"default\": {number}"));
        assert_ne!(changed, text);
        *bytes = changed.into_bytes();
    });
}

fn swap(engine: &Copy, a: &str, b: &str) {
    fs::rename(engine.path(a), engine.path("c")).unwrap();
    fs::rename(engine.path(b), engine.path(a)).unwrap();
    fs::rename(engine.path("c"), engine.path(b)).unwrap();
}

fn swap_names(engine: &Copy) {
    engine.set("/blocks/6/file", json!("block_005.onnx"));
    engine.set("/blocks/5/file", json!("block_006.onnx"));
}

fn folder_instead(engine: &Copy, name: &str) {
    fs::remove_file(engine.path(name)).unwrap();
    fs::create_dir(engine.path(name)).unwrap();
}

fn grow(engine: &Copy, name: &str) {
    fs::OpenOptions::new().write(true).open(engine.path(name)).unwrap().set_len(65 << 20).unwrap();
}

#[cfg(unix)]
fn check_link(cases: &mut Cases, name: &str) {
    let link = |e: &Copy| {
        fs::rename(e.path(name), e.path("elsewhere")).unwrap();
        std::os::unix::fs::symlink(e.path("elsewhere"), e.path(name)).unwrap();
    };
    cases.check(&format!("{name} is a link"), link, EngineDirectory, &[name, "links are refused"]);
}

/// The manifest's own rules, as (what, where, value, words).
#[test]
fn manifests() {
    let mut cases = Cases::default();
    for (name, pointer, value, words) in [
        ("version 1", "/format_version", json!(1), "has format version 1, but this engine reads version 2; export"),
        (
            "version 3",
            "/format_version",
            json!(3),
            "format version 3, but this engine reads version 2; export the model again",
        ),
        ("version text", "/format_version", json!("1"), "does not parse"),
        ("negative version", "/format_version", json!(-1), "does not parse"),
        ("opset", "/opset", json!(21), "expected 20 or 23"),
        ("integers", "/compute_dtype", json!("i64"), "expected a float type"),
        ("dtype", "/tensors/temb/dtype", json!("f64"), "unknown variant `f64`"),
        ("huge dimension", "/dimensions/text/max", json!(u64::MAX), "dimension `text`"),
        ("empty range", "/dimensions/text/min", json!(513), "dimension `text`"),
        ("zero dimension", "/dimensions/batch/min", json!(0), "dimension `batch`"),
        ("negative dimension", "/dimensions/batch/min", json!(-1), "does not parse"),
        ("empty sum", "/dimensions/total/sum", json!([]), "dimension `total`"),
        ("sum of sums", "/dimensions/total/sum", json!(["total", "image"]), "dimension `total` adds `total`"),
        ("unknown dimension", "/tensors/temb/shape/0", json!("people"), "unknown dimension `people`"),
        ("zero axis", "/tensors/temb/shape/1", json!(0), "tensor `temb` has an absurd shape"),
        ("huge axis", "/tensors/temb/shape/1", json!(u64::MAX), "tensor `temb` has an absurd shape"),
        ("fractional axis", "/tensors/temb/shape/1", json!(64.5), "does not parse"),
        ("axes that overflow", "/tensors/temb/shape", json!([1u64 << 40, 1u64 << 40]), "absurd shape"),
        ("per", "/inputs/latents/per", json!("request"), "input `latents` has the wrong `per`"),
        ("from", "/inputs/latents/from", json!("noise"), "unknown variant `noise`"),
        (
            "two latents",
            "/inputs/guidance",
            json!({"per": "step", "from": "latents"}),
            "two inputs come from `latents`",
        ),
        ("no latents", "/inputs/latents", json!({"per": "request", "from": "zeros"}), "no input comes from `latents`"),
        ("no sigma", "/inputs/timestep", json!({"per": "request", "from": "zeros"}), "no input comes from `sigma`"),
        ("sigma for each token", "/tensors/timestep/shape", json!(["image"]), "`timestep`"),
        ("grid of other rows", "/tensors/img_ids/shape", json!(["text", 3]), "`img_ids`"),
        ("grid of 4", "/tensors/img_ids/shape", json!(["image", 4]), "`img_ids`"),
        ("half precision latents", "/tensors/latents/dtype", json!("f16"), "input `latents` has a dtype"),
        ("half precision prediction", "/tensors/prediction/dtype", json!("f16"), "must be f32"),
        ("other prediction", "/tensors/prediction/shape/2", json!(8), "differ in shape"),
        ("unused input", "/embed/inputs", json!(["latents", "timestep"]), "is not taken by `embed`"),
        ("unknown input", "/embed/inputs/0", json!("noise"), "`embed` takes `noise`"),
        ("an input twice", "/embed/inputs/0", json!("timestep"), "`embed`"),
        ("unknown output", "/embed/outputs/2", json!("time"), "`tensors` lacks `time`"),
        (
            "an output twice",
            "/embed/outputs",
            json!(["hidden_states", "encoder_hidden_states", "temb", "temb", "rotary_cos", "rotary_sin"]),
            "`embed` names `temb` twice",
        ),
        (
            "embed writes an input",
            "/embed/outputs",
            json!(["hidden_states", "encoder_hidden_states", "temb", "rotary_cos", "rotary_sin", "timestep"]),
            "`embed` gives `timestep`",
        ),
        ("no streams", "/streams", json!([]), "`streams` has 0 entries"),
        ("stream twice", "/streams/1", json!("hidden_states"), "`streams` names one twice"),
        ("stream from nowhere", "/streams/1", json!("prediction"), "stream `prediction` is not an output of `embed`"),
        ("integer stream", "/tensors/hidden_states/dtype", json!("i64"), "must be a float tensor"),
        ("block gives no stream", "/block_kinds/double/outputs/1", json!("temb"), "`temb`, which is not a stream"),
        ("block gives nothing", "/block_kinds/double/outputs", json!([]), "gives nothing"),
        ("block takes too late", "/block_kinds/double/inputs/2", json!("prediction"), "which nothing before it gives"),
        ("block takes text", "/block_kinds/double/inputs/2", json!("prompt_embeds"), "`prompt_embeds`"),
        ("block gives untaken", "/block_kinds/double/inputs", json!(["hidden_states"]), "without taking it"),
        ("unknown kind", "/blocks/3/kind", json!("triple"), "block 3 is of the unknown kind `triple`"),
        ("no blocks", "/blocks", json!([]), "`blocks` has 0 entries"),
        ("two predictions", "/final/outputs", json!(["prediction", "temb"]), "`final` has 2 outputs"),
        ("prediction kind", "/prediction/kind", json!("noise"), "unknown variant `noise`"),
        ("min_sigma 0", "/prediction", json!({"kind": "sample", "min_sigma": 0}), "`prediction.min_sigma` is 0"),
        ("no patch", "/latents/patch", json!(0), "`latents` has a number outside"),
        ("huge channels", "/latents/channels", json!(u64::MAX), "`latents` has a number outside"),
        ("wrong channels", "/latents/channels", json!(8), "must have the shape [batch, image, 32]"),
        ("odd multiple", "/size/multiple_of", json!(3), "expected a multiple of downscale x patch = 2"),
        ("no multiple", "/size/multiple_of", json!(0), "expected a multiple"),
        ("size range", "/size/max", json!(u64::MAX), "expected 1 <= min <= max"),
        ("odd default", "/size/default", json!([16, 17]), "`size.default` has a side of 17"),
        ("large default", "/size/default", json!([64, 16]), "`size.default` has a side of 64"),
        ("three sides", "/size/default", json!([16, 16, 16]), "does not parse"),
        ("default that never fits", "/dimensions/image/max", json!(63), "`size.default`"),
        ("shift 0", "/scheduler/shift", json!({"kind": "static", "shift": 0}), "impossible number"),
        ("shift terminal", "/scheduler/shift_terminal", json!(2), "impossible number"),
        ("dynamic shift", "/scheduler/shift", dynamic(4096, 4096, 1.15), "impossible number"),
        ("overflowing shift", "/scheduler/shift", dynamic(16, 4096, 1e300), "impossible number"),
        (
            "guidance without input",
            "/guidance",
            json!({"kind": "classifier_free", "default": 3.5, "mode": "separate", "order": ["cond", "uncond"],
                   "formula": "standard", "rescale": 0, "scale": "constant"}),
            "`guidance.kind` is `embedded` exactly if",
        ),
        ("input without guidance", "/inputs/guidance/from", json!("zeros"), "`guidance.kind` is `embedded` exactly if"),
        ("infinite guidance", "/guidance/default", json!(1e300), "`guidance.default`"),
        ("no steps", "/defaults/steps", json!(0), "`defaults.steps` is 0"),
        ("endless steps", "/defaults/steps", json!(u64::MAX), "expected 1 to 10000"),
        ("negative steps", "/defaults/steps", json!(-28), "does not parse"),
        ("text without graphs", "/text", json!({"tokenizers": {}, "graphs": [], "unconditional": ""}), "`text`"),
        ("decode without ports", "/decode", graph(&[], &[]), "`decode`"),
        ("decode of latents", "/decode", graph(&["latents"], &["prediction"]), "`decode`"),
        ("separator", "/final/file", json!("a/final.onnx"), "not a plain file name"),
        ("backslash", "/final/file", json!("a\\final.onnx"), "not a plain file name"),
        ("parent", "/blocks/0/file", json!("../block_000.onnx"), "not a plain file name"),
        ("absolute", "/embed/file", json!("/etc/passwd"), "not a plain file name"),
        ("hidden", "/embed/file", json!(".embed.onnx"), "not a plain file name"),
        ("nothing", "/embed/file", json!(""), "not a plain file name"),
        ("zero byte", "/embed/file", json!("embed\0.onnx"), "not a plain file name"),
        ("long name", "/embed/file", json!("e".repeat(5000)), "not a plain file name"),
        ("weights elsewhere", "/weights/0/file", json!("../transformer.safetensors"), "not a plain file name"),
        ("named twice", "/final/file", json!("embed.onnx"), "file `embed.onnx` is named twice"),
        ("size", "/final/bytes", json!(u64::MAX), "final.onnx is not the file that was exported"),
        ("short hash", "/final/sha256", json!("2fe4"), "not a lower-case SHA-256"),
        ("upper case hash", "/final/sha256", json!("A".repeat(64)), "not a lower-case SHA-256"),
    ] {
        cases.check(
            name,
            |e| e.set(pointer, value),
            EngineDirectory,
            &["manifest.json", words][usize::from(name == "size")..],
        );
    }
}

fn dynamic(base_tokens: u64, max_tokens: u64, max_shift: f64) -> Value {
    json!({"kind": "dynamic", "base_tokens": base_tokens, "max_tokens": max_tokens, "base_shift": 0.5,
           "max_shift": max_shift, "time_shift": "exponential"})
}

fn graph(inputs: &[&str], outputs: &[&str]) -> Value {
    json!({"file": "decode.onnx", "bytes": 1, "sha256": "0".repeat(64), "inputs": inputs, "outputs": outputs})
}

#[test]
fn weights() {
    let mut cases = Cases::default();
    let mut check = |name: &str, damage: fn(&Copy), words: &[&str]| {
        cases.check(name, damage, EngineDirectory, &[&["weights `transformer.safetensors`"], words].concat());
    };
    check("missing", |e| fs::remove_file(e.path(WEIGHTS)).unwrap(), &["cannot be opened", "`weights`", "--pack"]);
    check("cut", |e| e.bytes(WEIGHTS, |b| b.truncate(b.len() - 4)), &["has 2337276 bytes, the manifest says 2337280"]);
    check("longer", |e| e.bytes(WEIGHTS, |b| b.push(0)), &["has 2337281 bytes"]);
    check(
        "another file of equal size",
        |e| e.bytes(WEIGHTS, |b| another(b)),
        &["the header has the SHA-256", "was replaced"],
    );
    check("header longer than the file", |e| e.lie(WEIGHTS, |b| b[4] = 1), &["its header is longer than the file"]);
    check("endless header", |e| e.lie(WEIGHTS, |b| b[..8].fill(0xff)), &["its header is longer than the file"]);
    check("a file of four bytes", |e| e.lie(WEIGHTS, |b| b.truncate(4)), &["is not a safetensors file"]);
    check("empty file", |e| e.lie(WEIGHTS, Vec::clear), &["is not a safetensors file"]);
    check("header not JSON", |e| e.header(|_| "{".into()), &["the safetensors header does not parse"]);
    check("header not UTF-8", |e| e.lie(WEIGHTS, |b| b[9] = 0xff), &["the safetensors header does not parse"]);
    check("header that overlaps", |e| e.header(|h| h.replacen(":[0,", ":[4,", 1)), &["does not parse", "offset"]);
    check("header of unknown dtype", |e| e.header(|h| h.replace("F16", "F17")), &["does not parse", "F17"]);
    check("header that overflows", |e| e.header(overflow), &["does not parse"]);
    check("header past the end", |e| e.lie(WEIGHTS, |b| b.truncate(b.len() - 4)), &["runs past the end of the file"]);
    check("no folder", |e| weights_in(e, "nowhere"), &["nowhere", "`weights`", "--pack"]);
    check("a file as folder", |e| weights_in(e, "final.onnx"), &["final.onnx", "`weights`"]);
    let unhashed = |e: &Copy| e.set("/weights/0/header_sha256", json!("315B"));
    cases.check("no hash", unhashed, EngineDirectory, &["hash of `transformer.safetensors`", "lower-case"]);
    let unnamed = |e: &Copy| e.set("/weights", json!([]));
    cases.check("unnamed", unnamed, EngineDirectory, &["transformer.safetensors is not named by the manifest"]);
    let renamed = |e: &Copy| e.set("/weights/0/name", json!("w.safetensors"));
    cases.check("renamed", renamed, EngineDirectory, &["embed.onnx: initialiser `", "`weights` does not name"]);

    // Of the data only --verify knows; all else is checked at each load.
    let copy = Copy::tiny();
    copy.bytes(WEIGHTS, |bytes| *bytes.last_mut().unwrap() ^= 1);
    load(copy.folder.path(), &EngineOptions::default()).unwrap();
    let verify = EngineOptions { verify: true, ..Default::default() };
    let words = ["transformer.safetensors has the SHA-256", "the weights were changed"];
    cases.judge("flipped data", load(copy.folder.path(), &verify), EngineDirectory, &words);
    let copy = Copy::tiny();
    copy.set("/weights/0/sha256", Value::Null);
    load(copy.folder.path(), &EngineOptions::default()).unwrap();
    let words = ["cannot verify transformer.safetensors", "keep the content hash"];
    cases.judge("no content hash", load(copy.folder.path(), &verify), EngineDirectory, &words);
    let elsewhere = EngineOptions { weights_folder: Some("nowhere".into()), ..Default::default() };
    let words = ["folder nowhere cannot be opened", "`weights`"];
    cases.judge("other folder", load(copy.folder.path(), &elsewhere), EngineDirectory, &words);
}

fn weights_in(engine: &Copy, folder: &str) {
    fs::remove_file(engine.path(WEIGHTS)).unwrap();
    engine.set("/weights/0/folder", json!(folder));
}

/// Another safetensors file of the same size: its first two parameters have changed their names.
fn another(bytes: &mut [u8]) {
    let text = String::from_utf8_lossy(&bytes[8..4096]).into_owned();
    let at = 8 + text.find("weight").unwrap();
    bytes[at..at + 6].copy_from_slice(b"wright");
}

fn overflow(header: &str) -> String {
    let begin = header.find("[0,").unwrap();
    let end = begin + header[begin..].find(']').unwrap();
    header[..begin].to_owned() + "[0,18446744073709551615" + &header[end..]
}

/// How many tokens each text graph takes and gives (`models/README.md`, "text").
#[test]
fn lengths_of_texts() {
    let mut cases = Cases::default();
    let mut check = |name: &str, pointer: &str, value: Option<Value>, words: &[&str]| {
        let damage = |e: &Copy| e.manifest(|manifest| set(manifest, pointer, value));
        cases.check_sd3(name, damage, EngineDirectory, words);
    };
    let t5 = "/text/tokenizers/t5";
    let multiple = format!("{t5}/multiple_of");
    check("multiple of nothing", &multiple, Some(json!(0)), &["no multiple of 0"]);
    check("multiple of others", &multiple, Some(json!(3)), &["no multiple of 3"]);
    check("multiple and one length", &multiple, Some(json!(2)), &["has `multiple_of` and one length"]);
    check(
        "other length",
        &format!("{t5}/length"),
        Some(json!(255)),
        &["text_002.onnx", "[batch, 256]", "[batch, 255]"],
    );
    check(
        "dynamic",
        &format!("{t5}/padding"),
        Some(json!("longest")),
        &["text_002.onnx", "[batch, 256]", "[batch, t5]"],
    );
    check("length of tokens", "/text/graphs/2/length", Some(json!(256)), &["text_002.onnx states a `length`"]);
    let joined = "/text/graphs/3/length";
    check("joined without length", joined, None, &["text_003.onnx", "`text`", "state its `length`"]);
    check("joined and longer than any", joined, Some(json!(9999)), &["text_003.onnx gives 9999 along `text`"]);
    let (long, slow) = (json!("a".repeat(200_000)), json!([{"replace": {"pattern": "(a+)+$", "with": ""}}]));
    check(
        "long prefix",
        &format!("{t5}/prefix"),
        Some(long),
        &["`t5` puts 200000 bytes around a prompt", "expected at most 16384"],
    );
    check("slow pattern", "/text/clean", Some(slow), &["`text.clean`", "`(a+)+$`", "export again"]);
    check("joined of nothing", joined, Some(json!(0)), &["text_003.onnx gives 0 along `text`"]);
}

#[test]
fn texts() {
    let mut cases = Cases::default();
    let mut check = |name: &str, damage: fn(&Copy), words: &[&str]| {
        cases.check_emoji(name, damage, EngineDirectory, words);
    };
    check("changed tokenizer", |e| e.bytes("words.json", |b| b[700] ^= 1), &["words.json", "SHA-256 differ"]);
    check("missing tokenizer", |e| fs::remove_file(e.path("words.json")).unwrap(), &["words.json is missing"]);
    check("half a tokenizer", |e| e.lie("words.json", |b| b.truncate(900)), &["words.json", "parse as a tokenizer"]);
    check(
        "unknown tokenizer",
        |e| e.lie("words.json", |b| *b = b"{}".to_vec()),
        &["words.json", "parse as a tokenizer"],
    );
    check("unconditional", |e| e.set("/text/unconditional", json!("nothing")), &["`text.unconditional`", "`nothing`"]);
    check(
        "padding token",
        |e| e.set("/text/tokenizers/words/pad_id", json!(4_000_000)),
        &["words.json", "no token 4000000"],
    );
    check(
        "unknown token",
        |e| e.set("/text/tokenizers/words/unknown_id", json!(4_000_000)),
        &["words.json", "no token 4000000"],
    );
    check("tokens", |e| e.set("/text/tokenizers/words/length", json!(9)), &["text_000.onnx", "gives 9 along `text`"]);
    check("no tokens", |e| e.set("/text/tokenizers/words/length", json!(0)), &["has the length 0; expected 1 to"]);
    check("all tokens", |e| e.set("/text/tokenizers/words/length", json!(u64::MAX)), &["expected 1 to 65536"]);
    check(
        "cut tokenizer",
        |e| e.lie("words.json", |b| *b = br#"{"decoder":{"#.to_vec()),
        &["words.json", "does not parse as a tokenizer"],
    );
    check(
        "hostile tokenizer",
        |e| e.lie("words.json", |b| *b = hostile_tokenizer(b)),
        &["words.json: `normalizer`: puts in 100 bytes", "export again"],
    );
    check("other tokenizer", |e| e.set("/text/graphs/0/inputs/input_ids/tokenizer", json!("t5")), &["tokenizer `t5`"]);
    check("no text graphs", |e| e.set("/text/graphs", json!([])), &["`text` has no graphs"]);
    check("no tokens taken", |e| e.set("/text/graphs/0/inputs", json!({})), &["`text`"]);
    check(
        "text from nowhere",
        |e| e.set("/text/graphs/0/outputs/0", json!("temb")),
        &["text output `temb` is not an input"],
    );
    check("decode dtype", |e| e.set("/tensors/image/dtype", json!("i64")), &["`decode`", "`image`"]);
    check("decode shape", |e| e.set("/tensors/image/shape/1", json!(4)), &["`decode`", "`image`"]);
    check("decode input", |e| e.set("/tensors/image_latents/shape/1", json!(4)), &["`decode`", "`image_latents`"]);
    check("picture of tokens", |e| e.set("/tensors/image/shape/2", json!("image")), &["`decode`", "`image`"]);
    check("sample without sigma", |e| e.set("/prediction/min_sigma", json!(0)), &["`prediction.min_sigma` is 0"]);
    check("unbounded sigma", |e| e.set("/prediction/min_sigma", json!(1)), &["`prediction.min_sigma` is 1"]);
    check("dimension of nothing", ghost, &["dimension `ghost`"]);
}

/// Lists of blocks, of a model that has two kinds of them.
#[test]
fn lists_of_blocks() {
    let mut cases = Cases::default();
    for (name, pointer, value, words) in [
        ("joined text", "/lists/1/joined", json!("yes"), "does not parse"),
        ("joins nothing", "/lists/0/joined", json!(true), "list `transformer_blocks` is `joined`, but holds a block"),
        ("one too many", "/lists/1/blocks", json!(5), "`lists` hold 9 blocks"),
        ("more than counts", "/lists/1/blocks", json!(u64::MAX), "`lists` hold"),
    ] {
        let copy = Copy::family("flux2");
        copy.set(pointer, value);
        cases.judge(name, load(copy.folder.path(), &EngineOptions::default()), EngineDirectory, &[words]);
    }
}

/// A graph's port with an axis that neither the picture nor the text gives.
fn ghost(engine: &Copy) {
    engine.set("/dimensions/ghost", json!({"min": 1, "max": 8}));
    engine.set("/tensors/temb/shape/0", json!("ghost"));
}

/// What the next test may find to load, by the start of pointer and replacement.
const LEGAL: &[&str] = &[
    "/name ",
    "/block_kinds/double/joins_streams true", // what is compared is a matter of the model
    "/block_kinds/single/joins_streams false",
    "/description ",
    "/license/",
    "/exported_with",
    "/guidance/default ",
    // Graphs with dynamic axes fit any sum; ONNX Runtime refuses the first step (`requests`).
    "/dimensions/total/sum/",
    // serde takes the number of a variant for its name: 0 is `none`.
    "/scheduler/shift/kind 0",
    "/scheduler/noise/kind 0",
    "/scheduler/sigmas/kind 0",
    "/scheduler/shift_terminal 0",
    // Betas may fall, or be nothing; a run whose numbers are not finite is refused.
    "/scheduler/betas/start 0",
    "/scheduler/betas/end 0",
    "/scheduler/noise/start 0",
    "/scheduler/noise/end 0",
    "/lists/0/name ",
    "/lists/1/name ",
    "/lists/1/joined removed",
    "/low_noise/guidance ",
    "/guidance/rescale 0",
    "/guidance/needs_negative removed",
    // What fills the labels of the uncond branch is a matter of the model.
    "/inputs/class_labels/from/given/unconditional ",
    // Known once the tokenizer is read, which comes later (`texts`).
    "/text/tokenizers/words/unknown_id ",
    "/text/unconditional ",
    // Any text may stand around a prompt; what it becomes is known once the tokenizer is read.
    "/text/tokenizers/words/prefix \"x\"",
    "/text/tokenizers/words/suffix \"x\"",
    "/text/tokenizers/words/multiple_of removed",
    // Without a content hash --verify refuses.
    "/weights/0/sha256 null",
    "/weights/1/sha256 null",
];

/// Every value of a manifest, removed and replaced by whatever JSON can say: refused, or listed above.
#[test]
fn every_field() {
    let values = [json!(-1), json!(0), json!(u64::MAX), json!(1e300), json!("x"), json!([]), Value::Null];
    let replacements = values.map(Some).into_iter().chain([None]);
    let mut cases = Cases::default();
    let of_families = ["/lists", "/latents", "/video", "/scheduler", "/guidance", "/prediction", "/inputs"];
    for (copy, parts) in [
        (Copy::tiny(), [""].as_slice()),
        (Copy::emoji(), &["/text", "/decode", "/tensors/image"]),
        // What neither of them says.
        (Copy::family("wan"), &of_families),
        (Copy::family("pixart"), &of_families),
        (Copy::family("dit"), &of_families),
        (Copy::family("wan_two"), &["/low_noise"]),
        (Copy::family("flux2"), &["/lists"]),
        (Copy::family("qwen_image"), &["/guidance"]),
    ] {
        let manifest: Value = serde_json::from_slice(&fs::read(copy.path("manifest.json")).unwrap()).unwrap();
        let wanted = |pointer: &String| parts.iter().any(|part| pointer.starts_with(part));
        for pointer in pointers(&manifest, "").into_iter().filter(wanted) {
            for replacement in replacements.clone().filter(|value| manifest.pointer(&pointer) != value.as_ref()) {
                let mut damaged = manifest.clone();
                set(&mut damaged, &pointer, replacement.clone());
                fs::write(copy.path("manifest.json"), serde_json::to_vec(&damaged).unwrap()).unwrap();
                let name = format!("{pointer} {}", replacement.map_or("removed".into(), |value| value.to_string()));
                let outcome = Model::open(copy.folder.path(), &EngineOptions::default()).map(drop);
                if outcome.is_err() || !LEGAL.iter().any(|legal| name.starts_with(legal)) {
                    let outcome = outcome.map_err(|error| (error.kind(), error.to_string()));
                    cases.judge(&name, outcome, EngineDirectory, &[]);
                }
            }
        }
    }
}

/// The pointers of all values but the root.
fn pointers(value: &Value, at: &str) -> Vec<String> {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(object) => object.iter().map(|(key, value)| (format!("{at}/{key}"), value)).collect(),
        Value::Array(list) => list.iter().enumerate().map(|(index, value)| (format!("{at}/{index}"), value)).collect(),
        _ => Vec::new(),
    };
    inner.into_iter().flat_map(|(at, value)| [vec![at.clone()], pointers(value, &at)].concat()).collect()
}

/// What no check at load can know is an error of the request, never a wrong picture.
#[test]
fn requests() {
    let mut cases = Cases::default();
    let mut check = |name: &str, copy: Copy, inputs: Inputs, options: RequestOptions, kind, words: &[&str]| {
        let engine = Engine::load(copy.folder.path(), &EngineOptions::default()).unwrap();
        let outcome = engine.request(&inputs, &options).and_then(|request| request.run(&mut ())).map(drop);
        cases.judge(name, outcome.map_err(|error| (error.kind(), error.to_string())), kind, words);
    };
    let one_step = || RequestOptions { steps: Some(1), ..Default::default() };
    let copy = Copy::tiny();
    copy.set("/dimensions/total/sum", json!(["image"]));
    check("wrong sum", copy, tiny_inputs(false), one_step(), Runtime, &["step 0: cond: ", "embed and blocks 0..5"]);

    let copy = Copy::tiny();
    copy.set("/scheduler/shift", dynamic(0, 1, 100.0));
    check("shift", copy, tiny_inputs(false), one_step(), EngineDirectory, &["sigmas do not lie between 0 and 1"]);

    let copy = Copy::emoji();
    copy.set("/dimensions/batch/max", json!(1));
    let two = RequestOptions { batch: Some(2), ..one_step() };
    check(
        "batch",
        copy,
        Inputs::prompt("lemon"),
        two,
        Input,
        &["dimension `batch` would be 2; the model takes 1 to 1"],
    );
}

/// Five replacements of `a` by a hundred of it.
fn hostile_tokenizer(bytes: &[u8]) -> Vec<u8> {
    let mut file: Value = serde_json::from_slice(bytes).unwrap();
    let grow = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(100)});
    file["normalizer"] = json!({"type": "Sequence", "normalizers": vec![grow; 5]});
    serde_json::to_vec(&file).unwrap()
}

/// Folders that are on other machines are not opened.
#[test]
fn folders_elsewhere() {
    let mut cases = Cases::default();
    for folder in [
        "//host/share",
        r"\\host\share",
        r"\\?\UNC\host\share",
        r"/\host\share",
        "smb://host/share",
        "file:///tmp",
        "nfs:/tmp",
    ] {
        let words = ["manifest.json", "on another machine or device", "with the option `weights`"];
        cases.check(folder, |e| e.set("/weights/0/folder", json!(folder)), EngineDirectory, &words);
    }
}
