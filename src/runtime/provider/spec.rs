//! Which provider runs the graphs, and how: `tensorrt:device=0,fp16,workspace=4G`, or a list of them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::kind::ProviderKind;
use super::options::Value;
use super::unknown::{find, names, unknown_provider};
use super::{cuda, openvino, tensorrt};
use crate::error::{Error, Result};

/// One provider with its options.
///
/// ```
/// use dbcache_trt::ProviderSpec;
///
/// let spec: ProviderSpec = "tensorrt:workspace=4096M,device=0,fp16=on".parse()?;
/// assert_eq!(spec.to_string(), "tensorrt:device=0,fp16,workspace=4G");
/// # Ok::<(), dbcache_trt::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProviderSpec {
    kind: ProviderKind,
    /// By the option's place in the table of its kind.
    values: BTreeMap<usize, Value>,
}

impl ProviderSpec {
    /// A provider with all its defaults.
    pub fn new(kind: ProviderKind) -> Self {
        Self { kind, values: BTreeMap::new() }
    }

    /// Which provider.
    pub fn kind(&self) -> ProviderKind {
        self.kind
    }

    /// Sets an option; `value` is none for a flag that is on.
    ///
    /// # Errors
    /// `Usage` for an option that this provider does not have (with the nearest that it has), one that is set already, or a
    /// value out of bounds.
    pub fn with(mut self, option: &str, value: Option<&str>) -> Result<Self> {
        let name = self.kind.as_str();
        let defs = self.kind.defs();
        let index = find(self.kind, option)?;
        let value = defs[index].parse(name, value)?;
        if self.values.insert(index, value).is_some() {
            return Err(Error::usage(format!(
                "the option `provider={name}`: `{option}` is given twice; leave one out"
            )));
        }
        Ok(self)
    }

    /// An option's value as ONNX Runtime reads it; `None` if it was not set.
    pub(super) fn raw(&self, option: &str) -> Option<String> {
        let defs = self.kind.defs();
        let index = defs.iter().position(|def| def.name == option)?;
        self.values.get(&index).map(|value| defs[index].raw(value))
    }

    /// OpenVINO's name of the device.
    pub(super) fn openvino_device(&self) -> String {
        self.raw(openvino::DEVICE).unwrap_or_else(|| "CPU".to_owned())
    }

    /// Whether runs that stay on the device do not wait for their end.
    pub(super) fn is_async(&self) -> bool {
        self.is_on(cuda::ASYNC.name)
    }

    /// Whether all sessions of the process share one stream.
    pub(super) fn shares_stream(&self) -> bool {
        let is_cuda = matches!(self.kind, ProviderKind::Cuda | ProviderKind::TensorRt);
        is_cuda && self.raw(cuda::STREAM.name).is_none_or(|stream| stream == cuda::SHARED)
    }

    pub(super) fn is_on(&self, option: &str) -> bool {
        self.raw(option).is_some_and(|value| value == "1")
    }

    /// The keys and values that reach ONNX Runtime, each key once, in a fixed order.
    pub(crate) fn pairs(&self) -> Vec<(String, String)> {
        let fixed = match self.kind {
            ProviderKind::Cuda => cuda::FIXED,
            ProviderKind::OpenVino => openvino::FIXED,
            ProviderKind::Cpu | ProviderKind::TensorRt | ProviderKind::TensorRtRtx | ProviderKind::WebGpu => &[],
        };
        let mut pairs: BTreeMap<String, String> =
            fixed.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let defs = self.kind.defs();
        for (index, value) in &self.values {
            if let Some(key) = defs[*index].key {
                pairs.insert(key.to_owned(), defs[*index].raw(value));
            }
        }
        if self.kind == ProviderKind::TensorRt {
            for (option, switch) in tensorrt::IMPLIED {
                if self.raw(option).is_some() {
                    pairs.insert((*switch).to_owned(), "1".to_owned());
                }
            }
            // Normalisation overflows in 16 bits: the builder itself warns of it.
            if ["fp16", "bf16"].iter().any(|precision| self.is_on(precision)) {
                pairs.entry("trt_layer_norm_fp32_fallback".to_owned()).or_insert_with(|| "1".to_owned());
            }
        }
        let pairs = pairs.into_iter().collect();
        match self.kind {
            ProviderKind::OpenVino => vec![openvino::load_config(&self.openvino_device(), pairs)],
            _ => pairs,
        }
    }
}

/// As it is parsed, options in the order of `dbcache-trt providers`.
impl fmt::Display for ProviderSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_str())?;
        let defs = self.kind.defs();
        for (place, (index, value)) in self.values.iter().enumerate() {
            let separator = if place == 0 { ':' } else { ',' };
            write!(f, "{separator}{}", defs[*index].print(value))?;
        }
        Ok(())
    }
}

impl FromStr for ProviderSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut list = text.parse::<Providers>()?.0;
        match (list.pop(), list.is_empty()) {
            (Some(spec), true) => Ok(spec),
            _ => Err(Error::usage(format!("`{text}` is a list of providers; expected one"))),
        }
    }
}

/// Providers in the order in which they are tried: the first that can be used for all graphs runs them all.
///
/// In text, `tensorrt:fp16,device=1,cuda:device=1` are two: a word that is a provider's name begins the next one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Providers(Vec<ProviderSpec>);

impl Providers {
    /// Providers in the order in which they are tried.
    ///
    /// # Errors
    /// `Usage` for an empty list, or a kind that is named twice.
    pub fn new(list: Vec<ProviderSpec>) -> Result<Self> {
        if list.is_empty() {
            return Err(Error::usage(format!("no provider; expected one of {}", names())));
        }
        for (place, spec) in list.iter().enumerate() {
            if list[..place].iter().any(|other| other.kind == spec.kind) {
                return Err(Error::usage(format!(
                    "the option `provider`: `{}` is named twice; leave one out",
                    spec.kind
                )));
            }
            if spec.is_async() && !spec.shares_stream() {
                return Err(Error::option(
                    "provider",
                    format!(
                        "{}: `async` goes with one stream for all sessions only; leave out `stream=own`",
                        spec.kind
                    ),
                ));
            }
            if spec.kind == ProviderKind::Cpu && place + 1 < list.len() {
                return Err(Error::usage(
                    "the option `provider`: what follows `cpu` has no effect, since `cpu` never fails",
                ));
            }
        }
        Ok(Self(list))
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &ProviderSpec> {
        self.0.iter()
    }
}

impl Default for Providers {
    fn default() -> Self {
        Self(vec![ProviderSpec::default()])
    }
}

impl From<ProviderSpec> for Providers {
    fn from(spec: ProviderSpec) -> Self {
        Self(vec![spec])
    }
}

impl fmt::Display for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&list.join(","))
    }
}

impl FromStr for Providers {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut list: Vec<ProviderSpec> = Vec::new();
        for word in text.split(',') {
            let (head, first) = word.split_once(':').map_or((word, None), |(head, first)| (head, Some(first)));
            // A colon after a `=` belongs to a path.
            let begins = !head.contains('=') && (first.is_some() || head.parse::<ProviderKind>().is_ok());
            let option = if begins || list.is_empty() {
                list.push(ProviderSpec::new(head.parse().map_err(|_| unknown_provider(head))?));
                first
            } else {
                Some(word)
            };
            if let Some(option) = option
                && let Some(spec) = list.pop()
            {
                let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
                list.push(spec.with(name, value)?);
            }
        }
        Self::new(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(spec: &str) -> String {
        let pairs = spec.parse::<ProviderSpec>().unwrap().pairs();
        pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn specs_print_as_they_are_written() {
        for (text, printed) in [
            ("cpu", "cpu"),
            ("CUDA", "cuda"),
            ("tensorrt:device=0,fp16,workspace=4G", "tensorrt:device=0,fp16,workspace=4G"),
            ("tensorrt:workspace=4096M,fp16=on,device=0", "tensorrt:device=0,fp16,workspace=4G"),
            ("tensorrt:norm-fp32=off,aux-streams=-1", "tensorrt:norm-fp32=off,aux-streams=-1"),
            ("tensorrt,cuda", "tensorrt,cuda"),
            ("tensorrt:stream=own,cuda:stream=shared", "tensorrt:stream=own,cuda:stream=shared"),
            ("tensorrt:fp16,device=1,cuda:device=1,cpu", "tensorrt:device=1,fp16,cuda:device=1,cpu"),
            ("cuda:arena=AS-requested,memory=2g,tf32", "cuda:memory=2G,arena=as-requested,tf32"),
            ("openvino:library=/a:b/c.so,precision=fp16", "openvino:library=/a:b/c.so,precision=fp16"),
            ("webgpu:power=low-power", "webgpu:power=low-power"),
            ("tensorrt-rtx:workspace=1024M,device=1,cuda", "tensorrt-rtx:device=1,workspace=1G,cuda"),
            ("cuda:graph-captures=16", "cuda:graph-captures=16"),
            ("tensorrt:async,stream=shared", "tensorrt:stream=shared,async"),
        ] {
            let providers: Providers = text.parse().unwrap();
            assert_eq!(providers.to_string(), printed);
            assert_eq!(printed.parse::<Providers>().unwrap(), providers);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("", "there is no provider ``"),
            ("tensort", "there is no provider `tensort` (did you mean `tensorrt`?)"),
            ("tensorrt:fp61", "there is no option `fp61` (did you mean `fp16`?)"),
            ("tensorrt:workspce=4G", "(did you mean `workspace`?)"),
            ("cpu:threads=3", "`threads`; this provider has none"),
            ("cuda:device=0,device=1", "`device` is given twice"),
            ("cuda:device=-1", "`device` is `-1`; expected a whole number from 0 to 63"),
            ("cuda:device", "`device` has no value; expected"),
            ("cuda:memory=1M", "`memory` is `1M`; expected bytes, such as 512M or 4G, of at least 64M"),
            ("cuda:memory=4T", "`memory` is `4T`; expected bytes"),
            ("cuda:tf32=maybe", "`tf32` is `maybe`; expected nothing, `on` or `off`"),
            ("cuda:arena=big", "expected `power-of-two` or `as-requested`"),
            ("tensorrt:level=6", "`level` is `6`; expected a whole number from 0 to 5"),
            ("tensorrt:engine-cache=", "expected a text without commas"),
            ("cuda:graph-captures=0", "`graph-captures` is `0`; expected a whole number from 1 to 1000"),
            ("cuda:cuda-graphs", "runs are recorded and replayed with `graph-captures=N`"),
            (
                "tensorrt:graph-captures=4",
                "its provider keeps one recording a session, and replays it whatever is bound",
            ),
            ("tensorrt:cuda-graph", "use `cuda` with graph-captures=N"),
            ("tensorrt-rtx:graph-captures=4", "not offered: use `cuda` with graph-captures=N"),
            ("tensorrt-rtx:fp16", "is chosen by the option `compute`"),
            ("tensorrt-rtx:async", "there is no option `async`"),
            ("tensorrtrtx", "(did you mean `tensorrt-rtx`?)"),
            (
                "cuda:stream=own,async",
                "cuda: `async` goes with one stream for all sessions only; leave out `stream=own`",
            ),
            ("webgpu:async", "there is no option `async`"),
            ("cuda,tensorrt,cuda", "`cuda` is named twice"),
            ("cpu,cuda", "what follows `cpu` has no effect"),
            ("tensorrt:fp16,cudda:device=1", "there is no provider `cudda`"),
            ("tensorrt:fp16,cudda", "there is no option `cudda`"),
        ] {
            let error = text.parse::<Providers>().unwrap_err();
            assert!(error.to_string().contains(words), "{text}: {error}");
            assert_eq!(error.kind(), crate::ErrorKind::Usage);
        }
        assert!("tensorrt,cuda".parse::<ProviderSpec>().is_err());
    }

    #[test]
    fn keys_and_values_that_reach_onnx_runtime() {
        for (spec, expected) in [
            ("cpu", ""),
            ("cuda", "enable_skip_layer_norm_strict_mode=1 use_tf32=0"),
            (
                "cuda:device=1,memory=2G,arena=as-requested,tf32,conv-search=heuristic,nhwc",
                "arena_extend_strategy=kSameAsRequested cudnn_conv_algo_search=HEURISTIC device_id=1 \
                 enable_skip_layer_norm_strict_mode=1 gpu_mem_limit=2147483648 prefer_nhwc=1 \
                 use_tf32=1",
            ),
            ("tensorrt", ""),
            ("tensorrt:fp16", "trt_fp16_enable=1 trt_layer_norm_fp32_fallback=1"),
            ("tensorrt:bf16,norm-fp32=off", "trt_bf16_enable=1 trt_layer_norm_fp32_fallback=0"),
            ("tensorrt:int8", "trt_int8_enable=1"),
            (
                "tensorrt:timing-cache=t,engine-cache=e,engine-prefix=p,force-timing-cache",
                "trt_engine_cache_enable=1 trt_engine_cache_path=e trt_engine_cache_prefix=p trt_force_timing_cache=1 \
                 trt_timing_cache_enable=1 trt_timing_cache_path=t",
            ),
            (
                "tensorrt:device=2,workspace=4G,level=5,aux-streams=0,hardware-compatible,share-context",
                "device_id=2 trt_auxiliary_streams=0 trt_builder_optimization_level=5 \
                 trt_context_memory_sharing_enable=1 trt_engine_hw_compatible=1 trt_max_workspace_size=4294967296",
            ),
            (
                "tensorrt:sequential,min-subgraph=3,sparsity,build-log",
                "trt_detailed_build_log=1 trt_force_sequential_engine_build=1 \
                 trt_min_subgraph_size=3 trt_sparsity_enable=1",
            ),
            ("tensorrt-rtx:library=x.so,device=1", ""),
            (
                "tensorrt-rtx:workspace=4G,weights-memory=2G,keep-scratch,runtime-cache=r,build-log",
                "nv_detailed_build_log=1 nv_max_workspace_size=4294967296 nv_persistent_context_memory=1 \
                 nv_runtime_cache_path=r nv_weight_streaming_budget=2147483648",
            ),
            ("openvino", r#"load_config={"CPU":{"INFERENCE_PRECISION_HINT":"f32"}}"#),
            (
                "openvino:library=x.so,device=gpu,precision=fp16,threads=2,streams=1,cache=c",
                r#"load_config={"GPU":{"CACHE_DIR":"c","INFERENCE_NUM_THREADS":"2","INFERENCE_PRECISION_HINT":"f16","NUM_STREAMS":"1"}}"#,
            ),
            (
                "webgpu:power=low-power,validation=full,layout=nhwc",
                "powerPreference=low-power preferredLayout=NHWC validationMode=full",
            ),
        ] {
            assert_eq!(pairs(spec), expected, "{spec}");
        }
    }

    /// Every option changes what reaches ONNX Runtime, but for those that this library obeys.
    #[test]
    fn every_option_has_a_key_of_its_own() {
        for kind in ProviderKind::ALL {
            let keys: Vec<&str> = kind.defs().iter().filter_map(|def| def.key).collect();
            let mut unique = keys.clone();
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(keys.len(), unique.len(), "{kind}");
            let ours: Vec<&str> = kind.defs().iter().filter(|def| def.key.is_none()).map(|def| def.name).collect();
            assert!(
                ours.iter().all(|name| ["library", "device", "stream", "async", "graph-captures"].contains(name)),
                "{kind}: {ours:?}"
            );
            assert!(kind.defs().iter().all(|def| def.name.parse::<ProviderKind>().is_err()));
        }
    }
}
