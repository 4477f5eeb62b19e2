//! Several processes, called ranks, that make one generation together, and what they tell each other.
//!
//! All ranks call the same functions in the same order. Each call ends when this rank has what it needs of the others.

use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::words::words;

mod metered;
#[cfg(feature = "mpi")]
#[expect(unsafe_code, reason = "MPI is a library in C")]
mod mpi;

pub use metered::Exchanged;
use metered::Metered;
#[cfg(feature = "mpi")]
pub use mpi::Mpi;

/// A group of ranks. A host may bring its own, such as one over its own communicator.
///
/// # Errors
/// Of each function: that another rank is gone, or that the transport failed. Then the group is of no use any more.
pub trait Collective: Debug + Send + Sync {
    /// Which one this process is, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn ranks(&self) -> usize;

    /// Puts the bytes of all ranks into `all`, one after the other. `lengths` has the number of bytes that each rank gives.
    fn all_gather(&self, own: &[u8], lengths: &[usize], all: &mut [u8]) -> Result<()>;

    /// Gives each rank its part of `out`, and puts what they give into `into`; both one after the other. `out_lengths` and
    /// `in_lengths` have the number of bytes to and from each rank.
    fn all_to_all(&self, out: &[u8], out_lengths: &[usize], into: &mut [u8], in_lengths: &[usize]) -> Result<()>;

    /// Adds the numbers of all ranks, place by place. Each rank gets the same sums, to the bit.
    fn all_sum(&self, numbers: &mut [f64]) -> Result<()>;

    /// What was exchanged so far, if somebody counts it.
    #[doc(hidden)]
    fn exchanged(&self) -> Exchanged {
        Exchanged::default()
    }
}

/// How the ranks share an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Method {
    /// Before the attention each rank gets all tokens of some heads, and gives the result back (DeepSpeed Ulysses).
    Ulysses,
    /// Each rank gets the keys and values of all tokens, and attends to them with its own queries.
    Gather,
}

words!(Method, "context-parallel", { Ulysses = "ulysses", Gather = "gather" });

/// One generation over several processes: each holds a share of the tokens between the embed and the final graph.
#[derive(Clone, Debug)]
pub struct ContextParallel {
    /// How they share each attention.
    pub method: Method,
    /// The processes.
    pub group: Arc<dyn Collective>,
}

impl ContextParallel {
    /// The same, with its calls counted.
    pub(crate) fn metered(&self) -> Self {
        Self { method: self.method, group: Arc::new(Metered::new(Arc::clone(&self.group))) }
    }

    /// Whether another rank gives the result.
    pub(crate) fn is_helper(&self) -> bool {
        self.group.rank() > 0
    }

    /// Compares something that must be the same in all ranks.
    ///
    /// # Errors
    /// `Usage` with the rank whose `what` is another than that of the first.
    pub fn agree(&self, what: &str, own: &impl Hash) -> Result<()> {
        // Fixed keys: the same in every process of one build.
        let mut hasher = DefaultHasher::new();
        own.hash(&mut hasher);
        let ranks = self.group.ranks();
        let mut all = vec![0; 8 * ranks];
        self.group.all_gather(&hasher.finish().to_le_bytes(), &vec![8; ranks], &mut all)?;
        let mut hashes = all.chunks_exact(8);
        let first = hashes.next();
        match hashes.position(|hash| Some(hash) != first) {
            None => Ok(()),
            Some(other) => Err(Error::usage(format!(
                "the {what} of rank {} differs from that of rank 0; start all with the same",
                other + 1
            ))),
        }
    }

    /// The sums of all ranks, which must be at the same place: all ranks then decide alike.
    ///
    /// # Errors
    /// `Internal` if another rank is at another place.
    pub(crate) fn all_sum(&self, sums: &mut [(f32, f32)], place: u32) -> Result<()> {
        let ranks = self.group.ranks() as f64;
        // Small enough that all sums and squares are exact, of a thousand ranks too.
        let place = f64::from(place % (1 << 16));
        let mut numbers: Vec<f64> =
            sums.iter().flat_map(|(change, size)| [f64::from(*change), f64::from(*size)]).collect();
        numbers.extend([place, place * place]);
        self.group.all_sum(&mut numbers)?;
        let (added, places) = numbers.split_at(2 * sums.len());
        // By Cauchy and Schwarz they are equal only where all places are the same.
        if places[0] * places[0] != ranks * places[1] {
            return Err(Error::new(ErrorKind::Internal, "the ranks of a generation are at different places of it"));
        }
        for (pair, added) in sums.iter_mut().zip(added.chunks_exact(2)) {
            *pair = (added[0] as f32, added[1] as f32);
        }
        Ok(())
    }
}

/// The part of a list that belongs to a rank: they differ by one at most, and lower ranks have more.
pub(crate) fn share(count: usize, ranks: usize, rank: usize) -> Range<usize> {
    let (each, more) = (count / ranks, count % ranks);
    let start = rank * each + rank.min(more);
    start..start + each + usize::from(rank < more)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two ranks, of which the other one gives these numbers.
    #[derive(Debug)]
    struct WithOther([f64; 4]);

    impl Collective for WithOther {
        fn rank(&self) -> usize {
            0
        }

        fn ranks(&self) -> usize {
            2
        }

        fn all_gather(&self, _: &[u8], _: &[usize], _: &mut [u8]) -> Result<()> {
            Err(Error::internal("not called"))
        }

        fn all_to_all(&self, _: &[u8], _: &[usize], _: &mut [u8], _: &[usize]) -> Result<()> {
            Err(Error::internal("not called"))
        }

        fn all_sum(&self, numbers: &mut [f64]) -> Result<()> {
            numbers.iter_mut().zip(self.0).for_each(|(number, other)| *number += other);
            Ok(())
        }
    }

    #[test]
    fn ranks_at_different_places_are_an_error() {
        for (own, other, is_same) in [(7, 7, true), (7, 8, false), (0, 0, true), (0, 1, false), (65_535, 65_535, true)]
        {
            let place = f64::from(other);
            let group = Arc::new(WithOther([0.5, 2.0, place, place * place]));
            let mut sums = [(1.0, 3.0)];
            let added = ContextParallel { method: Method::Gather, group }.all_sum(&mut sums, own);
            assert_eq!((added.is_ok(), sums[0] == (1.5, 5.0)), (is_same, is_same), "{own} {other}");
        }
    }

    #[test]
    fn shares_are_the_whole_in_order() {
        for (count, ranks, expected) in
            [(7, 3, vec![0..3, 3..5, 5..7]), (4, 4, vec![0..1, 1..2, 2..3, 3..4]), (1, 2, vec![0..1, 1..1])]
        {
            assert_eq!((0..ranks).map(|rank| share(count, ranks, rank)).collect::<Vec<_>>(), expected);
        }
    }
}
