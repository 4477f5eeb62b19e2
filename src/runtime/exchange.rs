//! The operators by which the graphs of one rank exchange tokens with those of the others (`model/shard.rs` puts them there).
//!
//! A tensor is seen as `[outer, axis, inner]`. Counts of tokens may differ from rank to rank, so each exchange begins with
//! them. All ranks run the same graphs in the same order, so that their calls meet.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput};
use ort::value::{DynValue, TensorElementType, ValueRefMut};

use crate::collective::{Collective, share};
use crate::model::shard::{DOMAIN, GATHER, SHARE, TO_HEADS, TO_TOKENS};

/// The types of tensors that ranks exchange.
const TYPES: [TensorElementType; 4] =
    [TensorElementType::Float32, TensorElementType::Float16, TensorElementType::Bfloat16, TensorElementType::Int64];

/// The operators of all types for a group.
pub(super) fn operators(group: &Arc<dyn Collective>) -> ort::Result<OperatorDomain> {
    let mut domain = OperatorDomain::new(DOMAIN)?;
    for kind in [SHARE, GATHER, TO_HEADS, TO_TOKENS] {
        for element in TYPES {
            domain = domain.add(Exchange { kind, element, group: Arc::clone(group) })?;
        }
    }
    Ok(domain)
}

/// One operator for one type.
#[derive(Clone)]
struct Exchange {
    kind: &'static str,
    element: TensorElementType,
    group: Arc<dyn Collective>,
}

impl Operator for Exchange {
    type Kernel<'attr> = ExchangeKernel;

    fn name(&self) -> &str {
        self.kind
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let mut inputs = vec![OperatorInput::required(self.element)];
        match self.kind {
            SHARE => inputs.push(OperatorInput::required(TensorElementType::Int64)),
            TO_TOKENS => inputs.push(OperatorInput::required(self.element)),
            _ => {}
        }
        inputs
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(self.element)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<ExchangeKernel> {
        let axis = context.get("axis").ok_or_else(|| ort::Error::new("an exchange without an axis"))?;
        Ok(ExchangeKernel { exchange: self.clone(), axis })
    }
}

struct ExchangeKernel {
    exchange: Exchange,
    /// From the front, or from the back where it is negative.
    axis: i64,
}

/// A tensor as `[outer, axis, inner]`, where `inner` counts bytes.
#[derive(Clone, Copy, Debug)]
struct View {
    outer: usize,
    axis: usize,
    inner: usize,
}

impl View {
    fn new(shape: &[i64], axis: usize, size: usize) -> Self {
        let product = |extents: &[i64]| extents.iter().product::<i64>() as usize;
        Self { outer: product(&shape[..axis]), axis: shape[axis] as usize, inner: product(&shape[axis + 1..]) * size }
    }

    /// The bytes of some places of the axis in one of the outer rows.
    fn bytes(self, outer: usize, places: &Range<usize>) -> Range<usize> {
        let row = outer * self.axis;
        (row + places.start) * self.inner..(row + places.end) * self.inner
    }

    /// Copies some places of the axis, of all rows, one row after the other.
    fn take(self, bytes: &[u8], places: &Range<usize>, into: &mut Vec<u8>) {
        (0..self.outer).for_each(|outer| into.extend_from_slice(&bytes[self.bytes(outer, places)]));
    }

    /// A message for each rank, with its number of places of the axis; and the lengths of the messages.
    fn split(self, bytes: &[u8], counts: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let mut out = Vec::with_capacity(bytes.len());
        places(counts).iter().for_each(|place| self.take(bytes, place, &mut out));
        (out, counts.iter().map(|count| self.outer * count * self.inner).collect())
    }

    /// Puts what `take` has taken into some places of the axis.
    fn put(self, taken: &[u8], places: &Range<usize>, bytes: &mut [u8]) {
        let length = places.len() * self.inner;
        if length > 0 {
            for (outer, row) in taken.chunks_exact(length).enumerate() {
                bytes[self.bytes(outer, places)].copy_from_slice(row);
            }
        }
    }
}

/// The places of parts that lie one after the other.
fn places(counts: &[usize]) -> Vec<Range<usize>> {
    let mut start = 0;
    let place = |count: &usize| {
        let place = start..start + count;
        start = place.end;
        place
    };
    counts.iter().map(place).collect()
}

/// The parts of a message, whose lengths are known.
fn parts<'a>(bytes: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    places(lengths).into_iter().map(|place| &bytes[place]).collect()
}

impl Kernel for ExchangeKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let input = |index| context.input(index)?.ok_or_else(|| ort::Error::new("an exchange without its input"));
        let own = input(0)?;
        let shape: Vec<i64> = own.shape().iter().copied().collect();
        let bytes = bytes_of(&own, self.exchange.element)?;
        let axis = from_front(self.axis, shape.len())?;
        match self.exchange.kind {
            SHARE => {
                let counts = input(1)?;
                self.share(context, (&shape, bytes), axis, counts.try_extract_tensor::<i64>()?.1)
            }
            GATHER => self.gather(context, (&shape, bytes), axis),
            TO_HEADS => self.to_heads(context, (&shape, bytes), axis),
            _ => {
                let like = input(1)?;
                let like: Vec<i64> = like.shape().iter().copied().collect();
                self.to_tokens(context, (&shape, bytes), axis, &like)
            }
        }
    }
}

impl ExchangeKernel {
    fn share(&self, context: &ComputeContext, own: (&[i64], &[u8]), axis: usize, counts: &[i64]) -> ort::Result<()> {
        let group = &self.exchange.group;
        let (shape, bytes) = own;
        let counts: Vec<usize> = counts.iter().map(|count| *count as usize).collect();
        let of_part = |part: Range<usize>| {
            let place = share(part.len(), group.ranks(), group.rank());
            part.start + place.start..part.start + place.end
        };
        let taken: Vec<Range<usize>> = places(&counts).into_iter().map(of_part).collect();
        let view = View::new(shape, axis, self.size());
        if counts.iter().sum::<usize>() != view.axis {
            return Err(ort::Error::new("the parts of an axis are not its whole"));
        }
        let given: usize = taken.iter().map(Range::len).sum();
        self.give(context, shape, &[(axis, given)], |output, target| {
            for (place, part) in places(&taken.iter().map(Range::len).collect::<Vec<_>>()).iter().zip(&taken) {
                let mut row = Vec::with_capacity(part.len() * view.outer * view.inner);
                view.take(bytes, part, &mut row);
                target.put(&row, place, output);
            }
            Ok(())
        })
    }

    fn gather(&self, context: &ComputeContext, own: (&[i64], &[u8]), axis: usize) -> ort::Result<()> {
        let (shape, bytes) = own;
        let view = View::new(shape, axis, self.size());
        let counts = self.counts(view.axis)?;
        let lengths: Vec<usize> = counts.iter().map(|count| view.outer * count * view.inner).collect();
        let all: usize = counts.iter().sum();
        self.give(context, shape, &[(axis, all)], |output, target| {
            if view.outer == 1 {
                return self.exchange.group.all_gather(bytes, &lengths, output).map_err(told);
            }
            let mut received = vec![0; lengths.iter().sum()];
            self.exchange.group.all_gather(bytes, &lengths, &mut received).map_err(told)?;
            let received = parts(&received, &lengths);
            places(&counts).iter().zip(received).for_each(|(place, part)| target.put(part, place, output));
            Ok(())
        })
    }

    fn to_heads(&self, context: &ComputeContext, own: (&[i64], &[u8]), axis: usize) -> ort::Result<()> {
        let (shape, bytes) = own;
        let group = &self.exchange.group;
        let heads_axis = heads(shape)?;
        let heads = View::new(shape, heads_axis, self.size());
        let counts = self.counts(shape[axis] as usize)?;
        let head_counts = self.shares(heads.axis);
        let own_heads = head_counts[group.rank()];
        // The bytes of one token in all of this rank's heads; the other one of the last two axes is the head's width.
        let width = shape[2 * heads_axis + 3 - axis] as usize;
        let token = heads.outer * own_heads * width * self.size();
        let changed = [(heads_axis, own_heads), (axis, counts.iter().sum())];
        self.swap(context, shape, &changed, heads.split(bytes, &head_counts), (&counts, token))
    }

    fn to_tokens(&self, context: &ComputeContext, own: (&[i64], &[u8]), axis: usize, like: &[i64]) -> ort::Result<()> {
        let (shape, bytes) = own;
        let heads_axis = heads(shape)?;
        let (all_heads, own_tokens) = (like[heads_axis] as usize, like[axis] as usize);
        let counts = self.counts(own_tokens)?;
        let product = |extents: &[i64]| extents.iter().product::<i64>() as usize;
        let head = product(&shape[..heads_axis]) * own_tokens * product(&shape[axis + 1..]) * self.size();
        let changed = [(axis, own_tokens), (heads_axis, all_heads)];
        let out = View::new(shape, axis, self.size()).split(bytes, &counts);
        self.swap(context, shape, &changed, out, (&self.shares(all_heads), head))
    }

    /// Gives each rank its message of `out`, and makes the output of theirs: along its last changed axis, rank r fills as many
    /// places as `taken` says, of so many bytes.
    fn swap(
        &self,
        context: &ComputeContext,
        shape: &[i64],
        changed: &[(usize, usize)],
        out: (Vec<u8>, Vec<usize>),
        taken: (&[usize], usize),
    ) -> ort::Result<()> {
        let ((out, out_lengths), (counts, bytes)) = (out, taken);
        let in_lengths: Vec<usize> = counts.iter().map(|count| count * bytes).collect();
        self.give(context, shape, changed, |output, target| {
            let mut received = vec![0; in_lengths.iter().sum()];
            self.exchange.group.all_to_all(&out, &out_lengths, &mut received, &in_lengths).map_err(told)?;
            let received = parts(&received, &in_lengths);
            places(counts).iter().zip(received).for_each(|(place, part)| target.put(part, place, output));
            Ok(())
        })
    }

    /// How many of so many heads each rank has.
    fn shares(&self, heads: usize) -> Vec<usize> {
        let ranks = self.exchange.group.ranks();
        (0..ranks).map(|rank| share(heads, ranks, rank).len()).collect()
    }

    /// How many places of an axis each rank has.
    fn counts(&self, own: usize) -> ort::Result<Vec<usize>> {
        let group = &self.exchange.group;
        let mut all = vec![0; 8 * group.ranks()];
        group.all_gather(&(own as u64).to_le_bytes(), &vec![8; group.ranks()], &mut all).map_err(told)?;
        let count = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or_default() as usize;
        Ok(all.chunks_exact(8).map(count).collect())
    }

    /// Makes the output: of the input's shape, but for some axes. `fill` sees it along the last of them.
    fn give(
        &self,
        context: &ComputeContext,
        shape: &[i64],
        changed: &[(usize, usize)],
        fill: impl FnOnce(&mut [u8], View) -> ort::Result<()>,
    ) -> ort::Result<()> {
        let mut shape = shape.to_vec();
        changed.iter().for_each(|(axis, extent)| shape[*axis] = *extent as i64);
        let along = changed.last().map(|(axis, _)| *axis).unwrap_or_default();
        let view = View::new(&shape, along, self.size());
        let output = context.output(0, shape)?;
        let mut output = output.ok_or_else(|| ort::Error::new("an exchange without its output"))?;
        fill(bytes_of_mut(&mut output, self.exchange.element)?, view)
    }

    fn size(&self) -> usize {
        self.exchange.element.byte_size(1).unwrap_or_default()
    }
}

/// The axis of heads: tensors end with heads, tokens and head width, in which order the last two are.
fn heads(shape: &[i64]) -> ort::Result<usize> {
    shape.len().checked_sub(3).ok_or_else(|| ort::Error::new("an attention without heads"))
}

fn from_front(axis: i64, rank: usize) -> ort::Result<usize> {
    let axis = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(axis).ok().filter(|axis| *axis < rank).ok_or_else(|| ort::Error::new("an axis that is not there"))
}

fn told(error: crate::error::Error) -> ort::Error {
    ort::Error::new(error.to_string())
}

fn raw<T>(numbers: &[T]) -> &[u8] {
    // SAFETY: the numbers have no padding, and any byte may be read.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), std::mem::size_of_val(numbers)) }
}

fn raw_mut<T>(numbers: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and any bytes are numbers of these types.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), std::mem::size_of_val(numbers)) }
}

fn bytes_of(value: &DynValue, element: TensorElementType) -> ort::Result<&[u8]> {
    Ok(match element {
        TensorElementType::Float32 => raw(value.try_extract_tensor::<f32>()?.1),
        TensorElementType::Float16 => raw(value.try_extract_tensor::<f16>()?.1),
        TensorElementType::Bfloat16 => raw(value.try_extract_tensor::<bf16>()?.1),
        _ => raw(value.try_extract_tensor::<i64>()?.1),
    })
}

fn bytes_of_mut<'v>(value: &'v mut ValueRefMut<'_>, element: TensorElementType) -> ort::Result<&'v mut [u8]> {
    Ok(match element {
        TensorElementType::Float32 => raw_mut(value.try_extract_tensor_mut::<f32>()?.1),
        TensorElementType::Float16 => raw_mut(value.try_extract_tensor_mut::<f16>()?.1),
        TensorElementType::Bfloat16 => raw_mut(value.try_extract_tensor_mut::<bf16>()?.1),
        _ => raw_mut(value.try_extract_tensor_mut::<i64>()?.1),
    })
}
