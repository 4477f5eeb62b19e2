//! Whether each picture of a batch can decide for itself.

use super::options::RequestOptions;
use crate::cache::{PolicyConfig, StreamKind};
use crate::error::{Error, Result};
use crate::model::manifest::Manifest;

/// Refuses what cannot be decided per sample, or where that changes nothing.
pub(crate) fn check(options: &RequestOptions, manifest: &Manifest, batch: usize) -> Result<()> {
    if !options.per_sample {
        return Ok(());
    }
    let cache = &options.cache;
    let refuse = |why: String| Err(Error::option("per-sample", why));
    if batch == 1 {
        return refuse("has no effect on one picture; make a batch of 2 or more, or leave it out".into());
    }
    match cache {
        PolicyConfig::None => {
            refuse("has no effect with the option `cache=none`, which decides nothing; leave it out".into())
        }
        PolicyConfig::Replay { .. } => {
            refuse("does not go with a replay, which repeats the decisions of a whole batch; leave one out".into())
        }
        PolicyConfig::DbPrune(_) => {
            refuse(format!("does not go with `{cache}`, which decides on each block alone; use DBCache, such as f8b8"))
        }
        PolicyConfig::DbCache(_) if !cache.single_blocks(manifest.blocks.len()).is_empty() => refuse(format!(
            "does not go with `{cache}`, whose last blocks are decided on alone; leave Bn_compute_blocks_ids out"
        )),
        PolicyConfig::DbCache(_)
            if [StreamKind::Hidden, StreamKind::Encoder].iter().any(|kind| cache.calibrator(None, *kind).is_some()) =>
        {
            refuse(format!(
                "does not go with the calibrator of `{cache}`, whose past is the whole batch's; leave it out"
            ))
        }
        PolicyConfig::DbCache(config) if !config.enable_encoder_residual => refuse(format!(
            "does not go with `{cache}`, which keeps nothing of the text; leave enable_encoder_residual out"
        )),
        PolicyConfig::DbCache(_) => Ok(()),
    }
}
