//! Standard normal noise from a seed: the values that PyTorch's CPU generator gives, so that a seed means the same
//! picture here and there. This is `torch.randn(count, generator=torch.Generator("cpu").manual_seed(seed))` in float32.
//!
//! PyTorch draws in two ways, in [`normal_fill`] or one by one, and so does this file:
//! - the first, for 16 values or more, is what vector code can do, in float32;
//! - the second, for fewer, is the textbook's Box–Muller transform in float64.
//!
//! PyTorch's vector code (x86) and scalar code round the angle differently, so they differ by up to 2.3e-6. This file
//! follows the vector code; logarithm, sine and cosine are computed in float64 and rounded, which gives the same values
//! on every machine, three of four of them PyTorch's to the last bit and none farther away than 8e-7.
//!
//! [`normal_fill`]: https://github.com/pytorch/pytorch/blob/003dc3e14b5f200fdeff33edf90016b833087e87/aten/src/ATen/native/cpu/DistributionTemplates.h

use std::f64::consts::TAU;

use rand_mt::Mt;

/// Values that PyTorch draws together: `BLOCK / 2` radii and as many angles.
const BLOCK: usize = 16;

/// A generator that goes on where it stopped.
pub(crate) struct Generator(Mt);

impl Generator {
    /// Only the low 32 bits of the seed count.
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mt::new(seed as u32))
    }

    /// The next `count` standard normal values.
    pub(crate) fn normal(&mut self, count: usize) -> Vec<f32> {
        if count < BLOCK { draw_pairs(&mut self.0, count) } else { draw_blocks(&mut self.0, count) }
    }
}

fn draw_blocks(random: &mut Mt, count: usize) -> Vec<f32> {
    let mut values: Vec<f32> = (0..count).map(|_| uniform_24(random)).collect();
    let (blocks, rest) = values.as_chunks_mut::<BLOCK>();
    blocks.iter_mut().for_each(transform_block);
    if !rest.is_empty() {
        // A last block that is not full is made full by drawing again what lies before it.
        let mut last = [0.0; BLOCK];
        last.fill_with(|| uniform_24(random));
        transform_block(&mut last);
        values[count - BLOCK..].copy_from_slice(&last);
    }
    values
}

/// Turns uniform numbers into normal ones: value `i` of the first half with value `i` of the second.
fn transform_block(block: &mut [f32; BLOCK]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = f64::from((-2.0 * f64::from(1.0 - *a).ln()).sqrt() as f32);
        let angle = f64::from(std::f32::consts::TAU * *b);
        *a = (radius * f64::from(angle.cos() as f32)) as f32;
        *b = (radius * f64::from(angle.sin() as f32)) as f32;
    }
}

fn draw_pairs(random: &mut Mt, count: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let angle = TAU * uniform_53(random);
        let radius = (-2.0 * (-uniform_53(random)).ln_1p()).sqrt();
        values.extend([(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]);
    }
    values.truncate(count);
    values
}

/// A number in [0, 1) with 24 random bits, all that a float32 can hold.
fn uniform_24(random: &mut Mt) -> f32 {
    const BITS: u32 = 24;
    (random.next_u32() & ((1 << BITS) - 1)) as f32 / (1_u32 << BITS) as f32
}

/// A number in [0, 1) with 53 random bits: the low ones of two draws, of which the first is the upper half.
fn uniform_53(random: &mut Mt) -> f64 {
    const BITS: u32 = 53;
    let upper = u64::from(random.next_u32());
    let bits = (upper << 32 | u64::from(random.next_u32())) & ((1 << BITS) - 1);
    bits as f64 / (1_u64 << BITS) as f64
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    /// Blocks: PyTorch approximates logarithm, sine and cosine. Pairs: only the last rounding may differ.
    const BLOCK_TOLERANCE: f64 = 1e-6;
    const PAIR_TOLERANCE: f64 = 2.5e-7;

    fn check_draw(draw: &Value) {
        let number = |name: &str| draw[name].as_u64().unwrap();
        let (seed, size) = (number("seed"), number("size") as usize);
        let values = Generator::new(seed).normal(size);
        assert_eq!(values.len(), size);
        let tolerance = if size < BLOCK { PAIR_TOLERANCE } else { BLOCK_TOLERANCE };
        let compare = |ours: &[f32], theirs: &Value| {
            for (ours, theirs) in ours.iter().zip(theirs.as_array().unwrap()) {
                let difference = (f64::from(*ours) - theirs.as_f64().unwrap()).abs();
                assert!(difference <= tolerance, "seed {seed}, size {size}: {ours} instead of {theirs}");
            }
        };
        let recorded = |name: &str| draw[name].as_array().unwrap().len();
        compare(&values[..recorded("first")], &draw["first"]);
        compare(&values[size - recorded("last")..], &draw["last"]);
        let sum: f64 = values.iter().map(|value| f64::from(*value)).sum();
        assert!((sum - draw["sum"].as_f64().unwrap()).abs() <= tolerance * size as f64);
    }

    #[test]
    fn agrees_with_pytorch() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/reference/noise.json");
        let reference: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let draws = reference["draws"].as_array().unwrap();
        assert!(draws.len() >= 20);
        draws.iter().for_each(check_draw);
    }

    #[test]
    fn any_count_is_possible() {
        for count in 0..50 {
            let values = Generator::new(3).normal(count);
            assert_eq!(values.len(), count);
            assert!(values.iter().all(|value| value.is_finite()));
        }
        assert_eq!(Generator::new(7).normal(100), Generator::new(7 + (1 << 40)).normal(100));
    }
}
