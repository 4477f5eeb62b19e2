//! Where memory is not to be had, the standard library aborts. The command ends with its code and a remedy instead: nothing is
//! under its final name that is not complete.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;

use dbcache_trt::ErrorKind;

/// The system's heap.
pub struct Heap;

const FULL: &[u8] =
    b"error: the memory is full: make less at once (--batch, --size, --frames), decode in parts (--decode-tile, \
--decode-slices), or map the weights (--weights-mode mapped)\n";

/// Ends the process; nothing here needs memory.
#[cold]
fn full() -> ! {
    // A standard error that cannot be written changes nothing of how the command ends.
    let _ = std::io::stderr().write_all(FULL);
    signal_hook::low_level::exit(ErrorKind::Resources.exit_code().into())
}

fn checked(memory: *mut u8) -> *mut u8 {
    if memory.is_null() { full() } else { memory }
}

// SAFETY: everything is the system's own; what it does not have ends the process.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises what the system asks for.
        checked(unsafe { System.alloc(layout) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        checked(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        checked(unsafe { System.realloc(memory, layout, size) })
    }
}
