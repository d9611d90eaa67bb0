//! What must hold of the balancer's HTTP code for any bytes at all.
//!
//! Each function takes bytes and panics when something does not hold. cargo-fuzz calls them through `fuzz_targets`,
//! `cargo test` through `tests/corpus.rs` on the committed corpus and on mutations of it.
//!
//! Nothing here opens a socket: what the balancer does with a message beyond parsing and writing it is tested
//! elsewhere.

mod message;
mod peer;

use balancer::http::{self, Body, Chunked, HeadLimits, Refusal};

pub use message::{Message, our_request, our_response};

/// Small enough that a fuzzer reaches the limits.
pub const LIMITS: HeadLimits = HeadLimits { head_bytes: 2048, target_bytes: 512, fields: 20 };
/// For comparisons with hyper, whose own limits are above these.
pub const WIDE: HeadLimits = HeadLimits { head_bytes: 64 << 10, target_bytes: 32 << 10, fields: 100 };
/// For what was forwarded, which has a few fields more.
const WIDER: HeadLimits =
    HeadLimits { head_bytes: 128 << 10, target_bytes: 32 << 10, fields: http::FIELDS_MAX };

/// A request head reads alike in whatever pieces it comes.
pub fn request_head(input: &[u8]) {
    in_pieces(input, &|bytes, searched| {
        let mut space = http::space();
        let request = http::parse_request(bytes, searched, &LIMITS, &mut space)?;
        Ok(request.map(|request| {
            assert!(request.head_bytes <= LIMITS.head_bytes && request.fields().count() <= LIMITS.fields);
            assert!(bytes[..request.head_bytes].ends_with(b"\r\n\r\n"));
            format!("{request:?}")
        }))
    });
}

/// An answer's head reads alike in whatever pieces it comes. Junk may be refused before it is whole.
pub fn response_head(input: &[u8]) {
    for to_head in [false, true] {
        in_pieces(input, &|bytes, searched| {
            let mut space = http::space();
            let response = http::parse_response(bytes, searched, to_head, &LIMITS, &mut space)?;
            Ok(response.map(|response| {
                assert!(response.head_bytes <= LIMITS.head_bytes);
                assert!(bytes[..response.head_bytes].ends_with(b"\r\n\r\n"));
                format!("{response:?}")
            }))
        });
    }
}

type Read = Result<Option<String>, Refusal>;

/// Feeds `input` to `read` whole, and in pieces whose lengths follow from the input itself, as a connection does: a
/// call sees everything so far, and is told how much an earlier one has seen.
fn in_pieces(input: &[u8], read: &dyn Fn(&[u8], usize) -> Read) {
    let whole = read(input, 0);
    for seed in [1, 7, 61] {
        let mut seen = 0;
        let mut pieces = Pieces::new(input, seed);
        let last = loop {
            let Some(end) = pieces.next() else { break read(input, seen) };
            match read(&input[..end], seen) {
                Ok(None) => seen = end,
                settled => break settled,
            }
        };
        match (&whole, &last) {
            // Which rule is broken first depends on how much is there; that one is broken does not.
            (Err(_), Err(_)) => {}
            // What can be refused at once may as well wait for the end of the head.
            (Err(_), Ok(None)) | (Ok(None), Err(_)) if !ends(input) => {}
            _ => assert_eq!(whole, last, "in pieces: {:?}", text(input)),
        }
    }
}

/// Whether there is the end of a head.
fn ends(input: &[u8]) -> bool {
    input.windows(4).any(|four| four == b"\r\n\r\n")
}

/// Ends of pieces of `input`: short and long ones, and never the end itself.
struct Pieces {
    at: usize,
    end: usize,
    state: u64,
}

impl Pieces {
    fn new(input: &[u8], seed: u64) -> Self {
        let state =
            input.iter().fold(seed, |state, byte| state.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        Self { at: 0, end: input.len(), state: state | 1 }
    }

    fn next(&mut self) -> Option<usize> {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let most = [1, 3, 17, 200][(self.state >> 20) as usize % 4];
        self.at += 1 + (self.state >> 32) as usize % most;
        (self.at < self.end).then_some(self.at)
    }
}

/// A chunked body reads alike in whatever pieces it comes, takes no byte behind its end, and reads like hyper's.
pub fn chunked(input: &[u8]) {
    let whole = decode(input, None);
    for seed in [1, 7, 61] {
        let split = decode(input, Some(Pieces::new(input, seed)));
        assert_eq!(whole, split, "in pieces: {:?}", text(input));
    }
    if let Ok((_, taken, true)) = whole {
        assert_eq!(
            decode(&input[..taken], None),
            whole,
            "the end depends on what follows: {:?}",
            text(input)
        );
        let mut message = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        message.extend_from_slice(&input[..taken]);
        requests(&message);
    }
}

/// The content, how many bytes were taken, and whether the body is done.
fn decode(input: &[u8], pieces: Option<Pieces>) -> Result<(Vec<u8>, usize, bool), Refusal> {
    let mut body = Body::Chunked(Chunked::default());
    let (mut content, mut at) = (Vec::new(), 0);
    let mut pieces = pieces;
    while !body.is_done() && at < input.len() {
        let end = pieces.as_mut().and_then(Pieces::next).unwrap_or(input.len());
        let mut silent = body.clone();
        let taken = body.advance_into(&input[at..end], &mut content)?;
        assert_eq!(silent.advance(&input[at..end]), Ok(taken));
        assert_eq!(silent, body);
        at += taken;
        assert!(at == end || body.is_done());
    }
    Ok((content, at, body.is_done()))
}

/// What we take for requests, hyper takes for the same requests; and so does it with what we forward.
pub fn requests(input: &[u8]) {
    let mut rest = input;
    while let Some(found) = our_request(rest, &WIDE) {
        let bytes = &rest[..found.end];
        check_peer(&found.message, &peer::requests(bytes), bytes);
        for (forwarded, expected) in message::forwarded_requests(bytes, &found) {
            check_peer(&expected, &peer::requests(&forwarded), &forwarded);
            let again = our_request(&forwarded, &WIDER).expect("we take what we forward");
            assert_eq!((&again.message, again.end), (&expected, forwarded.len()), "{:?}", text(&forwarded));
        }
        rest = &rest[found.end..];
    }
}

/// What we take for an answer, hyper takes for the same answer; and so does it with what a client gets. The first
/// byte says whether the request was HEAD.
pub fn responses(input: &[u8]) {
    let Some((&kind, bytes)) = input.split_first() else { return };
    let to_head = kind == b'H';
    let Some(found) = our_response(bytes, to_head, &WIDE) else { return };
    let bytes = &bytes[..found.end];
    check_peer(&found.message, &peer::response(bytes, to_head), bytes);
    for (forwarded, expected) in message::forwarded_responses(bytes, &found, to_head) {
        check_peer(&expected, &peer::response(&forwarded, to_head), &forwarded);
        let again = our_response(&forwarded, to_head, &WIDER).expect("we take what we forward");
        assert_eq!((&again.message, again.end), (&expected, forwarded.len()), "{:?}", text(&forwarded));
    }
}

fn check_peer(ours: &Message, theirs: &peer::Outcome, bytes: &[u8]) {
    // hyper's type for targets refuses a backtick in a path, which browsers never send there; they do in a query.
    if ours.start.contains(&b'`') {
        return;
    }
    let same = theirs.end.is_ok() && theirs.messages.as_slice() == std::slice::from_ref(ours);
    assert!(same, "we read {ours:?},\nhyper reads {theirs:?}\nin {:?}", text(bytes));
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
