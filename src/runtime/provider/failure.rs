//! Why a provider cannot be used, in words that name the package to install. ONNX Runtime's own texts name symptoms.

use std::fmt;
use std::path::Path;

use super::kind::ProviderKind;
use super::{openvino, tensorrt_rtx, webgpu};
use crate::error::{Error, ErrorKind};
use crate::packages::{self, Bundle, ReadDepth, SlotState};

/// What helps where a library is missing, by how its file name begins.
const REMEDIES: &[(&str, &str)] = &[
    ("libcudnn", INSTALL_CUDA),
    ("libcublas", INSTALL_CUDA),
    ("libcudart", INSTALL_CUDA),
    ("libcurand", INSTALL_CUDA),
    ("libcufft", INSTALL_CUDA),
    ("libnvrtc", INSTALL_CUDA),
    ("libcuda.so", INSTALL_DRIVER),
    ("libnvidia-ml", INSTALL_DRIVER),
    ("libnvinfer", INSTALL_TENSORRT),
    ("libnvonnxparser", INSTALL_TENSORRT),
    ("libtensorrt", INSTALL_TENSORRT_RTX),
    (
        "libvulkan",
        "install the Vulkan loader (Debian: libvulkan1) and a driver for the GPU (Debian: mesa-vulkan-drivers 25 or newer)",
    ),
];
/// CUDA's libraries belong to a build of ONNX Runtime, so setup installs both.
pub(crate) const INSTALL_CUDA: &str = "run `dbcache-trt setup --provider cuda` and name no ONNX Runtime, or install CUDA 13 \
                                       and cuDNN 9 and put their folder into LD_LIBRARY_PATH";
/// What only the administrator of a machine can install.
pub(super) const INSTALL_DRIVER: &str = "install the NVIDIA driver, release 580 or newer";
const INSTALL_TENSORRT: &str =
    "`dbcache-trt setup --provider tensorrt` says how to get TensorRT 10 for CUDA 13 (never 11)";
const INSTALL_TENSORRT_RTX: &str =
    "run `dbcache-trt setup --provider tensorrt-rtx`, or keep the plugin's file beside the others of its package";

/// A provider that cannot be used.
pub(super) fn unusable(kind: ProviderKind, reason: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Provider, format!("the provider `{kind}` cannot be used: {reason}"))
}

/// An error of registration as ours, with the remedy.
pub(crate) fn refused(kind: ProviderKind, onnx_runtime: &Path, text: &str) -> Error {
    let text = text.replace('\n', " ");
    unusable(kind, reason(kind, onnx_runtime, &text))
}

/// The command that installs what a provider needs; `None` where setup has no packages of it for this system.
pub(crate) fn setup_command(kind: ProviderKind) -> Option<String> {
    let packages = match kind {
        ProviderKind::Cpu => return Some("dbcache-trt setup".to_owned()),
        // Both are parts of one build, and setup says what else TensorRT needs.
        ProviderKind::TensorRt => ProviderKind::Cuda,
        kind => kind,
    };
    packages::is_installable(packages.as_str()).then(|| format!("dbcache-trt setup --provider {kind}"))
}

/// What is wrong with what setup has installed of a provider.
pub(super) fn damage(bundle: &Bundle, folder: &Path) -> Option<String> {
    match bundle.state(folder, ReadDepth::Library) {
        SlotState::Damaged(reason) => {
            Some(format!("what setup has installed in {} is damaged: {reason}", folder.display()))
        }
        _ => None,
    }
}

fn reason(kind: ProviderKind, onnx_runtime: &Path, text: &str) -> String {
    if text.contains("not enabled in this build") {
        let path = onnx_runtime.display();
        let installed = packages::installed_bundle(ProviderKind::Cuda.as_str());
        let damage = installed.as_ref().and_then(|(bundle, folder)| damage(bundle, folder));
        let remedy = match installed {
            Some(_) if damage.is_some() => {
                format!("{}; run `dbcache-trt setup --provider cuda`", damage.unwrap_or_default())
            }
            // It is there, and yet another one was loaded: only this process can mend that.
            Some(_) => {
                "setup has installed one that has it: leave out the option `ort-library` and ORT_DYLIB_PATH, and let the first \
                 engine of the process be one on this provider"
                    .to_owned()
            }
            None => {
                "run `dbcache-trt setup --provider cuda`, or name another build for NVIDIA GPUs with the option `ort-library` \
                 or ORT_DYLIB_PATH"
                    .to_owned()
            }
        };
        return format!("the ONNX Runtime at {path} is built without it; {remedy}");
    }
    if let Some((needing, missing)) = missing_library(text) {
        if needing == missing {
            return format!("its library {missing} is not there; {}", install(kind));
        }
        let is_of_plugin = kind == ProviderKind::TensorRtRtx && missing.starts_with("libcudart");
        let own = is_of_plugin.then_some(INSTALL_TENSORRT_RTX);
        let remedy = REMEDIES.iter().find(|(start, _)| missing.starts_with(start)).map(|(_, remedy)| *remedy);
        let remedy = own.or(remedy).unwrap_or("install it, or put its folder into LD_LIBRARY_PATH");
        return format!("{needing} needs {missing}, which the system does not find; {remedy}");
    }
    for symptom in
        ["no CUDA-capable device", "CUDA driver version is insufficient", "CUDA failure 100", "CUDA failure 35"]
    {
        if text.contains(symptom) {
            return format!("no GPU that its driver offers to CUDA 13 (`nvidia-smi` shows both): {text}");
        }
    }
    text.to_owned()
}

/// Who needs which file, from `Failed to load library NEEDING with error: MISSING: cannot open shared object file`.
fn missing_library(text: &str) -> Option<(&str, &str)> {
    let (_, rest) = text.split_once("Failed to load library ")?;
    let (needing, rest) = rest.split_once(" with error: ")?;
    let (missing, _) = rest.split_once(": cannot open shared object file")?;
    let name = |path| Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path);
    Some((name(needing), name(missing)))
}

/// What carries a provider.
pub(super) fn install(kind: ProviderKind) -> String {
    match kind {
        ProviderKind::Cpu => "it is a part of every ONNX Runtime".to_owned(),
        ProviderKind::Cuda | ProviderKind::TensorRt => {
            "it and ONNX Runtime's library must be of one installation; run `dbcache-trt setup --provider cuda`"
                .to_owned()
        }
        ProviderKind::TensorRtRtx => plugin(kind, tensorrt_rtx::PACKAGE),
        ProviderKind::OpenVino => plugin(kind, openvino::PACKAGE),
        ProviderKind::WebGpu => plugin(kind, webgpu::PACKAGE),
    }
}

fn plugin(kind: ProviderKind, package: &str) -> String {
    format!(
        "run `dbcache-trt setup --provider {kind}`, or install it (pip install {package}) and name the file with the option \
         `library`"
    )
}

/// A plugin that is there, but has nothing to compute on.
pub(super) fn no_device(kind: ProviderKind, wanted: &str) -> Error {
    let remedy = match kind {
        ProviderKind::OpenVino => "it needs a processor, GPU or NPU of Intel; on other machines use `cpu`",
        ProviderKind::TensorRtRtx => {
            "NVIDIA's driver lists one that it takes, but ONNX Runtime or the plugin does not see it: on Linux, /sys/bus/pci or \
             /sys/class/drm must show it, in a container too, and the option `device` counts only such GPUs; or use `cuda`"
        }
        _ => "it needs a GPU that the system lists, its driver, and the Vulkan loader (Debian: libvulkan1)",
    };
    let message = format!("the provider `{kind}` cannot be used: its plugin offers no {wanted} here; {remedy}");
    Error::new(ErrorKind::Provider, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_onnx_runtime_name_what_to_install() {
        // What this machine has counts here.
        let of_gpu_build = match packages::installed_bundle(ProviderKind::Cuda.as_str()) {
            Some(_) => "setup has installed one that has it",
            None => "run `dbcache-trt setup --provider cuda`",
        };
        use ProviderKind::{Cuda, OpenVino, TensorRt, TensorRtRtx, WebGpu};
        let load = |needing: &str, missing: &str| {
            format!(
                "/src/provider_bridge_ort.cc:2043 onnxruntime::Provider& onnxruntime::ProviderLibrary::Get() \
                 [ONNXRuntimeError] : 1 : FAIL : Failed to load library {needing} with error: {missing}: cannot open \
                 shared object file: No such file or directory"
            )
        };
        let cuda = "/ort/libonnxruntime_providers_cuda.so";
        let tensorrt = "/ort/libonnxruntime_providers_tensorrt.so";
        for (kind, text, words) in [
            (Cuda, load(cuda, "libcublasLt.so.13"), "libonnxruntime_providers_cuda.so needs libcublasLt.so.13"),
            (
                Cuda,
                load(cuda, "libcudnn.so.9"),
                "run `dbcache-trt setup --provider cuda` and name no ONNX Runtime, or install CUDA 13",
            ),
            (Cuda, load(cuda, "libcuda.so.1"), "install the NVIDIA driver, release 580 or newer"),
            (Cuda, load(cuda, "libother.so"), "needs libother.so, which the system does not find; install it"),
            (Cuda, load(cuda, cuda), "libonnxruntime_providers_cuda.so is not there; it and ONNX Runtime's library"),
            (TensorRt, load(tensorrt, "libcublas.so.13"), "install CUDA 13"),
            (TensorRt, load(tensorrt, "libnvinfer.so.10"), "says how to get TensorRT 10 for CUDA 13"),
            (TensorRt, load(tensorrt, "libnvonnxparser.so.10"), "(never 11)"),
            (
                Cuda,
                "CUDA execution provider is not enabled in this build. ".into(),
                "the ONNX Runtime at /x.so is built without it",
            ),
            (TensorRt, "TensorRT execution provider is not enabled in this build. ".into(), of_gpu_build),
            (Cuda, "CUDA failure 100: no CUDA-capable device is detected".into(), "no GPU that its driver offers"),
            (
                TensorRtRtx,
                load("/nv.so", "libtensorrt_rtx.so.1"),
                "nv.so needs libtensorrt_rtx.so.1, which the system does not find; run `dbcache-trt setup --provider tensorrt-rtx`",
            ),
            (
                TensorRtRtx,
                load("/nv.so", "libcudart.so.13"),
                "run `dbcache-trt setup --provider tensorrt-rtx`, or keep",
            ),
            (TensorRtRtx, load("/nv.so", "libcuda.so.1"), "install the NVIDIA driver, release 580 or newer"),
            (TensorRtRtx, load("/nv.so", "libnvidia-ml.so.1"), "install the NVIDIA driver"),
            (TensorRtRtx, load("/nv.so", "/nv.so"), "pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"),
            (OpenVino, load("/p.so", "/p.so"), "p.so is not there; run `dbcache-trt setup --provider openvino`"),
            (WebGpu, load("/p.so", "libvulkan.so.1"), "install the Vulkan loader (Debian: libvulkan1)"),
            (WebGpu, "a text\nof two lines".into(), "a text of two lines"),
        ] {
            let error = refused(kind, Path::new("/x.so"), &text);
            assert_eq!(error.kind(), ErrorKind::Provider);
            let begin = format!("the provider `{kind}` cannot be used: ");
            assert!(error.to_string().starts_with(&begin) && error.to_string().contains(words), "{error}");
        }
    }
}
