//! Bytes, words of a tag, headers of safetensors, chunks of a PNG.

use super::{changes, json, number, text};
use crate::random::Random;

/// Bits are flipped, runs removed, doubled or set.
pub(crate) fn bytes(random: &mut Random, seed: &[u8]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..changes(random) {
        let at = random.below(bytes.len());
        let end = (at + 1 + random.below(16)).min(bytes.len());
        match random.below(6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => drop(bytes.splice(at..at, bytes[at..end].repeat(1 + random.below(64)))),
            3 => bytes[at..end].fill(*random.pick(&[0, 1, 0x7f, 0x80, 0xff])),
            _ if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            _ => bytes.push(random.number() as u8),
        }
    }
    bytes
}

/// Numbers and words between underscores are replaced, doubled and mixed with those of other texts.
pub(crate) fn words(random: &mut Random, seed: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    let split = |text: &[u8]| String::from_utf8_lossy(text).split('_').map(str::to_owned).collect::<Vec<_>>();
    let (mut words, lent) = (split(seed), split(random.pick::<Vec<u8>>(others)));
    for _ in 0..changes(random) {
        let at = random.below(words.len());
        match random.below(6) {
            0 => words.insert(at, random.pick(&lent).clone()),
            1 => words.push(words[at].clone()),
            2 if words.len() > 1 => drop(words.remove(at)),
            3 => words[at] += &text(random),
            _ => {
                let letters: String = words[at].chars().take_while(|c| !c.is_ascii_digit()).collect();
                words[at] = letters + number(random);
            }
        }
    }
    let text = words.join("_").into_bytes();
    if random.below(10) == 0 { bytes(random, &text) } else { text }
}

/// The header is changed as JSON, and its length agrees; or the bytes are.
pub(crate) fn safetensors(random: &mut Random, seed: &[u8]) -> Vec<u8> {
    let header = seed.first_chunk().map_or(0, |length| u64::from_le_bytes(*length) as usize);
    match (random.below(4), seed.get(8..8 + header)) {
        (0, _) | (_, None) => bytes(random, seed),
        (_, Some(json)) => {
            let changed = self::json(random, json, &[json.to_vec()]);
            [&(changed.len() as u64).to_le_bytes()[..], &changed, &seed[8 + header..]].concat()
        }
    }
}

/// Chunks are changed, doubled and removed, and their checksums agree.
pub(crate) fn png(random: &mut Random, seed: &[u8]) -> Vec<u8> {
    let (head, mut rest) = seed.split_at(8.min(seed.len()));
    let mut chunks: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    while let Some(length) = rest.first_chunk().map(|length| u32::from_be_bytes(*length) as usize) {
        let Some(chunk) = rest.get(4..12 + length) else { break };
        chunks.push((chunk[..4].to_vec(), chunk[4..4 + length].to_vec()));
        rest = &rest[12 + length..];
    }
    if chunks.is_empty() || random.below(4) == 0 {
        return bytes(random, seed);
    }
    for _ in 0..changes(random) {
        let at = random.below(chunks.len());
        match random.below(6) {
            0 if chunks.len() > 1 => drop(chunks.remove(at)),
            1 => chunks.push(chunks[at].clone()),
            2 => {
                chunks[at].0 =
                    random.pick(&[*b"IDAT", *b"iTXt", *b"zTXt", *b"tEXt", *b"acTL", *b"fcTL", *b"PLTE"]).to_vec()
            }
            _ => chunks[at].1 = bytes(random, &chunks[at].1),
        }
    }
    let mut png = head.to_vec();
    for (name, data) in chunks {
        let named = [name, data].concat();
        png.extend((named.len() as u32 - 4).to_be_bytes());
        png.extend(&named);
        png.extend(crc32fast::hash(&named).to_be_bytes());
    }
    png
}
