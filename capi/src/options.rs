//! Options by name.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use dbcache::CancelToken;
use dbcache::options::Options;

use crate::callbacks::dbcache_log_fn;
use crate::cast;
use crate::error::{DBCACHE_ERROR_USAGE, Failure, Outcome, dbcache_error, guard, release};
use crate::log::{Hears, hears, listening, not_while_telling};

/// Options of engines and requests, by the names of the long flags of the command `dbcache-trt`. One object can serve
/// both: an engine reads those of its kind, a request the others.
#[derive(Clone, Default)]
pub struct dbcache_options {
    pub(crate) options: Options,
    hears: Option<Hears>,
}

impl dbcache_options {
    /// Runs what loads or looks at an engine, with the log callback listening; once it asks to cancel, nothing is given.
    pub(crate) fn heard<T>(&self, body: impl FnOnce(&CancelToken) -> Outcome<T>) -> Outcome<T> {
        not_while_telling()?;
        let cancel = CancelToken::default();
        let outcome = listening(self.hears.as_ref(), &cancel, &Arc::default(), || body(&cancel))?;
        if cancel.is_cancelled() { Err(Failure::cancelled()) } else { Ok(outcome) }
    }
}

/// Makes an object without options: everything is the library's default.
///
/// Errors: ARGUMENT.
/// Threads: any. Ownership: the caller owns `*out`, and frees it with dbcache_options_free.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_options_new(out: *mut *mut dbcache_options) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        unsafe { cast::place(out, "out") }?.put_new(dbcache_options::default());
        Ok(())
    })
}

/// Long flags of the command that are calls here.
const CALLS: [(&str, &str); 9] = [
    ("engine", "dbcache_engine_load"),
    ("prompt", "dbcache_request_set_prompt"),
    ("negative-prompt", "dbcache_request_set_negative_prompt"),
    ("inputs", "dbcache_request_set_tensor"),
    ("count", "dbcache_request_new, once for each `seed`,"),
    ("output", "dbcache_result_write_png (of a video dbcache_result_write_video)"),
    ("save-latents", "dbcache_result_latents"),
    ("trace", "dbcache_result_trace"),
    ("json", "dbcache_result_statistics"),
];

/// Sets one option, such as `cache` to `f8b16`, `steps` to `28` or `spin` to `true`; a second value replaces the first.
/// Unknown names (the error tells the nearest known one, or the call that does it) and texts that are no value are errors, and
/// change nothing.
///
/// Errors: USAGE, INPUT, IO, ARGUMENT.
/// Threads: one at a time for one object. Ownership: the texts are copied.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_options_set(
    options: *mut dbcache_options,
    name: *const c_char,
    value: *const c_char,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (options, name, value) =
            unsafe { (cast::exclusive(options, "options")?, cast::text(name, "name")?, cast::text(value, "value")?) };
        if let Some((_, call)) = CALLS.iter().find(|(flag, _)| *flag == name) {
            let message = format!("`{name}` is no option here: {call} does it");
            return Err(Failure { code: DBCACHE_ERROR_USAGE, message, field: Some(name) });
        }
        Ok(options.options.set(&name, &value)?)
    })
}

/// Hands on the messages that the library and ONNX Runtime give during calls that take these options and look at or load
/// an engine (dbcache_inspect, dbcache_plan, dbcache_engine_load), up to the level `most` (DBCACHE_LOG_ERROR …
/// DBCACHE_LOG_TRACE); NULL for no longer. A callback that does not answer with 0 makes the call end with
/// DBCACHE_ERROR_CANCELLED. Requests have their own: dbcache_request_on_log.
///
/// Errors: ARGUMENT.
/// Threads: one at a time for one object; the callback is called on the thread of the call and on those that load for it,
/// one at a time. Ownership: `user` is handed back, and must live until these calls have returned.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_options_on_log(
    options: *mut dbcache_options,
    most: i32,
    callback: dbcache_log_fn,
    user: *mut c_void,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let options = unsafe { cast::exclusive(options, "options") }?;
        options.hears = hears(most, callback, user)?;
        Ok(())
    })
}

/// The names of all options, as a JSON list.
///
/// Two calls: with NULL and 0 it only writes the bytes that are needed to `*length`, then it fills the buffer. One that is too
/// small is an error, with the bytes in `*length`.
///
/// Errors: ARGUMENT.
/// Threads: any. Ownership: the text is copied.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_options_names(
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        let names = serde_json::Value::from(Options::names());
        // SAFETY: C's promise.
        unsafe { cast::copy_text(&names.to_string(), buffer, capacity, length) }
    })
}

/// Frees options. NULL is allowed. Engines and requests that were made with them stay as they are.
///
/// Threads: one, when no other uses the object. Ownership: takes the object.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dbcache_options_free(options: *mut dbcache_options) {
    // SAFETY: C's promise.
    release(|| unsafe { cast::take(options) });
}

/// The options of a call that takes NULL for none.
///
/// # Safety
/// As [`cast::shared`].
pub(crate) unsafe fn or_none(options: *const dbcache_options) -> dbcache_options {
    // SAFETY: the caller's promise.
    unsafe { options.as_ref() }.cloned().unwrap_or_default()
}
