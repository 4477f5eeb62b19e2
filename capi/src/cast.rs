//! Pointers from C to Rust and back: the only place where they are followed.
//!
//! What a caller must keep: pointers are NULL or valid, texts end with a zero, arrays are as long as said.

use std::ffi::{CStr, c_char};
use std::path::PathBuf;

use crate::error::{Failure, Outcome};

/// A handle that is not changed, or an error that names the argument.
///
/// # Safety
/// `pointer` is NULL or valid for as long as the reference is used.
pub(crate) unsafe fn shared<'a, T>(pointer: *const T, name: &str) -> Outcome<&'a T> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or_else(|| Failure::null(name))
}

/// A handle that is changed: no other thread uses it meanwhile.
///
/// # Safety
/// `pointer` is NULL or valid, and nobody else uses it, for as long as the reference is used.
pub(crate) unsafe fn exclusive<'a, T>(pointer: *mut T, name: &str) -> Outcome<&'a mut T> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_mut() }.ok_or_else(|| Failure::null(name))
}

/// The size that a struct of the caller tells of itself, if it is the expected one.
///
/// # Safety
/// `pointer` is NULL or a struct of which the first member, its size, is set.
pub(crate) unsafe fn size<T>(pointer: *const T, name: &str) -> Outcome<usize> {
    if pointer.is_null() {
        return Err(Failure::null(name));
    }
    // SAFETY: not NULL, and the caller's promise.
    let size = unsafe { pointer.cast::<usize>().read() };
    let expected = size_of::<T>();
    if size != expected {
        let problem = format!("has struct_size {size}; set it to the size of the struct, which is {expected}");
        return Err(Failure::argument(name, &problem));
    }
    Ok(size)
}

/// A struct of the caller, which begins with its size.
///
/// # Safety
/// As [`size`]; the other members are set as well, and it lives for as long as the reference is used.
pub(crate) unsafe fn sized<'a, T>(pointer: *const T, name: &str) -> Outcome<&'a T> {
    // SAFETY: the caller's promise.
    unsafe { size(pointer, name) }?;
    // SAFETY: not NULL, of the expected size, and the caller's promise.
    Ok(unsafe { &*pointer })
}

/// A text, copied.
///
/// # Safety
/// `pointer` is NULL or a text that ends with a zero.
pub(crate) unsafe fn text(pointer: *const c_char, name: &str) -> Outcome<String> {
    if pointer.is_null() {
        return Err(Failure::null(name));
    }
    // SAFETY: not NULL, and the caller's promise.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map(str::to_owned).map_err(|_| Failure::argument(name, "is not UTF-8"))
}

/// A path, copied.
///
/// # Safety
/// As [`text`].
pub(crate) unsafe fn path(pointer: *const c_char, name: &str) -> Outcome<PathBuf> {
    // SAFETY: the caller's promise.
    unsafe { text(pointer, name) }.map(PathBuf::from)
}

/// An array that is read. NULL is an error even for no elements.
///
/// # Safety
/// `pointer` is NULL or holds `length` elements for as long as the slice is used.
pub(crate) unsafe fn array<'a, T>(pointer: *const T, length: usize, name: &str) -> Outcome<&'a [T]> {
    if pointer.is_null() {
        return Err(Failure::null(name));
    }
    if !pointer.is_aligned() || length.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Failure::argument(name, "is not aligned, or longer than memory"));
    }
    // SAFETY: not NULL, aligned, of a possible length, and the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, length) })
}

/// A place for an output: written once, and only on success.
pub(crate) struct Place<T>(*mut T);

/// # Safety
/// `pointer` is NULL or valid for one write until the call returns.
pub(crate) unsafe fn place<T>(pointer: *mut T, name: &str) -> Outcome<Place<T>> {
    if pointer.is_null() { Err(Failure::null(name)) } else { Ok(Place(pointer)) }
}

impl<T> Place<T> {
    pub(crate) fn put(self, value: T) {
        // SAFETY: `place` was promised that the pointer is valid; the caller's memory may be uninitialised.
        unsafe { self.0.write(value) };
    }
}

impl<T> Place<*mut T> {
    /// Hands an object to the caller, who frees it with the function of its type.
    pub(crate) fn put_new(self, value: T) {
        self.put(Box::into_raw(Box::new(value)));
    }
}

/// Takes back what [`Place::put_new`] handed out.
///
/// # Safety
/// `pointer` is NULL or came from [`Place::put_new`], and is not used any more.
pub(crate) unsafe fn take<T>(pointer: *mut T) -> Option<Box<T>> {
    // SAFETY: not NULL, and the caller's promise.
    (!pointer.is_null()).then(|| unsafe { Box::from_raw(pointer) })
}

/// Copies a text into a caller's buffer: with a NULL buffer and capacity 0 only the bytes it needs are told, the zero at
/// its end among them.
///
/// # Safety
/// `buffer` is NULL or has room for `capacity` bytes, `length` is NULL or valid for one write.
pub(crate) unsafe fn copy_text(text: &str, buffer: *mut c_char, capacity: usize, length: *mut usize) -> Outcome<()> {
    // SAFETY: the caller's promise.
    let length = unsafe { place(length, "length") }?;
    let needed = text.len() + 1;
    if buffer.is_null() && capacity == 0 {
        length.put(needed);
        return Ok(());
    }
    if buffer.is_null() {
        return Err(Failure::null("buffer"));
    }
    if capacity < needed {
        return Err(Failure::argument("capacity", &format!("is {capacity}; the text needs {needed} bytes")));
    }
    // SAFETY: the buffer has room for `capacity` bytes, at least the text and a zero, and is not the text.
    unsafe {
        buffer.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len());
        buffer.add(text.len()).write(0);
    }
    length.put(needed);
    Ok(())
}

/// Copies numbers into a caller's array of exactly as many.
///
/// # Safety
/// `to` is NULL or has room for `count` elements.
pub(crate) unsafe fn copy_array<T: Copy>(from: &[T], to: *mut T, count: usize, name: &str) -> Outcome<()> {
    if to.is_null() {
        return Err(Failure::null(name));
    }
    if count != from.len() {
        let problem = format!("has room for {count} numbers; expected exactly {}", from.len());
        return Err(Failure::argument(name, &problem));
    }
    // SAFETY: room for `count` elements, which are as many as there are, and not the same memory.
    unsafe { to.copy_from_nonoverlapping(from.as_ptr(), count) };
    Ok(())
}
