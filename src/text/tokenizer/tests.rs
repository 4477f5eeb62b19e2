//! Which tokenizer files are taken, that they give the ids that the crate gives by itself, and that hostile ones cost
//! little.

use std::sync::mpsc;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};

use super::patterns::KNOWN;
use super::*;

/// No file may take longer, even in a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A table of characters: `A` is `a`, `é` is `e`.
fn charsmap(edit: impl Fn(&mut Vec<u32>, &mut Vec<u8>)) -> String {
    const LEAF: u32 = 1 << 8;
    let mut units = vec![0u32; 1024];
    let unit = |label: u32, at: u32, next: u32| label | (at ^ next) << 10;
    units[0x41] = LEAF | unit(0x41, 0x41, 256);
    units[256] = 1 << 31;
    units[0xc3] = unit(0xc3, 0xc3, 512);
    units[512 ^ 0xa9] = LEAF | unit(0xa9, 512 ^ 0xa9, 768);
    units[768] = 1 << 31 | 2;
    let mut texts = b"a\0e\0".to_vec();
    edit(&mut units, &mut texts);
    let trie: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    let size = (trie.len() as u32).to_le_bytes();
    base64::engine::general_purpose::STANDARD.encode([&size[..], &trie, &texts].concat())
}

fn regex(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn metaspace(scheme: &str, split: bool) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split})
}

fn file(normalizer: Value, pre_tokenizer: Value, post_processor: Value, model: Value) -> Value {
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": !special, "special": special})
    };
    json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<s>", true), added(1, "</s>", true), added(90, "Photo", false)],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": null,
        "model": model})
}

const PIECES: [&str; 24] = [
    "<s>", "</s>", "<unk>", "a", "b", "c", "e", "r", "d", "ab", "re", "red", "▁", "▁a", "Ġ", "Ġa", "##b", "##e",
    "a</w>", "b</w>", "ab</w>", "<0xC3>", "<0xA9>", "ca",
];

fn vocab() -> Value {
    PIECES
        .iter()
        .enumerate()
        .map(|(id, piece)| (piece.to_string(), json!(id)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn bpe(edit: impl Fn(&mut Value)) -> Value {
    let mut model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab(),
        "merges": [["a", "b"], ["r", "e"], ["re", "d"], ["c", "a"], ["▁", "a"], ["Ġ", "a"]]});
    edit(&mut model);
    model
}

fn unigram() -> Value {
    let scored: Vec<Value> = PIECES.iter().map(|piece| json!([piece, -(piece.len() as f64).recip()])).collect();
    json!({"type": "Unigram", "unk_id": 2, "vocab": scored, "byte_fallback": false})
}

fn template(before: &[&str], after: &[&str]) -> Value {
    let special = |id: &&str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Value> =
        before.iter().map(special).chain([text.clone()]).chain(after.iter().map(special)).collect();
    let other = json!({"Sequence": {"id": "B", "type_id": 1}});
    json!({"type": "TemplateProcessing", "single": single, "pair": [text, other], "special_tokens": {
        "<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}})
}

/// The forms of published tokenizers, by the models that have them.
fn published() -> Vec<(&'static str, Value)> {
    let sequence = |parts: &[Value]| json!({"type": "Sequence", "pretokenizers": parts});
    let normal = |parts: &[Value]| json!({"type": "Sequence", "normalizers": parts});
    let space = json!({"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "});
    let spaces = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "});
    let mut clip = regex(KNOWN[1]);
    (clip["behavior"], clip["invert"]) = (json!("Removed"), json!(true));
    let roberta = json!({"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0], "trim_offsets": false,
        "add_prefix_space": false});
    let suffix = |model: &mut Value| {
        model["end_of_word_suffix"] = json!("</w>");
        model["unk_token"] = json!("</s>");
        model["merges"] = json!([["a", "b</w>"], ["r", "e"]]);
    };
    let fallback = |model: &mut Value| {
        (model["byte_fallback"], model["fuse_unk"], model["unk_token"]) = (json!(true), json!(true), json!("<unk>"));
    };
    let table = json!({"type": "Precompiled", "precompiled_charsmap": charsmap(|_, _| {})});
    let bert = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
        "lowercase": true});
    let both = json!({"type": "Sequence", "processors": [byte_level(false), template(&["<s>"], &[])]});
    let string = |behavior: &str, pattern: &str| json!({"type": "Split", "pattern": {"String": pattern}, "behavior": behavior, "invert": false});
    let word_piece = json!({"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": vocab()});
    let words = json!({"type": "WordLevel", "vocab": vocab(), "unk_token": "<unk>"});
    let underscore = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    vec![
        (
            "CLIP",
            file(
                normal(&[json!({"type": "NFC"}), space, json!({"type": "Lowercase"})]),
                sequence(&[clip, byte_level(true)]),
                roberta,
                bpe(suffix),
            ),
        ),
        (
            "T5",
            file(
                table.clone(),
                sequence(&[json!({"type": "WhitespaceSplit"}), metaspace("always", true)]),
                template(&[], &["</s>"]),
                unigram(),
            ),
        ),
        (
            "UMT5",
            file(
                normal(&[table, spaces, json!({"type": "Strip", "strip_left": false, "strip_right": true})]),
                metaspace("always", true),
                template(&[], &["</s>"]),
                unigram(),
            ),
        ),
        (
            "Qwen2",
            file(
                json!({"type": "NFC"}),
                sequence(&[regex(KNOWN[3]), byte_level(false)]),
                byte_level(false),
                bpe(|_| {}),
            ),
        ),
        (
            "Llama 3",
            file(
                Value::Null,
                sequence(&[regex(KNOWN[5]), byte_level(false)]),
                both,
                bpe(|model| model["ignore_merges"] = json!(true)),
            ),
        ),
        (
            "Mistral",
            file(
                Value::Null,
                sequence(&[regex(KNOWN[6]), byte_level(false)]),
                template(&["<s>"], &[]),
                bpe(|model| model["merges"] = json!(["a b", "r e", "re d"])),
            ),
        ),
        ("Gemma", file(underscore.clone(), string("MergedWithPrevious", " "), template(&["<s>"], &[]), bpe(fallback))),
        (
            "Llama 2",
            file(
                normal(&[json!({"type": "Prepend", "prepend": "▁"}), underscore]),
                Value::Null,
                template(&["<s>"], &["</s>"]),
                bpe(fallback),
            ),
        ),
        ("Llama", file(Value::Null, metaspace("first", false), template(&[], &[]), bpe(fallback))),
        (
            "BERT",
            file(
                bert,
                json!({"type": "BertPreTokenizer"}),
                json!({"type": "BertProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0]}),
                word_piece,
            ),
        ),
        ("letters", file(Value::Null, string("Isolated", ""), template(&["<s>"], &[]), words)),
        (
            "others",
            file(
                normal(&["NFD", "NFKD", "NFKC", "StripAccents", "Nmt", "ByteLevel"].map(|t| json!({"type": t}))),
                sequence(&[
                    json!({"type": "Digits", "individual_digits": true}),
                    json!({"type": "UnicodeScripts"}),
                    json!({"type": "Punctuation", "behavior": "Isolated"}),
                    json!({"type": "Whitespace"}),
                    json!({"type": "FixedLength", "length": 3}),
                    json!({"type": "CharDelimiterSplit", "delimiter": "-"}),
                ]),
                Value::Null,
                unigram(),
            ),
        ),
    ]
}

#[test]
fn ids_are_those_of_the_crate() {
    let texts = ["", "red ab", "A  café, re-d!\n\n cab</s>", "  Photo of a red\tcab 1234's ", "ﬁ é ｶﾞ 東京 ab\u{fdfa}"];
    let long = "red ab ".repeat(500);
    for (name, mut content) in published() {
        for (cut, direction) in [(None, ""), (Some(7), "Right"), (Some(7), "Left")] {
            if let Some(length) = cut {
                content["truncation"] =
                    json!({"direction": direction, "max_length": length, "strategy": "LongestFirst", "stride": 0});
            }
            let bytes = content.to_string();
            let ours = Tokenizer::parse(bytes.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
            let theirs = tokenizers::Tokenizer::from_bytes(&bytes).unwrap();
            for text in texts.into_iter().chain([long.as_str()]) {
                let (ours, theirs) = (ours.encode(text).unwrap(), theirs.encode(text, true).unwrap());
                assert_eq!(ours.ids, theirs.get_ids(), "{name} {direction}: {text:?}");
                assert_eq!(ours.is_cut, !theirs.get_overflowing().is_empty(), "{name} {direction}: {text:?}");
            }
            assert_eq!(ours.vocabulary(), theirs.get_vocab(true), "{name}");
        }
    }
}

/// The error of a changed tokenizer, of those named `from`.
fn refusal(from: &str, edit: impl Fn(&mut Value)) -> String {
    let (_, mut content) = published().into_iter().find(|(name, _)| *name == from).unwrap();
    edit(&mut content);
    match Tokenizer::parse(content.to_string().as_bytes()) {
        Ok(_) => "is taken".into(),
        Err(error) if error.kind() == crate::ErrorKind::EngineDirectory => error.to_string(),
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn what_is_not_bounded_is_refused() {
    let check = |name: &str, from: &str, edit: &dyn Fn(&mut Value), words: &str| {
        let message = refusal(from, edit);
        assert!(message.contains(words), "{name}: {message}");
    };
    let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let normal = |part: Value| move |file: &mut Value| file["normalizer"] = part.clone();
    let pre = |part: Value| move |file: &mut Value| file["pre_tokenizer"] = part.clone();
    let set = |pointer: &'static str, value: Value| {
        move |file: &mut Value| *file.pointer_mut(pointer).unwrap() = value.clone()
    };
    let table = |edit: fn(&mut Vec<u32>, &mut Vec<u8>)| {
        normal(json!({"type": "Precompiled", "precompiled_charsmap": charsmap(edit)}))
    };
    let nested = |depth: usize| {
        (0..depth).fold(json!({"type": "NFC"}), |part, _| json!({"type": "Sequence", "normalizers": [part]}))
    };

    check("whole", "CLIP", &|_| {}, "is taken");
    check("unknown part", "T5", &normal(json!({"type": "Rot13"})), "`normalizer`: unknown variant `Rot13`");
    check("unknown field", "T5", &normal(json!({"type": "NFC", "twice": true})), "`normalizer`: unknown field `twice`");
    check("no type", "T5", &normal(json!({})), "`normalizer`: missing field `type`");
    check("unknown key", "T5", &|file| file["extra"] = json!(1), "unknown field `extra`");
    check("other version", "T5", &set("/version", json!("2.0")), "version \"2.0\"; expected \"1.0\"");
    check("padding", "T5", &set("/padding", json!({"strategy": {"Fixed": 0}})), "pads by itself");
    check("empty table", "T5", &normal(json!({"type": "Precompiled", "precompiled_charsmap": ""})), "is damaged");
    check("no base64", "T5", &normal(json!({"type": "Precompiled", "precompiled_charsmap": "?"})), "is no base64");
    check("half a block", "T5", &table(|units, _| units.truncate(1000)), "is damaged");
    check("way out of the table", "T5", &table(|units, _| units[0x41] |= 0x1f_ffff << 10), "is damaged");
    check("leaf out of the table", "T5", &table(|units, _| units[0] = 0xffff << 10), "is damaged");
    check("leaf behind the texts", "T5", &table(|units, _| units[768] = 99), "is damaged");
    check("leaf in a character", "T5", &table(|_, texts| *texts = "é".repeat(2).into()), "is taken");
    check("leaf inside a character", "T5", &table(|_, texts| *texts = "東東".into()), "is damaged");
    check("table of long texts", "T5", &table(|_, texts| *texts = [b'a'; 66].to_vec()), "more than 64 bytes of one");
    check("long replacement", "T5", &normal(replace(json!({"String": "a"}), &"a".repeat(100))), "puts in 100 bytes");
    check("long beginning", "T5", &normal(json!({"type": "Prepend", "prepend": "a".repeat(65)})), "puts in 65 bytes");
    check("long pattern", "T5", &normal(replace(json!({"String": "a".repeat(300)}), "")), "looks for 300 bytes");
    check("slow expression", "T5", &normal(replace(json!({"Regex": "(a+)+$"}), "")), "\"(a+)+$\" is none that this");
    check("looks back", "T5", &normal(replace(json!({"Regex": r"(a*)*\1b"}), "")), "is none that this engine knows");
    check("many of one", "T5", &normal(replace(json!({"Regex": "a{1,100000}"}), "")), "is none that this engine knows");
    check("few of one", "T5", &normal(replace(json!({"Regex": r"\p{N}{1,3}"}), "")), "is taken");
    check("no expression", "T5", &normal(replace(json!({"Regex": "("}), "")), "is none that this engine knows");
    check(
        "nine parts",
        "T5",
        &normal(json!({"type": "Sequence", "normalizers": vec![json!({"type": "NFC"}); 9]})),
        "`normalizer`: has 9 parts; expected at most 8",
    );
    check("nested", "T5", &normal(nested(9)), "is taken");
    check("nested too deep", "T5", &normal(nested(200)), "`normalizer`: recursion limit");
    check("slow division", "T5", &pre(regex("(.*)*,")), "`pre_tokenizer`: the expression");
    check("nothing at a time", "T5", &pre(json!({"type": "FixedLength", "length": 0})), "`length` is 0");
    check("negative", "T5", &pre(json!({"type": "FixedLength", "length": -1})), "`pre_tokenizer`: invalid value");

    let cut = |length: u64, stride: u64, strategy: &str| {
        set("/truncation", json!({"direction": "Right", "max_length": length, "strategy": strategy, "stride": stride}))
    };
    check("cut", "T5", &cut(8, 0, "OnlyFirst"), "is taken");
    check("stride of the whole", "T5", &cut(8, 8, "LongestFirst"), "the `stride` is 8; expected 0");
    check("cut to the end token", "T5", &cut(1, 0, "LongestFirst"), "`max_length` is 1; expected 2 to 65536");
    check("cut to all", "T5", &cut(u64::MAX, 0, "LongestFirst"), "expected 2 to 65536");
    check("second text", "T5", &cut(8, 0, "OnlySecond"), "`truncation`: unknown variant `OnlySecond`");

    check(
        "token that is not there",
        "T5",
        &set("/post_processor/special_tokens", json!({})),
        "names the token \"</s>\"",
    );
    let single = |pieces: Value| set("/post_processor/single", pieces);
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    check("no text", "T5", &single(json!([])), "does not hold the text once");
    check("text twice", "T5", &single(json!([text, text])), "does not hold the text once");
    check("other text", "T5", &single(json!([{"Sequence": {"id": "B", "type_id": 0}}])), "the second text of a pair");
    check("many pieces", "T5", &single(json!(vec![text; 65])), "has 65 pieces");
    let ids = |count: usize| set("/post_processor/special_tokens/<~1s>/ids", json!(vec![1; count]));
    check("many ids", "T5", &ids(65), "has 65 ids");
    check("huge id", "T5", &set("/post_processor/special_tokens/<~1s>/ids", json!([1u64 << 31])), "is too large");
    let templates = json!({"type": "Sequence", "processors": vec![template(&["<s>"; 33], &["</s>"; 20]); 2]});
    check("many tokens", "T5", &set("/post_processor", templates), "puts 106 tokens around a text");

    check("no model", "T5", &set("/model", json!({"vocab": {}})), "`model`: missing field `type`");
    check("other model", "T5", &set("/model/type", json!("Neural")), "the type is \"Neural\"; expected BPE");
    check("no pieces", "T5", &set("/model/vocab", json!([])), "expected one of the 0 pieces");
    check("piece that is not there", "T5", &set("/model/unk_id", json!(24)), "expected one of the 24 pieces");
    check("no unknown", "T5", &set("/model/unk_id", Value::Null), "the `unk_id` is None");
    check("long piece", "T5", &set("/model/vocab/3/0", json!("a".repeat(129))), "a piece has 129 bytes");
    check("random", "CLIP", &set("/model/dropout", json!(0.1)), "would make the ids of a prompt random");
    check("merge of nothing", "CLIP", &set("/model/merges", json!([["a", "zz"]])), "`model`:");
    check("merge of three", "CLIP", &set("/model/merges", json!(["a b c"])), "two pieces with a space");
    check("long prefix", "CLIP", &set("/model/continuing_subword_prefix", json!("#".repeat(33))), "has 33 bytes");
    check("long suffix", "CLIP", &set("/model/end_of_word_suffix", json!("#".repeat(33))), "has 33 bytes");
    check("lost prefix", "CLIP", &set("/model/continuing_subword_prefix", json!("東")), "lacks the prefix");
    check("no unknown token", "CLIP", &set("/model/unk_token", json!("zz")), "lacks the `unk_token` \"zz\"");
    check("huge token id", "CLIP", &set("/model/vocab/a", json!(u32::MAX)), "is too large");
    check("negative id", "CLIP", &set("/model/vocab/a", json!(-1)), "`model`: invalid value");
    check("long words", "BERT", &set("/model/max_input_chars_per_word", json!(1_000_000_000)), "expected at most 200");
    check("no unknown word", "letters", &set("/model/unk_token", json!("zz")), "lacks the `unk_token` \"zz\"");
    check("empty token", "T5", &set("/added_tokens/0/content", json!("")), "one has 0 bytes");
    check("long token", "T5", &set("/added_tokens/0/content", json!("a".repeat(257))), "one has 257 bytes");
    check("huge added id", "T5", &set("/added_tokens/0/id", json!(u32::MAX)), "is too large");
    check("negative added id", "T5", &set("/added_tokens/0/id", json!(-1)), "`added_tokens`: invalid value");
    check(
        "token of nothing",
        "CLIP",
        &|file| {
            file["normalizer"] = replace(json!({"Regex": "[a-zA-Z]+"}), "");
        },
        "is nothing to the normalizer",
    );
}

#[test]
fn broken_json_is_an_error() {
    for json in [
        "",
        "{",
        r#"{"decoder":{"#,
        r#"{"decoder":{}}"#,
        "null",
        "[]",
        &"[".repeat(100_000),
        &"{\"a\":".repeat(100_000),
    ] {
        let error = Tokenizer::parse(json.as_bytes()).err().unwrap().to_string();
        assert!(error.contains("does not parse as a tokenizer") && error.contains("export again"), "{error}");
    }
}

/// Long texts of what each expression and model takes longest for.
#[test]
fn no_text_takes_long() {
    let units =
        ["a", " ", "\n", " \n", "a ", "1", "'", "'s", "É", "é\u{301}", "東", "\u{fdfa}", "!", "\r\n x", "▁", "  ▁"];
    let texts = units.map(|unit| format!("{}x", unit.repeat(MAX_TEXT / 32 / unit.len())));
    let mut files: Vec<(String, Value)> = published().into_iter().map(|(name, file)| (name.to_owned(), file)).collect();
    for pattern in KNOWN {
        let replace = json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": "b"});
        files.push((format!("{pattern} divides"), file(Value::Null, regex(pattern), Value::Null, bpe(|_| {}))));
        files.push((format!("{pattern} is replaced"), file(replace, Value::Null, Value::Null, bpe(|_| {}))));
    }
    for flag in ["lstrip", "rstrip", "single_word"] {
        let mut file = file(Value::Null, Value::Null, Value::Null, bpe(|_| {}));
        file["added_tokens"][0]["content"] = json!("a");
        file["added_tokens"][0][flag] = json!(true);
        files.push((flag.to_owned(), file));
    }
    let (done, outcome) = mpsc::channel();
    std::thread::spawn(move || {
        for (name, file) in files {
            let tokenizer = Tokenizer::parse(file.to_string().as_bytes()).unwrap_or_else(|e| panic!("{name}: {e}"));
            for text in &texts {
                // Some texts become too long; that is an error of its own.
                let _ = tokenizer.encode(text);
            }
        }
        done.send(()).unwrap();
    });
    outcome.recv_timeout(PATIENCE).expect("it hangs or panics");
}

#[test]
fn what_a_text_becomes_is_bounded() {
    let growing = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(64)});
    let bytes = json!({"type": "ByteLevel"});
    for (name, normalizer) in [
        ("five replacements", json!({"type": "Sequence", "normalizers": vec![growing; 5]})),
        ("eight byte levels", json!({"type": "Sequence", "normalizers": vec![bytes; 8]})),
    ] {
        let content = file(normalizer, Value::Null, Value::Null, unigram()).to_string();
        let tokenizer = Tokenizer::parse(content.as_bytes()).unwrap();
        let error = tokenizer.encode(&"aé".repeat(1000)).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("it becomes") && error.contains("bytes; at most 24032 are read"), "{name}: {error}");
    }
    let tokenizer = Tokenizer::parse(published()[0].1.to_string().as_bytes()).unwrap();
    let error = tokenizer.encode(&"a".repeat(MAX_TEXT + 1)).err().unwrap();
    assert!(error.to_string().contains("at most 196608 are tokenized"), "{error}");
}
