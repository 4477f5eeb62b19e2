//! What there is of each provider on this machine, and what is missing.

use std::fmt;
use std::path::Path;

use serde_json::{Value, json};

use super::failure::{damage, setup_command, unusable};
use super::kind::ProviderKind;
use super::nvidia::runtime_version;
use super::openvino;
use super::register::{Provider, devices, metadata, plugin_file, plugin_path};
use super::spec::{ProviderSpec, Providers};
use crate::error::Error;
use crate::packages::{self, ReadDepth, SlotState};
use crate::runtime::driver::{CudaVersion, Driver, driver};
use crate::runtime::library::{LibraryOptions, Loaded, Work, environment_for, places};

/// One provider on this machine.
#[derive(Clone, Debug)]
pub struct ProviderReport {
    /// Which one.
    pub kind: ProviderKind,
    /// Whether this program can use it at all (its Cargo feature).
    pub is_compiled_in: bool,
    /// The file that holds it, where one was found.
    pub library: Option<String>,
    /// Its version: that of the plugin, or of the ONNX Runtime that it is a part of.
    pub version: Option<String>,
    /// What it can compute on, as far as it tells.
    pub devices: Vec<String>,
    /// The driver that it needs, and its version; `None` for a provider without one.
    pub driver: Option<String>,
    /// Why it cannot be used, with what to install; `None` if it can.
    pub missing: Option<String>,
    /// The command that mends that, where one command does.
    pub remedy: Option<String>,
}

/// Every provider, tried on the library that the options find. `given` holds options for some, such as a plugin's file.
///
/// # Errors
/// `Library` when there is no usable ONNX Runtime.
pub fn provider_reports(options: &LibraryOptions, given: Option<&Providers>) -> Result<Vec<ProviderReport>, Error> {
    let of_cuda = || packages::installed_bundle(ProviderKind::Cuda.as_str());
    let damage = of_cuda().filter(|_| options.path.is_none()).and_then(|(bundle, folder)| damage(bundle, &folder));
    // ONNX Runtime's build for GPUs has the CPU and takes plugins as well: if it is there and whole, it shows all providers.
    let wanted = if damage.is_none() { ProviderSpec::new(ProviderKind::Cuda).into() } else { Providers::default() };
    let library = match environment_for(options, &wanted, Work::Large) {
        Err(_) if places(options).iter().all(|place| !place.path.is_file()) => {
            return Ok(ProviderKind::ALL.into_iter().map(without_library).collect());
        }
        library => library?,
    };
    let spec = |kind: ProviderKind| {
        let given = given.and_then(|given| given.iter().find(|spec| spec.kind() == kind));
        given.cloned().unwrap_or_else(|| ProviderSpec::new(kind))
    };
    Ok(ProviderKind::ALL.into_iter().map(|kind| report(&library, &spec(kind), damage.as_deref())).collect())
}

/// Before anything is set up.
fn without_library(kind: ProviderKind) -> ProviderReport {
    let driver = kind.is_of_nvidia().then(driver);
    ProviderReport {
        kind,
        is_compiled_in: is_compiled_in(kind),
        library: None,
        version: None,
        devices: Vec::new(),
        driver: driver.map(|driver| told(&driver)),
        missing: Some(format!("the provider `{kind}` cannot be used: there is no ONNX Runtime")),
        remedy: setup_command(kind),
    }
}

/// `damage` is what is wrong with the build for GPUs.
fn report(library: &Loaded, spec: &ProviderSpec, damage: Option<&str>) -> ProviderReport {
    let kind = spec.kind();
    let opened = match damage.filter(|_| kind.built_in_file().is_some()) {
        Some(damage) => Err(unusable(kind, damage)),
        None => Provider::open(library, spec, false).and_then(|provider| provider.memory(library)),
    };
    let missing = opened.err().map(|error| error.message().to_owned());
    let plugin = plugin_file(kind);
    let file = match (plugin, kind.built_in_file()) {
        (Some(file), _) => plugin_path(library, spec, file).ok(),
        (None, Some(file)) => Some(library.info.path.with_file_name(file)).filter(|path| path.is_file()),
        (None, None) => Some(library.info.path.clone()),
    };
    let of_plugin = plugin.is_some().then(|| devices(library, kind).next()).flatten();
    let version = match plugin {
        Some(_) => of_plugin.and_then(|device| metadata(&device, "version")),
        None => file.as_ref().map(|_| library.info.version.clone()),
    };
    let driver = kind.is_of_nvidia().then(driver);
    ProviderReport {
        kind,
        is_compiled_in: is_compiled_in(kind),
        library: file.map(|path| path.display().to_string()),
        version,
        devices: match &driver {
            Some(Ok(driver)) if !driver.gpus.is_empty() => driver.gpus.iter().map(ToString::to_string).collect(),
            _ => found_devices(library, kind),
        },
        driver: driver.map(|driver| told(&driver)),
        remedy: missing.as_deref().and_then(|missing| remedy(kind, missing)),
        missing,
    }
}

fn is_compiled_in(kind: ProviderKind) -> bool {
    match kind {
        ProviderKind::Cuda => cfg!(feature = "cuda"),
        ProviderKind::TensorRt => cfg!(feature = "tensorrt"),
        ProviderKind::Cpu | ProviderKind::TensorRtRtx | ProviderKind::OpenVino | ProviderKind::WebGpu => true,
    }
}

/// A driver beside what is needed: the CUDA of the provider's libraries, if they are loaded, else that of setup's.
fn told(driver: &Result<Driver, String>) -> String {
    let needed = runtime_version().unwrap_or(CudaVersion(13000));
    let oldest = needed.oldest_driver().map_or_else(String::new, |oldest| format!(", release {oldest} or newer"));
    match driver {
        Ok(driver) => format!("{driver}; CUDA {}.0 is needed{oldest}", needed.major()),
        Err(reason) => format!("none ({reason}); one for CUDA {}.0 is needed{oldest}", needed.major()),
    }
}

/// The command that installs what is missing. What only an administrator can install has none.
fn remedy(kind: ProviderKind, missing: &str) -> Option<String> {
    let packages = if kind == ProviderKind::TensorRt { ProviderKind::Cuda } else { kind };
    let is_whole = packages::installed_bundle(packages.as_str())
        .is_some_and(|(bundle, folder)| bundle.state(&folder, ReadDepth::Library) == SlotState::Valid);
    let is_about_tensorrt = kind == ProviderKind::TensorRt && missing.contains("libnv");
    setup_command(kind).filter(|_| kind != ProviderKind::Cpu && (!is_whole || is_about_tensorrt))
}

fn found_devices(library: &Loaded, kind: ProviderKind) -> Vec<String> {
    match kind {
        ProviderKind::Cpu => vec![format!("{} thread(s)", library.info.threads)],
        ProviderKind::Cuda | ProviderKind::TensorRt | ProviderKind::TensorRtRtx => {
            nvidia_gpus(Path::new("/proc/driver/nvidia/gpus"))
        }
        ProviderKind::OpenVino | ProviderKind::WebGpu => {
            let name = |device: ort::device::Device<'_>| {
                let told =
                    ["FULL_DEVICE_NAME", openvino::DEVICE_METADATA].iter().find_map(|key| metadata(&device, key));
                let vendor = || device.hardware_device().vendor().map(str::to_owned).unwrap_or_default();
                told.unwrap_or_else(vendor)
            };
            devices(library, kind).map(name).collect()
        }
    }
}

/// The models of NVIDIA's GPUs, as the driver lists them.
fn nvidia_gpus(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let model = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix("Model:").map(str::trim).map(str::to_owned));
        line.unwrap_or_else(|| "a GPU of NVIDIA".to_owned())
    };
    let texts = entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path().join("information")).ok());
    let mut gpus: Vec<String> = texts.map(model).collect();
    gpus.sort();
    gpus
}

impl ProviderReport {
    /// The report as JSON.
    pub fn to_json(&self) -> Value {
        json!({
            "provider": self.kind.as_str(),
            "usable": self.missing.is_none(),
            "compiled_in": self.is_compiled_in,
            "library": self.library,
            "version": self.version,
            "devices": self.devices,
            "driver": self.driver,
            "missing": self.missing,
            "remedy": self.remedy,
        })
    }
}

/// A line for what it is, one for each device, and one each for the driver, what is missing and what mends it.
impl fmt::Display for ProviderReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.missing.is_none() { "usable" } else { "not usable" };
        write!(f, "{:<12} {state}", self.kind.as_str())?;
        if let Some(version) = &self.version {
            write!(f, ", version {version}")?;
        }
        if let Some(library) = &self.library {
            write!(f, ", {library}")?;
        }
        if !self.is_compiled_in {
            write!(f, "; this program is built without its Cargo feature")?;
        }
        for device in &self.devices {
            write!(f, "\n             device: {device}")?;
        }
        if let Some(driver) = &self.driver {
            write!(f, "\n             driver: {driver}")?;
        }
        if let Some(missing) = &self.missing {
            write!(f, "\n             {missing}")?;
        }
        match &self.remedy {
            Some(remedy) => write!(f, "\n             mend it: {remedy}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_listed_by_model() {
        let folder = tempfile::tempdir().unwrap();
        for (place, text) in [("0000:65:00.0", "Model: \t\t NVIDIA H100\nIRQ: 1\n"), ("0000:66:00.0", "IRQ: 1\n")] {
            std::fs::create_dir(folder.path().join(place)).unwrap();
            std::fs::write(folder.path().join(place).join("information"), text).unwrap();
        }
        assert_eq!(nvidia_gpus(folder.path()), ["NVIDIA H100", "a GPU of NVIDIA"]);
        assert!(nvidia_gpus(Path::new("/no/such/folder")).is_empty());
    }
}
