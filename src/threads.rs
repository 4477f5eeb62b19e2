//! Work on several threads, or on fewer where no more are to be had.

use std::panic::resume_unwind;
use std::thread::{Builder, scope};

use crate::exit::outside;

/// Runs `work` on this thread and at the same time on others, `count` together. All take from one queue until it is empty, so
/// where the system gives no more threads, those that there are do everything.
pub(crate) fn on_threads(count: usize, work: impl Fn() + Sync) {
    scope(|scope| {
        let mut others = Vec::new();
        for _ in 1..count {
            match Builder::new().name("dbcache-trt".to_owned()).spawn_scoped(scope, &work) {
                Ok(other) => others.push(other),
                Err(error) => {
                    tracing::warn!(%error, threads = others.len() + 1, "no more threads are to be had");
                    break;
                }
            }
        }
        work();
        outside(|| others.into_iter().for_each(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic))));
    });
}
