//! `--context-parallel`: the processes that an MPI has started, of which the first one prints and writes.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use dbcache_trt::{CancelToken, Collective, ContextParallel, Error, ErrorKind, Mpi};

use super::args::Ranked;
use super::print::note;

/// The MPI of this process, once it is started.
static STARTED: OnceLock<Arc<Mpi>> = OnceLock::new();

/// Starts MPI, and finds the others.
pub fn join(asked: Ranked) -> Result<ContextParallel, Error> {
    let mpi = Arc::new(Mpi::start()?);
    let group = Arc::clone(STARTED.get_or_init(|| mpi));
    let (ranks, refused) = (group.ranks(), |why: String| Err(Error::with_kind(ErrorKind::Usage, why)));
    if let Some(started) = Mpi::started().filter(|started| *started > 1 && ranks == 1) {
        return refused(format!(
            "mpirun has started {started} processes, of which {} finds one: the two are of different MPIs; start the program \
             with the other mpirun, or name the library with DBCACHE_TRT_MPI",
            group.library().display()
        ));
    }
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

/// Tells who has started several processes without a word of what they share.
pub fn note_alone() {
    if let Some(started) = Mpi::started().filter(|started| *started > 1) {
        note(format_args!(
            "warning: {started} processes were started together, and each makes all pictures; --context-parallel makes them \
             share each"
        ));
    }
}

/// Ends all processes some time after the user has said so: one may wait for another that is stopped, or gone.
pub fn end_when_told(cancel: &CancelToken) {
    const LOOK: Duration = Duration::from_millis(100);
    const PATIENCE: Duration = Duration::from_secs(10);
    let cancel = cancel.clone();
    let watch = move || {
        while !cancel.is_cancelled() {
            thread::sleep(LOOK);
        }
        thread::sleep(PATIENCE);
        note("error: cancelled; another process did not answer");
        leave(ErrorKind::Cancelled.exit_code());
    };
    // Without a thread, a second signal ends the process.
    drop(thread::Builder::new().spawn(watch));
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
        // What was printed is lost if mpirun has not read it when all end; and the first process may be about to say why.
        thread::sleep(Duration::from_millis(if is_helper() { 800 } else { 300 }));
        mpi.abort(code);
    } else if let Err(error) = mpi.finish() {
        note(format_args!("warning: {error}"));
    }
}
