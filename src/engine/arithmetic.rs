//! The cache's arithmetic as parts of a stage's graph.
//!
//! The same small graphs as those of `runtime::measure` and `runtime::ops`, joined to the blocks. They meet the rest of a
//! request by the names of their tensors, where `j` counts streams: `kept{j}` and `out{j}` (what a diff compares with, and
//! will compare with later), `change` and `size` (its sums), `residual{j}`, and `base{j}` and `addend{j}`, whose sum a
//! stage begins with. `before{j}` and `from{j}` are streams at an earlier cut, where that is not in the stage itself.

use prost::Message;

use crate::cache::{DiffOptions, DiffTensor};
use crate::error::{Error, Result};
use crate::model::cache_dtype::CacheDType;
use crate::model::graph::Graph;
use crate::model::join::{Part, Piece};
use crate::model::manifest::{Axis, Manifest};
use crate::model::onnx::{self, build};
use crate::plan::{InStageArithmetic, Stage};
use crate::runtime::graphs::{self, StreamType};
use crate::runtime::measure;

/// A graph of this file, with the tensors that it takes and gives.
pub(super) struct Small {
    graph: Graph,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Small {
    fn part(&self) -> Piece<'_> {
        Piece::Part(Part { graph: &self.graph, inputs: &self.inputs, outputs: &self.outputs })
    }
}

/// What comes before and after the blocks of a stage.
pub(super) struct ArithmeticGraphs {
    before: Vec<Small>,
    at_start: Vec<(String, String)>,
    at_end: Vec<(String, String)>,
    after: Vec<Small>,
}

impl ArithmeticGraphs {
    pub(super) fn new(manifest: &Manifest, stage: &Stage) -> Result<Self> {
        let mut around = Self { before: Vec::new(), at_start: Vec::new(), at_end: Vec::new(), after: Vec::new() };
        for part in &stage.arithmetic {
            match part {
                InStageArithmetic::Add { streams, kept } => around.before.push(add(manifest, streams, *kept)?),
                InStageArithmetic::Diff { since, options, kept } => {
                    let stream = manifest.streams[0].clone();
                    if options.tensor == DiffTensor::HeadResidual && *since == stage.blocks.start {
                        around.at_start.push(("before0".to_owned(), stream.clone()));
                    }
                    around.at_end.push(("after0".to_owned(), stream));
                    around.after.extend(diff(manifest, *options, *kept)?);
                }
                InStageArithmetic::Residual { since, streams, kept } => {
                    for (j, stream) in streams.iter().enumerate() {
                        let name = &manifest.streams[*stream];
                        if *since == stage.blocks.start {
                            around.at_start.push((format!("from{j}"), name.clone()));
                        }
                        around.at_end.push((format!("ran{j}"), name.clone()));
                    }
                    around.after.push(residual(manifest, streams, *kept)?);
                }
            }
        }
        Ok(around)
    }

    /// All pieces of a stage: `first` is embed, `last` the final graph.
    pub(super) fn pieces<'a>(
        &'a self,
        first: Option<Part<'a>>,
        blocks: Vec<Part<'a>>,
        last: Option<Part<'a>>,
    ) -> Vec<Piece<'a>> {
        let alias = |(name, of): &(String, String)| Piece::Alias { name: name.clone(), of: of.clone() };
        let mut pieces: Vec<Piece<'a>> = first.into_iter().map(Piece::Part).collect();
        pieces.extend(self.before.iter().map(Small::part));
        pieces.extend(self.at_start.iter().map(alias));
        pieces.extend(blocks.into_iter().map(Piece::Part));
        pieces.extend(self.at_end.iter().map(alias));
        pieces.extend(self.after.iter().map(Small::part));
        pieces.extend(last.map(Piece::Part));
        pieces
    }
}

fn names(prefixes: &[&str], count: usize) -> Vec<String> {
    prefixes.iter().flat_map(|prefix| (0..count).map(move |j| format!("{prefix}{j}"))).collect()
}

fn stream_type(manifest: &Manifest, stream: usize, kept: CacheDType) -> Result<StreamType> {
    let tensor = manifest.tensor(&manifest.streams[stream])?;
    Ok(StreamType { dtype: tensor.dtype, kept: kept.of(tensor.dtype), rank: tensor.shape.len() })
}

/// A graph whose ports have the axes of the streams, by which shapes are found: `axes` gives those of a port.
fn small(bytes: &[u8], inputs: Vec<String>, outputs: Vec<String>, axes: impl Fn(&str) -> Vec<Axis>) -> Result<Small> {
    let mut model = onnx::decode(bytes).map_err(Error::internal)?;
    let Some(graph) = &mut model.graph else { return Err(Error::internal("a small graph without a graph")) };
    for port in graph.input.iter_mut() {
        let name = port.name.clone().unwrap_or_default();
        let tensor = port.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
        let element = tensor.and_then(|tensor| tensor.elem_type).unwrap_or_default();
        let axes: Vec<String> = axes(&name).iter().map(Axis::to_string).collect();
        *port = build::port(&name, element, &axes.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let graph = Graph { file: "arithmetic".to_owned(), bytes: model.encode_to_vec(), ..Graph::default() };
    Ok(Small { graph, inputs, outputs })
}

fn axes_of<'m>(manifest: &'m Manifest, streams: &'m [usize]) -> impl Fn(&str) -> Vec<Axis> + 'm {
    move |port| {
        let j: usize = port.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or_default();
        let tensor = streams.get(j).and_then(|stream| manifest.tensors.get(&manifest.streams[*stream]));
        tensor.map(|tensor| tensor.shape.clone()).unwrap_or_default()
    }
}

/// The first stream is compared, as `generate::unit` does.
fn diff(manifest: &Manifest, options: DiffOptions, kept: CacheDType) -> Result<[Small; 2]> {
    let kinds = [stream_type(manifest, 0, kept)?];
    let of_residual = options.tensor == DiffTensor::HeadResidual;
    let now = if of_residual { vec!["after0".to_owned(), "before0".to_owned()] } else { vec!["after0".to_owned()] };
    let axes = |port: &str| {
        let mut axes = axes_of(manifest, &[0])(port);
        if let (true, Some(Axis::Fixed(channels))) = (port.starts_with("kept"), axes.last_mut()) {
            *channels = channels.div_ceil(options.downsample_factor as u64);
        }
        axes
    };
    let with_kept = now.iter().cloned().chain(["kept0".to_owned()]).collect();
    let sums = vec!["change".to_owned(), "size".to_owned()];
    Ok([
        small(&measure::sums_of_batch(&kinds, options), with_kept, sums, axes)?,
        small(&measure::now_of_batch(&kinds, options), now, vec!["out0".to_owned()], axes)?,
    ])
}

fn residual(manifest: &Manifest, streams: &[usize], kept: CacheDType) -> Result<Small> {
    let kinds = streams.iter().map(|stream| stream_type(manifest, *stream, kept)).collect::<Result<Vec<_>>>()?;
    let count = streams.len();
    small(
        &graphs::residuals(&kinds),
        names(&["ran", "from"], count),
        names(&["residual"], count),
        axes_of(manifest, streams),
    )
}

fn add(manifest: &Manifest, streams: &[usize], kept: CacheDType) -> Result<Small> {
    let kinds = streams.iter().map(|stream| stream_type(manifest, *stream, kept)).collect::<Result<Vec<_>>>()?;
    let written: Vec<String> = streams.iter().map(|stream| manifest.streams[*stream].clone()).collect();
    let inputs = names(&["base", "addend"], streams.len());
    small(&graphs::additions(&kinds, &written), inputs, written, axes_of(manifest, streams))
}
