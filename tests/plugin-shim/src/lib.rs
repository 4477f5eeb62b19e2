//! Stands between ONNX Runtime and a plugin, for tests only: says that the machine's processor is Intel's, and on demand
//! a GPU. The OpenVINO plugin offers its CPU on Intel's processors alone, though it runs on others; the WebGPU plugin
//! wants a GPU that the system lists, though a software renderer serves it too.
//!
//! ONNX Runtime loads this library instead of the plugin. It loads the real one (environment variable
//! `PLUGIN_SHIM_LIBRARY`) and hands it a copy of ONNX Runtime's function table with three functions replaced.
//! `PLUGIN_SHIM_DEVICE=gpu` makes a GPU of the processor.

use std::ffi::{c_char, c_void};
use std::sync::OnceLock;

use libloading::Library;
use ort_sys::{OrtApi, OrtApiBase, OrtHardwareDevice, OrtHardwareDeviceType};

/// What PCI calls Intel.
const INTEL: u32 = 0x8086;

type CreateEpFactories = unsafe extern "C" fn(
    *const c_char,
    *const OrtApiBase,
    *const c_void,
    *mut *mut c_void,
    usize,
    *mut usize,
) -> *mut c_void;
type ReleaseEpFactory = unsafe extern "C" fn(*mut c_void) -> *mut c_void;

/// A pointer into ONNX Runtime's or our own tables, which live as long as the process.
#[derive(Clone, Copy)]
struct Shared<T>(*const T);

// SAFETY: the tables are never written after they are made.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

static REAL_BASE: OnceLock<Shared<OrtApiBase>> = OnceLock::new();
static TABLE: OnceLock<Shared<OrtApi>> = OnceLock::new();
static PLUGIN: OnceLock<Option<Library>> = OnceLock::new();

extern "system" fn vendor_id(_: *const OrtHardwareDevice) -> u32 {
    INTEL
}

extern "system" fn vendor(_: *const OrtHardwareDevice) -> *const c_char {
    c"Intel".as_ptr()
}

extern "system" fn gpu(_: *const OrtHardwareDevice) -> OrtHardwareDeviceType {
    OrtHardwareDeviceType::OrtHardwareDeviceType_GPU
}

/// ONNX Runtime's table with our functions in it; null for a version that ONNX Runtime does not know.
extern "system" fn table(version: u32) -> *const OrtApi {
    let Some(base) = REAL_BASE.get() else { return std::ptr::null() };
    // SAFETY: ONNX Runtime gave us its base, which lives as long as the process.
    let real = unsafe { ((*base.0).GetApi)(version) };
    if real.is_null() {
        return real;
    }
    let make = || {
        // SAFETY: the table of ONNX Runtime 1.31 and newer holds at least what `ort-sys` knows of it; its fields are
        // function pointers, which may be copied.
        let mut table = Box::new(unsafe { std::ptr::read(real) });
        table.HardwareDevice_VendorId = vendor_id;
        table.HardwareDevice_Vendor = vendor;
        if std::env::var_os("PLUGIN_SHIM_DEVICE").is_some_and(|device| device == "gpu") {
            table.HardwareDevice_Type = gpu;
        }
        Shared(Box::leak(table))
    };
    TABLE.get_or_init(make).0
}

extern "system" fn version() -> *const c_char {
    match REAL_BASE.get() {
        // SAFETY: as in `table`.
        Some(base) => unsafe { ((*base.0).GetVersionString)() },
        None => c"".as_ptr(),
    }
}

/// The plugin; none, with a line on standard error, where it cannot be loaded.
fn plugin() -> Option<&'static Library> {
    let load = || {
        let path = std::env::var_os("PLUGIN_SHIM_LIBRARY")?;
        // SAFETY: the test that names a library trusts it.
        unsafe { Library::new(&path) }.inspect_err(|error| eprintln!("plugin-shim: {error}")).ok()
    };
    PLUGIN.get_or_init(load).as_ref()
}

/// # Safety
/// Called by ONNX Runtime, with the arguments that it gives to plugins.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn CreateEpFactories(
    name: *const c_char,
    base: *const OrtApiBase,
    logger: *const c_void,
    factories: *mut *mut c_void,
    most: usize,
    count: *mut usize,
) -> *mut c_void {
    REAL_BASE.get_or_init(|| Shared(base));
    // SAFETY: the symbol has this type in every plugin.
    let create = plugin().and_then(|plugin| unsafe { plugin.get::<CreateEpFactories>(b"CreateEpFactories\0") }.ok());
    let Some(create) = create else {
        // SAFETY: `count` is ONNX Runtime's; no factory is an error that it reports.
        unsafe { *count = 0 };
        return std::ptr::null_mut();
    };
    let ours = Box::leak(Box::new(OrtApiBase { GetApi: table, GetVersionString: version }));
    // SAFETY: the arguments are ONNX Runtime's, but for the base, which lives as long as the process.
    unsafe { create(name, ours, logger, factories, most, count) }
}

/// # Safety
/// Called by ONNX Runtime, with a factory that the plugin made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ReleaseEpFactory(factory: *mut c_void) -> *mut c_void {
    // SAFETY: the symbol has this type in every plugin.
    match plugin().and_then(|plugin| unsafe { plugin.get::<ReleaseEpFactory>(b"ReleaseEpFactory\0") }.ok()) {
        // SAFETY: the factory is the plugin's.
        Some(release) => unsafe { release(factory) },
        None => std::ptr::null_mut(),
    }
}
