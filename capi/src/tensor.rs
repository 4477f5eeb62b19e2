//! Numbers with a shape.

use std::ffi::c_void;
use std::sync::Arc;

use ndarray::ArrayD;

use crate::cast;
use crate::error::{Failure, Outcome, dbcache_error, guard, release};

/// 32-bit floats.
pub const DBCACHE_DTYPE_F32: i32 = 1;
/// 16-bit floats of IEEE 754.
pub const DBCACHE_DTYPE_F16: i32 = 2;
/// The upper halves of 32-bit floats.
pub const DBCACHE_DTYPE_BF16: i32 = 3;

/// Most axes of a tensor.
const MAX_RANK: usize = 16;

/// A tensor in host memory, immutable: any number of threads may read it. Its numbers are 32-bit floats, row-major.
pub struct dbcache_tensor {
    pub(crate) numbers: Arc<ArrayD<f32>>,
    shape: Vec<i64>,
}

impl dbcache_tensor {
    /// From an array in any layout.
    pub(crate) fn new(numbers: ArrayD<f32>) -> Self {
        let shape = numbers.shape().iter().map(|extent| *extent as i64).collect();
        Self { numbers: Arc::new(numbers.as_standard_layout().into_owned()), shape }
    }
}

/// Makes a tensor from host memory: `rank` extents in `shape` and `bytes` bytes of numbers of `dtype` (DBCACHE_DTYPE_F32,
/// _F16 or _BF16), row-major. Halves become 32-bit floats.
///
/// Threads: any. Ownership: shape and numbers are copied; the caller owns `*out`, and frees it with dbcache_tensor_free.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_tensor_new(
    dtype: i32,
    shape: *const i64,
    rank: usize,
    data: *const c_void,
    bytes: usize,
    out: *mut *mut dbcache_tensor,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (shape, data, out) = unsafe {
            (
                cast::array(shape, rank, "shape")?,
                cast::array(data.cast::<u8>(), bytes, "data")?,
                cast::place(out, "out")?,
            )
        };
        out.put_new(dbcache_tensor::new(read(dtype, shape, data)?));
        Ok(())
    })
}

fn read(dtype: i32, shape: &[i64], data: &[u8]) -> Outcome<ArrayD<f32>> {
    if shape.len() > MAX_RANK {
        return Err(Failure::argument("rank", &format!("is {}; expected at most {MAX_RANK}", shape.len())));
    }
    let extents: Option<Vec<usize>> = shape.iter().map(|extent| usize::try_from(*extent).ok()).collect();
    let extents =
        extents.ok_or_else(|| Failure::argument("shape", &format!("is {shape:?}; expected no negative number")))?;
    let count = extents.iter().try_fold(1_usize, |product, extent| product.checked_mul(*extent));
    let half = |b: &[u8]| [b[0], b[1]];
    let (size, numbers): (usize, Vec<f32>) = match dtype {
        DBCACHE_DTYPE_F32 => (4, data.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()),
        DBCACHE_DTYPE_F16 => (2, data.chunks_exact(2).map(|b| half::f16::from_ne_bytes(half(b)).to_f32()).collect()),
        DBCACHE_DTYPE_BF16 => (2, data.chunks_exact(2).map(|b| half::bf16::from_ne_bytes(half(b)).to_f32()).collect()),
        _ => return Err(Failure::argument("dtype", &format!("is {dtype}; expected a DBCACHE_DTYPE_ constant"))),
    };
    let misfit = || Failure::argument("bytes", &format!("is {}, which does not fit the shape {shape:?}", data.len()));
    if count.and_then(|count| count.checked_mul(size)) != Some(data.len()) {
        return Err(misfit());
    }
    ArrayD::from_shape_vec(extents, numbers).map_err(|_| misfit())
}

/// The extents of a tensor and how many there are.
///
/// Threads: any. Ownership: `*shape` is the tensor's and lives as long.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_tensor_shape(
    tensor: *const dbcache_tensor,
    shape: *mut *const i64,
    rank: *mut usize,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (tensor, shape, rank) =
            unsafe { (cast::shared(tensor, "tensor")?, cast::place(shape, "shape")?, cast::place(rank, "rank")?) };
        shape.put(tensor.shape.as_ptr());
        rank.put(tensor.shape.len());
        Ok(())
    })
}

/// The numbers of a tensor, row-major, and how many there are.
///
/// Threads: any. Ownership: `*data` is the tensor's and lives as long.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_tensor_data(
    tensor: *const dbcache_tensor,
    data: *mut *const f32,
    count: *mut usize,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        // SAFETY: C's promise.
        let (tensor, data, count) =
            unsafe { (cast::shared(tensor, "tensor")?, cast::place(data, "data")?, cast::place(count, "count")?) };
        data.put(tensor.numbers.as_ptr());
        count.put(tensor.numbers.len());
        Ok(())
    })
}

/// Frees a tensor that dbcache_tensor_new has made. NULL is allowed. Requests that took it keep their copy.
///
/// Threads: one, when no other uses the tensor. Ownership: takes the tensor. Not for tensors of results.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dbcache_tensor_free(tensor: *mut dbcache_tensor) {
    // SAFETY: C's promise.
    release(|| unsafe { cast::take(tensor) });
}
