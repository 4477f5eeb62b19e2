//! What NVIDIA's driver says of itself and of its GPUs, through its own two libraries. Neither is linked, and either may be
//! missing.

use std::ffi::{CStr, CString, c_char, c_int, c_uint};
use std::fmt;

use libloading::{Library, Symbol};

use crate::units::bytes_in_words;

/// The driver itself: `libcuda`.
const DRIVER: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
/// Its library for administration, which knows the driver's own version.
const MANAGEMENT: &str = if cfg!(windows) { "nvml.dll" } else { "libnvidia-ml.so.1" };

const SUCCESS: c_int = 0;
/// The driver works, and there is no GPU for it.
const NO_DEVICE: c_int = 100;

/// Numbers of the driver's attributes of a GPU.
const COMPUTE_MAJOR: c_int = 75;
const COMPUTE_MINOR: c_int = 76;

/// A driver that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Driver {
    /// Its release, such as `580.65.06`.
    pub(crate) release: Option<String>,
    /// The newest CUDA that it knows.
    pub(crate) cuda: CudaVersion,
    pub(crate) gpus: Vec<Gpu>,
    /// Why it lists no GPU, where that is not for there being none.
    pub(crate) failure: Option<String>,
}

/// A version of CUDA as its libraries count: 1000 for each major and 10 for each minor one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CudaVersion(pub(crate) c_int);

impl CudaVersion {
    pub(crate) fn major(self) -> c_int {
        self.0 / 1000
    }

    /// The oldest release of the driver that knows this major version of CUDA, on Linux.
    pub(crate) fn oldest_driver(self) -> Option<u32> {
        match self.major() {
            12 => Some(525),
            13 => Some(580),
            _ => None,
        }
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gpu {
    pub(crate) name: String,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) compute_capability: Option<(c_int, c_int)>,
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(bytes) = self.memory_bytes {
            write!(f, ", {}", bytes_in_words(bytes))?;
        }
        match self.compute_capability {
            Some((major, minor)) => write!(f, ", compute capability {major}.{minor}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.release {
            Some(release) => write!(f, "release {release} knows CUDA up to {}", self.cuda),
            None => write!(f, "it knows CUDA up to {}", self.cuda),
        }
    }
}

/// Asks the driver.
///
/// # Errors
/// Why it cannot be asked.
pub(crate) fn driver() -> Result<Driver, String> {
    // SAFETY: the driver's library only prepares itself when it is loaded; a provider would load the same one.
    let library = unsafe { Library::new(DRIVER) }.map_err(|error| with_cause(&error))?;
    let cuda = cuda_version(&library)?;
    let (gpus, failure) = match gpus(&library) {
        Ok(gpus) => (gpus, None),
        Err(failure) => (Vec::new(), Some(failure)),
    };
    // The driver holds threads and handlers: it stays, as it would for a provider.
    std::mem::forget(library);
    Ok(Driver { release: release(), cuda, gpus, failure })
}

type GetNumber = unsafe extern "C" fn(*mut c_int) -> c_int;
type Init = unsafe extern "C" fn(c_uint) -> c_int;
type GetDevice = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
type GetText = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
type GetBytes = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
type GetAttribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
type NameError = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;

/// A function of the driver, or its name.
fn function<'l, T>(library: &'l Library, name: &str) -> Result<Symbol<'l, T>, String> {
    let symbol = CString::new(name).map_err(|error| error.to_string())?;
    // SAFETY: every caller names a function of the driver's public interface, with the type that it has had in all versions.
    unsafe { library.get(symbol.as_bytes_with_nul()) }
        .map_err(|_| format!("{DRIVER} has no {name}: it is another library"))
}

fn cuda_version(library: &Library) -> Result<CudaVersion, String> {
    let get: Symbol<'_, GetNumber> = function(library, "cuDriverGetVersion")?;
    let mut version = 0;
    // SAFETY: the place is ours to write; this function may be called first of all.
    match unsafe { get(&mut version) } {
        SUCCESS => Ok(CudaVersion(version)),
        code => Err(failed(library, "cuDriverGetVersion", code)),
    }
}

fn gpus(library: &Library) -> Result<Vec<Gpu>, String> {
    let init: Symbol<'_, Init> = function(library, "cuInit")?;
    // SAFETY: it may be called more than once, from any thread.
    match unsafe { init(0) } {
        SUCCESS => {}
        NO_DEVICE => return Ok(Vec::new()),
        code => return Err(failed(library, "cuInit", code)),
    }
    let count: Symbol<'_, GetNumber> = function(library, "cuDeviceGetCount")?;
    let mut gpus = 0;
    // SAFETY: the place is ours to write.
    match unsafe { count(&mut gpus) } {
        SUCCESS => (0..gpus).map(|index| gpu(library, index)).collect(),
        NO_DEVICE => Ok(Vec::new()),
        code => Err(failed(library, "cuDeviceGetCount", code)),
    }
}

fn gpu(library: &Library, index: c_int) -> Result<Gpu, String> {
    let get: Symbol<'_, GetDevice> = function(library, "cuDeviceGet")?;
    let mut device = 0;
    // SAFETY: the place is ours to write.
    let code = unsafe { get(&mut device, index) };
    if code != SUCCESS {
        return Err(failed(library, "cuDeviceGet", code));
    }
    let name: Symbol<'_, GetText> = function(library, "cuDeviceGetName")?;
    let mut text: [c_char; 256] = [0; 256];
    // SAFETY: the driver writes at most one byte less than there are, and a zero behind them.
    let code = unsafe { name(text.as_mut_ptr(), text.len() as c_int - 1, device) };
    // SAFETY: the last byte is zero whatever the driver has written.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned();
    let attribute = |number| {
        let get: Symbol<'_, GetAttribute> = function(library, "cuDeviceGetAttribute").ok()?;
        let mut value = 0;
        // SAFETY: the place is ours to write.
        (unsafe { get(&mut value, number, device) } == SUCCESS).then_some(value)
    };
    let memory = || {
        let get: Symbol<'_, GetBytes> = function(library, "cuDeviceTotalMem_v2").ok()?;
        let mut bytes = 0;
        // SAFETY: the place is ours to write.
        (unsafe { get(&mut bytes, device) } == SUCCESS).then_some(bytes as u64)
    };
    Ok(Gpu {
        name: if code == SUCCESS { text } else { format!("GPU {index}") },
        memory_bytes: memory(),
        compute_capability: attribute(COMPUTE_MAJOR).zip(attribute(COMPUTE_MINOR)),
    })
}

/// What failed, with the driver's own name of the error where it has one.
fn failed(library: &Library, function_name: &str, code: c_int) -> String {
    let name = || {
        let get: Symbol<'_, NameError> = function(library, "cuGetErrorName").ok()?;
        let mut name = std::ptr::null();
        // SAFETY: the place is ours to write.
        let is_known = unsafe { get(code, &mut name) } == SUCCESS && !name.is_null();
        // SAFETY: not null; the driver's names live as long as the process.
        is_known.then(|| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
    };
    match name() {
        Some(name) => format!("{function_name} fails with {name} ({code})"),
        None => format!("{function_name} fails with error {code}"),
    }
}

/// The driver's release, from its library for administration.
fn release() -> Option<String> {
    type Simple = unsafe extern "C" fn() -> c_int;
    type Release = unsafe extern "C" fn(*mut c_char, c_uint) -> c_int;
    // SAFETY: the library does nothing when it is loaded.
    let library = unsafe { Library::new(MANAGEMENT) }.ok()?;
    let init: Symbol<'_, Simple> = function(&library, "nvmlInit_v2").ok()?;
    let get: Symbol<'_, Release> = function(&library, "nvmlSystemGetDriverVersion").ok()?;
    let end: Symbol<'_, Simple> = function(&library, "nvmlShutdown").ok()?;
    // SAFETY: takes nothing.
    if unsafe { init() } != SUCCESS {
        return None;
    }
    let mut text: [c_char; 96] = [0; 96];
    // SAFETY: the library writes at most one byte less than there are, and a zero behind them.
    let code = unsafe { get(text.as_mut_ptr(), text.len() as c_uint - 1) };
    // SAFETY: ends what was begun above.
    unsafe { end() };
    // SAFETY: the last byte is zero whatever the library has written.
    (code == SUCCESS).then(|| unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
}

/// The loader's own words, which the error itself leaves out.
pub(crate) fn with_cause(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_gpus_for_a_person() {
        let cuda = CudaVersion(12040);
        assert_eq!((cuda.to_string(), cuda.major(), cuda.oldest_driver()), ("12.4".into(), 12, Some(525)));
        let mut gpu =
            Gpu { name: "NVIDIA H200".into(), memory_bytes: Some(150_000_000_000), compute_capability: Some((9, 0)) };
        assert_eq!(gpu.to_string(), "NVIDIA H200, 150.0 GB, compute capability 9.0");
        (gpu.memory_bytes, gpu.compute_capability) = (None, None);
        assert_eq!(gpu.to_string(), "NVIDIA H200");
        let release = Some("580.65.06".to_owned());
        let driver = Driver { release, cuda: CudaVersion(13000), gpus: vec![], failure: None };
        assert_eq!(driver.to_string(), "release 580.65.06 knows CUDA up to 13.0");
    }
}
