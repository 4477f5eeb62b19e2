//! The memory that a provider's tensors lie in, and how they are allocated there.

use std::ptr::{self, NonNull};

use ort::AsPointer;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::value::{DynTensor, TensorElementType};

use super::errors::runtime_error;
use super::library::Loaded;
use crate::error::{At, Error, Result};
use crate::model::manifest::DType;

/// A kind of memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Memory {
    /// ONNX Runtime's own in the host.
    Host,
    /// A GPU's, of a provider that is built in.
    Cuda {
        /// Which GPU.
        device: i32,
    },
    /// What a plugin names.
    Plugin {
        /// Belongs to the plugin's device, which lives as long as the process's environment.
        info: NonNull<ort::sys::OrtMemoryInfo>,
        /// Whether the host may read and write it.
        is_host: bool,
    },
}

// SAFETY: what it points to is never written, and lives as long as the process's environment.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Whether the host may read and write it.
    pub(crate) fn is_host(self) -> bool {
        matches!(self, Self::Host | Self::Plugin { is_host: true, .. })
    }
}

/// Makes tensors in one kind of memory.
pub(super) enum Tensors {
    Host(Allocator),
    /// Through a session of the provider.
    Session(Allocator),
    /// The environment's: it lives as long as the process's environment.
    Plugin(NonNull<ort::sys::OrtAllocator>),
}

// SAFETY: the environment's allocators may be used by any thread.
unsafe impl Send for Tensors {}

impl Tensors {
    /// `of_session` gives the allocator of any session of the provider.
    ///
    /// # Errors
    /// `Runtime` when the memory is not to be had.
    pub(super) fn new(
        memory: Memory,
        library: &Loaded,
        of_session: impl FnOnce(MemoryInfo<'static>) -> Result<Allocator>,
    ) -> Result<Self> {
        match memory {
            Memory::Host => Ok(Self::Host(Allocator::default())),
            Memory::Cuda { device } => {
                let info = MemoryInfo::new(AllocationDevice::CUDA, device, AllocatorType::Device, MemoryType::Default)
                    .map_err(runtime_error)?;
                of_session(info).map(Self::Session)
            }
            Memory::Plugin { info, .. } => {
                let mut allocator = ptr::null_mut();
                let environment = library.environment.ptr().cast_mut();
                // SAFETY: the environment and the memory's description are alive; the place is ours to write.
                let status = unsafe { (ort::api().GetSharedAllocator)(environment, info.as_ptr(), &mut allocator) };
                // SAFETY: the status comes from ONNX Runtime and is used once.
                unsafe { ort::Error::result_from_status(status) }.map_err(runtime_error)?;
                let missing = || Error::internal("a plugin names memory without an allocator");
                NonNull::new(allocator).map(Self::Plugin).ok_or_else(missing)
            }
        }
    }

    /// A tensor; of zeros in host memory, of anything elsewhere.
    pub(super) fn tensor(&self, dtype: DType, shape: &[i64]) -> Result<DynTensor> {
        let place = || format!("allocating {} {shape:?}", dtype.name());
        match self {
            Self::Host(allocator) | Self::Session(allocator) => {
                DynTensor::new(allocator, element(dtype), shape.to_vec()).map_err(runtime_error).at(place())
            }
            Self::Plugin(allocator) => {
                let mut value = ptr::null_mut();
                let (axes, element) = (shape.as_ptr(), element(dtype).into());
                // SAFETY: the allocator lives as long as the environment; the shape is read during the call only; the
                // place is ours to write.
                let status = unsafe {
                    (ort::api().CreateTensorAsOrtValue)(allocator.as_ptr(), axes, shape.len(), element, &mut value)
                };
                // SAFETY: the status comes from ONNX Runtime and is used once.
                unsafe { ort::Error::result_from_status(status) }.map_err(runtime_error).at(place())?;
                let value =
                    NonNull::new(value).ok_or_else(|| Error::internal("a tensor without a value")).at(place())?;
                // SAFETY: the value is new and ours. `ort` keeps an allocator alive for it, here the one that is never
                // freed: that of the tensor lives as long as the environment.
                Ok(unsafe { DynTensor::from_ptr(value, Some(&Allocator::default())) })
            }
        }
    }
}

/// A tensor of zeros in host memory.
pub(super) fn host_tensor(dtype: DType, shape: &[i64]) -> Result<DynTensor> {
    DynTensor::new(&Allocator::default(), element(dtype), shape.to_vec())
        .map_err(|error| runtime_error(error).at(format!("allocating {} {shape:?}", dtype.name())))
}

/// ONNX Runtime's name of a dtype.
pub(super) fn element(dtype: DType) -> TensorElementType {
    match dtype {
        DType::F32 => TensorElementType::Float32,
        DType::F16 => TensorElementType::Float16,
        DType::Bf16 => TensorElementType::Bfloat16,
        DType::I64 => TensorElementType::Int64,
    }
}
