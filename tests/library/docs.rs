//! The pages for users hold what the program has: exit codes, options, tokens, defaults. Links lead to files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dbcache_trt::ErrorKind;
use dbcache_trt::cache::{OptionGroup, PolicyConfig, PolicyOption};
use serde_json::{Map, Value};

/// As long as a newcomer reads.
const README_LINES: usize = 120;
/// Every command beside the one that makes pictures.
const COMMANDS: [&str; 9] =
    ["setup", "providers", "inspect", "trace diff", "build", "builds list", "builds verify", "builds gc", "stages"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(page: &str) -> String {
    fs::read_to_string(root().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"))
}

/// The pages for readers, by their paths from the root.
fn pages() -> Vec<String> {
    let of_docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut pages: Vec<String> = of_docs.map(|name| format!("docs/{}", name.to_string_lossy())).collect();
    pages.retain(|page| page.ends_with(".md"));
    pages.sort();
    let others =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "models/README.md", "export/README.md"];
    pages.extend(others.map(String::from));
    pages
}

/// The lines of a page in blocks of code (`true`), or outside of them.
fn lines(page: &str, in_code: bool) -> Vec<String> {
    let mut is_code = false;
    let mut found = Vec::new();
    for line in read(page).lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if is_code == in_code {
            found.push(line.to_owned());
        }
    }
    found
}

/// The cells of each row of the tables of a page, without heads and rules. A bar within code is written `\|`.
fn rows(page: &str) -> Vec<Vec<String>> {
    let is_rule = |line: &str| line.starts_with("| ---");
    let lines = lines(page, false);
    let pairs = lines.iter().zip(lines.iter().skip(1).map(String::as_str).chain([""]));
    let bodies = pairs.filter(|(line, next)| line.starts_with('|') && !is_rule(line) && !is_rule(next));
    bodies
        .map(|(line, _)| {
            let cells = line.replace("\\|", "\u{0}");
            let cells = cells.trim_start_matches('|').trim_end_matches('|').split('|');
            cells.map(|cell| cell.trim().replace('\u{0}', "|")).collect()
        })
        .collect()
}

/// The texts between backticks.
fn codes(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// `--name` at the beginning of a text.
fn flag(text: &str) -> Option<&str> {
    let name = text.strip_prefix("--")?;
    let end = name.find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '-').unwrap_or(name.len());
    (end > 0).then(|| &text[..end + 2])
}

/// The options that the help of a command lists; an empty text is the command that makes pictures.
fn options(command: &str) -> BTreeSet<String> {
    let run = Command::new(env!("CARGO_BIN_EXE_dbcache-trt")).args(command.split_whitespace()).arg("--help").output();
    let help = String::from_utf8(run.unwrap().stdout).unwrap();
    let lines = help.lines().map(str::trim).filter(|line| line.starts_with('-'));
    let options: BTreeSet<String> =
        lines.filter_map(|line| line.split_whitespace().find_map(flag)).map(str::to_owned).collect();
    assert!(options.contains("--help"), "{command}: {help}");
    options
}

/// The options of all commands.
fn all_options() -> BTreeSet<String> {
    COMMANDS.iter().copied().chain([""]).flat_map(options).collect()
}

fn flag_of(name: &str) -> String {
    format!("--{}", name.to_ascii_lowercase().replace('_', "-"))
}

#[test]
fn the_readme_stays_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= README_LINES, "{lines} lines; move something to docs/");
}

#[test]
fn exit_codes_are_those_of_the_program() {
    let told: Vec<(String, String)> = rows("docs/cli.md")
        .into_iter()
        .filter(|cells| cells[0].parse::<u8>().is_ok())
        .map(|cells| (cells[0].clone(), cells[1].clone()))
        .collect();
    let kinds = ErrorKind::ALL.map(|kind| (kind.exit_code().to_string(), format!("`{kind:?}`")));
    let known: Vec<(String, String)> = [("0".to_owned(), String::new())].into_iter().chain(kinds).collect();
    assert_eq!(told, known);
}

#[test]
fn options_are_those_of_the_program() {
    let mut told: BTreeSet<String> = PolicyOption::all()
        .iter()
        .map(PolicyOption::name)
        .filter(|name| rows("docs/cache-tags.md").iter().any(|cells| cells[1..].contains(&format!("`{name}`"))))
        .map(flag_of)
        .collect();
    for page in ["docs/cli.md", "docs/cache-tags.md"] {
        let text = lines(page, false).join("\n");
        told.extend(codes(&text).into_iter().filter_map(flag).map(str::to_owned));
    }
    told.remove("--path"); // Of cargo.
    let known = all_options();
    let forgotten: Vec<_> = known.difference(&told).collect();
    assert!(forgotten.is_empty(), "docs/cli.md and docs/cache-tags.md do not name {forgotten:?}");
    let unknown: Vec<_> = told.difference(&known).collect();
    assert!(unknown.is_empty(), "no command has {unknown:?}");
}

/// Commands that pages show can be typed: each option is known, and each policy is one.
#[test]
fn commands_in_pages_can_be_typed() {
    let known = all_options();
    let mut policies = 0;
    for page in pages() {
        for line in lines(&page, true) {
            let line = line.trim().trim_start_matches("$ ").trim_start_matches("target/release/");
            let Some(command) = line.strip_prefix("dbcache-trt ") else { continue };
            let words: Vec<&str> = command.split(" #").next().unwrap_or_default().split_whitespace().collect();
            for (index, word) in words.iter().enumerate() {
                if let Some(option) = flag(word) {
                    assert!(known.contains(option), "{page}: no command has {option}: {line}");
                }
                if *word == "--cache" && !words[index + 1].starts_with('\'') {
                    let policy = words[index + 1].parse::<PolicyConfig>();
                    assert!(policy.is_ok(), "{page}: {line}: {policy:?}");
                    policies += 1;
                }
            }
        }
    }
    assert!(policies > 5, "{policies}");
}

/// A policy as one flat object: the options of a calibrator beside the others.
fn flat(policy: &str) -> Map<String, Value> {
    let policy = policy.parse::<PolicyConfig>().unwrap_or_else(|error| panic!("{error}"));
    let Value::Object(mut object) = policy.to_json() else { panic!("{policy}") };
    match object.remove("calibrator") {
        Some(Value::Object(calibrator)) => object.extend(calibrator),
        _ => drop(object.insert("calibrator_type".into(), Value::Null)),
    }
    object
}

/// The headings of docs/cache-tags.md whose first table is made from the options of a group.
const TABLES: [(&str, OptionGroup); 4] = [
    ("## Tokens of DBCache and DBPrune", OptionGroup::Both),
    ("## Tokens of DBCache only", OptionGroup::DbCache),
    ("## Tokens of DBPrune only", OptionGroup::DbPrune),
    ("## Calibrators", OptionGroup::Calibrator),
];

/// A row of such a table.
fn row(option: &PolicyOption) -> String {
    let tokens: Vec<String> = option.tokens().iter().map(|token| format!("`{token}`")).collect();
    let behind = option.follows().map(|token| format!(" It stands behind `{token}`.")).unwrap_or_default();
    let (name, about, example) = (option.name(), option.about(), option.example());
    format!("| {} | `{name}` | {about}{behind} | {} | `{example}` |", tokens.join(", "), option.default_text())
}

/// The page with the tables as the options say.
fn with_tables(page: &str) -> String {
    let mut lines: Vec<String> = page.lines().map(str::to_owned).collect();
    for (heading, group) in TABLES {
        let heading = lines.iter().position(|line| line == heading).unwrap_or_else(|| panic!("{heading}"));
        let start = heading + lines[heading..].iter().position(|line| line.starts_with('|')).unwrap();
        let end = start + lines[start..].iter().take_while(|line| line.starts_with('|')).count();
        let head = ["| token | option | meaning | default | example |", "| --- | --- | --- | --- | --- |"];
        let options = PolicyOption::all().iter().filter(|option| option.group() == group).map(row);
        lines.splice(start..end, head.map(str::to_owned).into_iter().chain(options).collect::<Vec<_>>());
    }
    lines.join("\n") + "\n"
}

/// With the variable `WRITE` set, the page is written anew.
#[test]
fn the_tables_of_tokens_are_made_from_the_options() {
    const PAGE: &str = "docs/cache-tags.md";
    let expected = with_tables(&read(PAGE));
    if std::env::var_os("WRITE").is_some() {
        fs::write(root().join(PAGE), &expected).unwrap();
    }
    assert_eq!(read(PAGE), expected, "write it: WRITE=1 cargo test --test library tables_of_tokens");
}

#[test]
fn examples_of_options_set_them() {
    for option in PolicyOption::all() {
        let (name, example) = (option.name(), option.example());
        let is_shown = option.tokens().iter().any(|token| example.contains(token));
        assert!(is_shown, "the example {example} shows none of {:?}", option.tokens());
        let plain = if example.starts_with("prune") { "prune" } else { "dbcache" };
        let plain = match example.split_once('_') {
            Some((_, calibrator)) if option.group() == OptionGroup::Calibrator && name != "calibrator_type" => {
                let kind: String = calibrator.chars().take_while(char::is_ascii_alphabetic).collect();
                if kind == "t" { "t1".into() } else { format!("{kind}6") }
            }
            _ => plain.to_owned(),
        };
        assert_ne!(flat(example).get(name), flat(&plain).get(name), "{example} leaves {name} as it is");
    }
}

/// A tag that is refused names the tokens that there are.
#[test]
fn every_token_is_explained() {
    let refused = "?".parse::<PolicyConfig>().unwrap_err().to_string();
    let (_, names) = refused.split_once("tokens: ").unwrap_or_else(|| panic!("{refused}"));
    let text = lines("docs/cache-tags.md", false).join("\n");
    // Alone, or with a value: `s4`.
    let is_told = |name: &str| {
        codes(&text)
            .iter()
            .filter_map(|code| code.strip_prefix(name))
            .any(|rest| !rest.starts_with(char::is_alphabetic))
    };
    let forgotten: Vec<&str> = names.split(", ").filter(|name| !is_told(name)).collect();
    assert!(forgotten.is_empty(), "docs/cache-tags.md lacks {forgotten:?}");
}

#[test]
fn presets_are_those_of_the_program() {
    let presets: Vec<_> = rows("docs/cache-tags.md").into_iter().filter(|cells| cells.len() == 3).collect();
    assert_eq!(presets.len(), 5);
    for cells in presets {
        let preset = codes(&cells[0])[0];
        let tokens = codes(&cells[2]).first().copied().unwrap_or("none");
        assert_eq!(preset.parse::<PolicyConfig>().unwrap(), tokens.parse::<PolicyConfig>().unwrap(), "{preset}");
    }
}

/// The place of a heading within a page, as sites that show Markdown name it.
fn anchor(heading: &str) -> String {
    let letters = heading.trim_start_matches('#').trim().to_lowercase();
    letters
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// Where the links of a page lead, but for those to other sites.
fn links(page: &str) -> Vec<String> {
    let text = lines(page, false).join("\n");
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned());
    targets.filter(|target| !target.contains("://")).collect()
}

#[test]
fn links_lead_to_files_and_headings() {
    for page in pages() {
        for link in links(&page) {
            let (file, heading) = link.split_once('#').unwrap_or((&link, ""));
            let folder = Path::new(&page).parent().unwrap();
            let target = if file.is_empty() { PathBuf::from(&page) } else { folder.join(file) };
            assert!(root().join(&target).exists(), "{page}: {link} leads nowhere");
            let headings = || lines(target.to_str().unwrap(), false).into_iter().filter(|line| line.starts_with('#'));
            assert!(
                heading.is_empty() || headings().any(|line| anchor(&line) == heading),
                "{page}: no heading for {link}"
            );
        }
    }
}

#[test]
fn the_index_names_every_page() {
    let linked: BTreeSet<String> = links("docs/README.md").into_iter().collect();
    for page in pages().iter().filter_map(|page| page.strip_prefix("docs/")).filter(|page| *page != "README.md") {
        assert!(linked.contains(page), "docs/README.md lacks {page}");
    }
}
