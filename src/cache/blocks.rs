//! Lists of blocks, as options write them.

use std::str::FromStr;

use crate::error::{Error, Result};

/// A list of blocks. As text: numbers with commas or dots between them, and ranges `from..to/stride`, such as `0,2,3` or
/// `0..16/2`. As the reference's `CacheType.range`, a range holds block 0 and its last block (`to - 1`) in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BlockIds(Vec<usize>);

impl BlockIds {
    /// The end of the longest range.
    pub(super) const MOST: usize = 10_000;

    /// In rising order, each once.
    pub(super) fn new(mut ids: Vec<usize>) -> Self {
        ids.sort_unstable();
        ids.dedup();
        Self(ids)
    }

    /// Every `stride`-th block from `from` to before `to`, with block 0 and the last one; `None` for a stride below 2 or
    /// an empty or absurd range.
    pub(super) fn range(from: usize, to: usize, stride: usize) -> Option<Self> {
        if stride < 2 || from >= to || to > Self::MOST {
            return None;
        }
        Some(Self::new(std::iter::once(0).chain((from..to).step_by(stride)).chain([to - 1]).collect()))
    }

    pub(super) fn ids(&self) -> &[usize] {
        &self.0
    }
}

impl FromStr for BlockIds {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = || {
            Error::usage(format!(
                "`{text}` is no list of blocks such as `0,2,3` or `0..16/2`, with strides of at least 2 and ends of at \
                 most {}",
                Self::MOST
            ))
        };
        let number = |id: &str| id.trim().parse::<usize>().map_err(|_| fail());
        let mut ids = Vec::new();
        for part in text.split(',') {
            let Some((from, rest)) = part.split_once("..") else {
                ids.extend(part.split('.').map(number).collect::<Result<Vec<_>>>()?);
                continue;
            };
            let (to, stride) = rest.split_once('/').ok_or_else(fail)?;
            ids.extend(Self::range(number(from)?, number(to)?, number(stride)?).ok_or_else(fail)?.0);
        }
        Ok(Self::new(ids))
    }
}
