//! Whether the arithmetic of a request can be part of its stages.

use super::lists::List;
use super::options::RequestOptions;
use crate::cache::StreamKind;
use crate::model::manifest::Manifest;
use crate::plan::InStages;

/// Why the arithmetic of a request cannot be part of its stages; else what of it is.
pub(crate) fn of_request(
    manifest: &Manifest,
    options: &RequestOptions,
    lists: &[List],
) -> std::result::Result<InStages, String> {
    let cache = &options.cache;
    let [list] = lists else { return Err(format!("`{cache}` decides on each list of blocks by itself")) };
    let split = &list.split;
    let kinds = [StreamKind::Hidden, StreamKind::Encoder];
    if manifest.streams.len() > 1 && !list.has_text(manifest) {
        return Err("all streams of this model are compared as one".to_owned());
    }
    if !cache.reuses_middle() || split.middle.is_empty() || split.head.is_empty() {
        return Err(format!("`{cache}` has no middle that it reuses"));
    }
    if !cache.single_blocks(manifest.blocks.len()).is_empty() {
        return Err(format!("`{cache}` decides on single blocks"));
    }
    if kinds.iter().any(|kind| cache.calibrator(None, *kind).is_some()) {
        return Err(format!("`{cache}` forecasts with a calibrator"));
    }
    if kinds.iter().any(|kind| !cache.corrects(None, *kind)) {
        return Err(format!("`{cache}` keeps nothing of the text"));
    }
    if cache.alternates() {
        return Err(format!("`{cache}` does not keep each step that it computes"));
    }
    if options.per_sample {
        return Err("each picture decides for itself".to_owned());
    }
    let writes = |stream: &String| {
        let kinds = manifest.blocks[split.middle.clone()].iter().map(|block| &manifest.block_kinds[&block.kind]);
        kinds.into_iter().any(|kind| kind.outputs.contains(stream))
    };
    Ok(InStages {
        head: split.head.clone(),
        middle: split.middle.clone(),
        diff: cache.diff_options(),
        streams: (0..manifest.streams.len()).filter(|stream| writes(&manifest.streams[*stream])).collect(),
        kept: options.cache_dtype,
    })
}
