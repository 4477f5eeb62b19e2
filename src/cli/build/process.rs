//! One build in a process of its own, and how much memory the process took.

use std::ffi::OsString;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use dbcache_trt::{CancelToken, Error, ErrorKind};

/// How often a running build is looked at.
pub const PATIENCE: Duration = Duration::from_millis(20);

/// A process that has ended.
pub struct Ended {
    pub exit: Exit,
    pub stdout: String,
    pub stderr: String,
}

/// How it ended.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    pub status: ExitStatus,
    /// The most memory that it had resident at a time, where the system tells: files that it mapped count as well.
    pub peak_bytes: Option<u64>,
}

/// Makes one build; `None` if that was cancelled.
pub fn compile(index: usize, key: &str, cancel: &CancelToken) -> anyhow::Result<Option<Ended>> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let mut command = Command::new(program);
    command.args(["build-one", "--index", &index.to_string(), "--key", key]).args(own_arguments());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start a process that builds")?;
    let listeners = listen(child.stdout.take()).and_then(|out| Ok((out, listen(child.stderr.take())?)));
    let (out, err) = match listeners {
        Ok(listeners) => listeners,
        Err(error) => {
            // It may have ended by itself meanwhile.
            let _ = child.kill();
            child.wait()?;
            let message = format!("a process that builds needs two threads, and the system gives none ({error})");
            anyhow::bail!(Error::with_kind(ErrorKind::Resources, message));
        }
    };
    let Some(exit) = wait(&mut child, cancel)? else { return Ok(None) };
    let text = |listener: thread::JoinHandle<String>| listener.join().unwrap_or_default();
    Ok(Some(Ended { exit, stdout: text(out), stderr: text(err) }))
}

/// The arguments of this command, without its name.
fn own_arguments() -> impl Iterator<Item = OsString> {
    let mut is_named = false;
    std::env::args_os().skip(1).filter(move |argument| std::mem::replace(&mut is_named, true) || argument != "build")
}

/// Waits for a process, or kills it when the user cancels.
fn wait(child: &mut Child, cancel: &CancelToken) -> anyhow::Result<Option<Exit>> {
    loop {
        if cancel.is_cancelled() {
            // It may have ended by itself meanwhile.
            let _ = child.kill();
            child.wait()?;
            return Ok(None);
        }
        match try_wait(child)? {
            Some(exit) => return Ok(Some(exit)),
            None => thread::sleep(PATIENCE),
        }
    }
}

/// How the process ended and its peak memory, or `None` while it runs. After that it must not be waited for again.
#[cfg(unix)]
fn try_wait(child: &mut Child) -> std::io::Result<Option<Exit>> {
    use std::os::unix::process::ExitStatusExt;
    // Linux and the BSDs count in kilobytes, macOS in bytes.
    const UNIT: u64 = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    let id = child.id().try_into().map_err(std::io::Error::other)?;
    // SAFETY: both places are ours to write. The process is a child of this one that nobody has waited for, so its number
    // belongs to no other.
    match unsafe { libc::wait4(id, &mut status, libc::WNOHANG, usage.as_mut_ptr()) } {
        0 => Ok(None),
        -1 => Err(std::io::Error::last_os_error()),
        _ => {
            // SAFETY: the numbers of a zeroed structure are valid, and the system has written over them.
            let peak = unsafe { usage.assume_init() }.ru_maxrss;
            let peak_bytes = u64::try_from(peak).ok().filter(|peak| *peak > 0).map(|peak| peak * UNIT);
            Ok(Some(Exit { status: ExitStatus::from_raw(status), peak_bytes }))
        }
    }
}

#[cfg(not(unix))]
fn try_wait(child: &mut Child) -> std::io::Result<Option<Exit>> {
    Ok(child.try_wait()?.map(|status| Exit { status, peak_bytes: None }))
}

/// Reads a pipe to its end, so that the process never waits for a reader.
fn listen(pipe: Option<impl Read + Send + 'static>) -> std::io::Result<thread::JoinHandle<String>> {
    thread::Builder::new().spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// A shell whose variable holds 40 MB, and one that ends with a code.
    #[test]
    fn the_peak_of_a_process_is_known_when_it_ends() {
        let run = |script: &str| {
            let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            loop {
                if let Some(exit) = try_wait(&mut child).unwrap() {
                    return exit;
                }
                thread::sleep(PATIENCE);
            }
        };
        let ended = run("exit 3");
        assert!(ended.status.code() == Some(3) && ended.peak_bytes.unwrap() > 100_000, "{ended:?}");
        let ended = run("x=$(head -c 40000000 /dev/zero | tr '\\0' x); test ${#x} = 40000000");
        assert!(ended.status.success() && ended.peak_bytes.unwrap() > 40_000_000, "{ended:?}");
        assert_eq!(run("kill -9 $$").status.code(), None);
    }
}
