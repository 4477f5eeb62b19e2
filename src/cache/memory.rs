//! How many tensors a policy makes the loop keep, and how many bytes that is: known before anything is allocated.

use std::ops::Range;

use super::calibrator::StreamKind;
use super::{DiffOptions, DiffTensor, PolicyConfig, RunShape};

/// How large one stream of a model is, and which of its blocks touch it. Diffs compare those of the kind `Hidden`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StreamLayout {
    /// Whose it is.
    pub kind: StreamKind,
    /// Bytes of one tensor of the stream: batch x tokens x channels x size of a number.
    pub bytes: u64,
    /// Numbers along the last axis.
    pub channels: u64,
    /// For each block, whether it writes the stream.
    pub is_written: Vec<bool>,
    /// For each block, whether the stream is a part of its input that its kernels join with the first one.
    pub is_joined: Vec<bool>,
}

impl StreamLayout {
    /// The layout of the stream along some of the blocks.
    pub(crate) fn of_blocks(&self, blocks: &Range<usize>) -> Self {
        let part = |all: &[bool]| all.get(blocks.clone()).unwrap_or_default().to_vec();
        Self { is_written: part(&self.is_written), is_joined: part(&self.is_joined), ..self.clone() }
    }
}

/// What is kept between steps for one guidance branch, at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeptTensors {
    /// One for each unit and stream that it writes, without a calibrator. A unit is the middle, or a block that is decided on alone.
    pub residuals: TensorCount,
    /// For each unit and stream with a calibrator: its [`capacity`](super::Calibrator::capacity), and one in which the
    /// next is formed.
    pub calibrators: TensorCount,
    /// For each unit that diffs are asked of: the tensors of the last computed step.
    pub compare: TensorCount,
}

/// So many tensors, of so many bytes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TensorCount {
    /// How many.
    pub count: usize,
    /// Bytes of all of them.
    pub bytes: u64,
}

impl TensorCount {
    fn add(&mut self, count: usize, bytes_each: u64) {
        self.count += count;
        self.bytes = self.bytes.saturating_add(bytes_each.saturating_mul(count as u64));
    }
}

impl PolicyConfig {
    /// What the loop keeps for each guidance branch of a run under this policy, at most: all branches of a run keep as
    /// much. A run that is too short to fill its calibrators keeps less.
    pub(crate) fn kept_tensors(&self, run: RunShape, streams: &[StreamLayout]) -> KeptTensors {
        let mut kept = KeptTensors::default();
        let singles = self.single_blocks(run.n_blocks);
        let middle = self.blocks_split(run.n_blocks).ok().filter(|_| self.reuses_middle()).map(|split| split.middle);
        let units = middle.into_iter().map(|blocks| (None, blocks));
        for (block, blocks) in units.chain(singles.iter().map(|&block| (Some(block), block..block + 1))) {
            for stream in streams {
                let is_written = stream.is_written.get(blocks.clone()).unwrap_or_default().contains(&true);
                if !is_written || !self.corrects(block, stream.kind) {
                    continue;
                }
                match self.calibrator(block, stream.kind) {
                    None => kept.residuals.add(1, stream.bytes),
                    Some(calibrator) => kept.calibrators.add(calibrator.capacity() + 1, stream.bytes),
                }
            }
        }
        let step = self.diff_options().map(|options| (options, None));
        let blocks = singles.iter().filter_map(|&block| Some((self.block_diff_options()?, Some(block))));
        for (options, block) in step.into_iter().chain(blocks) {
            for stream in streams {
                if is_compared(options, block, stream) {
                    let factor = options.downsample_factor.max(1) as u64;
                    let channels = stream.channels.max(1);
                    kept.compare.add(1, stream.bytes / channels * channels.div_ceil(factor));
                }
            }
        }
        kept
    }
}

fn is_compared(options: DiffOptions, block: Option<usize>, stream: &StreamLayout) -> bool {
    let compares_all = options.tensor == DiffTensor::BlockInput && options.compare_all_streams;
    let is_joined = block.and_then(|block| stream.is_joined.get(block)).copied().unwrap_or_default();
    stream.kind == StreamKind::Hidden || (compares_all && is_joined)
}

#[cfg(test)]
mod tests {
    use super::super::{RecordedBranch, Recording};
    use super::*;
    use crate::cache::Branch;
    use crate::error::Result;

    const RUN: RunShape = RunShape { n_blocks: 12, steps: 28, branches: 2 };

    /// An image and a text stream of 50 channels; the last four blocks join them, the very last writes no text.
    fn streams() -> Vec<StreamLayout> {
        let hidden = StreamLayout {
            kind: StreamKind::Hidden,
            bytes: 1000,
            channels: 50,
            is_written: vec![true; 12],
            is_joined: (0..12).map(|block| block >= 8).collect(),
        };
        let is_written = (0..12).map(|block| block < 11).collect();
        vec![hidden.clone(), StreamLayout { kind: StreamKind::Encoder, bytes: 100, is_written, ..hidden }]
    }

    fn kept(tag: &str) -> Result<[(usize, u64); 3]> {
        let kept = PolicyConfig::from_tag(tag)?.kept_tensors(RUN, &streams());
        let parts = [kept.residuals, kept.calibrators, kept.compare];
        Ok(parts.map(|part| (part.count, part.bytes)))
    }

    #[test]
    fn tensors_are_counted_by_what_they_are_for() -> Result<()> {
        let nothing = (0, 0);
        for (tag, expected) in [
            ("none", [nothing; 3]),
            ("f1b0", [(2, 1100), nothing, (1, 1000)]),
            ("f1b0ds4", [(2, 1100), nothing, (1, 260)]),
            // The middle is empty, the diffs are asked for all the same.
            ("f8b4", [nothing, nothing, (1, 1000)]),
            // TaylorSeer keeps order + 1, and one more is formed.
            ("f1b0_t2", [nothing, (8, 4400), (1, 1000)]),
            ("f1b0_t2_ce0", [(1, 100), (4, 4000), (1, 1000)]),
            ("f1b0_foca_ch0", [(1, 1000), (5, 500), (1, 1000)]),
            ("f1b0_dmd6", [nothing, (14, 7700), (1, 1000)]),
            // Middle and three tail blocks; the latter repeat, and compare all channels.
            ("f1b4ds2_id0_t1", [(5, 3200), (6, 3300), (7, 3800)]),
            ("prune_f1b1np3", [(18, 9900), nothing, (9, 9000)]),
            ("prune_f1b1np3ds4_t1", [nothing, (54, 29700), (9, 2340)]),
        ] {
            assert_eq!(kept(tag)?, expected, "{tag}");
        }
        Ok(())
    }

    #[test]
    fn one_stream_and_replays_keep_less() -> Result<()> {
        let config = PolicyConfig::from_tag("f1b0")?;
        let alone = config.kept_tensors(RUN, &streams()[..1]);
        assert_eq!(alone.residuals, TensorCount { count: 1, bytes: 1000 });
        let branches = vec![RecordedBranch::new(Branch::Cond, "C", &[])?];
        let replay = PolicyConfig::replay(config, Recording::joined(12, branches));
        assert_eq!(replay.kept_tensors(RUN, &streams()).compare, TensorCount::default());
        assert_eq!(replay.kept_tensors(RUN, &streams()).residuals.count, 2);
        Ok(())
    }
}
