//! What a generation gave.

use std::ffi::c_char;
use std::sync::OnceLock;

use dbcache::trace::Trace;
use dbcache::{Error, Image, Inputs, Output, Video};
use serde_json::json;

use crate::cast::{self, Versioned};
use crate::error::{Failure, Outcome, dbcache_error, guard, release};
use crate::tensor::dbcache_tensor;

/// Latents, pictures or videos, and what happened. Immutable: any number of threads may read it. It needs neither its
/// request nor its engine any more.
pub struct dbcache_result {
    latents: dbcache_tensor,
    made: Made,
    trace: Trace,
    inputs: Inputs,
    trace_text: OnceLock<String>,
}

/// One for each of the batch.
enum Made {
    Pictures(Vec<Image>),
    Videos(Vec<Video>),
}

/// A picture of a result, or a frame of a video.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dbcache_picture {
    /// Of this struct, in bytes; the caller sets it before the call. Afterwards it is how many bytes were filled.
    pub struct_size: usize,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// `height * width * 3` bytes, row by row, red green blue.
    pub rgb: *const u8,
    /// How many they are.
    pub bytes: usize,
    /// With which the picture or video was made.
    pub seed: u64,
    /// Frames of the video; 1 for a picture.
    pub frames: usize,
    /// Frames per second of the video; 0 for a picture.
    pub fps: f64,
}

// SAFETY: it is as the trait wants it.
unsafe impl Versioned for dbcache_picture {
    const LEAST: usize = std::mem::offset_of!(Self, seed);
}

impl dbcache_result {
    pub(crate) fn new(output: Output, inputs: Inputs) -> Self {
        let Output { latents, images, videos, trace } = output;
        let made = if videos.is_empty() { Made::Pictures(images) } else { Made::Videos(videos) };
        Self { latents: dbcache_tensor::new(latents), made, trace, inputs, trace_text: OnceLock::new() }
    }

    fn count(&self) -> usize {
        match &self.made {
            Made::Pictures(images) => images.len(),
            Made::Videos(videos) => videos.len(),
        }
    }

    fn no_such(&self, index: usize) -> Failure {
        Failure::argument("index", &format!("is {index}; the result holds {} pictures", self.count()))
    }

    fn picture(&self, index: usize, frame: usize) -> Outcome<dbcache_picture> {
        let (image, frames, fps) = match &self.made {
            Made::Pictures(images) => {
                let image = images.get(index).ok_or_else(|| self.no_such(index))?;
                ((frame == 0).then_some(image), 1, 0.0)
            }
            Made::Videos(videos) => {
                let video = videos.get(index).ok_or_else(|| self.no_such(index))?;
                (video.frames.get(frame), video.frames.len(), video.fps)
            }
        };
        let no_such = || Failure::argument("frame", &format!("is {frame}; picture {index} has {frames} frames"));
        let image = image.ok_or_else(no_such)?;
        Ok(dbcache_picture {
            struct_size: size_of::<dbcache_picture>(),
            width: image.width,
            height: image.height,
            rgb: image.rgb.as_ptr(),
            bytes: image.rgb.len(),
            seed: self.trace.seed_of(index),
            frames,
            fps,
        })
    }
}

/// What the command calls its option is an argument here.
fn about_path(error: Error) -> Failure {
    let failure = Failure::from(error);
    let is_option = failure.field.as_deref() == Some("output");
    let message = failure.message.replacen("the option `output` ", "argument `path` ", 1);
    if is_option { Failure { field: Some("path".to_owned()), message, ..failure } } else { failure }
}

/// The final latents, `[batch, tokens, features]` or as the engine has them.
///
/// Errors: ARGUMENT.
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

/// How many pictures or videos there are: one for each of the batch, 0 for an engine without a decode graph.
///
/// Errors: ARGUMENT.
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
        count.put(result.count());
        Ok(())
    })
}

/// One picture, or the first frame of a video, counted from 0 in the batch. `picture->struct_size` must be
/// `sizeof(dbcache_picture)`.
///
/// Errors: ARGUMENT.
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
        let (result, place) = unsafe { (cast::shared(result, "result")?, cast::versioned_place(picture, "picture")?) };
        place.put(result.picture(index, 0)?);
        Ok(())
    })
}

/// One frame of a video, both counted from 0; a picture has one. Else as dbcache_result_picture, whose `frames` tells how
/// many there are.
///
/// Errors: ARGUMENT.
/// Threads: any. Ownership: the pixels are the result's and live as long.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_result_frame(
    result: *const dbcache_result,
    index: usize,
    frame: usize,
    picture: *mut dbcache_picture,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (result, place) = unsafe { (cast::shared(result, "result")?, cast::versioned_place(picture, "picture")?) };
        place.put(result.picture(index, frame)?);
        Ok(())
    })
}

/// Writes one picture as a PNG file that tells how it was made; the file appears when it is complete. For videos there is
/// dbcache_result_write_video.
///
/// Errors: USAGE, IO, ARGUMENT, STATE.
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
        let Made::Pictures(images) = &result.made else {
            return Err(Failure::state("this result holds videos; write them with dbcache_result_write_video"));
        };
        let image = images.get(index).ok_or_else(|| result.no_such(index))?;
        image.write_png(&path, &result.trace.picture_metadata(&result.inputs, index)).map_err(about_path)
    })
}

/// Writes one video, in the format of its name, as the command does: `.png` (animated), `.gif`, `name_%04d.png` (one PNG a
/// frame), no ending (a folder of such), and by the program ffmpeg `.mp4` and `.webm`. PNG files tell how it was made. It
/// appears when it is complete. For pictures there is dbcache_result_write_png.
///
/// Errors: USAGE, INPUT, IO, RESOURCES, ARGUMENT, STATE, CANCELLED.
/// Threads: any. Ownership: the path is copied.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_result_write_video(
    result: *const dbcache_result,
    index: usize,
    path: *const c_char,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (result, path) = unsafe { (cast::shared(result, "result")?, cast::path(path, "path")?) };
        let Made::Videos(videos) = &result.made else {
            return Err(Failure::state("this result holds no videos; write pictures with dbcache_result_write_png"));
        };
        let video = videos.get(index).ok_or_else(|| result.no_such(index))?;
        video.write(&path, &result.trace.picture_metadata(&result.inputs, index)).map(drop).map_err(about_path)
    })
}

/// The record of every decision, as the command's --trace writes it, and --replay and the option `replay` read it: a JSON
/// list with one object, which has a member `version`.
///
/// Two calls: with NULL and 0 it only writes the bytes that are needed to `*length`, then it fills the buffer. One that is too
/// small is an error, with the bytes in `*length`.
///
/// Errors: ARGUMENT.
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
        let text = result.trace_text.get_or_init(|| format!("{:#}\n", json!([result.trace.to_json()])));
        // SAFETY: C's promise.
        unsafe { cast::copy_text(text, buffer, capacity, length) }
    })
}

/// What happened in numbers, as JSON with a member `version`: decisions, steps and blocks that ran and were skipped,
/// diffs, times, bytes, warnings. New members may come without a new version.
///
/// Two calls: with NULL and 0 it only writes the bytes that are needed to `*length`, then it fills the buffer. One that is too
/// small is an error, with the bytes in `*length`.
///
/// Errors: ARGUMENT.
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
/// Two calls: with NULL and 0 it only writes the bytes that are needed to `*length`, then it fills the buffer. One that is too
/// small is an error, with the bytes in `*length`.
///
/// Errors: ARGUMENT.
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
