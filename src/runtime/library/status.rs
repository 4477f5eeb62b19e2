//! Error codes that `ort` can read.
//!
//! Where ONNX Runtime cannot open a file, its code is the system's `errno`. `ort` takes each code for a variant of an enum that
//! ends at 15, so "too many open files" (24 on Linux) would be a jump to anywhere. It gets a table of ONNX Runtime's
//! functions in which codes beyond the enum are plain failures; the message still says what happened.

use std::path::Path;
use std::sync::OnceLock;

use libloading::{Library, Symbol};
use ort::sys::{ORT_API_VERSION, OrtApiBase, OrtErrorCode, OrtStatus};

type GetBase = unsafe extern "system" fn() -> *const OrtApiBase;
/// `GetErrorCode`, with what it gives before it is taken for a variant.
type GetCode = unsafe extern "system" fn(*const OrtStatus) -> i32;

static ORIGINAL: OnceLock<GetCode> = OnceLock::new();

/// Gives `ort` the functions of the library that it has loaded from `path`. They are those of the first call.
pub(super) fn read_codes(path: &Path) -> Result<(), String> {
    // SAFETY: the library is loaded already, so that nothing of it runs now, and stays loaded; its functions are those of
    // ONNX Runtime, as `ort` has found out by its version.
    let mut api = unsafe {
        let library = Library::new(path).map_err(|error| error.to_string())?;
        let base: Symbol<'_, GetBase> = library.get(b"OrtGetApiBase").map_err(|error| error.to_string())?;
        let api = ((*base()).GetApi)(ORT_API_VERSION);
        api.as_ref().ok_or_else(|| format!("it lacks version {ORT_API_VERSION} of its functions"))?.clone()
    };
    // SAFETY: a function that gives an enum of `i32` is one that gives an `i32`.
    ORIGINAL.get_or_init(|| unsafe { std::mem::transmute::<_, GetCode>(api.GetErrorCode) });
    api.GetErrorCode = code;
    ort::set_api(api);
    Ok(())
}

unsafe extern "system" fn code(status: *const OrtStatus) -> OrtErrorCode {
    let Some(original) = ORIGINAL.get() else { return OrtErrorCode::ORT_FAIL };
    // SAFETY: it is called as the original would be.
    let code = unsafe { original(status) };
    if (OrtErrorCode::ORT_OK as i32..=OrtErrorCode::ORT_DEVICE_RESET as i32).contains(&code) {
        // SAFETY: all numbers of this range are variants.
        unsafe { std::mem::transmute::<i32, OrtErrorCode>(code) }
    } else {
        OrtErrorCode::ORT_FAIL
    }
}
