//! A policy as its user sets it, and what the loop of a request must do for it.

use std::ops::Range;

use super::calibrator::{Calibrator, CalibratorCacheType, StreamKind};
use super::dbcache::{self, DbCacheConfig, DiffOptions};
use super::dbprune::{self, DbPruneConfig};
use super::policy::{self, Branch, CachePolicy};
use super::replay::{self, RecordedList, Recording};
use super::shape::{BlocksSplit, RunShape};
use crate::error::{Error, Result};

/// Which policy, with its options. [`Default`] computes everything.
///
/// Its text form is a tag (see [`PolicyConfig::from_tag`]) or a JSON object (see [`PolicyConfig::from_json`]);
/// `Display` prints the canonical tag, which parses back to the same value.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum PolicyConfig {
    /// `none`: every block runs on every step.
    #[default]
    None,
    /// `dbcache`, and `fb`, which is its F1 B0.
    DbCache(DbCacheConfig),
    /// `prune`: every block decides for itself.
    DbPrune(DbPruneConfig),
    /// A recorded run again; see [`PolicyConfig::replay`].
    Replay {
        /// The policy that was recorded: it says which blocks it decided on, and what is kept and forecast.
        config: Box<PolicyConfig>,
        /// What it decided.
        recording: Recording,
    },
}

impl PolicyConfig {
    /// The policies of one generation, one for each branch, in the order in which the branches are computed: fresh
    /// states each time.
    ///
    /// # Errors
    /// `Usage`, as [`validate`](Self::validate).
    pub fn policies(&self, run: RunShape) -> Result<Vec<(Branch, Box<dyn CachePolicy>)>> {
        self.validate(run)?;
        let cond_diffs = dbprune::CondDiffs::default();
        let of_branch = |branch| Ok((branch, self.policy(branch, run, &cond_diffs)?));
        self.branches(run).into_iter().map(of_branch).collect()
    }

    fn policy(&self, branch: Branch, run: RunShape, cond_diffs: &dbprune::CondDiffs) -> Result<Box<dyn CachePolicy>> {
        Ok(match self {
            Self::None => Box::new(policy::ComputeAll),
            Self::DbCache(config) => Box::new(dbcache::DbCache::new(config, run)?),
            Self::DbPrune(config) => Box::new(dbprune::DbPrune::new(config, run, cond_diffs.clone())?),
            Self::Replay { config, recording } => {
                let recorded =
                    recording.list()?.find(branch).ok_or_else(|| Error::internal("a branch is not recorded"))?;
                Box::new(replay::Replay::new(config, recorded, run)?)
            }
        })
    }

    /// The branches of a run, in the order in which they are computed.
    pub(super) fn branches(&self, run: RunShape) -> Vec<Branch> {
        if run.branches == 1 { vec![Branch::Cond] } else { self.branch_order().to_vec() }
    }

    /// The policy that repeats what `config` decided in a recorded run. It never asks for a diff, so none is computed
    /// and nothing is kept for any; all else it does as `config` does. Whether the recording fits is checked by
    /// [`validate`](Self::validate).
    pub fn replay(config: PolicyConfig, recording: Recording) -> Self {
        Self::Replay { config: Box::new(config), recording }
    }

    /// Whether each list of blocks is decided on by itself; see [`DbCacheConfig::separate_block_lists`].
    pub fn separates_lists(&self) -> bool {
        match self {
            Self::None => false,
            Self::DbCache(config) => config.separate_block_lists,
            Self::DbPrune(config) => config.separate_block_lists,
            Self::Replay { config, .. } => config.separates_lists(),
        }
    }

    /// One policy for each of `count` lists of blocks: all alike, but a replay repeats in each what was decided there.
    /// Each counts blocks from the start of its list, and must be given a [`RunShape`] of it.
    ///
    /// # Errors
    /// `Usage` for a recording of another number of lists.
    pub fn of_lists(&self, count: usize) -> Result<Vec<Self>> {
        let Self::Replay { config, recording } = self else { return Ok(vec![self.clone(); count]) };
        if recording.lists.len() != count {
            return Err(Error::usage(format!(
                "the recording decides on {} lists of blocks, this run on {count}; replay it on the engine that made it",
                recording.lists.len()
            )));
        }
        let of_list = |list: &RecordedList| Self::Replay {
            config: config.clone(),
            recording: Recording { lists: vec![list.clone()] },
        };
        Ok(recording.lists.iter().map(of_list).collect())
    }

    /// The policy of some of the steps of a run, which count from 0 again: the same, but a replay repeats what was decided
    /// there.
    pub fn of_steps(&self, steps: Range<usize>) -> Self {
        let Self::Replay { config, recording } = self else { return self.clone() };
        Self::Replay { config: config.clone(), recording: recording.of_steps(&steps) }
    }

    /// Refuses options that are impossible, or that do not fit the model or the run.
    ///
    /// # Errors
    /// `Usage` with the reason and a remedy.
    pub fn validate(&self, run: RunShape) -> Result<()> {
        self.check()?;
        self.blocks_split(run.n_blocks)?;
        if !(1..=2).contains(&run.branches) {
            return Err(Error::usage(format!("a step has 1 or 2 guidance branches, not {}", run.branches)));
        }
        let of_branches = match self {
            Self::DbCache(config) if config.cfg_compute_first => Some("cfg_compute_first"),
            Self::DbCache(config) if !config.cfg_diff_compute_separate => Some("cfg_diff_compute_separate"),
            Self::DbPrune(config) if config.cfg_compute_first => Some("cfg_compute_first"),
            _ => None,
        };
        if let (Some(option), 1) = (of_branches, run.branches) {
            return Err(Error::usage(format!(
                "{option} has no effect: this run has one guidance branch; leave it out, or ask for classifier-free guidance"
            )));
        }
        match self {
            Self::None => Ok(()),
            Self::DbCache(config) => config.check_run(run),
            Self::DbPrune(config) => config.check_run(run),
            Self::Replay { config, recording } => recording.list()?.check(config, run),
        }
    }

    /// Refuses options that are impossible for any model and run.
    ///
    /// # Errors
    /// `Usage` with the reason and a remedy.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::DbCache(config) => config.check(),
            Self::DbPrune(config) => config.check(),
            Self::Replay { config, .. } => match config.as_ref() {
                Self::DbCache(_) | Self::DbPrune(_) => config.check(),
                Self::None | Self::Replay { .. } => {
                    Err(Error::usage(format!("the policy `{config}` decides nothing that could be replayed")))
                }
            },
        }
    }

    /// Suspicious but legal settings, as sentences for the user: options that others outrank, and runs in which
    /// nothing can be skipped.
    pub fn warnings(&self, run: RunShape) -> Vec<String> {
        let RunShape { n_blocks, steps, .. } = run;
        let (mut warnings, w, i, mask) = match self {
            Self::None | Self::Replay { .. } => return Vec::new(),
            Self::DbCache(c) => (c.outranked(run), c.max_warmup_steps, c.warmup_interval, &c.steps_computation_mask),
            Self::DbPrune(c) => (c.outranked(run), c.max_warmup_steps, c.warmup_interval, &c.steps_computation_mask),
        };
        if mask.is_none() && w > steps {
            warnings.push(format!("max_warmup_steps {w} has no effect beyond the run's {steps} steps"));
        }
        if mask.is_none() && i == 1 && w >= steps {
            warnings.push(format!("nothing can be skipped: all {steps} steps are warm-up (max_warmup_steps {w})"));
        }
        // A recorded run of the reference is of this kind: its diffs are taken, its decisions made, for nothing. DBPrune
        // would not even do that, so there it is an error.
        let saves_nothing = self.blocks_split(n_blocks).is_ok_and(|split| split.middle.is_empty());
        if saves_nothing && self.single_blocks(n_blocks).is_empty() {
            warnings.push(format!("nothing is saved: the blocks that always run are all {n_blocks} blocks"));
        }
        warnings
    }

    /// Head, middle and tail of a model of `n_blocks` blocks. Without a policy all is middle.
    ///
    /// # Errors
    /// `Usage` if there is no head, or if head and tail do not fit.
    pub fn blocks_split(&self, n_blocks: usize) -> Result<BlocksSplit> {
        let (f, b) = match self {
            Self::Replay { config, .. } => return config.blocks_split(n_blocks),
            Self::None => (0, 0),
            Self::DbCache(config) => (config.fn_compute_blocks, config.bn_compute_blocks),
            Self::DbPrune(config) => (config.fn_compute_blocks, config.bn_compute_blocks),
        };
        self.check()?;
        match f.checked_add(b) {
            Some(kept) if kept <= n_blocks => {
                let tail = n_blocks - b;
                Ok(BlocksSplit { head: 0..f, middle: f..tail, tail: tail..n_blocks })
            }
            _ => Err(Error::usage(format!(
                "Fn_compute_blocks {f} + Bn_compute_blocks {b} is more than the model's {n_blocks} blocks, so blocks \
                 would run twice; lower one of them"
            ))),
        }
    }

    /// The blocks that the policy decides on one by one, counted from the start of the model: the plan needs a cut
    /// before and after each.
    ///
    /// Whenever such a block is about to run, the loop asks the gate with this block. On `Skip` it adds the kept
    /// residual of the block to the streams. On `Compute` it runs the block, and if the policy
    /// [`keeps`](CachePolicy::keeps) it, keeps its input (for the diff, see
    /// [`block_diff_options`](Self::block_diff_options)) and its residual of every stream.
    pub fn single_blocks(&self, n_blocks: usize) -> Vec<usize> {
        match self {
            Self::None => Vec::new(),
            Self::DbCache(config) => config.skippable_tail(n_blocks),
            Self::DbPrune(config) => config.prunable(n_blocks),
            Self::Replay { config, .. } => config.single_blocks(n_blocks),
        }
    }

    /// What the loop compares when the policy asks for the diff of one of the
    /// [`single_blocks`](Self::single_blocks); `None` if it never asks.
    pub fn block_diff_options(&self) -> Option<DiffOptions> {
        match self {
            Self::DbCache(config) if config.bn_compute_blocks_ids.is_some() => Some(config.block_diff_options()),
            Self::DbPrune(config) => Some(config.block_diff_options()),
            _ => None,
        }
    }

    /// What the loop compares when the policy asks for the diff of a step; `None` if it never asks.
    pub fn diff_options(&self) -> Option<DiffOptions> {
        match self {
            Self::DbCache(config) => Some(config.diff_options()),
            Self::None | Self::DbPrune(_) | Self::Replay { .. } => None,
        }
    }

    /// Whether the uncond branch is judged by the diff of the cond branch: if its gate says
    /// [`NeedsDiff`](super::Gate::NeedsDiff) and a diff was recorded for the cond branch of the same step, the loop passes
    /// that one to [`judge`](CachePolicy::judge), and records it for both. Otherwise it computes one. Tensors to
    /// compare are kept for both branches in any case.
    pub fn shares_cond_diff(&self) -> bool {
        match self {
            Self::DbCache(config) => config.shares_cond_diff(),
            Self::None | Self::DbPrune(_) | Self::Replay { .. } => false,
        }
    }

    /// In which order the loop computes the branches of a step that has both.
    pub fn branch_order(&self) -> [Branch; 2] {
        match self {
            Self::Replay { config, .. } => config.branch_order(),
            Self::DbCache(DbCacheConfig { cfg_compute_first: true, .. })
            | Self::DbPrune(DbPruneConfig { cfg_compute_first: true, .. }) => [Branch::Uncond, Branch::Cond],
            _ => [Branch::Cond, Branch::Uncond],
        }
    }

    /// Whether the loop keeps the residual of the middle blocks as a whole: it does unless there is no policy, or one
    /// that decides per block.
    pub fn reuses_middle(&self) -> bool {
        match self {
            Self::DbCache(_) => true,
            Self::None | Self::DbPrune(_) => false,
            Self::Replay { config, .. } => config.reuses_middle(),
        }
    }

    /// Whether it computes steps that it does not keep.
    pub(crate) fn alternates(&self) -> bool {
        match self {
            Self::DbCache(config) => config.enable_alter_cache,
            Self::None | Self::DbPrune(_) => false,
            Self::Replay { config, .. } => config.alternates(),
        }
    }

    /// What forecasts the middle (`block` is `None`) or one of the [`single_blocks`](Self::single_blocks) in one stream
    /// of one branch, in its initial state; `None` where the last residual is repeated. Tail blocks of DBCache have no
    /// calibrators, as in the reference.
    pub fn calibrator(&self, block: Option<usize>, stream: StreamKind) -> Option<Box<dyn Calibrator>> {
        let config = match (self, block) {
            (Self::DbCache(DbCacheConfig { calibrator, .. }), None)
            | (Self::DbPrune(DbPruneConfig { calibrator, .. }), Some(_)) => calibrator.as_ref()?,
            (Self::Replay { config, .. }, _) => return config.calibrator(block, stream),
            _ => return None,
        };
        config.forecasts(stream).then(|| config.calibrator())
    }

    /// Whether skipping the middle (`block` is `None`) or one of the [`single_blocks`](Self::single_blocks) changes this
    /// stream at all. If not, nothing is kept of it: it stays what the blocks before made of it.
    pub fn corrects(&self, block: Option<usize>, stream: StreamKind) -> bool {
        match self {
            Self::Replay { config, .. } => config.corrects(block, stream),
            Self::DbCache(config) => config.enable_encoder_residual || block.is_some() || stream == StreamKind::Hidden,
            Self::None | Self::DbPrune(_) => true,
        }
    }

    /// What is kept of the middle or of a block in one stream, and how it is used again: added to the stream as a
    /// residual, or put in its place. A stream without a calibrator always keeps residuals.
    pub fn cache_type(&self, block: Option<usize>, stream: StreamKind) -> CalibratorCacheType {
        match self {
            Self::Replay { config, .. } => config.cache_type(block, stream),
            Self::DbCache(DbCacheConfig { calibrator: Some(calibrator), .. })
                if block.is_none() && calibrator.forecasts(stream) =>
            {
                calibrator.calibrator_cache_type
            }
            _ => CalibratorCacheType::Residual,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::{DecisionPoint, Gate, Reason};
    use super::*;

    fn run(n_blocks: usize, steps: usize) -> RunShape {
        RunShape { n_blocks, steps, branches: 1 }
    }

    #[test]
    fn head_middle_and_tail_cover_all_blocks() -> Result<()> {
        let split = |tag: &str, n_blocks: usize| PolicyConfig::from_tag(tag)?.blocks_split(n_blocks);
        assert_eq!(split("f2b4", 12)?, BlocksSplit { head: 0..2, middle: 2..8, tail: 8..12 });
        assert_eq!(split("f12b0", 12)?, BlocksSplit { head: 0..12, middle: 12..12, tail: 12..12 });
        assert_eq!(split("none", 12)?, BlocksSplit { head: 0..0, middle: 0..12, tail: 12..12 });
        let refused = split("f8b8", 12);
        assert!(
            refused
                .is_err_and(|error| error.to_string().contains("8 + Bn_compute_blocks 8 is more than the model's 12"))
        );
        let huge = DbCacheConfig { fn_compute_blocks: usize::MAX, ..Default::default() };
        assert!(PolicyConfig::DbCache(huge).blocks_split(12).is_err());
        Ok(())
    }

    #[test]
    fn a_mask_must_fit_the_run() -> Result<()> {
        let validate = |tag: &str, steps: usize| PolicyConfig::from_tag(tag)?.validate(run(12, steps));
        validate("f1b0_scm:1101", 4)?;
        validate("f1b0_scm:ultra:static", 4)?;
        validate("none", 4)?;
        for (tag, steps) in [("f1b0_scm:1101", 5), ("f1b0_scm:11011", 4), ("f1b0_scm:slow", 5), ("f8b8", 4)] {
            assert!(validate(tag, steps).is_err(), "{tag} {steps}");
        }
        Ok(())
    }

    #[test]
    fn warnings_name_what_has_no_effect() -> Result<()> {
        let warnings = |tag: &str| Ok::<_, Error>(PolicyConfig::from_tag(tag)?.warnings(run(12, 28)).join("; "));
        for (tag, words) in [
            ("f1b0_scm:fast:static_m4", "max_cached_steps has no effect: a static"),
            ("f1b0cf1cds0", "cfg_diff_compute_separate has no effect: cfg_compute_first"),
            ("f1b0w28", "all 28 steps are warm-up (max_warmup_steps 28)"),
            ("f1b0fr28", "force_refresh_step_hint has no effect"),
            ("f8b4", "always run are all 12 blocks"),
            ("f1b0w4r0.3l0.05", "residual_diff_threshold has no effect: l1_hidden_states_diff_threshold replaces it"),
            ("f1b0w4r0.3al1", "residual_diff_threshold has no effect: enable_alter_cache"),
            ("f1b0r0.3_scm:fast:static", "residual_diff_threshold has no effect: a static"),
            ("prune_f1b0r0.3_scm:fast:static", "residual_diff_threshold has no effect: a static"),
            ("f1b0w8m20", "max_cached_steps has no effect: at most 20 of 28 steps can be skipped"),
            ("f1b0w8m100mc20", "max_continuous_cached_steps has no effect: at most 20 steps can be skipped in a row"),
            ("f1b0w8fr14m14", "max_cached_steps has no effect: at most 6 of 14 steps can be skipped"),
            ("prune_f1b0w8mp20", "max_pruned_steps has no effect: at most 20 of 28"),
            ("prune_f1b0w8m21", "max_cached_steps has no effect: at most 20 of 28"),
            ("prune_f1b0w8mc20", "max_continuous_cached_steps has no effect"),
            ("f1b0w99", "max_warmup_steps 99 has no effect beyond the run's 28 steps"),
            ("f1b0w99i4", "max_warmup_steps 99 has no effect beyond the run's 28 steps"),
            ("prune_f0b0m3_scm:fast:static", "max_cached_steps has no effect"),
        ] {
            assert!(warnings(tag)?.contains(words), "{tag}: {}", warnings(tag)?);
        }
        for tag in [
            "none",
            "f1b0",
            "f1b0_scm:fast:static",
            "f1b0w28i2",
            "f1b0cds0",
            "f1b0l0.05",
            "f1b0m19mc19",
            "fb",
            "f1b4id0m20",
            "prune_f1b0m20mp19mc19",
        ] {
            assert_eq!(warnings(tag)?, "", "{tag}");
        }
        Ok(())
    }

    #[test]
    fn branches_share_a_diff_only_if_cond_comes_first() -> Result<()> {
        let shares = |tag: &str| Ok::<_, Error>(PolicyConfig::from_tag(tag)?.shares_cond_diff());
        assert!(!shares("none")? && !shares("f1b0")? && shares("f1b0cds0")? && !shares("f1b0cds0cf1")?);
        assert_eq!(PolicyConfig::from_tag("f1b0cf1")?.branch_order(), [Branch::Uncond, Branch::Cond]);
        Ok(())
    }

    #[test]
    fn calibrators_belong_to_units_and_streams() -> Result<()> {
        use CalibratorCacheType::{HiddenStates, Residual};
        use StreamKind::{Encoder, Hidden};
        let units = [(None, Hidden), (None, Encoder), (Some(11), Hidden)];
        for (tag, has, cache_types) in [
            ("f1b0", [false; 3], [Residual; 3]),
            ("f1b2id0_t1", [true, true, false], [Residual; 3]),
            ("f1b2id0_t1_hs1", [true, true, false], [HiddenStates, HiddenStates, Residual]),
            // A stream without a calibrator keeps residuals whatever the others do.
            ("f1b2id0_t1_hs1_ce0", [true, false, false], [HiddenStates, Residual, Residual]),
            ("prune_f0b0_foca_ch0", [false; 3], [Residual; 3]),
            ("prune_f0b0_foca", [false, false, true], [Residual; 3]),
        ] {
            let config = PolicyConfig::from_tag(tag)?;
            assert_eq!(units.map(|(block, stream)| config.calibrator(block, stream).is_some()), has, "{tag}");
            assert_eq!(units.map(|(block, stream)| config.cache_type(block, stream)), cache_types, "{tag}");
        }
        Ok(())
    }

    #[test]
    fn policies_are_independent() -> Result<()> {
        let config = PolicyConfig::from_tag("f1b0w0r0.1")?;
        let at = DecisionPoint { step: 0, steps: 2, branch: Branch::Cond, block: None };
        let (mut one, mut other) = (config.policies(run(12, 2))?.remove(0).1, config.policies(run(12, 2))?.remove(0).1);
        assert_eq!(one.gate(at), other.gate(at));
        assert_eq!(one.gate(DecisionPoint { step: 1, ..at }), Gate::NeedsDiff);
        assert_eq!(config.policies(run(12, 2))?.remove(0).1.gate(at), Gate::Decided(Reason::NoBuffer.into()));
        Ok(())
    }
}
