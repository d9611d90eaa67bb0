//! Request heads.

use super::fields::{Kind, Space, Summary, is_host_byte};
use super::{Body, FIELDS_MAX, HeadLimits, Refusal, head_end, refusal};

/// A request head that can be read in one way only.
#[derive(Debug)]
pub struct Request<'h, 'b> {
    pub method: &'b str,
    /// Path and query in origin form. It may lack its first slash when an absolute target had no path.
    pub path: &'b str,
    /// Host and port: of an absolute target, else of `Host`. `None` only for HTTP/1.0.
    pub authority: Option<&'b str>,
    /// `OPTIONS *`, which asks about the proxy itself.
    pub is_asterisk: bool,
    /// 0 or 1, for HTTP/1.0 and HTTP/1.1.
    pub version: u8,
    pub body: Body,
    /// Whether the client would send another request on this connection.
    pub persists: bool,
    pub expects_continue: bool,
    /// Length of the head with its empty line.
    pub head_bytes: usize,
    pub(crate) bytes: &'b [u8],
    pub(crate) fields: &'h [httparse::Header<'b>],
    pub(crate) kinds: [Kind; FIELDS_MAX],
    pub(crate) absolute: bool,
    pub(crate) names_fields: bool,
}

impl Request<'_, '_> {
    #[must_use]
    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// Whether doing it twice is the same as once (RFC 9110, 9.2.2), so that it may be sent again.
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        matches!(self.method, "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE")
    }

    /// The first segment of the path, by which the cluster is chosen; not decoded.
    #[must_use]
    pub fn first_segment(&self) -> &str {
        let path = self.path.strip_prefix('/').unwrap_or(self.path);
        path.split(['/', '?']).next().unwrap_or("")
    }
}

/// Parses the head at the start of `bytes`; `None` means that it is not complete.
///
/// `searched` is how many bytes an earlier call with the same beginning has seen. Refusals carry the status to
/// answer with, after which the connection must be closed: where the next request would begin is unknown.
pub fn parse_request<'h, 'b>(
    bytes: &'b [u8],
    searched: usize,
    limits: &HeadLimits,
    space: &'h mut Space<'b>,
) -> Result<Option<Request<'h, 'b>>, Refusal> {
    // Step back far enough that an end cut by the last call is found.
    let Some(head_bytes) = head_end(bytes, searched.saturating_sub(3))? else {
        return incomplete(bytes, limits).map(|()| None);
    };
    if head_bytes > limits.head_bytes {
        return Err(too_large(bytes, limits));
    }
    let head = &bytes[..head_bytes];
    let mut parsed = httparse::Request::new(&mut []);
    let room = &mut space[..limits.fields.min(FIELDS_MAX)];
    match parsed.parse_with_uninit_headers(head, room).map_err(|error| refusal(error, head))? {
        httparse::Status::Complete(end) if end == head_bytes => {}
        _ => return Err(Refusal::Malformed("head")),
    }
    judge(head, parsed, limits).map(Some)
}

fn judge<'h, 'b>(
    head: &'b [u8],
    parsed: httparse::Request<'h, 'b>,
    limits: &HeadLimits,
) -> Result<Request<'h, 'b>, Refusal> {
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Refusal::Malformed("start line"));
    };
    if target.len() > limits.target_bytes {
        return Err(Refusal::TargetTooLong);
    }
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(Refusal::MethodNotAllowed);
    }
    if !head.starts_with(method.as_bytes()) {
        return Err(Refusal::Malformed("empty line before the request"));
    }
    let target = Target::of(target, method)?;
    let fields: &'h [httparse::Header<'b>] = parsed.headers;
    let mut kinds = [Kind::Plain; FIELDS_MAX];
    let summary = Summary::of(fields, &mut kinds, version)?;
    if version == 1 && summary.host.is_none() {
        return Err(Refusal::Malformed("no host"));
    }
    Ok(Request {
        method,
        path: target.path,
        authority: target.authority.or(summary.host),
        is_asterisk: target.path == "*",
        version,
        body: summary.body().unwrap_or(Body::Empty),
        persists: summary.persists(version),
        expects_continue: summary.expects_continue && version == 1,
        head_bytes: head.len(),
        bytes: head,
        fields,
        kinds,
        absolute: target.authority.is_some(),
        names_fields: summary.names_fields,
    })
}

fn incomplete(bytes: &[u8], limits: &HeadLimits) -> Result<(), Refusal> {
    if bytes.len() >= limits.head_bytes { Err(too_large(bytes, limits)) } else { Ok(()) }
}

/// A head over its bound: by its first line, or by its fields.
fn too_large(bytes: &[u8], limits: &HeadLimits) -> Refusal {
    let line = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
    if line > limits.target_bytes { Refusal::TargetTooLong } else { Refusal::HeadTooLarge }
}

struct Target<'b> {
    path: &'b str,
    authority: Option<&'b str>,
}

impl<'b> Target<'b> {
    /// Origin form, absolute form, or `*` for OPTIONS (RFC 9112, 3.2).
    fn of(target: &'b str, method: &str) -> Result<Self, Refusal> {
        if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err(Refusal::Malformed("target"));
        }
        if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
            return Ok(Self { path: target, authority: None });
        }
        let (scheme, rest) = target.split_once("://").ok_or(Refusal::Malformed("target"))?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(Refusal::Malformed("target scheme"));
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.is_empty() || !authority.bytes().all(is_host_byte) {
            return Err(Refusal::Malformed("target authority"));
        }
        Ok(Self { path, authority: Some(authority) })
    }
}
