//! Steps-computation masks: one digit a step, 1 = compute, 0 = may skip.
//!
//! A mask is written out (`110100`) or named (`fast`); a name becomes digits when the number of steps is known.
//! The named masks are those of cache-dit 1.5.3: bins of computed and skipped steps in turn, fitted to the run.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::words::words;

/// Which steps must be computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepsMask {
    /// Digits, one for each step of the run: `true` (1) computes it, `false` (0) lets the policy skip it.
    Steps(Vec<bool>),
    /// A named mask, which exists for 4, 6, 8 and more steps.
    Preset(MaskPreset),
}

/// What a 0 in the mask means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StepsPolicy {
    /// The other options decide, as if there were no mask.
    #[default]
    Dynamic,
    /// The step is skipped, whatever the threshold and the limits say; no diff is computed.
    Static,
}

/// The named masks, from the one that computes most to the one that computes least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskPreset {
    /// Computes 18 of 28 steps.
    Slow,
    /// Computes 15 of 28 steps.
    Medium,
    /// Computes 11 of 28 steps.
    Fast,
    /// Computes 8 of 28 steps.
    Ultra,
}

impl StepsMask {
    /// The digits for a run of `steps` steps.
    ///
    /// # Errors
    /// `Usage` if the mask has another length, or if the preset does not exist for so few steps.
    pub fn resolve(&self, steps: usize) -> Result<Vec<bool>> {
        match self {
            Self::Preset(preset) => preset.mask(steps),
            Self::Steps(mask) if mask.len() == steps => Ok(mask.clone()),
            Self::Steps(mask) => Err(Error::usage(format!(
                "steps_computation_mask has {} digits, the run has {steps} steps; write one digit for each step \
                 (a missing digit would count as 0), or name a preset: slow, medium, fast, ultra",
                mask.len()
            ))),
        }
    }
}

impl fmt::Display for StepsMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steps(mask) => mask.iter().try_for_each(|&compute| f.write_str(if compute { "1" } else { "0" })),
            Self::Preset(preset) => f.write_str(preset.as_str()),
        }
    }
}

impl FromStr for StepsMask {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if !text.is_empty() && text.bytes().all(|digit| digit == b'0' || digit == b'1') {
            return Ok(Self::Steps(text.bytes().map(|digit| digit == b'1').collect()));
        }
        let preset = MaskPreset::ALL.into_iter().find(|preset| preset.as_str().eq_ignore_ascii_case(text));
        preset.map(Self::Preset).ok_or_else(|| {
            Error::usage(format!(
                "unknown steps_computation_mask `{text}`; expected digits 1 (compute) and 0 (may skip), or slow, \
                 medium, fast, ultra"
            ))
        })
    }
}

words!(StepsPolicy, "steps_computation_policy", { Dynamic = "dynamic", Static = "static" });

words!(MaskPreset, "mask", { Slow = "slow", Medium = "medium", Fast = "fast", Ultra = "ultra" });

impl MaskPreset {
    /// The digits for a run of `steps` steps. The first and the last step are always computed.
    ///
    /// # Errors
    /// `Usage` for fewer than 8 steps, except 4 and 6.
    pub fn mask(self, steps: usize) -> Result<Vec<bool>> {
        let mut bins = Bins::of(self, steps).ok_or_else(|| {
            Error::usage(format!(
                "the steps_computation_mask `{}` does not exist for {steps} steps, only for 4, 6, 8 and more; write \
                 the digits out, for example {}",
                self.as_str(),
                if steps < 4 { "1".repeat(steps.max(1)) } else { format!("11{}1", "0".repeat(steps - 3)) }
            ))
        })?;
        bins.grow_to(steps);
        bins.shrink_to(steps);
        Ok(bins.digits())
    }
}

/// Lengths of the runs of computed and of skipped steps, which take turns; a computed run comes first.
struct Bins {
    compute: Vec<usize>,
    cache: Vec<usize>,
}

/// The longest run for which the bins of the reference are written down; longer runs scale them.
const LONGEST_TABLE: usize = 28;

impl Bins {
    /// The reference's tables.
    fn of(preset: MaskPreset, steps: usize) -> Option<Self> {
        use MaskPreset::{Fast, Medium, Slow, Ultra};
        let (compute, cache): (&[usize], &[usize]) = match (steps, preset) {
            (4, _) => (&[2, 1], &[1]),
            (6, _) => (&[3, 1], &[2]),
            (..8, _) => return None,
            (8, Slow) => (&[5, 1, 1], &[1]),
            (8, Medium) => (&[4, 1, 1], &[1, 1]),
            (8, Fast) => (&[3, 1, 1], &[1, 2]),
            (8, Ultra) => (&[2, 1, 1], &[2, 2]),
            (9, Slow) => (&[5, 2, 1], &[1]),
            (9, Medium) => (&[5, 1, 1], &[1, 1]),
            (9, Fast) => (&[4, 1, 1], &[1, 2]),
            (9, Ultra) => (&[3, 1, 1], &[2, 2]),
            (..16, Slow) => (&[4, 2, 2, 2, 1], &[1, 1, 1, 1]),
            (..16, Medium) => (&[4, 2, 1, 1, 1], &[1, 1, 2, 2]),
            (..16, Fast) => (&[3, 1, 1, 1, 1], &[1, 2, 2, 3]),
            (..16, Ultra) => (&[2, 1, 1, 1, 1], &[1, 2, 3, 3]),
            (_, Slow) => (&[8, 3, 3, 2, 1, 1], &[1, 2, 2, 2, 3]),
            (_, Medium) => (&[6, 2, 2, 2, 2, 1], &[1, 3, 3, 3, 3]),
            (_, Fast) => (&[6, 1, 1, 1, 1, 1], &[1, 3, 4, 5, 4]),
            (_, Ultra) => (&[4, 1, 1, 1, 1], &[2, 5, 6, 7]),
        };
        Some(Self { compute: compute.to_vec(), cache: cache.to_vec() })
    }

    fn sum(&self) -> usize {
        self.compute.iter().chain(&self.cache).sum()
    }

    /// Lengthens the bins in proportion, one after the other, until they cover a run that is longer than the table.
    fn grow_to(&mut self, steps: usize) {
        if steps <= LONGEST_TABLE {
            return;
        }
        // In f64 and in this order, as the reference computes it: the result is rounded down.
        let scale = steps as f64 / LONGEST_TABLE as f64 * 0.5;
        let grown = |bin: usize| ((bin as f64 * scale) as usize).max(1);
        let (compute, cache) = (self.compute.clone(), self.cache.clone());
        while self.sum() < steps {
            for i in 0..compute.len().min(cache.len()) {
                self.compute[i] += grown(compute[i]);
                if self.sum() >= steps {
                    return;
                }
                self.cache[i] += grown(cache[i]);
                if self.sum() >= steps {
                    return;
                }
            }
            if let Some(last) = self.compute.last_mut() {
                *last += 1;
            }
        }
    }

    /// Takes steps off the ends of both lists in turn; a bin of 0 steps disappears.
    fn shrink_to(&mut self, steps: usize) {
        let shorten = |bins: &mut Vec<usize>| {
            if let Some(last) = bins.last_mut() {
                *last -= 1;
            }
            if bins.last() == Some(&0) {
                bins.pop();
            }
        };
        while self.sum() > steps {
            shorten(&mut self.cache);
            if self.sum() > steps {
                shorten(&mut self.compute);
            }
        }
    }

    fn digits(&self) -> Vec<bool> {
        let mut mask = Vec::with_capacity(self.sum());
        for i in 0..self.compute.len().max(self.cache.len()) {
            mask.extend(std::iter::repeat_n(true, self.compute.get(i).copied().unwrap_or(0)));
            mask.extend(std::iter::repeat_n(false, self.cache.get(i).copied().unwrap_or(0)));
        }
        if let Some(last) = mask.last_mut() {
            *last = true;
        }
        mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every mask of cache-dit 1.5.3 for 4, 6 and 8 to 50 steps.
    const REFERENCE: &str = include_str!("../../tests/data/reference/steps_masks.json");

    #[test]
    fn presets_are_those_of_the_reference() -> Result<(), Box<dyn std::error::Error>> {
        let table: std::collections::BTreeMap<String, String> = serde_json::from_str(REFERENCE)?;
        assert_eq!(table.len(), 4 * (2 + 43));
        for (name, digits) in table {
            let (steps, preset) = name.split_once('.').ok_or("a name is `steps.preset`")?;
            let mask = preset.parse::<StepsMask>()?.resolve(steps.parse()?)?;
            assert_eq!(StepsMask::Steps(mask).to_string(), digits, "{name}");
        }
        Ok(())
    }

    #[test]
    fn presets_compute_first_and_last_step_of_any_run() -> Result<()> {
        for preset in MaskPreset::ALL {
            for steps in 8..300 {
                let mask = preset.mask(steps)?;
                assert_eq!(mask.len(), steps, "{preset:?} {steps}");
                assert!(mask[0] && mask[steps - 1], "{preset:?} {steps}");
            }
        }
        Ok(())
    }

    #[test]
    fn refusals_say_what_would_work() {
        let error = |result: Result<Vec<bool>>| result.err().map(|error| error.to_string()).unwrap_or_default();
        for steps in [0, 1, 2, 3, 5, 7] {
            let error = error(MaskPreset::Fast.mask(steps));
            assert!(error.contains("only for 4, 6, 8 and more"), "{error}");
        }
        let error = error(StepsMask::Steps(vec![true; 4]).resolve(5));
        assert!(error.contains("has 4 digits, the run has 5 steps"), "{error}");
        for text in ["", "12", "quick"] {
            assert!(text.parse::<StepsMask>().is_err(), "{text}");
        }
    }
}
