//! Makes a provider ready: loads its plugin, tries it once, and appends it to sessions. It works, or the error says why
//! not: ONNX Runtime would pass over a provider that fails, and run everything on the CPU.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use ort::AsPointer;
use ort::device::Device as EpDevice;
use ort::ep;
#[cfg(any(feature = "cuda", feature = "tensorrt"))]
use ort::ep::ArbitrarilyConfigurableExecutionProvider;
use ort::session::builder::SessionBuilder;

use super::failure::{damage, install, no_device, refused, unusable};
use super::kind::ProviderKind;
use super::shared::LIBRARY_OPTION;
use super::spec::ProviderSpec;
use super::{cuda, nvidia, openvino, tensorrt_rtx, webgpu};
use crate::error::{Error, ErrorKind, Result};
use crate::packages;
use crate::runtime::cuda_stream::Stream;
use crate::runtime::library::Loaded;
use crate::runtime::memory::Memory;

/// What a session is for: some providers run arithmetic elsewhere than the model, on the same tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A stage of the model: it runs at each step, and its runs may be captured.
    Stage,
    /// Another part of the model.
    Model,
    /// A small graph of this library's own.
    Arithmetic,
    /// Moves a tensor between host and device. Computes nothing, so it does not matter where its node is.
    Copy,
}

/// A provider that can be used.
#[derive(Debug)]
pub(crate) struct Provider {
    spec: ProviderSpec,
    /// Whether nodes that it cannot run may run elsewhere.
    allows_fallback: bool,
    /// The stream that its sessions share; `None` if each has its own.
    stream: Option<Stream>,
}

impl Provider {
    /// # Errors
    /// `Provider` with what is missing; `Library` when the process has loaded another plugin of this kind.
    pub(crate) fn open(library: &Loaded, spec: &ProviderSpec, allows_fallback: bool) -> Result<Self> {
        let kind = spec.kind();
        match plugin_file(kind) {
            Some(file) => {
                let plugin = plugin_path(library, spec, file)?;
                check_whole(kind, &plugin)?;
                if kind.is_of_nvidia() {
                    nvidia::preload_beside(kind, &plugin)?;
                }
                library.register_plugin(kind, &plugin)?;
                if kind.is_of_nvidia() {
                    nvidia::check_for_rtx(kind, gpu(spec))?;
                }
            }
            None if kind.is_of_nvidia() => nvidia::preload(kind, &library.info.path)?,
            None => {}
        }
        let mut provider = Self { spec: spec.clone(), allows_fallback, stream: None };
        let builder = library.session_builder().map_err(|error| refused(kind, &library.info.path, error.message()))?;
        provider.append(library, builder, Role::Model, &[])?;
        if kind.built_in_file().is_some() {
            nvidia::check(kind, gpu(spec))?;
        }
        // Now that the provider is loaded, so is CUDA's runtime.
        provider.stream = stream(spec)?;
        Ok(provider)
    }

    /// The stream on which runs may be left unfinished; `None` if each run waits for its end.
    pub(crate) fn unwaited(&self) -> Option<Stream> {
        self.stream.filter(|_| self.spec.is_async())
    }

    pub(crate) fn spec(&self) -> &ProviderSpec {
        &self.spec
    }

    /// Whether sessions of this role run on the provider itself.
    pub(crate) fn runs(&self, role: Role) -> bool {
        matches!(role, Role::Stage | Role::Model)
            // Its tensors lie where no other provider of its ONNX Runtime computes.
            || matches!(self.spec.kind(), ProviderKind::Cuda | ProviderKind::TensorRtRtx | ProviderKind::WebGpu)
    }

    /// The provider that runs a role, in ONNX Runtime's words.
    pub(crate) fn ort_name(&self, role: Role) -> &'static str {
        match self.spec.kind() {
            kind if self.runs(role) => kind.ort_name(),
            // Builds of graphs of five nodes would cost more time than they save.
            ProviderKind::TensorRt => ProviderKind::Cuda.ort_name(),
            _ => ProviderKind::Cpu.ort_name(),
        }
    }

    /// Appends the provider to a session, or fails.
    ///
    /// # Errors
    /// `Provider` with what is missing.
    pub(crate) fn append(
        &self,
        library: &Loaded,
        builder: SessionBuilder,
        role: Role,
        extra: &[(String, String)],
    ) -> Result<SessionBuilder> {
        let kind = self.spec.kind();
        let refuse = |error: ort::Error| refused(kind, &library.info.path, error.message());
        let extra = self.extra(role, extra);
        let builder = match kind {
            ProviderKind::Cpu => append_cpu(library, builder).map_err(refuse)?,
            ProviderKind::OpenVino if !self.runs(role) => append_cpu(library, builder).map_err(refuse)?,
            ProviderKind::TensorRtRtx | ProviderKind::OpenVino | ProviderKind::WebGpu => {
                self.append_plugin(library, builder, &extra)?
            }
            ProviderKind::TensorRt if !self.runs(role) => append_cuda(builder, &self.cuda_pairs()).map_err(refuse)?,
            ProviderKind::TensorRt => {
                let builder = append_tensorrt(builder, &self.pairs(&extra)).map_err(refuse)?;
                // What TensorRT leaves should at least stay on the device.
                if self.allows_fallback { append_cuda(builder, &self.cuda_pairs()).map_err(refuse)? } else { builder }
            }
            ProviderKind::Cuda => append_cuda(builder, &self.pairs(&extra)).map_err(refuse)?,
        };
        // Arenas of their own would keep about 0.6 MB a session; they share one (docs/performance.md).
        let cpu = ep::CPU::default().with_arena_allocator(false).build().error_on_failure();
        builder.with_execution_providers([cpu]).map_err(|error| refuse(error.into()))
    }

    /// What one session is told beside the provider's options.
    fn extra(&self, role: Role, extra: &[(String, String)]) -> Vec<(String, String)> {
        let capture = self.spec.capture_pair().filter(|_| role == Role::Stage);
        extra.iter().cloned().chain(capture).collect()
    }

    /// The provider's options, and those of one session; what the user gave comes first.
    fn pairs(&self, extra: &[(String, String)]) -> Vec<(String, String)> {
        let mut pairs: BTreeMap<String, String> = extra.iter().cloned().collect();
        pairs.extend(self.spec.pairs());
        pairs.extend(self.stream.iter().flat_map(|stream| stream.pairs()));
        pairs.into_iter().collect()
    }

    /// What CUDA is told where it computes beside TensorRT.
    fn cuda_pairs(&self) -> Vec<(String, String)> {
        let mut pairs = ProviderSpec::new(ProviderKind::Cuda).pairs();
        pairs.extend(self.spec.raw(cuda::DEVICE).map(|device| (cuda::DEVICE_KEY.to_owned(), device)));
        pairs.extend(self.stream.iter().flat_map(|stream| stream.pairs()));
        pairs
    }

    fn append_plugin(
        &self,
        library: &Loaded,
        builder: SessionBuilder,
        extra: &[(String, String)],
    ) -> Result<SessionBuilder> {
        let name = self.spec.kind().ort_name();
        let device = self.device(library)?;
        let options: Vec<(String, String)> =
            self.pairs(extra).into_iter().map(|(key, value)| (format!("{name}.{key}"), value)).collect();
        builder
            .with_devices([device], Some(&options))
            .map_err(|error| refused(self.spec.kind(), &library.info.path, error.message()))
    }

    /// The device of a plugin.
    pub(super) fn device<'l>(&self, library: &'l Loaded) -> Result<EpDevice<'l>> {
        let kind = self.spec.kind();
        let wanted = match kind {
            ProviderKind::OpenVino => self.spec.openvino_device(),
            _ => "GPU".to_owned(),
        };
        let fits = |device: &EpDevice<'_>| {
            // `GPU` stands for `GPU.0` and the others, too.
            kind != ProviderKind::OpenVino
                || metadata(device, openvino::DEVICE_METADATA).is_none_or(|name| name.starts_with(&wanted))
        };
        // Of the GPUs of TensorRT for RTX, the option names one; the plugin gives each its number among those that it takes.
        let place = if kind == ProviderKind::TensorRtRtx { gpu(&self.spec).unsigned_abs() as usize } else { 0 };
        devices(library, kind).filter(fits).nth(place).ok_or_else(|| no_device(kind, &wanted))
    }

    /// The memory that the provider's tensors lie in.
    ///
    /// # Errors
    /// `Provider` when a plugin offers no device.
    pub(crate) fn memory(&self, library: &Loaded) -> Result<Memory> {
        Ok(match self.spec.kind() {
            ProviderKind::Cpu => Memory::Host,
            ProviderKind::Cuda | ProviderKind::TensorRt => Memory::Cuda { device: gpu(&self.spec) },
            ProviderKind::TensorRtRtx | ProviderKind::OpenVino | ProviderKind::WebGpu => {
                device_memory(&self.device(library)?)
            }
        })
    }
}

/// Which GPU of NVIDIA's.
pub(super) fn gpu(spec: &ProviderSpec) -> i32 {
    spec.raw(cuda::DEVICE).and_then(|device| device.parse().ok()).unwrap_or(0)
}

/// The stream that the sessions of a provider share.
fn stream(spec: &ProviderSpec) -> Result<Option<Stream>> {
    if spec.shares_stream() { Stream::of_device(gpu(spec)).map(Some) } else { Ok(None) }
}

/// A device's own memory; else what it shares with the host; else the host's.
fn device_memory(device: &EpDevice<'_>) -> Memory {
    use ort::sys::OrtDeviceMemoryType::{OrtDeviceMemoryType_DEFAULT, OrtDeviceMemoryType_HOST_ACCESSIBLE};
    for (kind, is_host) in [(OrtDeviceMemoryType_DEFAULT, false), (OrtDeviceMemoryType_HOST_ACCESSIBLE, true)] {
        // SAFETY: the device belongs to the environment, which is alive.
        let info = unsafe { (ort::api().EpDevice_MemoryInfo)(device.ptr(), kind) };
        if let Some(info) = NonNull::new(info.cast_mut()) {
            return Memory::Plugin { info, is_host };
        }
    }
    Memory::Host
}

/// The devices that a provider's plugin offers.
pub(super) fn devices(library: &Loaded, kind: ProviderKind) -> impl Iterator<Item = EpDevice<'_>> {
    library.environment.devices().filter(move |device| device.ep().is_ok_and(|name| name == kind.ort_name()))
}

/// A fact that a plugin tells of a device.
pub(super) fn metadata(device: &EpDevice<'_>, key: &str) -> Option<String> {
    let key = CString::new(key).ok()?;
    let api = ort::api();
    // SAFETY: the device belongs to the environment, which lives as long as the borrow.
    let pairs = unsafe { (api.EpDevice_EpMetadata)(device.ptr()) };
    if pairs.is_null() {
        return None;
    }
    // SAFETY: the pairs belong to the device; the key ends with a zero.
    let value = unsafe { (api.GetKeyValue)(pairs, key.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: not null, ends with a zero, and lives as long as the device's metadata.
    Some(unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
}

/// The library file of a provider that is a plugin.
pub(super) fn plugin_file(kind: ProviderKind) -> Option<&'static str> {
    match kind {
        ProviderKind::TensorRtRtx => Some(tensorrt_rtx::LIBRARY),
        ProviderKind::OpenVino => Some(openvino::LIBRARY),
        ProviderKind::WebGpu => Some(webgpu::LIBRARY),
        ProviderKind::Cpu | ProviderKind::Cuda | ProviderKind::TensorRt => None,
    }
}

/// Where a plugin's library lies: as given, else where setup has put it, else beside ONNX Runtime's, else beside the program.
///
/// # Errors
/// `Provider` with the places that were looked at.
pub(super) fn plugin_path(library: &Loaded, spec: &ProviderSpec, file: &str) -> Result<PathBuf> {
    let given = spec.raw(LIBRARY_OPTION.name).map(PathBuf::from);
    let program = std::env::current_exe().ok();
    let own = packages::installed_bundle(spec.kind().as_str()).map(|(_, folder)| folder);
    let places: Vec<PathBuf> = match given {
        Some(path) => vec![std::path::absolute(&path).unwrap_or(path)],
        None => {
            let beside = [Some(library.info.path.as_path()), program.as_deref()]
                .into_iter()
                .flatten()
                .filter_map(Path::parent)
                .map(Path::to_owned)
                .collect::<Vec<_>>();
            own.into_iter().chain(beside).map(|folder| folder.join(file)).collect()
        }
    };
    if let Some(path) = places.iter().find(|path| path.is_file()) {
        return Ok(path.clone());
    }
    let looked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    let (kind, remedy) = (spec.kind(), install(spec.kind()));
    let looked = looked.join(" or ");
    Err(Error::new(
        ErrorKind::Provider,
        format!("the provider `{kind}` cannot be used: its plugin is not at {looked}; {remedy}"),
    ))
}

/// Refuses a plugin that setup has installed and that was damaged since: loading a file that was cut ends the process.
///
/// # Errors
/// `Provider` with the file and the command that repairs it.
fn check_whole(kind: ProviderKind, plugin: &Path) -> Result<()> {
    match packages::bundle_of_library(plugin).and_then(|(bundle, folder)| damage(bundle, &folder)) {
        Some(damage) => Err(unusable(kind, format!("{damage}; run `dbcache-trt setup --provider {kind}`"))),
        None => Ok(()),
    }
}

/// Names the CPU: where no provider is named, `ort` lets ONNX Runtime choose among all plugins of the process.
fn append_cpu(library: &Loaded, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
    match devices(library, ProviderKind::Cpu).next() {
        Some(device) => Ok(builder.with_devices([device], None)?),
        None => Err(ort::Error::new("this ONNX Runtime lists no CPU")),
    }
}

#[cfg(feature = "cuda")]
fn append_cuda(builder: SessionBuilder, pairs: &[(String, String)]) -> ort::Result<SessionBuilder> {
    let cuda = pairs.iter().fold(ep::CUDA::default(), |ep, (key, value)| ep.with_arbitrary_config(key, value));
    Ok(builder.with_execution_providers([cuda.build().error_on_failure()])?)
}

#[cfg(not(feature = "cuda"))]
fn append_cuda(_: SessionBuilder, _: &[(String, String)]) -> ort::Result<SessionBuilder> {
    Err(ort::Error::new("this program is built without the Cargo feature `cuda`; build it with the feature"))
}

#[cfg(feature = "tensorrt")]
fn append_tensorrt(builder: SessionBuilder, pairs: &[(String, String)]) -> ort::Result<SessionBuilder> {
    let tensorrt = pairs.iter().fold(ep::TensorRT::default(), |ep, (key, value)| ep.with_arbitrary_config(key, value));
    Ok(builder.with_execution_providers([tensorrt.build().error_on_failure()])?)
}

#[cfg(not(feature = "tensorrt"))]
fn append_tensorrt(_: SessionBuilder, _: &[(String, String)]) -> ort::Result<SessionBuilder> {
    Err(ort::Error::new("this program is built without the Cargo feature `tensorrt`; build it with the feature"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs are left unfinished only where that was asked for.
    #[cfg(feature = "cuda")]
    #[test]
    fn runs_are_waited_for_unless_told_otherwise() {
        for (spec, is_async) in
            [("cuda", false), ("cuda:async", true), ("tensorrt:async", true), ("cuda:async=off", false)]
        {
            let stream = Some(Stream::of_test(0));
            let provider = Provider { spec: spec.parse().unwrap(), allows_fallback: false, stream };
            assert_eq!(provider.unwaited().is_some(), is_async, "{spec}");
        }
    }

    /// The stream reaches every session of the provider: those of the model, and the arithmetic beside them.
    #[cfg(feature = "cuda")]
    #[test]
    fn all_sessions_of_a_provider_are_told_of_one_stream() {
        let told = |spec: &str| {
            let provider =
                Provider { spec: spec.parse().unwrap(), allows_fallback: false, stream: Some(Stream::of_test(64)) };
            let text = |pairs: Vec<(String, String)>| {
                pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
            };
            [text(provider.pairs(&[("trt_x".to_owned(), "1".to_owned())])), text(provider.cuda_pairs())]
        };
        let [model, beside] = told("tensorrt:device=2,fp16");
        assert_eq!(
            model,
            "device_id=2 has_user_compute_stream=1 trt_fp16_enable=1 trt_layer_norm_fp32_fallback=1 trt_x=1 user_compute_stream=64"
        );
        assert_eq!(
            beside,
            "enable_skip_layer_norm_strict_mode=1 use_tf32=0 device_id=2 has_user_compute_stream=1 user_compute_stream=64"
        );
        let [model, _] = told("cuda:tf32");
        assert_eq!(
            model,
            "enable_skip_layer_norm_strict_mode=1 has_user_compute_stream=1 trt_x=1 use_tf32=1 user_compute_stream=64"
        );
    }

    /// What runs once would only pay for recording.
    #[test]
    fn only_stages_record_their_runs() {
        for (spec, expected) in [
            ("cuda:graph-captures=8", Some("enable_cuda_graph")),
            ("webgpu:graph-captures=1", Some("enableGraphCapture")),
            ("cuda", None),
            ("webgpu", None),
            ("tensorrt", None),
            ("tensorrt-rtx", None),
        ] {
            let provider = Provider { spec: spec.parse().unwrap(), allows_fallback: false, stream: None };
            for role in [Role::Stage, Role::Model, Role::Arithmetic, Role::Copy] {
                let expected = expected.filter(|_| role == Role::Stage);
                let expected: Vec<_> = expected.map(|key| (key.to_owned(), "1".to_owned())).into_iter().collect();
                assert_eq!(provider.extra(role, &[]), expected, "{spec} {role:?}");
            }
        }
    }

    /// A stream that cannot be made is an error, never a session with another one.
    #[test]
    fn only_sessions_on_cuda_share_a_stream() {
        for spec in ["cpu", "webgpu", "openvino", "tensorrt-rtx", "cuda:stream=own", "tensorrt:device=1,stream=own"] {
            assert!(stream(&spec.parse().unwrap()).unwrap().is_none(), "{spec}");
        }
    }
}
