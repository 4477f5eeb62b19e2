//! Where the weights lie below the folder that `--weights` names: that of a model which moved, was downloaded again, or
//! lies in a Hugging Face cache, whose files are links to others.
//!
//! A file is known by its size and header, wherever it lies. First come the places that are known without a search: the
//! ends of the path that the manifest records (`transformer/x.safetensors`, `x.safetensors`), and the file's name in the
//! manifest; then all safetensors files in two levels of folders. Links are followed here: the user named the folder, and
//! what is found counts by its content.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::graph::Weights;
use super::manifest::WeightsSpec;
use super::weights::{Header, WeightsFile, hash_file};
use crate::error::{At, Error, Result};

/// Most folders of a recorded path that are looked for: `hub/models--…/blobs/<hash>`, and one more.
const ENDS: usize = 5;
/// Most names that are read while searching; a model has fewer, a home directory more.
const MOST_NAMES: usize = 10_000;
/// Most files that an error tells of.
const MOST_TOLD: usize = 4;
const ENDING: &str = ".safetensors";

/// Finds the files of `specs` below `folder`, and writes into `specs` where they are. What the engine directory holds
/// itself may stay there, if something else is below `folder`.
///
/// # Errors
/// `EngineDirectory`: a file is not there, or two could be it; `Usage`: no file is below `folder`, and none is missed.
pub(super) fn find(folder: &Path, directory: &Path, specs: &mut [WeightsSpec]) -> Result<Weights> {
    let search = Search::new(folder)?;
    let place = |spec: &WeightsSpec| format!("weights `{}`", spec.name);
    let mut weights = Weights::new();
    let mut missed = Vec::new();
    for spec in specs.iter() {
        let mut others = Vec::new();
        match search.known_places(spec, directory, &mut others).at(place(spec))? {
            Some(file) => drop(weights.insert(spec.name.clone(), file)),
            None => missed.push((spec, others)),
        }
    }
    for (spec, mut others) in missed {
        let file = search.anywhere(spec, &owners(specs, &weights), &mut others).at(place(spec))?;
        weights.insert(spec.name.clone(), file);
    }
    check_distinct(specs, &weights)?;
    let own = directory.canonicalize().map_err(|error| Error::io("read", directory, error))?;
    let outside = |spec: &&mut WeightsSpec| spec.folder.is_some() || weights[&spec.name].folder != own;
    let mut moved: Vec<_> = specs.iter_mut().filter(outside).collect();
    if moved.is_empty() && search.real()? != own {
        let problem = format!("{} has no effect: the engine holds its weights itself; leave it out", folder.display());
        return Err(Error::option("weights", problem));
    }
    for spec in &mut moved {
        let WeightsFile { folder, file, .. } = &weights[&spec.name];
        (spec.folder, spec.file) = (folder.to_str().map(str::to_owned), file.clone());
    }
    Ok(weights)
}

/// Whose file each is, by its real path.
type Owners<'a> = BTreeMap<PathBuf, &'a WeightsSpec>;

fn owners<'a>(specs: &'a [WeightsSpec], weights: &Weights) -> Owners<'a> {
    let path = |spec: &'a WeightsSpec| weights.get(&spec.name).map(|file| (file.folder.join(&file.file), spec));
    specs.iter().filter_map(path).collect()
}

/// Whether one file may stand for both: a cache keeps equal files once.
fn are_one(a: &WeightsSpec, b: &WeightsSpec) -> bool {
    (&a.folder, &a.file) == (&b.folder, &b.file) || (a.sha256.is_some() && a.sha256 == b.sha256)
}

fn check_distinct(specs: &[WeightsSpec], weights: &Weights) -> Result<()> {
    let owners = owners(specs, weights);
    for spec in specs {
        let WeightsFile { folder, file, .. } = &weights[&spec.name];
        let path = folder.join(file);
        if let Some(owner) = owners.get(&path)
            && !are_one(owner, spec)
        {
            return Err(Error::directory(format!(
                "{} fits `{}` and `{}`, two files of one layout, and the other one is not there; {}",
                path.display(),
                spec.name,
                owner.name,
                remedy(spec)
            )));
        }
    }
    Ok(())
}

fn remedy(spec: &WeightsSpec) -> String {
    format!("name the folder of the model that was exported, complete, or call the file {} there", spec.name)
}

/// A file that may be the one that is looked for.
struct Candidate {
    /// As it was found, maybe a link.
    path: PathBuf,
    /// The file itself.
    real: PathBuf,
}

struct Search<'a> {
    folder: &'a Path,
    /// `folder`, and in the folder of a cached repository its snapshots.
    roots: Vec<PathBuf>,
    /// All safetensors files in two levels, and folders that cannot be listed; once they are needed.
    below: OnceCell<Vec<PathBuf>>,
}

impl<'a> Search<'a> {
    fn new(folder: &'a Path) -> Result<Self> {
        let search = Self { folder, roots: Vec::new(), below: OnceCell::new() };
        if !search.real()?.is_dir() {
            return Err(Error::directory(format!(
                "{} is not a folder; the option `weights` takes that of the model",
                folder.display()
            )));
        }
        let mut left = MOST_NAMES;
        let snapshots = list(&folder.join("snapshots"), &mut left).unwrap_or_default();
        let roots =
            [folder.to_path_buf()].into_iter().chain(snapshots.into_iter().filter(|path| path.is_dir())).collect();
        Ok(Self { roots, ..search })
    }

    fn real(&self) -> Result<PathBuf> {
        self.folder.canonicalize().map_err(|error| {
            let problem = "cannot be opened; name the folder that holds the weights with the option `weights`";
            Error::directory(format!("folder {} {problem}", self.folder.display())).with_source(error)
        })
    }

    /// The file if it lies where it is expected.
    fn known_places(
        &self,
        spec: &WeightsSpec,
        directory: &Path,
        others: &mut Vec<String>,
    ) -> Result<Option<WeightsFile>> {
        for end in ends(spec) {
            let places = self.roots.iter().map(|root| root.join(&end));
            if let Some(file) = choose(spec, places, &Owners::new(), others)? {
                return open(&file, spec).map(Some);
            }
        }
        let is_own = spec.folder.is_none() && directory.join(&spec.file).symlink_metadata().is_ok();
        if is_own && others.is_empty() { WeightsFile::recorded(directory, spec).map(Some) } else { Ok(None) }
    }

    /// The file under whatever name, but not one of the `owners`.
    fn anywhere(&self, spec: &WeightsSpec, owners: &Owners<'_>, others: &mut Vec<String>) -> Result<WeightsFile> {
        match choose(spec, self.below()?.iter().cloned(), owners, others)? {
            Some(file) => open(&file, spec),
            None => Err(self.missing(spec, others)),
        }
    }

    fn below(&self) -> Result<&Vec<PathBuf>> {
        if let Some(below) = self.below.get() {
            return Ok(below);
        }
        let mut left = MOST_NAMES;
        let mut found = Vec::new();
        let is_weights = |path: &Path| path.to_str().is_some_and(|path| path.ends_with(ENDING));
        let too_many = |error: io::Error, folder: &Path| {
            let message = format!("{} cannot be searched for the weights", folder.display());
            Error::directory(format!("{message}; name the folder of the model itself")).with_source(error)
        };
        for root in &self.roots {
            for path in list(root, &mut left).map_err(|error| too_many(error, root))? {
                if !path.is_dir() {
                    found.extend(is_weights(&path).then_some(path));
                    continue;
                }
                match list(&path, &mut left) {
                    Ok(inner) => found.extend(inner.into_iter().filter(|path| is_weights(path))),
                    Err(error) if left == 0 => return Err(too_many(error, &path)),
                    Err(_) => found.push(path),
                }
            }
        }
        Ok(self.below.get_or_init(|| found))
    }

    fn missing(&self, spec: &WeightsSpec, others: &[String]) -> Error {
        let found = if others.is_empty() {
            format!("it holds no other {ENDING} file in two levels")
        } else {
            format!("found instead: {}", told(others))
        };
        let recorded = ends(spec).into_iter().rev().find(|end| end.contains('/')).unwrap_or_else(|| spec.file.clone());
        Error::directory(format!(
            "{} holds no file of {} bytes with its header, neither as {recorded} nor as {}, nor under another name; {found}; {}",
            self.folder.display(),
            spec.bytes,
            spec.name,
            remedy(spec)
        ))
    }
}

/// Which of the files at `places` is that of `spec`; tells in `others` of files that are not.
fn choose(
    spec: &WeightsSpec,
    places: impl Iterator<Item = PathBuf>,
    owners: &Owners<'_>,
    others: &mut Vec<String>,
) -> Result<Option<PathBuf>> {
    let mut found: Vec<Candidate> = Vec::new();
    for path in places {
        // What is not there at all is no news; a link to nothing is.
        if path.symlink_metadata().is_err() {
            continue;
        }
        match same(&path, spec) {
            Ok(real) => match owners.get(&real) {
                Some(owner) if !are_one(owner, spec) => note(others, &path, &format!("is `{}`", owner.name)),
                _ if found.iter().any(|candidate| candidate.real == real) => {}
                _ => found.push(Candidate { path, real }),
            },
            Err(reason) => note(others, &path, &reason),
        }
    }
    // Layouts repeat: two transformers that take turns have one, and so have two revisions of a model.
    narrow(&mut found, |candidate| candidate.real.ends_with(&spec.file));
    narrow(&mut found, |candidate| folders(spec).any(|name| is_in(&candidate.path, name)));
    if let (Some(expected), 2..) = (&spec.sha256, found.len()) {
        found.retain(|candidate| {
            let is_it = hash_file(&candidate.real).is_ok_and(|hash| hash == *expected);
            if !is_it {
                note(others, &candidate.path, "has another content");
            }
            is_it
        });
        found.truncate(1); // The others are copies of it.
    }
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.real.clone())),
        several => Err(Error::directory(format!(
            "{} have the size and header of this file; {}",
            told(&several.iter().map(|one| one.path.display().to_string()).collect::<Vec<_>>()),
            remedy(spec)
        ))),
    }
}

/// Where a file can be without a search: the ends of its recorded path, the longest first, and its name in the manifest.
fn ends(spec: &WeightsSpec) -> Vec<String> {
    let recorded = format!("{}/{}", spec.folder.as_deref().unwrap_or_default(), spec.file);
    // Both separators: an engine may have been exported on another system.
    let parts: Vec<&str> = recorded.split(['/', '\\']).filter(|part| !["", ".", ".."].contains(part)).collect();
    let longest = parts.len().min(ENDS);
    let mut ends: Vec<String> = (1..=longest).rev().map(|n| parts[parts.len() - n..].join("/")).collect();
    if !ends.contains(&spec.name) {
        ends.push(spec.name.clone());
    }
    ends
}

/// What the folder of a file may be called: as recorded, or as the component with which its name in the manifest begins.
fn folders(spec: &WeightsSpec) -> impl Iterator<Item = &str> {
    let recorded = spec.folder.as_deref().and_then(|folder| folder.rsplit(['/', '\\']).next());
    let name = spec.name.strip_suffix(ENDING).unwrap_or(&spec.name);
    let shard = name.rfind("-of-").and_then(|end| name[..end].rfind('-'));
    recorded.into_iter().chain([&name[..shard.unwrap_or(name.len())]])
}

fn is_in(path: &Path, folder: &str) -> bool {
    path.parent().and_then(Path::file_name).is_some_and(|name| name == folder)
}

/// Keeps those for which `rule` holds, if there are any.
fn narrow(found: &mut Vec<Candidate>, rule: impl Fn(&Candidate) -> bool) {
    if found.iter().any(&rule) {
        found.retain(rule);
    }
}

/// The real path of the file at `path` if it is that of `spec`, else what is wrong with it.
fn same(path: &Path, spec: &WeightsSpec) -> Result<PathBuf, String> {
    let fail = |error: io::Error| format!("cannot be opened ({error})");
    let real = path.canonicalize().map_err(fail)?;
    let metadata = real.metadata().map_err(fail)?;
    if metadata.is_dir() {
        return fs::read_dir(&real).map_or_else(|error| Err(fail(error)), |_| Err("is a folder".into()));
    }
    if !metadata.is_file() {
        return Err("is not a regular file".into());
    }
    if metadata.len() != spec.bytes {
        return Err(format!("has {} bytes", metadata.len()));
    }
    match Header::read(&real, spec.bytes) {
        Ok(header) if header.sha256 == spec.header_sha256 => Ok(real),
        Ok(_) => Err("has another header".into()),
        Err(error) => Err(format!("cannot be read ({error})")),
    }
}

fn open(real: &Path, spec: &WeightsSpec) -> Result<WeightsFile> {
    let (Some(folder), Some(file)) = (real.parent(), real.file_name()) else {
        return Err(Error::internal("a weights file without a name"));
    };
    let Some(file) = file.to_str() else {
        let reason = "is not UTF-8, which ONNX Runtime needs; call the file otherwise";
        return Err(Error::directory(format!("{} {reason}", real.display())));
    };
    WeightsFile::open(folder.to_path_buf(), file.to_owned(), spec)
}

/// What lies in a folder, sorted, without hidden names; `left` says how many names may still be read.
fn list(folder: &Path, left: &mut usize) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        *left =
            left.checked_sub(1).ok_or_else(|| io::Error::other(format!("it holds more than {MOST_NAMES} names")))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn note(others: &mut Vec<String>, path: &Path, reason: &str) {
    let note = format!("{} {reason}", path.display());
    if !others.contains(&note) {
        others.push(note);
    }
}

/// Some of them, and how many more there are.
fn told(all: &[String]) -> String {
    let more = all.len().saturating_sub(MOST_TOLD);
    let some = all[..all.len() - more].join(", ");
    if more == 0 { some } else { format!("{some} and {more} more") }
}
