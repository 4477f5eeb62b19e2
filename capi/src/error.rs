//! Errors as objects, and the guard around every entry.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use dbcache::Error;

use crate::cast;

/// Success: what dbcache_error_code says of NULL.
pub const DBCACHE_OK: i32 = 0;
/// An option is malformed, impossible, or would have no effect. The numbers of errors never change; removed ones are
/// never used again.
pub const DBCACHE_ERROR_USAGE: i32 = 2;
/// ONNX Runtime's library is missing, too old, wrong or damaged, or another one is loaded already.
pub const DBCACHE_ERROR_LIBRARY: i32 = 3;
/// The engine directory is incomplete, damaged, or lies.
pub const DBCACHE_ERROR_ENGINE_DIRECTORY: i32 = 4;
/// A prompt, tensor or size does not fit the model.
pub const DBCACHE_ERROR_INPUT: i32 = 5;
/// ONNX Runtime failed.
pub const DBCACHE_ERROR_RUNTIME: i32 = 6;
/// A number that must be finite is not.
pub const DBCACHE_ERROR_NUMERIC: i32 = 7;
/// Outputs differ from those they were checked against: the command says so, no function of this library.
pub const DBCACHE_ERROR_CHECK: i32 = 8;
/// A file cannot be read or written.
pub const DBCACHE_ERROR_IO: i32 = 9;
/// The provider is missing something, cannot be used here, or would run only a part of a graph.
pub const DBCACHE_ERROR_PROVIDER: i32 = 10;
/// A build of the provider is missing, and compiling was forbidden.
pub const DBCACHE_ERROR_NOT_BUILT: i32 = 11;
/// No memory or no thread is to be had, or a size asks for more than there can be.
pub const DBCACHE_ERROR_RESOURCES: i32 = 12;
/// An argument of a call is NULL, not UTF-8, of the wrong length, or not one of the known constants.
pub const DBCACHE_ERROR_ARGUMENT: i32 = 20;
/// The call does not fit what the object is doing, such as a second run of one request.
pub const DBCACHE_ERROR_STATE: i32 = 21;
/// A bug of this library: please report it.
pub const DBCACHE_ERROR_INTERNAL: i32 = 70;
/// A bug of this library that stopped the call in the middle: please report it. The objects of the call are not to be
/// used further, but can be freed.
pub const DBCACHE_ERROR_PANIC: i32 = 71;
/// The caller cancelled.
pub const DBCACHE_ERROR_CANCELLED: i32 = 130;

/// Why a call failed. Immutable: any number of threads may read it.
pub struct dbcache_error {
    code: i32,
    message: CString,
    field: Option<CString>,
}

/// The number of an error, one of `DBCACHE_ERROR_…`; DBCACHE_OK for NULL.
///
/// Threads: any. Ownership: none changes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dbcache_error_code(error: *const dbcache_error) -> i32 {
    // SAFETY: C's promise.
    unsafe { read(error, DBCACHE_OK, |error| error.code) }
}

/// What happened, where, why and how to mend it, in UTF-8; an empty text for NULL. It is one line, but for
/// DBCACHE_ERROR_LIBRARY, which has one for each place where ONNX Runtime was looked for. Options are named as the command's
/// flags.
///
/// Threads: any. Ownership: the text is the error's and lives as long.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dbcache_error_message(error: *const dbcache_error) -> *const c_char {
    // SAFETY: C's promise.
    unsafe { read(error, c"".as_ptr(), |error| error.message.as_ptr()) }
}

/// What the error is about: an option or argument by its name, a file by its path, or the graph or branch that failed;
/// NULL where no one thing is to blame, and for NULL.
///
/// Threads: any. Ownership: the text is the error's and lives as long.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dbcache_error_field(error: *const dbcache_error) -> *const c_char {
    let none = std::ptr::null();
    // SAFETY: C's promise.
    unsafe { read(error, none, |error| error.field.as_ref().map_or(none, |field| field.as_ptr())) }
}

/// Frees an error. NULL is allowed.
///
/// Threads: one, when no other uses the error. Ownership: takes the error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dbcache_error_free(error: *mut dbcache_error) {
    // SAFETY: C's promise.
    release(|| unsafe { cast::take(error) });
}

/// # Safety
/// As [`cast::shared`].
unsafe fn read<T>(error: *const dbcache_error, of_null: T, read: impl FnOnce(&dbcache_error) -> T) -> T {
    // SAFETY: the caller's promise.
    unsafe { cast::shared(error, "error") }.map_or(of_null, read)
}

/// What becomes a [`dbcache_error`].
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: i32,
    pub(crate) message: String,
    pub(crate) field: Option<String>,
}

pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn null(name: &str) -> Self {
        Self::argument(name, "is NULL")
    }

    pub(crate) fn argument(name: &str, problem: &str) -> Self {
        let message = format!("argument `{name}` {problem}");
        Self { code: DBCACHE_ERROR_ARGUMENT, message, field: Some(name.to_owned()) }
    }

    pub(crate) fn state(message: &str) -> Self {
        Self { code: DBCACHE_ERROR_STATE, message: message.to_owned(), field: None }
    }

    pub(crate) fn cancelled() -> Self {
        Self { code: DBCACHE_ERROR_CANCELLED, message: "cancelled".to_owned(), field: None }
    }

    fn into_object(self) -> Box<dbcache_error> {
        // A zero would cut the text off: no error ends where a prompt or a file name had one.
        let text = |text: String| CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default();
        Box::new(dbcache_error { code: self.code, message: text(self.message), field: self.field.map(text) })
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let field = error.field().map(str::to_owned);
        Self { code: error.kind().exit_code().into(), message: error.to_string(), field }
    }
}

/// Runs the body of an entry that can fail. No panic gets past it.
pub(crate) fn guard(body: impl FnOnce() -> Outcome<()>) -> Option<Box<dbcache_error>> {
    caught(body).and_then(|outcome| outcome).err().map(Failure::into_object)
}

/// Runs the body of an entry that has no way to tell an error. What it returns is dropped inside.
pub(crate) fn release<T>(body: impl FnOnce() -> T) {
    // A panic while something is freed leaks the rest of it: nothing better can be done.
    let _ = caught(|| drop(body()));
}

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
    static PANIC_PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Catches a panic of the body, and keeps it from standard error, which is the host's.
pub(crate) fn caught<T>(body: impl FnOnce() -> T) -> Outcome<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if IS_GUARDED.get() {
                let place = info.location().map(|place| format!(" at {}:{}", place.file(), place.line()));
                PANIC_PLACE.set(place.unwrap_or_default());
            } else {
                others(info);
            }
        }));
    });
    let was_guarded = IS_GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(body));
    IS_GUARDED.set(was_guarded);
    outcome.map_err(|panic| Failure {
        code: DBCACHE_ERROR_PANIC,
        message: format!("a bug, please report it: {}{}", panic_text(panic.as_ref()), PANIC_PLACE.take()),
        field: None,
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic")
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use dbcache::ErrorKind;

    use super::*;

    #[test]
    fn codes_are_those_of_the_library() {
        let codes = [
            DBCACHE_ERROR_USAGE,
            DBCACHE_ERROR_LIBRARY,
            DBCACHE_ERROR_ENGINE_DIRECTORY,
            DBCACHE_ERROR_INPUT,
            DBCACHE_ERROR_RUNTIME,
            DBCACHE_ERROR_NUMERIC,
            DBCACHE_ERROR_CHECK,
            DBCACHE_ERROR_IO,
            DBCACHE_ERROR_PROVIDER,
            DBCACHE_ERROR_NOT_BUILT,
            DBCACHE_ERROR_RESOURCES,
            DBCACHE_ERROR_STATE,
            DBCACHE_ERROR_INTERNAL,
            DBCACHE_ERROR_CANCELLED,
        ];
        assert_eq!(ErrorKind::ALL.map(|kind| i32::from(kind.exit_code())).as_slice(), codes);
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let error = guard(|| panic!("three {}", "times")).unwrap();
        assert_eq!(error.code, DBCACHE_ERROR_PANIC);
        let message = error.message.to_str().unwrap();
        assert!(message.contains("three times at ") && message.contains("error.rs:"), "{message}");
        release(|| -> () { panic!("not seen") });
        assert!(guard(|| Ok(())).is_none());
    }

    #[test]
    fn a_text_is_never_cut_off() {
        let error = guard(|| Err(Failure::argument("a\0b", "is\0odd"))).unwrap();
        assert_eq!(error.message.as_c_str(), c"argument `a\u{fffd}b` is\u{fffd}odd");
        let pointer: *const dbcache_error = &*error;
        // SAFETY: the error lives.
        unsafe {
            assert_eq!(CStr::from_ptr(dbcache_error_field(pointer)), c"a\u{fffd}b");
            assert_eq!(dbcache_error_code(std::ptr::null()), DBCACHE_OK);
        }
    }
}
