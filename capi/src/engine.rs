//! ONNX Runtime, engine directories and loaded engines.

use std::ffi::c_char;

use dbcache::options::Options;
use dbcache::{Engine, EngineOptions, Model, load_library};
use serde_json::json;

use crate::cast;
use crate::error::{dbcache_error, guard, release};
use crate::log::not_while_telling;
use crate::options::{dbcache_options, or_none};

/// A loaded model. Immutable: requests may run on several threads at once.
pub struct dbcache_engine {
    pub(crate) engine: Engine,
    /// What it was loaded with.
    pub(crate) options: Options,
}

/// Loads ONNX Runtime's shared library from a path. A process has one: another path later is an error. Without this call
/// the first engine looks for it where the option `ort-library`, the variable ORT_DYLIB_PATH, `dbcache-trt setup` and the
/// system put it. It stays loaded until the process ends.
///
/// Errors: LIBRARY, ARGUMENT, STATE, CANCELLED.
/// Threads: any. Ownership: the path is copied.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_runtime_load(path: *const c_char) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let path = unsafe { cast::path(path, "path") }?;
        not_while_telling()?;
        Ok(load_library(&path)?)
    })
}

/// What an engine directory is, as JSON with a member `version`: blocks, parameters, bytes, defaults, limits, licence.
/// Nothing is loaded, and ONNX Runtime is not needed. Of the options only `weights` and `verify` are read; NULL is none.
///
/// Two calls: with NULL and 0 it only writes the bytes that are needed to `*length`, then it fills the buffer. One that is too
/// small is an error, with the bytes in `*length`.
///
/// Errors: USAGE, ENGINE_DIRECTORY, IO, ARGUMENT, STATE, CANCELLED.
/// Threads: any; one at a time for the options. Ownership: the text is copied.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_inspect(
    directory: *const c_char,
    options: *const dbcache_options,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (directory, options) = unsafe { (cast::path(directory, "directory")?, or_none(options)) };
        let json = options.heard(|_| {
            let load = options.options.engine();
            let model = Model::open(&directory, load)?;
            let mut json = model.info().to_json();
            json["words"] = json!(model.words()?);
            if load.verify {
                json["not_verified"] = json!(model.verify()?);
            }
            Ok(json.to_string())
        })?;
        // SAFETY: C's promise.
        unsafe { cast::copy_text(&json, buffer, capacity, length) }
    })
}

/// What dbcache_engine_load and a request with these options will do, as JSON with a member `version`: sessions and stages,
/// bytes by kind (weights as stored and packed, graphs, what the cache will keep at most), and for a provider that
/// compiles the builds, of which the build cache has some (`hits`) and lacks others (`misses`). No model is loaded, and
/// ONNX Runtime is needed for a provider that compiles only. `text_length` is the number of text tokens, 0 where the engine
/// knows it: that of its tokenizer, or the most that it takes. NULL for no options.
///
/// Two calls: with NULL and 0 it only writes the bytes that are needed to `*length`, then it fills the buffer. One that is too
/// small is an error, with the bytes in `*length`: between two calls the build cache may have changed, and so the text. Give
/// the second call some bytes more, and make it again where it tells that they are too few.
///
/// Errors: USAGE, LIBRARY, ENGINE_DIRECTORY, INPUT, RUNTIME, IO, PROVIDER, RESOURCES, ARGUMENT, STATE, CANCELLED.
/// Threads: any; one at a time for the options. Ownership: the text is copied.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_plan(
    directory: *const c_char,
    options: *const dbcache_options,
    text_length: u64,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (directory, options) = unsafe { (cast::path(directory, "directory")?, or_none(options)) };
        let text_length = (text_length > 0).then_some(text_length);
        let plan = options.heard(|_| {
            let (load, request) = (options.options.engine(), options.options.request()?);
            Ok(Model::open(&directory, load)?.dry_run(&request, text_length)?)
        })?;
        // SAFETY: C's promise.
        unsafe { cast::copy_text(&plan.to_json().to_string(), buffer, capacity, length) }
    })
}

/// Loads an engine directory. Of the options those of engines are read; NULL is none.
///
/// Errors: USAGE, LIBRARY, ENGINE_DIRECTORY, INPUT, RUNTIME, IO, PROVIDER, NOT_BUILT, RESOURCES, ARGUMENT, STATE,
/// CANCELLED.
/// Threads: any; one at a time for the options. Ownership: the texts are copied; the caller owns `*out`, and frees it
/// with dbcache_engine_free.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_engine_load(
    directory: *const c_char,
    options: *const dbcache_options,
    out: *mut *mut dbcache_engine,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (directory, options, out) =
            unsafe { (cast::path(directory, "directory")?, or_none(options), cast::place(out, "out")?) };
        let engine = options.heard(|cancel| {
            let load = EngineOptions { cancel: cancel.clone(), ..options.options.engine().clone() };
            Ok(Engine::load(&directory, &load)?)
        })?;
        out.put_new(dbcache_engine { engine, options: options.options });
        Ok(())
    })
}

/// What was loaded and how, as JSON with a member `version`: the members of dbcache_inspect, `load_ms`, `weights_mode`,
/// and `onnxruntime` with its version, path and threads.
///
/// Two calls: with NULL and 0 it only writes the bytes that are needed to `*length`, then it fills the buffer. One that is too
/// small is an error, with the bytes in `*length`.
///
/// Errors: ARGUMENT.
/// Threads: any. Ownership: the text is copied.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_engine_info(
    engine: *const dbcache_engine,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let engine = &unsafe { cast::shared(engine, "engine") }?.engine;
        let library = engine.library();
        let mut json = engine.info().to_json();
        json["words"] = json!(engine.words());
        json["load_ms"] = json!(engine.load_ms());
        json["weights_mode"] = json!(if engine.is_mapped() { "mapped" } else { "packed" });
        json["onnxruntime"] = json!({
            "version": library.version,
            "path": library.path.to_string_lossy(),
            "threads": library.threads,
            "spin": library.spin,
        });
        // SAFETY: C's promise.
        unsafe { cast::copy_text(&json.to_string(), buffer, capacity, length) }
    })
}

/// Frees an engine. NULL is allowed. Requests and sessions that were made with it go on; its memory goes with the last.
///
/// Threads: one, when no other call uses the handle. Ownership: takes the engine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dbcache_engine_free(engine: *mut dbcache_engine) {
    // SAFETY: C's promise.
    release(|| unsafe { cast::take(engine) });
}
