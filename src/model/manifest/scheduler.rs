//! The fields of the scheduler: noise levels, solvers, and how steps are spaced.

use serde::{Deserialize, Serialize};

use super::given;

/// The highest order of UniPC; the numbers of a higher one are lost in rounding, in the original as well.
pub(crate) const MAX_ORDER: u8 = 7;

/// Fields with a default are written only where they differ from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum SchedulerSpec {
    FlowMatchEuler {
        sigmas: BaseSigmas,
        shift: Shift,
        #[serde(deserialize_with = "given")]
        shift_terminal: Option<f64>,
        /// Sigma counts from 0 (noise) to 1 (picture).
        inverted: bool,
        /// The timestep of sigma 1.
        #[serde(default = "flow_timesteps", skip_serializing_if = "is_flow_timesteps")]
        train_steps: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spread: Option<Spread>,
        /// Each step goes all the way to the sample, and adds new noise to it.
        #[serde(default, skip_serializing_if = "is_false")]
        stochastic: bool,
    },
    /// Deterministic DDIM.
    Ddim { betas: Betas, spacing: Spacing, offset: u64, last_alpha: LastAlpha },
    /// DPM-Solver++ SDE of second order, on DDIM's grid of timesteps.
    DpmSde { betas: Betas, spacing: Spacing, offset: u64, last_alpha: LastAlpha },
    /// DPM-Solver, multistep.
    DpmSolver {
        noise: Noise,
        spacing: Spacing,
        offset: u64,
        karras: bool,
        order: u8,
        solver: DpmSolverKind,
        lower_order_final: bool,
        euler_at_final: bool,
        last_sigma: LastSigma,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spread: Option<Spread>,
        #[serde(default, skip_serializing_if = "DpmAlgorithm::is_default")]
        algorithm: DpmAlgorithm,
        /// How many timesteps of the training are used; null is all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        used_timesteps: Option<u64>,
    },
    /// UniPC, multistep with a corrector.
    Unipc {
        noise: Noise,
        spacing: Spacing,
        offset: u64,
        karras: bool,
        order: u8,
        solver: UnipcKind,
        lower_order_final: bool,
        last_sigma: LastSigma,
        /// Steps after which the corrector does not run.
        disable_corrector: Vec<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spread: Option<Spread>,
        /// The solver works on the noise, not on the sample.
        #[serde(default, skip_serializing_if = "is_false")]
        over_noise: bool,
    },
}

impl SchedulerSpec {
    /// Whether x = (1 - sigma) x0 + sigma noise.
    pub(crate) fn is_flow(&self) -> bool {
        match self {
            Self::FlowMatchEuler { .. } => true,
            Self::DpmSolver { noise, .. } | Self::Unipc { noise, .. } => !matches!(noise, Noise::Betas(_)),
            Self::Ddim { .. } | Self::DpmSde { .. } => false,
        }
    }

    /// The timestep of flow matching's sigma 1.
    pub(crate) fn flow_timesteps(&self) -> u64 {
        match self {
            Self::FlowMatchEuler { train_steps, .. } => *train_steps,
            Self::DpmSolver { noise, .. } | Self::Unipc { noise, .. } => match noise {
                Noise::Flow { train_steps, .. } => *train_steps,
                Noise::Betas(betas) | Noise::FlowOfBetas { betas, .. } => betas.train_steps,
            },
            Self::Ddim { betas, .. } | Self::DpmSde { betas, .. } => betas.train_steps,
        }
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// Flow matching calls sigma 1 the timestep 1000.
fn flow_timesteps() -> u64 {
    1000
}

fn is_flow_timesteps(train_steps: &u64) -> bool {
    *train_steps == flow_timesteps()
}

/// Noise levels that are spaced anew, from the largest to the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spread {
    pub kind: SpreadKind,
    /// Null is the smallest that there is.
    #[serde(deserialize_with = "given")]
    pub smallest: Option<f64>,
    /// Null is the largest that there is.
    #[serde(deserialize_with = "given")]
    pub largest: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SpreadKind {
    /// Evenly in the seventh root.
    Karras,
    /// Evenly in the logarithm.
    Exponential,
    /// As `exponential`; timesteps are rounded as those of `karras`.
    Lambda,
}

/// What DPM-Solver integrates, and whether it adds noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DpmAlgorithm {
    /// The noise.
    #[serde(rename = "dpmsolver")]
    Noise,
    /// The sample.
    #[default]
    #[serde(rename = "dpmsolver++")]
    Sample,
    #[serde(rename = "sde-dpmsolver")]
    StochasticNoise,
    #[serde(rename = "sde-dpmsolver++")]
    StochasticSample,
}

impl DpmAlgorithm {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The original has no third order of the noise's equation with noise.
    pub(crate) fn max_order(self) -> u8 {
        if self == Self::StochasticNoise { 2 } else { 3 }
    }

    pub(crate) fn is_over_noise(self) -> bool {
        matches!(self, Self::Noise | Self::StochasticNoise)
    }
}

/// Sigmas before any shift.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum BaseSigmas {
    /// Evenly from 1 to `last`, or to 1 / steps.
    Linear {
        #[serde(deserialize_with = "given")]
        last: Option<f64>,
    },
    /// The first half evenly over `threshold`, the other half along a parabola.
    LinearQuadratic { threshold: f64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Shift {
    None {},
    Static {
        shift: f64,
    },
    Dynamic {
        base_tokens: f64,
        max_tokens: f64,
        base_shift: f64,
        max_shift: f64,
        time_shift: TimeShift,
    },
    /// mu is linear in the tokens on two lines `[slope, offset, steps]`, and linear in the steps between these; beyond
    /// `max_tokens` it lies on the second line.
    DynamicSteps {
        lines: [[f64; 3]; 2],
        max_tokens: u64,
        time_shift: TimeShift,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TimeShift {
    Exponential,
    Linear,
}

/// How much noise each timestep of the training has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Noise {
    Betas(Betas),
    /// x = (1 - sigma) x0 + sigma noise, with shifted sigmas.
    Flow {
        shift: FlowShift,
        train_steps: u64,
        /// Null: evenly over the timesteps of the training.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sigmas: Option<BaseSigmas>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shift_terminal: Option<f64>,
    },
    /// x = (1 - sigma) x0 + sigma noise, with a spread of the betas' noise-to-signal ratios r for sigmas.
    FlowOfBetas {
        betas: Betas,
        /// Sigma is r / (1 + r), and its timestep follows from that.
        divided: bool,
    },
}

/// A static shift by its number, or any.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum FlowShift {
    Static(f64),
    Other(Shift),
}

impl FlowShift {
    pub(crate) fn shift(self) -> Shift {
        match self {
            Self::Static(shift) => Shift::Static { shift },
            Self::Other(shift) => shift,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Betas {
    pub schedule: BetaSchedule,
    pub start: f64,
    pub end: f64,
    pub train_steps: u64,
    /// a ← a / (snr_shift + (1 - snr_shift) a).
    pub snr_shift: f64,
    /// The last timestep of the training is all noise.
    pub zero_snr: bool,
    /// Each beta, in place of what `schedule`, `start` and `end` say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained: Option<Vec<f64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BetaSchedule {
    Linear,
    /// Linear in the square root.
    ScaledLinear,
    SquaredcosCapV2,
}

/// Which timesteps of the training a run uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Spacing {
    Linspace,
    Leading,
    Trailing,
}

/// The share of the sample after the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LastAlpha {
    One,
    First,
}

/// The noise after the last step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LastSigma {
    Zero,
    /// That of the training's first timestep; where sigmas are a flow's, or UniPC's are spread, that of the last step.
    Min,
    Value(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DpmSolverKind {
    Midpoint,
    Heun,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum UnipcKind {
    Bh1,
    Bh2,
}
