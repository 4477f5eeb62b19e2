//! Against Python: `tests/data/reference/prompts.json`, written by `export/oracle/prompts.py`.

use std::path::Path;

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Reference {
    rules: std::collections::BTreeMap<String, Vec<CleanRule>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    rules: String,
    prompt: String,
    /// Null: Python takes markup out, which is refused here.
    cleaned: Option<String>,
    /// Whether Python repairs an encoding, which is a warning here.
    repaired: bool,
}

fn reference() -> Reference {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/reference/prompts.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn prompts_become_what_python_makes_of_them() {
    let reference = reference();
    let mut wrong = Vec::new();
    let mut counts = [0; 3];
    for (name, rules) in &reference.rules {
        let cleaner = Cleaner::new(rules).unwrap();
        for case in reference.cases.iter().filter(|case| case.rules == *name) {
            let found = cleaner.clean(&case.prompt);
            let (kind, is_right) = match (&case.cleaned, &found) {
                (None, Err(error)) => (0, error.to_string().contains("markup")),
                (Some(_), Ok(found)) if case.repaired => (1, found.suspicious.is_some()),
                (Some(cleaned), Ok(found)) => (2, found.text == *cleaned),
                // Versions of Python differ in what they make of a tag that is not closed.
                (Some(_), Err(error)) => (0, error.to_string().contains("markup at \"<")),
                (None, Ok(_)) => (0, false),
            };
            counts[kind] += 1;
            if !is_right {
                wrong.push(format!("{name}: {:?}\n  here   {found:?}\n  Python {:?}", case.prompt, case.cleaned));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[test]
fn plain_prompts_give_no_warning() {
    let cleaner = Cleaner::new(&[CleanRule::FixText]).unwrap();
    for prompt in [
        "a red apple",
        "l’été à l’École «École» — naïve café… 20 °C",
        "¿Qué? ¡Él! São Paulo, Łódź, ŠKODA, Øresund",
        "Große Straße, „schön“, 5 €",
        "Привет, МИР «Мир» — это",
        "日本語のプロンプト。 한국어 ภาษาไทย 🍋",
        "Œuvre d’art, cœur, İstanbul, tiếng Việt",
    ] {
        assert_eq!(cleaner.clean(prompt).unwrap().suspicious, None, "{prompt}");
    }
}

#[test]
fn a_pattern_that_is_none_is_refused_with_its_text() {
    let rule = CleanRule::Replace { pattern: "a(".into(), with: String::new(), if_more_than: 0 };
    let error = Cleaner::new(&[rule]).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("bad pattern `a(`"), "{error}");
}

#[test]
fn only_patterns_whose_time_is_known_are_taken() {
    let new = |pattern: &str, with: &str| {
        let rule = CleanRule::Replace { pattern: pattern.into(), with: with.into(), if_more_than: 3 };
        Cleaner::new(&[rule]).err().map(|error| (error.kind(), error.to_string()))
    };
    for pattern in PATTERNS.lines().chain([r"\s+", "[a-c]{2,}", "word"]) {
        assert_eq!(new(pattern, " "), None, "{pattern}");
    }
    for (pattern, with) in
        [("(a+)+$", ""), (r"(a*)*\1b", ""), (".*[^a]|a", ""), ("a{1,100000}", ""), ("a", &"$0".repeat(33)[..])]
    {
        let (kind, message) = new(pattern, with).unwrap();
        assert_eq!(kind, crate::ErrorKind::EngineDirectory);
        assert!(message.contains("none of the exporter's and may take hours") && message.contains("export again"));
    }
    assert!(Cleaner::new(&vec![CleanRule::Strip; 257]).err().unwrap().to_string().contains("has 257 rules"));
}

#[test]
fn a_prompt_that_grows_is_refused() {
    let rule = CleanRule::Replace { pattern: "a".into(), with: "b".repeat(64), if_more_than: 0 };
    let error = Cleaner::new(&vec![rule; 2]).unwrap().clean(&"a".repeat(1 << 16)).unwrap_err();
    assert!(error.to_string().contains("the prompt becomes 4194304 bytes when it is cleaned"), "{error}");
}
