//! Pictures and videos as files: PNG and GIF, and MP4 and WebM by ffmpeg.

mod ffmpeg;
mod png;
pub(crate) mod video;
