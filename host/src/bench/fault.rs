//! Why a request has no good answer: the kinds, whose side they are on, and how they are counted.
//!
//! Does not tell a balancer's own 502 from a backend's: the rows of the backends do (a balancer's has no backend).

use std::{fmt, io};

/// The kinds of failure, in the order of a request's life. Names are part of the report's schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FaultKind {
    /// Never sent: every connection of an open loop was busy until `timeout` was over.
    QueueTimeout,
    /// This machine has no local port left for the target's address.
    NoLocalPort,
    /// The process, or the machine, has no descriptor left.
    FdLimit,
    ConnectRefused,
    /// Not connected within `connect_timeout` or `timeout`.
    ConnectTimeout,
    ConnectReset,
    /// Any other failure to connect, such as an unreachable network.
    ConnectFailed,
    /// The request could not be written completely.
    WriteBroken,
    /// Closed or reset before the first byte of an answer, on a fresh connection or for a method that is not resent.
    ResetBeforeResponse,
    /// The answer ended, by close or reset, within its head.
    EofInHeaders,
    /// The answer ended, by close or reset, before its body was complete.
    EofInBody,
    /// Not an HTTP/1 answer, or one whose length is ambiguous.
    BadHttp,
    /// No byte of an answer within `timeout`.
    TtfbTimeout,
    /// An answer began but was not complete within `timeout`.
    TotalTimeout,
    Status3xx,
    Status4xx,
    Status5xx,
}

/// How a fault enters the report's `counts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Http,
    Transport,
    Timeout,
}

impl FaultKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::QueueTimeout => "queue_timeout",
            Self::NoLocalPort => "no_local_port",
            Self::FdLimit => "fd_limit",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectReset => "connect_reset",
            Self::ConnectFailed => "connect_failed",
            Self::WriteBroken => "write_broken",
            Self::ResetBeforeResponse => "reset_before_response",
            Self::EofInHeaders => "eof_in_headers",
            Self::EofInBody => "eof_in_body",
            Self::BadHttp => "bad_http",
            Self::TtfbTimeout => "ttfb_timeout",
            Self::TotalTimeout => "total_timeout",
            Self::Status3xx => "status_3xx",
            Self::Status4xx => "status_4xx",
            Self::Status5xx => "status_5xx",
        }
    }

    /// `"client"` when the request never left this machine, `"server"` for the target or the way to it.
    pub(super) fn side(self) -> &'static str {
        match self {
            Self::QueueTimeout => "client",
            kind if kind.is_shortage() => "client",
            _ => "server",
        }
    }

    /// This machine lacked something that the request needed.
    pub(super) fn is_shortage(self) -> bool {
        matches!(self, Self::NoLocalPort | Self::FdLimit)
    }

    pub(super) fn class(self) -> Class {
        match self {
            Self::Status3xx | Self::Status4xx | Self::Status5xx => Class::Http,
            Self::QueueTimeout | Self::ConnectTimeout | Self::TtfbTimeout | Self::TotalTimeout => {
                Class::Timeout
            }
            _ => Class::Transport,
        }
    }

    /// `None` for 2xx. Redirects are not followed, so a 3xx is not what was asked for.
    pub(super) fn of_status(status: u16) -> Option<Self> {
        match status {
            200..300 => None,
            300..400 => Some(Self::Status3xx),
            400..500 => Some(Self::Status4xx),
            _ => Some(Self::Status5xx),
        }
    }

    fn of_connect(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EADDRNOTAVAIL) => Self::NoLocalPort,
            Some(libc::EMFILE | libc::ENFILE) => Self::FdLimit,
            Some(libc::ECONNREFUSED) => Self::ConnectRefused,
            Some(libc::ETIMEDOUT) => Self::ConnectTimeout,
            Some(libc::ECONNRESET | libc::ECONNABORTED) => Self::ConnectReset,
            _ => Self::ConnectFailed,
        }
    }
}

/// One failure; cheap to make, its words are put together only for the sample that is kept of each kind.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) kind: FaultKind,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    Io(io::Error),
    Said(&'static str),
}

impl Fault {
    pub(super) fn new(kind: FaultKind, words: &'static str) -> Self {
        Self { kind, cause: Cause::Said(words) }
    }

    pub(super) fn io(kind: FaultKind, error: io::Error) -> Self {
        Self { kind, cause: Cause::Io(error) }
    }

    pub(super) fn connect(error: io::Error) -> Self {
        Self::io(FaultKind::of_connect(&error), error)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Io(error) => error.fmt(f),
            Cause::Said(words) => f.write_str(words),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_connect_have_their_kinds() {
        let kind = |code| Fault::connect(io::Error::from_raw_os_error(code)).kind;
        assert_eq!(kind(libc::EADDRNOTAVAIL), FaultKind::NoLocalPort);
        assert_eq!(kind(libc::EMFILE), FaultKind::FdLimit);
        assert_eq!(kind(libc::ECONNREFUSED), FaultKind::ConnectRefused);
        assert_eq!(kind(libc::ETIMEDOUT), FaultKind::ConnectTimeout);
        assert_eq!(kind(libc::ECONNRESET), FaultKind::ConnectReset);
        assert_eq!(kind(libc::ENETUNREACH), FaultKind::ConnectFailed);
        assert_eq!(FaultKind::NoLocalPort.side(), "client");
    }

    #[test]
    fn only_2xx_is_good() {
        let kinds = [200, 299, 304, 404, 503, 999].map(FaultKind::of_status);
        let expected = [
            None,
            None,
            Some(FaultKind::Status3xx),
            Some(FaultKind::Status4xx),
            Some(FaultKind::Status5xx),
            Some(FaultKind::Status5xx),
        ];
        assert_eq!(kinds, expected);
    }
}
