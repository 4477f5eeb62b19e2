//! Providers that compile each graph: what they are told for it, and what a build of theirs depends on.

use std::collections::BTreeMap;
use std::path::Path;

use super::gpu_target::GpuTarget;
use super::kind::ProviderKind;
use super::register::{Provider, gpu, metadata};
use super::spec::ProviderSpec;
use super::{cuda, openvino, tensorrt, tensorrt_rtx};
use crate::error::{Error, Result};
use crate::runtime::build_cache::key::KeyTarget;
use crate::runtime::driver::{Driver, driver};
use crate::runtime::library::Loaded;

/// Smallest, usual and largest shape of each input of a graph.
pub(crate) type Shapes = [(String, [Vec<u64>; 3])];

/// The file that ONNX Runtime writes a compiled graph to, in the folder of the build.
pub(crate) const MODEL: &str = "model.onnx";

/// What one session is told beside the options that the user gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extra {
    /// Settings of the session.
    pub session: Vec<(String, String)>,
    /// Options of the provider.
    pub provider: Vec<(String, String)>,
}

/// ONNX Runtime's keys of a compiled graph that is written to disk.
const CONTEXT_ENABLE: &str = "ep.context_enable";
const CONTEXT_FILE: &str = "ep.context_file_path";
const CONTEXT_EMBED: &str = "ep.context_embed_mode";

/// Options that name places, or keep builds by other keys than ours.
const PLACES: [&str; 5] = [
    "trt_timing_cache_path",
    "trt_engine_cache_enable",
    "trt_engine_cache_path",
    "trt_engine_cache_prefix",
    tensorrt_rtx::RUNTIME_CACHE_KEY,
];

impl ProviderKind {
    /// Whether a graph is compiled as a whole when it is loaded.
    pub(crate) fn compiles(self) -> bool {
        matches!(self, Self::TensorRt | Self::TensorRtRtx | Self::OpenVino)
    }

    /// Whether its builds share what they have timed.
    pub(crate) fn times_kernels(self) -> bool {
        self == Self::TensorRt
    }

    /// Whether it must be told for which shapes: TensorRT would compile again at each new one, in the middle of a run, and
    /// TensorRT for RTX would choose its kernels for extents from 0 to 32767.
    pub(crate) fn needs_shapes(self) -> bool {
        matches!(self, Self::TensorRt | Self::TensorRtRtx)
    }
}

/// The options that bound the shapes of a graph.
pub(crate) fn shape_options(kind: ProviderKind, shapes: &Shapes) -> Vec<(String, String)> {
    let list = |place: usize| {
        let port = |(name, shapes): &(String, [Vec<u64>; 3])| {
            let extents: Vec<String> = shapes[place].iter().map(u64::to_string).collect();
            format!("{name}:{}", extents.join("x"))
        };
        shapes.iter().map(port).collect::<Vec<_>>().join(",")
    };
    let pair = |key: &str, value: String| (key.to_owned(), value);
    let profile = |keys: [&str; 3]| keys.iter().enumerate().map(|(place, key)| pair(key, list(place))).collect();
    match kind {
        ProviderKind::TensorRt => {
            profile(["trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes"])
        }
        ProviderKind::TensorRtRtx => {
            profile(["nv_profile_min_shapes", "nv_profile_opt_shapes", "nv_profile_max_shapes"])
        }
        ProviderKind::OpenVino => {
            let port = |(name, [least, _, most]): &(String, [Vec<u64>; 3])| {
                let axis = |(least, most): (&u64, &u64)| {
                    if least == most { least.to_string() } else { format!("{least}..{most}") }
                };
                let axes: Vec<String> = least.iter().zip(most).map(axis).collect();
                format!("{name}[{}]", axes.join(","))
            };
            vec![pair("reshape_input", shapes.iter().map(port).collect::<Vec<_>>().join(","))]
        }
        ProviderKind::Cpu | ProviderKind::Cuda | ProviderKind::WebGpu => Vec::new(),
    }
}

/// What makes ONNX Runtime write the compiled graph into `folder`. `prefix` begins the names of the provider's own files,
/// `timing` is the
/// folder in which a builder finds and leaves its timings.
pub(crate) fn writing(kind: ProviderKind, folder: &Path, prefix: &str, timing: Option<&Path>) -> Extra {
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let session = vec![
        pair(CONTEXT_ENABLE, "1"),
        pair(CONTEXT_FILE, &folder.join(MODEL).to_string_lossy()),
        // Beside the model, not in it: an ONNX file holds at most 2 GB, and OpenVINO loads it eight times faster.
        pair(CONTEXT_EMBED, "0"),
    ];
    let provider = match kind {
        // TensorRT's engine goes beside the model that refers to it; a path of its own would have to be relative to that.
        ProviderKind::TensorRt => {
            let mut pairs = vec![pair("trt_engine_cache_enable", "1"), pair("trt_engine_cache_prefix", prefix)];
            if let Some(timing) = timing {
                pairs.push(pair("trt_timing_cache_enable", "1"));
                pairs.push(pair("trt_timing_cache_path", &timing.to_string_lossy()));
            }
            pairs
        }
        _ => Vec::new(),
    };
    Extra { session, provider }
}

/// Refuses options that would keep builds in a second place, by names that do not know the weights.
///
/// # Errors
/// `Usage`.
pub(crate) fn check_places(spec: &ProviderSpec) -> Result<()> {
    let (kind, options): (_, &[&str]) = match spec.kind() {
        ProviderKind::TensorRt => (spec.kind(), &[tensorrt::ENGINE_CACHE, tensorrt::ENGINE_PREFIX]),
        ProviderKind::OpenVino => (spec.kind(), &[openvino::CACHE]),
        _ => return Ok(()),
    };
    match options.iter().find(|option| spec.raw(option).is_some()) {
        None => Ok(()),
        Some(option) => Err(Error::option(
            "provider",
            format!(
                "{kind}: `{option}` has no effect beside the build cache; leave it out, or give the option `build-cache=none`"
            ),
        )),
    }
}

impl Provider {
    /// What builds of this provider depend on, beside their graphs.
    pub(crate) fn target(&self, library: &Loaded) -> KeyTarget {
        let spec = self.spec();
        let kind = spec.kind();
        let known = self.gpu_target();
        let [sdk, driver, device] = match kind {
            ProviderKind::OpenVino => self.openvino(library),
            ProviderKind::TensorRt => {
                let sdk = libraries(&["libnvinfer", "libnvonnxparser", "libcudart", "libcudnn", "libcublas"]);
                match &known {
                    Some(gpu) => [sdk, String::new(), gpu.device.clone()],
                    None => [sdk, nvidia_driver(), nvidia_devices()],
                }
            }
            ProviderKind::TensorRtRtx => [
                libraries(tensorrt_rtx::LIBRARIES),
                nvidia_driver(),
                // The plugin is not told which GPU as an option, but by the device that it is made for.
                format!("{}, GPU {}", nvidia_devices(), gpu(spec)),
            ],
            ProviderKind::Cpu | ProviderKind::Cuda | ProviderKind::WebGpu => Default::default(),
        };
        KeyTarget {
            provider: kind.ort_name().to_owned(),
            options: key_options(spec, known.is_some()),
            session: BTreeMap::from([(CONTEXT_EMBED.to_owned(), "0".to_owned())]),
            onnxruntime: format!("{}, {}", library.info.version, library.info.build),
            sdk,
            driver,
            device,
        }
    }

    /// The same of what builders measure of kernels: it holds for one model of GPU, also where builds are for several.
    pub(crate) fn timing_target(&self, library: &Loaded) -> KeyTarget {
        let target = self.target(library);
        match self.gpu_target() {
            Some(gpu) => KeyTarget { device: gpu.timed_on, ..target },
            None => target,
        }
    }

    /// The GPU that TensorRT compiles for; `None` for other providers, and where the driver does not tell.
    fn gpu_target(&self) -> Option<GpuTarget> {
        let spec = self.spec();
        if spec.kind() != ProviderKind::TensorRt {
            return None;
        }
        gpu_in_use(spec, &driver().ok()?)
    }

    /// The plugin's version (it holds its compiler), none for the driver, and all that OpenVINO tells of the device.
    fn openvino(&self, library: &Loaded) -> [String; 3] {
        let Ok(device) = self.device(library) else { return Default::default() };
        let fact = |key: &str| metadata(&device, key).unwrap_or_default();
        let facts = ["FULL_DEVICE_NAME", "DEVICE_ARCHITECTURE", "OPTIMIZATION_CAPABILITIES"].map(fact);
        let mut about = vec![fact(openvino::DEVICE_METADATA)];
        about.extend(facts.into_iter().filter(|fact| !fact.is_empty()));
        [fact("version"), fact("DRIVER_VERSION"), about.join(", ")]
    }
}

/// The options that change what is compiled. Which number the GPU has does not matter where the GPU itself is known.
fn key_options(spec: &ProviderSpec, is_gpu_known: bool) -> BTreeMap<String, String> {
    let is_place = |key: &str| PLACES.contains(&key) || (is_gpu_known && key == cuda::DEVICE_KEY);
    spec.pairs().into_iter().filter(|(key, _)| !is_place(key)).collect()
}

/// The GPU that the option `device` names. The driver counts only those that CUDA_VISIBLE_DEVICES names, in the order in
/// which providers do.
fn gpu_in_use(spec: &ProviderSpec, driver: &Driver) -> Option<GpuTarget> {
    let index = spec.raw(cuda::DEVICE).map_or(Some(0), |device| device.parse::<usize>().ok())?;
    GpuTarget::of(driver.gpus.get(index)?, spec.is_on(tensorrt::HARDWARE_COMPATIBLE))
}

/// The libraries of a compiler that this process has loaded, by file name and size: the names carry the versions. Empty
/// where the system does not tell what is loaded; TensorRT itself refuses engines of other versions.
fn libraries(begins: &[&str]) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut found = std::collections::BTreeSet::new();
    for path in maps.lines().filter_map(|line| line.split_whitespace().nth(5)).map(Path::new) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if begins.iter().any(|begin| name.starts_with(begin)) {
            let bytes = path.metadata().map_or(0, |metadata| metadata.len());
            found.insert(format!("{name} ({bytes} bytes)"));
        }
    }
    found.into_iter().collect::<Vec<_>>().join(", ")
}

/// As the kernel module tells it, for machines whose driver cannot be asked for the GPU.
fn nvidia_driver() -> String {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// The models of all GPUs, and what decides which of them has which number. Two machines with the same GPUs agree.
fn nvidia_devices() -> String {
    let mut models = Vec::new();
    if let Ok(list) = std::fs::read_dir("/proc/driver/nvidia/gpus") {
        let mut folders: Vec<_> = list.flatten().map(|entry| entry.path()).collect();
        folders.sort();
        for folder in folders {
            let text = std::fs::read_to_string(folder.join("information")).unwrap_or_default();
            let model = text.lines().find_map(|line| line.strip_prefix("Model:")).unwrap_or("unknown GPU");
            models.push(model.trim().to_owned());
        }
    }
    for variable in ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"] {
        if let Ok(value) = std::env::var(variable) {
            models.push(format!("{variable}={value}"));
        }
    }
    models.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::driver::{CudaVersion, Gpu};

    #[test]
    fn shapes_in_the_words_of_each_provider() {
        let shapes = [
            ("hidden_states".to_owned(), [vec![1, 16, 64], vec![1, 64, 64], vec![2, 256, 64]]),
            ("temb".to_owned(), [vec![1, 64], vec![1, 64], vec![2, 64]]),
        ];
        let text = |kind| {
            let pairs = shape_options(kind, &shapes);
            pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(
            text(ProviderKind::TensorRt),
            "trt_profile_min_shapes=hidden_states:1x16x64,temb:1x64\n\
             trt_profile_opt_shapes=hidden_states:1x64x64,temb:1x64\n\
             trt_profile_max_shapes=hidden_states:2x256x64,temb:2x64"
        );
        assert_eq!(
            text(ProviderKind::TensorRtRtx),
            "nv_profile_min_shapes=hidden_states:1x16x64,temb:1x64\n\
             nv_profile_opt_shapes=hidden_states:1x64x64,temb:1x64\n\
             nv_profile_max_shapes=hidden_states:2x256x64,temb:2x64"
        );
        assert_eq!(text(ProviderKind::OpenVino), "reshape_input=hidden_states[1..2,16..256,64],temb[1..2,64]");
        assert_eq!(text(ProviderKind::Cuda), "");
    }

    #[test]
    fn what_makes_onnx_runtime_write_a_build() {
        let text = |kind| {
            let Extra { session, provider } = writing(kind, Path::new("/s/e"), "abc", Some(Path::new("/s/t")));
            let pairs = session.into_iter().chain(provider);
            pairs.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
        };
        let context = "ep.context_enable=1 ep.context_file_path=/s/e/model.onnx ep.context_embed_mode=0";
        assert_eq!(text(ProviderKind::OpenVino), context);
        assert_eq!(text(ProviderKind::TensorRtRtx), context);
        let tensorrt = "trt_engine_cache_enable=1 trt_engine_cache_prefix=abc trt_timing_cache_enable=1 \
                        trt_timing_cache_path=/s/t";
        assert_eq!(text(ProviderKind::TensorRt), format!("{context} {tensorrt}"));
    }

    #[test]
    fn the_gpu_in_use_takes_the_place_of_its_number() {
        let gpu = |name: &str, capability| Gpu {
            name: name.into(),
            memory_bytes: None,
            compute_capability: Some(capability),
        };
        let gpus = vec![gpu("NVIDIA H200", (9, 0)), gpu("NVIDIA L40S", (8, 9))];
        let driver = Driver { release: Some("580.65".into()), cuda: CudaVersion(13000), gpus, failure: None };
        for (spec, device) in [
            ("tensorrt:fp16", Some("NVIDIA H200, compute capability 9.0")),
            ("tensorrt:device=0,fp16", Some("NVIDIA H200, compute capability 9.0")),
            ("tensorrt:device=1,fp16", Some("NVIDIA L40S, compute capability 8.9")),
            ("tensorrt:device=1,hardware-compatible", Some("any GPU of compute capability 8.0 or newer")),
            ("tensorrt:device=2", None),
        ] {
            let found = gpu_in_use(&spec.parse().unwrap(), &driver);
            assert_eq!(found.map(|gpu| gpu.device).as_deref(), device, "{spec}");
        }
        let options = |spec: &str, is_gpu_known| key_options(&spec.parse().unwrap(), is_gpu_known);
        assert_eq!(options("tensorrt:device=1,fp16", true), options("tensorrt:fp16", true));
        assert_eq!(options("tensorrt:device=1,fp16", false)["device_id"], "1");
        assert_ne!(options("tensorrt:fp16", true), options("tensorrt", true));
    }

    #[test]
    fn caches_of_the_provider_are_refused_beside_ours() {
        for (spec, word) in [
            ("tensorrt:engine-cache=x", "`engine-cache` has no effect beside the build cache"),
            ("tensorrt:engine-prefix=x", "`engine-prefix`"),
            ("openvino:cache=x", "`cache`"),
        ] {
            let error = check_places(&spec.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
        for spec in
            ["tensorrt:fp16,timing-cache=x", "tensorrt-rtx:runtime-cache=x", "openvino:threads=2", "cpu", "cuda"]
        {
            check_places(&spec.parse().unwrap()).unwrap();
        }
    }
}
