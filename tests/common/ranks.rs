//! Ranks that are threads of the test: the same calls as those of processes, and no MPI.

use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use dbcache_trt::{Collective, ContextParallel, Error, ErrorKind, Method, Result};

/// What ranks of one call give each other: a message for each.
type Messages = Vec<Vec<u8>>;

#[derive(Debug, Default)]
struct Call {
    given: Vec<Option<Messages>>,
    /// How many ranks have read them.
    read: usize,
}

#[derive(Debug)]
struct Room {
    call: Mutex<Call>,
    changed: Condvar,
}

#[derive(Debug)]
struct Rank {
    rank: usize,
    ranks: usize,
    room: Arc<Room>,
}

impl Rank {
    /// Gives each rank a message, and takes theirs.
    fn exchange(&self, messages: Messages) -> Result<Messages> {
        const PATIENCE: Duration = Duration::from_secs(60);
        let gone = || Error::with_kind(ErrorKind::Runtime, "another rank is gone");
        let wait = |call, holds: &dyn Fn(&mut Call) -> bool| {
            let (call, waited) = self.room.changed.wait_timeout_while(call, PATIENCE, |call| !holds(call)).unwrap();
            if waited.timed_out() { Err(gone()) } else { Ok(call) }
        };
        let mut call = wait(self.room.call.lock().unwrap(), &|call| call.given[self.rank].is_none())?;
        call.given[self.rank] = Some(messages);
        self.room.changed.notify_all();
        let mut call = wait(call, &|call| call.given.iter().all(Option::is_some))?;
        let taken = call.given.iter().flatten().map(|messages| messages[self.rank].clone()).collect();
        call.read += 1;
        if call.read == self.ranks {
            *call = Call { given: vec![None; self.ranks], read: 0 };
        }
        self.room.changed.notify_all();
        // The next call begins when all have read this one.
        drop(wait(call, &|call| call.given[self.rank].is_none())?);
        Ok(taken)
    }
}

impl Collective for Rank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn all_gather(&self, own: &[u8], lengths: &[usize], all: &mut [u8]) -> Result<()> {
        let taken = self.exchange(vec![own.to_vec(); self.ranks])?;
        assert_eq!(taken.iter().map(Vec::len).collect::<Vec<_>>(), lengths);
        all.copy_from_slice(&taken.concat());
        Ok(())
    }

    fn all_to_all(&self, out: &[u8], out_lengths: &[usize], into: &mut [u8], in_lengths: &[usize]) -> Result<()> {
        let mut rest = out;
        let part = |length: &usize| rest.split_off(..*length).unwrap().to_vec();
        let taken = self.exchange(out_lengths.iter().map(part).collect())?;
        assert_eq!(taken.iter().map(Vec::len).collect::<Vec<_>>(), in_lengths);
        into.copy_from_slice(&taken.concat());
        Ok(())
    }

    fn all_sum(&self, numbers: &mut [f64]) -> Result<()> {
        let own: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let taken = self.exchange(vec![own; self.ranks])?;
        let number =
            |bytes: &[u8], place: usize| f64::from_le_bytes(bytes[8 * place..8 * place + 8].try_into().unwrap());
        for (place, sum) in numbers.iter_mut().enumerate() {
            *sum = taken.iter().map(|bytes| number(bytes, place)).sum();
        }
        Ok(())
    }
}

/// Does the same in all ranks; what each of them gives.
pub fn on_ranks<T: Send>(ranks: usize, method: Method, work: impl Fn(ContextParallel) -> T + Sync) -> Vec<T> {
    let room = Arc::new(Room { call: Mutex::default(), changed: Condvar::new() });
    room.call.lock().unwrap().given = vec![None; ranks];
    thread::scope(|scope| {
        let start = |rank| {
            let group = Arc::new(Rank { rank, ranks, room: Arc::clone(&room) });
            scope.spawn(|| work(ContextParallel { method, group }))
        };
        let threads: Vec<_> = (0..ranks).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
