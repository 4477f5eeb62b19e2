//! What was built.

use std::ffi::{CString, c_char};
use std::sync::OnceLock;

use serde_json::json;

use crate::error::caught;

/// The version of the binary interface: programs that were compiled with another one must be compiled again. It is part
/// of the shared library's file name.
pub const DBCACHE_ABI_VERSION: u32 = 1;

/// The version of the library, such as `0.1.0`.
///
/// Threads: any. Ownership: the text is static.
#[unsafe(no_mangle)]
pub extern "C" fn dbcache_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The DBCACHE_ABI_VERSION that the library was built with: compare it with that of the header.
///
/// Threads: any. Ownership: none changes.
#[unsafe(no_mangle)]
pub extern "C" fn dbcache_abi_version() -> u32 {
    DBCACHE_ABI_VERSION
}

/// How the library was built, as a JSON object with the member `version` 1: `library`, `abi`, `target`, `profile`,
/// `onnxruntime_api` (the oldest ONNX Runtime 1.x that it takes), `file_name` (of ONNX Runtime's library here).
///
/// Threads: any. Ownership: the text is static.
#[unsafe(no_mangle)]
pub extern "C" fn dbcache_build_info() -> *const c_char {
    static INFO: OnceLock<CString> = OnceLock::new();
    let info = caught(|| {
        let info = INFO.get_or_init(|| {
            let info = json!({
                "version": 1,
                "library": env!("CARGO_PKG_VERSION"),
                "abi": DBCACHE_ABI_VERSION,
                "target": env!("DBCACHE_TARGET"),
                "profile": env!("DBCACHE_PROFILE"),
                "onnxruntime_api": dbcache::OLDEST_RUNTIME,
                "file_name": dbcache::FILE_NAME,
            });
            CString::new(info.to_string()).unwrap_or_default()
        });
        info.as_ptr()
    });
    info.unwrap_or(c"{}".as_ptr())
}
