//! What the parts of a request are allocated and bound with.

use std::sync::Arc;

use super::chain::Named;
use crate::engine::LoadedEngine;
use crate::error::Result;
use crate::model::manifest::{Extents, Manifest};
use crate::runtime::tensor::{BufferId, Buffers};

/// The engine, the sizes, and the tensors of one request, while it is made.
pub(super) struct Binder<'a> {
    pub engine: &'a Arc<LoadedEngine>,
    pub extents: &'a Extents,
    /// The tensors that all branches share and that are no streams.
    pub named: &'a Named,
    pub buffers: &'a mut Buffers,
}

impl<'a> Binder<'a> {
    pub(super) fn manifest(&self) -> &'a Manifest {
        &self.engine.directory.manifest
    }

    /// A new tensor of this name.
    pub(super) fn add(&mut self, tensor: &str) -> Result<BufferId> {
        let manifest = self.manifest();
        self.buffers.add(manifest.tensor(tensor)?.dtype, &manifest.shape(tensor, self.extents)?)
    }
}
