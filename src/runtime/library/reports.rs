//! Keeps ONNX Runtime from reporting to its maker.
//!
//! Its official builds for Linux read a variable of the environment when they start; later is too late: the first report
//! is on its way, and a thread runs for which a child of `fork` waits for ever when it ends. So the variable is set for
//! them, unless somebody has set it, to whatever.

/// What ONNX Runtime reads.
pub(super) const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";

/// Sets the variable unless it is set.
///
/// The C library's own `setenv` moves the list of variables and frees the old one, which another thread of the host may be
/// reading. Here the list is replaced by a longer copy, and the old one stays valid: such readers find what they look for.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(super) fn forbid() {
    use std::ffi::{CString, c_char};
    use std::sync::atomic::{AtomicPtr, Ordering};

    unsafe extern "C" {
        static mut environ: *mut *mut c_char;
    }
    // SAFETY: the C library's list has the type and alignment of an atomic pointer, and lives as long as the process.
    let list = unsafe { AtomicPtr::from_ptr(&raw mut environ) };
    // The library of a host that changes variables at this very moment may have taken our list away: so more than once.
    for _ in 0..8 {
        if std::env::var_os(VARIABLE).is_some() {
            return;
        }
        let Ok(entry) = CString::new(format!("{VARIABLE}=1")) else { return };
        let old = list.load(Ordering::Acquire);
        let mut entries = Vec::new();
        let mut place = old;
        // SAFETY: the list is NULL, or its entries end with NULL.
        while let Some(entry) = (!place.is_null()).then(|| unsafe { *place }).filter(|entry| !entry.is_null()) {
            entries.push(entry);
            // SAFETY: the entry was not the last.
            place = unsafe { place.add(1) };
        }
        entries.extend([entry.into_raw(), std::ptr::null_mut()]);
        // Both stay as long as the process, as the C library's own do.
        let new = Box::leak(entries.into_boxed_slice()).as_mut_ptr();
        let _ = list.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) fn forbid() {}
