//! NaN and infinity: found where a step ends, explained by the first graph that gives them.

use super::request::Request;
use crate::error::{Error, ErrorKind, Result};

/// What makes numbers overflow, and what to do.
const REMEDY: &str = "the weights are damaged (--verify compares their content), or numbers overflow the compute dtype";

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

impl Request {
    /// Adds to a `Numeric` error where the number comes from: embed and all blocks run once more, one after the other.
    pub(super) fn explain(&self, index: usize, error: Error) -> Error {
        if error.kind() != ErrorKind::Numeric {
            return error;
        }
        // Where the second run fails, the first error is still true.
        let origin = self.origin(index).unwrap_or_else(|_| format!("its origin is not known; {REMEDY}"));
        let mut explained = Error::new(ErrorKind::Numeric, format!("{}; {origin}", error.message()));
        for place in error.context().collect::<Vec<_>>().into_iter().rev() {
            explained = explained.at(place);
        }
        explained
    }

    fn origin(&self, index: usize) -> Result<String> {
        let Self { branches, chain, buffers, embedded, engine, .. } = self;
        let (state, manifest) = (&branches[index], &engine.directory.manifest);
        state.embed.run()?;
        for (tensor, id) in embedded {
            if let Some(number) = buffers.first_not_finite(*id)? {
                return Ok(format!("it comes from embed, whose `{tensor}` holds {number}; {REMEDY}"));
            }
        }
        if let Some(found) = chain.first_not_finite(buffers)? {
            let (stream, number) = (&manifest.streams[found.stream], found.number);
            let blocks = match found.blocks.len() {
                1 => format!("block {}", found.blocks.start),
                _ => format!("blocks {:?} (one stage)", found.blocks),
            };
            return Ok(format!("it comes from {blocks}, the first whose `{stream}` holds {number}; {REMEDY}"));
        }
        state.last.run()?;
        Ok(match buffers.first_not_finite(state.prediction)? {
            Some(_) => format!("it comes from the final graph: all blocks give finite numbers; {REMEDY}"),
            None => {
                "it comes from what the cache compares or puts in the place of blocks: with all blocks computed the \
                     prediction is finite; try a lower threshold, or another calibrator"
                    .to_owned()
            }
        })
    }
}
