//! What happened: one record per step and branch, their string, JSON, and summary.

mod compare;
mod read;
mod record;
mod run;
mod statistics;
mod write;

#[doc(hidden)] // For other faces of this library, which compare the traces of files.
pub use self::compare::{Comparison, Divergence, LargestDiff, Setting, Side, compare};
#[doc(hidden)]
pub use self::read::read;
pub use self::read::recording;
pub use self::record::{BlockRecord, StepRecord};
pub use self::run::{CacheBytes, Ranks, Timings, Trace, Warning};
pub use crate::collective::Exchanged;
pub use crate::runtime::capture::CaptureCounts;
