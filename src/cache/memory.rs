//! How many tensors a policy makes the loop keep, and how many bytes that is: known before anything is allocated.

use super::calibrator::StreamKind;
use super::{PolicyConfig, RunShape};

/// Bytes of one tensor of each stream, for one guidance branch: batch x tokens x channels x size of a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamBytes {
    /// The image stream.
    pub hidden: u64,
    /// The text stream; `None` for a model without one.
    pub encoder: Option<u64>,
}

/// What is kept between steps for one guidance branch, at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptTensors {
    /// One for each unit and stream without a calibrator. A unit is the middle, or a block that is decided on alone.
    pub residuals: Tensors,
    /// For each unit and stream with a calibrator: its [`capacity`](super::Calibrator::capacity), and one in which the
    /// next is formed.
    pub calibrators: Tensors,
    /// For each unit that diffs are asked of: the tensor of the last computed step. Where `downsample_factor` does not
    /// divide the channels, their bytes are rounded down.
    pub compare: Tensors,
}

/// So many tensors, of so many bytes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tensors {
    /// How many.
    pub count: usize,
    /// Bytes of all of them.
    pub bytes: u64,
}

impl Tensors {
    fn add(&mut self, count: usize, bytes_each: u64) {
        self.count += count;
        self.bytes = self.bytes.saturating_add(bytes_each.saturating_mul(count as u64));
    }
}

impl KeptTensors {
    /// Bytes of everything, for one branch.
    pub fn bytes(&self) -> u64 {
        [self.residuals, self.calibrators, self.compare].iter().fold(0, |sum, part| part.bytes.saturating_add(sum))
    }
}

impl PolicyConfig {
    /// What the loop keeps for each guidance branch of a run under this policy, at most: all branches of a run keep as
    /// much.
    pub fn kept_tensors(&self, run: RunShape, streams: StreamBytes) -> KeptTensors {
        let mut kept = KeptTensors::default();
        let has_middle = self.blocks_split(run.n_blocks).is_ok_and(|split| !split.middle.is_empty());
        let middle = (self.reuses_middle() && has_middle).then_some(None);
        let singles = self.single_blocks(run.n_blocks);
        for block in middle.into_iter().chain(singles.iter().copied().map(Some)) {
            let of_stream = [(StreamKind::Hidden, Some(streams.hidden)), (StreamKind::Encoder, streams.encoder)];
            for (stream, bytes) in of_stream {
                let Some(bytes) = bytes else { continue };
                match self.calibrator(block, stream) {
                    None => kept.residuals.add(1, bytes),
                    Some(calibrator) => kept.calibrators.add(calibrator.capacity() + 1, bytes),
                }
            }
        }
        let mut compare = |units: usize, options: Option<super::DiffOptions>| {
            if let Some(options) = options {
                let factor = options.downsample_factor.max(1) as u64;
                kept.compare.add(units, streams.hidden / factor);
                if let (true, Some(encoder)) = (options.compare_all_streams, streams.encoder) {
                    kept.compare.add(units, encoder / factor);
                }
            }
        };
        compare(1, self.diff_options());
        compare(singles.len(), self.block_diff_options());
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::super::{RecordedBranch, Recording};
    use super::*;
    use crate::cache::Branch;
    use crate::error::Result;

    const RUN: RunShape = RunShape { n_blocks: 12, steps: 28, branches: 2 };
    const STREAMS: StreamBytes = StreamBytes { hidden: 1000, encoder: Some(100) };

    fn kept(tag: &str) -> Result<[(usize, u64); 3]> {
        let kept = PolicyConfig::from_tag(tag)?.kept_tensors(RUN, STREAMS);
        let parts = [kept.residuals, kept.calibrators, kept.compare];
        assert_eq!(kept.bytes(), parts.iter().map(|part| part.bytes).sum::<u64>());
        Ok(parts.map(|part| (part.count, part.bytes)))
    }

    #[test]
    fn tensors_are_counted_by_what_they_are_for() -> Result<()> {
        let nothing = (0, 0);
        for (tag, expected) in [
            ("none", [nothing; 3]),
            ("f1b0", [(2, 1100), nothing, (1, 1000)]),
            ("f1b0ds4", [(2, 1100), nothing, (1, 250)]),
            // The middle is empty, the diffs are asked for all the same.
            ("f8b4", [nothing, nothing, (1, 1000)]),
            // TaylorSeer keeps order + 1, and one more is formed.
            ("f1b0_t2", [nothing, (8, 4400), (1, 1000)]),
            ("f1b0_t2_ce0", [(1, 100), (4, 4000), (1, 1000)]),
            ("f1b0_foca_ch0", [(1, 1000), (5, 500), (1, 1000)]),
            ("f1b0_dmd6", [nothing, (14, 7700), (1, 1000)]),
            // Middle and three tail blocks; the latter repeat, and compare all channels.
            ("f1b4ds2_id0_t1", [(6, 3300), (6, 3300), (7, 3800)]),
            ("prune_f1b1np3", [(18, 9900), nothing, (9, 9000)]),
            ("prune_f1b1np3ds4_t1", [nothing, (54, 29700), (9, 2250)]),
        ] {
            assert_eq!(kept(tag)?, expected, "{tag}");
        }
        Ok(())
    }

    #[test]
    fn one_stream_and_replays_keep_less() -> Result<()> {
        let config = PolicyConfig::from_tag("f1b0")?;
        let alone = config.kept_tensors(RUN, StreamBytes { hidden: 1000, encoder: None });
        assert_eq!(alone.residuals, Tensors { count: 1, bytes: 1000 });
        let branches = vec![RecordedBranch::new(Branch::Cond, "C", &[])?];
        let replay = PolicyConfig::replay(config, Recording { n_blocks: 12, branches });
        assert_eq!(replay.kept_tensors(RUN, STREAMS).compare, Tensors::default());
        assert_eq!(replay.kept_tensors(RUN, STREAMS).residuals.count, 2);
        Ok(())
    }
}
