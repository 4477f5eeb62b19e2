//! Tensors in memory that a host has made by itself, on a device or not: read once, through the provider that knows that
//! memory.

use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;

use half::{bf16, f16};
use ndarray::ArrayD;
use ort::AsPointer;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::value::{DynTensor, DynTensorValueType, DynValue, PrimitiveTensorElementType};

use super::device_memory::{DeviceMemory, TensorKind};
use super::errors::runtime_error;
use super::memory::host_tensor;
use super::provider::ProviderKind;
use crate::error::{Error, Result};
use crate::model::manifest::DType;

/// A kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryKind {
    /// What the processor reads.
    Host,
    /// That of NVIDIA GPUs.
    Cuda,
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Cuda => "cuda",
        })
    }
}

/// The type of the numbers of a [`ForeignTensor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum FloatType {
    F32,
    F16,
    Bf16,
}

/// Numbers, row-major, in memory that is not this library's.
#[derive(Clone, Debug)]
pub struct ForeignTensor {
    memory: MemoryKind,
    device_id: i32,
    float: FloatType,
    shape: Vec<i64>,
    data: *mut c_void,
}

impl ForeignTensor {
    /// # Safety
    /// `data` holds that many numbers in that memory of that device, and nothing writes to them while the tensor lives:
    /// work on them that was queued before must be done.
    pub unsafe fn new(memory: MemoryKind, device_id: i32, float: FloatType, shape: &[i64], data: *mut c_void) -> Self {
        Self { memory, device_id, float, shape: shape.to_vec(), data }
    }
}

/// The numbers, as f32 in host memory.
///
/// # Errors
/// `Usage` where the provider does not know that memory; `Input` for an impossible shape; `Runtime`.
pub(crate) fn read(memory: &DeviceMemory, tensor: &ForeignTensor) -> Result<ArrayD<f32>> {
    let provider = memory.device.spec().kind();
    let place = match tensor.memory {
        MemoryKind::Host => AllocationDevice::CPU,
        MemoryKind::Cuda if matches!(provider, ProviderKind::Cuda | ProviderKind::TensorRt) => AllocationDevice::CUDA,
        kind => {
            return Err(Error::usage(format!(
                "the provider `{provider}` has no memory of the kind {kind}; give the tensor in host memory, or load the \
                 engine with a provider that computes there"
            ))
            .about("provider"));
        }
    };
    let extents: Option<Vec<usize>> = tensor.shape.iter().map(|extent| usize::try_from(*extent).ok()).collect();
    let misfit = || Error::input(format!("a tensor cannot have the shape {:?}", tensor.shape));
    let extents = extents.ok_or_else(misfit)?;
    if tensor.data.is_null() || !(tensor.data as usize).is_multiple_of(4) {
        return Err(Error::input(format!(
            "the numbers of a tensor must lie at a multiple of 4 bytes, not at {:#x}",
            tensor.data as usize
        )));
    }
    let info = MemoryInfo::new(place, tensor.device_id, AllocatorType::Device, MemoryType::Default);
    let info = info.map_err(runtime_error)?;
    let numbers = match tensor.float {
        FloatType::F32 => copy::<f32>(memory, tensor, info, DType::F32)?,
        FloatType::F16 => copy::<f16>(memory, tensor, info, DType::F16)?.into_iter().map(f16::to_f32).collect(),
        FloatType::Bf16 => copy::<bf16>(memory, tensor, info, DType::Bf16)?.into_iter().map(bf16::to_f32).collect(),
    };
    ArrayD::from_shape_vec(extents, numbers).map_err(|_| misfit())
}

fn copy<T: PrimitiveTensorElementType + Clone + fmt::Debug>(
    memory: &DeviceMemory,
    tensor: &ForeignTensor,
    info: MemoryInfo<'_>,
    dtype: DType,
) -> Result<Vec<T>> {
    let from = wrap(tensor, &info, dtype)?;
    let mut to = host_tensor(dtype, &tensor.shape)?;
    memory.copy(TensorKind { dtype, rank: tensor.shape.len() }, &from, &mut to)?;
    let (_, numbers) = to.try_extract_tensor::<T>().map_err(runtime_error)?;
    Ok(numbers.to_vec())
}

/// The host's numbers as a tensor of ONNX Runtime, without a copy. Not by `ort`'s view of foreign memory: binding one
/// clones it through a graph of `ort`'s own, for which it binds one again, and waits for itself.
fn wrap(tensor: &ForeignTensor, info: &MemoryInfo<'_>, dtype: DType) -> Result<DynTensor> {
    use ort::sys::ONNXTensorElementDataType as Element;
    let element = match tensor.float {
        FloatType::F32 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        FloatType::F16 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        FloatType::Bf16 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
    };
    let bytes = tensor.shape.iter().fold(dtype.bytes(), |product, extent| product.saturating_mul(*extent as u64));
    let (mut value, shape) = (std::ptr::null_mut(), &tensor.shape);
    // SAFETY: whoever made the tensor has promised that its numbers lie there; the rest is ours and alive.
    let status = unsafe {
        (ort::api().CreateTensorWithDataAsOrtValue)(
            info.ptr(),
            tensor.data,
            bytes as usize,
            shape.as_ptr(),
            shape.len(),
            element,
            &mut value,
        )
    };
    // SAFETY: the status comes from ONNX Runtime and is used once.
    unsafe { ort::Error::result_from_status(status) }.map_err(runtime_error)?;
    let value = NonNull::new(value).ok_or_else(|| Error::internal("a tensor of nothing"))?;
    // SAFETY: the value was just made, and belongs to nobody else; the memory is none of the allocator's, which is named
    // because tensors must have one.
    let value = unsafe { DynValue::from_ptr(value, Some(&Allocator::default())) };
    value.downcast::<DynTensorValueType>().map_err(runtime_error)
}
