//! Tensors of requests that have ended, kept for later ones: what was recorded on them can then be replayed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ort::value::DynTensor;

use super::held::Held;
use crate::model::manifest::DType;

/// Names a tensor among all that this process ever allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TensorId(u64);

impl TensorId {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The tensors that wait, by dtype and shape.
#[derive(Default)]
pub(super) struct Shelf(Mutex<BTreeMap<Kind, BTreeMap<TensorId, Held<DynTensor>>>>);

/// Dtype and shape.
type Kind = (&'static str, Vec<i64>);

impl Shelf {
    /// The oldest of this dtype and shape: two requests that ask for the same in the same order are given the same.
    pub(super) fn take(&self, dtype: DType, shape: &[i64]) -> Option<(TensorId, Held<DynTensor>)> {
        let mut shelf = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.get_mut(&(dtype.name(), shape.to_vec()))?.pop_first()
    }

    pub(super) fn put(&self, dtype: DType, shape: Vec<i64>, id: TensorId, tensor: Held<DynTensor>) {
        let mut shelf = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.entry((dtype.name(), shape)).or_default().insert(id, tensor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::library::{self, LibraryOptions};
    use crate::runtime::memory::host_tensor;

    /// So that the same request is given the same tensors, whatever ran in between.
    #[test]
    fn the_oldest_of_a_shape_is_taken_first() {
        library::environment(&LibraryOptions::default()).unwrap();
        let shelf = Shelf::default();
        let ids: Vec<TensorId> = (0..3).map(|_| TensorId::new()).collect();
        let shape = |place: usize| if place == 1 { vec![2, 1] } else { vec![1, 2] };
        for place in [2, 1, 0] {
            let tensor = Held::new(host_tensor(DType::F32, &shape(place)).unwrap(), false);
            shelf.put(DType::F32, shape(place), ids[place], tensor);
        }
        let take = |shape: &[i64]| shelf.take(DType::F32, shape).map(|(id, _)| id);
        assert_eq!([take(&[1, 2]), take(&[1, 2]), take(&[1, 2])], [Some(ids[0]), Some(ids[2]), None]);
        assert_eq!((take(&[2, 1]), take(&[2])), (Some(ids[1]), None));
        assert!(shelf.take(DType::F16, &[2, 1]).is_none());
    }
}
