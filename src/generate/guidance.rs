//! Guidance of one request: which branches run, in one batch or one after the other, and what is made of them.

use super::denoiser::GuidanceBy;
use super::request::RequestOptions;
use crate::cache::Branch;
use crate::error::{Error, Result};
use crate::model::manifest::{CfgBranch, CfgFormula, CfgMode, GuidanceSpec, Manifest, ScaleCurve};

/// The scale that the model takes as an input, and how two branches are combined.
pub(super) struct Guidance {
    pub embedded: Option<f32>,
    pub cfg: Option<Cfg>,
}

/// Classifier-free guidance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cfg {
    /// Of each transformer, of which a model has one or two.
    scales: [f32; 2],
    pub mode: CfgMode,
    /// Whether a fused batch begins with the cond branch.
    pub cond_first: bool,
    pub formula: CfgFormula,
    /// How far the result is drawn to the spread of the cond prediction, 0 … 1.
    pub rescale: f32,
    curve: ScaleCurve,
}

impl Guidance {
    /// With a scale to combine the branches by, or with both branches for a host that combines them.
    pub(super) fn by(by: GuidanceBy, manifest: &Manifest, options: &RequestOptions) -> Result<Self> {
        if by == GuidanceBy::Library {
            return Self::new(manifest, options);
        }
        let is_classifier_free = matches!(manifest.guidance, GuidanceSpec::ClassifierFree { .. });
        let idle = if is_classifier_free { ("guidance", options.guidance) } else { ("true-cfg", options.true_cfg) };
        let rest = [("guidance-rescale", options.guidance_rescale), ("guidance-2", options.guidance_2)];
        for (name, scale) in [idle].into_iter().chain(rest) {
            if scale.is_some() {
                return Err(Error::option(name, "has no effect: the host combines the branches; leave it out"));
            }
        }
        let scale = (!is_classifier_free).then_some(options.guidance).flatten();
        // Any scale but 1 asks for both branches; it is not used.
        let both = if is_classifier_free { (Some(0.0), None) } else { (scale, Some(0.0)) };
        let asked = RequestOptions { guidance: both.0, true_cfg: both.1, ..options.clone() };
        let Self { embedded, cfg } = Self::new(manifest, &asked)?;
        // A host asks for one branch after the other.
        Ok(Self { embedded, cfg: cfg.map(|cfg| Cfg { mode: CfgMode::Separate, ..cfg }) })
    }

    pub(super) fn new(manifest: &Manifest, options: &RequestOptions) -> Result<Self> {
        let given =
            [("guidance", options.guidance), ("guidance-2", options.guidance_2), ("true-cfg", options.true_cfg)];
        for (name, scale) in given {
            if let Some(scale) = scale
                && !scale.is_finite()
            {
                return Err(Error::option(name, format_args!("is {scale}; expected a finite number")));
            }
        }
        let spec = manifest.guidance;
        if matches!(spec, GuidanceSpec::None {}) && options.guidance.is_some() {
            return Err(Error::option("guidance", "has no effect: this model has no guidance; leave it out"));
        }
        let scale = options.guidance.unwrap_or(spec.default_scale() as f32);
        let separate = |scale| Cfg {
            scales: [scale; 2],
            mode: CfgMode::Separate,
            cond_first: true,
            formula: CfgFormula::Standard,
            rescale: 0.0,
            curve: ScaleCurve::Constant,
        };
        let cfg = match spec {
            GuidanceSpec::ClassifierFree { mode, order, formula, rescale, scale: curve, .. } => {
                if options.true_cfg.is_some() {
                    return Err(Error::option(
                        "true-cfg",
                        "has no effect: the guidance of this model is classifier-free; use --guidance",
                    ));
                }
                let cond_first = order[0] == CfgBranch::Cond;
                Some(Cfg {
                    scales: [scale, second(manifest, options, scale)?],
                    mode,
                    cond_first,
                    formula,
                    rescale: rescale as f32,
                    curve,
                })
            }
            GuidanceSpec::None {} | GuidanceSpec::Embedded { .. } => {
                second(manifest, options, scale)?;
                options.true_cfg.map(separate)
            }
        };
        let cfg = cfg.filter(Cfg::needs_both);
        let embedded = matches!(spec, GuidanceSpec::Embedded { .. }).then_some(scale);
        Ok(Self { embedded, cfg: rescaled(cfg, options.guidance_rescale)? })
    }

    /// The branches that decide, each for itself.
    pub(super) fn branches(&self) -> Vec<Branch> {
        match self.cfg {
            Some(Cfg { mode: CfgMode::Separate, .. }) => vec![Branch::Cond, Branch::Uncond],
            _ => vec![Branch::Cond],
        }
    }

    /// The branches that have texts of their own.
    pub(super) fn texts(&self) -> Vec<Branch> {
        if self.cfg.is_some() { vec![Branch::Cond, Branch::Uncond] } else { vec![Branch::Cond] }
    }

    pub(super) fn is_fused(&self) -> bool {
        self.cfg.is_some_and(|cfg| cfg.mode == CfgMode::Fused)
    }

    /// The batch of the transformer for so many pictures.
    pub(super) fn rows(&self, pictures: usize) -> usize {
        if self.is_fused() { 2 * pictures } else { pictures }
    }
}

impl Cfg {
    /// Whether the uncond branch matters: it cancels out with one scale.
    fn needs_both(&self) -> bool {
        let idle = if self.formula == CfgFormula::Difference { 0.0 } else { 1.0 };
        self.curve == ScaleCurve::Cosine || self.scales.iter().any(|scale| *scale != idle)
    }

    /// The scale that a transformer has by itself.
    pub(super) fn scale(&self, expert: usize) -> f32 {
        self.scales[expert.min(1)]
    }

    /// The scale at a step of a transformer.
    pub(super) fn scale_at(&self, expert: usize, timestep: f32, steps: usize) -> f32 {
        let scale = self.scale(expert);
        match self.curve {
            ScaleCurve::Constant => scale,
            ScaleCurve::Cosine => {
                let steps = steps as f64;
                let phase = ((steps - f64::from(timestep)) / steps).powi(5);
                (1.0 + f64::from(scale) * (1.0 - (std::f64::consts::PI * phase).cos()) / 2.0) as f32
            }
        }
    }
}

/// The scale of the second transformer: by default the manifest's, or where the user gave one for the first, the same.
fn second(manifest: &Manifest, options: &RequestOptions, scale: f32) -> Result<f32> {
    let is_classifier_free = matches!(manifest.guidance, GuidanceSpec::ClassifierFree { .. });
    match (manifest.low_noise.as_ref().filter(|_| is_classifier_free), options.guidance_2) {
        (None, Some(_)) => Err(Error::option(
            "guidance-2",
            "has no effect: this model has no second transformer with classifier-free guidance; leave it out",
        )),
        (None, None) => Ok(scale),
        (Some(_), Some(second)) => Ok(second),
        (Some(other), None) => Ok(match other.guidance {
            Some(default) if options.guidance.is_none() => default as f32,
            _ => scale,
        }),
    }
}

fn rescaled(cfg: Option<Cfg>, asked: Option<f32>) -> Result<Option<Cfg>> {
    let Some(rescale) = asked else { return Ok(cfg) };
    if !(0.0..=1.0).contains(&rescale) {
        return Err(Error::option("guidance-rescale", format_args!("is {rescale}; expected 0 to 1")));
    }
    match cfg {
        Some(cfg) => Ok(Some(Cfg { rescale, ..cfg })),
        None => Err(Error::option(
            "guidance-rescale",
            "has no effect without classifier-free guidance; give a --guidance (or --true-cfg) other than 1, or leave it out",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cosine_scale_follows_its_formula() {
        let cfg = Cfg {
            scales: [6.0, 1.0],
            mode: CfgMode::Fused,
            cond_first: false,
            formula: CfgFormula::Standard,
            rescale: 0.0,
            curve: ScaleCurve::Cosine,
        };
        // Of `1 + 6 * (1 - math.cos(math.pi * ((50 - t) / 50) ** 5.0)) / 2` in Python.
        for (timestep, expected) in [(999.0, PYTHON[0]), (50.0, 1.0), (25.0, PYTHON[1]), (0.0, 7.0)] {
            assert!((f64::from(cfg.scale_at(0, timestep, 50)) - expected).abs() < 1e-5, "{timestep}");
        }
    }

    const PYTHON: [f64; 2] = [2.291_487_174_551_452, 1.014_445_819_983_409];
}
