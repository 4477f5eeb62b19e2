//! Why a provider cannot be used, in words that name the package to install. ONNX Runtime's own texts name symptoms.

use std::path::Path;

use super::spec::ProviderKind;
use super::{openvino, webgpu};
use crate::error::{Error, ErrorKind};

/// What must be installed for a library, by how its file name begins.
const PACKAGES: &[(&str, &str)] = &[
    ("libcudnn", CUDA_PACKAGES),
    ("libcublas", CUDA_PACKAGES),
    ("libcudart", CUDA_PACKAGES),
    ("libcurand", CUDA_PACKAGES),
    ("libcufft", CUDA_PACKAGES),
    ("libnvrtc", CUDA_PACKAGES),
    ("libcuda.so", DRIVER),
    ("libnvidia-ml", DRIVER),
    ("libnvinfer", TENSORRT),
    ("libnvonnxparser", TENSORRT),
    (
        "libvulkan",
        "the Vulkan loader (Debian: libvulkan1) and a driver for the GPU (Debian: mesa-vulkan-drivers 25 or newer)",
    ),
];
const CUDA_PACKAGES: &str = "CUDA 13 and cuDNN 9 (pip install 'onnxruntime-gpu[cuda,cudnn]')";
const DRIVER: &str = "the NVIDIA driver";
const TENSORRT: &str = "TensorRT 10 for CUDA 13 (NVIDIA's package tensorrt-cu13, version 10, never 11)";

/// An error of registration as ours, with the remedy.
pub(crate) fn refused(kind: ProviderKind, onnx_runtime: &Path, text: &str) -> Error {
    let text = text.replace('\n', " ");
    let reason = reason(kind, onnx_runtime, &text);
    Error::new(ErrorKind::Provider, format!("the provider `{kind}` cannot be used: {reason}"))
}

fn reason(kind: ProviderKind, onnx_runtime: &Path, text: &str) -> String {
    if text.contains("not enabled in this build") {
        let path = onnx_runtime.display();
        return format!(
            "the ONNX Runtime at {path} is built without it; install the build for NVIDIA GPUs (pip install \
             onnxruntime-gpu) and name its library with the option `ort-library` or ORT_DYLIB_PATH"
        );
    }
    if let Some((needing, missing)) = missing_library(text) {
        if needing == missing {
            return format!("its library {missing} is not there; {}", install(kind));
        }
        let package = PACKAGES.iter().find(|(start, _)| missing.starts_with(start)).map(|(_, package)| *package);
        return match package {
            Some(package) => format!(
                "{needing} needs {missing}, which the system does not find; install {package}, or put its folder into \
                 LD_LIBRARY_PATH"
            ),
            None => format!(
                "{needing} needs {missing}, which the system does not find; install it, or put its folder into \
                 LD_LIBRARY_PATH"
            ),
        };
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
            "take it and ONNX Runtime's library from one installation of one version (pip install onnxruntime-gpu)"
                .to_owned()
        }
        ProviderKind::OpenVino => plugin(openvino::PACKAGE),
        ProviderKind::WebGpu => plugin(webgpu::PACKAGE),
    }
}

fn plugin(package: &str) -> String {
    format!("install it (pip install {package}) and name the file with the option `library`")
}

/// A plugin that is there, but has nothing to compute on.
pub(super) fn no_device(kind: ProviderKind, wanted: &str) -> Error {
    let remedy = match kind {
        ProviderKind::OpenVino => "it offers CPUs, GPUs and NPUs of Intel; on others, use `cpu`",
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
        use ProviderKind::{Cuda, OpenVino, TensorRt, WebGpu};
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
                "install CUDA 13 and cuDNN 9 (pip install 'onnxruntime-gpu[cuda,cudnn]')",
            ),
            (Cuda, load(cuda, "libcuda.so.1"), "install the NVIDIA driver"),
            (Cuda, load(cuda, "libother.so"), "needs libother.so, which the system does not find; install it"),
            (Cuda, load(cuda, cuda), "libonnxruntime_providers_cuda.so is not there; take it and ONNX Runtime's"),
            (TensorRt, load(tensorrt, "libcublas.so.13"), "install CUDA 13"),
            (TensorRt, load(tensorrt, "libnvinfer.so.10"), "install TensorRT 10 for CUDA 13"),
            (TensorRt, load(tensorrt, "libnvonnxparser.so.10"), "version 10, never 11"),
            (
                Cuda,
                "CUDA execution provider is not enabled in this build. ".into(),
                "the ONNX Runtime at /x.so is built without it",
            ),
            (
                TensorRt,
                "TensorRT execution provider is not enabled in this build. ".into(),
                "pip install onnxruntime-gpu",
            ),
            (Cuda, "CUDA failure 100: no CUDA-capable device is detected".into(), "no GPU that its driver offers"),
            (OpenVino, load("/p.so", "/p.so"), "p.so is not there; install it (pip install onnxruntime-ep-openvino)"),
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
