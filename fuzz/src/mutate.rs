//! Changes that make hostile input of a good one: by the structure where it has one, else by bytes.

mod binary;
mod json;
mod onnx;

use crate::random::Random;

pub(crate) use self::binary::{bytes, png, safetensors, words};
pub(crate) use self::json::json;
pub(crate) use self::onnx::onnx;

/// Numbers at which programs stumble.
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "2",
    "7",
    "255",
    "256",
    "65536",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "-1e308",
    "1e400",
    "1e-320",
    "0.5",
    "nan",
    "inf",
    "00",
    "+1",
];

/// Texts at which programs stumble.
const TEXTS: &[&str] = &[
    "",
    ".",
    "..",
    "../x",
    "/",
    "/etc/passwd",
    "\\\\host\\share",
    "//host/share",
    "smb://host",
    "file:///etc",
    "CON",
    "a\0b",
    "\u{202e}",
    "é",
    "\u{fdfa}",
    "(a+)+$",
    "$A",
    "{}",
    "null",
    "batch",
    "▁",
];

/// How many changes one case has.
fn changes(random: &mut Random) -> usize {
    1 + random.below(4)
}

fn number(random: &mut Random) -> &'static str {
    random.pick::<&str>(NUMBERS)
}

fn text(random: &mut Random) -> String {
    let text = random.pick::<&str>(TEXTS);
    match random.below(8) {
        0 => text.repeat(1 << random.below(14)),
        1 => "a".repeat(1 << random.below(18)),
        _ => (*text).to_owned(),
    }
}
