//! Files inside a room that need each other: at most three, so that a reader holds them in mind at once.

use std::collections::{BTreeMap, BTreeSet};

use super::tidy::{root, sources};

/// Files that need each other may be so many.
const MOST: usize = 3;

/// A file as Rust names it, below `src`.
type Module = Vec<String>;

/// Every file with its code.
fn modules() -> BTreeMap<Module, String> {
    let of_file = |(path, code): (std::path::PathBuf, String)| {
        let inside = path.strip_prefix(root().join("src")).unwrap().with_extension("");
        let mut module: Module = inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        (module, lines.collect::<Vec<_>>().join("\n"))
    };
    sources("src").into_iter().map(of_file).collect()
}

/// The paths of a `use`: `a::{b, c::d}` names `a::b` and `a::c::d`.
fn paths(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((before, inner)) = tree.split_once('{') else { return vec![tree.to_owned()] };
    let inner = inner.trim_end().strip_suffix('}').unwrap_or(inner);
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for c in inner.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().unwrap().push(c);
    }
    let named = parts.iter().filter(|part| !part.trim().is_empty()).flat_map(|part| paths(part));
    named.map(|path| format!("{before}{path}")).collect()
}

/// The paths that a file names: in `use`, and in its code.
fn named(code: &str) -> Vec<String> {
    let starts = ["crate::", "super::", "self::"];
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(at) = starts.iter().filter_map(|start| rest.find(start)).min() {
        let is_use = rest[..at].trim_end().ends_with("use");
        let end = match is_use {
            true => rest[at..].find(';').map_or(rest.len(), |end| at + end),
            false => {
                let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
                rest[at..].find(|c| !is_path(c)).map_or(rest.len(), |end| at + end)
            }
        };
        // `pub(in crate::room)` says who may see, not what is used.
        if !rest[..at].ends_with("in ") {
            found.extend(paths(&rest[at..end]));
        }
        rest = &rest[end..];
    }
    found
}

/// The file that a path of `module` leads to, if it is one.
fn resolve(module: &Module, path: &str, all: &BTreeMap<Module, String>) -> Option<Module> {
    let mut parts = path.split("::").map(str::trim).filter(|part| !part.is_empty()).peekable();
    let mut full = if parts.next_if_eq(&"crate").is_some() { Module::new() } else { module.clone() };
    parts.next_if_eq(&"self");
    while parts.next_if_eq(&"super").is_some() {
        full.pop();
    }
    full.extend(parts.map(str::to_owned));
    (1..=full.len()).rev().map(|length| full[..length].to_vec()).find(|module| all.contains_key(module))
}

#[test]
fn no_circle_of_files_is_large() {
    let all = modules();
    let uses: BTreeMap<&Module, BTreeSet<Module>> = all
        .iter()
        .map(|(module, code)| {
            let used = named(code).into_iter().filter_map(|path| resolve(module, &path, &all));
            (module, used.filter(|used| used != module).collect())
        })
        .collect();
    assert!(uses.values().map(BTreeSet::len).sum::<usize>() > 500, "the files use each other");
    let reached = |from: &Module| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(module) = next.pop() {
            next.extend(uses[&module].iter().filter(|used| seen.insert((*used).clone())).cloned());
        }
        seen
    };
    let reach: BTreeMap<&Module, BTreeSet<Module>> = all.keys().map(|module| (module, reached(module))).collect();
    let mut circles: BTreeSet<Vec<String>> = BTreeSet::new();
    for module in all.keys() {
        let circle = all.keys().filter(|other| reach[module].contains(*other) && reach[other].contains(module));
        circles.insert(circle.map(|module| module.join("/")).collect());
    }
    for circle in circles {
        let length = circle.len();
        assert!(length <= MOST, "{length} files need each other, at most {MOST} may: {circle:?}");
    }
}
