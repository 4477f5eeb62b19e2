//! From prompts to ids, without graphs: what is cleaned, and at which end a tokenizer cuts.

use serde_json::{Value, json};

use super::*;

/// Words `w0` to `w99`; longer texts are cut by the tokenizer, at `direction`, or by the manifest where it is `Null`.
fn reader(direction: &Value, clean: &Value) -> PromptReader {
    let vocab: BTreeMap<String, u32> = (0..100).map(|id| (format!("w{id}"), id)).collect();
    let cut = json!({"direction": direction, "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": if direction.is_null() { Value::Null } else { cut },
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": false},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    let spec = json!({
        "tokenizers": {"words": {"file": "a", "bytes": 1, "sha256": "", "length": 3, "pad_id": 0, "unknown_id": null,
            "prefix": "", "suffix": "", "drop": 0, "padding": "length", "pad_side": "right"}},
        "graphs": [],
        "unconditional": "",
        "clean": clean,
    });
    let spec: TextSpec = serde_json::from_value(spec).unwrap();
    let tokenizer = read_tokenizer(tokenizer.to_string().as_bytes(), &spec.tokenizers["words"]).unwrap();
    PromptReader { cleaner: Cleaner::new(&spec.clean).unwrap(), spec, tokenizers: [("words".into(), tokenizer)].into() }
}

#[test]
fn a_long_prompt_is_cut_where_the_tokenizer_says_and_the_warning_says_where() {
    for (direction, kept, words) in [
        (json!("Right"), [1, 2, 3], "reads its first 3 tokens"),
        (json!("Left"), [3, 4, 5], "reads its last 3 tokens"),
        (Value::Null, [1, 2, 3], "reads its first 3 tokens"),
    ] {
        let reader = reader(&direction, &json!([]));
        assert_eq!(reader.tokens("words", "w1 w2 w3 w4 w5").unwrap().ids, kept, "{direction}");
        let warnings = reader.warnings("the prompt", "w1 w2 w3 w4 w5").unwrap();
        assert!(warnings.len() == 1 && warnings[0].contains(words), "{warnings:?}");
        let negative = reader.warnings("the negative prompt", "w1 w2 w3 w4 w5").unwrap();
        assert!(negative[0].starts_with("the negative prompt is cut"), "{negative:?}");
        assert_eq!(reader.warnings("the prompt", "w1 w2 w3").unwrap(), [""; 0]);
    }
}

#[test]
fn prompts_are_cleaned_before_they_are_tokenized() {
    let rules = json!(["fix_text", "html_unescape", {"replace": {"pattern": r"\s+", "with": " "}}, "strip"]);
    let (plain, cleaning) = (reader(&Value::Null, &json!([])), reader(&Value::Null, &rules));
    let ids = |reader: &PromptReader, prompt: &str| reader.tokens("words", prompt).unwrap().ids;
    for prompt in ["w1 w2", "w1&nbsp;w2", "w1\nw2", " w1  w2 ", "ｗ1\u{3000}w2"] {
        assert_eq!(ids(&cleaning, prompt), [1, 2], "{prompt:?}");
        assert_eq!(cleaning.lengths(&[prompt]).unwrap()["words"], 3);
    }
    assert_ne!(ids(&plain, "w1&nbsp;w2"), [1, 2]);
    let warnings = cleaning.warnings("the prompt", "w1 w2 cafÃ©").unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("wrong encoding at \"Ã©\""), "{warnings:?}");
}

#[test]
fn a_refused_prompt_is_an_error_wherever_it_is_read() {
    let reader = reader(&Value::Null, &json!(["refuse_markup"]));
    for result in [
        reader.warnings("the prompt", "w1 <b>").err(),
        reader.lengths(&["w1 <b>"]).err().or(reader.tokens("words", "w1 <b>").err()),
    ] {
        assert!(result.is_some_and(|error| error.to_string().contains("HTML markup at \"<b>\"")));
    }
}
