//! The memory that the process has freed.

/// Gives freed memory back to the system, where the C library keeps it: glibc has a heap for each thread that loads, and
/// what one of them holds free no other one takes. Half the weights of a model can lie there.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
