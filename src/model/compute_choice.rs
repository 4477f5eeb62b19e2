//! In which dtype a model computes, where the user chooses it.

use std::fmt;
use std::str::FromStr;

use super::manifest::DType;
use crate::error::{Error, Result};

/// In which dtype embed, blocks and final compute, of all transformers of a model.
///
/// A model that was exported in f32 computes in 16 bits as well: its products do, while normalisations, softmax, other
/// reductions, angles and the sums of the streams stay f32, and so does everything between graphs. Text encoders and the
/// decoder stay as exported. One that was exported in 16 bits computes in nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ComputeChoice {
    /// As exported.
    #[default]
    Exported,
    /// f32.
    Fp32,
    /// f16: 11 significant bits, nothing above 65504.
    Fp16,
    /// bf16: f32's range, 8 significant bits.
    Bf16,
}

impl ComputeChoice {
    /// Its texts, in the order of the variants.
    pub const NAMES: [&'static str; 4] = ["exported", "fp32", "fp16", "bf16"];

    /// What was chosen where graphs compute in `dtype`.
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        [Self::Fp32, Self::Fp16, Self::Bf16].into_iter().find(|choice| choice.dtype() == Some(dtype))
    }

    /// None for as exported.
    pub(crate) fn dtype(self) -> Option<DType> {
        match self {
            Self::Exported => None,
            Self::Fp32 => Some(DType::F32),
            Self::Fp16 => Some(DType::F16),
            Self::Bf16 => Some(DType::Bf16),
        }
    }
}

/// As the flags spell it.
impl fmt::Display for ComputeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[*self as usize])
    }
}

impl FromStr for ComputeChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "exported" => Ok(Self::Exported),
            "fp32" => Ok(Self::Fp32),
            "fp16" => Ok(Self::Fp16),
            "bf16" => Ok(Self::Bf16),
            _ => Err(Error::usage(format!(
                "unknown compute dtype `{text}`; expected `exported`, `fp32`, `fp16` or `bf16`"
            ))),
        }
    }
}
