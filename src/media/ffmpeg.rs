//! The program ffmpeg: started, fed, listened to, and stopped.

use std::io::Read;
use std::path::Path;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::thread::Builder;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// The program that makes MP4 and WebM files.
pub(crate) const FFMPEG: &str = "ffmpeg";
/// How often it is looked at while it runs.
const PATIENCE: Duration = Duration::from_millis(10);

/// What became of ffmpeg.
pub(crate) struct Run {
    pub(crate) status: ExitStatus,
    /// Whether it took all that it was given.
    pub(crate) piped: std::io::Result<()>,
    said: Vec<u8>,
}

/// Runs ffmpeg with what `pipe` writes to it; `goes_on` is asked again and again, and an error of it ends the program.
pub(crate) fn run(
    mut command: Command,
    path: &Path,
    pipe: impl FnOnce(ChildStdin) -> std::io::Result<()> + Send,
    goes_on: impl Fn() -> Result<()>,
) -> Result<Run> {
    let io = |error| Error::io("write", path, error);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| not_started(path, error))?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    std::thread::scope(|scope| {
        // Both in threads of their own: a program that neither reads nor ends must not keep this one from being cancelled.
        let listen = Builder::new().spawn_scoped(scope, move || {
            let mut said = Vec::new();
            if let Some(mut stderr) = stderr {
                drop(stderr.read_to_end(&mut said)); // What was read is what can be told.
            }
            said
        });
        let threads = listen.and_then(|listen| {
            let pipe = Builder::new().spawn_scoped(scope, move || stdin.map_or(Ok(()), pipe))?;
            Ok((pipe, listen))
        });
        let (pipe, listen) = match threads {
            Ok(threads) => threads,
            Err(error) => {
                drop(child.kill());
                child.wait().map_err(io)?;
                return Err(no_thread(path, error));
            }
        };
        let status = loop {
            if let Some(status) = child.try_wait().map_err(io)? {
                break status;
            }
            if let Err(error) = goes_on() {
                // It may have ended by itself meanwhile.
                drop(child.kill());
                child.wait().map_err(io)?;
                return Err(error);
            }
            std::thread::sleep(PATIENCE);
        };
        let lost = |_| Error::internal("a thread that speaks with ffmpeg was lost");
        Ok(Run { status, piped: pipe.join().map_err(lost)?, said: listen.join().map_err(lost)? })
    })
}

fn no_thread(path: &Path, error: std::io::Error) -> Error {
    let message = "writing by ffmpeg needs a thread, and the system gives none; raise its limit, or run less at once";
    Error::new(ErrorKind::Resources, message).about(path.display()).with_source(error)
}

pub(crate) fn failed(path: &Path, run: &Run) -> Error {
    let said = String::from_utf8_lossy(&run.said);
    let reason = said.lines().next().unwrap_or("no reason given");
    unwritten(path, &format!("{FFMPEG} failed ({}): {reason}", run.status))
}

fn not_started(path: &Path, error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            let problem = format!(
                "{FFMPEG} is not installed (no such program on PATH); install it, or write .gif, .png (animated) or a folder of \
             frames, which need nothing"
            );
            unwritten(path, &problem)
        }
        _ => unwritten(path, &format!("{FFMPEG} cannot be started")).with_source(error),
    }
}

pub(crate) fn unwritten(path: &Path, problem: &str) -> Error {
    Error::new(ErrorKind::Io, format!("cannot write {}: {problem}", path.display())).about(path.display())
}
