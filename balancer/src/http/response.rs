//! Response heads.
//!
//! What is refused is what two readers could frame in two ways (RFC 9112). Who an answer says that it is for, or what
//! its fields would mean to an application, is not judged: nothing is routed by it.
//!
//! An interim answer and a 204 end with their head, and must have neither `Transfer-Encoding` (RFC 9112, 6.1) nor
//! `Content-Length` (RFC 9110, 8.6). One that promises a body all the same is refused: a reader that believes it would
//! take the next answer for that body. `Content-Length: 0`, which many servers send with a 204, reads alike both ways;
//! it is taken, and not passed on. A 304 and an answer to HEAD may tell the length that the body would have.

use super::fields::Kind;
use super::scan::{self, Field, Fields, Space};
use super::{Body, Chunked, HeadLimits, Refusal, head_end};

/// A response head that can be read in one way only.
#[derive(Debug)]
pub struct Response<'h, 'b> {
    pub status: u16,
    /// 0 or 1, for HTTP/1.0 and HTTP/1.1.
    pub version: u8,
    pub body: Body,
    /// Whether the connection may carry another request once the body is read.
    pub persists: bool,
    /// What the connection changes to, if the status is 101.
    pub upgrade: Option<&'b [u8]>,
    /// Length of the head with its empty line.
    pub head_bytes: usize,
    pub(crate) reason: &'b [u8],
    pub(crate) bytes: &'b [u8],
    pub(crate) fields: &'h [Field],
    /// It cannot be forwarded as it came.
    pub(crate) rewritten: bool,
    /// It has a `Transfer-Encoding`, body or not.
    pub(crate) chunked: bool,
    pub(crate) names_fields: bool,
}

impl Response<'_, '_> {
    /// A head that precedes the real one.
    #[must_use]
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status)
    }

    /// Names as they came and values without the white space around them, in the order of the head.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|field| (field.name(self.bytes), field.value(self.bytes)))
    }
}

/// Parses the head at the start of `bytes`; `None` means that it is not complete.
///
/// `searched` is how many bytes an earlier call with the same beginning has seen. `to_head` says that the request
/// was HEAD, whose answer has no body whatever its fields say. Any refusal means that the backend broke the
/// protocol, and its connection must be closed.
pub fn parse_response<'h, 'b>(
    bytes: &'b [u8],
    searched: usize,
    to_head: bool,
    limits: &HeadLimits,
    space: &'h mut Space,
) -> Result<Option<Response<'h, 'b>>, Refusal> {
    // As with requests: what comes in pieces is read once it is whole.
    if searched > 0 && head_end(bytes, searched.saturating_sub(3))?.is_none() {
        return incomplete(bytes, limits);
    }
    match read(bytes, to_head, limits, space)? {
        Some(response) if response.head_bytes > limits.head_bytes => Err(Refusal::HeadTooLarge),
        None => incomplete(bytes, limits),
        read => Ok(read),
    }
}

fn incomplete<T>(bytes: &[u8], limits: &HeadLimits) -> Result<Option<T>, Refusal> {
    if bytes.len() >= limits.head_bytes { Err(Refusal::HeadTooLarge) } else { Ok(None) }
}

fn read<'h, 'b>(
    bytes: &'b [u8],
    to_head: bool,
    limits: &HeadLimits,
    space: &'h mut Space,
) -> Result<Option<Response<'h, 'b>>, Refusal> {
    let Some(line) = Line::read(bytes)? else { return Ok(None) };
    let read = scan::fields(bytes, line.bytes, line.version, limits.fields, Kind::in_answer, space)?;
    read.map(|fields| judge(bytes, &line, fields, to_head)).transpose()
}

/// The first line of a response.
struct Line<'b> {
    version: u8,
    status: u16,
    reason: &'b [u8],
    /// Its length with its end.
    bytes: usize,
}

impl<'b> Line<'b> {
    /// `HTTP/1.1 200 OK`; the reason may be missing, and the space before it with it.
    fn read(bytes: &'b [u8]) -> Result<Option<Self>, Refusal> {
        const BEGINNING: &[u8] = b"HTTP/1.";
        let Some(&[.., minor, space, a, b, c]) = bytes.first_chunk::<12>() else {
            let common = bytes.len().min(BEGINNING.len());
            let may_be_one = bytes[..common] == BEGINNING[..common];
            return if may_be_one { Ok(None) } else { Err(Refusal::Malformed("status line")) };
        };
        let version = minor.wrapping_sub(b'0');
        let digits = [a, b, c];
        if !bytes.starts_with(BEGINNING)
            || version > 1
            || space != b' '
            || !digits.iter().all(u8::is_ascii_digit)
        {
            return Err(Refusal::Malformed("status line"));
        }
        let status = digits.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
        if !(100..600).contains(&status) {
            return Err(Refusal::Malformed("status"));
        }
        let end = scan::text_end(bytes, 12);
        match scan::line_end(bytes, end)? {
            Some(true) => {}
            Some(false) => return Err(Refusal::Malformed("reason")),
            None => return Ok(None),
        }
        let reason = match &bytes[12..end] {
            [] => &[],
            [b' ', reason @ ..] => reason,
            _ => return Err(Refusal::Malformed("status")),
        };
        Ok(Some(Self { version, status, reason, bytes: end + 2 }))
    }
}

fn judge<'h, 'b>(
    bytes: &'b [u8],
    line: &Line<'b>,
    fields: Fields<'h, 'b>,
    to_head: bool,
) -> Result<Response<'h, 'b>, Refusal> {
    let &Line { version, status, reason, .. } = line;
    let Fields { fields, mut summary, head_bytes } = fields;
    if has_no_length(status) {
        summary.check_no_length()?;
    }
    let body = if to_head || status < 200 || status == 204 || status == 304 {
        Body::Empty
    } else {
        match summary.body() {
            Some(Body::Chunked(_)) => Body::Chunked(Chunked::of_answer()),
            body => body.unwrap_or(Body::UntilClose),
        }
    };
    let persists = summary.persists(version) && body != Body::UntilClose;
    Ok(Response {
        status,
        version,
        body,
        persists,
        upgrade: summary.protocols(version),
        head_bytes,
        reason,
        bytes: &bytes[..head_bytes],
        fields,
        rewritten: summary.rewritten,
        chunked: summary.chunked,
        names_fields: summary.names_fields,
    })
}

/// Whether an answer of this status must not say how long it is.
pub(crate) fn has_no_length(status: u16) -> bool {
    status < 200 || status == 204
}
