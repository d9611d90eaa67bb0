//! Where the program's own events go: standard error, where a supervisor keeps it.
//!
//! Code says what happens with the macros of `tracing`: a message that a person can read alone, and the same in fields
//! for programs. Without [`init`] nothing is written, as in a test that runs the balancer as a library. Requests are
//! not events; see `access`.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::format::debug_fn;

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people: time, level, message.
    #[default]
    Text,
    /// For programs: an object per line.
    Json,
}

/// The least important events that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogLevel {
    /// What ends the program.
    Error,
    /// What somebody should look at.
    Warn,
    /// What changes: start, reload, backends up and down, drain, hand-over.
    #[default]
    Info,
    /// Each failed probe as well.
    Debug,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
        }
    }
}

/// Has events written from now on. Must be called once, before anything else. What cannot be written, because the disk
/// is full or the reader gone, is lost: to say so at the same place would fail as well.
pub fn init(format: LogFormat, level: LogLevel) {
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(LevelFilter::from(level))
        .with_target(false)
        // It would say so with `eprintln!`, which panics.
        .log_internal_errors(false);
    // The message says it all to a person.
    let message_only = debug_fn(|writer, field, value| match field.name() {
        "message" => write!(writer, "{value:?}"),
        _ => Ok(()),
    });
    match format {
        LogFormat::Text => builder.with_ansi(false).fmt_fields(message_only).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
