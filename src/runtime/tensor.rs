//! Tensors that stay where the provider computes, and the arena in which one request keeps its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use half::{bf16, f16};
use ort::value::{DynTensor, PrimitiveTensorElementType};

use super::capture::CaptureCounts;
use super::device_memory::{DeviceMemory, TensorKind};
use super::errors::runtime_error;
use super::held::Held;
use super::memory::{Tensors, host_tensor};
use super::shelf::TensorId;
use super::turn::turn;
use crate::error::{Error, Result};
use crate::model::manifest::DType;

/// Names a tensor of [`Buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BufferId(usize);

/// Where a tensor lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TensorPlace {
    /// Where the provider computes.
    Device,
    /// In host memory, also where the provider computes elsewhere: what the host writes or reads at each step. Graphs
    /// copy it whenever they run.
    Host,
}

/// All tensors of one request. They are allocated once per shape, bound once, and reused over the steps.
pub(crate) struct Buffers {
    tensors: Vec<Buffer>,
    /// Where the tensors of the cache lie.
    kept: TensorPlace,
    memory: Arc<DeviceMemory>,
    /// Allocates where the provider computes.
    of_device: Tensors,
    /// Bytes that were copied from a device at the host's wish.
    read_bytes: AtomicU64,
    /// Counts the runs of sessions that are bound to these tensors.
    runs: Arc<Runs>,
    /// Whether runs are recorded on these tensors.
    is_recorded: bool,
    /// Stages whose runs are not, and why.
    refused: BTreeSet<String>,
}

/// Runs of sessions, counted.
#[derive(Debug, Default)]
pub(super) struct Runs {
    pub all: AtomicUsize,
    /// Runs of stages that were recorded, that replayed a recording, and that did neither, where runs are recorded at all.
    pub recorded: AtomicUsize,
    pub replayed: AtomicUsize,
    pub plain: AtomicUsize,
}

struct Buffer {
    id: TensorId,
    value: Held<DynTensor>,
    dtype: DType,
    shape: Vec<i64>,
    /// Whether the host may read and write it.
    is_host: bool,
}

impl Buffer {
    fn kind(&self) -> TensorKind {
        TensorKind { dtype: self.dtype, rank: self.shape.len() }
    }
}

impl Buffers {
    /// `kept` is where the tensors of the cache lie.
    pub(crate) fn new(memory: &Arc<DeviceMemory>, kept: TensorPlace) -> Result<Self> {
        let (tensors, read_bytes, runs, is_recorded, refused) = Default::default();
        let (memory, of_device) = (Arc::clone(memory), memory.tensors()?);
        Ok(Self { tensors, kept, memory, of_device, read_bytes, runs, is_recorded, refused })
    }

    /// Allocates a tensor filled with zeros, where the provider computes.
    pub(crate) fn add(&mut self, dtype: DType, shape: &[i64]) -> Result<BufferId> {
        self.add_at(TensorPlace::Device, dtype, shape)
    }

    /// Allocates a tensor of the cache, filled with zeros, where the request keeps its cache.
    pub(crate) fn add_kept(&mut self, dtype: DType, shape: &[i64]) -> Result<BufferId> {
        self.add_at(self.kept, dtype, shape)
    }

    /// Allocates a tensor filled with zeros.
    pub(crate) fn add_at(&mut self, place: TensorPlace, dtype: DType, shape: &[i64]) -> Result<BufferId> {
        let is_host = place == TensorPlace::Host || self.memory.device.is_host();
        let kept = if is_host { None } else { self.memory.shelf().and_then(|shelf| shelf.take(dtype, shape)) };
        let (tensor, value) = match (kept, place) {
            (Some(kept), _) => kept,
            (None, TensorPlace::Host) => (TensorId::new(), Held::new(host_tensor(dtype, shape)?, false)),
            (None, TensorPlace::Device) => {
                let takes_turns = self.memory.device.takes_turns();
                let _turn = turn(takes_turns);
                (TensorId::new(), Held::new(self.of_device.tensor(dtype, shape)?, takes_turns))
            }
        };
        let id = BufferId(self.tensors.len());
        self.tensors.push(Buffer { id: tensor, value, dtype, shape: shape.to_vec(), is_host });
        self.clear(id)?;
        Ok(id)
    }

    /// Fills a tensor with zeros.
    pub(super) fn clear(&mut self, id: BufferId) -> Result<()> {
        let Buffer { value, dtype, shape, is_host, .. } = &mut self.tensors[id.0];
        match (*is_host, *dtype) {
            (false, _) => self.memory.copy(
                TensorKind { dtype: *dtype, rank: shape.len() },
                &host_tensor(*dtype, shape)?,
                value,
            )?,
            (true, DType::F32) => slice_mut::<f32>(value)?.fill(0.0),
            (true, DType::F16) => slice_mut::<f16>(value)?.fill(f16::ZERO),
            (true, DType::Bf16) => slice_mut::<bf16>(value)?.fill(bf16::ZERO),
            (true, DType::I64) => slice_mut::<i64>(value)?.fill(0),
        }
        Ok(())
    }

    /// Bytes by the memory that they lie in, in ONNX Runtime's words.
    pub(crate) fn bytes_by_memory(&self) -> BTreeMap<String, u64> {
        let mut bytes = BTreeMap::new();
        for (index, buffer) in self.tensors.iter().enumerate() {
            let memory = buffer.value.memory_info().allocation_device().as_str().to_owned();
            *bytes.entry(memory).or_default() += self.bytes(BufferId(index));
        }
        bytes
    }

    /// Bytes that were copied from a device so far because the host asked for them.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// How often sessions that are bound to these tensors have run so far.
    pub(crate) fn session_runs(&self) -> usize {
        self.runs.all.load(Ordering::Relaxed)
    }

    /// How many runs of stages were recorded and replayed so far.
    pub(crate) fn captures(&self) -> CaptureCounts {
        let [recorded, replayed, plain] =
            [&self.runs.recorded, &self.runs.replayed, &self.runs.plain].map(|counter| counter.load(Ordering::Relaxed));
        CaptureCounts { recorded, replayed, plain }
    }

    pub(super) fn run_counter(&self) -> Arc<Runs> {
        Arc::clone(&self.runs)
    }

    /// Whether runs of stages are recorded.
    pub(crate) fn records_runs(&self) -> bool {
        self.memory.shelf().is_some()
    }

    /// The tensors of a binding, if its runs can be recorded.
    pub(super) fn recordable(
        &self,
        inputs: &[BufferId],
        outputs: &[BufferId],
    ) -> std::result::Result<Vec<TensorId>, &'static str> {
        let ports = || inputs.iter().chain(outputs).map(|id| &self.tensors[id.0]);
        if ports().any(|buffer| buffer.is_host) {
            return Err("it takes from the host, or gives to it");
        }
        // ONNX Runtime computes more than once while it records.
        if outputs.iter().any(|id| inputs.contains(id)) {
            return Err("it overwrites what it reads");
        }
        Ok(ports().map(|buffer| buffer.id).collect())
    }

    pub(super) fn note_capture(&mut self) {
        self.is_recorded = true;
    }

    pub(super) fn refuse_capture(&mut self, why: String) {
        self.refused.insert(why);
    }

    /// Stages whose runs are not recorded for this request, and why.
    pub(crate) fn refused_captures(&self) -> impl Iterator<Item = &String> {
        self.refused.iter()
    }

    pub(crate) fn shape(&self, id: BufferId) -> &[i64] {
        &self.tensors[id.0].shape
    }

    pub(crate) fn dtype(&self, id: BufferId) -> DType {
        self.tensors[id.0].dtype
    }

    /// Whether the host may read and write it.
    pub(super) fn is_host(&self, id: BufferId) -> bool {
        self.tensors[id.0].is_host
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
        let buffer = &self.tensors[id.0];
        let (dtype, expected) = (buffer.dtype, buffer.shape.iter().product::<i64>() as usize);
        if numbers.len() != expected {
            return Err(Error::internal(format!("{} numbers for a tensor of {:?}", numbers.len(), buffer.shape)));
        }
        self.write_by(id, |value| match dtype {
            DType::F32 => {
                slice_mut::<f32>(value)?.copy_from_slice(numbers);
                Ok(())
            }
            DType::F16 => fill(slice_mut(value)?, numbers, f16::from_f32),
            DType::Bf16 => fill(slice_mut(value)?, numbers, bf16::from_f32),
            DType::I64 => Err(Error::internal("floats for an integer tensor")),
        })
    }

    pub(crate) fn write_ids(&mut self, id: BufferId, ids: &[i64]) -> Result<()> {
        self.write_by(id, |value| {
            slice_mut::<i64>(value)?.copy_from_slice(ids);
            Ok(())
        })
    }

    fn write_by(&mut self, id: BufferId, write: impl FnOnce(&mut DynTensor) -> Result<()>) -> Result<()> {
        let Self { tensors, memory, .. } = self;
        let buffer = &mut tensors[id.0];
        if buffer.is_host {
            return write(&mut buffer.value);
        }
        let mut host = host_tensor(buffer.dtype, &buffer.shape)?;
        write(&mut host)?;
        memory.copy(buffer.kind(), &host, &mut buffer.value)
    }

    /// Copies the numbers out as f32, which holds token ids and labels.
    pub(crate) fn read(&self, id: BufferId) -> Result<Vec<f32>> {
        self.read_by(id, |value, dtype| {
            Ok(match dtype {
                DType::F32 => slice::<f32>(value)?.to_vec(),
                DType::F16 => slice::<f16>(value)?.iter().map(|x| x.to_f32()).collect(),
                DType::Bf16 => slice::<bf16>(value)?.iter().map(|x| x.to_f32()).collect(),
                DType::I64 => slice::<i64>(value)?.iter().map(|x| *x as f32).collect(),
            })
        })
    }

    fn read_by<T>(&self, id: BufferId, read: impl FnOnce(&DynTensor, DType) -> Result<T>) -> Result<T> {
        let buffer = &self.tensors[id.0];
        if buffer.is_host {
            return read(&buffer.value, buffer.dtype);
        }
        let mut host = host_tensor(buffer.dtype, &buffer.shape)?;
        self.memory.copy(buffer.kind(), &buffer.value, &mut host)?;
        self.read_bytes.fetch_add(self.bytes(id), Ordering::Relaxed);
        read(&host, buffer.dtype)
    }

    /// Bytes of all tensors.
    pub(crate) fn total_bytes(&self) -> u64 {
        (0..self.tensors.len()).map(|index| self.bytes(BufferId(index))).sum()
    }

    /// The first number that is NaN or infinite. It is looked for where the tensor lies; only a tensor that holds one is
    /// copied to the host.
    pub(crate) fn first_not_finite(&self, id: BufferId) -> Result<Option<f32>> {
        let buffer = &self.tensors[id.0];
        if buffer.dtype == DType::I64 || (!buffer.is_host && self.memory.is_finite(buffer.kind(), &buffer.value)?) {
            return Ok(None);
        }
        self.read_by(id, |value, dtype| {
            Ok(match dtype {
                DType::F32 => find_not(slice::<f32>(value)?, |x| x.is_finite()).copied(),
                DType::F16 => find_not(slice::<f16>(value)?, |x| x.is_finite()).map(|x| x.to_f32()),
                DType::Bf16 => find_not(slice::<bf16>(value)?, |x| x.is_finite()).map(|x| x.to_f32()),
                DType::I64 => None,
            })
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

/// What was recorded on the tensors is of use to the next request that is given them.
impl Drop for Buffers {
    fn drop(&mut self) {
        let Some(shelf) = self.memory.shelf().filter(|_| self.is_recorded) else { return };
        for Buffer { id, value, dtype, shape, .. } in self.tensors.drain(..).filter(|buffer| !buffer.is_host) {
            shelf.put(dtype, shape, id, value);
        }
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

fn fill<T>(target: &mut [T], numbers: &[f32], round: impl Fn(f32) -> T) -> Result<()> {
    for (target, number) in target.iter_mut().zip(numbers) {
        *target = round(*number);
    }
    Ok(())
}
