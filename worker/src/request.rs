//! What the worker needs of a request, taken from its head before the body is read.
//!
//! may_minihttp leaves a body that nobody reads to be parsed as the next request, panics on a length that is no
//! number, knows no chunked bodies, and ignores `Connection`. All that is made good here: what cannot be framed is
//! refused and the connection closed. Does not answer requests.

use std::io::BufRead;

use may_minihttp::{BodyReader, Request};

use crate::answer::Answer;

/// Bytes of `x-request-id` that are echoed; a longer one is cut, because an identifier must not fail a request.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Largest request body. It is thrown away as it comes in and needs no memory; the limit bounds the time.
const BODY_BYTES_MAX: usize = 1 << 30;

pub(crate) const CLOSE: &str = "connection: close";
const KEEP_ALIVE: &str = "connection: keep-alive";

/// What becomes of the connection after the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    Keep,
    Close,
}

/// A request that has been read to its end.
#[derive(Debug)]
pub(crate) struct Ask {
    target: String,
    pub(crate) head: bool,
    pub(crate) request_id: Option<String>,
    /// Empty when the call carries none; no token is empty.
    pub(crate) fault_token: Vec<u8>,
    pub(crate) after: After,
    http10: bool,
}

impl Ask {
    /// A plain HTTP/1.1 request.
    #[cfg(test)]
    pub(crate) fn get(target: &str) -> Self {
        Self {
            target: target.to_owned(),
            head: false,
            request_id: None,
            fault_token: Vec::new(),
            after: After::Keep,
            http10: false,
        }
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split_once('?').map_or(&self.target, |(path, _)| path)
    }

    pub(crate) fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    /// The header field that tells the client what becomes of the connection, where it could not know.
    pub(crate) fn connection_field(&self) -> Option<&'static str> {
        match (self.after, self.http10) {
            (After::Close, _) => Some(CLOSE),
            (After::Keep, true) => Some(KEEP_ALIVE),
            (After::Keep, false) => None,
        }
    }
}

/// Reads the head's fields and then the whole body; the error is the answer to a request that cannot be framed.
pub(crate) fn read(request: Request) -> Result<Ask, Answer> {
    let length = body_length(&request)?;
    let ask = Ask {
        target: request.path().to_owned(),
        head: request.method() == "HEAD",
        request_id: field(&request, "x-request-id").map(request_id),
        fault_token: field(&request, "x-fault-token").unwrap_or_default().to_vec(),
        after: after(&request),
        http10: request.version() == 0,
    };
    match discard(request.body()) {
        read if read == length => Ok(ask),
        _ => Err(bad_request("the body ended early")),
    }
}

fn field<'a>(request: &'a Request, name: &str) -> Option<&'a [u8]> {
    fields(request, name).next()
}

fn fields<'a>(request: &'a Request, name: &str) -> impl Iterator<Item = &'a [u8]> {
    request
        .headers()
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name))
        .map(|field| field.value)
}

fn bad_request(message: &str) -> Answer {
    Answer::error(400, "Bad Request", message)
}

fn body_length(request: &Request) -> Result<usize, Answer> {
    if field(request, "transfer-encoding").is_some() {
        return Err(Answer::error(411, "Length Required", "send the body with a content-length"));
    }
    let mut lengths = fields(request, "content-length");
    let Some(first) = lengths.next() else { return Ok(0) };
    if lengths.any(|other| other != first) {
        return Err(bad_request("two different content-lengths"));
    }
    match parse_length(first) {
        Some(length) if length <= BODY_BYTES_MAX => Ok(length),
        Some(_) => Err(Answer::error(413, "Content Too Large", "the body is too large")),
        None => Err(bad_request("the content-length is not a number")),
    }
}

/// Digits only: `parse` alone would take a sign. A number too large for the type is one too large for us.
fn parse_length(value: &[u8]) -> Option<usize> {
    let digits = std::str::from_utf8(value).ok()?;
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().unwrap_or(usize::MAX))
}

fn request_id(value: &[u8]) -> String {
    let value = &value[..value.len().min(REQUEST_ID_BYTES_MAX)];
    String::from_utf8_lossy(value).into_owned()
}

/// HTTP/1.1 keeps a connection unless told otherwise, HTTP/1.0 only when told so.
fn after(request: &Request) -> After {
    let says = |word: &str| fields(request, "connection").any(|value| has_word(value, word));
    match request.version() {
        _ if says("close") => After::Close,
        0 if !says("keep-alive") => After::Close,
        _ => After::Keep,
    }
}

fn has_word(list: &[u8], word: &str) -> bool {
    list.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
}

/// Reads a body to its end, or to the end of the connection, and gives the bytes read.
fn discard(mut body: BodyReader) -> usize {
    let mut total = 0;
    while let Ok(piece @ 1..) = body.fill_buf().map(<[u8]>::len) {
        body.consume(piece);
        total += piece;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_digits_only() {
        assert_eq!(parse_length(b"0"), Some(0));
        assert_eq!(parse_length(b"0042"), Some(42));
        assert_eq!(parse_length(b"99999999999999999999999"), Some(usize::MAX));
        for bad in ["", "abc", "+5", "-1", " 5", "5, 5", "0x5", "5.0", "\u{665}"] {
            assert_eq!(parse_length(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_long_request_id_is_cut_and_a_broken_one_made_text() {
        assert_eq!(request_id(b"abc"), "abc");
        assert_eq!(request_id(&[b'x'; 1000]).len(), REQUEST_ID_BYTES_MAX);
        assert_eq!(request_id(b"a\xffb"), "a\u{fffd}b");
    }

    #[test]
    fn words_of_a_connection_field_are_found_whole() {
        assert!(has_word(b"keep-alive, Close", "close"));
        assert!(!has_word(b"closed", "close"));
        assert!(!has_word(b"", "close"));
    }
}
