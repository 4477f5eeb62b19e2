//! The binary interface: a change fails here until its version is raised. Version 1 is that of the first release: what
//! changes before it removes `capi/abi/1.txt`, which this test then writes anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn capi() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn header() -> String {
    fs::read_to_string(capi().join("include/dbcache_trt.h")).unwrap()
}

fn abi_version(header: &str) -> u32 {
    let line = header.lines().find_map(|line| line.strip_prefix("#define DBCACHE_ABI_VERSION ")).unwrap();
    line.trim().parse().unwrap()
}

/// What a compiler sees of the header, one declaration a line, without comments and the version's own text.
fn declarations() -> String {
    let output = Command::new("cc")
        .args(["-E", "-P", "-std=c11", "-x", "c"])
        .arg(capi().join("include/dbcache_trt.h"))
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let ours = &text[text.find("typedef struct dbcache_").unwrap()..];
    let words: Vec<&str> = ours.split_whitespace().collect();
    let joined = words.join(" ").replace("__attribute__((warn_unused_result)) ", "");
    let mut lines: Vec<String> = joined.split_inclusive("; ").map(|line| line.trim().to_owned()).collect();
    let constants =
        header().lines().filter(|line| line.starts_with("#define DBCACHE_")).map(str::to_owned).collect::<Vec<_>>();
    let is_number = |line: &String| line.split(' ').nth(2).is_some_and(|value| value.parse::<i64>().is_ok());
    lines.extend(constants.into_iter().filter(is_number));
    lines.join("\n") + "\n"
}

/// Sizes and offsets of the structs that cross, as a compiler lays them out.
fn layouts() -> String {
    const STRUCTS: [(&str, &str); 6] = [
        ("dbcache_progress", "struct_size phase done steps elapsed_ms"),
        (
            "dbcache_step",
            "struct_size step steps branch sample decision reason sigma diff threshold blocks_run elapsed_ms blocks list \
             session_runs",
        ),
        ("dbcache_preview", "struct_size step index width height rgb bytes"),
        ("dbcache_log", "struct_size level target message"),
        ("dbcache_picture", "struct_size width height rgb bytes seed frames fps"),
        ("dbcache_memory", "struct_size kind device_id stream data bytes"),
    ];
    let mut program = "#include <dbcache_trt.h>\n#include <stdio.h>\nint main(void) {\n".to_owned();
    for (name, members) in STRUCTS {
        program += &format!("printf(\"{name} %zu\", sizeof({name}));\n");
        for member in members.split(' ') {
            program += &format!("printf(\" {member} %zu\", offsetof({name}, {member}));\n");
        }
        program += "puts(\"\");\n";
    }
    program += "return 0; }\n";
    let folder = tempfile::tempdir().unwrap();
    let (source, binary) = (folder.path().join("layout.c"), folder.path().join("layout"));
    fs::write(&source, program).unwrap();
    let built = Command::new("cc")
        .args(["-std=c11", "-I"])
        .arg(capi().join("include"))
        .arg(&source)
        .arg("-o")
        .arg(&binary)
        .status();
    assert!(built.unwrap().success());
    String::from_utf8(Command::new(binary).output().unwrap().stdout).unwrap()
}

#[test]
fn a_change_of_the_interface_needs_a_new_version() {
    let version = abi_version(&header());
    let path: PathBuf = capi().join(format!("abi/{version}.txt"));
    let now = format!("{}\n{}", declarations(), layouts());
    match fs::read_to_string(&path) {
        Ok(frozen) => assert!(
            frozen == now,
            "the interface is no longer that of {}: raise ABI_VERSION in build.rs and src/version.rs.\n{}",
            path.display(),
            difference(&frozen, &now)
        ),
        Err(_) => {
            fs::write(&path, now).unwrap();
            panic!("{} is new: look at it and commit it", path.display());
        }
    }
}

fn difference(old: &str, new: &str) -> String {
    let gone = old.lines().filter(|line| !new.lines().any(|other| other == *line)).map(|line| format!("- {line}"));
    let come = new.lines().filter(|line| !old.lines().any(|other| other == *line)).map(|line| format!("+ {line}"));
    gone.chain(come).collect::<Vec<_>>().join("\n")
}

/// The frozen list is no list of what happens to be there: the header declares exactly these functions.
#[test]
fn the_header_declares_what_is_exported() {
    let symbols = fs::read_to_string(capi().join("abi/symbols.txt")).unwrap();
    let symbols: Vec<&str> = symbols.lines().collect();
    let mut declared: Vec<String> = declarations()
        .lines()
        .filter(|line| line.contains('(') && !line.starts_with("typedef"))
        .filter_map(|line| line.split('(').next()?.rsplit([' ', '*']).next().map(str::to_owned))
        .collect();
    declared.sort();
    assert_eq!(declared, symbols);
}
