//! Guidance of one request: which branches run, in one batch or one after the other, and what is made of them.
//!
//! When both run is a matter of the original pipeline, and the manifest says it: where the scale is above the one that
//! would give the prompt's own prediction, and for some models where there is a negative prompt as well. Else the prompt
//! alone decides.

use super::inputs::Inputs;
use super::options::GuidanceBy;
use super::options::RequestOptions;
use crate::cache::Branch;
use crate::error::{Error, Result};
use crate::model::manifest::{CfgBranch, CfgFormula, CfgMode, GuidanceSpec, Manifest, ScaleCurve};

/// The scale that the model takes as an input, and how two branches are combined.
pub(crate) struct Guidance {
    pub embedded: Option<f32>,
    pub cfg: Option<Cfg>,
    /// Where the scales do what one may not expect.
    pub warnings: Vec<String>,
}

/// Classifier-free guidance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cfg {
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
    pub(crate) fn by(by: GuidanceBy, manifest: &Manifest, inputs: &Inputs, options: &RequestOptions) -> Result<Self> {
        if by == GuidanceBy::Library {
            return Self::new(manifest, options, inputs.has_negative());
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
        // The host has asked for both branches: by a scale that is not used, whether or not there is a negative prompt.
        let any = Some(manifest.guidance.above() + 1.0);
        let both = if is_classifier_free { (any, None) } else { (scale, any) };
        let asked = RequestOptions { guidance: both.0, true_cfg: both.1, ..options.clone() };
        let Self { embedded, cfg, warnings } = Self::new(manifest, &asked, true)?;
        // A host asks for one branch after the other.
        Ok(Self { embedded, cfg: cfg.map(|cfg| Cfg { mode: CfgMode::Separate, ..cfg }), warnings })
    }

    /// With or without a negative prompt (or its tensors).
    pub(crate) fn new(manifest: &Manifest, options: &RequestOptions, has_negative: bool) -> Result<Self> {
        let given =
            [("guidance", options.guidance), ("guidance-2", options.guidance_2), ("true-cfg", options.true_cfg)];
        for (name, scale) in given {
            if let Some(scale) = scale
                && !scale.is_finite()
            {
                return Err(Error::option(name, format_args!("is {scale}; expected a finite number")));
            }
        }
        let spec = &manifest.guidance;
        if matches!(spec, GuidanceSpec::None {}) && options.guidance.is_some() {
            return Err(Error::option("guidance", "has no effect: this model has no guidance; leave it out"));
        }
        let scale = options.guidance.unwrap_or(spec.default_scale() as f32);
        let scales = [scale, second(manifest, options, scale)?];
        let mut warnings = Vec::new();
        let cfg = match *spec {
            GuidanceSpec::ClassifierFree { mode, order, formula, rescale, scale: curve, .. } => {
                if options.true_cfg.is_some() {
                    return Err(Error::option(
                        "true-cfg",
                        "has no effect: the guidance of this model is classifier-free; use the option `guidance`",
                    ));
                }
                let cond_first = order[0] == CfgBranch::Cond;
                let cfg = Cfg { scales, mode, cond_first, formula, rescale: rescale as f32, curve };
                runs_both(spec, options, scales, has_negative, &mut warnings)?.then_some(cfg)
            }
            GuidanceSpec::None {} | GuidanceSpec::Embedded { .. } => true_cfg(options.true_cfg, has_negative)?,
        };
        let embedded = matches!(spec, GuidanceSpec::Embedded { .. }).then_some(scale);
        Ok(Self { embedded, cfg: rescaled(spec, cfg, options.guidance_rescale)?, warnings })
    }

    /// The branches that decide, each for itself.
    pub(crate) fn branches(&self) -> Vec<Branch> {
        match self.cfg {
            Some(Cfg { mode: CfgMode::Separate, .. }) => vec![Branch::Cond, Branch::Uncond],
            _ => vec![Branch::Cond],
        }
    }

    /// The branches that have texts of their own.
    pub(crate) fn texts(&self) -> Vec<Branch> {
        if self.cfg.is_some() { vec![Branch::Cond, Branch::Uncond] } else { vec![Branch::Cond] }
    }

    pub(crate) fn is_fused(&self) -> bool {
        self.cfg.is_some_and(|cfg| cfg.mode == CfgMode::Fused)
    }

    /// The batch of the transformer for so many pictures.
    pub(crate) fn rows(&self, pictures: usize) -> usize {
        if self.is_fused() { 2 * pictures } else { pictures }
    }
}

impl Cfg {
    /// The scale that a transformer has by itself.
    pub(crate) fn scale(&self, expert: usize) -> f32 {
        self.scales[expert.min(1)]
    }

    /// The scale at a step of a transformer.
    pub(crate) fn scale_at(&self, expert: usize, timestep: f32, steps: usize) -> f32 {
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

/// Whether both branches run, in all steps: the first transformer's scale decides for both.
fn runs_both(
    spec: &GuidanceSpec,
    options: &RequestOptions,
    [scale, second]: [f32; 2],
    has_negative: bool,
    warnings: &mut Vec<String>,
) -> Result<bool> {
    let above = spec.above();
    let asked = [("guidance", options.guidance), ("guidance-2", options.guidance_2)];
    let asked = asked.into_iter().filter_map(|(name, scale)| Some((name, scale?)));
    if scale <= above {
        // 0 and 1 are how one says it.
        warnings.extend(asked.filter(|(_, scale)| ![0.0, 1.0].contains(scale)).map(|(name, scale)| {
            format!("the option `{name}={scale}` is not above {above}, so there is no guidance: the prompt alone decides, as with {above}")
        }));
        return Ok(false);
    }
    if spec.needs_negative() && !has_negative {
        if let Some((name, _)) = asked.into_iter().next() {
            return Err(no_negative(name));
        }
        warnings.push(format!(
            "the prompt alone decides: this model is guided away from a negative prompt only; for its guidance of {scale}, \
             give one (an empty one counts)"
        ));
        return Ok(false);
    }
    if options.guidance_2.is_some() && second < above {
        warnings.push(format!(
            "the option `guidance-2={second}` is below {above}: the second transformer draws towards the negative prompt; {above} \
             takes the prompt alone"
        ));
    }
    Ok(true)
}

/// Classifier-free guidance of a model that does not have it by itself.
fn true_cfg(asked: Option<f32>, has_negative: bool) -> Result<Option<Cfg>> {
    let Some(scale) = asked else { return Ok(None) };
    let formula = CfgFormula::Standard;
    let above = formula.neutral();
    if scale <= above {
        let problem =
            format!("is {scale}, which has no effect: it guides above {above} only; give more, or leave it out");
        return Err(Error::option("true-cfg", problem));
    }
    if !has_negative {
        return Err(no_negative("true-cfg"));
    }
    let (mode, curve) = (CfgMode::Separate, ScaleCurve::Constant);
    Ok(Some(Cfg { scales: [scale; 2], mode, cond_first: true, formula, rescale: 0.0, curve }))
}

fn no_negative(name: &str) -> Error {
    let problem = "has no effect without a negative prompt, away from which this model is guided; give one (an empty one counts) or its \
                   tensors, or leave it out";
    Error::option(name, problem)
}

/// The scale of the second transformer: by default the manifest's, or where the user gave one for the first, the same.
fn second(manifest: &Manifest, options: &RequestOptions, scale: f32) -> Result<f32> {
    let above = manifest.guidance.above();
    let is_classifier_free = matches!(manifest.guidance, GuidanceSpec::ClassifierFree { .. });
    match (manifest.low_noise.as_ref().filter(|_| is_classifier_free), options.guidance_2) {
        (None, Some(_)) => Err(Error::option(
            "guidance-2",
            "has no effect: this model has no second transformer with classifier-free guidance; leave it out",
        )),
        (None, None) => Ok(scale),
        (Some(_), Some(second)) if scale <= above && second > above => Err(Error::option(
            "guidance-2",
            format_args!(
                "has no effect: the first scale decides for both transformers, and it is {scale}; give the option `guidance` above \
                 {above}, or leave it out"
            ),
        )),
        (Some(_), Some(second)) => Ok(second),
        (Some(other), None) => Ok(match other.guidance {
            Some(default) if options.guidance.is_none() => default as f32,
            _ => scale,
        }),
    }
}

fn rescaled(spec: &GuidanceSpec, cfg: Option<Cfg>, asked: Option<f32>) -> Result<Option<Cfg>> {
    let Some(rescale) = asked else { return Ok(cfg) };
    if !(0.0..=1.0).contains(&rescale) {
        return Err(Error::option("guidance-rescale", format_args!("is {rescale}; expected 0 to 1")));
    }
    match cfg {
        Some(cfg) => Ok(Some(Cfg { rescale, ..cfg })),
        None => {
            let and = if spec.needs_negative() { " and a negative prompt" } else { "" };
            let asked = spec.asked_by();
            Err(Error::option(
                "guidance-rescale",
                format_args!("has no effect without classifier-free guidance; give {asked}{and}, or leave it out"),
            ))
        }
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
