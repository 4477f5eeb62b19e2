//! Opens an engine directory: everything that a file can lie about is checked here, before anything runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::graph::{Graph, Port, Weights, ports};
use super::manifest::{
    BlockSpec, ExpertFiles, FileRef, GraphSpec, Manifest, Padding, TextGraphSpec, TextInputSpec, TextSpec, WeightsSpec,
};
use super::moved;
use super::weights::{WeightsFile, hash_bytes};
use crate::error::{At, Error, Result};
use crate::model::manifest::{Axis, DType};

const MAX_MANIFEST: u64 = 16 << 20;
/// Graphs hold no weights, and tokenizers are a few megabytes.
const MAX_FILE: u64 = 64 << 20;

/// A checked engine directory, in memory but for its weights.
#[derive(Clone, Debug)]
pub(crate) struct EngineDirectory {
    pub path: PathBuf,
    pub manifest: Manifest,
    /// In which dtype it was exported; the manifest says in which it computes.
    pub exported_dtype: DType,
    /// SHA-256 of the manifest, which holds the hashes of everything else.
    pub hash: String,
    /// At least one.
    pub experts: Vec<ExpertGraphs>,
    pub text: Vec<Graph>,
    /// The content of each tokenizer's file, until the engine is loaded.
    pub tokenizers: BTreeMap<String, Vec<u8>>,
    pub decode: Option<Graph>,
    pub weights: Weights,
}

/// The graphs of a transformer. A model has one, or several of the same form that take turns.
#[derive(Clone, Debug)]
pub(crate) struct ExpertGraphs {
    pub embed: Graph,
    pub blocks: Vec<Graph>,
    pub last: Graph,
}

impl ExpertGraphs {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Graph> {
        [&self.embed].into_iter().chain(&self.blocks).chain([&self.last])
    }

    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut Graph> {
        [&mut self.embed].into_iter().chain(&mut self.blocks).chain([&mut self.last])
    }
}

impl EngineDirectory {
    /// Reads and checks the directory; the weights are looked for below `weights_folder` if it is given
    /// ([`moved`]), else where the manifest says.
    ///
    /// # Errors
    /// `EngineDirectory` with file and field.
    pub(crate) fn open(path: &Path, weights_folder: Option<&Path>) -> Result<Self> {
        let named = |error: Error| if error.field().is_none() { error.about(path.display()) } else { error };
        Self::open_unnamed(path, weights_folder).map_err(named).at(format!("engine {}", path.display()))
    }

    fn open_unnamed(path: &Path, weights_folder: Option<&Path>) -> Result<Self> {
        if !path.is_dir() {
            let what = if path.exists() { "is not a folder" } else { "does not exist" };
            return Err(Error::directory(format!(
                "{what}; name a folder that the exporter wrote (it holds manifest.json)"
            )));
        }
        let json = read_regular(path, "manifest.json", MAX_MANIFEST)?;
        let mut manifest = Manifest::parse(&json).at("manifest.json")?;
        check_extra_files(path, &manifest)?;
        let weights = match weights_folder {
            Some(folder) => moved::find(folder, path, &mut manifest.weights)?,
            None => manifest.weights.iter().map(|spec| recorded(path, spec)).collect::<Result<Weights>>()?,
        };
        let load = |file: FileRef<'_>, ins: &[Port], outs: &[Port]| {
            let bytes = read_checked(path, file)?;
            Graph::check(file.file, &bytes, manifest.opset, ins, outs, &weights).at(file.file)
        };
        let whole = |file: FileRef<'_>, graph: &GraphSpec| {
            let (ins, outs) = ports(&manifest, &graph.inputs, &graph.outputs)?;
            load(file, &ins, &outs)
        };
        let block = |(file, block): (FileRef<'_>, &BlockSpec)| {
            let kind = &manifest.block_kinds[&block.kind]; // Manifest::parse has checked that the kind exists.
            let (ins, outs) = ports(&manifest, &kind.inputs, &kind.outputs)?;
            load(file, &ins, &outs)
        };
        let expert = |files: ExpertFiles<'_>| {
            Ok(ExpertGraphs {
                embed: whole(files.embed, &manifest.embed)?,
                blocks: files.blocks.into_iter().zip(&manifest.blocks).map(block).collect::<Result<_>>()?,
                last: whole(files.last, &manifest.last)?,
            })
        };
        let experts = manifest.experts().into_iter().map(expert).collect::<Result<_>>()?;
        let decode = manifest.decode.as_ref().map(|graph| whole(graph.into(), graph)).transpose()?;
        let (mut text, mut tokenizers) = (Vec::new(), BTreeMap::new());
        if let Some(spec) = &manifest.text {
            for graph in &spec.graphs {
                let ins = text_ports(&manifest, spec, graph)?;
                let (_, outs) = ports(&manifest, &[], &graph.outputs)?;
                text.push(load(graph.into(), &ins, &outs)?);
            }
            for (name, tokenizer) in &spec.tokenizers {
                tokenizers.insert(name.clone(), read_checked(path, tokenizer.into())?);
            }
        }
        let hash = hash_bytes(&json);
        let exported_dtype = manifest.compute_dtype;
        Ok(Self { path: path.to_owned(), hash, experts, text, tokenizers, decode, weights, exported_dtype, manifest })
    }

    /// What a stage of a transformer is called: with several transformers, which one comes first.
    pub(crate) fn stage_name(&self, expert: usize, stage: &str) -> String {
        match self.experts.len() {
            1 => stage.to_owned(),
            _ => format!("expert {expert}: {stage}"),
        }
    }

    /// Hashes every weights file whole; gives the names of those for which the manifest has no hash.
    ///
    /// # Errors
    /// `EngineDirectory` with the file that was changed.
    pub(crate) fn verify(&self) -> Result<Vec<String>> {
        let mut unknown = Vec::new();
        for (name, file) in &self.weights {
            if !file.verify().at(format!("engine {}", self.path.display()))? {
                unknown.push(name.clone());
            }
        }
        Ok(unknown)
    }
}

/// What a graph of the text takes.
fn text_ports(manifest: &Manifest, spec: &TextSpec, graph: &TextGraphSpec) -> Result<Vec<Port>> {
    graph.inputs.iter().map(|(port, input)| text_port(manifest, spec, port, input)).collect()
}

fn text_port(manifest: &Manifest, spec: &TextSpec, port: &str, input: &TextInputSpec) -> Result<Port> {
    let (dtype, shape) = match input {
        TextInputSpec::Tokens { tokenizer: name, .. } => {
            let tokenizer = &spec.tokenizers[name]; // Checked by Manifest::parse as well.
            let tokens = match tokenizer.padding {
                Padding::Length => Axis::Fixed(tokenizer.length),
                Padding::Longest => Axis::Named(name.clone()),
            };
            (DType::I64, vec![Axis::Named("batch".into()), tokens])
        }
        TextInputSpec::Tensor { tensor } => {
            let tensor = manifest.tensor(tensor)?;
            (tensor.dtype, tensor.shape.clone())
        }
    };
    Ok(Port { name: port.to_owned(), dtype, shape })
}

fn read_regular(directory: &Path, name: &str, limit: u64) -> Result<Vec<u8>> {
    let path = directory.join(name);
    let metadata = path.symlink_metadata().map_err(|error| {
        Error::directory(format!("{name} is missing or cannot be opened; export the model again")).with_source(error)
    })?;
    if !metadata.is_file() {
        return Err(Error::directory(format!("{name} is not a regular file (links are refused)")));
    }
    if metadata.len() > limit {
        return Err(Error::directory(format!("{name} has {} bytes; at most {limit} are read", metadata.len())));
    }
    fs::read(&path).map_err(|error| Error::io("read", &path, error))
}

fn read_checked(directory: &Path, file: FileRef<'_>) -> Result<Vec<u8>> {
    let bytes = read_regular(directory, file.file, MAX_FILE)?;
    if bytes.len() as u64 != file.bytes || hash_bytes(&bytes) != file.sha256 {
        return Err(Error::directory(format!(
            "{} is not the file that was exported (size or SHA-256 differ); restore it, or export the model again",
            file.file
        )));
    }
    Ok(bytes)
}

fn recorded(directory: &Path, spec: &WeightsSpec) -> Result<(String, WeightsFile)> {
    let file = WeightsFile::recorded(directory, spec).at(format!("weights `{}`", spec.name))?;
    Ok((spec.name.clone(), file))
}

/// A file that looks like a part of the engine, but that the manifest does not name, is a mistake worth an error.
fn check_extra_files(directory: &Path, manifest: &Manifest) -> Result<()> {
    let mut named: BTreeSet<&str> = manifest.files().iter().map(|file| file.file).collect();
    named.insert("manifest.json");
    named.extend(manifest.weights.iter().filter(|w| w.folder.is_none()).map(|w| w.file.as_str()));
    let read = |error| Error::io("list", directory, error);
    for entry in fs::read_dir(directory).map_err(read)? {
        let name = entry.map_err(read)?.file_name();
        let name = name.to_string_lossy();
        let looks_ours = [".onnx", ".safetensors", ".json"].iter().any(|ending| name.ends_with(ending));
        if looks_ours && !named.contains(name.as_ref()) {
            return Err(Error::directory(format!("{name} is not named by the manifest; remove it, or export again")));
        }
    }
    Ok(())
}
