//! Writes the graphs of a plan as ONNX files beside their weights: for tools that compile outside of ONNX Runtime,
//! and for checks by other parsers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::opening::{open, planned};
use super::stages::StageGraph;
use crate::error::{At, Error, Result};
use crate::files::Partial;
use crate::model::graph::Graph;
use crate::plan::Stage;
use crate::request::engine_options::EngineOptions;
use crate::request::profile::{self, Extremes, Profile};

/// The list of the files.
const LIST: &str = "stages.json";

/// One graph that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageFile {
    /// Its name in the folder.
    pub file: String,
    /// What it computes, such as `embed and blocks 0..4` or `decode`.
    pub name: String,
    /// Bytes of the graph.
    pub bytes: u64,
    /// Bytes of the parameters that it refers to.
    pub weight_bytes: u64,
    /// For each input its smallest, usual and largest shape.
    pub shapes: BTreeMap<String, [Vec<u64>; 3]>,
}

/// Writes every graph that runs in a step, and the decoder, into the new folder `out`, with the weights files that they
/// refer to (hard links, copies where those cannot be made) and `stages.json`, which holds what is returned.
///
/// `load` says how the blocks are divided and in which dtype they compute: its `cache`, `stages`, `stage_bytes`, `compute`
/// and `weights_folder` count, and its `provider` where the graphs must obey its limits. Nothing is loaded, and no provider is asked.
///
/// # Errors
/// `EngineDirectory`, as when it is loaded; `Usage` and `Input` for options or a profile that do not fit; `Io`, also where
/// `out` exists.
pub fn write_stages(directory: &Path, load: &EngineOptions, profile: &Profile, out: &Path) -> Result<Vec<StageFile>> {
    let directory = open(directory, load)?;
    let extremes = profile.resolve(&directory.manifest)?;
    let plan = planned(&directory, load, &load.cache)?;
    let mut graphs = Vec::new();
    for expert in 0..directory.experts.len() {
        for stage in plan.stages() {
            let prefix = if directory.experts.len() > 1 { format!("expert_{expert}_") } else { String::new() };
            let graph = StageGraph::new(&directory, expert, stage)?.graph.into_owned();
            graphs.push((prefix + &file_name(stage), directory.stage_name(expert, &stage.name()), graph));
        }
    }
    graphs.extend(directory.decode.clone().map(|graph| ("decode.onnx".to_owned(), "decode".to_owned(), graph)));

    let fail = |error| Error::io("write", out, error);
    if out.symlink_metadata().is_ok() {
        return Err(Error::option("output", format!("{} exists; name a new folder", out.display())));
    }
    // It gets its name when it is complete.
    let folder = Partial::beside(out, out)?;
    // Components of a model lie in folders of their own, under equal names: here they have those of the manifest.
    let names: BTreeMap<(&Path, &str), &str> = directory
        .weights
        .iter()
        .map(|(name, file)| ((file.folder.as_path(), file.file.as_str()), name.as_str()))
        .collect();
    let mut files = Vec::new();
    for (file, name, mut graph) in graphs {
        graph.bytes = graph.renamed(|folder, file| names.get(&(folder, file)).copied())?;
        fs::write(folder.path().join(&file), &graph.bytes).map_err(fail)?;
        files.push(StageFile::new(file, name, &graph, &extremes)?);
    }
    for ((place, file), name) in &names {
        link(&place.join(file), &folder.path().join(name))?;
    }
    let list = json!({
        "version": 1,
        "engine": directory.manifest.name,
        "engine_hash": directory.hash,
        "cache": load.cache.to_string(),
        "compute_dtype": directory.manifest.compute_dtype.name(),
        "profile": profile.to_string(),
        "graphs": files.iter().map(StageFile::to_json).collect::<Vec<_>>(),
        "weights": names.values().collect::<Vec<_>>(),
    });
    fs::write(folder.path().join(LIST), format!("{list:#}\n")).map_err(fail)?;
    folder.persist(out).map_err(fail)?;
    Ok(files)
}

impl StageFile {
    fn new(file: String, name: String, graph: &Graph, extremes: &Extremes) -> Result<Self> {
        let shapes = profile::shapes(graph, extremes).at(&file)?.into_iter().collect();
        Ok(Self { file, name, bytes: graph.bytes.len() as u64, weight_bytes: graph.weight_bytes, shapes })
    }

    /// Its facts by their names.
    pub fn to_json(&self) -> Value {
        let inputs: serde_json::Map<String, Value> = self
            .shapes
            .iter()
            .map(|(name, [min, opt, max])| (name.clone(), json!({ "min": min, "opt": opt, "max": max })))
            .collect();
        json!({
            "file": self.file,
            "name": self.name,
            "bytes": self.bytes,
            "weight_bytes": self.weight_bytes,
            "inputs": inputs,
        })
    }
}

/// Such as `embed_blocks_000_003.onnx`.
fn file_name(stage: &Stage) -> String {
    let Stage { embed, blocks, last, .. } = stage;
    let blocks = match blocks.len() {
        0 => None,
        1 => Some(format!("block_{:03}", blocks.start)),
        _ => Some(format!("blocks_{:03}_{:03}", blocks.start, blocks.end - 1)),
    };
    let parts = [embed.then(|| "embed".to_owned()), blocks, last.then(|| "final".to_owned())];
    format!("{}.onnx", parts.into_iter().flatten().collect::<Vec<_>>().join("_"))
}

/// A second name for a file, or a copy where the two folders lie on different file systems.
fn link(file: &Path, target: &Path) -> Result<()> {
    if fs::hard_link(file, target).is_ok() {
        return Ok(());
    }
    fs::copy(file, target).map(drop).map_err(|error| Error::io("copy", file, error))
}
