//! Looks at a library file without loading it: the loader of Linux crashes on damaged files, and its words for foreign
//! ones mislead ("No such file or directory").

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use crate::packages::FILE_NAME;

/// What is said of a place without a library. It is usual, so that nobody is warned.
pub(super) const NOT_THERE: &str = "not there";

/// Whether a file looks like a library for this machine, or what is wrong with it.
pub(super) fn inspect_file(path: &Path) -> Result<(), String> {
    let describe = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => NOT_THERE.to_owned(),
        _ => error.to_string(),
    };
    let metadata = path.metadata().map_err(describe)?;
    if metadata.is_dir() {
        let inside = path.join(FILE_NAME);
        let hint = if inside.exists() { format!("; did you mean {}?", inside.display()) } else { String::new() };
        return Err(format!("a directory instead of a library file{hint}"));
    }
    if !metadata.is_file() {
        return Err("not a regular file".to_owned());
    }
    if metadata.len() == 0 {
        return Err("an empty file".to_owned());
    }
    let mut file = File::open(path).map_err(describe)?;
    if cfg!(all(target_pointer_width = "64", target_endian = "little", unix, not(target_vendor = "apple"))) {
        inspect_elf(&mut file, metadata.len())
    } else {
        inspect_magic(&mut file)
    }
}

/// The loaders of macOS and Windows refuse damaged files themselves; this only makes for a better message.
fn inspect_magic(file: &mut File) -> Result<(), String> {
    let magic: [u8; 4] = read_at(file, 0)?;
    let is_library = if cfg!(windows) {
        magic.starts_with(b"MZ")
    } else {
        matches!(u32::from_be_bytes(magic), 0xcffa_edfe | 0xcafe_babe | 0xcafe_babf)
    };
    if is_library { Ok(()) } else { Err("not a shared library".to_owned()) }
}

/// Refuses what makes the loader of Linux crash instead of failing: a file that ends before the segments which its
/// header tells the loader to map, or that has nothing where the loader's own table should be. Offsets are those of the
/// 64-bit ELF header and program header.
fn inspect_elf(file: &mut File, length: u64) -> Result<(), String> {
    const SHARED_OBJECT: u64 = 3;
    const LOADED_SEGMENT: u32 = 1;
    const DYNAMIC_TABLE: u32 = 2;
    let header: [u8; 64] = read_at(file, 0)?;
    inspect_processor(&header)?;
    if u16_at(&header, 16) != SHARED_OBJECT {
        return Err("not a shared library".to_owned());
    }
    let cut_off = || format!("damaged: the file is cut off after {length} bytes");
    let must_fit = |start: u64, size: u64| match start.checked_add(size) {
        Some(end) if end <= length => Ok(()),
        _ => Err(cut_off()),
    };
    let (segments, segment_size, segment_count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    let (sections, section_size, section_count) = (u64_at(&header, 40), u16_at(&header, 58), u16_at(&header, 60));
    must_fit(segments, segment_size * segment_count)?;
    must_fit(sections, section_size * section_count)?;
    let mut has_table = false;
    for index in 0..segment_count {
        let segment: [u8; 56] = read_at(file, segments + index * segment_size).map_err(|_| cut_off())?;
        let (kind, offset, size) = (u32_at(&segment, 0), u64_at(&segment, 8), u64_at(&segment, 32));
        if kind == LOADED_SEGMENT {
            must_fit(offset, size)?;
        } else if kind == DYNAMIC_TABLE {
            has_table = has_symbols(file, offset, size)?;
        }
    }
    if has_table { Ok(()) } else { Err("damaged: it has no table of symbols".to_owned()) }
}

fn inspect_processor(header: &[u8; 64]) -> Result<(), String> {
    const MACHINES: [(&str, u64); 3] = [("x86_64", 62), ("aarch64", 183), ("riscv64", 243)];
    const BITS_64: u8 = 2;
    const LITTLE_ENDIAN: u8 = 1;
    if !header.starts_with(b"\x7fELF") {
        return Err("not a shared library".to_owned());
    }
    let expected = std::env::consts::ARCH;
    let machine = u16_at(header, 18);
    let name = MACHINES.iter().find(|(_, number)| *number == machine).map_or("another processor", |(name, _)| name);
    let is_known = MACHINES.iter().any(|(name, _)| *name == expected);
    if header[4] != BITS_64 || header[5] != LITTLE_ENDIAN || (is_known && name != expected) {
        return Err(format!("a library for {name}; expected {expected}"));
    }
    Ok(())
}

/// Whether the loader's table names both symbols and their strings.
fn has_symbols(file: &mut File, offset: u64, size: u64) -> Result<bool, String> {
    const END: u64 = 0;
    const STRINGS: u64 = 5;
    const SYMBOLS: u64 = 6;
    let (mut strings, mut symbols) = (false, false);
    for index in 0..size / 16 {
        let entry: [u8; 16] = read_at(file, offset.saturating_add(index * 16))?;
        match u64_at(&entry, 0) {
            END => break,
            STRINGS => strings = true,
            SYMBOLS => symbols = true,
            _ => {}
        }
    }
    Ok(strings && symbols)
}

fn read_at<const N: usize>(file: &mut File, offset: u64) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut bytes)).map_err(|error| {
        match error.kind() {
            ErrorKind::UnexpectedEof => "not a shared library: the file is too short".to_owned(),
            _ => error.to_string(),
        }
    })?;
    Ok(bytes)
}

// Numbers at a fixed offset; every caller passes one inside the header it read.

fn u16_at(header: &[u8], offset: usize) -> u64 {
    little_endian(&header[offset..offset + 2])
}

fn u32_at(header: &[u8], offset: usize) -> u32 {
    little_endian(&header[offset..offset + 4]) as u32
}

fn u64_at(header: &[u8], offset: usize) -> u64 {
    little_endian(&header[offset..offset + 8])
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(bytes: &[u8]) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        std::fs::write(&path, bytes).unwrap();
        inspect_file(&path)
    }

    #[test]
    fn files_that_are_no_library_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(inspect_file(&folder.path().join("no")), Err("not there".into()));
        assert_eq!(inspect_file(folder.path()), Err("a directory instead of a library file".into()));
        std::fs::write(folder.path().join(FILE_NAME), "").unwrap();
        assert!(inspect_file(folder.path()).unwrap_err().contains("; did you mean "));
        assert_eq!(reason(b""), Err("an empty file".into()));
        assert!(reason(b"x").unwrap_err().starts_with("not a shared library"));
        assert_eq!(reason(&[b'x'; 100]), Err("not a shared library".into()));
        if cfg!(unix) {
            assert_eq!(inspect_file(Path::new("/dev/null")), Err("not a regular file".into()));
        }
    }

    /// An ELF library of one loaded segment, a table with strings and symbols, and no sections.
    #[cfg(target_os = "linux")]
    fn tiny_elf() -> Vec<u8> {
        let machine: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        bytes.extend([3_u16.to_le_bytes(), machine.to_le_bytes()].concat());
        bytes.resize(32, 0);
        bytes.extend([64_u64.to_le_bytes(), 0_u64.to_le_bytes()].concat()); // where segments and sections are listed
        bytes.resize(54, 0);
        bytes.extend([56_u16.to_le_bytes(), 2_u16.to_le_bytes()].concat()); // size and number of the segments' entries
        for (kind, offset, size) in [(1_u32, 0_u64, 224_u64), (2, 176, 48)] {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            let end = bytes.len() + 56;
            bytes.extend(kind.to_le_bytes());
            bytes.resize(end - 48, 0);
            bytes.extend(offset.to_le_bytes());
            bytes.resize(end - 24, 0);
            bytes.extend(size.to_le_bytes());
            bytes.resize(end, 0);
        }
        for entry in [[5_u64, 1], [6, 1], [0, 0]] {
            bytes.extend(entry.map(u64::to_le_bytes).concat());
        }
        bytes
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn damaged_and_foreign_libraries_are_refused() {
        let check = |change: fn(&mut Vec<u8>), expected: &str| {
            let mut bytes = tiny_elf();
            change(&mut bytes);
            let got = reason(&bytes).map_or_else(|reason| reason, |_| "fine".to_owned());
            assert!(got.contains(expected), "{got:?}; expected {expected:?}");
        };
        check(|_| (), "fine");
        check(|bytes| bytes.truncate(223), "cut off after 223 bytes");
        check(|bytes| bytes.truncate(100), "cut off after 100 bytes");
        check(|bytes| bytes.truncate(63), "too short");
        check(|bytes| bytes[40] = 200, "fine"); // no sections, wherever they are
        check(|bytes| (bytes[40], bytes[58], bytes[60]) = (200, 64, 1), "cut off");
        check(|bytes| bytes[40..48].fill(255), "cut off");
        check(|bytes| bytes[32..40].fill(255), "cut off");
        check(|bytes| bytes[72..80].fill(255), "cut off");
        check(|bytes| bytes[176..].fill(0), "no table of symbols");
        check(|bytes| bytes[56] = 1, "no table of symbols");
        check(|bytes| bytes[18] = 243, "a library for riscv64; expected");
        check(|bytes| bytes[4] = 1, "a library for");
        check(|bytes| bytes[16] = 2, "not a shared library");
    }
}
