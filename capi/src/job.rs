//! One generation from its set-up to its result, whichever thread runs it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use dbcache::{CancelToken, Engine, Inputs, RequestOptions};

use crate::callbacks::{Callbacks, DBCACHE_PHASE_PREPARE, Teller};
use crate::error::{DBCACHE_ERROR_RESOURCES, Failure, Outcome, caught};
use crate::log::{is_telling, listening};
use crate::result::dbcache_result;

/// Shared by the handle and the thread that runs.
pub(crate) struct Job {
    pub(crate) engine: Engine,
    pub(crate) options: RequestOptions,
    pub(crate) cancel: CancelToken,
    setup: Mutex<Setup>,
    state: Mutex<State>,
    changed: Condvar,
    /// From then on no callback is made.
    is_freed: Arc<AtomicBool>,
}

/// What can be set until the job runs.
#[derive(Clone, Default)]
pub(crate) struct Setup {
    pub(crate) inputs: Inputs,
    pub(crate) callbacks: Callbacks,
}

enum State {
    New,
    /// By this thread, once it is known.
    Running(Option<ThreadId>),
    Ended(Box<Outcome<dbcache_result>>),
    /// The caller has its result or error.
    Taken,
}

/// What a job is doing, as poll tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    New,
    Running,
    Ended,
    Taken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Job {
    pub(crate) fn new(engine: Engine, options: RequestOptions) -> Self {
        let cancel = CancelToken::default();
        Self {
            engine,
            options: RequestOptions { cancel: cancel.clone(), ..options },
            cancel,
            setup: Mutex::default(),
            state: Mutex::new(State::New),
            changed: Condvar::new(),
            is_freed: Arc::default(),
        }
    }

    /// Changes the set-up of a job that has not run.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Setup)) -> Outcome<()> {
        let state = lock(&self.state);
        if !matches!(*state, State::New) {
            return Err(Failure::state("this request has run or runs; make another one to change what it does"));
        }
        change(&mut lock(&self.setup));
        Ok(())
    }

    pub(crate) fn setup(&self) -> Setup {
        lock(&self.setup).clone()
    }

    /// Runs on this thread, and gives the result.
    pub(crate) fn run(&self) -> Outcome<dbcache_result> {
        self.begin(Some(thread::current().id()))?;
        self.execute();
        self.take()
    }

    /// Runs on a thread of its own.
    pub(crate) fn start(self: &Arc<Self>) -> Outcome<()> {
        self.begin(None)?;
        let job = Arc::clone(self);
        let spawned = thread::Builder::new().name("dbcache-trt".to_owned()).spawn(move || {
            job.set_state(State::Running(Some(thread::current().id())));
            job.execute();
        });
        spawned.map(drop).map_err(|error| {
            // Who waits, or frees, meanwhile has nothing to wait for any more.
            self.set_state(State::New);
            let message = format!(
                "a request that is started needs a thread, and the system gives none ({error}); raise its limit, or use \
                 dbcache_request_run"
            );
            Failure { code: DBCACHE_ERROR_RESOURCES, message, field: None }
        })
    }

    /// Waits until the job has ended, and takes what it gave.
    pub(crate) fn wait(&self) -> Outcome<dbcache_result> {
        let mut state = lock(&self.state);
        loop {
            match &*state {
                State::New => {
                    return Err(Failure::state("this request was not started, or could not be; start it, or run it"));
                }
                State::Running(Some(thread)) if *thread == thread::current().id() => {
                    return Err(Failure::state(
                        "a callback cannot wait for the request that calls it; cancel it, or return",
                    ));
                }
                State::Running(_) => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                State::Ended(_) | State::Taken => break,
            }
        }
        drop(state);
        self.take()
    }

    pub(crate) fn stage(&self) -> Stage {
        match &*lock(&self.state) {
            State::New => Stage::New,
            State::Running(_) => Stage::Running,
            State::Ended(_) => Stage::Ended,
            State::Taken => Stage::Taken,
        }
    }

    /// Cancels a running job and waits until it has stopped; in its own callback, or a log callback, it does not wait.
    pub(crate) fn stop(&self) {
        self.cancel.cancel();
        let mut state = lock(&self.state);
        loop {
            match &*state {
                State::Running(thread) if is_telling() || *thread == Some(thread::current().id()) => {
                    self.is_freed.store(true, Ordering::Release);
                    return;
                }
                State::Running(_) => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                State::New | State::Ended(_) | State::Taken => return,
            }
        }
    }

    /// Every change wakes those who wait for one.
    fn set_state(&self, state: State) {
        *lock(&self.state) = state;
        self.changed.notify_all();
    }

    fn begin(&self, thread: Option<ThreadId>) -> Outcome<()> {
        let mut state = lock(&self.state);
        if !matches!(*state, State::New) {
            return Err(Failure::state("a request runs once; make another one"));
        }
        *state = State::Running(thread);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    fn execute(&self) {
        let setup = self.setup();
        let outcome =
            caught(|| listening(setup.callbacks.log.as_ref(), &self.cancel, &self.is_freed, || self.generate(&setup)));
        self.set_state(State::Ended(Box::new(outcome.and_then(|outcome| outcome))));
    }

    fn generate(&self, setup: &Setup) -> Outcome<dbcache_result> {
        let mut teller = Teller { callbacks: &setup.callbacks, is_freed: &self.is_freed };
        if teller.phase(DBCACHE_PHASE_PREPARE).is_break() || self.cancel.is_cancelled() {
            return Err(Failure::cancelled());
        }
        let request = self.engine.request(&setup.inputs, &self.options)?;
        if self.cancel.is_cancelled() {
            return Err(Failure::cancelled());
        }
        let output = request.run(&mut teller)?;
        Ok(dbcache_result::new(output, setup.inputs.clone()))
    }

    fn take(&self) -> Outcome<dbcache_result> {
        let mut state = lock(&self.state);
        let taken = std::mem::replace(&mut *state, State::Taken);
        self.changed.notify_all();
        match taken {
            State::Ended(outcome) => *outcome,
            State::Taken => Err(Failure::state("the result of this request was taken already")),
            other => {
                *state = other;
                Err(Failure::state("this request has not ended"))
            }
        }
    }
}
