//! Decides whether blocks run; sees scalars, never tensors, clocks or files.
//!
//! [`PolicyConfig`] is what a user sets: it is parsed from a tag or JSON ([`PolicyConfig::from_tag`]), changed by
//! [`PolicyOverrides`], checked against the model and the run, and then makes one [`CachePolicy`] for each branch of a
//! generation. What the step loop must do for an option (which tensors to compare, which branch comes first) it asks
//! here: [`PolicyConfig::blocks_split`], [`diff_options`](PolicyConfig::diff_options),
//! [`shares_cond_diff`](PolicyConfig::shares_cond_diff), [`branch_order`](PolicyConfig::branch_order).
//!
//! # What the loop does
//!
//! A *unit* is the middle (`block: None`, if the policy [`reuses_middle`](PolicyConfig::reuses_middle)) or one of the
//! [`single_blocks`](PolicyConfig::single_blocks). For each branch, in [`branch_order`](PolicyConfig::branch_order):
//!
//! (Where the policy [`separates_lists`](PolicyConfig::separates_lists), all of this is done for each list of blocks
//! in turn, with a policy [of the list](PolicyConfig::of_lists).)
//!
//! 1. Run the head; ask [`gate`](CachePolicy::gate) with no block on every step, even if no middle is reused.
//! 2. Before each single block, wherever it lies, ask [`gate`](CachePolicy::gate) with that block.
//! 3. On [`NeedsDiff`](Gate::NeedsDiff) compare as [`diff_options`](PolicyConfig::diff_options) (no block) or
//!    [`block_diff_options`](PolicyConfig::block_diff_options) say, and ask [`judge`](CachePolicy::judge).
//! 4. `Compute`: run the unit; then, if the policy [`keeps`](CachePolicy::keeps) it, keep the compared tensor, and of
//!    each stream the change (or the output, by [`cache_type`](PolicyConfig::cache_type)): with a
//!    [`calibrator`](PolicyConfig::calibrator) through its [`put`](Calibrator::put), else in the place of the last one.
//! 5. `Skip`: of each stream that the policy [`corrects`](PolicyConfig::corrects), take the calibrator's [`get`](Calibrator::get), then ask
//!    [`after_get`](Calibrator::after_get); or take what was kept; add it to the stream, or put it in its place, by the same rule.
//!
//! Calibrators are given [`calibrator_step`](CachePolicy::calibrator_step) as the step; where that is 0, each unit's
//! are replaced by fresh ones before its `put`.
//!
//! ```
//! use dbcache_trt::cache::{Action, Branch, DecisionPoint, Gate, PolicyConfig, Reason, RunShape};
//!
//! let config: PolicyConfig = "f1b0w4r0.08".parse()?;
//! let steps = 28;
//! let mut policy = config.policies(RunShape { n_blocks: 12, steps, branches: 1 })?.remove(0).1;
//! for step in 0..4 {
//!     let at = DecisionPoint { step, steps, branch: Branch::Cond, block: None };
//!     assert_eq!(policy.gate(at), Gate::Decided(Reason::Warmup.into()));
//! }
//! let at = DecisionPoint { step: 4, steps, branch: Branch::Cond, block: None };
//! assert_eq!(policy.gate(at), Gate::NeedsDiff);
//! assert_eq!(policy.judge(at, 0.05).action, Action::Skip);
//! # Ok::<(), dbcache_trt::Error>(())
//! ```

mod blocks;
mod calibrator;
mod checks;
mod config;
mod dbcache;
mod dbprune;
mod dmd;
mod json;
mod mask;
mod memory;
mod option;
mod overrides;
mod policy;
mod presets;
mod prospect;
mod replay;
mod schedule;
mod shape;
mod tag;

pub use calibrator::{CalibratorCacheType, CalibratorConfig, CalibratorKind, DmdFallback};
pub use config::PolicyConfig;
pub use dbcache::DbCacheConfig;
pub use dbprune::DbPruneConfig;
pub use mask::{MaskPreset, StepsMask, StepsPolicy};
pub use policy::{Action, Branch, Decision, Reason};
pub use replay::Recording;
pub use schedule::RefreshPolicy;

// What stands between a policy and the loop of a request: hosts set policies, and the tests ask them without an engine.
#[doc(hidden)]
pub use calibrator::{Calibrator, StreamKind, Sum};
#[doc(hidden)]
pub use dbcache::{DiffOptions, DiffTensor};
#[doc(hidden)]
pub use dmd::Gram;
#[doc(hidden)]
pub use policy::{CachePolicy, DecisionPoint, Gate};
#[doc(hidden)]
pub use replay::{RecordedBranch, RecordedList, RecordedStep};
#[doc(hidden)]
pub use shape::{BlocksSplit, RunShape};

// For other faces of this library, which read options from texts.
#[doc(hidden)]
pub use option::{OptionGroup, PolicyOption};
#[doc(hidden)]
pub use overrides::PolicyOverrides;

pub(crate) use memory::{KeptTensors, StreamLayout};
