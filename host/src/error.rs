//! What can go wrong, in one type: the kind decides the exit code, the message names the operation and the
//! thing, the hint says what to do.
//!
//! Where in a recipe it went wrong is `failure`; how that looks is `ui::report`.

use std::{cell::Cell, fmt};

use rhai::{Dynamic, EvalAltResult, Map, Position};

/// The sort of a failure; each has one exit code (design: 0 done, 1 recipe, 2 usage, ..., 130 interrupted).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The recipe raised an error of its own, or used a primitive wrongly while running.
    Recipe,
    /// The command line is wrong, or an argument is missing.
    Usage,
    /// The recipe does not compile, names an unknown function or option, or imports from outside.
    Compile,
    /// The provider refused: credentials, permission, quota, ceiling, price.
    Provider,
    /// A host failed: SSH, command, upload, readiness.
    Host,
    /// A service level objective failed, or with `--strict` the result is invalid.
    Slo,
    /// `--confirm` is missing.
    Confirm,
    /// Teardown is incomplete; the message lists what is left.
    Teardown,
    /// Another labhost holds the lab's lock.
    Locked,
    /// A bug in labhost, or a file of its own that cannot be read or written.
    Internal,
    /// Ctrl-C, or the run's time budget.
    Interrupted,
}

impl Kind {
    /// The process's exit code for this kind.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Recipe => 1,
            Self::Usage => 2,
            Self::Compile => 3,
            Self::Provider => 4,
            Self::Host => 5,
            Self::Slo => 6,
            Self::Confirm => 7,
            Self::Teardown => 8,
            Self::Locked => 9,
            Self::Internal => 70,
            Self::Interrupted => 130,
        }
    }

    /// The kind with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        const ALL: [Kind; 11] = [
            Kind::Recipe,
            Kind::Usage,
            Kind::Compile,
            Kind::Provider,
            Kind::Host,
            Kind::Slo,
            Kind::Confirm,
            Kind::Teardown,
            Kind::Locked,
            Kind::Internal,
            Kind::Interrupted,
        ];
        ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The name a recipe sees in a caught error's `kind`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Recipe => "recipe",
            Self::Usage => "usage",
            Self::Compile => "compile",
            Self::Provider => "provider",
            Self::Host => "host",
            Self::Slo => "slo",
            Self::Confirm => "confirm",
            Self::Teardown => "teardown",
            Self::Locked => "locked",
            Self::Internal => "internal",
            Self::Interrupted => "interrupted",
        }
    }
}

/// A failure as the user meets it.
///
/// `message` is lower case, without a full stop, and names the operation and the thing
/// (`upload worker to cluster1-2: no space left on device`). `detail` is text to show below it as it is, such
/// as the end of a command's stderr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
    pub hint: Option<String>,
    pub detail: Option<String>,
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, detail: None }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    pub fn host(message: impl Into<String>) -> Self {
        Self::new(Kind::Host, message)
    }

    pub fn provider(message: impl Into<String>) -> Self {
        Self::new(Kind::Provider, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// What the user can do about it: one or two sentences.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Text to show below the message as it is; nothing is stored when it is blank.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        self.detail = (!detail.trim().is_empty()).then(|| detail.trim_end().to_owned());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

thread_local! {
    static CALL: Cell<Position> = const { Cell::new(Position::NONE) };
}

/// Where in a recipe the function was called that this thread carries out, until it is dropped. The engine fills in
/// the place of a failed method call by itself, but not that of a module's function.
#[derive(Debug)]
#[must_use = "the place is forgotten when this is dropped"]
pub struct CallAt {
    before: Position,
}

impl CallAt {
    pub fn new(position: Position) -> Self {
        Self { before: CALL.replace(position) }
    }
}

impl Drop for CallAt {
    fn drop(&mut self) {
        CALL.set(self.before);
    }
}

/// How a failure reaches a recipe: as a map that it can catch, with `kind`, `message`, `hint` and `detail`, and the
/// place of the call. An interruption cannot be caught.
impl From<Error> for Box<EvalAltResult> {
    fn from(error: Error) -> Self {
        if error.kind == Kind::Interrupted {
            return Self::new(EvalAltResult::ErrorTerminated(error.message.into(), CALL.get()));
        }
        let text = |value: Option<String>| value.map_or(Dynamic::UNIT, Dynamic::from);
        let map = Map::from([
            ("kind".into(), error.kind.name().into()),
            ("message".into(), error.message.into()),
            ("hint".into(), text(error.hint)),
            ("detail".into(), text(error.detail)),
        ]);
        Self::new(EvalAltResult::ErrorRuntime(map.into(), CALL.get()))
    }
}

/// Turns any failure into an [`Error`] that names the operation: `fs::read(p).context(Kind::Internal, || ..)`.
pub trait Context<T> {
    fn context(self, kind: Kind, operation: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, kind: Kind, operation: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|cause| Error::new(kind, format!("{}: {cause}", operation())))
    }
}
