//! What there is of each provider on this machine, and what is missing.

use std::fmt;
use std::path::Path;

use serde_json::{Value, json};

use super::register::{devices, metadata, plugin_file, plugin_path};
use super::spec::{ProviderKind, ProviderSpec, Providers};
use super::{Provider, openvino};
use crate::error::Result;
use crate::runtime::library::{LibraryOptions, Loaded, environment};

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
    /// Why it cannot be used, with what to install; `None` if it can.
    pub missing: Option<String>,
}

/// Every provider, tried on the library that the options find. `given` holds options for some, such as a plugin's file.
///
/// # Errors
/// `Library` when there is no usable ONNX Runtime.
pub fn provider_reports(options: &LibraryOptions, given: Option<&Providers>) -> Result<Vec<ProviderReport>> {
    let library = environment(options)?;
    let spec = |kind: ProviderKind| {
        let given = given.and_then(|given| given.iter().find(|spec| spec.kind() == kind));
        given.cloned().unwrap_or_else(|| ProviderSpec::new(kind))
    };
    Ok(ProviderKind::ALL.into_iter().map(|kind| report(&library, &spec(kind))).collect())
}

fn report(library: &Loaded, spec: &ProviderSpec) -> ProviderReport {
    let kind = spec.kind();
    let opened = Provider::open(library, spec, false).and_then(|provider| provider.memory(library));
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
    ProviderReport {
        kind,
        is_compiled_in: match kind {
            ProviderKind::Cuda => cfg!(feature = "cuda"),
            ProviderKind::TensorRt => cfg!(feature = "tensorrt"),
            ProviderKind::Cpu | ProviderKind::OpenVino | ProviderKind::WebGpu => true,
        },
        library: file.map(|path| path.display().to_string()),
        version,
        devices: found_devices(library, kind),
        missing: opened.err().map(|error| error.message().to_owned()),
    }
}

fn found_devices(library: &Loaded, kind: ProviderKind) -> Vec<String> {
    match kind {
        ProviderKind::Cpu => vec![format!("{} thread(s)", library.info.threads)],
        ProviderKind::Cuda | ProviderKind::TensorRt => nvidia_gpus(Path::new("/proc/driver/nvidia/gpus")),
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
            "missing": self.missing,
        })
    }
}

/// A line for what it is, one for each device, and one for what is missing.
impl fmt::Display for ProviderReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.missing.is_none() { "usable" } else { "not usable" };
        write!(f, "{:<9} {state}", self.kind.as_str())?;
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
            write!(f, "\n          device: {device}")?;
        }
        match &self.missing {
            Some(missing) => write!(f, "\n          {missing}"),
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
