//! Videos as files. MP4 and WebM are made by ffmpeg where it is installed; all others need nothing.

use std::ffi::OsString;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::ffmpeg::{FFMPEG, failed, run, unwritten};
use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{Partial, behind_links, check_named, check_replaceable, write_atomically, write_together};
use crate::pixels::Video;

/// Where a name holds the number of a frame.
const NUMBER: &str = "%04d";
/// A GIF's palette is looked for in every so many pixels: 1 is slow, 30 is rough.
const GIF_SPEED: i32 = 10;

/// After so long a program that is asked for its version is taken for broken.
const VERSION_TIME: Duration = Duration::from_secs(20);

/// How a video is kept, by the name of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VideoFormat {
    /// `name_%04d.png`: one PNG for each frame.
    Sequence,
    /// A name without an ending: a folder of `frame_0000.png`, …
    Folder,
    /// `.png`, `.apng`: an animated PNG, without loss.
    AnimatedPng,
    /// `.gif`: 256 colours a frame.
    Gif,
    /// `.mp4`: H.264, by ffmpeg.
    Mp4,
    /// `.webm`: VP9, by ffmpeg.
    WebM,
}

/// Endings that say a format.
const ENDINGS: [&str; 5] = ["png", "apng", "gif", "mp4", "webm"];

/// The first part of a name that stands for a number, such as `%d` or `%05d`.
fn other_number(name: &str) -> Option<&str> {
    name.match_indices('%').find_map(|(start, _)| {
        let digits = name[start + 1..].bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = name[start..].split_at_checked(digits + 2)?;
        (number.ends_with('d') && !rest.starts_with(char::is_alphanumeric)).then_some(number)
    })
}

impl VideoFormat {
    /// By the ending of a name.
    ///
    /// # Errors
    /// `Usage` for another ending, nothing but an ending, and another way to number frames.
    pub fn of(path: &Path) -> Result<Self> {
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(ending) = name.strip_prefix('.').filter(|ending| ENDINGS.contains(&ending.to_lowercase().as_str()))
        {
            let problem = format!("is only the ending .{ending}; put a name before it");
            return Err(Error::option("output", problem));
        }
        if let Some(number) = other_number(&name).filter(|number| *number != NUMBER) {
            let problem =
                format!("numbers by {number}; write {NUMBER}, which is the only way in which frames are numbered");
            return Err(Error::option("output", problem));
        }
        match ending.as_deref() {
            Some("png") if name.contains(NUMBER) => Ok(Self::Sequence),
            Some("png" | "apng") => Ok(Self::AnimatedPng),
            Some("gif") => Ok(Self::Gif),
            Some("mp4") => Ok(Self::Mp4),
            Some("webm") => Ok(Self::WebM),
            None => Ok(Self::Folder),
            Some(other) => Err(Error::option(
                "output",
                format_args!(
                    "ends in .{other}; videos end in .mp4, .webm, .gif, .png (animated), {NUMBER}.png (one file a frame), or \
                     in nothing (a folder of frames)"
                ),
            )),
        }
    }

    /// Whether a file of this format can be made here, to be asked before the work; `path` is for the message, `fps` the
    /// frames a second where they are known. What lies at the path is the question of [`check_place`](Self::check_place).
    /// Somebody may cancel while ffmpeg is asked.
    ///
    /// # Errors
    /// `Io` when ffmpeg is needed, and missing or broken; `Usage` for a GIF of more than 50 frames a second; `Cancelled`.
    pub fn check(self, path: &Path, fps: Option<f64>, cancel: &CancelToken) -> Result<()> {
        match self {
            // What is no rate at all is refused with the request.
            Self::Gif => fps.filter(|fps| fps.is_finite()).map_or(Ok(()), check_gif),
            Self::Mp4 | Self::WebM => {
                let mut version = Command::new(FFMPEG);
                version.arg("-version").stdin(Stdio::null());
                let deadline = Instant::now() + VERSION_TIME;
                let goes_on = || {
                    cancel.check()?;
                    let late = || unwritten(path, &format!("{FFMPEG} -version has not ended after {VERSION_TIME:?}"));
                    if Instant::now() < deadline { Ok(()) } else { Err(late()) }
                };
                let run = run(version, path, |_| Ok(()), goes_on)?;
                if run.status.success() { Ok(()) } else { Err(failed(path, &run)) }
            }
            Self::Sequence | Self::Folder | Self::AnimatedPng => Ok(()),
        }
    }

    /// Refuses a path at which lies what a video of this format would not replace.
    ///
    /// # Errors
    /// `Io` for a folder; where frames go to a folder, for anything but an empty one.
    pub fn check_place(self, path: &Path) -> Result<()> {
        match self {
            Self::Folder => check_folder(path),
            Self::Sequence => check_replaceable(&path.with_file_name(numbered(path, 0))),
            Self::AnimatedPng | Self::Gif | Self::Mp4 | Self::WebM if path.is_dir() => Err(is_folder(path)),
            Self::AnimatedPng | Self::Gif | Self::Mp4 | Self::WebM => Ok(()),
        }
    }
}

/// Frames of an older video beside those of a new one would be taken for one video.
fn check_folder(path: &Path) -> Result<()> {
    let io = |error| Error::io("write", path, error);
    if path.exists() && (!path.is_dir() || fs::read_dir(path).map_err(io)?.next().is_some()) {
        let problem = format!(
            "cannot write frames to {}: it is there and not an empty folder; name another one, or remove it",
            path.display()
        );
        return Err(Error::new(ErrorKind::Io, problem).about(path.display()));
    }
    Ok(())
}

fn is_folder(path: &Path) -> Error {
    unwritten(path, "it is a folder")
}

/// Viewers slow down what shows a frame for less than two hundredths of a second.
const MAX_GIF_FPS: f64 = 50.0;

fn check_gif(fps: f64) -> Result<()> {
    if fps <= MAX_GIF_FPS {
        return Ok(());
    }
    let message = format!(
        "a GIF has at most {MAX_GIF_FPS} frames a second, this video has {fps}; end the name in .png, .mp4 or .webm"
    );
    Err(Error::usage(message).about("fps"))
}

impl Video {
    /// Writes the video in the format of its name; PNG files carry the text chunks `(keyword, text)`. Gives the files, or
    /// the folder. A file appears only when it is complete, a folder or a sequence whole or not at all.
    ///
    /// # Errors
    /// `Usage` for an unknown ending; `Io` when the folder is missing, full or not writable, when the folder for frames holds
    /// something, or when ffmpeg is needed and missing, or fails.
    pub fn write(&self, path: &Path, text: &[(String, String)]) -> Result<Vec<PathBuf>> {
        self.write_until(path, text, &CancelToken::default())
    }

    /// As [`write`](Self::write), until somebody cancels: then ffmpeg is stopped, and nothing is left of the video.
    ///
    /// # Errors
    /// As [`write`](Self::write); `Cancelled`.
    pub fn write_until(&self, path: &Path, text: &[(String, String)], cancel: &CancelToken) -> Result<Vec<PathBuf>> {
        cancel.check()?;
        check_named(path)?;
        if self.frames.is_empty() {
            return Err(Error::internal("a video without frames"));
        }
        match VideoFormat::of(path)? {
            VideoFormat::Sequence => self.write_sequence(path, text),
            VideoFormat::Folder => self.write_folder(path, text),
            VideoFormat::AnimatedPng => self.write_animated_png(path, text),
            VideoFormat::Gif => self.write_gif(path),
            VideoFormat::Mp4 => self.encode(path, &["-c:v", "libx264", "-movflags", "+faststart", "-f", "mp4"], cancel),
            VideoFormat::WebM => {
                self.encode(path, &["-c:v", "libvpx-vp9", "-b:v", "0", "-crf", "30", "-f", "webm"], cancel)
            }
        }
    }

    /// The frames of a longer video of the same name go: with these they would look like one.
    fn write_sequence(&self, path: &Path, text: &[(String, String)]) -> Result<Vec<PathBuf>> {
        let names: Vec<_> = (0..self.frames.len()).map(|frame| numbered(path, frame)).collect();
        let is_there = |name: &OsString| path.with_file_name(name).symlink_metadata().is_ok();
        let gone: Vec<_> = (names.len()..).map(|frame| numbered(path, frame)).take_while(is_there).collect();
        write_together(path, &names, &gone, |frame, file| self.frames[frame].encode(file, text))?;
        Ok(names.iter().map(|name| path.with_file_name(name)).collect())
    }

    fn write_folder(&self, path: &Path, text: &[(String, String)]) -> Result<Vec<PathBuf>> {
        let io = |error| Error::io("write", path, error);
        check_folder(path)?;
        let target = behind_links(path)?;
        let partial = Partial::beside(&target, path)?;
        for (index, frame) in self.frames.iter().enumerate() {
            let file = fs::File::create(partial.path().join(format!("frame_{index:04}.png"))).map_err(io)?;
            let failed = |error| unwritten(path, &format!("frame {index}")).with_source(error);
            frame.encode(file, text).map_err(failed)?;
        }
        partial.persist(&target).map_err(io)?;
        Ok(vec![path.to_owned()])
    }

    fn write_animated_png(&self, path: &Path, text: &[(String, String)]) -> Result<Vec<PathBuf>> {
        let first = &self.frames[0];
        let (numerator, denominator) = delay(self.fps);
        write_atomically(path, |file| {
            let mut encoder = png::Encoder::new(BufWriter::new(file), first.width, first.height);
            encoder.set_color(png::ColorType::Rgb);
            encoder.set_depth(png::BitDepth::Eight);
            encoder.set_animated(self.frames.len() as u32, 0)?;
            encoder.set_frame_delay(numerator, denominator)?;
            for (keyword, text) in text {
                encoder.add_itxt_chunk(keyword.clone(), text.clone())?;
            }
            let mut writer = encoder.write_header()?;
            self.frames.iter().try_for_each(|frame| writer.write_image_data(&frame.rgb))?;
            writer.finish()
        })?;
        Ok(vec![path.to_owned()])
    }

    fn write_gif(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let side = |side: u32| {
            let large = |_| Error::input(format!("a GIF has at most 65535 pixels a side; this video has {side}"));
            u16::try_from(side).map_err(large)
        };
        let (width, height) = (side(self.frames[0].width)?, side(self.frames[0].height)?);
        check_gif(self.fps)?;
        // In hundredths of a second. Each frame ends at its own time, rounded, so that the video is as long as it should be.
        let end = |frame: usize| (100.0 * frame as f64 / self.fps).round();
        write_atomically(path, |file| {
            let mut encoder = gif::Encoder::new(BufWriter::new(file), width, height, &[])?;
            encoder.set_repeat(gif::Repeat::Infinite)?;
            for (number, image) in self.frames.iter().enumerate() {
                let mut frame = gif::Frame::from_rgb_speed(width, height, &image.rgb, GIF_SPEED);
                frame.delay = (end(number + 1) - end(number)).clamp(2.0, f64::from(u16::MAX)) as u16;
                encoder.write_frame(&frame)?;
            }
            Ok::<(), gif::EncodingError>(())
        })?;
        Ok(vec![path.to_owned()])
    }

    /// By ffmpeg, to a temporary file beside the final one.
    fn encode(&self, path: &Path, codec: &[&str], cancel: &CancelToken) -> Result<Vec<PathBuf>> {
        let io = |error| Error::io("write", path, error);
        if path.is_dir() {
            return Err(is_folder(path));
        }
        let place = behind_links(path)?;
        let partial = Partial::beside(&place, path)?;
        let target = partial.path().join("video");
        let first = &self.frames[0];
        // 4:2:0, which every player shows, halves both sides.
        let pixels = if (first.width | first.height).is_multiple_of(2) { "yuv420p" } else { "yuv444p" };
        let mut command = Command::new(FFMPEG);
        command
            .args(["-hide_banner", "-loglevel", "error", "-nostdin", "-f", "rawvideo", "-pix_fmt", "rgb24"])
            .args(["-s", &format!("{}x{}", first.width, first.height), "-r", &self.fps.to_string(), "-i", "-", "-an"])
            .args(codec)
            .args(["-pix_fmt", pixels, "-y"])
            .arg(&target)
            .stdin(Stdio::piped());
        let run = run(command, path, |stdin| self.pipe(stdin), || cancel.check())?;
        // A program that ends early closes the pipe; what it says then matters more than that.
        if !run.status.success() || !target.is_file() {
            return Err(failed(path, &run));
        }
        run.piped.map_err(io)?;
        fs::rename(&target, &place).map_err(io)?;
        Ok(vec![path.to_owned()])
    }

    fn pipe(&self, mut to: impl Write) -> std::io::Result<()> {
        self.frames.iter().try_for_each(|frame| to.write_all(&frame.rgb))
    }
}

/// The name of a frame's file, by a path whose name holds [`NUMBER`]; what surrounds it need not be Unicode.
fn numbered(path: &Path, frame: usize) -> OsString {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let number = name.windows(NUMBER.len()).position(|part| part == NUMBER.as_bytes()).unwrap_or_default();
    let rest = name.get(number + NUMBER.len()..).unwrap_or_default();
    os_string([&name[..number], format!("{frame:04}").as_bytes(), rest].concat())
}

#[cfg(unix)]
fn os_string(bytes: Vec<u8>) -> OsString {
    std::os::unix::ffi::OsStringExt::from_vec(bytes)
}

#[cfg(not(unix))]
fn os_string(bytes: Vec<u8>) -> OsString {
    String::from_utf8_lossy(&bytes).into_owned().into()
}

/// Seconds a frame as a fraction of two 16-bit numbers, exact to a thousandth of the rate where that fits.
fn delay(fps: f64) -> (u16, u16) {
    match (fps * 1000.0).round() {
        exact if exact % 1000.0 == 0.0 && exact / 1000.0 <= f64::from(u16::MAX) => (1, (exact / 1000.0) as u16),
        exact if exact <= f64::from(u16::MAX) => (1000, exact as u16),
        _ => (100, (fps * 100.0).round().clamp(1.0, f64::from(u16::MAX)) as u16),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pixels::Image;

    fn video(frames: u8) -> Video {
        let frame = |k: u8| Image {
            width: 4,
            height: 2,
            rgb: (0..24).map(|i: u8| (i * 5).wrapping_add(k.wrapping_mul(60))).collect(),
        };
        Video { frames: (0..frames).map(frame).collect(), fps: 8.0 }
    }

    #[test]
    fn names_say_the_format() {
        for (name, format) in [
            ("a/b_%04d.png", VideoFormat::Sequence),
            ("b.png", VideoFormat::AnimatedPng),
            ("b.APNG", VideoFormat::AnimatedPng),
            ("b.gif", VideoFormat::Gif),
            ("b.mp4", VideoFormat::Mp4),
            ("b.webm", VideoFormat::WebM),
            ("a.b/c", VideoFormat::Folder),
        ] {
            assert_eq!(VideoFormat::of(Path::new(name)).unwrap(), format, "{name}");
        }
        for (name, words) in [
            ("b.avi", "ends in .avi; videos end in .mp4, .webm, .gif"),
            ("a/.mp4", "is only the ending .mp4; put a name before it"),
            ("b_%d.png", "numbers by %d; write %04d"),
            ("b_%05d.png", "numbers by %05d; write %04d"),
        ] {
            let error = VideoFormat::of(Path::new(name)).unwrap_err();
            assert!(error.kind() == ErrorKind::Usage && error.to_string().contains(words), "{error}");
        }
        for name in ["100%.png", "50%done.gif", "é%é.gif", "%", ".frames"] {
            assert!(VideoFormat::of(Path::new(name)).is_ok(), "{name}");
        }
    }

    #[test]
    fn frames_are_kept_without_loss() {
        let folder = tempfile::tempdir().unwrap();
        let text = vec![("prompt".to_owned(), "a cat".to_owned())];
        let video = video(3);
        let sequence = video.write(&folder.path().join("f_%04d.png"), &text).unwrap();
        assert_eq!(sequence.len(), 3);
        assert!(sequence[2].ends_with("f_0002.png"));
        let frames = folder.path().join("frames");
        assert_eq!(video.write(&frames, &text).unwrap(), std::slice::from_ref(&frames));
        for (index, frame) in video.frames.iter().enumerate() {
            for file in [&sequence[index], &frames.join(format!("frame_{index:04}.png"))] {
                assert_eq!(Image::read_png(file).unwrap(), (frame.clone(), text.clone()));
            }
        }
        let error = video.write(&frames, &text).unwrap_err();
        assert!(error.kind() == ErrorKind::Io && error.to_string().contains("not an empty folder"), "{error}");

        let path = folder.path().join("a.png");
        video.write(&path, &text).unwrap();
        let mut reader =
            png::Decoder::new(std::io::BufReader::new(fs::File::open(&path).unwrap())).read_info().unwrap();
        assert_eq!(reader.info().animation_control().unwrap().num_frames, 3);
        for frame in &video.frames {
            let mut rgb = vec![0; 24];
            reader.next_frame(&mut rgb).unwrap();
            let control = reader.info().frame_control().unwrap();
            assert_eq!((control.delay_num, control.delay_den), (1, 8));
            assert_eq!(rgb, frame.rgb);
        }
    }

    /// Names of temporary files say nothing to a user.
    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.gif", "a.png", "a_%04d.png", "a", "a.mp4"] {
            let path = folder.path().join("no/such").join(name);
            let error = video(2).write(&path, &[]).unwrap_err();
            let message = error.to_string();
            assert!(message.ends_with("/no/such does not exist; make it, or name another one"), "{message}");
            assert!(error.kind() == ErrorKind::Io && error.field().is_some_and(|field| field.contains("/no/such/a")));
        }
    }

    #[test]
    fn gifs_have_every_frame_and_their_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gif");
        let video = video(3);
        video.write(&path, &[]).unwrap();
        let mut options = gif::DecodeOptions::new();
        options.set_color_output(gif::ColorOutput::RGBA);
        let mut decoder = options.read_info(fs::File::open(&path).unwrap()).unwrap();
        for (expected, delay) in video.frames.iter().zip([13, 12, 13]) {
            let frame = decoder.read_next_frame().unwrap().unwrap();
            assert_eq!(frame.delay, delay); // an eighth of a second each
            let rgb: Vec<u8> = frame.buffer.chunks(4).flat_map(|pixel| pixel[..3].to_vec()).collect();
            // 8 pixels fit into the palette.
            assert_eq!(rgb, expected.rgb);
        }
        assert!(decoder.read_next_frame().unwrap().is_none());
    }

    #[test]
    fn gifs_are_as_long_as_their_videos() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gif");
        for (fps, hundredths) in [(8.0, 313), (30.0, 83), (24.0, 104), (50.0, 50), (23.976, 104)] {
            Video { fps, ..video(25) }.write(&path, &[]).unwrap();
            let mut decoder = gif::DecodeOptions::new().read_info(fs::File::open(&path).unwrap()).unwrap();
            let mut sum = 0;
            while let Some(frame) = decoder.read_next_frame().unwrap() {
                sum += u32::from(frame.delay);
            }
            assert_eq!(sum, hundredths, "{fps}");
        }
    }

    #[test]
    fn delays_are_fractions_of_a_second() {
        for (fps, expected) in [(8.0, (1, 8)), (23.976, (1000, 23_976)), (0.5, (1000, 500)), (1000.0, (1, 1000))] {
            assert_eq!(delay(fps), expected, "{fps}");
        }
    }
}
