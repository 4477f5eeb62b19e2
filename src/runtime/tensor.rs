//! Tensors that stay where the provider computes, and the arena in which one request keeps its own.

use half::{bf16, f16};
use ort::memory::Allocator;
use ort::value::{DynTensor, PrimitiveTensorElementType, TensorElementType};

use super::session::runtime_error;
use crate::error::{Error, Result};
use crate::model::manifest::DType;

/// Names a tensor of [`Buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BufferId(usize);

/// All tensors of one request. They are allocated once per shape, bound once, and reused over the steps.
#[derive(Default)]
pub(crate) struct Buffers {
    tensors: Vec<Buffer>,
}

struct Buffer {
    value: DynTensor,
    dtype: DType,
    shape: Vec<i64>,
}

impl Buffers {
    /// Allocates a tensor filled with zeros.
    pub(crate) fn add(&mut self, dtype: DType, shape: &[i64]) -> Result<BufferId> {
        let element = match dtype {
            DType::F32 => TensorElementType::Float32,
            DType::F16 => TensorElementType::Float16,
            DType::Bf16 => TensorElementType::Bfloat16,
            DType::I64 => TensorElementType::Int64,
        };
        let value = DynTensor::new(&Allocator::default(), element, shape.to_vec())
            .map_err(|error| runtime_error(error).at(format!("allocating {} {shape:?}", dtype.name())))?;
        let id = BufferId(self.tensors.len());
        self.tensors.push(Buffer { value, dtype, shape: shape.to_vec() });
        let value = &mut self.tensors[id.0].value;
        match dtype {
            DType::F32 => slice_mut::<f32>(value)?.fill(0.0),
            DType::F16 => slice_mut::<f16>(value)?.fill(f16::ZERO),
            DType::Bf16 => slice_mut::<bf16>(value)?.fill(bf16::ZERO),
            DType::I64 => slice_mut::<i64>(value)?.fill(0),
        }
        Ok(id)
    }

    pub(crate) fn shape(&self, id: BufferId) -> &[i64] {
        &self.tensors[id.0].shape
    }

    pub(crate) fn dtype(&self, id: BufferId) -> DType {
        self.tensors[id.0].dtype
    }

    /// Bytes of one tensor.
    pub(crate) fn bytes(&self, id: BufferId) -> u64 {
        let buffer = &self.tensors[id.0];
        buffer.shape.iter().product::<i64>() as u64 * buffer.dtype.bytes()
    }

    pub(super) fn value(&self, id: BufferId) -> &DynTensor {
        &self.tensors[id.0].value
    }

    pub(super) fn value_mut(&mut self, id: BufferId) -> &mut DynTensor {
        &mut self.tensors[id.0].value
    }

    /// Copies host numbers in, rounded to the tensor's dtype.
    pub(crate) fn write(&mut self, id: BufferId, numbers: &[f32]) -> Result<()> {
        let buffer = &mut self.tensors[id.0];
        let expected = buffer.shape.iter().product::<i64>() as usize;
        if numbers.len() != expected {
            return Err(Error::internal(format!("{} numbers for a tensor of {:?}", numbers.len(), buffer.shape)));
        }
        match buffer.dtype {
            DType::F32 => slice_mut::<f32>(&mut buffer.value)?.copy_from_slice(numbers),
            DType::F16 => fill(slice_mut(&mut buffer.value)?, numbers, f16::from_f32),
            DType::Bf16 => fill(slice_mut(&mut buffer.value)?, numbers, bf16::from_f32),
            DType::I64 => return Err(Error::internal("floats for an integer tensor")),
        }
        Ok(())
    }

    pub(crate) fn write_ids(&mut self, id: BufferId, ids: &[i64]) -> Result<()> {
        slice_mut::<i64>(&mut self.tensors[id.0].value)?.copy_from_slice(ids);
        Ok(())
    }

    /// Copies the numbers out as f32.
    pub(crate) fn read(&self, id: BufferId) -> Result<Vec<f32>> {
        let buffer = &self.tensors[id.0];
        Ok(match buffer.dtype {
            DType::F32 => slice::<f32>(&buffer.value)?.to_vec(),
            DType::F16 => slice::<f16>(&buffer.value)?.iter().map(|x| x.to_f32()).collect(),
            DType::Bf16 => slice::<bf16>(&buffer.value)?.iter().map(|x| x.to_f32()).collect(),
            DType::I64 => return Err(Error::internal("floats of an integer tensor")),
        })
    }

    /// Bytes of all tensors.
    pub(crate) fn total_bytes(&self) -> u64 {
        (0..self.tensors.len()).map(|index| self.bytes(BufferId(index))).sum()
    }

    /// The first number that is NaN or infinite, looked for without a copy.
    pub(crate) fn first_not_finite(&self, id: BufferId) -> Result<Option<f32>> {
        let buffer = &self.tensors[id.0];
        Ok(match buffer.dtype {
            DType::F32 => find_not(slice::<f32>(&buffer.value)?, |x| x.is_finite()).copied(),
            DType::F16 => find_not(slice::<f16>(&buffer.value)?, |x| x.is_finite()).map(|x| x.to_f32()),
            DType::Bf16 => find_not(slice::<bf16>(&buffer.value)?, |x| x.is_finite()).map(|x| x.to_f32()),
            DType::I64 => None,
        })
    }

    /// The numbers of an f32 tensor in host memory.
    pub(super) fn floats(&self, id: BufferId) -> Result<&[f32]> {
        slice(&self.tensors[id.0].value)
    }

    /// f32 tensors in host memory to read, and another one to write.
    pub(super) fn split<const N: usize>(
        &mut self,
        read: [BufferId; N],
        write: BufferId,
    ) -> Result<([&[f32]; N], &mut [f32])> {
        if read.contains(&write) {
            return Err(Error::internal("a tensor is read and written at once"));
        }
        // Two parts, between which the written tensor lies.
        let (below, rest) = self.tensors.split_at_mut(write.0);
        let [written, above @ ..] = rest else { return Err(Error::internal("a tensor that does not exist")) };
        let mut slices: [&[f32]; N] = [&[]; N];
        for (place, id) in slices.iter_mut().zip(read) {
            let buffer = if id.0 < write.0 { &below[id.0] } else { &above[id.0 - write.0 - 1] };
            *place = slice(&buffer.value)?;
        }
        let written = slice_mut(&mut written.value)?;
        if slices.iter().any(|slice| slice.len() != written.len()) {
            return Err(Error::internal("tensors of several lengths"));
        }
        Ok((slices, written))
    }
}

fn slice<T: PrimitiveTensorElementType + 'static>(value: &DynTensor) -> Result<&[T]> {
    Ok(value.try_extract_tensor::<T>().map_err(runtime_error)?.1)
}

fn slice_mut<T: PrimitiveTensorElementType + 'static>(value: &mut DynTensor) -> Result<&mut [T]> {
    Ok(value.try_extract_tensor_mut::<T>().map_err(runtime_error)?.1)
}

/// The first number that `holds` is wrong for. Whole chunks are tested without a branch, so that the compiler can use
/// vectors.
fn find_not<T>(numbers: &[T], holds: impl Fn(&T) -> bool) -> Option<&T> {
    let chunk = numbers.chunks(1024).find(|chunk| !chunk.iter().fold(true, |all, number| all & holds(number)))?;
    chunk.iter().find(|number| !holds(number))
}

fn fill<T>(target: &mut [T], numbers: &[f32], round: impl Fn(f32) -> T) {
    for (target, number) in target.iter_mut().zip(numbers) {
        *target = round(*number);
    }
}
