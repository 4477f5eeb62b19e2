//! One CUDA stream for all sessions of a process on one GPU.
//!
//! By itself each session of ONNX Runtime has a stream of its own, and TensorRT's waits for it within each run as well. On
//! one stream, what one session has written the next one reads in order, and each run ends with one wait, so that the host
//! may read and write bound tensors between runs. With the option `async` only those runs wait that take from the host or give
//! to it: at their end, and before they begin, since ONNX Runtime copies to the device outside of the stream.
//!
//! CUDA's runtime is loaded when it is needed, by the name under which the provider has loaded it: nothing of it is linked.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Mutex, PoisonError};

use libloading::{Library, Symbol};

use super::driver::with_cause;
use super::provider::failure::INSTALL_CUDA;
use super::provider::nvidia::CUDA_RUNTIMES;
use crate::error::{Error, ErrorKind, Result};

/// Does not wait for the stream that everything else in the process shares.
const NON_BLOCKING: c_uint = 1;

type SetDevice = unsafe extern "C" fn(c_int) -> c_int;
type CreateStream = unsafe extern "C" fn(*mut *mut c_void, c_uint) -> c_int;
type Synchronize = unsafe extern "C" fn(*mut c_void) -> c_int;

/// The streams by their GPU. They are never destroyed: sessions of any engine of the process may use them.
static STREAMS: Mutex<BTreeMap<i32, Stream>> = Mutex::new(BTreeMap::new());

/// A stream of a GPU, which lives as long as the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    /// CUDA's pointer.
    handle: usize,
    /// CUDA's function, found beside the one that made the stream.
    synchronize: Synchronize,
}

impl Stream {
    /// The stream of this GPU, made when it is first asked for.
    ///
    /// # Errors
    /// `Provider` if CUDA's runtime is not there, or has no such GPU.
    pub(crate) fn of_device(device: i32) -> Result<Self> {
        let mut streams = STREAMS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = streams.get(&device) {
            return Ok(*stream);
        }
        let stream = create(CUDA_RUNTIMES, device)?;
        streams.insert(device, stream);
        Ok(stream)
    }

    /// What a provider is told, so that its sessions use this stream.
    pub(crate) fn pairs(self) -> [(String, String); 2] {
        let pair = |key: &str, value: String| (key.to_owned(), value);
        [pair("has_user_compute_stream", "1".to_owned()), pair("user_compute_stream", self.handle.to_string())]
    }

    /// Waits until all that was launched on it is done.
    ///
    /// # Errors
    /// `Runtime` if something of it failed.
    pub(crate) fn wait(self) -> Result<()> {
        // SAFETY: the stream lives as long as the process, and its library with it.
        match unsafe { (self.synchronize)(self.handle as *mut c_void) } {
            0 => Ok(()),
            code => Err(Error::new(
                ErrorKind::Runtime,
                format!("what ran on the GPU failed with CUDA's error {code}; without `async` the graph is named"),
            )),
        }
    }

    /// A stream of no GPU, for tests; waiting for it fails with its handle as the code.
    #[cfg(test)]
    pub(crate) fn of_test(handle: usize) -> Self {
        unsafe extern "C" fn fail(handle: *mut c_void) -> c_int {
            handle as c_int
        }
        Self { handle, synchronize: fail }
    }
}

fn create(names: &[&str], device: i32) -> Result<Stream> {
    let library = open(names)?;
    // SAFETY: the function of CUDA's runtime has this type in all its versions.
    let set_device: Symbol<'_, SetDevice> = unsafe { library.get(b"cudaSetDevice\0") }.map_err(not_cuda)?;
    // SAFETY: as above.
    let create_stream: Symbol<'_, CreateStream> =
        unsafe { library.get(b"cudaStreamCreateWithFlags\0") }.map_err(not_cuda)?;
    // SAFETY: as above.
    let synchronize: Symbol<'_, Synchronize> = unsafe { library.get(b"cudaStreamSynchronize\0") }.map_err(not_cuda)?;
    let synchronize = *synchronize;
    // SAFETY: takes a number only; one that no GPU has is an error.
    check("cudaSetDevice", device, unsafe { set_device(device) })?;
    let mut stream = std::ptr::null_mut();
    // SAFETY: the place is ours to write.
    check("cudaStreamCreateWithFlags", device, unsafe { create_stream(&mut stream, NON_BLOCKING) })?;
    // The stream needs its library for as long as it lives.
    std::mem::forget(library);
    Ok(Stream { handle: stream as usize, synchronize })
}

fn open(names: &[&str]) -> Result<Library> {
    let mut reasons = Vec::new();
    for name in names {
        // SAFETY: CUDA's runtime does nothing when it is loaded; where a provider has loaded it, it is the same library.
        match unsafe { Library::new(*name) } {
            Ok(library) => return Ok(library),
            Err(error) => reasons.push(with_cause(&error)),
        }
    }
    Err(refuse(format!("CUDA's runtime cannot be loaded ({})", reasons.join("; "))))
}

fn not_cuda(error: libloading::Error) -> Error {
    refuse(format!("what is loaded as CUDA's runtime is another library ({error})"))
}

fn check(function: &str, device: i32, code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let reason = format!("{function} failed on GPU {device} with CUDA's error {code}");
    Err(no_stream(reason, "`nvidia-smi` must list the GPU, and show memory that is free"))
}

/// CUDA's runtime itself is missing, or another library.
fn refuse(reason: String) -> Error {
    let remedy = format!(
        "{INSTALL_CUDA}; `stream=own` gives each session a stream by itself, for which ONNX Runtime needs the same library"
    );
    no_stream(reason, &remedy)
}

fn no_stream(reason: String, remedy: &str) -> Error {
    Error::new(ErrorKind::Provider, format!("no CUDA stream for the sessions: {reason}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let another = if cfg!(windows) { "kernel32.dll" } else { "libc.so.6" };
        for (names, words) in [
            (&["libcudart-none.so.13", "libcudart-none.so.12"][..], "libcudart-none.so.12"),
            (&[another], "is another library"),
        ] {
            let error = create(names, 0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Provider);
            for word in [words, "dbcache-trt setup --provider cuda", "LD_LIBRARY_PATH", "`stream=own`"] {
                assert!(error.to_string().contains(word), "{error}");
            }
        }
        let error = check("cudaSetDevice", 3, 101).unwrap_err();
        assert!(error.to_string().contains("cudaSetDevice failed on GPU 3 with CUDA's error 101"), "{error}");
        check("cudaSetDevice", 3, 0).unwrap();
    }

    #[test]
    fn a_failure_is_told_where_it_is_waited_for() {
        Stream::of_test(0).wait().unwrap();
        let error = Stream::of_test(700).wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Runtime);
        assert!(error.to_string().contains("failed with CUDA's error 700; without `async`"), "{error}");
    }

    #[test]
    fn what_a_provider_is_told() {
        let text = Stream::of_test(4096).pairs().map(|(key, value)| format!("{key}={value}")).join(" ");
        assert_eq!(text, "has_user_compute_stream=1 user_compute_stream=4096");
    }
}
