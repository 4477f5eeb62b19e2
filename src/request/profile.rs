//! For which shapes builds are made: `512..1024,batch=1..2` becomes a smallest, usual and largest extent of every
//! dynamic dimension.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::{grid, memory};
use crate::error::{Error, Result};
use crate::model::graph::Graph;
use crate::model::manifest::{CfgMode, Dimension, Extents, GuidanceSpec, Manifest};
use crate::model::onnx;
use crate::request::options::RequestOptions;

/// Smallest, usual and largest extent of each dimension.
pub(crate) type Extremes = BTreeMap<String, [u64; 3]>;

/// Pictures.
const BATCH: &str = "batch";
/// Of a video.
const FRAMES: &str = "frames";

/// The shapes for which builds are made, in pixels and by dimension.
///
/// In text: sizes first, then dimensions by name, divided by commas. A size is one side for squares or WIDTHxHEIGHT; two
/// that are joined by `..` are the smallest and the largest. `batch` counts pictures, `frames` those of a video. What is
/// left out is the engine's default size, one picture, and the whole range of any other dimension (mostly the length of
/// the text).
///
/// ```
/// use dbcache_trt::Profile;
///
/// let profile: Profile = "512..1024x768,batch=1..2".parse()?;
/// assert_eq!(profile.to_string(), "512x512..1024x768,batch=1..2");
/// # Ok::<(), dbcache_trt::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Smallest and largest picture.
    sizes: Option<[(u64, u64); 2]>,
    /// Smallest and largest extent.
    dimensions: BTreeMap<String, [u64; 2]>,
}

impl Profile {
    /// Every dimension of this model: fixed ones, those of the sizes, and sums.
    ///
    /// # Errors
    /// `Usage` for a dimension that the model does not have or that the size decides; `Input` for what the model cannot make.
    pub(crate) fn resolve(&self, manifest: &Manifest) -> Result<Extremes> {
        self.resolve_from(manifest, 1)
    }

    /// As [`resolve`](Self::resolve), for stages alone: if both branches of the guidance are one batch, a stage never runs on
    /// half of it.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub(crate) fn resolve_for_stages(&self, manifest: &Manifest) -> Result<Extremes> {
        self.resolve_from(manifest, rows(manifest))
    }

    /// `least_rows` for each picture.
    fn resolve_from(&self, manifest: &Manifest, least_rows: u64) -> Result<Extremes> {
        let [width, height] = manifest.size.default;
        let default = (width, height);
        let [smallest, largest] = self.sizes.unwrap_or([default; 2]);
        let is_within = smallest.0 <= width && smallest.1 <= height && width <= largest.0 && height <= largest.1;
        let usual = if is_within { default } else { largest };
        let rows = rows(manifest);
        let mut extremes = Extremes::new();
        for (place, size) in [smallest, usual, largest].into_iter().enumerate() {
            let frames = self.dimensions.get(FRAMES).map(|[least, most]| if place == 0 { *least } else { *most });
            let options = RequestOptions { size: Some(size), frames, ..RequestOptions::default() };
            let grid = grid(manifest, &options).map_err(|error| error.about("profile"))?;
            let [least, most] = self.dimensions.get(BATCH).copied().unwrap_or([1; 2]);
            // Where both branches of the guidance are one batch, it is twice as long; text and decode graphs take half.
            let batch = if place == 0 { least * least_rows } else { most * rows };
            let mut extents = grid.extents(batch as usize);
            self.check_names(manifest, &extents)?;
            for (name, [least, most]) in memory::free_dimensions(manifest, &extents) {
                let [least, most] = self.dimensions.get(&name).copied().unwrap_or([least, most]);
                extents.insert(name, if place == 0 { least } else { most });
            }
            let extents = manifest.complete(extents).map_err(|error| error.about("profile"))?;
            for name in manifest.dimensions.keys() {
                let extent = extents.get(name).copied().unwrap_or_default();
                extremes.entry(name.clone()).or_insert([extent; 3])[place] = extent;
            }
        }
        Ok(extremes)
    }

    fn check_names(&self, manifest: &Manifest, of_size: &Extents) -> Result<()> {
        for name in self.dimensions.keys().filter(|name| *name != FRAMES) {
            let problem = match manifest.dimensions.get(name) {
                None => {
                    let known: Vec<&str> = manifest.dimensions.keys().map(String::as_str).collect();
                    format!("names the dimension `{name}`; this model has {}", known.join(", "))
                }
                Some(Dimension::Sum { sum }) => format!("names `{name}`, which is {}; name those", sum.join(" + ")),
                Some(_) if name != BATCH && of_size.contains_key(name) => {
                    format!("names `{name}`, which follows from the size; give the size")
                }
                Some(_) => continue,
            };
            return Err(Error::option("profile", problem));
        }
        Ok(())
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut items = Vec::new();
        if let Some([least, most]) = self.sizes {
            let size = |(width, height): (u64, u64)| format!("{width}x{height}");
            items.push(if least == most { size(least) } else { format!("{}..{}", size(least), size(most)) });
        }
        for (name, [least, most]) in &self.dimensions {
            items.push(if least == most { format!("{name}={least}") } else { format!("{name}={least}..{most}") });
        }
        f.write_str(&items.join(","))
    }
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            let expected = "expected sizes and dimensions, such as 512..1024 or 768x512..1024x1024,batch=1..2,text=512";
            Error::usage(format!("the profile `{text}` does not parse; {expected}")).about("profile")
        };
        let mut profile = Self::default();
        for (place, item) in text.split(',').enumerate() {
            match item.split_once('=') {
                Some((name, range)) => {
                    let (least, most) = range.split_once("..").unwrap_or((range, range));
                    let bounds = [number(least).ok_or_else(bad)?, number(most).ok_or_else(bad)?];
                    let is_new = profile.dimensions.insert(name.to_owned(), bounds).is_none();
                    if name.is_empty() || bounds[0] > bounds[1] || !is_new {
                        return Err(bad());
                    }
                }
                None if place == 0 => {
                    let (least, most) = item.split_once("..").unwrap_or((item, item));
                    let [a, b] = [size(least).ok_or_else(bad)?, size(most).ok_or_else(bad)?];
                    if a.0 > b.0 || a.1 > b.1 {
                        return Err(bad());
                    }
                    profile.sizes = Some([a, b]);
                }
                None => return Err(bad()),
            }
        }
        Ok(profile)
    }
}

/// Rows of a stage for each picture: two where both branches of the guidance are one batch.
fn rows(manifest: &Manifest) -> u64 {
    let is_fused = matches!(manifest.guidance, GuidanceSpec::ClassifierFree { mode: CfgMode::Fused, .. });
    if is_fused { 2 } else { 1 }
}

/// One side of a square, or WIDTHxHEIGHT.
fn size(text: &str) -> Option<(u64, u64)> {
    match text.split_once(['x', 'X']) {
        Some((width, height)) => Some((number(width)?, number(height)?)),
        None => number(text).map(|side| (side, side)),
    }
}

fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    text.parse().ok().filter(|number| is_number && *number > 0)
}

/// Refuses extents for which the engine is not made. `remedy` says how to have others.
///
/// # Errors
/// `Input`.
pub(crate) fn check(extremes: &Extremes, extents: &Extents, remedy: &str) -> Result<()> {
    for (name, [least, _, most]) in extremes {
        let Some(extent) = extents.get(name).filter(|extent| !(least..=most).contains(extent)) else { continue };
        let range = if least == most { least.to_string() } else { format!("{least} to {most}") };
        return Err(Error::input(format!(
            "dimension `{name}` would be {extent}, but this engine is made for {range}; {remedy}"
        ))
        .about("profile"));
    }
    Ok(())
}

/// Smallest, usual and largest shape of each input of a graph.
///
/// # Errors
/// `Internal` for a dimension without extents.
pub(crate) fn shapes(graph: &Graph, extremes: &Extremes) -> Result<Vec<(String, [Vec<u64>; 3])>> {
    let model = onnx::decode(&graph.bytes).map_err(Error::internal)?;
    let ports = model.graph.map(|graph| graph.input).unwrap_or_default();
    ports.into_iter().map(|port| shapes_of(port, extremes)).collect()
}

/// The same of one input, with its name.
fn shapes_of(port: onnx::ValueInfoProto, extremes: &Extremes) -> Result<(String, [Vec<u64>; 3])> {
    let name = port.name.unwrap_or_default();
    let shape = port.r#type.and_then(|port| port.tensor_type).and_then(|tensor| tensor.shape).unwrap_or_default();
    let mut shapes: [Vec<u64>; 3] = Default::default();
    for dim in shape.dim {
        let extents = match (dim.dim_value, dim.dim_param) {
            (Some(value), _) => [value.max(0) as u64; 3],
            (None, Some(dim)) => *extremes
                .get(&dim)
                .ok_or_else(|| Error::internal(format!("dimension `{dim}` of `{name}` has no extents")))?,
            (None, None) => return Err(Error::internal(format!("`{name}` has a dimension without a name"))),
        };
        for (shape, extent) in shapes.iter_mut().zip(extents) {
            shape.push(extent);
        }
    }
    Ok((name, shapes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::directory::EngineDirectory;

    fn tiny() -> EngineDirectory {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-flux");
        EngineDirectory::open(&folder, None).unwrap()
    }

    #[test]
    fn profiles_print_as_they_are_written() {
        for (text, printed) in [
            ("512", "512x512"),
            ("512..1024", "512x512..1024x1024"),
            ("512x768..1024X1024,batch=2", "512x768..1024x1024,batch=2"),
            ("batch=1..4,text=77", "batch=1..4,text=77"),
            ("512,text=1..77,batch=1", "512x512,batch=1,text=1..77"),
        ] {
            let profile: Profile = text.parse().unwrap();
            assert_eq!(profile.to_string(), printed);
            assert_eq!(printed.parse::<Profile>().unwrap(), profile);
        }
        for text in [
            "",
            ",",
            "0",
            "-1",
            "512..",
            "..512",
            "1024..512",
            "512x..1024",
            "512,1024",
            "batch",
            "batch=",
            "batch=0",
            "batch=2..1",
            "=1",
            "batch=1,batch=2",
            "512x512x512",
            "a",
            "512,batch=+1",
        ] {
            let error = text.parse::<Profile>().unwrap_err();
            assert!(error.to_string().contains("does not parse; expected sizes and dimensions"), "{text}: {error}");
        }
    }

    #[test]
    fn every_dimension_gets_its_extremes() {
        let directory = tiny();
        for (text, expected) in [
            ("16", "batch 1 1 1, image 64 64 64, text 1 512 512, total 65 576 576"),
            ("8..32,text=12", "batch 1 1 1, image 16 64 256, text 12 12 12, total 28 76 268"),
            ("8..12,text=12,batch=2..4", "batch 2 4 4, image 16 36 36, text 12 12 12, total 28 48 48"),
            ("4x8..16x12,text=8..12", "batch 1 1 1, image 8 48 48, text 8 12 12, total 16 60 60"),
        ] {
            let extremes = text.parse::<Profile>().unwrap().resolve(&directory.manifest).unwrap();
            let texts: Vec<String> = extremes.iter().map(|(name, [a, b, c])| format!("{name} {a} {b} {c}")).collect();
            assert_eq!(texts.join(", "), expected, "{text}");
        }
        // A video whose guidance is one batch, twice as long.
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/families/cogvideox/engine");
        let video = EngineDirectory::open(&folder, None).unwrap();
        let profile: Profile = "32x16..96x64,batch=1..2,frames=5..9".parse().unwrap();
        let extremes = profile.resolve(&video.manifest).unwrap();
        let expected = [
            ("batch", [1, 4, 4]),
            ("image", [4, 72, 72]),
            ("latent_frames", [2, 3, 3]),
            ("latent_height", [2, 8, 8]),
            ("latent_width", [4, 12, 12]),
            ("text", [7, 7, 7]),
            ("total", [11, 79, 79]),
        ];
        assert_eq!(extremes, Extremes::from(expected.map(|(name, extents)| (name.to_owned(), extents))));
        // Stages of it always take both.
        assert_eq!(profile.resolve_for_stages(&video.manifest).unwrap()["batch"], [2, 4, 4]);
        let plain = Profile::default().resolve(&directory.manifest).unwrap();
        assert_eq!(plain["image"], [64; 3]);
        for (text, words) in [
            ("7", "the option `size` is 7x7; this model makes sides of 4 to 32 pixels that are multiples of 2"),
            ("16..64", "the option `size` is 64x64"),
            ("batch=17", "dimension `batch` would be 17; the model takes 1 to 16"),
            ("tokens=4", "names the dimension `tokens`; this model has batch, image, text, total"),
            ("total=4", "names `total`, which is text + image; name those"),
            ("image=4", "names `image`, which follows from the size; give the size"),
            ("frames=5", "the option `frames` has no effect: this model makes pictures, not video"),
            ("text=600", "dimension `text` would be 600"),
        ] {
            let error = text.parse::<Profile>().unwrap().resolve(&directory.manifest).unwrap_err();
            assert!(error.to_string().contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn shapes_of_a_graph_and_requests_outside() {
        let directory = tiny();
        let extremes = "8..32,text=12".parse::<Profile>().unwrap().resolve(&directory.manifest).unwrap();
        let shapes = shapes(&directory.experts[0].blocks[0], &extremes).unwrap();
        let of = |name: &str| &shapes.iter().find(|(port, _)| port == name).unwrap().1;
        assert_eq!(of("hidden_states"), &[vec![1, 16, 64], vec![1, 64, 64], vec![1, 256, 64]]);
        assert_eq!(of("rotary_cos"), &[vec![28, 16], vec![76, 16], vec![268, 16]]);
        let extents = |image: u64, text: u64| {
            let given =
                [("batch", 1), ("image", image), ("text", text)].map(|(name, extent)| (name.to_owned(), extent));
            directory.manifest.complete(Extents::from(given)).unwrap()
        };
        check(&extremes, &extents(16, 12), "").unwrap();
        check(&extremes, &extents(256, 12), "").unwrap();
        for (image, text, words) in [
            (8, 12, "dimension `image` would be 8, but this engine is made for 16 to 256"),
            (64, 13, "dimension `text` would be 13, but this engine is made for 12; dbcache-trt build"),
        ] {
            let error = check(&extremes, &extents(image, text), "dbcache-trt build").unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
