//! Leaves out of a library of CUDA's the device code that one machine does not need.
//!
//! The section `.nv_fatbin` is a row of containers, one for each source file of kernels. A container has an entry for each
//! architecture, and programs name containers by their address. So every container keeps its place: what stays moves to its
//! front, its size is corrected, and zeros follow, which compress to nothing.

use std::io::Read;
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use ruzstd::decoding::StreamingDecoder;

/// What stands at the beginning of a container.
const MAGIC: u32 = 0xBA55_ED50;
/// What stands at the beginning of an entry that is compressed.
const ZSTD: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
/// The kind of entries that are machine code.
const MACHINE_CODE: u16 = 2;

/// Parts of the names of kernels that only language models use: mixtures of experts, weights of 4 and 8 bits, attention over
/// stored keys, and attention of few queries, which is divided along its keys. They are five sixths of the code.
const LANGUAGE_MODELS: [&str; 10] = [
    "MoE",
    "Moe",
    "moe",
    "fpA_int",
    "11onnxruntime3llm",
    "MixedInput",
    "GroupProblemShape",
    "deep_gemm",
    "kernel_mha",
    "splitkv",
];
/// A kernel that does nothing, which a library of NVIDIA's puts everywhere.
const EMPTY_KERNEL: &str = "EmptyKernel";

/// Which entries stay.
#[derive(Clone, Copy)]
pub struct Wanted {
    /// Such as 90.
    pub architecture: u32,
    /// Also the kernels that only language models use.
    pub with_language_models: bool,
}

/// What a library holds afterwards.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    pub containers: usize,
    pub kept: usize,
    pub kept_bytes: usize,
    /// Entries of the architecture that only language models use.
    pub of_language_models: usize,
    /// Containers of which nothing stayed.
    pub emptied: usize,
}

/// One container of the section, by places in the file.
struct Container {
    at: usize,
    content: Range<usize>,
    entries: Vec<Entry>,
}

struct Entry {
    place: Range<usize>,
    kind: u16,
    architecture: u32,
    /// What is in it, compressed or not.
    payload: Range<usize>,
}

/// Prunes a library in place.
///
/// A container of which nothing would stay gets the smallest entry of another architecture: such containers are there before,
/// of kernels that were not built for every architecture, and CUDA passes over them.
pub fn prune(library: &mut [u8], wanted: Wanted) -> Result<Pruned> {
    let containers = containers(library, section(library, ".nv_fatbin")?)?;
    let all = containers.iter().flat_map(|container| &container.entries);
    let others = all.filter(|entry| entry.kind == MACHINE_CODE && entry.architecture != wanted.architecture);
    let filler = others.min_by_key(|entry| entry.place.len()).map(|entry| library[entry.place.clone()].to_vec());
    let mut pruned = Pruned { containers: containers.len(), ..Pruned::default() };
    for container in &containers {
        let mut content = Vec::with_capacity(container.content.len());
        let mine = |entry: &&Entry| entry.kind == MACHINE_CODE && entry.architecture == wanted.architecture;
        for entry in container.entries.iter().filter(mine) {
            if !wanted.with_language_models && is_of_language_models(&library[entry.payload.clone()])? {
                pruned.of_language_models += 1;
                continue;
            }
            content.extend_from_slice(&library[entry.place.clone()]);
            pruned.kept += 1;
        }
        pruned.kept_bytes += content.len();
        if content.is_empty() {
            pruned.emptied += 1;
            content.extend_from_slice(filler.as_deref().context("the library has code of one architecture only")?);
            ensure!(content.len() <= container.content.len(), "a container has no room for an entry of nothing");
        }
        let size = u64::try_from(content.len())?.to_le_bytes();
        content.resize(container.content.len(), 0);
        library[container.content.clone()].copy_from_slice(&content);
        library[container.at + 8..container.at + 16].copy_from_slice(&size);
    }
    ensure!(pruned.kept > 0, "there is no code for architecture {}", wanted.architecture);
    Ok(pruned)
}

/// Where a section of an ELF file lies.
fn section(file: &[u8], name: &str) -> Result<Range<usize>> {
    ensure!(file.get(..6) == Some(b"\x7fELF\x02\x01"), "not an ELF file of 64 bits");
    let (table, size) = (number(file, 0x28, 8)?, number(file, 0x3A, 2)?);
    let (count, names) = (number(file, 0x3C, 2)?, number(file, 0x3E, 2)?);
    let header = |index: usize| table + index * size;
    let texts = number(file, header(names) + 24, 8)?;
    for index in 0..count {
        let text = file.get(texts + number(file, header(index), 4)?..).context("a name lies outside of the file")?;
        if text.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0)) {
            let (at, bytes) = (number(file, header(index) + 24, 8)?, number(file, header(index) + 32, 8)?);
            ensure!(at.checked_add(bytes).is_some_and(|end| end <= file.len()), "{name} lies outside of the file");
            return Ok(at..at + bytes);
        }
    }
    bail!("the file has no section {name}")
}

fn containers(file: &[u8], section: Range<usize>) -> Result<Vec<Container>> {
    let mut containers = Vec::new();
    let mut at = section.start;
    while at + 16 <= section.end {
        // Containers begin at multiples of 8.
        if number(file, at, 4)? != MAGIC as usize {
            at += 8;
            continue;
        }
        let start = at + number(file, at + 6, 2)?;
        let content = start..start + number(file, at + 8, 8)?;
        ensure!(content.end <= section.end, "a container is larger than its section");
        let (mut entries, mut next) = (Vec::new(), content.start);
        while next < content.end {
            let entry = entry(file, next)?;
            ensure!(entry.place.end <= content.end, "an entry is larger than its container");
            next = entry.place.end;
            entries.push(entry);
        }
        containers.push(Container { at, content: content.clone(), entries });
        at = content.end;
    }
    Ok(containers)
}

fn entry(file: &[u8], at: usize) -> Result<Entry> {
    let payload = at + number(file, at + 4, 4)?;
    let (padded, compressed) = (number(file, at + 8, 8)?, number(file, at + 16, 4)?);
    let length = if compressed == 0 { padded } else { compressed.min(padded) };
    ensure!(payload > at && payload + padded <= file.len(), "an entry lies outside of the file");
    Ok(Entry {
        place: at..payload + padded,
        kind: u16::try_from(number(file, at, 2)?)?,
        architecture: u32::try_from(number(file, at + 28, 4)?)?,
        payload: payload..payload + length,
    })
}

/// A number of so many bytes, the lowest first.
fn number(file: &[u8], at: usize, bytes: usize) -> Result<usize> {
    let bytes = file.get(at..at + bytes).context("the file is cut off")?;
    let number = bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    Ok(usize::try_from(number)?)
}

/// Whether machine code has kernels, and all of them are those of language models.
fn is_of_language_models(payload: &[u8]) -> Result<bool> {
    let code = if payload.starts_with(&ZSTD) {
        let mut code = Vec::new();
        StreamingDecoder::new(payload)?.read_to_end(&mut code)?;
        code
    } else {
        payload.to_vec()
    };
    let mut names = kernels(&code).filter(|name| !name.contains(EMPTY_KERNEL)).peekable();
    let has_kernels = names.peek().is_some();
    Ok(has_kernels && names.all(|name| LANGUAGE_MODELS.iter().any(|part| name.contains(part))))
}

/// The names of kernels: each has a section of its own.
fn kernels(code: &[u8]) -> impl Iterator<Item = &str> {
    let texts = code.split(|byte| *byte == 0).filter_map(|text| text.strip_prefix(b".text."));
    texts.filter_map(|name| std::str::from_utf8(name).ok())
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    const ALL: Wanted = Wanted { architecture: 90, with_language_models: true };

    fn entry(architecture: u32, payload: &[u8]) -> Vec<u8> {
        let mut entry = vec![0; 64];
        entry[..2].copy_from_slice(&MACHINE_CODE.to_le_bytes());
        entry[4..8].copy_from_slice(&64_u32.to_le_bytes());
        entry[8..16].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        entry[28..32].copy_from_slice(&architecture.to_le_bytes());
        entry.extend_from_slice(payload);
        entry
    }

    fn container(entries: &[Vec<u8>]) -> Vec<u8> {
        let content = entries.concat();
        let mut container = [MAGIC.to_le_bytes().as_slice(), &[1, 0, 16, 0], &content.len().to_le_bytes()].concat();
        container.extend(content);
        container
    }

    /// An ELF file that is little more than a section of containers.
    fn library(containers: &[Vec<u8>]) -> Vec<u8> {
        let (fatbin, names) = (containers.concat(), b"\0.nv_fatbin\0".to_vec());
        let (names_at, table_at) = (64 + fatbin.len(), 64 + fatbin.len() + 16);
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x28..0x30].copy_from_slice(&table_at.to_le_bytes());
        file[0x3A..0x40].copy_from_slice(&[64, 0, 2, 0, 1, 0]);
        file.extend(&fatbin);
        file.extend(&names);
        file.resize(table_at, 0);
        for (name, at, bytes) in [(1_u32, 64, fatbin.len()), (0, names_at, names.len())] {
            let mut header = vec![0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[24..32].copy_from_slice(&at.to_le_bytes());
            header[32..40].copy_from_slice(&bytes.to_le_bytes());
            file.extend(header);
        }
        file
    }

    #[test]
    fn one_architecture_stays_where_it_was() {
        let (mine, other) = (entry(90, b"\0.text.copy\0abc."), entry(75, b"\0.text.copy\0defghijklmn."));
        let before = library(&[
            container(&[other.clone(), mine.clone()]),
            container(from_ref(&mine)),
            container(from_ref(&other)),
        ]);
        let mut after = before.clone();
        let pruned = prune(&mut after, ALL).unwrap();
        let expected = Pruned { containers: 3, kept: 2, kept_bytes: 2 * mine.len(), of_language_models: 0, emptied: 1 };
        assert_eq!(pruned, expected);
        assert_eq!(after.len(), before.len());
        let found = containers(&after, section(&after, ".nv_fatbin").unwrap()).unwrap();
        assert_eq!(found.iter().map(|container| container.entries.len()).collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!(&after[found[0].entries[0].place.clone()], &mine);
        assert_eq!(&after[found[2].entries[0].place.clone()], &other);
        assert!(after[found[0].content.end..found[1].at].iter().all(|byte| *byte == 0));
        assert_eq!(found[1].at, 64 + container(&[other, mine]).len(), "the second container has moved");
    }

    #[test]
    fn kernels_of_language_models_go_unless_others_are_beside_them() {
        let experts = entry(90, b"\0.text.MoeFCGemm\0.text.EmptyKernel\0..........");
        let both = entry(90, b"\0.text.MoeFCGemm\0.text.softmax\0");
        let library = library(&[container(&[entry(75, b"1234567."), experts]), container(&[both])]);
        let (mut fewer, mut all) = (library.clone(), library);
        let pruned = prune(&mut fewer, Wanted { with_language_models: false, ..ALL }).unwrap();
        assert_eq!((pruned.kept, pruned.of_language_models, pruned.emptied), (1, 1, 1));
        assert_eq!(prune(&mut all, ALL).unwrap().kept, 2);
    }

    #[test]
    fn what_cannot_be_pruned_is_refused() {
        let refusal =
            |library: &mut [u8], architecture| prune(library, Wanted { architecture, ..ALL }).unwrap_err().to_string();
        assert!(refusal(&mut b"text".to_vec(), 90).contains("not an ELF file"));
        let mut one = library(&[container(&[entry(75, b"1234567.")])]);
        assert!(refusal(&mut one.clone(), 90).contains("no code for architecture 90"));
        one[64 + 8] += 8;
        assert!(refusal(&mut one, 75).contains("larger than its section"));
    }
}
