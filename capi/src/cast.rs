//! Pointers from C to Rust and back: the only place where they are followed.
//!
//! What a caller must keep: pointers are NULL or valid, texts end with a zero, arrays are as long as said.

use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;
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

/// A struct that crosses. Newer versions append members, so that programs and libraries of different ages go together.
///
/// # Safety
/// It is `repr(C)`, its first member is `struct_size: usize`, and zeros are a value of each member.
pub(crate) unsafe trait Versioned: Copy {
    /// Bytes of the oldest version.
    const LEAST: usize;
}

/// Bytes that no struct of any version has: what tells of more was never set, and must not be read.
const LONGEST_STRUCT: usize = 4096;

/// The size that a struct of the caller tells of itself.
///
/// # Safety
/// `pointer` is NULL or a struct of which the first member, its size, is set.
unsafe fn told_size<T: Versioned>(pointer: *const T, name: &str) -> Outcome<usize> {
    if pointer.is_null() {
        return Err(Failure::null(name));
    }
    // SAFETY: not NULL, and the caller's promise.
    let size = unsafe { pointer.cast::<usize>().read() };
    if !(T::LEAST..=LONGEST_STRUCT).contains(&size) {
        let now = size_of::<T>();
        let problem = format!("has struct_size {size}; set it to the size of the struct, which is {now}");
        return Err(Failure::argument(name, &problem));
    }
    Ok(size)
}

/// A struct of the caller, copied. Members that an older program does not know are 0; those that this library does not know
/// must be.
///
/// # Safety
/// `pointer` is NULL, or a struct as long as its first member says.
pub(crate) unsafe fn versioned<T: Versioned>(pointer: *const T, name: &str) -> Outcome<T> {
    // SAFETY: the caller's promise.
    let size = unsafe { told_size(pointer, name) }?;
    let known = size.min(size_of::<T>());
    // SAFETY: the caller's promise.
    let unknown = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>().add(known), size - known) };
    if unknown.iter().any(|byte| *byte != 0) {
        let problem = format!(
            "has struct_size {size}, of which this library knows {known} bytes, and sets something in the others; set \
             them to 0, or use a newer library"
        );
        return Err(Failure::argument(name, &problem));
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: both have `known` bytes and are not the same; zeros are values of the members that are not copied.
    Ok(unsafe {
        value.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(pointer.cast(), known);
        value.assume_init()
    })
}

/// A struct of the caller that is filled: as many bytes as both sides know, which its first member tells afterwards.
pub(crate) struct VersionedPlace<T> {
    pointer: *mut T,
    size: usize,
}

/// # Safety
/// As [`versioned`], until the call returns; members but the first one may be uninitialised.
pub(crate) unsafe fn versioned_place<T: Versioned>(pointer: *mut T, name: &str) -> Outcome<VersionedPlace<T>> {
    // SAFETY: the caller's promise.
    let size = unsafe { told_size(pointer, name) }?.min(size_of::<T>());
    Ok(VersionedPlace { pointer, size })
}

impl<T: Versioned> VersionedPlace<T> {
    pub(crate) fn put(self, value: T) {
        // SAFETY: `versioned_place` was promised room for `size` bytes, which `value` has, too; they are not the same.
        unsafe { self.pointer.cast::<u8>().copy_from_nonoverlapping((&raw const value).cast(), self.size) };
        // SAFETY: `size` is at least that of the oldest version, which begins with this member.
        unsafe { self.pointer.cast::<usize>().write(self.size) };
    }
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
/// its end among them. They are told as well where the capacity is too small: a text may have grown since it was asked for.
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
        length.put(needed);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The third version of a struct that once ended after `a`, then after `b`.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Thing {
        struct_size: usize,
        a: u32,
        b: u32,
        c: u64,
    }

    // SAFETY: it is as the trait wants it.
    unsafe impl Versioned for Thing {
        const LEAST: usize = std::mem::offset_of!(Thing, b);
    }

    const NOW: usize = size_of::<Thing>();

    fn thing(struct_size: usize) -> Thing {
        Thing { struct_size, a: 1, b: 2, c: 3 }
    }

    /// The thing, and bytes after it, as a newer program would have them.
    #[repr(C)]
    struct Newer(Thing, [u8; 8]);

    #[test]
    fn older_and_newer_structs_are_read() {
        // SAFETY: the structs are at least as long as they say.
        let read = |thing: Thing, more| unsafe { versioned(&Newer(thing, [more; 8]).0, "thing") };
        for (size, b, c) in [(12, 0, 0), (16, 2, 0), (NOW, 2, 3)] {
            assert_eq!(read(thing(size), 9).unwrap(), Thing { b, c, ..thing(size) }, "{size}");
        }
        assert_eq!(read(thing(NOW + 8), 0).unwrap(), thing(NOW + 8));
        let refused = read(thing(NOW + 8), 9).unwrap_err();
        assert!(refused.message.contains("has struct_size 32, of which this library knows 24"), "{}", refused.message);
        for size in [0, 8, 11, LONGEST_STRUCT + 1, usize::MAX] {
            let refused = read(thing(size), 0).unwrap_err();
            assert!(refused.message.ends_with("the size of the struct, which is 24"), "{}", refused.message);
        }
    }

    #[test]
    fn older_and_newer_structs_are_filled() {
        let filled = Thing { struct_size: 0, a: 7, b: 8, c: 9 };
        for (size, told, b, c) in [(12, 12, 2, 3), (16, 16, 8, 3), (NOW, NOW, 8, 9), (NOW + 8, NOW, 8, 9)] {
            let mut place = Newer(thing(size), [5; 8]);
            // SAFETY: the struct is at least as long as it says.
            unsafe { versioned_place(&raw mut place.0, "thing") }.unwrap().put(filled);
            assert_eq!((place.0, place.1), (Thing { struct_size: told, a: 7, b, c }, [5; 8]), "{size}");
        }
        // SAFETY: NULL is allowed.
        assert!(unsafe { versioned_place::<Thing>(std::ptr::null_mut(), "thing") }.is_err());
    }
}
