//! The errors of each function, as its `Errors:` line in the header names them, are those that the C programs provoke.
//!
//! The programs are read as the preprocessor gives them: each of their macros ends in `check_fails(CALL, NUMBER, …)`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What no program can provoke on a machine with only a CPU, and why; `tests/providers/builds.rs` and the unit tests of the
/// Rust library cover what they can of it.
const NOT_PROVOKED: [(&[&str], &str, &str); 8] = [
    (&["plan"], "RUNTIME", "needs a provider that compiles, of which something fails"),
    (
        &["engine_load"],
        "INPUT",
        "needs a provider that compiles: the option `profile` names sizes that the model lacks",
    ),
    (&["engine_load", "request_run", "request_wait", "denoiser_new"], "NOT_BUILT", "needs a provider that compiles"),
    (&["request_run", "request_wait", "denoiser_new"], "IO", "needs a provider that compiles: its build cache is full"),
    (&["request_run", "request_wait", "denoiser_new"], "PROVIDER", "needs a provider that leaves out parts of a graph"),
    (
        &["denoiser_latents", "denoiser_velocity", "denoiser_result", "tensor_import"],
        "RUNTIME",
        "ONNX Runtime fails in the middle, which nothing makes it do on a CPU",
    ),
    (&["denoiser_latents"], "RESOURCES", "needs latents that lie on another device"),
    (&["result_write_video"], "INPUT", "needs a GIF of more than 65535 pixels a side"),
];

/// Errors that no function names: each can give the general ones, and none gives that of the command alone.
const OF_NO_FUNCTION: [&str; 3] = ["CHECK", "INTERNAL", "PANIC"];

type Pairs = BTreeSet<(String, String)>;

fn capi() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn header() -> String {
    fs::read_to_string(capi().join("include/dbcache_trt.h")).unwrap()
}

/// The numbers of the errors by their names, without what all begin with.
fn codes(header: &str) -> BTreeMap<u32, String> {
    let constants = header.lines().filter_map(|line| line.strip_prefix("#define DBCACHE_ERROR_"));
    let code = |line: &str| {
        let (name, number) = line.split_once(' ').unwrap();
        (number.trim().parse().unwrap(), name.to_owned())
    };
    constants.map(code).collect()
}

/// The functions that give an error, without what all begin with, and the names in their `Errors:` lines.
fn documented(header: &str) -> BTreeMap<String, Option<Vec<String>>> {
    let mut functions = BTreeMap::new();
    for part in header.split("/**").skip(1) {
        let (comment, declaration) = part.split_once("*/").unwrap();
        let head = declaration.split('(').next().unwrap();
        let Some((_, name)) = head.split_once("struct dbcache_error *dbcache_") else { continue };
        let text = comment.replace("\n *", " ");
        let named = text.split_once("Errors: ").map(|(_, rest)| {
            let (names, _) = rest.split_once('.').unwrap();
            names.split(',').map(|name| name.trim().to_owned()).collect()
        });
        functions.insert(name.to_owned(), named);
    }
    functions
}

/// A C program after the preprocessor.
fn preprocessed(source: &Path) -> String {
    let output =
        Command::new("cc").args(["-E", "-P", "-std=gnu11", "-I"]).arg(capi().join("include")).arg(source).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}: {}", source.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What follows the argument that a text begins with, from the comma on.
fn after_argument(text: &str) -> Option<&str> {
    let (mut depth, mut quote, mut is_escaped) = (0_usize, None, false);
    for (place, byte) in text.bytes().enumerate() {
        match (quote, byte) {
            (Some(_), _) if is_escaped => is_escaped = false,
            (Some(_), b'\\') => is_escaped = true,
            (Some(open), _) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'(' | b'{' | b'[') => depth += 1,
            (None, b',') if depth == 0 => return Some(&text[place + 1..]),
            (None, b')' | b'}' | b']') => depth = depth.checked_sub(1)?,
            (None, _) => {}
        }
    }
    None
}

/// Each call of the library by name, with the error that it must give.
fn provoked(program: &str, codes: &BTreeMap<u32, String>) -> Pairs {
    let mut pairs = Pairs::new();
    for part in program.split("check_fails(dbcache_").skip(1) {
        let length = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap();
        let (name, rest) = part.split_at(length);
        // Its own definition takes a `dbcache_error *`.
        if !rest.starts_with('(') {
            continue;
        }
        let code = after_argument(rest).unwrap_or_else(|| panic!("{name}: no code")).trim_start();
        let number: String = code.chars().take_while(char::is_ascii_digit).collect();
        let error = number.parse().ok().and_then(|number: u32| codes.get(&number));
        let error = error.unwrap_or_else(|| panic!("{name}: write the constant of the error: {}", &code[..20]));
        pairs.insert((name.to_owned(), error.clone()));
    }
    pairs
}

fn programs() -> Vec<PathBuf> {
    let paths = fs::read_dir(capi().join("tests/c")).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|ending| ending == "c")).collect()
}

fn listed(pairs: &Pairs) -> String {
    pairs.iter().map(|(function, error)| format!("\n  dbcache_{function}: {error}")).collect()
}

#[test]
fn each_function_names_its_errors_in_order() {
    let header = header();
    let codes = codes(&header);
    let functions = documented(&header);
    assert!(functions.len() >= 40, "{}", functions.len());
    let mut unused: BTreeSet<&str> = codes.values().map(String::as_str).collect();
    for (function, named) in &functions {
        let named = named.as_ref().unwrap_or_else(|| panic!("dbcache_{function} has no line `Errors: …`"));
        let number = |name: &String| codes.iter().find(|(_, code)| *code == name).map(|(number, _)| *number);
        let numbers: Option<Vec<u32>> = named.iter().map(number).collect();
        let numbers = numbers.unwrap_or_else(|| panic!("dbcache_{function} names an unknown error: {named:?}"));
        assert!(numbers.is_sorted_by(|a, b| a < b), "dbcache_{function}: in ascending number: {named:?}");
        unused.retain(|error| !named.iter().any(|name| name == error));
    }
    assert_eq!(unused.into_iter().collect::<Vec<_>>(), OF_NO_FUNCTION, "errors that no function names");
}

#[test]
fn each_named_error_is_provoked() {
    let header = header();
    let codes = codes(&header);
    let pair = |function: &str, error: &str| (function.to_owned(), error.to_owned());
    let of_function = |(function, named): (&String, &Option<Vec<String>>)| {
        named.iter().flatten().map(|error| pair(function, error)).collect::<Vec<_>>()
    };
    let named: Pairs = documented(&header).iter().flat_map(of_function).collect();
    let provoked: Pairs = programs().iter().flat_map(|path| provoked(&preprocessed(path), &codes)).collect();
    let excused: Pairs = NOT_PROVOKED
        .iter()
        .flat_map(|(functions, error, _)| functions.iter().map(|function| pair(function, error)))
        .collect();
    let unnamed: Pairs = provoked.difference(&named).cloned().collect();
    assert!(unnamed.is_empty(), "given, but not in the `Errors:` line:{}", listed(&unnamed));
    let idle: Pairs =
        excused.iter().filter(|pair| provoked.contains(*pair) || !named.contains(*pair)).cloned().collect();
    assert!(idle.is_empty(), "excused, but provoked or not named:{}", listed(&idle));
    let missing: Pairs = named.difference(&provoked).filter(|pair| !excused.contains(*pair)).cloned().collect();
    assert!(missing.is_empty(), "in an `Errors:` line, but no program in tests/c provokes it:{}", listed(&missing));
}

#[test]
fn calls_are_read_as_a_compiler_reads_them() {
    let codes = BTreeMap::from([(2, "USAGE".to_owned()), (20, "ARGUMENT".to_owned())]);
    let program = r#"
        static void check_fails(dbcache_error *error, int code) {}
        check_fails(dbcache_a(f(x, 1), "),", '"', (int[]){1, 2}), 20, "x", "dbcache_b(", "FAILS(dbcache_c(1), 2)");
        check_fails(error, cases[i].code); check_fails(dbcache_d(), 2, ((void *)0), "");
    "#;
    let pair = |function: &str, error: &str| (function.to_owned(), error.to_owned());
    assert_eq!(provoked(program, &codes), Pairs::from([pair("a", "ARGUMENT"), pair("d", "USAGE")]));
}
