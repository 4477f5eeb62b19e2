//! Numbers with a shape.

use std::ffi::c_void;
use std::sync::Arc;

use dbcache::{FloatType, ForeignTensor, MemoryKind};
use ndarray::ArrayD;

use crate::cast::{self, Versioned};
use crate::engine::dbcache_engine;
use crate::error::{DBCACHE_ERROR_RESOURCES, Failure, Outcome, dbcache_error, guard, release};
use crate::log::not_while_telling;

/// 32-bit floats.
pub const DBCACHE_DTYPE_F32: i32 = 1;
/// 16-bit floats of IEEE 754.
pub const DBCACHE_DTYPE_F16: i32 = 2;
/// The upper halves of 32-bit floats.
pub const DBCACHE_DTYPE_BF16: i32 = 3;

/// What the processor reads.
pub const DBCACHE_MEMORY_HOST: i32 = 0;
/// The memory of NVIDIA GPUs.
pub const DBCACHE_MEMORY_CUDA: i32 = 1;

/// Numbers in memory of the caller, on a device or not.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dbcache_memory {
    /// Of this struct, in bytes; the caller sets it before the call.
    pub struct_size: usize,
    /// One of DBCACHE_MEMORY_….
    pub kind: i32,
    /// Which device of that kind; 0 for the host.
    pub device_id: i32,
    /// The stream on which work on the numbers was queued. No provider takes one yet: synchronise it, and leave NULL here.
    pub stream: *mut c_void,
    /// The numbers, row-major, at a multiple of 4 bytes.
    pub data: *mut c_void,
    /// How many bytes they have.
    pub bytes: usize,
}

// SAFETY: it is as the trait wants it.
unsafe impl Versioned for dbcache_memory {
    const LEAST: usize = size_of::<Self>();
}

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
/// Errors: RESOURCES, ARGUMENT.
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
        let (shape, out) = unsafe { (cast::array(shape, rank, "shape")?, cast::place(out, "out")?) };
        if data.is_null() {
            return Err(Failure::null("data"));
        }
        let (_, size) = float_type(dtype)?;
        // Before anything is read: what lies beyond the shape's numbers may be nobody's.
        let extents = check_shape(shape, size, bytes)?;
        // SAFETY: C's promise.
        let data = unsafe { cast::array(data.cast::<u8>(), bytes, "data") }?;
        let numbers = read(dtype, data)?;
        out.put_new(dbcache_tensor::new(ArrayD::from_shape_vec(extents, numbers).map_err(|_| misfit(shape, bytes))?));
        Ok(())
    })
}

fn read(dtype: i32, data: &[u8]) -> Outcome<Vec<f32>> {
    let (float, size) = float_type(dtype)?;
    let mut numbers = Vec::new();
    numbers.try_reserve_exact(data.len() / size).map_err(|_| {
        let message = format!("argument `bytes` is {}, more than there is memory; give fewer numbers", data.len());
        Failure { code: DBCACHE_ERROR_RESOURCES, message, field: Some("bytes".to_owned()) }
    })?;
    let half = |b: &[u8]| [b[0], b[1]];
    match float {
        FloatType::F32 => numbers.extend(data.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]))),
        FloatType::F16 => numbers.extend(data.chunks_exact(2).map(|b| half::f16::from_ne_bytes(half(b)).to_f32())),
        FloatType::Bf16 => numbers.extend(data.chunks_exact(2).map(|b| half::bf16::from_ne_bytes(half(b)).to_f32())),
    }
    Ok(numbers)
}

/// The type that a DBCACHE_DTYPE_ constant names, and its bytes.
fn float_type(dtype: i32) -> Outcome<(FloatType, usize)> {
    match dtype {
        DBCACHE_DTYPE_F32 => Ok((FloatType::F32, 4)),
        DBCACHE_DTYPE_F16 => Ok((FloatType::F16, 2)),
        DBCACHE_DTYPE_BF16 => Ok((FloatType::Bf16, 2)),
        _ => Err(unknown_dtype(dtype)),
    }
}

fn unknown_dtype(dtype: i32) -> Failure {
    Failure::argument("dtype", &format!("is {dtype}; expected a DBCACHE_DTYPE_ constant"))
}

fn misfit(shape: &[i64], bytes: usize) -> Failure {
    Failure::argument("bytes", &format!("is {bytes}, which does not fit the shape {shape:?}"))
}

/// The extents, if numbers of `size` bytes in this shape fill `bytes` bytes.
fn check_shape(shape: &[i64], size: usize, bytes: usize) -> Outcome<Vec<usize>> {
    if shape.len() > MAX_RANK {
        return Err(Failure::argument("rank", &format!("is {}; expected at most {MAX_RANK}", shape.len())));
    }
    let extents: Option<Vec<usize>> = shape.iter().map(|extent| usize::try_from(*extent).ok()).collect();
    let negative = || Failure::argument("shape", &format!("is {shape:?}; expected no negative number"));
    let extents = extents.ok_or_else(negative)?;
    let needed = extents.iter().try_fold(size, |product, extent| product.checked_mul(*extent));
    if needed == Some(bytes) { Ok(extents) } else { Err(misfit(shape, bytes)) }
}

/// Makes a tensor from memory of a kind that the engine's provider knows: DBCACHE_MEMORY_HOST always, DBCACHE_MEMORY_CUDA
/// for the providers `cuda` and `tensorrt`. `memory->struct_size` must be `sizeof(dbcache_memory)`; dtype and shape as in
/// dbcache_tensor_new.
///
/// Errors: USAGE, LIBRARY, RUNTIME, RESOURCES, ARGUMENT, STATE, CANCELLED.
/// Threads: any. Ownership: the numbers are copied to host memory before it returns; the caller owns `*out`, and frees it
/// with dbcache_tensor_free.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dbcache_tensor_import(
    engine: *const dbcache_engine,
    memory: *const dbcache_memory,
    dtype: i32,
    shape: *const i64,
    rank: usize,
    out: *mut *mut dbcache_tensor,
) -> Option<Box<dbcache_error>> {
    guard(|| {
        not_while_telling()?;
        // SAFETY: C's promise.
        let (engine, memory, shape, out) = unsafe {
            (
                cast::shared(engine, "engine")?,
                cast::versioned(memory, "memory")?,
                cast::array(shape, rank, "shape")?,
                cast::place(out, "out")?,
            )
        };
        let (float, size) = float_type(dtype)?;
        let kind = match memory.kind {
            DBCACHE_MEMORY_HOST => MemoryKind::Host,
            DBCACHE_MEMORY_CUDA => MemoryKind::Cuda,
            other => {
                let problem = format!("has the kind {other}; expected a DBCACHE_MEMORY_ constant");
                return Err(Failure::argument("memory", &problem));
            }
        };
        if !memory.stream.is_null() {
            return Err(Failure::argument(
                "memory",
                "has a stream, which no provider takes; synchronise it, and give NULL",
            ));
        }
        if kind == MemoryKind::Host && memory.device_id != 0 {
            let problem = format!("has the device_id {}; the host is device 0", memory.device_id);
            return Err(Failure::argument("memory", &problem));
        }
        check_place(memory.data)?;
        check_shape(shape, size, memory.bytes)?;
        // SAFETY: C's promise, and the shape needs no more than the bytes there.
        let tensor = unsafe { ForeignTensor::new(kind, memory.device_id, float, shape, memory.data) };
        out.put_new(dbcache_tensor::new(engine.engine.import(&tensor)?));
        Ok(())
    })
}

/// Providers read numbers where any of theirs could lie.
fn check_place(data: *const c_void) -> Outcome<()> {
    if data.is_null() {
        return Err(Failure::argument("memory", "has data that is NULL"));
    }
    if !data.addr().is_multiple_of(4) {
        return Err(Failure::argument("memory", "has data that is not at a multiple of 4 bytes; align it"));
    }
    Ok(())
}

/// The extents of a tensor and how many there are.
///
/// Errors: ARGUMENT.
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
/// Errors: ARGUMENT.
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
