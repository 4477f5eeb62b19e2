//! Gives the shared library its name for the loader, and the crate what `dbcache_build_info` tells.

use std::env;

/// The version in the library's file name: [`ABI_VERSION`](../src/version.rs). A test compares them.
const ABI_VERSION: u32 = 1;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let told = |variable: &str| env::var(variable).unwrap_or_default();
    println!("cargo:rustc-env=DBCACHE_TARGET={}", told("TARGET"));
    println!("cargo:rustc-env=DBCACHE_PROFILE={}", told("PROFILE"));
    if told("CARGO_CFG_TARGET_OS") == "linux" {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libdbcache_trt.so.{ABI_VERSION}");
        // ONNX Runtime, which stays loaded, calls into this library, and so does the end of the process.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
