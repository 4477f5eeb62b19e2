//! In which dtype a model computes, where the user chooses it.

use super::manifest::DType;
use crate::words::words;

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

words!(ComputeChoice, "compute dtype", { Exported = "exported", Fp32 = "fp32", Fp16 = "fp16", Bf16 = "bf16" });

impl ComputeChoice {
    /// What was chosen where graphs compute in `dtype`.
    pub(crate) fn of(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::Fp32,
            DType::F16 => Self::Fp16,
            DType::Bf16 => Self::Bf16,
            // The rules of a manifest refuse a model that computes in whole numbers.
            DType::I64 => Self::Exported,
        }
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
