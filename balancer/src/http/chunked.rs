//! The chunked transfer coding, byte by byte for its framing and run by run for its data.

use super::Refusal;

/// Longest chunk extension. Nobody we know sends any; the bound keeps them from being a way to send for ever.
const EXTENSION_BYTES_MAX: u32 = 256;
/// All trailer fields together, like a small head.
const TRAILER_BYTES_MAX: u32 = 8192;
/// Trailer fields of one body: what recipients take as well (hyper: 100).
const TRAILERS_MAX: u32 = 64;
/// Hexadecimal digits of a chunk size: 2^60 bytes, which no client sends.
const SIZE_DIGITS_MAX: u32 = 15;
/// Names that no trailer may have, because a recipient that merges trailers into the head would frame the message in
/// another way (RFC 9110, 6.5.1), or because they are of one connection.
const NOT_IN_TRAILERS: [&[u8]; 6] =
    [b"content-length", b"transfer-encoding", b"connection", b"trailer", b"te", b"upgrade"];
/// Nor those of a request, whose recipient would read another request, or believe a client where it means to believe
/// this proxy.
const NOT_IN_TRAILERS_OF_REQUESTS: [&[u8]; 10] = [
    b"host",
    b"content-encoding",
    b"content-type",
    b"content-range",
    b"authorization",
    b"cookie",
    b"expect",
    b"via",
    b"x-forwarded-for",
    b"x-forwarded-proto",
];
/// Longest of these; longer names need not be remembered.
const NAME_BYTES: usize = 17;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Size,
    Extension,
    SizeEnd,
    Data,
    DataCarriageReturn,
    DataLineFeed,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerEnd,
    LastLineFeed,
    Done,
}

/// Position inside a chunked body. Starts before the first chunk size; of a request, unless it is said to be of an
/// answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chunked {
    state: State,
    /// Of the size being read, then of the chunk still to come.
    size: u64,
    digits: u32,
    /// Of the extension or of all trailers, against its bound.
    counted: u32,
    trailers: u32,
    is_answer: bool,
    name: [u8; NAME_BYTES],
    name_bytes: usize,
}

impl Chunked {
    /// Before the first chunk size of an answer.
    #[must_use]
    pub fn of_answer() -> Self {
        Self { is_answer: true, ..Self::default() }
    }

    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes what belongs to the body from the front of `bytes`, gives each run of data to `data`, and returns how
    /// many bytes were taken, framing included.
    pub(crate) fn advance(&mut self, bytes: &[u8], mut data: impl FnMut(&[u8])) -> Result<usize, Refusal> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            if self.state == State::Data {
                let run = (bytes.len() - at).min(usize::try_from(self.size).unwrap_or(usize::MAX));
                data(&bytes[at..at + run]);
                self.size -= run as u64;
                at += run;
                if self.size == 0 {
                    self.state = State::DataCarriageReturn;
                }
            } else {
                self.state = self.step(bytes[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<State, Refusal> {
        match (self.state, byte) {
            (State::Size, b'\r') if self.digits > 0 => Ok(State::SizeEnd),
            (State::Size, b';') if self.digits > 0 => Ok(State::Extension),
            (State::Size, _) => self.size_digit(byte),
            (State::Extension, b'\r') => Ok(State::SizeEnd),
            (State::Extension, b'\t' | b' '..=b'~') => {
                self.count(EXTENSION_BYTES_MAX, "chunk extension")?;
                Ok(State::Extension)
            }
            (State::SizeEnd, b'\n') => Ok(self.size_end()),
            (State::DataCarriageReturn, b'\r') => Ok(State::DataLineFeed),
            (State::DataLineFeed, b'\n') => Ok(State::Size),
            (State::LastLineFeed, b'\n') => Ok(State::Done),
            (State::TrailerStart | State::TrailerName | State::TrailerValue | State::TrailerEnd, _) => {
                self.trailer(byte)
            }
            _ => Err(Refusal::Malformed("chunk")),
        }
    }

    fn size_digit(&mut self, byte: u8) -> Result<State, Refusal> {
        let digit = char::from(byte).to_digit(16).ok_or(Refusal::Malformed("chunk size"))?;
        self.digits += 1;
        if self.digits > SIZE_DIGITS_MAX {
            return Err(Refusal::Malformed("chunk size"));
        }
        self.size = self.size * 16 + u64::from(digit);
        Ok(State::Size)
    }

    fn size_end(&mut self) -> State {
        self.digits = 0;
        self.counted = 0;
        if self.size == 0 { State::TrailerStart } else { State::Data }
    }

    fn trailer(&mut self, byte: u8) -> Result<State, Refusal> {
        self.count(TRAILER_BYTES_MAX, "trailers")?;
        match (self.state, byte) {
            (State::TrailerStart, b'\r') => Ok(State::LastLineFeed),
            (State::TrailerStart, _) if is_token(byte) => {
                self.name_bytes = 0;
                self.remember(byte);
                Ok(State::TrailerName)
            }
            (State::TrailerName, b':') => self.trailer_named(),
            (State::TrailerName, _) if is_token(byte) => {
                self.remember(byte);
                Ok(State::TrailerName)
            }
            (State::TrailerValue, b'\r') => Ok(State::TrailerEnd),
            (State::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => Ok(State::TrailerValue),
            (State::TrailerEnd, b'\n') => Ok(State::TrailerStart),
            _ => Err(Refusal::Malformed("trailer")),
        }
    }

    fn trailer_named(&mut self) -> Result<State, Refusal> {
        self.trailers += 1;
        if self.trailers > TRAILERS_MAX {
            return Err(Refusal::Malformed("trailers"));
        }
        if self.is_forbidden() {
            return Err(Refusal::Malformed("trailer that belongs in the head"));
        }
        Ok(State::TrailerValue)
    }

    fn is_forbidden(&self) -> bool {
        let Some(name) = self.name.get(..self.name_bytes) else { return false };
        NOT_IN_TRAILERS.contains(&name) || (!self.is_answer && NOT_IN_TRAILERS_OF_REQUESTS.contains(&name))
    }

    fn remember(&mut self, byte: u8) {
        if let Some(place) = self.name.get_mut(self.name_bytes) {
            *place = byte.to_ascii_lowercase();
        }
        self.name_bytes += 1;
    }

    fn count(&mut self, most: u32, what: &'static str) -> Result<(), Refusal> {
        self.counted += 1;
        if self.counted > most { Err(Refusal::Malformed(what)) } else { Ok(()) }
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes with the input cut at every place; all cuts must agree.
    fn decode(bytes: &[u8]) -> Result<(Vec<u8>, usize, bool), Refusal> {
        let mut whole = Vec::new();
        let mut chunked = Chunked::default();
        let taken = chunked.advance(bytes, |data| whole.extend_from_slice(data));
        for cut in 0..bytes.len() {
            let mut parts = Vec::new();
            let mut split = Chunked::default();
            let first = split.advance(&bytes[..cut], |data| parts.extend_from_slice(data));
            let both = first.and_then(|first| {
                Ok(first
                    + if first < cut {
                        0
                    } else {
                        split.advance(&bytes[cut..], |data| parts.extend_from_slice(data))?
                    })
            });
            assert_eq!(both, taken, "cut at {cut} of {:?}", String::from_utf8_lossy(bytes));
            if taken.is_ok() {
                assert_eq!((&parts, split.is_done()), (&whole, chunked.is_done()));
            }
        }
        taken.map(|taken| (whole, taken, chunked.is_done()))
    }

    #[track_caller]
    fn check_refused(bytes: &[u8]) {
        assert!(decode(bytes).is_err(), "{:?} was taken", String::from_utf8_lossy(bytes));
    }

    #[test]
    fn data_comes_out_without_its_framing() {
        let (data, taken, done) =
            decode(b"4\r\nwiki\r\nA;x=\"y\"\r\n0123456789\r\n0\r\nA-Sum: 1\r\n\r\nnext").expect("legal");
        assert_eq!((data.as_slice(), done), (b"wiki0123456789".as_slice(), true));
        assert_eq!(taken, b"4\r\nwiki\r\nA;x=\"y\"\r\n0123456789\r\n0\r\nA-Sum: 1\r\n\r\n".len());
    }

    #[test]
    fn body_that_stops_early_is_not_done() {
        let (_, _, done) = decode(b"4\r\nwiki\r\n0\r\n").expect("legal so far");
        assert!(!done);
    }

    #[test]
    fn ambiguous_chunks_are_refused() {
        for bytes in [
            b"\r\n".as_slice(),
            b" 4\r\nwiki\r\n",
            b"4 \r\nwiki\r\n",
            b"0x4\r\nwiki\r\n",
            b"+4\r\nwiki\r\n",
            b"-4\r\nwiki\r\n",
            b"4\nwiki\r\n",
            b"4\r\nwikix\r\n",
            b"4\r\nwiki\n",
            b"4\r\nwiki\r\r\n",
            b"4\rx\nwiki\r\n",
            b"4;a\x00\r\nwiki\r\n",
            b"4;a\nb\r\nwiki\r\n",
            b"10000000000000000\r\n",
            b"0000000000000000001\r\n",
            b"g\r\n",
            b";a\r\n",
            b"0\r\nContent-Length: 5\r\n\r\n",
            b"0\r\nTRANSFER-encoding: chunked\r\n\r\n",
            b"0\r\nHost: x\r\n\r\n",
            b"0\r\nName : x\r\n\r\n",
            b"0\r\n folded\r\n\r\n",
            b"0\r\nNo colon\r\n\r\n",
            b"0\r\nA: b\n\r\n",
            b"0\r\nA: \x00\r\n\r\n",
            b"0\r\n\rx",
        ] {
            check_refused(bytes);
        }
    }

    #[test]
    fn trailers_of_answers_may_have_the_names_of_requests_and_not_those_of_framing() {
        let takes = |name: &str| {
            let bytes = format!("0\r\n{name}: 1\r\n\r\n");
            Chunked::of_answer().advance(bytes.as_bytes(), |_| {}).is_ok()
        };
        assert!(["Host", "Via", "Cookie", "X-Forwarded-For", "Content-Type"].into_iter().all(takes));
        assert!(!["Content-Length", "TRANSFER-encoding", "Connection", "Upgrade"].into_iter().any(takes));
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let long = |prefix: &str, count: usize, suffix: &str| {
            let mut chunked = Chunked::default();
            let bytes = format!("{prefix}{}{suffix}", "x".repeat(count));
            chunked.advance(bytes.as_bytes(), |_| {}).is_ok()
        };
        assert!(long("1;", 256, "\r\n"));
        assert!(!long("1;", 257, "\r\n"));
        assert!(long("0\r\nA:", 8000, "\r\n\r\n"));
        assert!(!long("0\r\nA:", 8200, "\r\n\r\n"));
        let many = |count: usize| {
            let bytes = format!("0\r\n{}\r\n", "A: b\r\n".repeat(count));
            Chunked::default().advance(bytes.as_bytes(), |_| {}).is_ok()
        };
        assert!(many(64) && !many(65));
    }
}
