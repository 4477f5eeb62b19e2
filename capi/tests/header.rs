//! The header is that of the sources, can be included alone, and says what a caller must know.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cbindgen::{Builder, Config, DocumentationStyle, FunctionConfig, Language, Style};

fn capi() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn header_path() -> PathBuf {
    capi().join("include/dbcache_trt.h")
}

const PREFACE: &str = "\
/* dbcache-trt for C and C++ hosts. Generated from capi/src by `cargo xtask header`; not to be edited.
 *
 * Conventions, everywhere:
 * - A call that can fail returns NULL on success, else an error that the caller frees with dbcache_error_free.
 * - The line `Errors:` of a function names what it gives, without DBCACHE_ERROR_. DBCACHE_ERROR_INTERNAL and _PANIC, which
 *   are bugs of the library, can come from each function, and are not named again.
 * - docs/json.md names the members of all JSON texts.
 * - Outputs are written on success only, but for the length of a text whose buffer is too small. NULL for an argument is an
 *   error unless its comment allows it.
 * - The first argument is the object; inputs come before outputs. Texts are UTF-8 and end with a zero.
 * - Each object is freed with the function of its type, which takes NULL; nothing is ever freed with free().
 * - Numbers of constants are never reused. Options have names, so that new ones change nothing here.
 * - A handle that was freed must not be used: that is not found out. Objects that others were made of may be freed in
 *   any order.
 * - A callback must return: it must not throw, longjmp, nor end its thread (pthread_exit, cancellation). It may call exit().
 *   dbcache_trt.hpp keeps exceptions from getting out; hosts that do not use it do so themselves.
 *
 * The end of the process:
 * - exit(), from whichever thread: what runs or loads is cancelled, and waited for where it uses ONNX Runtime, before that is
 *   destroyed; a session that is being made is made to its end. Callbacks are not waited for. Calls that come later, such as
 *   those of static objects of C++, can only free; others give DBCACHE_ERROR_CANCELLED. What a host owes: not to call exit()
 *   in the few milliseconds in which the first engine of the process loads ONNX Runtime's file (without GNU's C library: and
 *   starts it), and no call from a thread that goes on while exit() runs but with handles that are not freed meanwhile. _exit() waits for nothing.
 * - fork(): a child has none of the library's threads. It can free what it has, call exit() or exec; calls that need ONNX
 *   Runtime give DBCACHE_ERROR_LIBRARY. Load the first engine after the last fork().
 * - dlclose() leaves the library where it is, and a later dlopen() finds it as it was. A host that links the archive into a
 *   plugin of its own links that with -Wl,-z,nodelete.
 */";

fn generate() -> String {
    let config = Config {
        language: Language::C,
        cpp_compat: true,
        style: Style::Both,
        header: Some(PREFACE.to_owned()),
        include_guard: Some("DBCACHE_TRT_H".to_owned()),
        no_includes: true,
        sys_includes: vec!["stddef.h".to_owned(), "stdint.h".to_owned()],
        after_includes: Some(format!(
            "\n/* The version of the library that this header belongs to. */\n#define DBCACHE_VERSION \"{}\"\n\n\
             #if defined(__GNUC__) || defined(__clang__)\n#define DBCACHE_MUST_USE __attribute__((warn_unused_result))\n\
             #else\n#define DBCACHE_MUST_USE\n#endif",
            env!("CARGO_PKG_VERSION")
        )),
        documentation_style: DocumentationStyle::Doxy,
        usize_is_size_t: true,
        line_length: 110,
        function: FunctionConfig { must_use: Some("DBCACHE_MUST_USE".to_owned()), ..FunctionConfig::default() },
        ..Config::default()
    };
    // The sources by name: nothing of other crates is looked for, and lib.rs would bring each a second time.
    let mut builder = Builder::new().with_config(config);
    let mut sources: Vec<PathBuf> =
        fs::read_dir(capi().join("src")).unwrap().map(|entry| entry.unwrap().path()).collect();
    sources.retain(|path| !path.ends_with("lib.rs"));
    sources.sort();
    for source in sources {
        builder = builder.with_src(source);
    }
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn the_header_is_current() {
    let (path, expected) = (header_path(), generate());
    if fs::read_to_string(&path).unwrap_or_default() != expected {
        fs::write(&path, expected).unwrap();
        panic!("{} was not current; it is now: look at the change and commit it", path.display());
    }
}

/// Compiles a text and fails on any warning.
fn compile(compiler: &str, standard: &str, language: &str, text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    fs::write(&source, text).unwrap();
    let output = Command::new(compiler)
        .args(
            ["-std=", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-fsyntax-only"]
                .map(|flag| if flag == "-std=" { format!("-std={standard}") } else { flag.to_owned() }),
        )
        .arg("-I")
        .arg(capi().join("include"))
        .args(["-x", language])
        .arg(&source)
        .output()
        .unwrap();
    assert!(output.status.success(), "{compiler} {standard}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn headers_compile_alone_and_twice() {
    let once = "#include <dbcache_trt.h>\n";
    for text in [once.to_owned(), once.repeat(2)] {
        compile("cc", "c11", "c", &text);
        compile("c++", "c++17", "c++", &text);
    }
    compile("c++", "c++17", "c++", &"#include <dbcache_trt.hpp>\n".repeat(2));
}

#[test]
fn versions_agree() {
    let header = fs::read_to_string(header_path()).unwrap();
    assert!(header.contains(&format!("#define DBCACHE_VERSION \"{}\"\n", env!("CARGO_PKG_VERSION"))));
    let number = |text: &str, name: &str| -> u32 {
        let (_, rest) = text.split_once(name).unwrap();
        rest.chars()
            .skip_while(|c| !c.is_ascii_digit())
            .take_while(char::is_ascii_digit)
            .collect::<String>()
            .parse()
            .unwrap()
    };
    let build = fs::read_to_string(capi().join("build.rs")).unwrap();
    let build = number(&build, "const ABI_VERSION: u32 =");
    assert_eq!(number(&header, "#define DBCACHE_ABI_VERSION"), build, "src/version.rs and build.rs");
}

/// Functions of the header with their comments.
fn functions(header: &str) -> Vec<(String, String)> {
    let mut functions = Vec::new();
    let mut comment = String::new();
    let mut lines = header.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("/**") {
            comment = line.to_owned();
            for line in lines.by_ref() {
                comment += line;
                if line.contains("*/") {
                    break;
                }
            }
        } else if let Some(name) =
            line.split('(').next().filter(|_| line.contains('(')).and_then(|head| head.rsplit([' ', '*']).next())
            && name.starts_with("dbcache_")
            && !line.starts_with("typedef")
        {
            functions.push((name.to_owned(), std::mem::take(&mut comment)));
        }
    }
    functions
}

#[test]
fn every_function_states_threads_and_ownership() {
    let header = fs::read_to_string(header_path()).unwrap();
    let functions = functions(&header);
    assert!(functions.len() >= 45, "{}", functions.len());
    for (name, comment) in functions {
        assert!(
            comment.contains("Thread") && comment.to_lowercase().contains("ownership:")
                || comment.contains("Threads and ownership: as"),
            "{name}: {comment}"
        );
    }
}

/// Every entry catches panics: its body is a guard, or does nothing that can panic and says so.
#[test]
fn every_entry_is_guarded() {
    let mut entries = 0;
    for entry in fs::read_dir(capi().join("src")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for part in text.split("#[unsafe(no_mangle)]").skip(1) {
            entries += 1;
            let end = part.find("\n}\n").unwrap();
            let body = &part[..end];
            let name = body.split("fn ").nth(1).unwrap().split('(').next().unwrap();
            let is_guarded = ["guard(|| {", "release(|| ", "caught(|| {", "unsafe { read(error"]
                .iter()
                .any(|guard| body.contains(guard));
            let only_reads =
                body.contains("or can panic") || ["dbcache_version", "dbcache_abi_version"].contains(&name);
            assert!(is_guarded || only_reads, "{}: {name}", path.display());
        }
    }
    assert!(entries >= 45, "{entries}");
}
