//! Header fields: which ones the balancer must understand, and the framing that they agree on.

use std::mem::MaybeUninit;

use super::{Body, Chunked, Refusal};

/// The most fields that a head can have, whatever the configuration says: the space on the stack that parsing uses.
pub const FIELDS_MAX: usize = 128;

/// Room for the fields of one head while it is parsed.
pub type Space<'b> = [MaybeUninit<httparse::Header<'b>>; FIELDS_MAX];

#[must_use]
pub fn space<'b>() -> Space<'b> {
    [const { MaybeUninit::uninit() }; FIELDS_MAX]
}

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
    Expect,
    ForwardedFor,
    ForwardedProto,
    Via,
}

impl Kind {
    pub(crate) fn of(name: &str) -> Self {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        match name.len() {
            2 if is("te") => Self::HopByHop,
            3 if is("via") => Self::Via,
            4 if is("host") => Self::Host,
            6 if is("expect") => Self::Expect,
            7 if is("upgrade") => Self::HopByHop,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::HopByHop,
            14 if is("content-length") => Self::ContentLength,
            15 if is("x-forwarded-for") => Self::ForwardedFor,
            16 if is("proxy-connection") => Self::HopByHop,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            17 if is("x-forwarded-proto") => Self::ForwardedProto,
            18 if is("proxy-authenticate") => Self::HopByHop,
            19 if is("proxy-authorization") => Self::HopByHop,
            _ => Self::Plain,
        }
    }
}

/// What the fields of one head say together.
#[derive(Debug, Default)]
pub(crate) struct Summary<'b> {
    length: Option<u64>,
    chunked: bool,
    pub(crate) host: Option<&'b str>,
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    /// `Connection` names fields that are therefore not forwarded.
    pub(crate) names_fields: bool,
    pub(crate) expects_continue: bool,
    /// Nothing needs to be taken out before forwarding.
    pub(crate) all_end_to_end: bool,
}

impl<'b> Summary<'b> {
    /// Reads all fields once and fills `kinds` in step with them.
    pub(crate) fn of(
        fields: &[httparse::Header<'b>],
        kinds: &mut [Kind; FIELDS_MAX],
        version: u8,
    ) -> Result<Self, Refusal> {
        let mut summary = Self { all_end_to_end: true, ..Self::default() };
        for (field, kind) in fields.iter().zip(kinds) {
            *kind = Kind::of(field.name);
            if *kind != Kind::Plain {
                summary.note(*kind, field.value, version)?;
            }
        }
        if summary.chunked && summary.length.is_some() {
            return Err(Refusal::Malformed("both content-length and transfer-encoding"));
        }
        Ok(summary)
    }

    fn note(&mut self, kind: Kind, value: &'b [u8], version: u8) -> Result<(), Refusal> {
        match kind {
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
            }
            Kind::Host => {
                if self.host.is_some() || !value.iter().copied().all(is_host_byte) {
                    return Err(Refusal::Malformed("host"));
                }
                self.host = std::str::from_utf8(value).ok();
            }
            Kind::Connection => self.note_connection(value),
            Kind::Expect => {
                self.all_end_to_end = false;
                self.expects_continue |= value.eq_ignore_ascii_case(b"100-continue");
            }
            Kind::HopByHop => self.all_end_to_end = false,
            Kind::ForwardedFor | Kind::ForwardedProto | Kind::Via | Kind::Plain => {}
        }
        Ok(())
    }

    fn note_connection(&mut self, value: &[u8]) {
        self.all_end_to_end = false;
        for option in list(value) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if !option.is_empty() {
                self.names_fields = true;
            }
        }
    }

    /// Whether the connection may carry another message: the default of the version, unless a field says otherwise.
    pub(crate) fn persists(&self, version: u8) -> bool {
        !self.close && (version == 1 || self.keep_alive)
    }

    /// The framing by these fields alone; `None` when they say nothing.
    pub(crate) fn body(&self) -> Option<Body> {
        if self.chunked {
            return Some(Body::Chunked(Chunked::default()));
        }
        self.length.map(|length| if length == 0 { Body::Empty } else { Body::Length(length) })
    }
}

/// Whether a `Connection` field among `fields` names `name`.
pub(crate) fn connection_names(fields: &[httparse::Header<'_>], kinds: &[Kind], name: &str) -> bool {
    fields
        .iter()
        .zip(kinds)
        .filter(|&(_, &kind)| kind == Kind::Connection)
        .any(|(field, _)| list(field.value).any(|option| option.eq_ignore_ascii_case(name.as_bytes())))
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

/// Bytes that can be part of an authority (RFC 3986: unreserved, sub-delims, and `:[]%`).
pub(crate) fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%".contains(&byte)
}
