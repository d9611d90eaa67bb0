//! Heads as they are forwarded: the lines that stay, copied in runs, and what a proxy adds.
//!
//! `Upgrade` is of one connection (RFC 9110, 7.8), and goes to a client with two answers. A 101 says what that client's
//! connection becomes as well. A 426 must say which protocol is wanted (15.5.22), and a client that asks for it here,
//! without `h2c` in its list, is passed on to the backend. In any other answer it only says what the backend's own
//! connection could become, and is taken out: clients that are told `h2c` behind a proxy act on it, and fail.

use super::fields::{Kind, connection_names};
use super::response::has_no_length;
use super::scan::Field;
use super::{Body, Refusal, Request, Response};

/// What happens to `X-Forwarded-For`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForwardedFor {
    /// The client's address is appended to what the client sent: right behind another proxy that is trusted. An
    /// application must believe only the last element.
    #[default]
    Append,
    /// What the client sent is dropped: right where clients connect directly.
    Replace,
    /// Passed on as it came.
    Off,
}

/// What is added to and taken from a request on its way to one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    pub forwarded_for: ForwardedFor,
    pub forwarded_proto: bool,
    pub via: bool,
    /// Names of fields that are not forwarded.
    pub dropped: NameList,
    /// The most fields forwarded, those that we add included; more is answered 431.
    pub fields_max: usize,
}

/// Field names and prefixes (`sec-*`), matched without regard to case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NameList {
    names: Vec<String>,
    prefixes: Vec<String>,
}

impl NameList {
    /// Each pattern is a name, or a prefix followed by one asterisk.
    #[must_use]
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Self {
        let mut list = Self::default();
        for pattern in patterns {
            match pattern.strip_suffix('*') {
                Some(prefix) => list.prefixes.push(prefix.to_ascii_lowercase()),
                None => list.names.push(pattern.to_ascii_lowercase()),
            }
        }
        list
    }

    #[must_use]
    pub fn contains(&self, name: &[u8]) -> bool {
        let begins = |prefix: &String| {
            name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
        };
        self.names.iter().any(|listed| name.eq_ignore_ascii_case(listed.as_bytes()))
            || self.prefixes.iter().any(begins)
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.prefixes.is_empty()
    }
}

/// Appends the head of `request` as a backend gets it. `client` is the client's address as text.
///
/// Refuses with [`Refusal::HeadTooLarge`] when more fields remain than the cluster takes; `out` is then of no use.
pub fn write_request(
    out: &mut Vec<u8>,
    request: &Request<'_, '_>,
    rules: &Rules,
    client: &str,
) -> Result<(), Refusal> {
    write_request_line(out, request);
    let mut count = 0;
    if request.absolute || request.authority.is_none() {
        // RFC 9112, 3.2.2: the target's authority replaces whatever Host says; and 3.2: where HTTP/1.0 had none, an
        // empty one is sent.
        line(out, "Host", request.authority.unwrap_or(b""));
        count += 1;
    }
    let lines = Lines { bytes: request.bytes, fields: request.fields, names_fields: request.names_fields };
    count += lines.copy(out, |name, kind| keeps(request, rules, name, kind));
    if matches!(request.body, Body::Chunked(_)) {
        write_chunked(out);
        count += 1;
    }
    if let Some(left) = request.max_forwards {
        // RFC 9110, 7.6.2. One that must not be forwarded does not come here.
        line(out, "Max-Forwards", left.saturating_sub(1).to_string().as_bytes());
        count += 1;
    }
    count += write_added(out, request, rules, client);
    if let Some(protocols) = request.upgrade {
        line(out, "Connection", b"upgrade");
        line(out, "Upgrade", protocols);
        count += 2;
    }
    out.extend_from_slice(b"\r\n");
    if count > rules.fields_max { Err(Refusal::HeadTooLarge) } else { Ok(()) }
}

fn write_request_line(out: &mut Vec<u8>, request: &Request<'_, '_>) {
    out.extend_from_slice(request.method);
    out.push(b' ');
    if !request.path.starts_with(b"/") {
        out.push(b'/');
    }
    out.extend_from_slice(request.path);
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

fn keeps(request: &Request<'_, '_>, rules: &Rules, name: &[u8], kind: Kind) -> bool {
    match kind {
        Kind::MaxForwards if request.max_forwards.is_some() => false,
        Kind::Plain | Kind::MaxForwards | Kind::Disguised => {
            rules.dropped.is_empty() || !rules.dropped.contains(name)
        }
        Kind::ContentLength => true,
        Kind::Host => !request.absolute,
        Kind::ForwardedFor => rules.forwarded_for == ForwardedFor::Off,
        // Behind a trusted proxy the original protocol is what that proxy says.
        Kind::ForwardedProto => !rules.forwarded_proto || rules.forwarded_for == ForwardedFor::Append,
        Kind::Via => !rules.via,
        Kind::TransferEncoding | Kind::Connection | Kind::HopByHop | Kind::Upgrade | Kind::Expect => false,
    }
}

/// Writes the fields of a proxy and returns how many.
fn write_added(out: &mut Vec<u8>, request: &Request<'_, '_>, rules: &Rules, client: &str) -> usize {
    let mut count = 0;
    if rules.forwarded_for != ForwardedFor::Off {
        out.extend_from_slice(b"X-Forwarded-For: ");
        if rules.forwarded_for == ForwardedFor::Append {
            write_values(out, request, Kind::ForwardedFor);
        }
        out.extend_from_slice(client.as_bytes());
        out.extend_from_slice(b"\r\n");
        count += 1;
    }
    let given = rules.forwarded_for == ForwardedFor::Append && has(request, Kind::ForwardedProto);
    if rules.forwarded_proto && !given {
        line(out, "X-Forwarded-Proto", b"http");
        count += 1;
    }
    if rules.via {
        out.extend_from_slice(b"Via: ");
        write_values(out, request, Kind::Via);
        out.extend_from_slice(if request.version == 0 { b"1.0 balancer\r\n" } else { b"1.1 balancer\r\n" });
        count += 1;
    }
    count
}

fn has(request: &Request<'_, '_>, kind: Kind) -> bool {
    request.fields.iter().any(|field| field.kind == kind)
}

/// Writes the values of all fields of one kind, each with a comma after it.
fn write_values(out: &mut Vec<u8>, request: &Request<'_, '_>, kind: Kind) {
    for field in request.fields.iter().filter(|field| field.kind == kind) {
        let value = field.value(request.bytes);
        if !value.is_empty() {
            out.extend_from_slice(value);
            out.extend_from_slice(b", ");
        }
    }
}

/// Appends the head of `response` as the client gets it.
///
/// `connection` is an option of `Connection` to add. `version` is the request's: one of HTTP/1.0 is never answered with
/// `Transfer-Encoding` (RFC 9112, 6.1), not even where no body follows. Returns `false` and writes nothing when the head
/// can be sent as it came.
pub fn write_response(
    out: &mut Vec<u8>,
    response: &Response<'_, '_>,
    connection: Option<&[u8]>,
    version: u8,
) -> bool {
    if !response.rewritten && response.version == 1 && connection.is_none() && version == 1 {
        return false;
    }
    // "HTTP/1.1 " and three digits; the version is ours, the rest is the backend's.
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(&response.bytes[9..12]);
    out.push(b' ');
    out.extend_from_slice(response.reason);
    out.extend_from_slice(b"\r\n");
    let lines = Lines { bytes: response.bytes, fields: response.fields, names_fields: response.names_fields };
    let has_no_length = has_no_length(response.status);
    lines.copy(out, |_, kind| match kind {
        Kind::TransferEncoding | Kind::Connection | Kind::HopByHop | Kind::Upgrade => false,
        Kind::ContentLength => !has_no_length,
        _ => true,
    });
    if response.chunked && version == 1 {
        write_chunked(out);
    }
    write_connection(out, response, connection);
    out.extend_from_slice(b"\r\n");
    true
}

/// Writes what the client must know of its connection: `option`, and the protocols that a 101 or a 426 names.
fn write_connection(out: &mut Vec<u8>, response: &Response<'_, '_>, option: Option<&[u8]>) {
    let is_told = |field: &&Field| matches!(response.status, 101 | 426) && field.kind == Kind::Upgrade;
    let mut protocols = response.fields.iter().filter(is_told).peekable();
    match (protocols.peek().is_some(), option) {
        (false, None) => {}
        (false, Some(option)) => line(out, "Connection", option),
        (true, None) => line(out, "Connection", b"upgrade"),
        (true, Some(option)) => {
            out.extend_from_slice(b"Connection: ");
            out.extend_from_slice(option);
            out.extend_from_slice(b", upgrade\r\n");
        }
    }
    protocols.for_each(|field| line(out, "Upgrade", field.value(response.bytes)));
}

/// In the one spelling that everybody reads alike, however it came.
fn write_chunked(out: &mut Vec<u8>) {
    out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
}

fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The field lines of a head as they lie in its bytes.
struct Lines<'a> {
    bytes: &'a [u8],
    fields: &'a [Field],
    names_fields: bool,
}

impl Lines<'_> {
    /// Copies the lines for which `keep` holds, neighbours in one piece, and returns how many they are. Fields that
    /// `Connection` names are left out as well, but for those that framing and routing rest on.
    fn copy(&self, out: &mut Vec<u8>, keep: impl Fn(&[u8], Kind) -> bool) -> usize {
        let mut count = 0;
        let mut run_start = None;
        for field in self.fields {
            let (start, name) = (field.line as usize, field.name(self.bytes));
            if keep(name, field.kind) && !self.is_named(name, field.kind) {
                run_start.get_or_insert(start);
                count += 1;
            } else if let Some(from) = run_start.take() {
                out.extend_from_slice(&self.bytes[from..start]);
            }
        }
        if let Some(from) = run_start {
            out.extend_from_slice(&self.bytes[from..self.bytes.len() - 2]);
        }
        count
    }

    fn is_named(&self, name: &[u8], kind: Kind) -> bool {
        let may_be_named = matches!(kind, Kind::Plain | Kind::MaxForwards);
        self.names_fields && may_be_named && connection_names(self.bytes, self.fields, name)
    }
}
