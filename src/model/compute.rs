//! Graphs that compute in 16 bits: chosen when a model is loaded, for graphs that were exported in f32.
//!
//! Ports stay f32, and so does all that lies between graphs: streams, residuals, diffs, guidance, the scheduler. Within a
//! graph each operator runs as [`operators`] says: products in 16 bits; normalisations, softmax, reductions and angles in
//! f32; sums in f32 as soon as one operand is, so that what a block adds to a stream is added in f32. Parameters are read
//! in the dtype in which they are used, straight from 16 bits where they are stored so. Three passes: what each value is
//! ([`kinds`]), in which dtypes it is read ([`demand`]), and the graph with its casts ([`emit`]).
//!
//! Text encoders and the decoder stay as they were exported: they run once, and known ones overflow f16.

mod constants;
mod demand;
mod emit;
mod kinds;
mod operators;

use prost::Message;

use self::demand::Demands;
use self::kinds::Kinds;
use super::directory::{EngineDirectory, ExpertGraphs};
use super::graph::{Graph, element_type};
use super::manifest::DType;
use super::onnx::{self, ModelProto};
use crate::error::{Error, ErrorKind, Result};

/// In which dtype the softmax of the fused operator `Attention` runs, whose products run in 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attention {
    /// f32, as the graph says.
    SoftmaxInF32,
    /// As the provider does it: it takes no word on that.
    ByProvider,
}

impl EngineDirectory {
    /// The same model with transformers that compute in `dtype`: f32, or 16 bits. `attention` is what the provider's
    /// operator takes, where a model has that.
    ///
    /// # Errors
    /// `Usage` for a model that was exported in 16 bits, and for graphs that cannot be cast: with the exporter's flag.
    pub(crate) fn computing_in(mut self, dtype: DType, attention: Attention) -> Result<Self> {
        let exported = self.manifest.compute_dtype;
        if dtype == exported {
            return Ok(self);
        }
        let (asked, had) = (flag(dtype), flag(exported));
        let remedy = format!("leave it out, or export the model with `dbcache-export --compute {asked}`");
        if exported != DType::F32 {
            let problem = format!("is `{asked}`, but this engine was exported with `{had}`; {remedy}");
            return Err(Error::option("compute", problem));
        }
        for graph in self.experts.iter_mut().flat_map(ExpertGraphs::all_mut) {
            *graph = cast(graph, dtype, attention).map_err(|error| match error.message() {
                reason if error.kind() == ErrorKind::Usage => {
                    Error::option("compute", format!("is `{asked}`, but {} {reason}; {remedy}", graph.file))
                }
                _ => error.at(&graph.file),
            })?;
        }
        self.manifest.compute_dtype = dtype;
        Ok(self)
    }
}

/// A dtype as flags spell it.
fn flag(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "fp32",
        DType::F16 => "fp16",
        DType::Bf16 => "bf16",
        DType::I64 => "i64",
    }
}

/// The graph, computing in 16 bits between its ports.
fn cast(graph: &Graph, to: DType, attention: Attention) -> Result<Graph> {
    let mut model: ModelProto = onnx::decode(&graph.bytes).map_err(Error::internal)?;
    let Some(inner) = model.graph.take() else { return Err(Error::internal("a graph without a graph")) };
    let narrow = element_type(to);
    let kinds = Kinds::new(&inner, narrow)?;
    let demands = Demands::new(&inner, &kinds);
    let inner = emit::emit(inner, &kinds, &demands, narrow, attention);
    let (nodes, casts_weights) = (inner.node.len(), Graph::casts_initializers(&inner));
    model.graph = Some(inner);
    Ok(Graph { bytes: model.encode_to_vec(), nodes, casts_weights, ..graph.clone() })
}

#[cfg(test)]
mod tests;
