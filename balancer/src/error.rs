//! What can go wrong with one request, and the one place where that becomes a status.

use std::io;

use crate::http::Refusal;

/// Where a request failed. The message is for the log; a client sees a status and its standard words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    // Downstream: the client's doing.
    #[error("request refused: {0}")]
    Refused(Refusal),
    #[error("request head or body came too slowly")]
    ClientTooSlow,
    #[error("client went away")]
    ClientGone,
    // Upstream: the backend's doing.
    #[error("no backend may take a request")]
    NoBackend,
    #[error("connect to backend")]
    Connect(#[source] io::Error),
    #[error("connect to backend: timed out")]
    ConnectTimeout,
    #[error("backend closed the connection before its answer")]
    Died,
    #[error("backend closed the connection in its answer")]
    Truncated,
    #[error("backend answered too slowly")]
    ResponseTimeout,
    #[error("backend's answer refused: {0}")]
    BadAnswer(Refusal),
    // Internal: the balancer's own limits.
    #[error("every backend has as many requests as it can answer in time")]
    Overloaded,
    #[error("too many bodies at once")]
    Busy,
    #[error("out of descriptors, ports or memory")]
    Exhausted(#[source] io::Error),
}

/// Whose doing an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Downstream,
    Upstream,
    Internal,
}

/// Whether this process is out of descriptors, ports or memory, which says nothing about whom it deals with.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    let own = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| own.contains(&code))
}

impl Error {
    /// What a failed connect means. That this process is out of something is not the backend's doing.
    pub(crate) fn of_connect(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ETIMEDOUT) => Self::ConnectTimeout,
            _ if is_exhausted(&error) => Self::Exhausted(error),
            _ => Self::Connect(error),
        }
    }

    pub(crate) fn side(&self) -> Side {
        match self {
            Self::Refused(_) | Self::ClientTooSlow | Self::ClientGone => Side::Downstream,
            Self::Overloaded | Self::Busy | Self::Exhausted(_) => Side::Internal,
            _ => Side::Upstream,
        }
    }

    /// The status that answers a request which ended like this before any byte of an answer was sent; `None` when
    /// nobody is there to read it.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(refusal) => Some(refusal.status()),
            Self::ClientTooSlow => Some(408),
            Self::ClientGone => None,
            Self::NoBackend | Self::Connect(_) | Self::Overloaded | Self::Busy | Self::Exhausted(_) => {
                Some(503)
            }
            Self::Died | Self::Truncated | Self::BadAnswer(_) => Some(502),
            Self::ConnectTimeout | Self::ResponseTimeout => Some(504),
        }
    }
}
