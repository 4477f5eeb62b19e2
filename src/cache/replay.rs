//! A recorded run, decided again without asking for a single diff: for debugging, for measuring what the diffs cost,
//! and for comparing two machines on the same decisions.

use std::ops::Range;

use super::policy::{Action, Branch, CachePolicy, Decision, DecisionPoint, Gate, Reason};
use super::schedule::CacheSchedule;
use super::{PolicyConfig, RunShape};
use crate::error::{Error, Result};

/// The decisions of a run, as a trace holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// Of each list of blocks that was decided on by itself; one where all blocks were decided on together.
    pub lists: Vec<RecordedList>,
}

/// The decisions on one list of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedList {
    /// Blocks of the list.
    pub n_blocks: usize,
    /// One for each guidance branch that was run, in any order.
    pub branches: Vec<RecordedBranch>,
}

/// The decisions of one branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedBranch {
    /// Which one.
    pub branch: Branch,
    /// One for each step.
    pub steps: Vec<RecordedStep>,
}

/// The decisions of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedStep {
    /// Whether the middle blocks ran. Always `Compute` for policies that decide per block.
    pub action: Action,
    /// Of the [`single_blocks`](PolicyConfig::single_blocks), those that were skipped, counted from the start of the
    /// list, in rising order.
    pub skipped_blocks: Vec<usize>,
}

impl RecordedStep {
    fn new(branch: Branch, step: usize, letter: char, mut skipped_blocks: Vec<usize>) -> Result<Self> {
        let action = match letter {
            'C' | 'P' => Action::Compute,
            'S' => Action::Skip,
            _ => {
                return Err(Error::usage(format!(
                    "the recording of the {branch} branch says `{letter}` on step {step}; expected C, S or P"
                )));
            }
        };
        skipped_blocks.sort_unstable();
        skipped_blocks.dedup();
        Ok(Self { action, skipped_blocks })
    }
}

impl RecordedBranch {
    /// From the letters of a trace: `C` for a computed step, `S` for a skipped one, and `P` for one that skipped blocks
    /// alone. `skipped_blocks` has the blocks of each step; empty if none was ever skipped alone.
    ///
    /// # Errors
    /// `Usage` for other letters, and if the two differ in length.
    pub fn new(branch: Branch, letters: &str, skipped_blocks: &[Vec<usize>]) -> Result<Self> {
        let steps = letters.chars().count();
        if !skipped_blocks.is_empty() && skipped_blocks.len() != steps {
            return Err(Error::usage(format!(
                "the recording of the {branch} branch has {steps} decisions, but the blocks of {} steps",
                skipped_blocks.len()
            )));
        }
        let recorded = letters.chars().enumerate().map(|(step, letter)| {
            let skipped = skipped_blocks.get(step).cloned().unwrap_or_default();
            RecordedStep::new(branch, step, letter, skipped)
        });
        Ok(Self { branch, steps: recorded.collect::<Result<_>>()? })
    }
}

impl Recording {
    /// Of a run that decided on all blocks together.
    pub fn joined(n_blocks: usize, branches: Vec<RecordedBranch>) -> Self {
        Self { lists: vec![RecordedList { n_blocks, branches }] }
    }

    /// Of some steps.
    pub(super) fn of_steps(&self, steps: &Range<usize>) -> Self {
        let mut part = self.clone();
        for branch in part.lists.iter_mut().flat_map(|list| &mut list.branches) {
            let end = steps.end.min(branch.steps.len());
            branch.steps = branch.steps.drain(steps.start.min(end)..end).collect();
        }
        part
    }

    /// The one list that it has, or is to have.
    pub(super) fn list(&self) -> Result<&RecordedList> {
        match self.lists.as_slice() {
            [list] => Ok(list),
            lists => Err(Error::usage(format!(
                "the recording decides on {} lists of blocks; replay each on the list that it is of",
                lists.len()
            ))),
        }
    }
}

impl RecordedList {
    /// Refuses a recording that does not fit the run, or that `config` could not have made: the steps, branches and
    /// blocks must be the same, and nothing may be reused that was never kept.
    pub(super) fn check(&self, config: &PolicyConfig, run: RunShape) -> Result<()> {
        if self.n_blocks != run.n_blocks {
            return Err(Error::usage(format!(
                "the recording is of a model of {} blocks, this one has {}; replay it on the engine that made it",
                self.n_blocks, run.n_blocks
            )));
        }
        let expected: Vec<Branch> = config.branches(run);
        let is_same =
            self.branches.len() == expected.len() && expected.iter().all(|branch| self.find(*branch).is_some());
        if !is_same {
            let names = |branches: Vec<Branch>| branches.iter().map(|b| b.as_str()).collect::<Vec<_>>().join(" and ");
            return Err(Error::usage(format!(
                "the recording has the branches {}, this run has {}; ask for the same guidance",
                names(self.branches.iter().map(|recorded| recorded.branch).collect()),
                names(expected)
            )));
        }
        self.branches.iter().try_for_each(|recorded| recorded.check(config, run))
    }

    pub(super) fn find(&self, branch: Branch) -> Option<&RecordedBranch> {
        self.branches.iter().find(|recorded| recorded.branch == branch)
    }
}

impl RecordedBranch {
    fn check(&self, config: &PolicyConfig, run: RunShape) -> Result<()> {
        let branch = self.branch;
        if self.steps.len() != run.steps {
            return Err(Error::usage(format!(
                "the recording of the {branch} branch has {} steps, this run has {}; ask for as many",
                self.steps.len(),
                run.steps
            )));
        }
        let singles = config.single_blocks(run.n_blocks);
        let is_per_block = !config.reuses_middle();
        let mut policy = Replay::new(config, self, run)?;
        let (mut is_middle_kept, mut kept) = (false, vec![false; run.n_blocks]);
        for (step, recorded) in self.steps.iter().enumerate() {
            let refuse =
                |what: String| Err(Error::usage(format!("the recording of the {branch} branch {what} on step {step}")));
            let at = DecisionPoint { step, steps: run.steps, branch, block: None };
            policy.gate(at);
            if policy.calibrator_step(at) == 0 {
                is_middle_kept = false;
                kept.fill(false);
            }
            if recorded.action == Action::Skip && is_per_block {
                return refuse(format!("skips all blocks at once, but `{config}` decides per block"));
            }
            if recorded.action == Action::Skip && !is_middle_kept {
                return refuse("reuses what was never kept".to_owned());
            }
            if let Some(block) = recorded.skipped_blocks.iter().find(|block| !singles.contains(block)) {
                return refuse(format!("skips block {block} alone, but `{config}` does not decide on it"));
            }
            if let Some(block) = recorded.skipped_blocks.iter().find(|&&block| !kept[block]) {
                return refuse(format!("reuses block {block}, of which nothing was kept,"));
            }
            is_middle_kept |= recorded.action == Action::Compute && policy.keeps(at);
            for &block in &singles {
                let at = DecisionPoint { block: Some(block), ..at };
                kept[block] |= !recorded.skipped_blocks.contains(&block) && policy.keeps(at);
            }
        }
        Ok(())
    }
}

/// The recorded decisions of one branch, one after the other.
pub(super) struct Replay {
    steps: Vec<RecordedStep>,
    /// What of the recorded policy does not hang on diffs: when it starts again, and on which steps it keeps something.
    schedule: CacheSchedule,
    is_per_block: bool,
}

impl Replay {
    pub(super) fn new(config: &PolicyConfig, recorded: &RecordedBranch, run: RunShape) -> Result<Self> {
        let options = match config {
            PolicyConfig::DbCache(config) => config.schedule(),
            PolicyConfig::DbPrune(config) => config.schedule(),
            PolicyConfig::None | PolicyConfig::Replay { .. } => {
                return Err(Error::usage(format!("the policy `{config}` decides nothing that could be replayed")));
            }
        };
        let schedule = CacheSchedule::new(options, run)?;
        Ok(Self { steps: recorded.steps.clone(), schedule, is_per_block: !config.reuses_middle() })
    }

    fn decision(&self, at: DecisionPoint) -> Decision {
        let recorded = self.steps.get(at.step);
        let is_skipped = match at.block {
            Some(block) => recorded.is_some_and(|recorded| recorded.skipped_blocks.contains(&block)),
            None => recorded.is_some_and(|recorded| recorded.action == Action::Skip),
        };
        if is_skipped { Reason::RecordedSkip.into() } else { Reason::RecordedCompute.into() }
    }
}

impl CachePolicy for Replay {
    fn gate(&mut self, at: DecisionPoint) -> Gate {
        if at.block.is_none() {
            self.schedule.is_refresh(at.step);
        }
        Gate::Decided(self.decision(at))
    }

    fn judge(&mut self, at: DecisionPoint, _diff: f32) -> Decision {
        self.decision(at)
    }

    fn threshold(&self, _at: DecisionPoint) -> Option<f64> {
        None
    }

    fn keeps(&self, at: DecisionPoint) -> bool {
        let of_step = self.decision(DecisionPoint { block: None, ..at });
        let is_asked = if self.is_per_block { at.block.is_some() } else { of_step.action == Action::Compute };
        is_asked && self.schedule.keeps(at.step)
    }

    fn calibrator_step(&self, at: DecisionPoint) -> usize {
        self.schedule.since_refresh(at.step)
    }
}

#[cfg(test)]
mod tests {
    use super::super::StreamKind;
    use super::*;

    fn run(steps: usize, branches: usize) -> RunShape {
        RunShape { n_blocks: 12, steps, branches }
    }

    fn recording(letters: &str, skipped: &[Vec<usize>]) -> Result<Recording> {
        Ok(Recording::joined(12, vec![RecordedBranch::new(Branch::Cond, letters, skipped)?]))
    }

    #[test]
    fn the_structure_stays_and_nothing_is_compared() -> Result<()> {
        let config = PolicyConfig::from_tag("f2b4w1r0.1cf1_id0_t1")?;
        let replay = PolicyConfig::replay(config.clone(), recording("CCSS", &[])?);
        assert_eq!(replay.to_string(), format!("replay({config})"));
        assert_eq!(replay.blocks_split(12)?, config.blocks_split(12)?);
        assert_eq!(replay.single_blocks(12), [9, 10, 11]);
        assert_eq!((replay.diff_options(), replay.block_diff_options()), (None, None));
        assert_eq!(replay.branch_order(), config.branch_order());
        assert!(replay.calibrator(None, StreamKind::Hidden).is_some() && replay.reuses_middle());
        assert!(!replay.shares_cond_diff());
        let tag = replay.to_string();
        assert!(tag.parse::<PolicyConfig>().is_err_and(|error| error.to_string().contains("needs the trace")));
        let json = replay.to_json().to_string();
        assert!(json.parse::<PolicyConfig>().is_err_and(|error| error.to_string().contains("needs the trace")));
        Ok(())
    }

    #[test]
    fn recorded_decisions_are_repeated() -> Result<()> {
        let config = PolicyConfig::from_tag("f2b2w1r0.1fr4_id0")?;
        let skipped = [vec![], vec![11], vec![], vec![11], vec![], vec![]];
        let replay = PolicyConfig::replay(config, recording("CSCSCS", &skipped)?);
        let mut policy = replay.policies(run(6, 1))?.remove(0).1;
        for (step, letter) in "CSCSCS".chars().enumerate() {
            let at = DecisionPoint { step, steps: 6, branch: Branch::Cond, block: None };
            let of_block = DecisionPoint { block: Some(11), ..at };
            let Gate::Decided(decision) = policy.gate(at) else { unreachable!("asks for a diff") };
            assert_eq!(decision.action.letter(), letter, "step {step}");
            assert_eq!(policy.keeps(at), letter == 'C');
            let Gate::Decided(decision) = policy.gate(of_block) else { unreachable!("asks for a diff") };
            assert_eq!(decision.reason == Reason::RecordedSkip, [1, 3].contains(&step));
            assert_eq!(policy.keeps(of_block), letter == 'C');
            assert_eq!(policy.calibrator_step(at), step % 4);
        }
        Ok(())
    }

    #[test]
    fn what_is_kept_follows_the_recorded_policy() -> Result<()> {
        let config = PolicyConfig::from_tag("prune_f1b0w1ui2")?;
        let skipped = [vec![], vec![3], vec![], vec![3, 1]];
        let replay = PolicyConfig::replay(config, recording("CPCP", &skipped)?);
        let mut policy = replay.policies(run(4, 1))?.remove(0).1;
        let kept = (0..4).map(|step| {
            let at = DecisionPoint { step, steps: 4, branch: Branch::Cond, block: None };
            assert_eq!(policy.gate(at), Gate::Decided(Reason::RecordedCompute.into()));
            assert!(!policy.keeps(at));
            policy.keeps(DecisionPoint { block: Some(2), ..at })
        });
        assert_eq!(kept.collect::<Vec<_>>(), [true, false, true, false]);
        let config = PolicyConfig::from_tag("f1b0w2al1")?;
        let mut policy = PolicyConfig::replay(config, recording("CCCS", &[])?).policies(run(4, 1))?.remove(0).1;
        let kept = (0..4).map(|step| {
            let at = DecisionPoint { step, steps: 4, branch: Branch::Cond, block: None };
            policy.gate(at);
            policy.keeps(at)
        });
        assert_eq!(kept.collect::<Vec<_>>(), [false, true, false, false]);
        Ok(())
    }

    #[test]
    fn a_recording_of_another_run_is_refused() -> Result<()> {
        let error = |tag: &str, recording: Recording, run: RunShape| {
            let replay = PolicyConfig::replay(PolicyConfig::from_tag(tag)?, recording);
            Ok::<_, Error>(replay.validate(run).err().map(|error| error.to_string()).unwrap_or_default())
        };
        let blocks = |step: usize, block: usize| {
            let mut skipped = vec![vec![]; 3];
            skipped[step].push(block);
            skipped
        };
        for (tag, letters, skipped, run, words) in [
            ("f1b0", "CCS", vec![], run(3, 1), ""),
            ("f1b0", "CCS", vec![], run(4, 1), "has 3 steps, this run has 4"),
            ("f1b0", "CCS", vec![], run(3, 2), "has the branches cond, this run has cond and uncond"),
            ("f1b0", "CCS", vec![], RunShape { n_blocks: 13, ..run(3, 1) }, "12 blocks, this one has 13"),
            ("f1b0", "SCC", vec![], run(3, 1), "reuses what was never kept on step 0"),
            ("f1b0al1", "CSC", vec![], run(3, 1), "reuses what was never kept on step 1"),
            ("f1b0fr2", "CCS", vec![], run(3, 1), "reuses what was never kept on step 2"),
            ("f1b0", "CCC", blocks(1, 4), run(3, 1), "skips block 4 alone, but `f1b0w8i1r0.12` does not"),
            ("prune_f1b0", "CCP", blocks(2, 4), run(3, 1), ""),
            ("prune_f1b0", "CPC", blocks(1, 0), run(3, 1), "skips block 0 alone"),
            ("prune_f1b0", "PCC", blocks(0, 4), run(3, 1), "of which nothing was kept, on step 0"),
            ("prune_f1b0", "CCS", vec![], run(3, 1), "decides per block on step 2"),
            ("none", "CCC", vec![], run(3, 1), "decides nothing that could be replayed"),
        ] {
            let error = error(tag, recording(letters, &skipped)?, run)?;
            assert!(error.contains(words) && error.is_empty() == words.is_empty(), "{tag} {letters}: `{error}`");
        }
        assert!(RecordedBranch::new(Branch::Cond, "CX", &[]).is_err());
        assert!(RecordedBranch::new(Branch::Cond, "CC", &[vec![]]).is_err());
        Ok(())
    }
}
