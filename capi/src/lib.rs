//! The C library: hands what C gives to the Rust library, and back. It parses, converts and catches panics; it decides,
//! defaults and checks nothing that the Rust library could.
//!
//! [`cast`](crate::cast) holds the conversions of pointers, [`error`](crate::error) the guard of every entry. The header
//! `include/dbcache_trt.h` is generated from these files; what C callers must know is in the comments of the functions.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![allow(non_camel_case_types, reason = "types have the names that C sees")]
#![allow(clippy::missing_safety_doc, reason = "each function states threads and ownership for its C callers")]

pub mod callbacks;
mod cast;
pub mod denoiser;
pub mod engine;
pub mod error;
mod job;
mod log;
pub mod options;
pub mod request;
pub mod result;
pub mod tensor;
#[cfg(test)]
mod texts;
pub mod version;
