//! Where a request keeps what its cache reuses, for providers with memory of their own.

use crate::cache::PolicyConfig;
use crate::error::{Error, Result};
use crate::runtime::device::Device;
use crate::runtime::tensor::TensorPlace;
use crate::words::words;

/// Where the cached tensors lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CachePlace {
    /// Where the provider computes.
    #[default]
    Device,
    /// In host memory: the device holds less, and each use is a copy.
    Host,
}

words!(CachePlace, "cache place", { Device = "device", Host = "host" });

impl CachePlace {
    pub(crate) fn place(self) -> TensorPlace {
        match self {
            Self::Device => TensorPlace::Device,
            Self::Host => TensorPlace::Host,
        }
    }

    /// Refuses to be set where nothing moves.
    pub(crate) fn check(self, device: &Device, cache: &PolicyConfig, blocks: usize) -> Result<()> {
        if self == Self::Device {
            return Ok(());
        }
        let no_effect = |why: String| Err(Error::option("cache-place", format!("has no effect: {why}; leave it out")));
        if device.is_host() {
            return no_effect(format!("all tensors of the provider `{}` lie in host memory", device.spec().kind()));
        }
        if !cache.reuses_middle() && cache.single_blocks(blocks).is_empty() {
            return no_effect(format!("the cache `{cache}` keeps nothing"));
        }
        Ok(())
    }
}
