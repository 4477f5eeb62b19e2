//! Messages of the library and of ONNX Runtime, handed to the callback of the request, or of the load, on whose threads
//! they come up.

use std::cell::Cell;
use std::ffi::{CString, c_void};
use std::fmt::{Debug, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use dbcache::CancelToken;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};

use crate::callbacks::{
    Callback, DBCACHE_LOG_DEBUG, DBCACHE_LOG_ERROR, DBCACHE_LOG_INFO, DBCACHE_LOG_TRACE, DBCACHE_LOG_WARN, dbcache_log,
    dbcache_log_fn,
};
use crate::error::{Failure, Outcome};

/// A callback for messages, with the least important level that it is told.
pub(crate) type Hears = (Callback<dbcache_log>, i32);

/// Checks a level and makes what hears it; none for a NULL function.
pub(crate) fn hears(most: i32, callback: dbcache_log_fn, user: *mut c_void) -> Outcome<Option<Hears>> {
    if !(DBCACHE_LOG_ERROR..=DBCACHE_LOG_TRACE).contains(&most) {
        return Err(Failure::argument("most", &format!("is {most}; expected a DBCACHE_LOG_ constant")));
    }
    Ok(Callback::new(callback, user).map(|callback| (callback, most)))
}

/// Runs `body` with the callback listening to this thread, and to those that load for it. Once `is_freed`, it hears nothing
/// more.
pub(crate) fn listening<T>(
    hears: Option<&Hears>,
    cancel: &CancelToken,
    is_freed: &Arc<AtomicBool>,
    body: impl FnOnce() -> T,
) -> T {
    let Some((callback, most)) = hears else { return body() };
    let (callback, cancel, is_freed) = (callback.clone(), cancel.clone(), Arc::clone(is_freed));
    let listener = Listener { callback, most: *most, cancel, is_freed, turn: Mutex::default() };
    tracing::dispatcher::with_default(&Dispatch::new(listener), body)
}

thread_local! {
    static IS_TELLING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in a log callback: ONNX Runtime and the library may hold locks.
pub(crate) fn is_telling() -> bool {
    IS_TELLING.get()
}

/// Refuses what may wait for what this thread does.
pub(crate) fn not_while_telling() -> Outcome<()> {
    if is_telling() {
        return Err(Failure::state("a log callback can cancel and poll, but not load, run or wait; return first"));
    }
    Ok(())
}

struct Listener {
    callback: Callback<dbcache_log>,
    most: i32,
    cancel: CancelToken,
    is_freed: Arc<AtomicBool>,
    /// Held while the callback is called: several threads load.
    turn: Mutex<()>,
}

fn number(level: &Level) -> i32 {
    match *level {
        Level::ERROR => DBCACHE_LOG_ERROR,
        Level::WARN => DBCACHE_LOG_WARN,
        Level::INFO => DBCACHE_LOG_INFO,
        Level::DEBUG => DBCACHE_LOG_DEBUG,
        Level::TRACE => DBCACHE_LOG_TRACE,
    }
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && number(metadata.level()) <= self.most
    }

    fn event(&self, event: &Event<'_>) {
        if self.is_freed.load(Ordering::Acquire) {
            return;
        }
        let mut line = Line::default();
        event.record(&mut line);
        let text = |text: &str| CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default();
        let (target, message) = (text(event.metadata().target()), text(&format!("{}{}", line.message, line.rest)));
        let told = dbcache_log {
            struct_size: size_of::<dbcache_log>(),
            level: number(event.metadata().level()),
            target: target.as_ptr(),
            message: message.as_ptr(),
        };
        let turn = dbcache::lock(&self.turn);
        let was_telling = IS_TELLING.replace(true);
        let answer = dbcache::outside(|| self.callback.call(&told));
        IS_TELLING.set(was_telling);
        drop(turn);
        if answer.is_break() {
            self.cancel.cancel();
        }
    }

    // Spans are not told; see `enabled`.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event as `message name=value …`.
#[derive(Default)]
struct Line {
    message: String,
    rest: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a text cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.rest, " {name}={value:?}"),
        };
    }
}
