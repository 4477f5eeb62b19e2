//! The JSON texts of the library hold what docs/json.md names: each member in its place, of its type, always or not.
//!
//! A module of the library, because its functions can be called from nowhere else in Rust.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char};
use std::fs;
use std::path::PathBuf;
use std::ptr;

use dbcache::cache::Reason;
use dbcache::trace::{CaptureCounts, Exchanged, Ranks};
use dbcache::{BuildCounts, Engine, EngineOptions, Inputs, Method, Model, PlannedBuild, RequestOptions};
use ndarray::{ArrayD, IxDyn};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::engine::{dbcache_engine, dbcache_engine_free, dbcache_engine_info, dbcache_engine_load};
use crate::engine::{dbcache_inspect, dbcache_plan};
use crate::error::dbcache_error;
use crate::options::dbcache_options_set;
use crate::options::{dbcache_options, dbcache_options_free, dbcache_options_names, dbcache_options_new};
use crate::result::{dbcache_result, dbcache_result_statistics, dbcache_result_trace};
use crate::version::dbcache_build_info;

/// A row of a table of the page.
struct Row {
    types: BTreeSet<String>,
    is_always: bool,
}

type Rows = BTreeMap<String, Row>;

/// The rows of a section; a section that adds to another one has those of both.
fn rows(page: &str, name: &str) -> (Rows, Rows) {
    let section = page.split("\n## ").find(|section| section.lines().next() == Some(name));
    let section = section.unwrap_or_else(|| panic!("docs/json.md has no section {name}"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [path, types, _, when, meaning] = cells[..] else { panic!("not five cells: {line}") };
        assert!(meaning.ends_with('.') && !when.is_empty(), "{line}");
        let types = types.split(" or ").map(str::to_owned).collect();
        (path.trim_matches('`').to_owned(), Row { types, is_always: when == "always" })
    };
    let own = section.lines().filter(|line| line.starts_with("| `")).map(row).collect();
    let other = section.split_once("The members of `").and_then(|(_, rest)| rest.split_once('`'));
    (own, other.map(|(other, _)| rows(page, other).0).unwrap_or_default())
}

/// What was found at one place of the texts of a kind.
#[derive(Default)]
struct Seen {
    types: BTreeSet<&'static str>,
    times: usize,
    /// How often the object around it was there.
    parents: usize,
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "whole number",
        Value::String(_) => "text",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

/// Notes each member by its path: `a.b`, `a[]` for what a list holds, `a.*` where the page says that names are free.
fn walk(value: &Value, path: &str, known: &BTreeSet<&String>, seen: &mut BTreeMap<String, Seen>) {
    let is_open = path.ends_with(".*") && known.contains(&path.to_owned());
    match value {
        Value::Array(items) if !is_open => {
            let path = format!("{path}[]");
            for item in items {
                note(item, &path, seen);
                walk(item, &path, known, seen);
            }
        }
        Value::Object(members) if !is_open => {
            let path_of = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            let free = path_of("*");
            for (name, member) in members {
                let path = if known.contains(&free) { free.clone() } else { path_of(name) };
                note(member, &path, seen);
                walk(member, &path, known, seen);
            }
            seen.entry(path.to_owned()).or_default().parents += 1;
        }
        _ => {}
    }
}

fn note(value: &Value, path: &str, seen: &mut BTreeMap<String, Seen>) {
    let seen = seen.entry(path.to_owned()).or_default();
    seen.types.insert(type_of(value));
    seen.times += 1;
}

/// The object or list around a path.
fn parent(path: &str) -> &str {
    path.strip_suffix("[]").unwrap_or_else(|| path.rsplit_once('.').map_or("", |(parent, _)| parent))
}

fn check(page: &str, name: &str, texts: &[Value]) {
    let (own, others) = rows(page, name);
    let known: BTreeSet<&String> = own.keys().chain(others.keys()).collect();
    let mut seen = BTreeMap::new();
    texts.iter().for_each(|text| walk(text, "", &known, &mut seen));
    let mut problems = Vec::new();
    for (path, found) in seen.iter().filter(|(path, found)| found.times > 0 && !path.is_empty()) {
        let Some(row) = own.get(path).or_else(|| others.get(path)) else {
            problems.push(format!("`{path}` is not named; it was {:?}", found.types));
            continue;
        };
        if row.types.contains("any") {
            continue;
        }
        let unnamed: Vec<&&str> = found.types.iter().filter(|kind| !row.types.contains(**kind)).collect();
        if !unnamed.is_empty() {
            problems.push(format!("`{path}` is also {unnamed:?}"));
        }
        let is_list = path.ends_with("[]") || path.ends_with(".*");
        let parents = seen.get(parent(path)).map_or(0, |parent| parent.parents);
        if !is_list && own.contains_key(path) && row.is_always != (found.times == parents) {
            problems.push(format!("`{path}` was there {} of {parents} times", found.times));
        }
    }
    for (path, row) in &own {
        let types: BTreeSet<&str> =
            seen.get(path).map(|found| found.types.iter().copied().collect()).unwrap_or_default();
        let missing: Vec<&String> =
            row.types.iter().filter(|kind| *kind != "any" && !types.contains(kind.as_str())).collect();
        if types.is_empty() || !missing.is_empty() {
            problems.push(format!("`{path}` was never {missing:?}"));
        }
    }
    assert!(problems.is_empty(), "{name} and docs/json.md differ:\n{}", problems.join("\n"));
}

fn ok(error: Option<Box<dbcache_error>>) {
    // SAFETY: the error lives.
    let message =
        |error: &dbcache_error| unsafe { CStr::from_ptr(crate::error::dbcache_error_message(error)) }.to_owned();
    assert!(error.is_none(), "{:?}", error.as_deref().map(message));
}

/// A text by its two calls.
fn text(call: impl Fn(*mut c_char, usize, *mut usize) -> Option<Box<dbcache_error>>) -> Value {
    let mut length = 0;
    ok(call(ptr::null_mut(), 0, &raw mut length));
    let mut bytes = vec![0_u8; length];
    ok(call(bytes.as_mut_ptr().cast(), length, &raw mut length));
    assert_eq!(bytes.pop(), Some(0));
    serde_json::from_slice(&bytes).unwrap()
}

fn with_options<T>(pairs: &[(&str, &str)], body: impl FnOnce(*const dbcache_options) -> T) -> T {
    let mut options = ptr::null_mut();
    let c = |text: &str| CString::new(text).unwrap();
    // SAFETY: the pointers live during the calls, and the options until they are freed.
    unsafe {
        ok(dbcache_options_new(&raw mut options));
        pairs.iter().for_each(|(name, value)| ok(dbcache_options_set(options, c(name).as_ptr(), c(value).as_ptr())));
        let made = body(options);
        dbcache_options_free(options);
        made
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn engine(path: &str) -> CString {
    CString::new(root().join(path).to_str().unwrap()).unwrap()
}

const TINY: &str = "tests/data/tiny-flux";
const VIDEO: &str = "tests/data/tiny-video/engine";
const EXPERTS: &str = "tests/data/families/wan_two/engine";
const EMOJI: &str = "models/emoji";

/// Decides on single blocks.
const PRUNE: &str =
    r#"{"cache_type": "DBPrune", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "max_warmup_steps": 1}"#;

/// The tiny model with its weights beside it, of which the manifest does not know the content.
fn moved() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let engine = folder.path().join("engine");
    fs::create_dir(&engine).unwrap();
    for entry in fs::read_dir(root().join(TINY)).unwrap() {
        let path = entry.unwrap().path();
        let is_weights = path.extension().is_some_and(|ending| ending == "safetensors");
        let to = if is_weights { folder.path() } else { engine.as_path() };
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    let manifest = engine.join("manifest.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    json["weights"][0]["sha256"] = Value::Null;
    fs::write(manifest, json.to_string()).unwrap();
    folder
}

fn page() -> String {
    fs::read_to_string(root().join("docs/json.md")).unwrap()
}

#[test]
fn texts_of_the_library() {
    // SAFETY: the text is static.
    let info = unsafe { CStr::from_ptr(dbcache_build_info()) };
    check(&page(), "dbcache_build_info", &[serde_json::from_slice(info.to_bytes()).unwrap()]);
    // SAFETY: `text` gives room for what it says.
    let names = text(|buffer, capacity, length| unsafe { dbcache_options_names(buffer, capacity, length) });
    check(&page(), "dbcache_options_names", &[names]);
}

#[test]
fn texts_of_directories() {
    let inspect = |directory: &str, pairs: &[(&str, &str)]| {
        let directory = engine(directory);
        with_options(pairs, |options| {
            // SAFETY: `text` gives room for what it says; the rest lives.
            text(|buffer, capacity, length| unsafe {
                dbcache_inspect(directory.as_ptr(), options, buffer, capacity, length)
            })
        })
    };
    let moved = moved();
    let pairs = [("verify", "true"), ("weights", moved.path().to_str().unwrap())];
    let texts = [
        inspect(TINY, &[]),
        inspect(VIDEO, &[("verify", "true")]),
        inspect(EXPERTS, &[]),
        inspect(EMOJI, &[]),
        inspect(moved.path().join("engine").to_str().unwrap(), &pairs),
    ];
    check(&page(), "dbcache_inspect", &texts);

    let plan = |directory: &str, pairs: &[(&str, &str)]| {
        let directory = engine(directory);
        with_options(pairs, |options| {
            // SAFETY: as above.
            text(|buffer, capacity, length| unsafe {
                dbcache_plan(directory.as_ptr(), options, 0, buffer, capacity, length)
            })
        })
    };
    // What a provider that compiles adds.
    let built =
        PlannedBuild { name: "embed".to_owned(), key: "0".to_owned(), is_built: true, weight_bytes: 0, held_for: None };
    let missing = PlannedBuild { is_built: false, held_for: Some("for another device".to_owned()), ..built.clone() };
    let builds = vec![built, missing];
    let plain = Model::open(root().join(TINY), &EngineOptions::default())
        .and_then(|model| model.dry_run(&RequestOptions::default(), None));
    let compiled = dbcache::DryRun { builds: Some(builds), ..plain.unwrap() }.to_json();
    let texts = [plan(TINY, &[("cache", "f1b1")]), plan(VIDEO, &[]), plan(EXPERTS, &[]), compiled];
    check(&page(), "dbcache_plan", &texts);
}

#[test]
fn texts_of_engines() {
    let info = |directory: &str| {
        let (directory, mut engine) = (engine(directory), ptr::null_mut::<dbcache_engine>());
        // SAFETY: the pointers live during the calls, and the engine until it is freed.
        unsafe {
            ok(dbcache_engine_load(directory.as_ptr(), ptr::null(), &raw mut engine));
            let info = text(|buffer, capacity, length| dbcache_engine_info(engine, buffer, capacity, length));
            dbcache_engine_free(engine);
            info
        }
    };
    // What a provider that compiles adds.
    let mut compiled = info(TINY);
    compiled["builds"] = BuildCounts { damaged: vec!["embed".to_owned()], ..BuildCounts::default() }.to_json();
    check(&page(), "dbcache_engine_info", &[info(TINY), info(VIDEO), compiled]);
}

/// A result of an engine with text inputs that are all 0.5, or its prompt.
fn result(directory: &str, shapes: &[(&str, &[usize])], pairs: &[(&str, &str)]) -> dbcache_result {
    let mut options = dbcache::options::Options::default();
    pairs.iter().for_each(|(name, value)| options.set(name, value).unwrap());
    let engine = Engine::load(root().join(directory), options.engine()).unwrap();
    let tensor = |(name, shape): &(&str, &[usize])| ((*name).to_owned(), ArrayD::from_elem(IxDyn(shape), 0.5));
    let inputs = match shapes {
        [] => Inputs::prompt("lemon"),
        shapes => Inputs { tensors: shapes.iter().map(tensor).collect(), ..Inputs::default() },
    };
    let mut output = engine.request(&inputs, &options.request().unwrap()).unwrap().run(&mut ()).unwrap();
    if directory == EXPERTS {
        // What providers add that compile, or record runs.
        output.trace.builds = Some(BuildCounts { damaged: vec!["embed".to_owned()], ..BuildCounts::default() });
        output.trace.captures = Some(CaptureCounts::default());
        // And several processes.
        output.trace.context_parallel = Some(Ranks { method: Method::Gather, ranks: 2 });
        output.trace.records.iter_mut().for_each(|record| record.exchanged = Some(Exchanged { bytes: 9, ms: 0.5 }));
    }
    dbcache_result::new(output, inputs)
}

#[test]
fn texts_of_results() {
    let text_of_two: &[(&str, &[usize])] = &[("prompt_embeds", &[1, 12, 32]), ("pooled_projections", &[1, 24])];
    let guided: &[(&str, &[usize])] = &[
        ("prompt_embeds", &[1, 7, 20]),
        ("negative_prompt_embeds", &[1, 7, 20]),
        ("prompt_attention_mask", &[1, 7]),
        ("negative_prompt_attention_mask", &[1, 7]),
    ];
    let of_experts: &[(&str, &[usize])] = &[("prompt_embeds", &[1, 5, 20]), ("negative_prompt_embeds", &[1, 5, 20])];
    let results = [
        result(TINY, text_of_two, &[("steps", "6"), ("cache", "f1b0w2r0.9sl1")]),
        result(TINY, text_of_two, &[("steps", "3"), ("cache", PRUNE)]),
        result(TINY, text_of_two, &[("steps", "2")]),
        result(
            VIDEO,
            guided,
            &[
                ("steps", "2"),
                ("size", "256x128"),
                ("frames", "1"),
                ("decode-tile", "128"),
                ("guidance-rescale", "0.5"),
            ],
        ),
        result(EXPERTS, of_experts, &[("steps", "3")]),
        result(
            EMOJI,
            &[],
            &[("steps", "2"), ("batch", "2"), ("per-sample", "true"), ("cache", "f1b0w1"), ("weights-mode", "mapped")],
        ),
    ];
    let texts = |call: unsafe extern "C" fn(*const dbcache_result, *mut c_char, usize, *mut usize) -> _| {
        let of = |result: &dbcache_result| {
            // SAFETY: `text` gives room for what it says; the results live.
            text(|buffer, capacity, length| unsafe { call(result, buffer, capacity, length) })
        };
        results.iter().map(of).collect::<Vec<_>>()
    };
    check(&page(), "dbcache_result_trace", &texts(dbcache_result_trace));
    let page = page();
    let reasons = page.split("\n## Reasons\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let named: Vec<&str> = reasons.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(named, Reason::ALL.map(Reason::as_str));
    check(&page, "dbcache_result_statistics", &texts(dbcache_result_statistics));
}

#[test]
fn differences_are_found() {
    let page = "\n## x\n| `a` | whole number | | always | A. |\n| `b` | list | | always | B. |\n\
                | `b[]` | text or null | | always | B. |\n| `c` | object | | always | C. |\n| `c.*` | any | | always | C. |\n";
    let check = |texts: &[Value]| {
        let outcome = std::panic::catch_unwind(|| check(page, "x", texts));
        outcome.err().map(|panic| panic.downcast_ref::<String>().unwrap().clone()).unwrap_or_default()
    };
    let whole = json!({"a": 1, "b": ["x", null], "c": {"any": [{}]}});
    assert_eq!(check(std::slice::from_ref(&whole)), "");
    for (text, problem) in [
        (json!({"b": [], "c": {}}), "`a` was there 1 of 2 times"),
        (json!({"a": 1, "b": [], "c": {}, "d": 1}), "`d` is not named"),
        (json!({"a": 1.5, "b": [], "c": {}}), "`a` is also"),
    ] {
        assert!(check(&[whole.clone(), text]).contains(problem), "{problem}");
    }
    assert!(check(&[json!({"a": 1, "b": ["x"], "c": {"y": 1}})]).contains("`b[]` was never"));
}
