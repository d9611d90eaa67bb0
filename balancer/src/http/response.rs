//! Response heads.

use super::fields::{Kind, Space, Summary};
use super::{Body, FIELDS_MAX, HeadLimits, Refusal, head_end, refusal};

/// A response head that can be read in one way only.
#[derive(Debug)]
pub struct Response<'h, 'b> {
    pub status: u16,
    /// 0 or 1, for HTTP/1.0 and HTTP/1.1.
    pub version: u8,
    pub body: Body,
    /// Whether the connection may carry another request once the body is read.
    pub persists: bool,
    /// Length of the head with its empty line.
    pub head_bytes: usize,
    pub(crate) reason: &'b str,
    pub(crate) bytes: &'b [u8],
    pub(crate) fields: &'h [httparse::Header<'b>],
    pub(crate) kinds: [Kind; FIELDS_MAX],
    pub(crate) all_end_to_end: bool,
    pub(crate) names_fields: bool,
}

impl Response<'_, '_> {
    /// A head that precedes the real one.
    #[must_use]
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status)
    }
}

/// Parses the head at the start of `bytes`; `None` means that it is not complete.
///
/// `to_head` says that the request was HEAD, whose answer has no body whatever its fields say. Any refusal means
/// that the backend broke the protocol, and its connection must be closed.
pub fn parse_response<'h, 'b>(
    bytes: &'b [u8],
    searched: usize,
    to_head: bool,
    limits: &HeadLimits,
    space: &'h mut Space<'b>,
) -> Result<Option<Response<'h, 'b>>, Refusal> {
    let Some(head_bytes) = head_end(bytes, searched.saturating_sub(3))? else {
        return if bytes.len() >= limits.head_bytes { Err(Refusal::HeadTooLarge) } else { Ok(None) };
    };
    if head_bytes > limits.head_bytes {
        return Err(Refusal::HeadTooLarge);
    }
    let head = &bytes[..head_bytes];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let room = &mut space[..limits.fields.min(FIELDS_MAX)];
    match config
        .parse_response_with_uninit_headers(&mut parsed, head, room)
        .map_err(|error| refusal(error, head))?
    {
        httparse::Status::Complete(end) if end == head_bytes && head.starts_with(b"HTTP/") => {}
        _ => return Err(Refusal::Malformed("head")),
    }
    judge(head, parsed, to_head).map(Some)
}

fn judge<'h, 'b>(
    head: &'b [u8],
    parsed: httparse::Response<'h, 'b>,
    to_head: bool,
) -> Result<Response<'h, 'b>, Refusal> {
    let (Some(status), Some(version), Some(reason)) = (parsed.code, parsed.version, parsed.reason) else {
        return Err(Refusal::Malformed("status line"));
    };
    if !(100..600).contains(&status) {
        return Err(Refusal::Malformed("status"));
    }
    let fields: &'h [httparse::Header<'b>] = parsed.headers;
    let mut kinds = [Kind::Plain; FIELDS_MAX];
    let summary = Summary::of(fields, &mut kinds, version)?;
    let body = if to_head || status < 200 || status == 204 || status == 304 {
        Body::Empty
    } else {
        summary.body().unwrap_or(Body::UntilClose)
    };
    let persists = summary.persists(version) && body != Body::UntilClose;
    Ok(Response {
        status,
        version,
        body,
        persists,
        head_bytes: head.len(),
        reason,
        bytes: head,
        fields,
        kinds,
        all_end_to_end: summary.all_end_to_end,
        names_fields: summary.names_fields,
    })
}
