//! The library: engines, policies and requests in this process, and the rules of the sources.

#[path = "../common/mod.rs"]
mod common;

mod cache_dtype;
mod circles;
mod compute;
mod context_parallel;
mod damaged;
mod damaged_graphs;
mod decisions;
mod decode;
mod docs;
mod engine;
mod experts;
mod families;
mod guidance;
mod host;
mod lists;
mod memory;
mod moved;
mod numeric;
mod parity;
mod per_sample;
mod replay;
mod stages;
mod staircase;
mod tidy;
#[cfg(unix)]
mod video;
