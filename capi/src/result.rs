//! What a generation gave.

use std::ffi::c_char;
use std::sync::OnceLock;

use dbcache::trace::Trace;
use dbcache::{Image, Inputs, Output};

use crate::cast;
use crate::error::{Failure, Outcome, dbcache_error, guard, release};
use crate::tensor::dbcache_tensor;

/// Latents, pictures and what happened. Immutable: any number of threads may read it. It needs neither its request nor
/// its engine any more.
pub struct dbcache_result {
    latents: dbcache_tensor,
    images: Vec<Image>,
    trace: Trace,
    inputs: Inputs,
    trace_text: OnceLock<String>,
}

/// A picture of a result.
#[repr(C)]
pub struct dbcache_picture {
    /// Of this struct, in bytes; the caller sets it before the call.
    pub struct_size: usize,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// `height * width * 3` bytes, row by row, red green blue.
    pub rgb: *const u8,
    /// How many they are.
    pub bytes: usize,
}

impl dbcache_result {
    pub(crate) fn new(output: Output, inputs: Inputs) -> Self {
        let Output { latents, mut images, videos, trace } = output;
        // The frames of videos are pictures, one video after the other.
        images.extend(videos.into_iter().flat_map(|video| video.frames));
        Self { latents: dbcache_tensor::new(latents), images, trace, inputs, trace_text: OnceLock::new() }
    }

    fn image(&self, index: usize) -> Outcome<&Image> {
        self.images.get(index).ok_or_else(|| {
            Failure::argument("index", &format!("is {index}; the result holds {} pictures", self.images.len()))
        })
    }
}

/// The final latents, `[batch, tokens, features]` or as the engine has them.
///
/// Threads: any. Ownership: `*out` is the result's and lives as long; it must not be freed.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_result_latents(
    result: *const dbcache_result,
    out: *mut *const dbcache_tensor,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (result, out) = unsafe { (cast::shared(result, "result")?, cast::place(out, "out")?) };
        out.put(&result.latents);
        Ok(())
    })
}

/// How many pictures there are; 0 for an engine without a decode graph. The frames of videos are pictures, in order, one
/// video after the other.
///
/// Threads: any. Ownership: none changes.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_result_pictures(
    result: *const dbcache_result,
    count: *mut usize,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (result, count) = unsafe { (cast::shared(result, "result")?, cast::place(count, "count")?) };
        count.put(result.images.len());
        Ok(())
    })
}

/// One picture, counted from 0. `picture->struct_size` must be `sizeof(dbcache_picture)`.
///
/// Threads: any. Ownership: the pixels are the result's and live as long.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_result_picture(
    result: *const dbcache_result,
    index: usize,
    picture: *mut dbcache_picture,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (result, place) = unsafe { (cast::shared(result, "result")?, cast::place(picture, "picture")?) };
        // SAFETY: C's promise that the first member is set; the others are not looked at.
        let struct_size = unsafe { cast::size(picture, "picture") }?;
        let image = result.image(index)?;
        place.put(dbcache_picture {
            struct_size,
            width: image.width,
            height: image.height,
            rgb: image.rgb.as_ptr(),
            bytes: image.rgb.len(),
        });
        Ok(())
    })
}

/// Writes one picture as a PNG file that tells how it was made; the file appears when it is complete.
///
/// Threads: any. Ownership: the path is copied.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_result_write_png(
    result: *const dbcache_result,
    index: usize,
    path: *const c_char,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (result, path) = unsafe { (cast::shared(result, "result")?, cast::path(path, "path")?) };
        let metadata = result.trace.picture_metadata(&result.inputs, index);
        Ok(result.image(index)?.write_png(&path, &metadata)?)
    })
}

/// The record of every decision, as JSON with a member `version`: what the command's --trace writes, and --replay and the
/// option `replay` read.
///
/// Two calls: with NULL and 0 it only writes the bytes that are needed to `*length`, then it fills the buffer.
///
/// Threads: any. Ownership: the text is copied.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_result_trace(
    result: *const dbcache_result,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let result = unsafe { cast::shared(result, "result") }?;
        let text = result.trace_text.get_or_init(|| result.trace.to_json().to_string());
        // SAFETY: C's promise.
        unsafe { cast::copy_text(text, buffer, capacity, length) }
    })
}

/// What happened in numbers, as JSON with a member `version`: decisions, steps and blocks that ran and were skipped,
/// diffs, times, bytes, warnings. New members may come without a new version.
///
/// Two calls: with NULL and 0 it only writes the bytes that are needed to `*length`, then it fills the buffer.
///
/// Threads: any. Ownership: the text is copied.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_result_statistics(
    result: *const dbcache_result,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let result = unsafe { cast::shared(result, "result") }?;
        // SAFETY: C's promise.
        unsafe { cast::copy_text(&result.trace.statistics().to_string(), buffer, capacity, length) }
    })
}

/// The same in a few lines for people.
///
/// Two calls: with NULL and 0 it only writes the bytes that are needed to `*length`, then it fills the buffer.
///
/// Threads: any. Ownership: the text is copied.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_result_summary(
    result: *const dbcache_result,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let result = unsafe { cast::shared(result, "result") }?;
        // SAFETY: C's promise.
        unsafe { cast::copy_text(&result.trace.summary().to_string(), buffer, capacity, length) }
    })
}

/// Frees a result. NULL is allowed. What it lent (latents, pixels) is gone with it.
///
/// Threads: one, when no other uses the result. Ownership: takes the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dbcache_result_free(result: *mut dbcache_result) {
    // SAFETY: C's promise.
    release(|| unsafe { cast::take(result) });
}
