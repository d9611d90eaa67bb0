//! Fields of requests that a proxy could read in a wrong way, and those that are none of its business.

mod common;

use common::{Balancer, Stub, ok};
use serde_json::json;

/// Of a partial or conditional request; none of them is a proxy's to read.
const UNTOUCHED: [(&str, &str); 8] = [
    ("Range", "bytes=0-3,7-"),
    ("If-Range", "\"v1\""),
    ("If-Match", "*"),
    ("If-None-Match", "W/\"a\", \"b\""),
    ("If-Modified-Since", "Sat, 29 Oct 1994 19:43:31 GMT"),
    ("If-Unmodified-Since", "Sat, 29 Oct 1994 19:43:31 GMT"),
    ("Accept-Encoding", "gzip;q=0.5, identity"),
    ("Cache-Control", "no-transform, max-age=0"),
];

on_both_drivers! {
    fn expectations_are_read_without_regard_to_case(driver) {
        let stub = Stub::echo();
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        for expect in ["100-continue", "100-Continue", "100-CONTINUE", "100-continue, 100-continue", ", 100-continue"] {
            let mut client = balancer.client();
            client.send(format!("POST /app HTTP/1.1\r\nHost: a\r\neXPECT: {expect}\r\nContent-Length: 2\r\n\r\n"));
            assert_eq!(client.response().status, 100, "{expect}");
            client.send("hi");
            assert_eq!(client.response().text(), "hi", "{expect}");
        }
        assert!(stub.requests().iter().all(|request| request.field("expect").is_none()));
    }

    fn other_expectations_are_417(driver) {
        let stub = Stub::echo();
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        for expect in ["200-ok", "100-continue, coffee", "100 continue", "100-continue;q=1", "\"100-continue\""] {
            let mut client = balancer.client();
            client.send(format!("POST /app HTTP/1.1\r\nHost: a\r\nExpect: {expect}\r\nContent-Length: 2\r\n\r\nhi"));
            let response = client.response();
            assert_eq!((response.status, response.field("connection")), (417, Some("close")), "{expect}");
            assert!(client.is_closed(), "the body was not read");
        }
        assert!(stub.requests().is_empty());
    }

    fn expectation_without_effect_is_ignored(driver) {
        let stub = Stub::echo();
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        for request in [
            // Nothing to wait with.
            "GET /app HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
            // The body is here already.
            "POST /app HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
            "GET /app HTTP/1.1\r\nHost: a\r\nExpect:\r\n\r\n",
            "POST /app HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
            "GET /app HTTP/1.0\r\nHost: a\r\nExpect: coffee\r\n\r\n",
        ] {
            let mut client = balancer.client();
            client.send(request);
            assert_eq!(client.response().status, 200, "{request}");
        }
    }

    fn connection_cannot_name_what_framing_and_routing_rest_on(driver) {
        let stub = Stub::echo();
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        let named = "Connection: Content-Length, Transfer-Encoding, Host, X-Forwarded-For, X-Forwarded-Proto, Via, X-Mine";
        client.send(format!(
            "POST /app HTTP/1.1\r\nHost: a.example\r\n{named}\r\nContent-Length: 5\r\nX-Forwarded-For: 10.0.0.9\r\n\
             X-Forwarded-Proto: https\r\nVia: 1.1 first\r\nX-Mine: 1\r\n\r\nhello"
        ));
        assert_eq!(client.response().text(), "hello");
        client.send(format!(
            "POST /app HTTP/1.1\r\nHost: a.example\r\n{named}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        ));
        assert_eq!(client.response().text(), "hello");
        let requests = stub.requests();
        assert_eq!(requests[0].field("content-length"), Some("5"));
        assert_eq!(requests[0].field("host"), Some("a.example"));
        assert_eq!(requests[0].field("x-forwarded-for"), Some("10.0.0.9, 127.0.0.1"));
        assert_eq!(requests[0].field("x-forwarded-proto"), Some("https"));
        assert_eq!(requests[0].field("via"), Some("1.1 first, 1.1 balancer"));
        assert_eq!((requests[0].field("x-mine"), requests[0].field("connection")), (None, None));
        assert_eq!(requests[1].field("transfer-encoding"), Some("chunked"));
        assert_eq!(requests[1].field("host"), Some("a.example"));
    }

    fn chunked_requests_say_so_in_one_spelling(driver) {
        let stub = Stub::echo();
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        for field in common::CHUNKED_FIELDS {
            client.send(format!("POST /app HTTP/1.1\r\nHost: a\r\n{field}\r\nX-A: b\r\n\r\n5\r\nhello\r\n0\r\n\r\n"));
            assert_eq!(client.response().text(), "hello", "{field:?}");
            let head = stub.requests().pop().expect("it came").head;
            let lines: Vec<&str> =
                head.split("\r\n").filter(|line| line.to_ascii_lowercase().contains("encoding")).collect();
            assert_eq!(lines, ["Transfer-Encoding: chunked"], "{field:?}");
        }
    }

    fn connection_in_an_answer_cannot_name_its_framing(driver) {
        let stub = Stub::start(|request, connection| connection.send(match request.path() {
            "/app/length" => b"HTTP/1.1 200 OK\r\nConnection: Content-Length, X-Mine\r\nX-Mine: 1\r\nContent-Length: 2\r\n\r\nok",
            "/app/chunked" => {
                b"HTTP/1.1 200 OK\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
            }
            _ => unreachable!("no other is sent"),
        }));
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        for path in ["/app/length", "/app/chunked", "/app/length"] {
            let response = client.get(path);
            assert_eq!((response.text().as_str(), response.complete), ("ok", true), "{path}");
            assert_eq!((response.field("x-mine"), response.field("connection")), (None, None));
        }
    }

    fn options_may_be_passed_on_as_often_as_it_says(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        let mut ask = |method: &str, count: &str| {
            client.send(format!("{method} /app HTTP/1.1\r\nHost: a\r\nMax-Forwards: {count}\r\n\r\n"));
            client.response()
        };
        for (method, count, left) in
            [("OPTIONS", "3", "2"), ("OPTIONS", "1", "0"), ("OPTIONS", "few", "few"), ("GET", "0", "0")]
        {
            assert_eq!(ask(method, count).text(), "a");
            let request = stub.requests().pop().expect("it came");
            let values: Vec<_> = request.fields.iter().filter(|(name, _)| name == "Max-Forwards").collect();
            assert_eq!(values, [&("Max-Forwards".to_owned(), left.to_owned())], "{method} {count}");
        }
        assert_eq!(ask("GET", "3\r\nConnection: max-forwards").text(), "a");
        let request = stub.requests().pop().expect("it came");
        assert!(request.fields.iter().all(|(name, _)| name != "Max-Forwards"), "it was of one connection");
        let before = stub.requests().len();
        assert_eq!(ask("OPTIONS", "0\r\nMax-Forwards: 9").status, 200);
        let last = ask("OPTIONS", "0");
        assert_eq!((last.status, last.field("allow").is_some()), (200, true));
        assert_eq!(stub.requests().len(), before, "the balancer answers as the last recipient");
    }

    fn partial_and_conditional_requests_go_through_as_they_are(driver) {
        let stub = Stub::start(|request, connection| connection.send(match request.path() {
            "/app/part" => {
                b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-3/9\r\nContent-Length: 4\r\nETag: \"v1\"\r\n\r\npart".as_slice()
            }
            "/app/beyond" => b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */9\r\nContent-Length: 0\r\n\r\n",
            "/app/changed" => b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n",
            _ => b"HTTP/1.1 304 Not Modified\r\nETag: \"v1\"\r\nContent-Length: 9\r\n\r\n",
        }));
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        let lines: String = UNTOUCHED.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        for (path, status, range, body) in [
            ("/app/part", 206, Some("bytes 0-3/9"), "part"),
            ("/app/beyond", 416, Some("bytes */9"), ""),
            ("/app/changed", 412, None, ""),
            ("/app/same", 304, None, ""),
        ] {
            client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
            let response = client.response();
            assert_eq!((response.status, response.field("content-range")), (status, range));
            assert_eq!(response.text(), body);
        }
        for request in stub.requests() {
            for (name, value) in UNTOUCHED {
                assert_eq!(request.field(name), Some(value), "{}", request.line);
            }
        }
    }

    fn upload_with_a_content_range_goes_through_as_it_is(driver) {
        let stub = Stub::start(|_, connection| connection.send(&ok("taken")));
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        client.send("PUT /app HTTP/1.1\r\nHost: a\r\nContent-Range: bytes 2-3/9\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(client.response().text(), "taken");
        let request = stub.requests().remove(0);
        assert_eq!((request.field("content-range"), request.body.as_slice()), (Some("bytes 2-3/9"), b"hi".as_slice()));
    }
}
