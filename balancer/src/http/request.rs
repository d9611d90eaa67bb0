//! Request heads.

use super::fields::{Kind, is_authority};
use super::scan::{self, Field, Fields, Space};
use super::{Body, HeadLimits, Refusal, head_end, names_other_version};

/// A request head that can be read in one way only.
#[derive(Debug)]
pub struct Request<'h, 'b> {
    pub method: &'b [u8],
    /// Path and query in origin form. It may lack its first slash when an absolute target had no path.
    pub path: &'b [u8],
    /// Host and port: of an absolute target, else of `Host`. `None` only for HTTP/1.0.
    pub authority: Option<&'b [u8]>,
    /// `OPTIONS *`, which asks about the proxy itself.
    pub is_asterisk: bool,
    /// 0 or 1, for HTTP/1.0 and HTTP/1.1.
    pub version: u8,
    pub body: Body,
    /// Whether the client would send another request on this connection.
    pub persists: bool,
    pub expects_continue: bool,
    /// The protocols that the client would like to change to. Only a request without a body asks for that here.
    pub upgrade: Option<&'b [u8]>,
    /// How often a request about the way to a resource (OPTIONS) may be passed on, if it says so.
    pub max_forwards: Option<u64>,
    /// Length of the head with its empty line.
    pub head_bytes: usize,
    pub(crate) bytes: &'b [u8],
    pub(crate) fields: &'h [Field],
    pub(crate) absolute: bool,
    pub(crate) names_fields: bool,
}

impl Request<'_, '_> {
    #[must_use]
    pub fn is_head(&self) -> bool {
        self.method == b"HEAD"
    }

    /// Whether doing it twice is the same as once (RFC 9110, 9.2.2), so that it may be sent again.
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        matches!(self.method, b"GET" | b"HEAD" | b"OPTIONS" | b"PUT" | b"DELETE")
    }

    /// The first segment of the path, by which the cluster is chosen; not decoded.
    #[must_use]
    pub fn first_segment(&self) -> &[u8] {
        let path = self.path.strip_prefix(b"/").unwrap_or(self.path);
        let end = path.iter().position(|byte| matches!(byte, b'/' | b'?'));
        &path[..end.unwrap_or(path.len())]
    }

    /// Names as they came and values without the white space around them, in the order of the head.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|field| (field.name(self.bytes), field.value(self.bytes)))
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
    space: &'h mut Space,
) -> Result<Option<Request<'h, 'b>>, Refusal> {
    // A head that comes in pieces is read once it is whole, or many small pieces would cost a reading each.
    if searched > 0 && search(bytes, searched, limits)?.is_none() {
        return Ok(None);
    }
    match read(bytes, limits, space) {
        Ok(Some(request)) if request.head_bytes <= limits.head_bytes => Ok(Some(request)),
        // What is wrong counts only once the head is whole, so that it does not matter in which pieces it came.
        other => match search(bytes, 0, limits)? {
            None => Ok(None),
            Some(_) => other.and(Err(Refusal::Malformed("head"))),
        },
    }
}

/// Finds the end of the head. `None` when it is to come; the limits hold for it all the same.
fn search(bytes: &[u8], searched: usize, limits: &HeadLimits) -> Result<Option<usize>, Refusal> {
    // Step back far enough that an end cut by the last call is found.
    let end = head_end(bytes, searched.saturating_sub(3))?;
    let too_large = match end {
        Some(head_bytes) => head_bytes > limits.head_bytes,
        None => bytes.len() >= limits.head_bytes,
    };
    if too_large { Err(too_large_by(bytes, limits)) } else { Ok(end) }
}

/// A head over its bound: by its first line, or by its fields.
fn too_large_by(bytes: &[u8], limits: &HeadLimits) -> Refusal {
    let line = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
    if line > limits.target_bytes { Refusal::TargetTooLong } else { Refusal::HeadTooLarge }
}

fn read<'h, 'b>(
    bytes: &'b [u8],
    limits: &HeadLimits,
    space: &'h mut Space,
) -> Result<Option<Request<'h, 'b>>, Refusal> {
    let Some(line) = Line::read(bytes)? else { return Ok(None) };
    let read = scan::fields(bytes, line.bytes, line.version, limits.fields, Kind::in_request, space)?;
    read.map(|fields| judge(bytes, &line, fields, limits)).transpose()
}

/// The first line of a request.
struct Line<'b> {
    method: &'b [u8],
    target: &'b [u8],
    version: u8,
    /// Its length with its end.
    bytes: usize,
}

impl<'b> Line<'b> {
    fn read(bytes: &'b [u8]) -> Result<Option<Self>, Refusal> {
        let malformed = Err(Refusal::Malformed("start line"));
        let method_end = scan::token_end(bytes, 0);
        match bytes.get(method_end) {
            Some(b' ') if method_end > 0 => {}
            Some(_) => return malformed,
            None => return Ok(None),
        }
        let target_start = method_end + 1;
        let length = bytes[target_start..].iter().position(|&byte| !TARGET[usize::from(byte)]);
        let target_end = match length {
            Some(length) if length > 0 && bytes[target_start + length] == b' ' => target_start + length,
            Some(_) => return malformed,
            None => return Ok(None),
        };
        let Some(rest) = bytes[target_end + 1..].first_chunk::<10>() else { return Ok(None) };
        let version = match rest {
            b"HTTP/1.1\r\n" => 1,
            b"HTTP/1.0\r\n" => 0,
            _ if names_other_version(bytes) => return Err(Refusal::VersionNotSupported),
            _ => return Err(Refusal::Malformed("version")),
        };
        let target = &bytes[target_start..target_end];
        Ok(Some(Self { method: &bytes[..method_end], target, version, bytes: target_end + 11 }))
    }
}

/// What a target may have: printable ASCII, but no fragment, and none of what every browser sends encoded (RFC 3986
/// has no place for it, and recipients disagree on it).
const TARGET: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        table[byte as usize] = !matches!(byte, b'#' | b'<' | b'>' | b'"');
        byte += 1;
    }
    table
};

fn judge<'h, 'b>(
    bytes: &'b [u8],
    line: &Line<'b>,
    fields: Fields<'h, 'b>,
    limits: &HeadLimits,
) -> Result<Request<'h, 'b>, Refusal> {
    let &Line { method, target, version, .. } = line;
    let Fields { fields, summary, head_bytes } = fields;
    if target.len() > limits.target_bytes {
        return Err(Refusal::TargetTooLong);
    }
    if matches!(method, b"CONNECT" | b"TRACE") {
        return Err(Refusal::MethodNotAllowed);
    }
    let target = Target::of(target, method)?;
    if version == 1 && summary.host.is_none() {
        return Err(Refusal::Malformed("no host"));
    }
    // An expectation of HTTP/1.0 is ignored (RFC 9110, 10.1.1).
    if summary.expects_unknown && version == 1 {
        return Err(Refusal::ExpectationFailed);
    }
    let body = summary.body().unwrap_or(Body::Empty);
    Ok(Request {
        method,
        path: target.path,
        authority: target.authority.or(summary.host),
        // RFC 9112, 3.2.4: an absolute target without a path is the absolute form of `*`.
        is_asterisk: target.path == b"*" || (target.path.is_empty() && method == b"OPTIONS"),
        version,
        upgrade: summary.protocols(version).filter(|_| body.is_done()),
        body,
        persists: summary.persists(version),
        expects_continue: summary.expects_continue && version == 1,
        max_forwards: summary.max_forwards.filter(|_| method == b"OPTIONS"),
        head_bytes,
        bytes: &bytes[..head_bytes],
        fields,
        absolute: target.authority.is_some(),
        names_fields: summary.names_fields,
    })
}

struct Target<'b> {
    path: &'b [u8],
    authority: Option<&'b [u8]>,
}

impl<'b> Target<'b> {
    /// Origin form, absolute form, or `*` for OPTIONS (RFC 9112, 3.2). All of `target` is in [`TARGET`].
    fn of(target: &'b [u8], method: &[u8]) -> Result<Self, Refusal> {
        if target.starts_with(b"/") || (target == b"*" && method == b"OPTIONS") {
            return Ok(Self { path: target, authority: None });
        }
        let colon = target.iter().position(|&byte| byte == b':').unwrap_or(target.len());
        let (scheme, rest) = target.split_at(colon);
        let rest = rest.strip_prefix(b"://").ok_or(Refusal::Malformed("target"))?;
        if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
            return Err(Refusal::Malformed("target scheme"));
        }
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if !is_authority(authority) {
            return Err(Refusal::Malformed("target authority"));
        }
        Ok(Self { path, authority: Some(authority) })
    }
}
