//! HTTP/1.1 heads and body framing, as RFC 9110 and 9112 have them, over byte slices.
//!
//! Everything here is pure: bytes in, values out. Heads are cut into lines and judged in one pass: what two
//! parsers could read in two ways is refused, on both sides, and never forwarded. Heads are forwarded by copying
//! the lines that are kept.
//!
//! This module reads no socket, knows no timeout, and does not decide where a request goes.

mod chunked;
mod fields;
mod forward;
mod request;
mod response;
mod scan;

pub use chunked::Chunked;
pub(crate) use fields::offers;
pub use forward::{ForwardedFor, NameList, Rules, write_request, write_response};
pub use request::{Request, parse_request};
pub use response::{Response, parse_response};
pub use scan::{FIELDS_MAX, Field, Space, space};

/// Why a message is not forwarded. The text is for the log; a client sees only the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("malformed: {0}")]
    Malformed(&'static str),
    #[error("target is too long")]
    TargetTooLong,
    #[error("head is too large")]
    HeadTooLarge,
    #[error("method is not served")]
    MethodNotAllowed,
    #[error("something else is expected than 100-continue")]
    ExpectationFailed,
    #[error("version is not HTTP/1.0 or HTTP/1.1")]
    VersionNotSupported,
}

impl Refusal {
    /// The status that answers a request refused for this reason.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::MethodNotAllowed => 405,
            Self::TargetTooLong => 414,
            Self::ExpectationFailed => 417,
            Self::HeadTooLarge => 431,
            Self::VersionNotSupported => 505,
        }
    }
}

/// Bounds on a head. `fields` is at most [`FIELDS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    pub head_bytes: usize,
    pub target_bytes: usize,
    pub fields: usize,
}

/// How the end of a message body is known, and how much of it is still to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Empty,
    /// This many bytes are left.
    Length(u64),
    Chunked(Chunked),
    /// Responses only: everything until the connection closes.
    UntilClose,
}

impl Body {
    /// Whether nothing more belongs to the body. A body until close is done when the connection is.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match self {
            Self::Empty | Self::Length(0) => true,
            Self::Length(_) | Self::UntilClose => false,
            Self::Chunked(chunked) => chunked.is_done(),
        }
    }

    /// Takes from the front of `bytes` what belongs to the body and returns how much that is. Less than all means
    /// that the body is done and the rest is something else.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        match self {
            Self::Empty => Ok(0),
            Self::Length(left) => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                Ok(taken)
            }
            Self::Chunked(chunked) => chunked.advance(bytes, |_| {}),
            Self::UntilClose => Ok(bytes.len()),
        }
    }

    /// Like [`Self::advance`], and appends the content without its framing to `content`.
    pub fn advance_into(&mut self, bytes: &[u8], content: &mut Vec<u8>) -> Result<usize, Refusal> {
        if let Self::Chunked(chunked) = self {
            return chunked.advance(bytes, |data| content.extend_from_slice(data));
        }
        let taken = self.advance(bytes)?;
        content.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }
}

/// Finds the end of a head: the position after the first empty line.
///
/// `from` is how much was searched before, so that a head arriving byte by byte is read once. A line that ends
/// without a carriage return is refused here, before its head is complete.
pub(crate) fn head_end(bytes: &[u8], from: usize) -> Result<Option<usize>, Refusal> {
    for at in memchr::memchr_iter(b'\n', &bytes[from..]) {
        let end = from + at;
        if end == 0 || bytes[end - 1] != b'\r' {
            return Err(Refusal::Malformed("line feed without carriage return"));
        }
        if bytes[..end + 1].ends_with(b"\r\n\r\n") {
            return Ok(Some(end + 1));
        }
    }
    Ok(None)
}

/// Whether the first line is a request in three words, of which the last is a version of HTTP that is not spoken.
fn names_other_version(head: &[u8]) -> bool {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or(&[]);
    let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    matches!(words.as_slice(), [_, _, version @ [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]]
        if major.is_ascii_digit() && minor.is_ascii_digit() && !matches!(*version, b"HTTP/1.0" | b"HTTP/1.1"))
}
