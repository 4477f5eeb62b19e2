//! Ctrl-C and what else asks the program to end.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dbcache_trt::{CancelToken, ErrorKind};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Ctrl-C, or SIGTERM of who stops services: the first one cancels the token, the second one ends the program at once.
///
/// SIGHUP keeps its meaning, which `nohup` relies on.
pub fn cancel_token() -> anyhow::Result<CancelToken> {
    let is_cancelled = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag not yet set.
        flag::register_conditional_shutdown(
            signal,
            ErrorKind::Cancelled.exit_code().into(),
            Arc::clone(&is_cancelled),
        )?;
        flag::register(signal, Arc::clone(&is_cancelled))?;
    }
    // A file that becomes longer than `ulimit -f` is an error of whoever writes it, not the end of the program.
    #[cfg(unix)]
    flag::register(signal_hook::consts::SIGXFSZ, Arc::<AtomicBool>::default())?;
    Ok(is_cancelled.into())
}
