//! The fields of guidance: whether there are two branches, and what is made of their predictions.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum GuidanceSpec {
    None {},
    /// The scale is an input of the model.
    Embedded {
        default: f64,
    },
    ClassifierFree {
        default: f64,
        mode: CfgMode,
        order: [CfgBranch; 2],
        formula: CfgFormula,
        /// Default of the option; 0 leaves the prediction as it is.
        rescale: f64,
        scale: ScaleCurve,
        /// Whether there is guidance only where a negative prompt is given.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        needs_negative: bool,
    },
}

impl GuidanceSpec {
    /// The scale when none is asked for.
    pub(crate) fn default_scale(&self) -> f64 {
        match self {
            Self::None {} => 1.0,
            Self::Embedded { default } | Self::ClassifierFree { default, .. } => *default,
        }
    }

    /// Both branches run for scales above this one only; below it, too, the prompt alone decides, as in diffusers.
    pub(crate) fn above(&self) -> f32 {
        match self {
            Self::None {} | Self::Embedded { .. } => CfgFormula::Standard.neutral(),
            Self::ClassifierFree { formula, .. } => formula.neutral(),
        }
    }

    /// Whether a negative prompt must be given for both branches to run: it must for the scale of models that have no
    /// classifier-free guidance by themselves.
    pub(crate) fn needs_negative(&self) -> bool {
        match self {
            Self::None {} | Self::Embedded { .. } => true,
            Self::ClassifierFree { needs_negative, .. } => *needs_negative,
        }
    }

    /// The option that asks for both branches, and from where on, for messages.
    pub(crate) fn asked_by(&self) -> String {
        let option = if matches!(self, Self::ClassifierFree { .. }) { "guidance" } else { "true-cfg" };
        format!("the option `{option}` above {}", self.above())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CfgMode {
    /// Two runs a step, each of which decides for itself.
    Separate,
    /// One run over a batch that is twice as long, with one decision.
    Fused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CfgBranch {
    Cond,
    Uncond,
}

/// What is made of both predictions, c and u, with the scale s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CfgFormula {
    /// u + s (c - u).
    Standard,
    /// c + s (c - u).
    Difference,
    /// Standard, then scaled to the length of c along the last axis.
    Renormalised,
    /// k u + s (c - k u), k = <c, u> / <u, u> for each picture.
    ZeroStar,
}

impl CfgFormula {
    /// The scale that gives c, as if there were no guidance.
    pub(crate) fn neutral(self) -> f32 {
        match self {
            Self::Difference => 0.0,
            Self::Standard | Self::Renormalised | Self::ZeroStar => 1.0,
        }
    }
}

/// The guidance scale over the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ScaleCurve {
    Constant,
    /// 1 + s (1 - cos(pi ((steps - timestep) / steps)^5)) / 2.
    Cosine,
}
