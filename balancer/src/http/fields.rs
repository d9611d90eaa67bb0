//! Header fields: which ones the balancer must understand, and the framing that they agree on.

use super::scan::Field;
use super::{Body, Chunked, Refusal};

/// Options that `Connection` may name in one head, empty ones included, and the bytes of all its values: each is
/// compared with each field, and a head full of them would cost milliseconds. Programs name three.
const CONNECTION_OPTIONS_MAX: u32 = 64;
const CONNECTION_BYTES_MAX: usize = 1024;

/// What a field is to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    /// Belongs to one connection, whatever `Connection` says of it.
    HopByHop,
    Upgrade,
    Expect,
    MaxForwards,
    ForwardedFor,
    ForwardedProto,
    Via,
    /// One of these with `_` for `-`, which applications behind CGI's rules for names cannot tell apart.
    Disguised,
}

impl Kind {
    /// What a field of this name is in an answer: there the fields of requests say nothing.
    pub(crate) fn in_answer(name: &[u8]) -> Self {
        match Self::in_request(name) {
            Self::Host
            | Self::Expect
            | Self::MaxForwards
            | Self::ForwardedFor
            | Self::ForwardedProto
            | Self::Via
            | Self::Disguised => Self::Plain,
            kind => kind,
        }
    }

    pub(crate) fn in_request(name: &[u8]) -> Self {
        // Most names are told apart from these by their length, and the rest by their first letter.
        let is = |other: &[u8]| name[0] | 0x20 == other[0] && name.eq_ignore_ascii_case(other);
        let looks = |other: &[u8]| {
            let alike = |(n, o): (&u8, &u8)| n.to_ascii_lowercase() == *o || (*n, *o) == (b'_', b'-');
            name[0] | 0x20 == other[0] && name.iter().zip(other).all(alike)
        };
        match name.len() {
            2 if is(b"te") => Self::HopByHop,
            3 if is(b"via") => Self::Via,
            4 if is(b"host") => Self::Host,
            6 if is(b"expect") => Self::Expect,
            7 if is(b"upgrade") => Self::Upgrade,
            10 if is(b"connection") => Self::Connection,
            10 if is(b"keep-alive") => Self::HopByHop,
            12 if is(b"max-forwards") => Self::MaxForwards,
            14 if is(b"content-length") => Self::ContentLength,
            15 if is(b"x-forwarded-for") => Self::ForwardedFor,
            16 if is(b"proxy-connection") => Self::HopByHop,
            17 if is(b"transfer-encoding") => Self::TransferEncoding,
            17 if is(b"x-forwarded-proto") => Self::ForwardedProto,
            18 if is(b"proxy-authenticate") => Self::HopByHop,
            19 if is(b"proxy-authorization") => Self::HopByHop,
            14 if looks(b"content-length") => Self::Disguised,
            15 if looks(b"x-forwarded-for") => Self::Disguised,
            17 if looks(b"transfer-encoding") || looks(b"x-forwarded-proto") => Self::Disguised,
            _ => Self::Plain,
        }
    }
}

/// What the fields of one head say together.
#[derive(Debug, Default)]
pub(crate) struct Summary<'b> {
    length: Option<u64>,
    pub(crate) chunked: bool,
    pub(crate) host: Option<&'b [u8]>,
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    options: u32,
    option_bytes: usize,
    /// `Connection` names fields that are therefore not forwarded.
    pub(crate) names_fields: bool,
    pub(crate) expects_continue: bool,
    /// `Expect` names something else than that.
    pub(crate) expects_unknown: bool,
    /// The protocols that `Upgrade` names; empty when several fields do.
    pub(crate) upgrade: Option<&'b [u8]>,
    /// `Connection` names `upgrade`, without which that field means nothing.
    pub(crate) upgrades: bool,
    /// How often the request may be passed on, by the least of several; what is no number means nothing.
    pub(crate) max_forwards: Option<u64>,
    /// Something needs to be taken out or written in another way before forwarding.
    pub(crate) rewritten: bool,
}

impl<'b> Summary<'b> {
    /// What all fields together must not say.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        if self.chunked && self.length.is_some() {
            return Err(Refusal::Malformed("both content-length and transfer-encoding"));
        }
        Ok(())
    }

    /// What the fields of an answer must not say that has no body whatever they say. An innocent length of zero is
    /// left to be taken out.
    pub(crate) fn check_no_length(&mut self) -> Result<(), Refusal> {
        if self.chunked || self.length.is_some_and(|length| length > 0) {
            return Err(Refusal::Malformed("a length where no body may be"));
        }
        self.rewritten |= self.length.is_some();
        Ok(())
    }

    /// Takes one field of `head` in, in their order. Fields of the kind [`Kind::Plain`] say nothing.
    pub(crate) fn note(&mut self, field: &Field, head: &'b [u8], version: u8) -> Result<(), Refusal> {
        let value = field.value(head);
        match field.kind {
            Kind::ContentLength => {
                let length = content_length(value)?;
                if self.length.replace(length).is_some() {
                    return Err(Refusal::Malformed("more than one content-length"));
                }
            }
            Kind::TransferEncoding => {
                let exact = value.eq_ignore_ascii_case(b"chunked");
                if version == 0 || self.chunked || !exact {
                    return Err(Refusal::Malformed("transfer-encoding is not exactly chunked"));
                }
                self.chunked = true;
                // White space and capitals are legal, and not read alike by everybody.
                self.rewritten |= !field.continues(head, b": chunked\r\n");
            }
            Kind::Host => {
                if self.host.is_some() || !(value.is_empty() || is_authority(value)) {
                    return Err(Refusal::Malformed("host"));
                }
                self.host = Some(value);
            }
            Kind::Connection => self.note_connection(value)?,
            Kind::Expect => {
                self.rewritten = true;
                for expectation in list(value).filter(|expectation| !expectation.is_empty()) {
                    let known = expectation.eq_ignore_ascii_case(b"100-continue");
                    self.expects_continue |= known;
                    self.expects_unknown |= !known;
                }
            }
            Kind::HopByHop => self.rewritten = true,
            Kind::Upgrade => {
                self.rewritten = true;
                self.upgrade = Some(if self.upgrade.is_none() { value } else { b"" });
            }
            Kind::MaxForwards => {
                let said = content_length(value).ok();
                self.max_forwards = self.max_forwards.into_iter().chain(said).min();
            }
            Kind::Disguised => return Err(Refusal::Malformed("underscore for a hyphen in a field name")),
            Kind::ForwardedFor | Kind::ForwardedProto | Kind::Via | Kind::Plain => {}
        }
        Ok(())
    }

    fn note_connection(&mut self, value: &[u8]) -> Result<(), Refusal> {
        let too_many = Refusal::Malformed("more options of the connection than anybody needs");
        self.rewritten = true;
        self.option_bytes += value.len();
        if self.option_bytes > CONNECTION_BYTES_MAX {
            return Err(too_many);
        }
        for option in list(value) {
            self.options += 1;
            if self.options > CONNECTION_OPTIONS_MAX {
                return Err(too_many);
            }
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if !option.is_empty() {
                self.names_fields = true;
                self.upgrades |= option.eq_ignore_ascii_case(b"upgrade");
            }
        }
        Ok(())
    }

    /// Whether the connection may carry another message: the default of the version, unless a field says otherwise.
    pub(crate) fn persists(&self, version: u8) -> bool {
        !self.close && (version == 1 || self.keep_alive)
    }

    /// The protocols that the sender wants to change to, or changes to (RFC 9110, 7.8). HTTP/2 over this connection
    /// (`h2c`) is not among what is passed on: a proxy that does not read it cannot judge it.
    pub(crate) fn protocols(&self, version: u8) -> Option<&'b [u8]> {
        let usable = |protocol: &[u8]| !protocol.is_empty() && !protocol.eq_ignore_ascii_case(b"h2c");
        self.upgrade.filter(|value| version == 1 && self.upgrades && list(value).all(usable))
    }

    /// The framing by these fields alone; `None` when they say nothing.
    pub(crate) fn body(&self) -> Option<Body> {
        if self.chunked {
            return Some(Body::Chunked(Chunked::default()));
        }
        self.length.map(|length| if length == 0 { Body::Empty } else { Body::Length(length) })
    }
}

/// Whether a `Connection` field among `fields` of `head` names `name`.
pub(crate) fn connection_names(head: &[u8], fields: &[Field], name: &[u8]) -> bool {
    fields
        .iter()
        .filter(|field| field.kind == Kind::Connection)
        .any(|field| list(field.value(head)).any(|option| option.eq_ignore_ascii_case(name)))
}

/// Whether `protocol` is one of the `offered` ones.
pub(crate) fn offers(offered: &[u8], protocol: &[u8]) -> bool {
    list(offered).any(|one| one.eq_ignore_ascii_case(protocol))
}

/// The elements of a comma-separated list, trimmed; empty ones included.
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// Digits and nothing else: no sign, no list, no space inside (RFC 9112, 6.3).
fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    let malformed = Refusal::Malformed("content-length");
    if value.is_empty() {
        return Err(malformed);
    }
    value.iter().try_fold(0u64, |length, byte| match byte {
        b'0'..=b'9' => {
            length.checked_mul(10).and_then(|l| l.checked_add(u64::from(byte - b'0'))).ok_or(malformed)
        }
        _ => Err(malformed),
    })
}

/// Whether `value` is a host with or without a port (RFC 3986, 3.2): a name, an address, or an IP literal in brackets.
/// Percent-encoding and user information are not taken.
pub(crate) fn is_authority(value: &[u8]) -> bool {
    const PORT_DIGITS_MAX: usize = 5;
    let (host, port) = match value.strip_prefix(b"[") {
        Some(rest) => {
            let Some(end) = memchr::memchr(b']', rest) else { return false };
            let is_address = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
            if !rest[..end].iter().all(is_address) {
                return false;
            }
            (&rest[..end], &rest[end + 1..])
        }
        None => {
            let end = value.iter().position(|&byte| !is_name_byte(byte)).unwrap_or(value.len());
            value.split_at(end)
        }
    };
    let is_port = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= PORT_DIGITS_MAX && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    !host.is_empty() && is_port
}

/// Unreserved bytes and sub-delims.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}
