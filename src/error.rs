//! The one error type of the library.
//!
//! Outside it is opaque: a numbered [`ErrorKind`], a message that ends with the remedy, and a context that says
//! where (engine directory, stage, step, branch). The numbers are the exit codes of the command and never change.

use std::fmt;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by who can mend it. The number is the command's exit code; numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum ErrorKind {
    /// A setting is malformed, impossible, or contradicts another one.
    Usage = 2,
    /// ONNX Runtime's library is missing, too old, wrong or damaged, or could not be set up.
    Library = 3,
    /// The engine directory lies, is incomplete or damaged.
    EngineDirectory = 4,
    /// A prompt, tensor or picture size does not fit the model.
    Input = 5,
    /// ONNX Runtime failed while it loaded or ran a graph.
    Runtime = 6,
    /// A number that must be finite is not.
    Numeric = 7,
    /// Outputs differ from those they were checked against.
    Check = 8,
    /// A file could not be read or written.
    Io = 9,
    /// The provider is missing something, cannot be used here, or would run only a part of a graph.
    Provider = 10,
    /// A build of the provider is missing, and compiling was forbidden.
    NotBuilt = 11,
    /// No memory or no thread is to be had, or a size asks for more than there can be.
    Resources = 12,
    /// The call does not fit what a session is doing, such as a branch out of turn. The command never ends with it.
    State = 21,
    /// A bug of this program: please report it.
    Internal = 70,
    /// The caller cancelled.
    Cancelled = 130,
}

impl ErrorKind {
    /// Every kind, for tables in docs and their tests.
    pub const ALL: [ErrorKind; 14] = [
        Self::Usage,
        Self::Library,
        Self::EngineDirectory,
        Self::Input,
        Self::Runtime,
        Self::Numeric,
        Self::Check,
        Self::Io,
        Self::Provider,
        Self::NotBuilt,
        Self::Resources,
        Self::State,
        Self::Internal,
        Self::Cancelled,
    ];

    /// The exit code of the command.
    pub fn exit_code(self) -> u8 {
        self as u8
    }
}

/// Why an operation failed; see [`ErrorKind`]. Its `Display` is the whole story: context, message, cause; in one line, but
/// for the places where ONNX Runtime was looked for.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    field: Option<String>,
    context: Vec<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of a face of this library (the command, a C host), so that all faces report in one way.
    pub fn with_kind(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::new(kind, message)
    }

    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), field: None, context: Vec::new(), source: None }))
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// An error about one option of [`Options`](crate::options::Options): `problem` goes on after the option's name, such as
    /// `is 0; expected 1 to 8`. Texts of this library name an option as "the option `steps`", or with a value as "the option
    /// `cache=none`"; the command spells that as its flag.
    pub(crate) fn option(name: &str, problem: impl fmt::Display) -> Self {
        Self::usage(format!("the option `{name}` {problem}")).about(name)
    }

    pub(crate) fn directory(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::EngineDirectory, message)
    }

    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Input, message)
    }

    /// What must be finite and is not: `what` holds `number`.
    pub(crate) fn not_finite(what: impl fmt::Display, number: f32) -> Self {
        Self::new(ErrorKind::Numeric, format!("{what} holds {number}; expected finite numbers"))
    }

    pub(crate) fn state(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::State, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    pub(crate) fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "cancelled")
    }

    pub(crate) fn io(action: &str, path: &std::path::Path, error: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, format!("cannot {action} {}", path.display())).about(path.display()).with_source(error)
    }

    pub(crate) fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// Puts a place in front: the outermost is added last.
    pub(crate) fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.context.insert(0, place.to_string());
        self
    }

    /// Says which option or file the error is about, unless that is known already.
    pub(crate) fn about(mut self, field: impl fmt::Display) -> Self {
        self.0.field.get_or_insert_with(|| field.to_string());
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The message without its context and cause.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What it is about, for programs: an option by its long flag without dashes (`steps`), a file by its path, else the
    /// innermost place of the [`context`](Self::context) (a graph, a branch); `None` if no one thing is to blame.
    pub fn field(&self) -> Option<&str> {
        self.0.field.as_deref().or_else(|| self.0.context.last().map(String::as_str))
    }

    /// Where it went wrong, outermost first: engine directory, graph, step, branch.
    pub fn context(&self) -> impl Iterator<Item = &str> {
        self.0.context.iter().map(String::as_str)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in &self.0.context {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.0.message)?;
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

/// Adds a place to the error of a `Result`.
pub(crate) trait At<T> {
    fn at(self, place: impl fmt::Display) -> Result<T>;
}

impl<T> At<T> for Result<T> {
    fn at(self, place: impl fmt::Display) -> Result<T> {
        self.map_err(|error| error.at(place))
    }
}
