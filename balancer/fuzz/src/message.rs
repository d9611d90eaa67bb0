//! The balancer's reading of bytes as messages, and what it forwards of them.

use balancer::http::{self, Body, ForwardedFor, HeadLimits, NameList, Request, Response, Rules};

use super::WIDE;

/// A whole message in a form that two readers can agree on.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Method and target in origin form, or the status.
    pub start: Vec<u8>,
    /// Of a request: of the target, else of `Host`.
    pub authority: Option<Vec<u8>>,
    pub version: u8,
    /// Names in lower case and in order; fields of one name in the order they came.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// Without framing and trailers.
    pub body: Vec<u8>,
}

impl Message {
    #[must_use]
    pub fn sorted(mut fields: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<(Vec<u8>, Vec<u8>)> {
        fields.iter_mut().for_each(|(name, _)| name.make_ascii_lowercase());
        fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        fields
    }

    /// The first value of a field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().find(|(n, _)| n == name.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// The protocols to change to, if that is asked for in earnest: one `Upgrade`, which `Connection` names, in
    /// HTTP/1.1, and neither h2c nor nothing among them.
    fn protocols(&self) -> Option<&[u8]> {
        let parts = |value: &[u8]| -> Vec<Vec<u8>> {
            value.split(|byte| *byte == b',').map(|part| part.trim_ascii().to_ascii_lowercase()).collect()
        };
        let named = self.values("connection").into_iter().flat_map(parts).any(|option| option == b"upgrade");
        let &[protocols] = self.values("upgrade").as_slice() else { return None };
        let usable = parts(protocols).iter().all(|protocol| !protocol.is_empty() && protocol != b"h2c");
        (self.version == 1 && named && usable).then_some(protocols)
    }

    /// The least number that a `Max-Forwards` of OPTIONS says.
    fn forwards_left(&self) -> Option<u64> {
        let number = |value: &[u8]| {
            let digits = value.iter().all(u8::is_ascii_digit);
            std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
        };
        let numbers = self.values("max-forwards").into_iter().filter_map(number);
        numbers.min().filter(|_| self.start.starts_with(b"OPTIONS "))
    }

    fn upgrade_fields(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let fields = |protocols: &[u8]| {
            vec![(b"connection".to_vec(), b"upgrade".to_vec()), (b"upgrade".to_vec(), protocols.to_vec())]
        };
        self.protocols().map(fields).unwrap_or_default()
    }

    fn values(&self, name: &str) -> Vec<&[u8]> {
        self.fields.iter().filter(|(n, _)| n == name.as_bytes()).map(|(_, value)| value.as_slice()).collect()
    }

    /// The fields that a proxy forwards: not those of one connection, nor those that `Connection` names, unless
    /// framing or routing rest on them. A transfer coding is spelt in one way.
    fn end_to_end(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        const ENDS_HERE: [&str; 7] = [
            "connection",
            "keep-alive",
            "proxy-connection",
            "proxy-authenticate",
            "proxy-authorization",
            "te",
            "upgrade",
        ];
        const STAYS: [&str; 2] = ["content-length", "transfer-encoding"];
        const STAYS_IN_REQUESTS: [&str; 5] =
            ["host", "x-forwarded-for", "x-forwarded-proto", "via", "expect"];
        // The start of an answer is its status alone.
        let is_request = self.start.contains(&b' ');
        let options: Vec<Vec<u8>> = self
            .values("connection")
            .iter()
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(|option| option.trim_ascii().to_ascii_lowercase())
            .collect();
        let among = |names: &[&str], name: &[u8]| names.iter().any(|listed| listed.as_bytes() == name);
        let stays = |name: &[u8]| {
            let held = among(&STAYS, name) || (is_request && among(&STAYS_IN_REQUESTS, name));
            !among(&ENDS_HERE, name) && (held || !options.iter().any(|option| option.as_slice() == name))
        };
        let mut fields: Vec<_> = self.fields.iter().filter(|(name, _)| stays(name)).cloned().collect();
        let codings = fields.iter_mut().filter(|(name, _)| name == b"transfer-encoding");
        codings.for_each(|(_, value)| value.make_ascii_lowercase());
        fields
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\" HTTP/1.{}", self.start.escape_ascii(), self.version)?;
        if let Some(authority) = &self.authority {
            write!(f, " at \"{}\"", authority.escape_ascii())?;
        }
        for (name, value) in &self.fields {
            write!(f, "; {}: \"{}\"", name.escape_ascii(), value.escape_ascii())?;
        }
        write!(f, "; body \"{}\"", self.body.escape_ascii())
    }
}

/// A message at the front of some bytes.
pub struct Found {
    pub message: Message,
    head_start: usize,
    head_end: usize,
    pub end: usize,
    absolute: bool,
}

fn pairs<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<(Vec<u8>, Vec<u8>)> {
    Message::sorted(fields.map(|(name, value)| (name.to_vec(), value.to_vec())).collect())
}

/// The request at the front of `bytes`, if we take it and it is whole.
#[must_use]
pub fn our_request(bytes: &[u8], limits: &HeadLimits) -> Option<Found> {
    let mut space = http::space();
    let request = http::parse_request(bytes, 0, limits, &mut space).ok()??;
    let (body, end) = take_body(request.body.clone(), bytes, request.head_bytes)?;
    let slash: &[u8] = if request.path == b"*" || request.path.starts_with(b"/") { b"" } else { b"/" };
    let message = Message {
        start: [request.method, b" ", slash, request.path].concat(),
        authority: request.authority.map(<[u8]>::to_vec),
        version: request.version,
        fields: pairs(request.fields()),
        body,
    };
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or(b"");
    let absolute = !request.is_asterisk && !line[request.method.len() + 1..].starts_with(b"/");
    Some(Found { message, head_start: 0, head_end: request.head_bytes, end, absolute })
}

/// The final answer in `bytes`, which may be behind interim ones, if we take it and it is whole. `bytes` are all that
/// come before the connection closes.
#[must_use]
pub fn our_response(bytes: &[u8], to_head: bool, limits: &HeadLimits) -> Option<Found> {
    let mut start = 0;
    loop {
        let mut space = http::space();
        let rest = &bytes[start..];
        let response = http::parse_response(rest, 0, to_head, limits, &mut space).ok()??;
        // Nobody asked to switch protocols.
        if response.status == 101 {
            return None;
        }
        if response.is_interim() {
            start += response.head_bytes;
            continue;
        }
        let (body, end) = take_body(response.body.clone(), rest, response.head_bytes)?;
        let message = Message {
            start: response.status.to_string().into_bytes(),
            authority: None,
            version: response.version,
            fields: pairs(response.fields()),
            body,
        };
        let (head_end, end) = (start + response.head_bytes, start + end);
        return Some(Found { message, head_start: start, head_end, end, absolute: false });
    }
}

/// The content of a whole body behind a head, and where it ends.
fn take_body(mut body: Body, bytes: &[u8], head_bytes: usize) -> Option<(Vec<u8>, usize)> {
    let mut content = Vec::new();
    let taken = body.advance_into(&bytes[head_bytes..], &mut content).ok()?;
    (body.is_done() || body == Body::UntilClose).then_some((content, head_bytes + taken))
}

/// What backends get of a request under different rules, and how it must read.
pub fn forwarded_requests(bytes: &[u8], found: &Found) -> Vec<(Vec<u8>, Message)> {
    let mut space = http::space();
    let request = http::parse_request(bytes, 0, &WIDE, &mut space).expect("taken before").expect("whole");
    // These are not forwarded.
    if request.is_asterisk || request.max_forwards == Some(0) {
        return Vec::new();
    }
    [ForwardedFor::Off, ForwardedFor::Append, ForwardedFor::Replace]
        .into_iter()
        .map(|kind| forwarded_request(bytes, found, &request, kind))
        .collect()
}

fn forwarded_request(
    bytes: &[u8],
    found: &Found,
    request: &Request<'_, '_>,
    kind: ForwardedFor,
) -> (Vec<u8>, Message) {
    let adds = kind != ForwardedFor::Off;
    let rules = Rules {
        forwarded_for: kind,
        forwarded_proto: adds,
        via: adds,
        dropped: NameList::default(),
        fields_max: 1000,
    };
    let mut out = Vec::new();
    http::write_request(&mut out, request, &rules, "192.0.2.9").expect("few enough fields");
    out.extend_from_slice(&bytes[found.head_end..found.end]);
    let mut expected = found.message.clone();
    expected.version = 1;
    expected.fields = found.message.end_to_end();
    // The balancer answers it itself.
    expected.fields.retain(|(name, _)| name != b"expect");
    if found.absolute || expected.authority.is_none() {
        expected.fields.retain(|(name, _)| name != b"host");
        let host = expected.authority.get_or_insert_default().clone();
        expected.fields.push((b"host".to_vec(), host));
    }
    if let Some(left) = found.message.forwards_left() {
        expected.fields.retain(|(name, _)| name != b"max-forwards");
        expected.fields.push((b"max-forwards".to_vec(), (left - 1).to_string().into_bytes()));
    }
    if adds {
        add_proxy_fields(&mut expected, found, kind);
    }
    // What comes behind a body could not be told from the other protocol.
    if request.body.is_done() {
        expected.fields.extend(found.message.upgrade_fields());
    }
    expected.fields = Message::sorted(std::mem::take(&mut expected.fields));
    (out, expected)
}

fn add_proxy_fields(expected: &mut Message, found: &Found, kind: ForwardedFor) {
    let appended = kind == ForwardedFor::Append;
    let joined = |name: &str, own: &str| {
        let mut values = if appended || name == "via" { found.message.values(name) } else { Vec::new() };
        values.retain(|value| !value.is_empty());
        values.push(own.as_bytes());
        (name.as_bytes().to_vec(), values.join(b", ".as_slice()))
    };
    let keeps_proto = appended && found.message.field("x-forwarded-proto").is_some();
    expected.fields.retain(|(name, _)| {
        name != b"x-forwarded-for" && name != b"via" && (keeps_proto || name != b"x-forwarded-proto")
    });
    expected.fields.push(joined("x-forwarded-for", "192.0.2.9"));
    expected
        .fields
        .push(joined("via", if found.message.version == 0 { "1.0 balancer" } else { "1.1 balancer" }));
    if !keeps_proto {
        expected.fields.push((b"x-forwarded-proto".to_vec(), b"http".to_vec()));
    }
}

/// What clients of both versions get of an answer, to its end, and how it must read.
pub fn forwarded_responses(bytes: &[u8], found: &Found, to_head: bool) -> Vec<(Vec<u8>, Message)> {
    let head = &bytes[found.head_start..];
    let mut space = http::space();
    let response =
        http::parse_response(head, 0, to_head, &WIDE, &mut space).expect("taken before").expect("whole");
    let kinds = [(None, 1), (Some(b"close".as_slice()), 1), (Some(b"close".as_slice()), 0)];
    kinds
        .into_iter()
        .map(|(connection, version)| forwarded_response(bytes, found, &response, connection, version))
        .collect()
}

fn forwarded_response(
    bytes: &[u8],
    found: &Found,
    response: &Response<'_, '_>,
    connection: Option<&[u8]>,
    version: u8,
) -> (Vec<u8>, Message) {
    let mut out = Vec::new();
    let mut expected = found.message.clone();
    if http::write_response(&mut out, response, connection, version) {
        expected.version = 1;
        expected.fields = found.message.end_to_end();
        let protocols = if expected.start == b"426" { found.message.values("upgrade") } else { Vec::new() };
        expected.fields.extend(protocols.iter().map(|value| (b"upgrade".to_vec(), value.to_vec())));
        let upgrade = (!protocols.is_empty()).then_some(b"upgrade".as_slice());
        let options: Vec<_> = connection.into_iter().chain(upgrade).collect();
        if !options.is_empty() {
            expected.fields.push((b"connection".to_vec(), options.join(b", ".as_slice())));
        }
        if version == 0 {
            expected.fields.retain(|(name, _)| name != b"transfer-encoding");
        }
        if expected.start == b"204" {
            expected.fields.retain(|(name, _)| name != b"content-length");
        }
        expected.fields = Message::sorted(std::mem::take(&mut expected.fields));
    } else {
        out.extend_from_slice(&bytes[found.head_start..found.head_end]);
    }
    if version == 0 && matches!(response.body, Body::Chunked(_)) {
        out.extend_from_slice(&found.message.body);
    } else {
        out.extend_from_slice(&bytes[found.head_end..found.end]);
    }
    (out, expected)
}
