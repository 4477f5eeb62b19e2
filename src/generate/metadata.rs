//! How a picture was made, for the text chunks of its file.

use crate::cache::Branch;
use crate::model::cache_dtype::CacheDType;
use crate::model::compute_choice::ComputeChoice;
use crate::request::inputs::Inputs;
use crate::trace::Trace;

impl Trace {
    /// The seed of one picture or video of the batch, counted from 0.
    pub fn seed_of(&self, picture: usize) -> u64 {
        self.seed.wrapping_add(picture as u64)
    }

    /// `(keyword, text)` of one picture or video of the batch, counted from 0.
    pub fn picture_metadata(&self, inputs: &Inputs, picture: usize) -> Vec<(String, String)> {
        let mut text = vec![("Software".to_owned(), concat!("dbcache-trt ", env!("CARGO_PKG_VERSION")).to_owned())];
        let mut add = |key: &str, value: String| text.push((key.to_owned(), value));
        if let Some(prompt) = &inputs.prompt {
            add("prompt", prompt.clone());
        }
        if let Some(prompt) = &inputs.negative_prompt {
            add("negative_prompt", prompt.clone());
        }
        add("seed", self.seed_of(picture).to_string());
        add("steps", self.records.first().map_or(0, |record| record.steps).to_string());
        if let Some(scale) = self.guidance {
            add("guidance", scale.to_string());
        }
        if let Some(scale) = self.cfg {
            add("cfg", scale.to_string());
        }
        if let Some(scale) = self.cfg_2 {
            add("cfg_2", scale.to_string());
        }
        if let Some(rescale) = self.guidance_rescale {
            add("guidance_rescale", rescale.to_string());
        }
        if let Some(pixels) = self.decode_tile {
            add("decode_tile", pixels.to_string());
        }
        if let (Some(frames), Some(fps)) = (self.frames, self.fps) {
            add("frames", frames.to_string());
            add("fps", fps.to_string());
        }
        add("cache", self.cache.to_string());
        if self.cache_dtype != CacheDType::default() {
            add("cache_dtype", self.cache_dtype.to_string());
        }
        if self.compute != ComputeChoice::Fp32 {
            add("compute", self.compute.to_string());
        }
        // One for the whole batch, or one for each of its pictures.
        for (key, branch) in [("decisions", Branch::Cond), ("decisions_uncond", Branch::Uncond)] {
            let mut each = self.decisions_each(branch);
            if !each.is_empty() {
                add(key, each.swap_remove(picture.min(each.len() - 1)));
            }
        }
        add("engine", self.engine.clone());
        add("engine_hash", self.engine_hash.clone());
        text
    }
}
