//! What can be read in two ways is refused with 400 and a closed connection, and never reaches a backend.

mod common;

use balancer::http::{self, Body, HeadLimits, Refusal};
use common::{Balancer, Stub};
use serde_json::json;

const LIMITS: HeadLimits = HeadLimits { head_bytes: 4096, target_bytes: 2048, fields: 32 };

/// Requests that somebody could read in another way than we do.
const AMBIGUOUS: &[&[u8]] = &[
    // Two lengths.
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n12345",
    // Malformed lengths.
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n12345",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n12345",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\n12345",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n12345",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\n12345",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: abc\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\n12345",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n",
    // Disguised transfer codings.
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \xa0chunked\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked,\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked chunked\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\x0c\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chun\xc2\xadked\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer\x00Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nX: Transfer-Encoding: y\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    // More malformed lengths.
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 5,\r\n\r\n12345",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 5\r\n\r\n12345",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 5\x0b\r\n\r\n12345",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 5.0\r\n\r\n12345",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 5e0\r\n\r\n12345",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: \"5\"\r\n\r\n12345",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: \xd9\xa5\r\n\r\n12345",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\n12345",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\ncontent-length: 0\r\n\r\n12345",
    b"POST /app HTTP/1.0\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\n12345",
    // Names that CGI's rules turn into one of ours.
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent_Length: 5\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\n\r\n",
    b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTRANSFER_ENCODING: chunked\r\n\r\n12345",
    b"GET /app HTTP/1.1\r\nHost: a\r\nX_Forwarded-For: 127.0.0.1\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a\r\nx-forwarded_proto: https\r\n\r\n",
    // Field syntax.
    b"GET /app HTTP/1.1\r\nHost : a\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"GET /app HTTP/1.1\r\n Host: a\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a\r\nA: b\r\n\tc\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a\r\nNo colon\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a\r\n: nameless\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a\r\nA: b\x00c\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a\r\nA: b\x01c\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a\r\nA: b\x7fc\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a\r\nA\xe9: b\r\n\r\n",
    // Line ends.
    b"GET /app HTTP/1.1\nHost: a\n\n",
    b"GET /app HTTP/1.1\r\nHost: a\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a\r\nA: b\rc\r\n\r\n",
    b"GET /app HTTP/1.1\rHost: a\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a\r\nA: b\r\r\n\r\n",
    b"\n\nGET /app HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\n\r\nGET /app HTTP/1.1\r\nHost: a\r\n\r\n",
    // Start line.
    b"GET  /app HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /app  HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET\t/app HTTP/1.1\r\nHost: a\r\n\r\n",
    b" GET /app HTTP/1.1\r\nHost: a\r\n\r\n",
    b"G(ET /app HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /app\r\n\r\n",
    b"GET /app http/1.1\r\nHost: a\r\n\r\n",
    b"GET /app HTTP/1.1 \r\nHost: a\r\n\r\n",
    b"GET /a\x00pp HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /app\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /app#fragment HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET app HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET ftp://a/app HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://user@a/app HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http:///app HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a:b/app HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a:80:90/app HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://:80/app HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http:/app HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /app?<x> HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /app?\"x\" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /app\x7f HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /app HTTP/1.1x\r\nHost: a\r\n\r\n",
    b"GET /app HTTP/1.10\r\nHost: a\r\n\r\n",
    b"GET /app HTTP/01.1\r\nHost: a\r\n\r\n",
    b"GET /app HTTP/1,1\r\nHost: a\r\n\r\n",
    b"GET /app HTTP/+1.1\r\nHost: a\r\n\r\n",
    b"GET /app HTTP/1.1\x00\r\nHost: a\r\n\r\n",
    b"GET /app HTTP/1.1\r\r\nHost: a\r\n\r\n",
    b"GET /app HTTP/1.1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\n\r\n",
    b"\xef\xbb\xbfGET /app HTTP/1.1\r\nHost: a\r\n\r\n",
    // Host.
    b"GET /app HTTP/1.1\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a b\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a/b\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a\r\nHost:\r\n\r\n",
    b"GET http://a/app HTTP/1.1\r\n\r\n",
    b"GET http://a/app HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a:80:90\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a:x\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: :80\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: [::1\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: [::1]x\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a%2fb\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: user@a\r\n\r\n",
    b"GET /app HTTP/1.1\r\nHost: a?b\r\n\r\n",
];

fn parse(bytes: &[u8], searched: usize) -> Result<Option<(Body, usize)>, Refusal> {
    let mut space = http::space();
    let request = http::parse_request(bytes, searched, &LIMITS, &mut space)?;
    Ok(request.map(|request| (request.body, request.head_bytes)))
}

/// Parses as if `bytes` came in two pieces, and lets the framing take the body.
fn parse_in_pieces(bytes: &[u8], cut: usize) -> Result<Option<(Body, usize)>, Refusal> {
    match parse(&bytes[..cut], 0)? {
        Some(whole) => Ok(Some(whole)),
        None => parse(bytes, cut),
    }
}

#[test]
fn ambiguous_heads_are_refused_wherever_they_are_cut() {
    for bytes in AMBIGUOUS {
        let shown = String::from_utf8_lossy(bytes);
        // The connection layer takes one empty line before a request away; the parser takes none.
        for cut in 0..=bytes.len() {
            let parsed = parse_in_pieces(bytes, cut);
            assert!(matches!(parsed, Err(Refusal::Malformed(_))), "cut at {cut}: {shown:?} gave {parsed:?}");
        }
    }
}

#[test]
fn legal_heads_are_read_alike_wherever_they_are_cut() {
    let legal: [(&[u8], Body); 13] = [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Body::Empty),
        (b"GET / HTTP/1.0\r\n\r\n", Body::Empty),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", Body::Empty),
        (b"POST /a?b=%20 HTTP/1.1\r\nhost: a:1\r\ncontent-length:   42  \r\n\r\n", Body::Length(42)),
        (
            b"POST / HTTP/1.1\r\nHost: [::1]:8\r\nTransfer-Encoding: Chunked\r\n\r\n",
            Body::Chunked(<_>::default()),
        ),
        (b"GET / HTTP/1.1\r\nHost: a\r\nEmpty:\r\nTab:\ta\tb\xff\r\n\r\n", Body::Empty),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", Body::Empty),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 00042\r\n\r\n", Body::Length(42)),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\tchunked \t\r\n\r\n",
            Body::Chunked(<_>::default()),
        ),
        (b"GET HTTPS://a:?b HTTP/1.1\r\nHost: b\r\n\r\n", Body::Empty),
        (b"GET //app/../x;y='{|}^`\\ HTTP/1.1\r\nHost: a-b_c.example:65535\r\n\r\n", Body::Empty),
        (b"BREW!#$%&'*+-.^_`|~ / HTTP/1.1\r\nHost: 192.0.2.1\r\nA_b: c\r\n\r\n", Body::Empty),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\n",
            Body::Length(u64::MAX),
        ),
    ];
    for (bytes, body) in legal {
        for cut in 0..=bytes.len() {
            let expected = Ok(Some((body.clone(), bytes.len())));
            assert_eq!(
                parse_in_pieces(bytes, cut),
                expected,
                "cut at {cut}: {:?}",
                String::from_utf8_lossy(bytes)
            );
        }
    }
}

#[test]
fn every_incomplete_head_is_incomplete() {
    let bytes = b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n";
    for length in 0..bytes.len() {
        assert_eq!(parse(&bytes[..length], 0), Ok(None), "{length}");
    }
}

#[test]
fn limits_have_statuses_of_their_own() {
    let long = "x".repeat(5000);
    let status = |head: String| parse(head.as_bytes(), 0).expect_err("over a limit").status();
    assert_eq!(status(format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n")), 414);
    assert_eq!(status(format!("GET /{}", &long)), 414);
    assert_eq!(status(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", &long[..2100])), 414);
    assert_eq!(status(format!("GET / HTTP/1.1\r\nHost: a\r\nA: {long}\r\n\r\n")), 431);
    assert_eq!(status(format!("GET / HTTP/1.1\r\nHost: a\r\nA: {long}")), 431);
    assert_eq!(status(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(40))), 431);
    assert_eq!(status("GET / HTTP/2.0\r\nHost: a\r\n\r\n".to_owned()), 505);
    for version in ["HTTP/0.9", "HTTP/1.2", "HTTP/1.9", "HTTP/2.0", "HTTP/3.0"] {
        assert_eq!(status(format!("GET / {version}\r\nHost: a\r\n\r\n")), 505);
    }
    assert_eq!(status("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()), 505);
    assert_eq!(status("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()), 405);
    assert_eq!(status("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()), 405);
}

#[test]
fn options_of_the_connection_are_bounded() {
    let head = |start: &str, options: usize| {
        // In two fields, so that neither alone is over the bound.
        let (one, two) = (",".repeat(options / 2 - 1), ",".repeat(options - options / 2 - 1));
        format!("{start}\r\nHost: a\r\nConnection: x{one}\r\nConnection: y{two}\r\n\r\n")
    };
    assert!(parse(head("GET / HTTP/1.1", 64).as_bytes(), 0).is_ok());
    let refused = parse(head("GET / HTTP/1.1", 65).as_bytes(), 0);
    assert_eq!(refused.expect_err("one too many").status(), 400);
    let long =
        |bytes: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: {}\r\n\r\n", "x".repeat(bytes));
    assert!(parse(long(1024).as_bytes(), 0).is_ok() && parse(long(1025).as_bytes(), 0).is_err());
    let mut space = http::space();
    assert!(
        http::parse_response(head("HTTP/1.1 200 OK", 65).as_bytes(), 0, false, &LIMITS, &mut space).is_err()
    );
}

#[test]
fn framing_of_answers_is_judged_as_strictly() {
    let judge = |bytes: &[u8], to_head| {
        let mut space = http::space();
        http::parse_response(bytes, 0, to_head, &LIMITS, &mut space)
            .map(|parsed| parsed.map(|r| (r.body, r.persists)))
    };
    let refused: [&[u8]; 12] = [
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
    ];
    for bytes in refused {
        assert!(judge(bytes, false).is_err(), "{:?}", String::from_utf8_lossy(bytes));
    }
    let taken: [(&[u8], bool, Body, bool); 9] = [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", false, Body::Length(7), true),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", true, Body::Empty, true),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", false, Body::Empty, true),
        (b"HTTP/1.1 200\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", false, Body::Empty, false),
        (b"HTTP/1.1 200 OK\r\n\r\n", false, Body::UntilClose, false),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", false, Body::Length(1), false),
        (b"HTTP/1.1 204 No Content\r\n\r\n", false, Body::Empty, true),
        // What only a request could be misread by.
        (
            b"HTTP/1.1 200 OK\r\nHost: a\r\nHost: b c\r\nContent-Length: 7\r\n\r\n",
            false,
            Body::Length(7),
            true,
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent_Length: 9\r\nTransfer_Encoding: x\r\nContent-Length: 7\r\n\r\n",
            false,
            Body::Length(7),
            true,
        ),
    ];
    for (bytes, to_head, body, persists) in taken {
        assert_eq!(judge(bytes, to_head), Ok(Some((body, persists))), "{:?}", String::from_utf8_lossy(bytes));
    }
}

on_both_drivers! {
    fn refusal_of_head_has_no_content(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        for bytes in ["HEAD /app HTTP/1.1\r\n\r\n", "HEAD /app HTTP/1.1\r\nHost: a\r\nExpect: coffee\r\n\r\n"] {
            let mut client = balancer.client();
            client.send(bytes);
            let response = client.response_to_head();
            assert!(matches!(response.status, 400 | 417), "{}", response.head);
            assert!(client.is_closed(), "nothing follows the head");
        }
    }

    fn empty_line_before_a_request_may_come_in_pieces(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], json!({ "threads": 1 }));
        let mut client = balancer.client();
        assert_eq!(client.get("/app").text(), "a");
        client.send("\r");
        // The one thread has received it by the time it has answered others.
        for _ in 0..2 {
            assert_eq!(balancer.get("/app").text(), "a");
        }
        client.send("\nGET /app HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().text(), "a");
    }

    fn ambiguous_requests_never_reach_a_backend(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        for bytes in AMBIGUOUS {
            let shown = String::from_utf8_lossy(bytes);
            // One empty line before a request is tolerated on a connection (RFC 9112, 2.2).
            let mut client = balancer.client();
            client.send(bytes);
            client.send("GET /app/smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
            let response = client.response();
            assert_eq!(response.status, 400, "{shown:?}");
            assert_eq!(response.field("connection"), Some("close"), "{shown:?}");
            assert!(client.is_closed(), "{shown:?}");
        }
        assert!(stub.requests().is_empty(), "{:?}", stub.requests());
    }

    fn bad_chunks_of_a_request_are_refused(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        for chunks in ["zz\r\n", "5\r\nhelloX\r\n", "5\nhello\r\n0\r\n\r\n", "0\r\nContent-Length: 3\r\n\r\n", "-1\r\n\r\n"] {
            let mut client = balancer.client();
            client.send(format!("POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"));
            assert_eq!(client.response().status, 400, "{chunks:?}");
            assert!(client.is_closed());
        }
        assert!(stub.requests().is_empty());
    }

    fn one_empty_line_before_a_request_is_tolerated(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        for _ in 0..2 {
            client.send("\r\nGET /app HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.response().status, 200);
        }
    }

    fn methods_that_make_a_proxy_of_the_balancer_are_405(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        for request in ["CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", "TRACE /app HTTP/1.1\r\nHost: a\r\n\r\n"] {
            let mut client = balancer.client();
            client.send(request);
            assert_eq!(client.response().status, 405);
        }
        let mut client = balancer.client();
        client.send("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status, 200);
        client.send("POST /status HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client.response().status, 405);
        assert!(stub.requests().is_empty());
    }
}
