//! The content of parameters, as SHA-256 of their bytes.
//!
//! A manifest's hash of a weights file is what the exporter saw, not what lies there now, and some manifests have none.
//! So the bytes are read once, and what was found is remembered with the file's identity: size, times and inode. While
//! these stay as they are, a later start reads nothing; any change makes all digests of that file void.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::sealed;
use crate::error::{Error, Result};
use crate::model::weights::{hash_bytes, hex};
use crate::threads::on_threads;

/// Where one parameter lies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Range {
    pub file: PathBuf,
    pub offset: u64,
    pub bytes: u64,
}

/// SHA-256 by range.
pub(crate) type Digests = BTreeMap<Range, String>;

/// A file that was written so short a time ago may change again without a change of its times.
const SETTLED: Duration = Duration::from_secs(2);

/// What is remembered of one weights file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RememberedHashes {
    file: PathBuf,
    identity: Identity,
    /// `(offset, bytes, SHA-256)`.
    parameters: Vec<(u64, u64, String)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    bytes: u64,
    modified_ns: u128,
    /// Unix: when the inode changed, which no program can set; elsewhere when the file was created.
    changed_ns: u128,
    inode: u64,
    device: u64,
}

impl Identity {
    fn of(file: &Path) -> Result<Self> {
        let metadata = fs::metadata(file).map_err(|error| Error::io("read", file, error))?;
        let ns = |time: std::io::Result<SystemTime>| {
            time.ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).map_or(0, |t| t.as_nanos())
        };
        let (changed_ns, inode, device) = inode(&metadata).unwrap_or((ns(metadata.created()), 0, 0));
        Ok(Self { bytes: metadata.len(), modified_ns: ns(metadata.modified()), changed_ns, inode, device })
    }

    /// Whether the file was left alone for long enough that its times tell of a later change.
    fn is_settled(&self, now: SystemTime) -> bool {
        let newest = self.modified_ns.max(self.changed_ns);
        let before = now.checked_sub(SETTLED).and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        before.is_some_and(|before| newest < before.as_nanos())
    }
}

#[cfg(unix)]
fn inode(metadata: &Metadata) -> Option<(u128, u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let seconds = u128::try_from(metadata.ctime()).ok()?;
    let ns = u128::try_from(metadata.ctime_nsec()).ok()?;
    Some((seconds * 1_000_000_000 + ns, metadata.ino(), metadata.dev()))
}

#[cfg(not(unix))]
fn inode(_: &Metadata) -> Option<(u128, u64, u64)> {
    None
}

/// The digest of every range; `memory` is the folder of what is remembered, if it may be.
///
/// # Errors
/// `Io` if a file cannot be read, or changes while it is.
pub(crate) fn digests(ranges: impl IntoIterator<Item = Range>, memory: Option<&Path>) -> Result<Digests> {
    let mut files: BTreeMap<PathBuf, BTreeSet<(u64, u64)>> = BTreeMap::new();
    for range in ranges {
        files.entry(range.file).or_default().insert((range.offset, range.bytes));
    }
    let mut digests = Digests::new();
    for (file, wanted) in files {
        for ((offset, bytes), digest) in of_file(&file, &wanted, memory)? {
            digests.insert(Range { file: file.clone(), offset, bytes }, digest);
        }
    }
    Ok(digests)
}

fn of_file(file: &Path, wanted: &BTreeSet<(u64, u64)>, memory: Option<&Path>) -> Result<BTreeMap<(u64, u64), String>> {
    let begin = SystemTime::now();
    let identity = Identity::of(file)?;
    let place = memory.map(|folder| folder.join(format!("{}.json", hash_bytes(file.as_os_str().as_encoded_bytes()))));
    let known = place.as_deref().map(|place| remembered(place, file, &identity)).unwrap_or_default();
    let missing: Vec<(u64, u64)> = wanted.iter().filter(|range| !known.contains_key(range)).copied().collect();
    let fresh = hash_ranges(file, &missing)?;
    if Identity::of(file)? != identity {
        let changed = std::io::Error::other("it changed meanwhile; start again when nothing writes to it");
        return Err(Error::io("read", file, changed));
    }
    let learned = !fresh.is_empty();
    let mut all = known;
    all.extend(fresh);
    if let Some(place) = place.filter(|_| learned && identity.is_settled(begin)) {
        let parameters = all.iter().map(|((offset, bytes), digest)| (*offset, *bytes, digest.clone())).collect();
        let memory = RememberedHashes { file: file.to_owned(), identity, parameters };
        // A store that may only be read is still of use; the next start then reads the weights again.
        if let Err(error) = sealed::write(&place, &memory) {
            tracing::warn!(%error, "cannot remember the digests of the weights");
        }
    }
    all.retain(|range, _| wanted.contains(range));
    Ok(all)
}

fn remembered(place: &Path, file: &Path, identity: &Identity) -> BTreeMap<(u64, u64), String> {
    match sealed::read::<RememberedHashes>(place) {
        Ok(memory) if memory.file == file && memory.identity == *identity => {
            memory.parameters.into_iter().map(|(offset, bytes, digest)| ((offset, bytes), digest)).collect()
        }
        Ok(_) => BTreeMap::new(),
        Err(reason) => {
            if place.exists() {
                tracing::warn!(place = %place.display(), reason, "the weights are read again");
            }
            BTreeMap::new()
        }
    }
}

/// Whether a file of digests can still save somebody from reading weights.
pub(super) fn is_of_use(place: &Path) -> bool {
    let of = sealed::read::<RememberedHashes>(place).ok();
    of.is_some_and(|memory| Identity::of(&memory.file).is_ok_and(|identity| identity == memory.identity))
}

/// Hashes on all cores: a large model has tens of gigabytes.
fn hash_ranges(file: &Path, ranges: &[(u64, u64)]) -> Result<BTreeMap<(u64, u64), String>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Ok(BTreeMap::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(ranges.len());
    on_threads(threads, || {
        while let Some(range) = ranges.get(next.fetch_add(1, Ordering::Relaxed)) {
            let digest = hash_range(file, range.0, range.1);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            match (digest, done.as_mut()) {
                (Ok(digest), Ok(all)) => {
                    all.insert(*range, digest);
                }
                (Err(error), Ok(_)) => *done = Err(error),
                (_, Err(_)) => return,
            }
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn hash_range(path: &Path, offset: u64, bytes: u64) -> Result<String> {
    let fail = |error| Error::io("read", path, error);
    let mut file = File::open(path).map_err(fail)?;
    file.seek(SeekFrom::Start(offset)).map_err(fail)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; (1 << 20).min(bytes as usize)];
    let mut left = bytes;
    while left > 0 {
        let length = piece.len().min(left as usize);
        file.read_exact(&mut piece[..length]).map_err(fail)?;
        hash.update(&piece[..length]);
        left -= length as u64;
    }
    Ok(hex(&hash.finalize()))
}
