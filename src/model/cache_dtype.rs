//! In which dtype a request keeps what its cache reuses: less memory, for a little accuracy.
//!
//! Only what lies between steps is narrowed: residuals, the tensors of calibrators, and what diffs compare with. The
//! streams stay as they are, and every sum and diff is formed in the streams' dtype or in f32.

use crate::cache::PolicyConfig;
use crate::error::{Error, Result};
use crate::model::manifest::{DType, Manifest};
use crate::words::words;

/// The dtype of the cached tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheDType {
    /// That of the streams.
    #[default]
    Stream,
    /// Half of f32, 11 significant bits. What lies outside ±65504 becomes ±65504, never infinity; NaN stays NaN.
    F16,
    /// Half of f32, 8 significant bits, the range of f32.
    Bf16,
}

words!(CacheDType, "cache dtype", { Stream = "stream", F16 = "f16", Bf16 = "bf16" });

impl CacheDType {
    /// What a tensor of a stream is kept in.
    pub(crate) fn of(self, stream: DType) -> DType {
        let asked = match self {
            Self::Stream => stream,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::Bf16,
        };
        if asked.bytes() < stream.bytes() { asked } else { stream }
    }

    /// Refuses to be set where nothing becomes smaller.
    pub(crate) fn check(self, manifest: &Manifest, cache: &PolicyConfig) -> Result<()> {
        if self == Self::Stream {
            return Ok(());
        }
        let no_effect =
            |why: &str| Err(Error::option("cache-dtype", format_args!("{self} has no effect: {why}; leave it out")));
        let keeps = cache.reuses_middle() || !cache.single_blocks(manifest.blocks.len()).is_empty();
        if !keeps {
            return no_effect(&format!("the cache `{cache}` keeps nothing"));
        }
        for stream in &manifest.streams {
            let dtype = manifest.tensor(stream)?.dtype;
            if self.of(dtype) != dtype {
                return Ok(());
            }
        }
        no_effect("the streams of this model are 16-bit already")
    }
}
