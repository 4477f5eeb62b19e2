//! Messages of the library and of ONNX Runtime, handed to the callback of the request whose thread they come from.

use std::ffi::CString;
use std::fmt::{Debug, Write};
use std::ops::ControlFlow;

use dbcache::CancelToken;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};

use crate::callbacks::{
    Callback, Callbacks, DBCACHE_LOG_DEBUG, DBCACHE_LOG_ERROR, DBCACHE_LOG_INFO, DBCACHE_LOG_TRACE, DBCACHE_LOG_WARN,
    dbcache_log,
};

/// Runs `body` with the log callback listening to this thread.
pub(crate) fn listening<T>(callbacks: &Callbacks, cancel: &CancelToken, body: impl FnOnce() -> T) -> T {
    let Some((callback, most)) = &callbacks.log else { return body() };
    let listener = Listener { callback: callback.clone(), most: *most, cancel: cancel.clone() };
    tracing::dispatcher::with_default(&Dispatch::new(listener), body)
}

struct Listener {
    callback: Callback<dbcache_log>,
    most: i32,
    cancel: CancelToken,
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
        if let ControlFlow::Break(()) = self.callback.call(&told) {
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
