//! Reads HTTP/1 answers from byte slices: where the head ends, what it says, and where the body ends (RFC 9112).
//!
//! Pure. Does not keep bodies, does not undo content encodings, and is strict: what is ambiguous is malformed,
//! because a benchmark must notice when a proxy frames its answers wrongly.

use std::mem::MaybeUninit;

/// What is wrong with an answer, in words.
pub(super) type Malformed = &'static str;

/// Servers and proxies send about ten; more than this is a mistake.
const FIELDS_MAX: usize = 100;
/// Chunk extensions and trailer fields are skipped; this bounds how many bytes of them one body may have.
const SKIPPED_BYTES_MAX: usize = 16 << 10;
/// A chunk size of 15 hexadecimal digits fits into 64 bits.
const SIZE_DIGITS_MAX: u32 = 15;

/// The head of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head<'bytes> {
    pub(super) status: u16,
    /// The head's length; the body begins there.
    pub(super) bytes: usize,
    pub(super) body: Body,
    /// The connection may be used again once the body is complete.
    pub(super) keep_alive: bool,
    /// The value of the header field that names the backend.
    pub(super) backend: Option<&'bytes [u8]>,
}

impl<'bytes> Head<'bytes> {
    /// `None` when the head is not complete yet. `is_head`: the request was a HEAD. Among the answers are interim
    /// ones (1xx), which the caller skips.
    pub(super) fn parse(
        bytes: &'bytes [u8],
        is_head: bool,
        backend_header: &str,
    ) -> Result<Option<Self>, Malformed> {
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            bytes,
            &mut fields,
        );
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err("more than 100 header fields"),
            Err(_) => return Err("not an HTTP/1 answer"),
        };
        let (Some(status), Some(version)) = (response.code, response.version) else {
            return Err("not an HTTP/1 answer");
        };
        let fields = Fields::read(response.headers, backend_header)?;
        let body = fields.body(status, is_head)?;
        Ok(Some(Self {
            status,
            bytes: length,
            keep_alive: body != Body::Close && !fields.close && (version == 1 || fields.keep_alive),
            body,
            backend: fields.backend,
        }))
    }

    /// An answer before the answer: 100 Continue, 103 Early Hints.
    pub(super) fn is_interim(&self) -> bool {
        (100..200).contains(&self.status)
    }
}

/// The header fields that matter here.
#[derive(Default)]
struct Fields<'bytes> {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    backend: Option<&'bytes [u8]>,
}

impl<'bytes> Fields<'bytes> {
    fn read(headers: &[httparse::Header<'bytes>], backend_header: &str) -> Result<Self, Malformed> {
        let mut fields = Self::default();
        for header in headers {
            let name = header.name;
            if name.eq_ignore_ascii_case("content-length") {
                fields.add_length(header.value)?;
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                fields.add_coding(header.value)?;
            } else if name.eq_ignore_ascii_case("connection") {
                fields.close |= has_word(header.value, b"close");
                fields.keep_alive |= has_word(header.value, b"keep-alive");
            } else if name.eq_ignore_ascii_case(backend_header) {
                fields.backend = Some(header.value);
            }
        }
        Ok(fields)
    }

    fn add_length(&mut self, value: &[u8]) -> Result<(), Malformed> {
        let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
        let length: u64 = length.ok_or("Content-Length is not a number")?;
        if self.length.is_some_and(|other| other != length) {
            return Err("two different Content-Length fields");
        }
        self.length = Some(length);
        Ok(())
    }

    fn add_coding(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err("a Transfer-Encoding other than chunked");
        }
        self.chunked = true;
        Ok(())
    }

    /// RFC 9112, section 6.3.
    fn body(&self, status: u16, is_head: bool) -> Result<Body, Malformed> {
        if self.chunked && self.length.is_some() {
            return Err("both Content-Length and Transfer-Encoding");
        }
        if status == 101 {
            return Err("switches protocols without being asked");
        }
        let none = is_head || status < 200 || status == 204 || status == 304;
        Ok(match (none, self.chunked, self.length) {
            (true, _, _) => Body::Length(0),
            (_, true, _) => Body::Chunked(Chunked::default()),
            (_, _, Some(length)) => Body::Length(length),
            _ => Body::Close,
        })
    }
}

/// Whether a comma-separated list has this word (given in lower case).
fn has_word(list: &[u8], word: &[u8]) -> bool {
    list.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(word))
}

/// A body under way.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// So many bytes are still to come.
    Length(u64),
    Chunked(Chunked),
    /// Ends when the server closes.
    Close,
}

/// What [`Body::take`] did with a slice.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// Bytes of the slice that belong to the body; all of them unless `done`.
    pub(super) used: usize,
    pub(super) done: bool,
}

impl Body {
    /// Consumes the next bytes of the body; an empty slice tells whether the body is complete already.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Taken, Malformed> {
        match self {
            Self::Length(left) => {
                let used = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= used as u64;
                Ok(Taken { used, done: *left == 0 })
            }
            Self::Chunked(chunked) => chunked.take(bytes),
            Self::Close => Ok(Taken { used: bytes.len(), done: false }),
        }
    }
}

/// The chunked coding of RFC 9112, section 7.1, one byte at a time except within data.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chunked {
    state: State,
    skipped_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Within a chunk's size; `digits` of it are read.
    Size {
        size: u64,
        digits: u32,
    },
    /// After the size, up to the end of the line.
    Extension {
        size: u64,
    },
    SizeLf {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// At the start of a trailer line.
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

impl Default for State {
    fn default() -> Self {
        Self::Size { size: 0, digits: 0 }
    }
}

impl Chunked {
    fn take(&mut self, bytes: &[u8]) -> Result<Taken, Malformed> {
        let mut used = 0;
        while used < bytes.len() && self.state != State::Done {
            if let State::Data { left } = self.state {
                let now = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - used);
                used += now;
                let left = left - now as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
            } else {
                self.state = self.step(bytes[used])?;
                used += 1;
            }
        }
        Ok(Taken { used, done: self.state == State::Done })
    }

    fn step(&mut self, byte: u8) -> Result<State, Malformed> {
        Ok(match (self.state, byte) {
            (State::Size { size, digits }, byte) if byte.is_ascii_hexdigit() => {
                if digits == SIZE_DIGITS_MAX {
                    return Err("a chunk size of more than 15 digits");
                }
                State::Size { size: size << 4 | u64::from(hex(byte)), digits: digits + 1 }
            }
            (State::Size { digits: 0, .. }, _) => return Err("a chunk without a size"),
            (State::Size { size, .. } | State::Extension { size }, b'\r') => State::SizeLf { size },
            (State::Size { size, .. }, b';' | b' ' | b'\t') => State::Extension { size },
            (State::Extension { size }, byte) if byte != b'\n' => self.skip(State::Extension { size })?,
            (State::SizeLf { size: 0 }, b'\n') => State::TrailerStart,
            (State::SizeLf { size }, b'\n') => State::Data { left: size },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::default(),
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerStart | State::Trailer, byte) if byte != b'\n' && byte != b'\r' => {
                self.skip(State::Trailer)?
            }
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::Done,
            _ => return Err("chunked coding is broken"),
        })
    }

    fn skip(&mut self, next: State) -> Result<State, Malformed> {
        self.skipped_bytes += 1;
        if self.skipped_bytes > SKIPPED_BYTES_MAX {
            return Err("more than 16 KiB of chunk extensions and trailer fields");
        }
        Ok(next)
    }
}

/// The value of a hexadecimal digit.
fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds an answer in two parts, split at `at`; gives the status and how many bytes belonged to the answer.
    fn feed(bytes: &[u8], at: usize, is_head: bool) -> Result<Option<(u16, usize)>, Malformed> {
        let first = Head::parse(&bytes[..at], is_head, "x-instance-id")?;
        let (mut head, mut end) = match first {
            Some(head) => (head, at),
            None => match Head::parse(bytes, is_head, "x-instance-id")? {
                Some(head) => (head, bytes.len()),
                None => return Ok(None),
            },
        };
        let mut from = head.bytes;
        loop {
            let taken = head.body.take(&bytes[from..end])?;
            from += taken.used;
            if taken.done {
                return Ok(Some((head.status, from)));
            }
            if end == bytes.len() {
                return Ok(None);
            }
            end = bytes.len();
        }
    }

    #[track_caller]
    fn check(answer: &str, status: u16) {
        let extra = [answer.as_bytes(), b"HTTP/1.1 500 next"].concat();
        for at in 0..=extra.len() {
            assert_eq!(feed(&extra, at, false), Ok(Some((status, answer.len()))), "split at {at}");
        }
        for end in 0..answer.len() {
            assert_eq!(feed(&answer.as_bytes()[..end], end / 2, false), Ok(None), "cut at {end}");
        }
    }

    #[track_caller]
    fn check_bad(answer: &str) {
        for at in 0..=answer.len() {
            assert!(feed(answer.as_bytes(), at, false).is_err(), "{answer:?} split at {at}");
        }
    }

    #[test]
    fn ends_where_the_length_says() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200);
        check("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", 404);
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", 200);
        check("HTTP/1.1 204 No Content\r\n\r\n", 204);
        check("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304);
    }

    #[test]
    fn ends_after_the_last_chunk() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        check(&format!("{head}0\r\n\r\n"), 200);
        check(&format!("{head}5\r\nhello\r\nA ;x=\"y\"\r\n0123456789\r\n0\r\n\r\n"), 200);
        check(&format!("{head}3;ext\r\n\r\n\n\r\n00\r\nA: b\r\nC: d\r\n\r\n"), 200);
    }

    #[test]
    fn refuses_what_is_ambiguous_or_broken() {
        check_bad("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab");
        check_bad("HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na");
        check_bad("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\na");
        check_bad("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
        check_bad("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n");
        check_bad("HTTP/1.1 101 Switching Protocols\r\n\r\n");
        check_bad("SSH-2.0-OpenSSH_9.2\r\n");
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for body in [
            "\r\n",
            "x\r\n",
            "5\nhello",
            "1\r\nab\r\n",
            "1\r\na\n",
            "1000000000000000\r\n",
            "-1\r\n",
            "0\r\n\n",
        ] {
            check_bad(&format!("{head}{body}"));
        }
        check_bad(&format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(FIELDS_MAX + 1)));
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let long = "x".repeat(SKIPPED_BYTES_MAX + 1);
        for body in [format!("1;{long}\r\n"), format!("0\r\nA: {long}\r\n\r\n")] {
            let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
            assert!(feed(answer.as_bytes(), 0, false).is_err());
        }
    }

    #[test]
    fn an_answer_to_head_has_no_body() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(feed(answer, 3, true), Ok(Some((200, answer.len()))));
    }

    #[test]
    fn a_body_without_length_ends_with_the_connection() {
        let head = Head::parse(b"HTTP/1.1 200 OK\r\n\r\nabc", false, "").unwrap().unwrap();
        assert_eq!((head.body, head.keep_alive), (Body::Close, false));
    }

    #[test]
    fn tells_whether_the_connection_stays() {
        let keep = |head: &str| {
            let bytes = format!("{head}Content-Length: 0\r\n\r\n");
            Head::parse(bytes.as_bytes(), false, "").unwrap().unwrap().keep_alive
        };
        assert!(keep("HTTP/1.1 200 OK\r\n"));
        assert!(!keep("HTTP/1.1 200 OK\r\nConnection: x, Close\r\n"));
        assert!(!keep("HTTP/1.0 200 OK\r\n"));
        assert!(keep("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n"));
    }

    #[test]
    fn names_the_backend() {
        let bytes = b"HTTP/1.1 200 OK\r\nX-Instance-Id: i-1\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(Head::parse(bytes, false, "x-instance-id").unwrap().unwrap().backend, Some(&b"i-1"[..]));
        assert_eq!(Head::parse(bytes, false, "x-other").unwrap().unwrap().backend, None);
    }

    #[test]
    fn interim_answers_are_recognised() {
        let head = Head::parse(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200", false, "").unwrap().unwrap();
        assert!(head.is_interim());
        assert_eq!(head.bytes, 25);
    }
}
