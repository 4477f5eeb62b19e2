//! One guidance branch of a request: its policy, its units, and the graphs around the blocks.

use std::sync::Arc;

use super::chain::{Chain, Named};
use super::samples::BranchSamples;
use super::unit::Unit;
use crate::cache::{Branch, CachePolicy};
use crate::error::{Error, Result};
use crate::model::graph::output_port;
use crate::model::manifest::GraphSpec;
use crate::runtime::op::Op;
use crate::runtime::session::Session;
use crate::runtime::tensor::{BufferId, Buffers};

/// What one branch keeps between steps.
pub(crate) struct BranchState {
    pub branch: Branch,
    /// Embed, the blocks and the final graph.
    pub chain: Chain,
    /// What the final graph gives.
    pub prediction: BufferId,
    /// One for each list of blocks.
    pub lists: Vec<ListState>,
}

/// What one branch keeps of one list of blocks.
pub(crate) struct ListState {
    /// One for the whole batch, or one for each sample that decides for itself.
    pub policies: Vec<Box<dyn CachePolicy>>,
    /// In the order of the blocks.
    pub units: Vec<Unit>,
    /// Where each sample decides for itself.
    pub samples: Option<BranchSamples>,
}

/// Binds a graph whose tensors are all known by name.
pub(crate) fn bind_graph(session: &Arc<Session>, spec: &GraphSpec, named: &Named, buffers: &mut Buffers) -> Result<Op> {
    let find = |tensor: &String| {
        named.get(tensor).copied().ok_or_else(|| Error::internal(format!("no buffer for `{tensor}`")))
    };
    let inputs = spec.inputs.iter().map(|t| Ok((t.clone(), find(t)?))).collect::<Result<Vec<_>>>()?;
    let outputs =
        spec.outputs.iter().map(|t| Ok((output_port(t, &spec.inputs), find(t)?))).collect::<Result<Vec<_>>>()?;
    Op::bind(session, buffers, &inputs, &outputs)
}
