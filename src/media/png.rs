//! Pictures as PNG files that carry how they were made.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::pixels::Image;

/// Most bytes of all text chunks that are read back from a PNG: they are compressed, and must not fill the memory.
const MAX_TEXT: usize = 4 << 20;

/// Largest picture that is read, in bytes; a header may promise any size.
const MAX_PICTURE: usize = 1 << 30;
/// Widest picture that is read, in pixels.
const MAX_WIDTH: u32 = 1 << 16;

impl Image {
    /// Writes a PNG with text chunks `(keyword, text)`. The file appears only when it is complete.
    ///
    /// # Errors
    /// `Usage` for a name of another format; `Io` when the folder is missing, full or not writable.
    pub fn write_png(&self, path: &Path, text: &[(String, String)]) -> Result<()> {
        Self::check_name(path)?;
        write_atomically(path, |file| self.encode(file, text))
    }

    /// Refuses a name that ends as if the picture were of another format than PNG, to be asked before the work.
    ///
    /// # Errors
    /// `Usage`.
    pub fn check_name(path: &Path) -> Result<()> {
        match path.extension() {
            Some(ending) if !ending.eq_ignore_ascii_case("png") => {
                let ending = ending.to_string_lossy();
                let problem = format!("ends in .{ending}, but pictures are PNG files; end it in .png");
                Err(Error::option("output", problem))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn encode(
        &self,
        file: impl Write,
        text: &[(String, String)],
    ) -> std::result::Result<(), png::EncodingError> {
        let mut encoder = png::Encoder::new(BufWriter::new(file), self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        for (keyword, text) in text {
            encoder.add_itxt_chunk(keyword.clone(), text.clone())?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.rgb)?;
        writer.finish()
    }

    /// Reads an 8-bit RGB PNG and its text chunks.
    ///
    /// # Errors
    /// `Io` when it cannot be read, `Input` when it is not such a PNG, or its texts are longer than 4 MiB.
    pub fn read_png(path: &Path) -> Result<(Self, Vec<(String, String)>)> {
        let mut reader = png_reader(path)?;
        let info = reader.info();
        let (width, height) = (info.width, info.height);
        if (info.color_type, info.bit_depth, info.interlaced) != (png::ColorType::Rgb, png::BitDepth::Eight, false) {
            return Err(Error::input(format!("{} is not an 8-bit RGB picture, row by row", path.display())));
        }
        // Row by row: a short file may claim any size.
        let mut rgb = Vec::new();
        while let Some(row) = reader.next_row().map_err(|error| damaged_png(path, error))? {
            rgb.extend(row.data());
        }
        if rgb.len() as u64 != 3 * u64::from(width) * u64::from(height) {
            return Err(Error::input(format!("{} lacks some of its pixels", path.display())));
        }
        let text = png_text(path, reader)?;
        Ok((Self { width, height, rgb }, text))
    }

    /// Width and height in pixels of a PNG, and its text chunks; no pixels are decoded.
    ///
    /// # Errors
    /// `Io` when it cannot be read, `Input` when it is not a PNG, or its texts are longer than 4 MiB.
    pub fn read_png_text(path: &Path) -> Result<([u32; 2], PngTexts)> {
        let reader = png_reader(path)?;
        let size = [reader.info().width, reader.info().height];
        Ok((size, png_text(path, reader)?))
    }
}

/// Keywords with their texts.
type PngTexts = Vec<(String, String)>;
type PngReader = png::Reader<std::io::BufReader<File>>;

/// A reader in front of the pixels, whose buffers are as long as a row.
fn png_reader(path: &Path) -> Result<PngReader> {
    let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    let mut decoder = png::Decoder::new(std::io::BufReader::new(file));
    decoder.set_limits(png::Limits { bytes: MAX_PICTURE });
    let reader = decoder.read_info().map_err(|error| damaged_png(path, error))?;
    match reader.output_buffer_size() {
        Some(bytes) if bytes <= MAX_PICTURE => {}
        _ => return Err(Error::input(format!("{} is larger than {MAX_PICTURE} bytes of pixels", path.display()))),
    }
    if reader.info().width > MAX_WIDTH {
        let width = reader.info().width;
        return Err(Error::input(format!("{} is {width} pixels wide; at most {MAX_WIDTH} are read", path.display())));
    }
    Ok(reader)
}

fn damaged_png(path: &Path, error: png::DecodingError) -> Error {
    Error::input(format!("{} is not a readable PNG", path.display())).with_source(error)
}

/// The text chunks in front of the pixels and behind them.
fn png_text(path: &Path, mut reader: PngReader) -> Result<PngTexts> {
    let damaged = |error| damaged_png(path, error);
    reader.finish().map_err(damaged)?;
    let info = reader.info();
    let mut left = MAX_TEXT;
    let mut text = Vec::new();
    let mut keep = |keyword: &str, value: String| {
        let too_long = || Error::input(format!("{} holds more than {MAX_TEXT} bytes of text", path.display()));
        left = left.checked_sub(keyword.len() + value.len()).ok_or_else(too_long)?;
        text.push((keyword.to_owned(), value));
        Ok(left)
    };
    let mut limit = MAX_TEXT;
    for chunk in &info.utf8_text {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(limit).map_err(damaged)?;
        limit = keep(&chunk.keyword, chunk.get_text().map_err(damaged)?)?;
    }
    for chunk in &info.uncompressed_latin1_text {
        keep(&chunk.keyword, chunk.text.clone())?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_png_keeps_pixels_and_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let image = Image { width: 2, height: 1, rgb: vec![1, 2, 3, 250, 251, 252] };
        let text = vec![("prompt".to_owned(), "Zitrone 🍋".to_owned())];
        image.write_png(&path, &text).unwrap();
        assert_eq!(Image::read_png(&path).unwrap(), (image, text));
    }

    /// Each text is short enough by itself, and takes a few bytes of the file.
    #[test]
    fn texts_are_bounded_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let write = |count: usize| {
            let mut encoder = png::Encoder::new(File::create(&path).unwrap(), 1, 1);
            encoder.set_color(png::ColorType::Rgb);
            let mut writer = encoder.write_header().unwrap();
            for _ in 0..count {
                let mut chunk = png::text_metadata::ITXtChunk::new("prompt", "a".repeat(MAX_TEXT / 4));
                chunk.compressed = true;
                writer.write_text_chunk(&chunk).unwrap();
            }
            writer.write_image_data(&[1, 2, 3]).unwrap();
        };
        write(3);
        let (size, text) = Image::read_png_text(&path).unwrap();
        assert_eq!((size, text.len()), ([1, 1], 3));
        assert_eq!(Image::read_png(&path).unwrap().1, text);
        write(200);
        assert!(path.metadata().unwrap().len() < 1 << 20);
        for error in [Image::read_png_text(&path).unwrap_err(), Image::read_png(&path).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Input, "{error}");
        }
    }
}
