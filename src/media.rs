//! Pictures and videos: their files, and the tiles in which they are decoded.

pub(crate) mod ffmpeg;
pub(crate) mod image;
pub(crate) mod tiles;
pub(crate) mod video;
