//! What ONNX Runtime destroys at the end of the process, which waits for [`end`] as well.
//!
//! A C++ library hands its destructors to `__cxa_atexit` one by one, when it first makes something for the whole process.
//! Another thread may call `exit` right afterwards, before we could register [`end`] once more. So this function becomes
//! ours in the table of functions that ONNX Runtime imports: its destructors lie in a list here, and what `exit` calls
//! first ends the work of all threads, and then takes the newest destructor from the list.

use std::ffi::{c_int, c_void};
use std::sync::{Mutex, PoisonError, TryLockError};

use plt_rs::{DynamicLibrary, LoadedLibrary, collect_modules, patch};

use super::end;

const IMPORTED: &str = "__cxa_atexit";
/// The types of program headers for what is loaded, and for what becomes read-only once the loader has filled it in.
const PT_LOAD: u32 = libc::PT_LOAD;
const PT_GNU_RELRO: u32 = libc::PT_GNU_RELRO;

type Destructor = unsafe extern "C" fn(*mut c_void);

/// A destructor, and the address that it is called with.
struct Entry(Destructor, usize);

/// In the order in which they were registered.
static ENTRIES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

unsafe extern "C" {
    fn __cxa_atexit(destructor: Destructor, object: *mut c_void, library: *mut c_void) -> c_int;
}

/// Stands for `__cxa_atexit` in ONNX Runtime.
unsafe extern "C" fn registered(destructor: Destructor, object: *mut c_void, library: *mut c_void) -> c_int {
    let mut entries = ENTRIES.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the function takes any address, and ends no thread by unwinding. It goes through the list, not through what is
    // given here: a thread that is waited for may register more, and that has to be destroyed first.
    let code = unsafe { __cxa_atexit(destroy_newest, std::ptr::null_mut(), library) };
    if code == 0 {
        entries.push(Entry(destructor, object as usize));
    }
    code
}

unsafe extern "C" fn destroy_newest(_: *mut c_void) {
    end();
    let newest = match ENTRIES.try_lock() {
        Ok(mut entries) => entries.pop(),
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().pop(),
        // In a fork a thread that is not there has it.
        Err(TryLockError::WouldBlock) => None,
    };
    if let Some(Entry(destructor, object)) = newest {
        // SAFETY: ONNX Runtime has registered the two together, to be called once, and nobody uses it any more.
        unsafe { destructor(object as *mut c_void) }
    }
}

/// Puts the function in its place in the library that has something at this address; whether it did.
pub(super) fn replace_import(address: usize) -> bool {
    let holds = |library: &LoadedLibrary<'_>| lies_in(library, address, PT_LOAD);
    let Some(library) = collect_modules().into_iter().find(holds).and_then(|it| DynamicLibrary::initialize(it).ok())
    else {
        return false;
    };
    let Some(import) = library.try_find_function(IMPORTED) else { return false };
    let Ok(offset) = usize::try_from(import.r_offset) else { return false };
    let place = library.base_addr() + offset;
    if lies_in(library.library(), place, PT_GNU_RELRO) {
        return patch(place, registered as *const () as usize).is_ok();
    }
    // SAFETY: the loader says that the address of a function lies here, in memory that stays writable.
    unsafe { std::ptr::write_volatile(place as *mut *const (), registered as *const ()) };
    true
}

/// Whether a part of a library holds an address.
fn lies_in(library: &LoadedLibrary<'_>, address: usize, part: u32) -> bool {
    library.program_headers().filter(|header| header.header_type() == part).any(|header| {
        let start = library.addr() + header.virtual_addr();
        (start..start + header.memory_size()).contains(&address)
    })
}

/// How many destructors are in the list.
#[cfg(test)]
pub(super) fn count() -> usize {
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner).len()
}
