//! NaN and infinity: found where a step ends, explained by the first graph that gives them.

use super::branch::BranchState;
use super::chain::{Named, NotFinite};
use crate::error::{Error, ErrorKind, Result};
use crate::model::manifest::Manifest;
use crate::runtime::tensor::Buffers;

/// What makes numbers overflow, and what to do.
const REMEDY: &str =
    "the weights are damaged (the option `verify` compares their content), or numbers overflow the compute dtype";

/// A prediction that is not finite.
pub(super) fn prediction(number: f32) -> Error {
    Error::new(ErrorKind::Numeric, format!("the prediction holds {number}"))
}

/// Latents that are not finite although the predictions are.
pub(super) fn latents(number: f32) -> Error {
    Error::new(
        ErrorKind::Numeric,
        format!("the latents hold {number} after the update, the predictions are finite; try less guidance"),
    )
}

impl BranchState {
    /// Adds to a `Numeric` error where the number comes from: embed and all blocks run once more, one after the other.
    pub(super) fn explain(&self, manifest: &Manifest, named: &Named, buffers: &Buffers, error: Error) -> Error {
        if error.kind() != ErrorKind::Numeric {
            return error;
        }
        // Where the second run fails, the first error is still true.
        let origin =
            self.origin(manifest, named, buffers).unwrap_or_else(|_| format!("its origin is not known; {REMEDY}"));
        let mut explained = Error::new(ErrorKind::Numeric, format!("{}; {origin}", error.message()));
        for place in error.context().collect::<Vec<_>>().into_iter().rev() {
            explained = explained.at(place);
        }
        explained
    }

    fn origin(&self, manifest: &Manifest, named: &Named, buffers: &Buffers) -> Result<String> {
        self.lists.iter().flat_map(|list| &list.units).for_each(|unit| unit.hand_on(&self.chain));
        if let Some(found) = self.chain.first_not_finite(manifest, named, buffers)? {
            let NotFinite { stage, tensor, number } = found;
            let is_one = stage.blocks.len() + usize::from(stage.embed) + usize::from(stage.last) == 1;
            let name = if is_one { stage.name() } else { format!("{} (one stage)", stage.name()) };
            return Ok(format!("it comes from {name}, the first whose `{tensor}` holds {number}; {REMEDY}"));
        }
        Ok(match buffers.first_not_finite(self.prediction)? {
            Some(_) => {
                let stage = self.chain.plan().stages.last().map(|loaded| &loaded.stage);
                match stage.filter(|stage| !stage.blocks.is_empty()) {
                    None => format!("it comes from the final graph: all blocks give finite numbers; {REMEDY}"),
                    Some(stage) => format!(
                        "it comes from {} (one stage), whose prediction is not finite; the option `stages=per-block` tells which; \
                         {REMEDY}",
                        stage.name()
                    ),
                }
            }
            None => {
                "it comes from what the cache compares or puts in the place of blocks: with all blocks computed the \
                     prediction is finite; try a lower threshold, or another calibrator"
                    .to_owned()
            }
        })
    }
}
