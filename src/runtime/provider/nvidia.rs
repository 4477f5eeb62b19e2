//! What the providers on NVIDIA's GPUs need of this machine: libraries, which they ask the system's loader for by bare names,
//! and the driver.

use std::ffi::c_int;
use std::path::Path;

use libloading::{Library, Symbol};

use super::failure::{INSTALL_CUDA, INSTALL_DRIVER, unusable};
use super::kind::ProviderKind;
use super::tensorrt_rtx::{TAKES, takes};
use crate::error::Result;
use crate::packages::{self, TENSORRT_LIBRARIES, TENSORRT_RTX_LIBRARIES};
use crate::runtime::driver::{CudaVersion, Driver, Gpu, driver, with_cause};

/// CUDA's runtime as ONNX Runtime's providers name it, newest first.
pub(crate) const CUDA_RUNTIMES: &[&str] =
    if cfg!(windows) { &["cudart64_13.dll", "cudart64_12.dll"] } else { &["libcudart.so.13", "libcudart.so.12"] };

/// cuDNN, which CUDA's provider itself loads when the first graph needs it.
const CUDNN: &str = if cfg!(windows) { "cudnn64_9.dll" } else { "libcudnn.so.9" };

/// Loads what setup has installed beside this ONNX Runtime, each library after those that it needs. A library that is loaded is
/// found by its bare name from then on, so that nobody has to set LD_LIBRARY_PATH. Another ONNX Runtime than that of setup brings
/// its own.
///
/// # Errors
/// `Provider` if one of them cannot be loaded.
pub(super) fn preload(kind: ProviderKind, onnx_runtime: &Path) -> Result<()> {
    let Some((bundle, folder)) = packages::bundle_of_library(onnx_runtime) else { return Ok(()) };
    for name in bundle.preload {
        load(&folder.join(name)).map_err(|reason| {
            let command = format!("dbcache-trt setup --provider {}", bundle.name);
            unusable(kind, format!("{name}, which setup has installed, cannot be loaded: {reason}; run `{command}`"))
        })?;
    }
    if kind == ProviderKind::TensorRt
        && let Ok(own) = packages::tensorrt_folder()
    {
        for path in TENSORRT_LIBRARIES.map(|name| own.join(name)) {
            if path.is_file() {
                let failed = |reason| unusable(kind, format!("{} cannot be loaded: {reason}", path.display()));
                load(&path).map_err(failed)?;
            }
        }
    }
    Ok(())
}

/// Loads what the plugin of TensorRT for RTX needs, where it lies beside it: in the folder of setup, or of the package. What
/// does not lie there is left to the system's loader.
///
/// # Errors
/// `Provider` if one of them cannot be loaded.
pub(super) fn preload_beside(kind: ProviderKind, plugin: &Path) -> Result<()> {
    for path in TENSORRT_RTX_LIBRARIES.map(|name| plugin.with_file_name(name)) {
        if path.is_file() {
            load(&path).map_err(|reason| {
                let (path, command) = (path.display(), format!("dbcache-trt setup --provider {kind}"));
                unusable(kind, format!("{path} cannot be loaded: {reason}; run `{command}`"))
            })?;
        }
    }
    Ok(())
}

/// Loads a library for the life of the process.
fn load(path: &Path) -> Result<(), String> {
    // SAFETY: NVIDIA's libraries do nothing when they are loaded; the provider would load the same ones.
    let library = unsafe { Library::new(path) }.map_err(|error| with_cause(&error))?;
    std::mem::forget(library);
    Ok(())
}

/// Whether the GPU can be used, now that the provider is loaded: ONNX Runtime itself says so only when a graph is loaded or run.
///
/// # Errors
/// `Provider` with what is missing.
pub(super) fn check(kind: ProviderKind, gpu: i32) -> Result<()> {
    let refuse = |reason: String| Err(unusable(kind, reason));
    // SAFETY: as in `load`; where the provider has loaded it, it is the same library.
    if let Err(error) = unsafe { Library::new(CUDNN) } {
        return refuse(format!("cuDNN 9 is not there: {}; {}", with_cause(&error), INSTALL_CUDA));
    }
    match driver() {
        Ok(driver) => defect(&driver, runtime_version(), gpu).map_or(Ok(()), refuse),
        Err(reason) => refuse(format!("the NVIDIA driver cannot be asked: {reason}; {}", INSTALL_DRIVER)),
    }
}

/// Whether the plugin of TensorRT for RTX has a GPU to compute on, now that it is loaded.
///
/// # Errors
/// `Provider` with what is missing, or with the GPUs that it does not take.
pub(super) fn check_for_rtx(kind: ProviderKind, gpu: i32) -> Result<()> {
    let found = match driver() {
        // The number counts other GPUs than the driver's numbers do: each GPU that is there is looked at below.
        Ok(driver) => defect(&driver, runtime_version(), 0).or_else(|| refused_gpu(&driver.gpus, gpu)),
        Err(reason) => Some(format!("the NVIDIA driver cannot be asked: {reason}; {INSTALL_DRIVER}")),
    };
    found.map_or(Ok(()), |reason| Err(unusable(kind, reason)))
}

/// Why there is no GPU of this number among those that TensorRT for RTX takes.
fn refused_gpu(gpus: &[Gpu], wanted: i32) -> Option<String> {
    // A GPU that does not tell its capability is left to the plugin.
    let is_taken = |gpu: &&Gpu| gpu.compute_capability.is_none_or(takes);
    let taken = gpus.iter().filter(is_taken).count();
    if usize::try_from(wanted).is_ok_and(|wanted| wanted < taken) {
        return None;
    }
    let listed: Vec<String> = gpus.iter().map(ToString::to_string).collect();
    let listed = listed.join("; ");
    Some(match taken {
        0 => format!("TensorRT for RTX takes GPUs of compute capability {TAKES}, and here is {listed}; use `cuda`"),
        _ => format!(
            "there is no GPU {wanted} among the {taken} that TensorRT for RTX takes (compute capability {TAKES}); the driver \
             lists {listed}"
        ),
    })
}

/// The version of CUDA's runtime that the provider has loaded.
pub(super) fn runtime_version() -> Option<CudaVersion> {
    type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
    // SAFETY: as in `load`.
    let library = CUDA_RUNTIMES.iter().find_map(|name| unsafe { Library::new(*name) }.ok())?;
    // SAFETY: the function of CUDA's runtime has this type in all its versions.
    let get: Symbol<'_, GetVersion> = unsafe { library.get(b"cudaRuntimeGetVersion\0") }.ok()?;
    let mut version = 0;
    // SAFETY: the place is ours to write.
    (unsafe { get(&mut version) } == 0).then_some(CudaVersion(version))
}

/// Why a driver is of no use to this version of CUDA's runtime.
pub(super) fn defect(driver: &Driver, runtime: Option<CudaVersion>, gpu: i32) -> Option<String> {
    // A driver of the same major version will do: newer libraries then leave out what it does not know.
    if let Some(runtime) = runtime.filter(|runtime| driver.cuda.major() < runtime.major()) {
        let release =
            runtime.oldest_driver().map_or("a newer one".to_owned(), |oldest| format!("release {oldest} or newer"));
        return Some(format!(
            "the NVIDIA driver is too old: {driver}, and the provider's libraries are those of CUDA {runtime}; install {release} \
             of the driver"
        ));
    }
    if let Some(failure) = &driver.failure {
        return Some(format!(
            "the NVIDIA driver does not start: {failure}; `nvidia-smi` must list the GPU (after an update of the driver, only \
             once the machine has started again)"
        ));
    }
    if driver.gpus.is_empty() {
        let hidden =
            std::env::var("CUDA_VISIBLE_DEVICES").map(|value| format!(", and CUDA_VISIBLE_DEVICES is `{value}`"));
        return Some(format!(
            "no CUDA device was found: the NVIDIA driver lists no GPU ({driver}){}; `nvidia-smi` must list one, and a \
             container must be started with its GPUs (Docker's option `gpus`)",
            hidden.unwrap_or_default()
        ));
    }
    let is_listed = usize::try_from(gpu).is_ok_and(|gpu| gpu < driver.gpus.len());
    if is_listed {
        return None;
    }
    let listed: Vec<String> =
        driver.gpus.iter().enumerate().map(|(index, gpu)| format!("{index}: {}", gpu.name)).collect();
    Some(format!("there is no GPU {gpu}; the driver lists {}", listed.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_driver_is_named() {
        let h200 = Gpu { name: "H200".into(), memory_bytes: None, compute_capability: None };
        let driver = |cuda, gpus: &[Gpu], failure: Option<&str>| Driver {
            release: Some("1.2".into()),
            cuda: CudaVersion(cuda),
            gpus: gpus.to_vec(),
            failure: failure.map(str::to_owned),
        };
        let one = [h200];
        let runtime = Some(CudaVersion(13000));
        for (driver, gpu, words) in [
            (driver(13000, &one, None), 0, None),
            (driver(14000, &one, None), 0, None),
            (driver(12080, &one, None), 0, Some("is too old: release 1.2 knows CUDA up to 12.8")),
            (driver(12080, &[], None), 0, Some("those of CUDA 13.0; install release 580 or newer")),
            (driver(13000, &[], None), 0, Some("no CUDA device was found")),
            (
                driver(13000, &[], Some("cuInit fails with X (803)")),
                0,
                Some("does not start: cuInit fails with X (803)"),
            ),
            (driver(13000, &one, None), 1, Some("there is no GPU 1; the driver lists 0: H200")),
        ] {
            let defect = defect(&driver, runtime, gpu);
            match words {
                None => assert_eq!(defect, None),
                Some(words) => assert!(defect.as_ref().is_some_and(|defect| defect.contains(words)), "{defect:?}"),
            }
        }
        assert_eq!(defect(&driver(12080, &one, None), None, 0), None);
    }

    #[test]
    fn gpus_that_tensorrt_for_rtx_does_not_take_are_named() {
        let gpu = |name: &str, compute_capability| Gpu { name: name.into(), memory_bytes: None, compute_capability };
        let (h200, ada) = (gpu("H200", Some((9, 0))), gpu("RTX 4090", Some((8, 9))));
        for (gpus, wanted, words) in [
            (vec![ada.clone()], 0, None),
            (vec![h200.clone(), ada.clone()], 0, None),
            (vec![gpu("of no capability", None)], 0, None),
            (
                vec![h200.clone()],
                0,
                Some(
                    "compute capability 8.6, 8.9, and 12.0 or newer, and here is H200, compute capability 9.0; use `cuda`",
                ),
            ),
            (vec![h200, ada], 1, Some("there is no GPU 1 among the 1 that TensorRT for RTX takes")),
        ] {
            match (refused_gpu(&gpus, wanted), words) {
                (None, None) => {}
                (Some(reason), Some(words)) => assert!(reason.contains(words), "{reason}"),
                (found, _) => panic!("{gpus:?} {wanted}: {found:?}"),
            }
        }
    }
}
