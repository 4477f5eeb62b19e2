//! `--context-parallel`: the processes that an MPI has started, of which the first one prints and writes.

use std::sync::{Arc, OnceLock};

use dbcache_trt::{Collective, ContextParallel, Error, ErrorKind, Mpi};

use super::args::Ranked;
use super::print::note;

/// The MPI of this process, once it is started.
static STARTED: OnceLock<Arc<Mpi>> = OnceLock::new();

/// Starts MPI, and finds the others.
pub fn join(asked: Ranked) -> Result<ContextParallel, Error> {
    let mpi = Arc::new(Mpi::start()?);
    let group = Arc::clone(STARTED.get_or_init(|| mpi));
    let (ranks, refused) = (group.ranks(), |why: String| Err(Error::with_kind(ErrorKind::Usage, why)));
    match asked.ranks {
        Some(wanted) if wanted != ranks => refused(format!(
            "--context-parallel asks for {wanted} processes, and MPI has started {ranks}: start the program with \
             `mpirun -n {wanted} dbcache-trt …`, of the MPI whose library is loaded"
        )),
        None | Some(1) if ranks == 1 => refused(
            "--context-parallel has no effect on one process; start several, with `mpirun -n 2 dbcache-trt …`"
                .to_owned(),
        ),
        _ => Ok(ContextParallel { method: asked.method, group }),
    }
}

/// Whether another process prints and writes.
pub fn is_helper() -> bool {
    STARTED.get().is_some_and(|mpi| mpi.rank() > 0)
}

/// What stands before this process's messages.
pub fn prefix() -> String {
    match STARTED.get() {
        Some(mpi) if mpi.ranks() > 1 => format!("rank {}: ", mpi.rank()),
        _ => String::new(),
    }
}

/// Ends together with the others: where this process has failed, they end with its exit code.
pub fn leave(code: u8) {
    let Some(mpi) = STARTED.get() else { return };
    if code != 0 && mpi.ranks() > 1 {
        mpi.abort(code);
    } else if let Err(error) = mpi.finish() {
        note(format_args!("warning: {error}"));
    }
}
