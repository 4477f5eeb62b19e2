//! The table of characters of a `Precompiled` normaliser: a trie in an array, and the texts that its leaves point at.
//!
//! Whoever looks a character up follows the array's offsets without a check, so every way through it is walked here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A node and its children lie in one block of so many units.
const BLOCK: usize = 256;
/// Longest text that a character becomes, in bytes; 33 are the most in Unicode.
const MAX_TEXT: usize = 64;

pub(super) fn check(base64: &str) -> Result<(), String> {
    let table = STANDARD.decode(base64).map_err(|error| format!("the table of characters is no base64 ({error})"))?;
    let broken = || "the table of characters is damaged".to_owned();
    let (size, rest) = table.split_first_chunk().ok_or_else(broken)?;
    let size = u32::from_le_bytes(*size) as usize;
    let (trie, texts) = rest.split_at_checked(size).ok_or_else(broken)?;
    let texts = std::str::from_utf8(texts).map_err(|_| broken())?;
    let units: Vec<u32> = trie.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    if !size.is_multiple_of(4) || units.is_empty() || !units.len().is_multiple_of(BLOCK) {
        return Err(broken());
    }
    let mut seen = vec![false; units.len()];
    let mut waiting = vec![offset(units[0])];
    while let Some(node) = waiting.pop() {
        if *seen.get(node).ok_or_else(broken)? {
            continue;
        }
        seen[node] = true;
        for label in 1..=u8::MAX {
            let child = node ^ usize::from(label); // in the block of the node
            let unit = units[child];
            if unit & (1 << 31 | 0xff) != u32::from(label) {
                continue;
            }
            let next = child ^ offset(unit);
            if unit >> 8 & 1 == 1 {
                let leaf = *units.get(next).ok_or_else(broken)? & ((1 << 31) - 1);
                let text = texts.get(leaf as usize..).ok_or_else(broken)?;
                if text.bytes().take_while(|byte| *byte != 0).take(MAX_TEXT + 1).count() > MAX_TEXT {
                    return Err(format!("the table of characters makes more than {MAX_TEXT} bytes of one"));
                }
            }
            waiting.push(next);
        }
    }
    Ok(())
}

fn offset(unit: u32) -> usize {
    (unit as usize >> 10) << ((unit & 1 << 9) >> 6)
}
