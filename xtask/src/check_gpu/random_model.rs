//! Makes the weights of an engine of which only graphs and headers were carried, and tensors to start from: random numbers of a
//! seed, of the size that weights of a trained model have, so that the streams stay finite.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

/// The file with what is no part of an engine directory.
const SHAPE: &str = "shape.json";

/// What else must be known of a model to run it; `export/published/few_blocks.py` writes it.
pub struct Shape {
    text_tokens: u64,
    pub words: String,
}

impl Shape {
    pub fn read(graphs: &Path) -> Result<Self> {
        let shape = read_json(&graphs.join(SHAPE))?;
        let number = |name: &str| shape[name].as_u64().with_context(|| format!("shape.json lacks {name}"));
        let words = format!(
            "{} double and {} single blocks, {} heads, {} text tokens, {cells} x {cells} cells, {}, opset {}",
            number("double")?,
            number("single")?,
            number("heads")?,
            number("text_tokens")?,
            shape["compute"].as_str().context("shape.json lacks compute")?,
            number("opset")?,
            cells = number("cells")?,
        );
        Ok(Self { text_tokens: number("text_tokens")?, words })
    }
}

/// Makes an engine directory, and beside it `inputs.safetensors` and the shape.
pub fn make(graphs: &Path, folder: &Path, seed: u64) -> Result<()> {
    let engine = folder.join("engine");
    fs::create_dir_all(&engine)?;
    let mut random = Random(seed);
    for entry in fs::read_dir(graphs).with_context(|| format!("cannot read {}", graphs.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if path.extension().is_some_and(|ending| ending == "header") {
            let to = engine.join(name).with_extension("safetensors");
            write_tensors(&fs::read(&path)?, &to, &mut random)?;
        } else {
            // An engine directory holds nothing that its manifest does not name.
            let to = if name == SHAPE { folder } else { &engine };
            fs::copy(&path, to.join(name))?;
        }
    }
    let header = inputs_header(&read_json(&graphs.join("manifest.json"))?, &Shape::read(graphs)?)?;
    write_tensors(&header, &folder.join("inputs.safetensors"), &mut random)
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is no JSON", path.display()))
}

/// The header of a file with every tensor that a text encoder would give.
fn inputs_header(manifest: &Value, shape: &Shape) -> Result<Vec<u8>> {
    let (mut header, mut end) = (Map::new(), 0);
    for (name, input) in manifest["inputs"].as_object().context("the manifest has no inputs")? {
        if input["from"] != "text" {
            continue;
        }
        let sizes = manifest["tensors"][name]["shape"].as_array().context("an input has no shape")?;
        let size = |size: &Value| match size.as_str() {
            None => size.as_u64().context("a size is no number"),
            Some("batch") => Ok(1),
            Some("text") => Ok(shape.text_tokens),
            Some(other) => bail!("the size {other} is unknown"),
        };
        let sizes = sizes.iter().map(size).collect::<Result<Vec<u64>>>()?;
        let bytes = 4 * sizes.iter().product::<u64>();
        header.insert(name.clone(), json!({"dtype": "F32", "shape": sizes, "data_offsets": [end, end + bytes]}));
        end += bytes;
    }
    let text = serde_json::to_vec(&Value::Object(header))?;
    Ok([&u64::try_from(text.len())?.to_le_bytes(), text.as_slice()].concat())
}

/// Writes a safetensors file: its header as it is, and random numbers behind it.
fn write_tensors(header: &[u8], to: &Path, random: &mut Random) -> Result<()> {
    let tensors: Map<String, Value> = serde_json::from_slice(header.get(8..).context("a header is cut off")?)?;
    let place = |tensor: &Value| tensor["data_offsets"][0].as_u64();
    let mut tensors: Vec<(&String, &Value)> = tensors.iter().filter(|(name, _)| *name != "__metadata__").collect();
    tensors.sort_by_key(|(_, tensor)| place(tensor));
    let mut file = BufWriter::with_capacity(1 << 20, File::create(to)?);
    file.write_all(header)?;
    for (name, tensor) in tensors {
        let sizes = tensor["shape"].as_array().with_context(|| format!("{name} has no shape"))?;
        let sizes: Vec<u64> = sizes.iter().filter_map(Value::as_u64).collect();
        let numbers = Numbers::of(name, &sizes);
        // bf16 is the upper half of an f32.
        let dropped = match tensor["dtype"].as_str() {
            Some("BF16") => 2,
            Some("F32") => 0,
            other => bail!("{name} is {other:?}; expected BF16 or F32"),
        };
        let mut left = usize::try_from(sizes.iter().product::<u64>())?;
        while left > 0 {
            let count = left.min(AT_ONCE);
            file.write_all(&bytes(&numbers, random, count, dropped))?;
            random.skip(count);
            left -= count;
        }
    }
    file.flush().with_context(|| format!("cannot write {}", to.display()))
}

/// So many numbers without their lowest bytes. All cores work: there may be 12 billion.
fn bytes(numbers: &Numbers, random: &Random, count: usize, dropped: usize) -> Vec<u8> {
    let size = 4 - dropped;
    let mut bytes = vec![0; count * size];
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = count.div_ceil(threads);
    std::thread::scope(|scope| {
        for (thread, part) in bytes.chunks_mut(share * size).enumerate() {
            scope.spawn(move || {
                for (index, place) in part.chunks_exact_mut(size).enumerate() {
                    let number = numbers.of_random(random.at(thread * share + index));
                    place.copy_from_slice(&number.to_le_bytes()[dropped..]);
                }
            });
        }
    });
    bytes
}

/// How the numbers of a tensor are spread.
struct Numbers {
    middle: f32,
    width: f32,
}

impl Numbers {
    fn of(name: &str, sizes: &[u64]) -> Self {
        match sizes {
            // What a norm multiplies with.
            [_] if name.contains("norm") && name.ends_with(".weight") => Self { middle: 1.0, width: 0.1 },
            [_] => Self { middle: 0.0, width: 0.02 },
            // A layer keeps the size of its input, as the layers of a new model do.
            [_, inner @ ..] => Self { middle: 0.0, width: (3.0 / inner.iter().product::<u64>() as f32).sqrt() },
            [] => Self { middle: 0.0, width: 1.0 },
        }
    }

    /// `random` is from -1 to 1.
    fn of_random(&self, random: f32) -> f32 {
        self.middle + self.width * random
    }
}

/// SplitMix64: fast, the same on every machine, and each of its numbers can be had without those before it.
struct Random(u64);

/// What its state grows by with each number.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
/// Numbers that are made before they are written.
const AT_ONCE: usize = 1 << 24;

impl Random {
    /// The number so many places ahead, from -1 to 1.
    fn at(&self, index: usize) -> f32 {
        let mut bits = self.0.wrapping_add(STEP.wrapping_mul(index as u64 + 1));
        bits = (bits ^ bits >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (bits >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn skip(&mut self, count: usize) {
        self.0 = self.0.wrapping_add(STEP.wrapping_mul(count as u64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_header_and_numbers_of_the_seed() {
        let folder = tempfile::tempdir().unwrap();
        let text = json!({
            "b.weight": {"dtype": "BF16", "shape": [4, 300], "data_offsets": [8, 2408]},
            "norm.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        })
        .to_string();
        let header = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        let write = |name: &str, seed| {
            let path = folder.path().join(name);
            write_tensors(&header, &path, &mut Random(seed)).unwrap();
            fs::read(path).unwrap()
        };
        let (one, again, other) = (write("a", 7), write("b", 7), write("c", 8));
        assert_eq!(one, again);
        assert_ne!(one, other);
        assert_eq!(one.len(), header.len() + 2408);
        assert_eq!(&one[..header.len()], &header);
        let norm = f32::from_le_bytes(one[header.len()..header.len() + 4].try_into().unwrap());
        assert!((0.9..=1.1).contains(&norm), "{norm}");
        let weights = one[header.len() + 8..].chunks(2).map(|half| f32::from_le_bytes([0, 0, half[0], half[1]]));
        let squares: f32 = weights.map(|weight| weight * weight).sum();
        // 4 rows, each of length 1.
        assert!((3.6..4.4).contains(&squares), "{squares}");
    }

    #[test]
    fn numbers_do_not_depend_on_how_many_are_made_at_once() {
        let (numbers, mut random) = (Numbers { middle: 0.5, width: 2.0 }, Random(7));
        let whole = bytes(&numbers, &random, 1000, 2);
        let mut parts = Vec::new();
        for count in [1, 332, 667] {
            parts.extend(bytes(&numbers, &random, count, 2));
            random.skip(count);
        }
        assert_eq!(whole, parts);
    }

    #[test]
    fn other_dtypes_are_refused() {
        let text = json!({"a": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}).to_string();
        let header = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        let folder = tempfile::tempdir().unwrap();
        let refusal = write_tensors(&header, &folder.path().join("a"), &mut Random(0)).unwrap_err().to_string();
        assert!(refusal.contains("expected BF16 or F32"), "{refusal}");
    }
}
