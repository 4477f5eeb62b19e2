//! The command `dbcache-trt`.
fn main() {}
