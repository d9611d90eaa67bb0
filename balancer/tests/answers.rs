//! What backends send beside and behind their answers, and what clients get of it.

mod common;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use common::{Balancer, Client, Connection, Request, Stub, eventually, ok};
use serde_json::json;

const POISON: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";

/// Sends something when it is told to, and says when it has.
#[derive(Clone)]
struct Cue {
    go: Sender<()>,
    awaited: Arc<Mutex<Receiver<()>>>,
    done: Sender<()>,
    finished: Arc<Mutex<Receiver<()>>>,
}

impl Cue {
    fn new() -> Self {
        let ((go, awaited), (done, finished)) = (channel(), channel());
        Self { go, awaited: Arc::new(Mutex::new(awaited)), done, finished: Arc::new(Mutex::new(finished)) }
    }

    /// Of the test: has the backend send it.
    fn give(&self) {
        self.go.send(()).expect("the backend waits");
        self.finished.lock().expect("one at a time").recv_timeout(common::DEADLINE).expect("sent");
    }

    fn send(&self, connection: &mut Connection, bytes: &[u8]) {
        self.awaited.lock().expect("one at a time").recv_timeout(common::DEADLINE).expect("told to");
        connection.send(bytes);
        self.done.send(()).expect("the test waits");
    }
}

/// Answers `/app/ID/first` with `answer`, and later with more than anybody asked for; the rest with the path.
fn surplus_behind(answer: &'static [u8], cue: &Cue) -> Stub {
    let cue = cue.clone();
    Stub::start(move |request, connection| {
        if request.path().ends_with("first") {
            connection.send(answer);
            cue.send(connection, POISON);
        } else {
            connection.send(&ok(request.path()));
        }
    })
}

fn answers_2xx(balancer: &Balancer) -> u64 {
    answers(balancer, "2xx")
}

fn answers(balancer: &Balancer, class: &str) -> u64 {
    let metrics = balancer.get("/metrics").text();
    let code = format!("code=\"{class}\"");
    let line = metrics.lines().find(|line| line.contains(&code)).expect("a counter").to_owned();
    line.rsplit(' ').next().and_then(|count| count.parse().ok()).expect("a number")
}

/// Waits until a tick of the balancer has passed: its counters of answers grow with each, and only then.
fn await_tick(balancer: &Balancer) {
    let before = answers_2xx(balancer);
    eventually("a tick passes", || answers_2xx(balancer) > before);
}

fn head(status: &str, fields: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{fields}\r\n")
}

/// A client's view of what comes after `request` from a backend that answers with `bytes`.
fn answered(driver: &str, bytes: &str, request: &str) -> (Balancer, Client, Stub) {
    let bytes = bytes.to_owned();
    let stub = Stub::start(move |request: &Request, connection: &mut Connection| {
        let plain = request.path().ends_with("plain");
        connection.send(if plain { ok("plain") } else { bytes.clone().into_bytes() }.as_slice());
    });
    let balancer = Balancer::over(driver, &[&stub], json!({ "threads": 1 }));
    let mut client = balancer.client();
    client.send(request);
    (balancer, client, stub)
}

const GET: &str = "GET /app HTTP/1.1\r\nHost: test\r\n\r\n";

on_both_drivers! {
    fn late_surplus_behind_an_answer_without_body_is_nobodys_answer(driver) {
        for (method, answer) in [
            ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n".as_slice()),
            ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
            ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\n"),
        ] {
            let cue = Cue::new();
            let stub = surplus_behind(answer, &cue);
            let balancer = Balancer::over(driver, &[&stub], json!({ "threads": 1 }));
            let mut client = balancer.client();
            for n in 0..3 {
                client.send(format!("{method} /app/{n}/first HTTP/1.1\r\nHost: test\r\n\r\n"));
                assert!(client.try_response(method == "HEAD").is_some());
                cue.give();
                let path = format!("/app/{n}/next");
                assert_eq!(client.get(&path).text(), path, "after {method} {}", answer.escape_ascii());
            }
        }
    }

    fn late_surplus_behind_any_answer_is_nobodys_answer(driver) {
        let cue = Cue::new();
        let stub = surplus_behind(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", &cue);
        let balancer = Balancer::over(driver, &[&stub], json!({ "threads": 1 }));
        let mut client = balancer.client();
        for n in 0..3 {
            assert_eq!(client.get(&format!("/app/{n}/first")).text(), "ok");
            cue.give();
            await_tick(&balancer);
            let path = format!("/app/{n}/next");
            assert_eq!(client.get(&path).text(), path);
        }
    }

    fn connection_that_stays_silent_is_used_again_after_an_answer_without_body(driver) {
        let stub = Stub::start(|request, connection| {
            if request.line.starts_with("HEAD") { connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n") }
            else { connection.send(&ok("a")) }
        });
        let balancer = Balancer::over(driver, &[&stub], json!({ "threads": 1 }));
        let mut client = balancer.client();
        eventually("a GET comes on the connection of a HEAD", || {
            client.send("HEAD /app HTTP/1.1\r\nHost: test\r\n\r\n");
            assert_eq!(client.response_to_head().status, 200);
            for _ in 0..3 {
                await_tick(&balancer);
            }
            assert_eq!(client.get("/app").text(), "a");
            stub.requests().last().is_some_and(|request| request.before > 0)
        });
    }

    fn length_where_no_body_may_be_gives_502(driver) {
        for (status, fields) in [
            ("204 No Content", "Content-Length: 5\r\n"),
            ("204 No Content", "Transfer-Encoding: chunked\r\n"),
            ("103 Early Hints", "Content-Length: 5\r\n"),
            ("103 Early Hints", "Transfer-Encoding: chunked\r\n"),
            ("100 Continue", "Content-Length: 5\r\n"),
        ] {
            let bytes = head(status, fields) + &head("200 OK", "Content-Length: 0\r\n");
            let (_balancer, mut client, _stub) = answered(driver, &bytes, GET);
            assert_eq!(client.response().status, 502, "{bytes}");
            assert_eq!(client.get("/app/plain").text(), "plain");
        }
    }

    fn length_of_zero_is_taken_and_not_passed_on_where_no_body_may_be(driver) {
        let bytes = head("204 No Content", "Content-Length: 0\r\nETag: x\r\n");
        let (_balancer, mut client, _stub) = answered(driver, &bytes, GET);
        let response = client.response();
        assert_eq!((response.status, response.field("etag")), (204, Some("x")));
        assert_eq!(response.field("content-length"), None);
        assert_eq!(client.get("/app/plain").text(), "plain");
    }

    fn fields_of_one_connection_stay_out_of_interim_answers(driver) {
        let fields = "Link: </a>\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=9\r\n\
                      Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\n";
        let bytes = head("103 Early Hints", fields)
            + &head("103 Early Hints", "Link: </b>\r\n")
            + &head("200 OK", "Content-Length: 0\r\nX-Final: 1\r\n");
        let (_balancer, mut client, _stub) = answered(driver, &bytes, GET);
        assert_eq!(client.response().head, head("103 Early Hints", "Link: </a>\r\n"));
        assert_eq!(client.response().head, head("103 Early Hints", "Link: </b>\r\n"));
        assert_eq!(client.response().head, head("200 OK", "Content-Length: 0\r\nX-Final: 1\r\n"));
    }

    fn fields_of_one_connection_stay_out_of_a_change_of_protocol(driver) {
        let bytes = head(
            "101 Switching Protocols",
            "Connection: X-Hop, Upgrade\r\nX-Hop: 1\r\nUpgrade: echo\r\nKeep-Alive: timeout=9\r\n\
             Content-Length: 0\r\nSec-WebSocket-Accept: x\r\n",
        );
        let ask = "GET /app HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
        let (_balancer, mut client, _stub) = answered(driver, &bytes, ask);
        let expected = head(
            "101 Switching Protocols",
            "Sec-WebSocket-Accept: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n",
        );
        assert_eq!(client.response().head, expected);
    }

    fn fields_of_requests_in_an_answer_are_no_fault(driver) {
        let fields = "Host: a\r\nHost: b c\r\nContent_Length: 9\r\nTransfer_Encoding: x\r\nExpect: coffee\r\n\
                      X_Forwarded_For: 10.0.0.1\r\n";
        let plain = head("200 OK", &format!("{fields}Content-Length: 5\r\n")) + "hello";
        let (_balancer, mut client, _stub) = answered(driver, &plain, GET);
        let response = client.response();
        assert_eq!((response.head.as_str(), response.text().as_str()), (&plain[..plain.len() - 5], "hello"));
        assert_eq!(client.get("/app/plain").text(), "plain");
        let trailers = "5\r\nhello\r\n0\r\nHost: a\r\nVia: 1.1 b\r\n\r\n";
        let chunked = head("200 OK", &format!("{fields}Transfer-Encoding: chunked\r\n")) + trailers;
        let (_balancer, mut client, _stub) = answered(driver, &chunked, GET);
        assert_eq!((client.response().text().as_str(), client.get("/app/plain").text().as_str()), ("hello", "plain"));
    }

    fn answers_that_can_be_framed_in_two_ways_are_502(driver) {
        for fields in [
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked, identity\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Content-Length: 5\r\n ,6\r\n",
            "Host: a\r\nHost: b\r\nContent-Length: +5\r\n",
        ] {
            let bytes = head("200 OK", fields) + "0\r\n\r\n";
            let (_balancer, mut client, _stub) = answered(driver, &bytes, GET);
            assert_eq!(client.response().status, 502, "{bytes}");
            assert_eq!(client.get("/app/plain").text(), "plain");
        }
        // The fault comes behind what is whole so far, in what could be a smaller or a larger body.
        let bytes = head("200 OK", "Transfer-Encoding: chunked\r\n") + "0\r\nContent-Length: 5\r\n\r\n";
        let (_balancer, mut client, _stub) = answered(driver, &bytes, GET);
        assert_eq!(client.response().status, 502);
    }

    fn chunked_answers_say_so_in_one_spelling(driver) {
        for field in common::CHUNKED_FIELDS {
            let bytes = head("200 OK", &format!("ETag: x\r\n{field}\r\n")) + "5\r\nhello\r\n0\r\n\r\n";
            let (_balancer, mut client, _stub) = answered(driver, &bytes, GET);
            let response = client.response();
            assert_eq!(response.text(), "hello", "{field:?}");
            let expected = head("200 ok", "etag: x\r\ntransfer-encoding: chunked\r\n");
            assert_eq!(response.head.to_ascii_lowercase(), expected.to_ascii_lowercase());
            assert_eq!(client.get("/app/plain").text(), "plain");
        }
    }

    fn answer_that_is_refused_is_not_counted(driver) {
        const BAD: u64 = 20;
        let bytes = head("200 OK", "Transfer-Encoding: chunked\r\n") + "0\r\nContent-Length: 5\r\n\r\n";
        let (balancer, mut client, _stub) = answered(driver, &bytes, GET);
        assert_eq!(client.response().status, 502);
        let (before, mut pages) = (answers_2xx(&balancer), 1);
        for _ in 1..BAD {
            assert_eq!(client.get("/app").status, 502);
        }
        eventually("they are counted", || {
            pages += 1;
            answers(&balancer, "5xx") >= BAD
        });
        let found = answers_2xx(&balancer) - before;
        assert!(found <= pages, "{found} answers of 2xx, of which {pages} are pages of the balancer");
    }

    fn answers_of_the_balancers_own_are_dated(driver) {
        let balancer = Balancer::over(driver, &[], json!({}));
        for (request, status) in [
            ("GET /status HTTP/1.1\r\nHost: a\r\n\r\n", 200),
            ("GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", 404),
            ("GET /app HTTP/1.1\r\nHost: a\r\n\r\n", 503),
            ("GET /app HTTP/1.1\r\n\r\n", 400),
        ] {
            let mut client = balancer.client();
            client.send(request);
            let response = client.response();
            let date = response.field("date").expect("a date");
            let bytes = "Sun, 06 Nov 1994 08:49:37 GMT".len();
            assert_eq!((response.status, date.len(), &date[25..]), (status, bytes, " GMT"));
        }
    }

    fn flood_of_interim_answers_gives_502(driver) {
        for (status, passed_on) in [("103 Early Hints", 8), ("100 Continue", 0)] {
            let bytes = head(status, "").repeat(9) + &head("200 OK", "Content-Length: 0\r\n");
            let (balancer, mut client, _stub) = answered(driver, &bytes, GET);
            for _ in 0..passed_on {
                assert_eq!(client.response().status, 103);
            }
            assert_eq!(client.response().status, 502, "after {status}");
            assert_eq!(client.get("/app/plain").text(), "plain");
            assert_eq!(balancer.backend(0)["in_flight"], 0);
        }
    }

    fn endless_interim_answers_end_with_502(driver) {
        let stub = Stub::start(|_, connection| {
            let some = head("102 Processing", "").repeat(100);
            while std::io::Write::write_all(&mut connection.stream, some.as_bytes()).is_ok() {}
        });
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        client.send("GET /app HTTP/1.0\r\n\r\n");
        assert_eq!(client.response().status, 502, "HTTP/1.0 knows no interim answers");
        eventually("nothing is in flight", || balancer.backend(0)["in_flight"] == 0);
    }
}
