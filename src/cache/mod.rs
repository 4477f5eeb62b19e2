//! Decides whether blocks run; sees scalars, never tensors, clocks or files.
//!
//! [`PolicyConfig`] is what a user sets: it is parsed from a tag or JSON ([`FromStr`](std::str::FromStr)), changed by
//! [`PolicyOverrides`], checked against the model and the run, and then makes one [`CachePolicy`] for each branch of a
//! generation. What the step loop must do for an option (which tensors to compare, which branch comes first) it asks
//! here: [`PolicyConfig::blocks_split`], [`diff_options`](PolicyConfig::diff_options),
//! [`shares_cond_diff`](PolicyConfig::shares_cond_diff), [`branch_order`](PolicyConfig::branch_order).
//!
//! ```
//! use dbcache_trt::cache::{Action, Branch, DecisionPoint, Gate, PolicyConfig, Reason, RunShape};
//!
//! let config: PolicyConfig = "f1b0w4r0.08".parse()?;
//! let steps = 28;
//! let mut policy = config.policy(RunShape { n_blocks: 12, steps, branches: 1 })?;
//! for step in 0..4 {
//!     let at = DecisionPoint { step, steps, branch: Branch::Cond, block: None };
//!     assert_eq!(policy.gate(at), Gate::Decided(Reason::Warmup.into()));
//! }
//! let at = DecisionPoint { step: 4, steps, branch: Branch::Cond, block: None };
//! assert_eq!(policy.gate(at), Gate::NeedsDiff);
//! assert_eq!(policy.judge(at, 0.05).action, Action::Skip);
//! # Ok::<(), dbcache_trt::Error>(())
//! ```

mod dbcache;
mod json;
mod mask;
mod overrides;
mod policy;
mod tag;

use std::ops::Range;

pub use dbcache::{DbCacheConfig, DiffOptions, DiffTensor, RefreshPolicy};
pub use mask::{MaskPreset, StepsMask, StepsPolicy};
pub use overrides::{OrNone, PolicyOverrides};
pub use policy::{Action, Branch, CachePolicy, Decision, DecisionPoint, Gate, Reason};

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
}

/// What a policy must fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunShape {
    /// Blocks of the model.
    pub n_blocks: usize,
    /// Denoising steps of the generation.
    pub steps: usize,
    /// Guidance branches that run one after the other in each step, 1 or 2.
    pub branches: usize,
}

/// Where a policy divides the blocks of a model: the ends of these ranges must be cuts of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlocksSplit {
    /// The first F blocks, which run on every step.
    pub head: Range<usize>,
    /// The blocks that may be skipped. It can be empty: then a skipped step saves nothing.
    pub middle: Range<usize>,
    /// The last B blocks, which run on every step.
    pub tail: Range<usize>,
}

impl PolicyConfig {
    /// The policy of one branch of one generation: a fresh state each time.
    ///
    /// # Errors
    /// `Usage`, as [`validate`](Self::validate).
    pub fn policy(&self, run: RunShape) -> Result<Box<dyn CachePolicy>> {
        self.validate(run)?;
        Ok(match self {
            Self::None => Box::new(policy::ComputeAll),
            Self::DbCache(config) => Box::new(dbcache::DbCache::new(config, run)?),
        })
    }

    /// Refuses options that are impossible, or that do not fit the model or the run.
    ///
    /// # Errors
    /// `Usage` with the reason and a remedy.
    pub fn validate(&self, run: RunShape) -> Result<()> {
        self.check()?;
        self.blocks_split(run.n_blocks)?;
        match self {
            Self::None => Ok(()),
            Self::DbCache(config) => config.check_run(run),
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
        }
    }

    /// Suspicious but legal settings, as sentences for the user: options that others outrank, and runs in which
    /// nothing can be skipped.
    pub fn warnings(&self, run: RunShape) -> Vec<String> {
        let Self::DbCache(config) = self else { return Vec::new() };
        let RunShape { n_blocks, steps, .. } = run;
        let mut warnings = config.outranked(run);
        if config.steps_computation_mask.is_none() && config.warmup_interval == 1 && config.max_warmup_steps >= steps {
            warnings.push(format!(
                "nothing can be skipped: all {steps} steps are warm-up (max_warmup_steps {})",
                config.max_warmup_steps
            ));
        }
        if config.fn_compute_blocks.saturating_add(config.bn_compute_blocks) == n_blocks {
            warnings.push(format!(
                "nothing is saved: Fn_compute_blocks {} and Bn_compute_blocks {} cover all {n_blocks} blocks",
                config.fn_compute_blocks, config.bn_compute_blocks
            ));
        }
        warnings
    }

    /// Head, middle and tail of a model of `n_blocks` blocks. Without a policy all is middle.
    ///
    /// # Errors
    /// `Usage` if there is no head, or if head and tail do not fit.
    pub fn blocks_split(&self, n_blocks: usize) -> Result<BlocksSplit> {
        let Self::DbCache(config) = self else {
            return Ok(BlocksSplit { head: 0..0, middle: 0..n_blocks, tail: n_blocks..n_blocks });
        };
        config.check()?;
        let (f, b) = (config.fn_compute_blocks, config.bn_compute_blocks);
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

    /// What the loop compares when the policy asks for a diff; `None` if it never asks.
    pub fn diff_options(&self) -> Option<DiffOptions> {
        match self {
            Self::None => None,
            Self::DbCache(config) => Some(config.diff_options()),
        }
    }

    /// Whether the uncond branch is judged by the diff of the cond branch: if its gate says
    /// [`NeedsDiff`](Gate::NeedsDiff) and a diff was recorded for the cond branch of the same step, the loop passes
    /// that one to [`judge`](CachePolicy::judge), and records it for both. Otherwise it computes one. Tensors to
    /// compare are kept for both branches in any case.
    pub fn shares_cond_diff(&self) -> bool {
        match self {
            Self::None => false,
            Self::DbCache(config) => config.shares_cond_diff(),
        }
    }

    /// In which order the loop computes the branches of a step that has both.
    pub fn branch_order(&self) -> [Branch; 2] {
        match self {
            Self::DbCache(config) if config.cfg_compute_first => [Branch::Uncond, Branch::Cond],
            _ => [Branch::Cond, Branch::Uncond],
        }
    }

    /// The same policy with other options; see [`PolicyOverrides`].
    ///
    /// # Errors
    /// `Usage` if this policy lacks an option that is set, or if the result is impossible.
    pub fn with(mut self, overrides: &PolicyOverrides) -> Result<Self> {
        match &mut self {
            Self::None => {
                if let Some(option) = overrides.given().first() {
                    return Err(Error::usage(format!(
                        "the policy `none` has no option {option}; choose `dbcache`, `fb` or `cache-dit`, or leave \
                         {option} out"
                    )));
                }
            }
            Self::DbCache(config) => overrides.apply(config),
        }
        self.check()?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
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
            ("f8b4", "cover all 12 blocks"),
        ] {
            assert!(warnings(tag)?.contains(words), "{tag}: {}", warnings(tag)?);
        }
        for tag in ["none", "f1b0", "f1b0_scm:fast:static", "f1b0w28i2", "f1b0cds0"] {
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
    fn policies_are_independent() -> Result<()> {
        let config = PolicyConfig::from_tag("f1b0w0r0.1")?;
        let at = DecisionPoint { step: 0, steps: 2, branch: Branch::Cond, block: None };
        let (mut one, mut other) = (config.policy(run(12, 2))?, config.policy(run(12, 2))?);
        assert_eq!(one.gate(at), other.gate(at));
        assert_eq!(one.gate(DecisionPoint { step: 1, ..at }), Gate::NeedsDiff);
        assert_eq!(config.policy(run(12, 2))?.gate(at), Gate::Decided(Reason::NoBuffer.into()));
        Ok(())
    }
}
