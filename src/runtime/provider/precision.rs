//! In which dtype graphs compute: `--compute` says so, here or at export, and no provider changes it in silence.

use super::kind::ProviderKind;
use super::spec::ProviderSpec;
use crate::error::{Error, Result};
use crate::model::manifest::DType;

/// Options of TensorRT 10 that allow other kernels in graphs exported as f32.
const OF_F32: [&str; 2] = ["fp16", "bf16"];
const INT8: &str = "int8";

impl ProviderKind {
    /// Whether graphs may begin and end in bf16. TensorRT computes in it, but its plugin refuses it there, and its wrapper of
    /// engines has no name for it.
    pub(crate) fn takes_bf16_ports(self) -> bool {
        self != Self::TensorRt
    }

    /// Whether the operator `Attention` may say in which dtype its softmax runs. TensorRT's parsers refuse the attribute.
    pub(crate) fn takes_softmax_precision(self) -> bool {
        !matches!(self, Self::TensorRt | Self::TensorRtRtx)
    }

    /// Refuses a dtype in which this provider does not compute; `is_cast` says whether the engine casts its graphs to it.
    ///
    /// # Errors
    /// `Usage` with what to take instead.
    pub(crate) fn check_dtype(self, dtype: DType, is_cast: bool) -> Result<()> {
        let problem = match (self, dtype) {
            // No product in it: `NOT_IMPLEMENTED`, from the first graph that is loaded.
            (Self::Cpu | Self::WebGpu, DType::Bf16) => {
                let remedy = if is_cast {
                    "leave it out, or take the option `compute=fp16` or another provider"
                } else {
                    "this model was exported in it: take another provider, or export it with `dbcache-export --compute fp32`"
                };
                format!("bf16 cannot run on the provider `{self}`, which has no products in it; {remedy}")
            }
            // Graphs in f16 give what those in f32 do, to the last digit.
            (Self::OpenVino, DType::F16 | DType::Bf16) if is_cast => {
                let name = if dtype == DType::F16 { "fp16" } else { "bf16" };
                format!(
                    "{name} does not decide on the provider `{self}`, which computes in a precision of its own whatever its \
                     graphs say; leave it out, and ask for it by the option `provider={self}:precision={name}`"
                )
            }
            _ => return Ok(()),
        };
        Err(Error::option("compute", problem))
    }
}

impl ProviderSpec {
    /// Refuses a precision that has no effect on graphs that compute in `dtype`; `is_quantised` says whether they quantise.
    ///
    /// # Errors
    /// `Usage` with the exporter's flag.
    pub(crate) fn check_precision(&self, dtype: DType, is_quantised: impl FnOnce() -> bool) -> Result<()> {
        if self.kind() != ProviderKind::TensorRt {
            return Ok(());
        }
        let refuse = |option: &str, reason: String| {
            Err(Error::option("provider", format!("{}: `{option}` has no effect: {reason}", self.kind())))
        };
        if let Some(option) = OF_F32.iter().find(|option| self.is_on(option) && dtype != DType::F32) {
            let computes = dtype.name();
            let is_met = *option == if dtype == DType::F16 { "fp16" } else { "bf16" };
            let other = if is_met {
                String::new()
            } else {
                format!(", or choose the option `compute={option}`, of a model exported in fp32 or of dbcache-export")
            };
            let reason =
                format!("this engine's graphs compute in {computes}, and carry their types; leave it out{other}");
            return refuse(option, reason);
        }
        if self.is_on(INT8) && !is_quantised() {
            let reason = "no graph of this engine quantises, and the exporter writes none that does; leave it out";
            return refuse(INT8, reason.to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_precision_that_has_no_effect_is_refused() {
        for (spec, dtype, is_quantised, words) in [
            ("tensorrt:fp16", DType::F32, false, None),
            ("tensorrt:fp16,bf16", DType::F32, false, None),
            ("tensorrt:fp16=off", DType::F16, false, None),
            ("tensorrt", DType::Bf16, false, None),
            ("tensorrt:int8", DType::F32, true, None),
            ("cuda", DType::Bf16, false, None),
            (
                "tensorrt:fp16",
                DType::F16,
                false,
                Some("`fp16` has no effect: this engine's graphs compute in f16, and carry their types; leave it out"),
            ),
            ("tensorrt:bf16", DType::Bf16, false, Some("compute in bf16, and carry their types; leave it out")),
            (
                "tensorrt:fp16",
                DType::Bf16,
                false,
                Some("the option `compute=fp16`, of a model exported in fp32 or of dbcache-export"),
            ),
            (
                "tensorrt:bf16",
                DType::F16,
                false,
                Some("the option `compute=bf16`, of a model exported in fp32 or of dbcache-export"),
            ),
            ("tensorrt:int8", DType::F32, false, Some("none that does; leave it out")),
        ] {
            let spec: ProviderSpec = spec.parse().unwrap();
            match (spec.check_precision(dtype, || is_quantised), words) {
                (Ok(()), None) => {}
                (Err(error), Some(words)) => assert!(error.to_string().ends_with(words), "{spec}: {error}"),
                (found, _) => panic!("{spec}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_dtype_in_which_a_provider_does_not_compute_is_refused() {
        use DType::{Bf16, F16, F32};
        for kind in ProviderKind::ALL {
            for (dtype, is_cast) in [(F32, false), (F16, false), (F16, true), (Bf16, false), (Bf16, true)] {
                let words = match (kind, dtype, is_cast) {
                    (ProviderKind::Cpu, Bf16, true) => {
                        "`cpu`, which has no products in it; leave it out, or take the option `compute=fp16`"
                    }
                    (ProviderKind::Cpu, Bf16, false) => {
                        "`cpu`, which has no products in it; this model was exported in it"
                    }
                    (ProviderKind::WebGpu, Bf16, true) => "`webgpu`, which has no products in it; leave it out",
                    (ProviderKind::WebGpu, Bf16, false) => "or export it with `dbcache-export --compute fp32`",
                    (ProviderKind::OpenVino, F16, true) => {
                        "ask for it by the option `provider=openvino:precision=fp16`"
                    }
                    (ProviderKind::OpenVino, Bf16, true) => {
                        "ask for it by the option `provider=openvino:precision=bf16`"
                    }
                    _ => "",
                };
                match kind.check_dtype(dtype, is_cast) {
                    Ok(()) => assert_eq!(words, "", "{kind} {dtype:?}"),
                    Err(error) => {
                        assert_eq!(error.field(), Some("compute"));
                        assert!(!words.is_empty() && error.to_string().contains(words), "{error}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_precision_that_a_provider_does_not_know_names_the_option() {
        for spec in ["cuda:fp16", "cpu:bf16", "webgpu:precision=fp16", "openvino:fp16", "tensorrt:precision=bf16"] {
            let error = spec.parse::<ProviderSpec>().unwrap_err().to_string();
            assert!(error.contains("is chosen by the option `compute` (fp32, fp16 or bf16)"), "{error}");
        }
        let error = "cuda:streem=own".parse::<ProviderSpec>().unwrap_err().to_string();
        assert!(!error.contains("`compute`"), "{error}");
    }
}
