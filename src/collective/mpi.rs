//! Ranks that an MPI starts (`mpirun -n 4 …`). Its library is loaded when it is asked for, so nothing of it is needed to
//! build, or to run alone.
//!
//! MPI says what its functions do, not what its constants are in memory. Those of Open MPI are addresses of its symbols;
//! those of MPICH, and of what descends from it (Intel's, MVAPICH, Cray's), are numbers.

use std::env;
use std::ffi::{OsStr, OsString, c_int, c_void};
use std::sync::{Mutex, PoisonError};

use libloading::Library;

use super::Collective;
use crate::error::{Error, ErrorKind, Result};

/// A communicator, a datatype or an operation: an address, or an integer in its lower half.
type Handle = usize;

/// MPI_THREAD_SERIALIZED, which is the same number everywhere: any thread calls, one at a time.
const SERIALIZED: c_int = 2;

/// The file of the MPI library, where it is another than those that are known.
const VARIABLE: &str = "DBCACHE_TRT_MPI";
/// The files of MPI libraries, as the loader finds them: of Open MPI, and of MPICH and its kind.
const OPEN_MPI: [&str; 2] = ["libmpi.so.40", "libmpi.so"];
const MPICH: [&str; 3] = ["libmpi.so.12", "libmpich.so.12", "libmpich.so"];
/// What MPICH's mpirun says to the processes that it starts.
const BY_MPICH: [&str; 2] = ["PMI_RANK", "PMI_SIZE"];
/// What Open MPI's says.
const BY_OPEN_MPI: &str = "OMPI_COMM_WORLD_SIZE";

/// All ranks that the MPI of this process has started.
#[derive(Debug)]
pub struct Mpi {
    library: Library,
    file: OsString,
    world: Handle,
    byte: Handle,
    double: Handle,
    sum: Handle,
    rank: usize,
    ranks: usize,
    /// Held for each call: MPI is asked for no more.
    turn: Mutex<()>,
}

type InitThread = unsafe extern "C" fn(*mut c_int, *mut c_void, c_int, *mut c_int) -> c_int;
type Number = unsafe extern "C" fn(Handle, *mut c_int) -> c_int;
type Gather = unsafe extern "C" fn(
    *const c_void,
    c_int,
    Handle,
    *mut c_void,
    *const c_int,
    *const c_int,
    Handle,
    Handle,
) -> c_int;
type AllToAll = unsafe extern "C" fn(
    *const c_void,
    *const c_int,
    *const c_int,
    Handle,
    *mut c_void,
    *const c_int,
    *const c_int,
    Handle,
    Handle,
) -> c_int;
type Reduce = unsafe extern "C" fn(*const c_void, *mut c_void, c_int, Handle, Handle, c_int, Handle) -> c_int;
type Broadcast = unsafe extern "C" fn(*mut c_void, c_int, Handle, c_int, Handle) -> c_int;
type Abort = unsafe extern "C" fn(Handle, c_int) -> c_int;
type Finalize = unsafe extern "C" fn() -> c_int;

impl Mpi {
    /// Starts MPI in this process, once.
    ///
    /// # Errors
    /// `Library` if there is none, if it is none of those that are known, or if it does not start.
    pub fn start() -> Result<Self> {
        let (library, file) = load()?;
        let [world, byte, double, sum] = constants(&library);
        let mut mpi = Self { library, file, world, byte, double, sum, rank: 0, ranks: 1, turn: Mutex::new(()) };
        let mut provided = 0;
        // SAFETY: MPI takes null for both lists of arguments; the place is ours to write.
        let code = unsafe {
            mpi.function::<InitThread>(b"MPI_Init_thread\0")?(
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                SERIALIZED,
                &mut provided,
            )
        };
        check("MPI_Init_thread", code)?;
        if provided < SERIALIZED {
            return Err(refused("this MPI lets one thread only call it; use a build with threads"));
        }
        mpi.rank = mpi.number(b"MPI_Comm_rank\0")?;
        mpi.ranks = mpi.number(b"MPI_Comm_size\0")?;
        Ok(mpi)
    }

    /// The file of the library.
    pub fn library(&self) -> &OsStr {
        &self.file
    }

    /// How many processes were started together, as their starter has told each of them; `None` if nobody has.
    pub fn started() -> Option<usize> {
        let told = [BY_OPEN_MPI, BY_MPICH[1]].into_iter().find_map(env::var_os)?;
        told.to_str()?.parse().ok()
    }

    /// Ends all ranks, this one too, with an exit code. For a rank that cannot go on, and that others would wait for.
    pub fn abort(&self, code: u8) {
        if let Ok(abort) = self.function::<Abort>(b"MPI_Abort\0") {
            // SAFETY: MPI has been started.
            unsafe { abort(self.world, c_int::from(code)) };
        }
    }

    /// Says that this rank is done; waits for the others where the MPI does. Nothing of the group may be used afterwards.
    ///
    /// # Errors
    /// `Library` with MPI's code.
    pub fn finish(&self) -> Result<()> {
        // SAFETY: MPI has been started, and nobody calls it again.
        check("MPI_Finalize", unsafe { self.function::<Finalize>(b"MPI_Finalize\0")?() })
    }

    fn function<T: Copy>(&self, name: &[u8]) -> Result<T> {
        // SAFETY: the types above are those of the MPI standard, with handles as wide as registers are.
        let symbol = unsafe { self.library.get::<T>(name) };
        symbol.map(|symbol| *symbol).map_err(|error| {
            let file = self.file.display();
            refused(&format!("{file} is no library of MPI; correct {VARIABLE}, or unset it")).with_source(error)
        })
    }

    fn number(&self, name: &[u8]) -> Result<usize> {
        let mut number = 0;
        // SAFETY: MPI has been started; the place is ours to write.
        check("MPI_Comm_rank or MPI_Comm_size", unsafe { self.function::<Number>(name)?(self.world, &mut number) })?;
        usize::try_from(number).map_err(|_| Error::internal("MPI gave a negative number"))
    }
}

/// The files to try: those of the MPI that has started this process come first.
fn files() -> Vec<OsString> {
    if let Some(file) = env::var_os(VARIABLE).filter(|file| !file.is_empty()) {
        return vec![file];
    }
    let is_by_mpich = env::var_os(BY_OPEN_MPI).is_none() && BY_MPICH.iter().any(|name| env::var_os(name).is_some());
    let (first, second): (&[&str], &[&str]) = if is_by_mpich { (&MPICH, &OPEN_MPI) } else { (&OPEN_MPI, &MPICH) };
    first.iter().chain(second).map(OsString::from).collect()
}

/// The first MPI library that the system has.
fn load() -> Result<(Library, OsString)> {
    let mut reasons = Vec::new();
    for file in files() {
        // Open MPI loads parts of itself later, which must find its symbols.
        #[cfg(unix)]
        let loaded = {
            use libloading::os::unix;
            // SAFETY: a library of the system that nothing but its own initialisers runs of.
            unsafe { unix::Library::open(Some(&file), unix::RTLD_NOW | unix::RTLD_GLOBAL) }.map(Library::from)
        };
        #[cfg(not(unix))]
        // SAFETY: as above.
        let loaded = unsafe { Library::new(&file) };
        match loaded {
            Ok(library) => return Ok((library, file)),
            Err(error) => {
                // What the system's loader says.
                let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), |why| why.to_string());
                reasons.push(format!("{}: {why}", file.display()));
            }
        }
    }
    Err(refused(&format!(
        "no MPI library is found (Open MPI 4 or 5, MPICH, or one of its kind); install one, such as Debian's openmpi-bin, and \
         start the program with its mpirun, or name the library's file with {VARIABLE}:\n  {}",
        reasons.join("\n  ")
    )))
}

/// MPI_COMM_WORLD, MPI_BYTE, MPI_DOUBLE and MPI_SUM.
fn constants(library: &Library) -> [Handle; 4] {
    const OF_OPEN_MPI: [&[u8]; 4] =
        [b"ompi_mpi_comm_world\0", b"ompi_mpi_byte\0", b"ompi_mpi_double\0", b"ompi_mpi_op_sum\0"];
    const OF_MPICH: [Handle; 4] = [0x4400_0000, 0x4c00_010d, 0x4c00_080b, 0x5800_0003];
    // SAFETY: only the address of the symbol is used, while the library is there.
    let address = |name: &[u8]| unsafe { library.get::<*const c_void>(name).ok().and_then(|it| it.try_as_raw_ptr()) };
    let addresses: Option<Vec<Handle>> = OF_OPEN_MPI.iter().map(|name| address(name).map(|it| it as Handle)).collect();
    addresses.and_then(|addresses| addresses.try_into().ok()).unwrap_or(OF_MPICH)
}

fn refused(message: &str) -> Error {
    Error::new(ErrorKind::Library, message)
}

fn check(function: &str, code: c_int) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(refused(&format!("{function} failed with MPI's code {code}"))),
    }
}

/// Lengths and places as MPI takes them.
fn ints(lengths: &[usize]) -> Result<(Vec<c_int>, Vec<c_int>)> {
    let too_long = |_| refused("a message of more than 2 GiB; use more ranks, or a smaller batch");
    let (mut counts, mut places, mut place) = (Vec::new(), Vec::new(), 0_usize);
    for length in lengths {
        counts.push(c_int::try_from(*length).map_err(too_long)?);
        places.push(c_int::try_from(place).map_err(too_long)?);
        place += length;
    }
    c_int::try_from(place).map_err(too_long)?;
    Ok((counts, places))
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn all_gather(&self, own: &[u8], lengths: &[usize], all: &mut [u8]) -> Result<()> {
        let (counts, places) = ints(lengths)?;
        if lengths.iter().sum::<usize>() != all.len() || lengths.get(self.rank) != Some(&own.len()) {
            return Err(Error::internal("lengths that do not fit"));
        }
        let gather = self.function::<Gather>(b"MPI_Allgatherv\0")?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the lengths are those of the slices, which has been checked.
        let code = unsafe {
            gather(
                own.as_ptr().cast(),
                counts[self.rank],
                self.byte,
                all.as_mut_ptr().cast(),
                counts.as_ptr(),
                places.as_ptr(),
                self.byte,
                self.world,
            )
        };
        check("MPI_Allgatherv", code)
    }

    fn all_to_all(&self, out: &[u8], out_lengths: &[usize], into: &mut [u8], in_lengths: &[usize]) -> Result<()> {
        let ((out_counts, out_places), (in_counts, in_places)) = (ints(out_lengths)?, ints(in_lengths)?);
        let fits =
            |lengths: &[usize], bytes: usize| lengths.len() == self.ranks && lengths.iter().sum::<usize>() == bytes;
        if !fits(out_lengths, out.len()) || !fits(in_lengths, into.len()) {
            return Err(Error::internal("lengths that do not fit"));
        }
        let exchange = self.function::<AllToAll>(b"MPI_Alltoallv\0")?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the lengths are those of the slices, which has been checked.
        let code = unsafe {
            exchange(
                out.as_ptr().cast(),
                out_counts.as_ptr(),
                out_places.as_ptr(),
                self.byte,
                into.as_mut_ptr().cast(),
                in_counts.as_ptr(),
                in_places.as_ptr(),
                self.byte,
                self.world,
            )
        };
        check("MPI_Alltoallv", code)
    }

    fn all_sum(&self, numbers: &mut [f64]) -> Result<()> {
        let (own, count) = (numbers.to_vec(), ints(&[numbers.len()])?.0[0]);
        let reduce = self.function::<Reduce>(b"MPI_Reduce\0")?;
        let broadcast = self.function::<Broadcast>(b"MPI_Bcast\0")?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // One rank adds and tells the others: an all-reduce may add in another order on each.
        // SAFETY: both slices have so many numbers.
        let code = unsafe {
            reduce(own.as_ptr().cast(), numbers.as_mut_ptr().cast(), count, self.double, self.sum, 0, self.world)
        };
        check("MPI_Reduce", code)?;
        // SAFETY: the slice has so many numbers.
        check("MPI_Bcast", unsafe { broadcast(numbers.as_mut_ptr().cast(), count, self.double, 0, self.world) })
    }
}
