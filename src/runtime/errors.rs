//! ONNX Runtime's errors as ours, with the remedy where its text says that memory, threads or files are used up.

use crate::error::{Error, ErrorKind};

/// ONNX Runtime's error as ours.
pub(crate) fn runtime_error(error: ort::Error) -> Error {
    told(&error.to_string().replace('\n', " "))
}

/// What its parts and its providers write where memory is not to be had.
const NO_MEMORY: [&str; 7] = [
    "Failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "OutOfMemory",
    "ALLOC_FAILED",
    "Cannot allocate memory",
];

const NO_THREAD: &str = "pthread_create failed";
/// How ONNX Runtime says that no more files can be opened; some of its parts give the number of the error on Linux and
/// macOS only.
const NO_FILE: [&str; 2] = ["Too many open files", "SystemError : 24"];

/// What its kernels say of an index that a request gives: a label, or a token.
const NO_ROW: &str = "indices element out of data bounds";

fn told(text: &str) -> Error {
    if text.contains(NO_ROW) {
        let message =
            format!("a label or token of the request lies beyond the model's table; ONNX Runtime says: {text}");
        return Error::input(message);
    }
    if !wants_more(text) {
        return Error::new(ErrorKind::Runtime, text);
    }
    if text.contains(NO_THREAD) {
        return Error::new(ErrorKind::Resources, format!("{text}; raise the limit of threads, or run less at once"));
    }
    if NO_FILE.iter().any(|words| text.contains(words)) {
        return Error::new(ErrorKind::Resources, format!("{text}; raise the limit of open files (ulimit -n)"));
    }
    let message = format!(
        "the memory is full: make less at once (a smaller batch, size or number of frames), decode in parts (the option \
         `decode-tile` or the option `decode-slices`), map the weights (the option `weights-mode=mapped`), or keep less of the cache (the option `cache-dtype=f16`); ONNX \
         Runtime says: {text}"
    );
    Error::new(ErrorKind::Resources, message)
}

/// Whether ONNX Runtime's text says that the system has no more of something.
pub(super) fn wants_more(text: &str) -> bool {
    NO_MEMORY.iter().chain([&NO_THREAD]).chain(&NO_FILE).any(|words| text.contains(words))
}

#[cfg(test)]
mod tests {
    use super::told;

    #[test]
    fn a_full_memory_is_told_with_a_remedy() {
        for (text, is_full) in [
            ("Status Message: bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 7077888", true),
            ("Failed to load model with error: std::bad_alloc", true),
            ("CUDA failure 2: out of memory ; GPU=0", true),
            ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", true),
            ("Non-zero status code returned while running Concat node", false),
        ] {
            let error = told(text).to_string();
            assert!(error.contains(text), "{error}");
            for words in ["memory is full", "smaller batch, size", "`decode-tile`", "`weights-mode=mapped`"] {
                assert_eq!(error.contains(words), is_full, "{words}: {error}");
            }
        }
    }
}
