//! What goes through unharmed: bodies, framing, fields, order.

mod common;

use common::{Balancer, Client, Connection, Request, Stub, ok};
use serde_json::json;

/// More than any buffer on the way.
const LARGE: usize = 3 << 20;

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 + n / 251) as u8).collect()
}

fn chunks(body: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in body.chunks(size) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

/// Answers by path, in every way that a body can be framed.
fn framings(request: &Request, connection: &mut Connection) {
    let kind = request.path().rsplit('/').next().unwrap_or("");
    let head = |rest: &str| format!("HTTP/1.1 200 OK\r\n{rest}\r\n");
    match kind {
        "chunked" => {
            connection.send(head("Transfer-Encoding: chunked\r\n").as_bytes());
            connection.send(&chunks(b"hello chunked world", 7));
        }
        "large" => {
            connection.send(head(&format!("Content-Length: {LARGE}\r\n")).as_bytes());
            connection.send(&pattern(LARGE));
        }
        "large-chunked" => {
            connection.send(head("Transfer-Encoding: chunked\r\n").as_bytes());
            connection.send(&chunks(&pattern(LARGE), 10_007));
        }
        "close" => {
            connection.send(head("Connection: close\r\n").as_bytes());
            connection.send(&pattern(100_000));
            connection.close();
        }
        "old" => {
            connection.send(b"HTTP/1.0 200 Fine\r\n\r\nold style");
            connection.close();
        }
        "chunked-head" => connection.send(head("Transfer-Encoding: chunked\r\n").as_bytes()),
        "unchanged-chunked" => {
            connection.send(b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n");
        }
        "head" => connection.send(head("Content-Length: 12345\r\n").as_bytes()),
        "none" => connection.send(b"HTTP/1.1 204 No Content\r\n\r\n"),
        "unchanged" => connection.send(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n"),
        "hints" => {
            connection.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n");
            connection.send(&ok("after hints"));
        }
        "dripped" => {
            for byte in ok("drip") {
                connection.send(&[byte]);
            }
        }
        _ => connection.send(&ok("plain")),
    }
}

on_both_drivers! {
    fn kept_connections_carry_many_requests_on_both_sides(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], json!({ "threads": 1 }));
        let mut client = balancer.client();
        for _ in 0..50 {
            let response = client.get("/app/x?y=1");
            assert_eq!((response.status, response.text().as_str()), (200, "a"));
            assert_eq!(response.field("x-instance-id"), Some("stub"));
        }
        assert_eq!(stub.connections(), 1);
        assert!(stub.requests().iter().all(|request| request.line == "GET /app/x?y=1 HTTP/1.1"));
    }

    fn bodies_arrive_whole_in_every_framing(driver) {
        let stub = Stub::start(framings);
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        for (path, expected) in [
            ("chunked", b"hello chunked world".to_vec()),
            ("large", pattern(LARGE)),
            ("plain", b"plain".to_vec()),
            ("large-chunked", pattern(LARGE)),
            ("dripped", b"drip".to_vec()),
            ("none", Vec::new()),
            ("unchanged", Vec::new()),
            ("plain", b"plain".to_vec()),
        ] {
            let response = client.get(&format!("/app/{path}"));
            assert!(response.complete && response.body == expected, "{path}: {}", response.head);
        }
    }

    fn answers_until_close_end_the_clients_connection_too(driver) {
        let stub = Stub::start(framings);
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        for (path, expected) in [("close", pattern(100_000)), ("old", b"old style".to_vec())] {
            let mut client = balancer.client();
            let response = client.get(&format!("/app/{path}"));
            assert_eq!(response.body, expected, "{path}");
            assert_eq!(response.field("connection"), Some("close"));
            assert!(response.head.starts_with("HTTP/1.1 200 "), "{}", response.head);
            assert!(client.is_closed());
        }
    }

    fn head_has_fields_and_no_body(driver) {
        let stub = Stub::start(framings);
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        for _ in 0..3 {
            client.send("HEAD /app/head HTTP/1.1\r\nHost: test\r\n\r\n");
            let response = client.response_to_head();
            assert_eq!((response.status, response.field("content-length")), (200, Some("12345")));
            assert_eq!(client.get("/app/plain").text(), "plain");
        }
        client.send("HEAD /status HTTP/1.1\r\nHost: test\r\n\r\n");
        assert_eq!(client.response_to_head().status, 200);
        assert_eq!(client.get("/app/plain").text(), "plain");
    }

    fn uploads_arrive_whole_in_every_framing(driver) {
        let stub = Stub::echo();
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        for length in [0, 1, 5000, 20_000, LARGE] {
            let body = pattern(length);
            client.send(format!("POST /app HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n"));
            client.send(&body);
            assert!(client.response().body == body, "length {length}");
            client.send("POST /app HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
            client.send(chunks(&body, 9001));
            assert!(client.response().body == body, "chunked {length}");
        }
        let framings: Vec<bool> = stub.requests().iter().map(|r| r.field("transfer-encoding").is_some()).collect();
        assert_eq!(framings, [false, true].repeat(5));
    }

    fn pipelined_requests_are_answered_in_order(driver) {
        let stub = Stub::start(|request, connection| connection.send(&ok(request.path())));
        let balancer = Balancer::over(driver, &[&stub, &stub], json!({}));
        let mut client = balancer.client();
        let mut sent = String::new();
        for n in 0..40 {
            if n % 3 == 0 {
                sent += &format!("POST /app/{n} HTTP/1.1\r\nHost: test\r\nContent-Length: 6\r\n\r\nGET / ");
            } else {
                sent += &format!("GET /app/{n} HTTP/1.1\r\nHost: test\r\n\r\n");
            }
        }
        client.send(&sent);
        for n in 0..40 {
            assert_eq!(client.response().text(), format!("/app/{n}"));
        }
    }

    fn requests_cut_anywhere_are_put_together(driver) {
        let stub = Stub::echo();
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        let request = b"POST /app HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        for cut in (1..request.len()).step_by(7) {
            client.send(&request[..cut]);
            // Two sends are usually two receives; either way the answer is the same.
            std::thread::yield_now();
            client.send(&request[cut..]);
            assert_eq!(client.response().text(), "hello");
        }
    }

    fn hop_by_hop_fields_end_here_and_the_proxys_own_are_added(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        client.send(
            "GET /app HTTP/1.1\r\nHost: example.com:81\r\nConnection: keep-alive, X-Secret, Host\r\nX-Secret: 1\r\n\
             Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\nUpgrade: h2c\r\nAccept: */*\r\n\
             X-Forwarded-For: 10.1.1.1\r\nX-Forwarded-For: 10.2.2.2\r\nVia: 1.1 first\r\n\r\n",
        );
        assert_eq!(client.response().status, 200);
        let request = stub.requests().remove(0);
        let mut names: Vec<String> = request.fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        names.sort();
        assert_eq!(names, ["accept", "host", "via", "x-forwarded-for", "x-forwarded-proto"]);
        assert_eq!(request.field("host"), Some("example.com:81"));
        assert_eq!(request.field("x-forwarded-for"), Some("10.1.1.1, 10.2.2.2, 127.0.0.1"));
        assert_eq!(request.field("x-forwarded-proto"), Some("http"));
        assert_eq!(request.field("via"), Some("1.1 first, 1.1 balancer"));
    }

    fn proxys_own_fields_can_be_switched_off(driver) {
        let stub = Stub::named("a");
        let off = json!({ "clusters": { "app": { "x_forwarded_for": "off", "x_forwarded_proto": false, "via": false } } });
        let balancer = Balancer::over(driver, &[&stub], off);
        assert_eq!(balancer.get("/app").status, 200);
        assert_eq!(stub.requests()[0].fields, [("Host".to_owned(), "test".to_owned())]);
    }

    fn browsers_twenty_fields_fit_a_worker_that_takes_sixteen(driver) {
        let stub = Stub::named("a");
        let extra = json!({ "clusters": { "app": { "fields_not_forwarded": "browser", "fields_max": 16 } } });
        let balancer = Balancer::over(driver, &[&stub], extra);
        let mut client = balancer.client();
        client.send(BROWSER);
        assert_eq!(client.response().status, 200);
        let fields = stub.requests().remove(0).fields;
        assert!(fields.len() <= 16, "{fields:?}");
        assert!(fields.iter().any(|(name, _)| name == "Cookie"));
        assert!(!fields.iter().any(|(name, _)| name.to_ascii_lowercase().starts_with("sec-")));
    }

    fn more_fields_than_the_cluster_takes_are_431(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], json!({ "clusters": { "app": { "fields_max": 16 } } }));
        let mut client = balancer.client();
        client.send(BROWSER);
        assert_eq!(client.response().status, 431);
        assert!(stub.requests().is_empty());
    }

    fn old_clients_get_old_manners(driver) {
        let stub = Stub::start(framings);
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        client.send("GET /app/plain HTTP/1.0\r\n\r\n");
        let response = client.response();
        assert_eq!((response.text().as_str(), response.field("connection")), ("plain", Some("close")));
        assert!(client.is_closed());
        let mut client = balancer.client();
        for _ in 0..3 {
            client.send("GET /app/plain HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
            assert_eq!(client.response().field("connection"), Some("keep-alive"));
        }
        for (path, expected) in [("chunked", b"hello chunked world".to_vec()), ("large-chunked", pattern(LARGE))] {
            let mut client = balancer.client();
            client.send(format!("GET /app/{path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
            let response = client.response();
            assert_eq!(response.field("transfer-encoding"), None);
            assert!(response.body == expected, "{path}");
        }
        let mut client = balancer.client();
        client.send("HEAD /app/chunked-head HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let response = client.response_to_head();
        assert_eq!((response.status, response.field("transfer-encoding")), (200, None));
        client.send("GET /app/unchanged-chunked HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let response = client.response();
        assert_eq!((response.status, response.field("transfer-encoding")), (304, None));
    }

    fn client_that_asks_is_told_to_continue_once_a_backend_is_there(driver) {
        let stub = Stub::echo();
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        for _ in 0..2 {
            client.send("POST /app HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
            assert_eq!(client.response().status, 100);
            client.send("hello");
            assert_eq!(client.response().text(), "hello");
        }
        assert_eq!(stub.requests()[0].field("expect"), None);
        client.send("POST /nowhere HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(client.response().status, 404);
    }

    fn interim_answers_are_passed_on_but_100(driver) {
        let stub = Stub::start(framings);
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        assert_eq!(client.get("/app/hints").status, 103);
        assert_eq!(client.response().text(), "after hints");
        assert_eq!(client.get("/app/plain").text(), "plain");
    }

    fn answer_before_the_body_is_delivered_and_the_connection_ends(driver) {
        let stub = Stub::start_raw(|_, connection| {
            connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig");
        });
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        client.send("POST /app HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\nsome of it");
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (413, "big"));
        assert_eq!(response.field("connection"), Some("close"));
        assert!(client.is_closed());
    }

    fn answer_that_streams_while_the_body_does_is_delivered(driver) {
        // Echoes piece by piece, as a backend that transforms a stream does.
        let stub = Stub::start_raw(|_, connection| {
            connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").as_bytes());
            let mut left = LARGE;
            while left > 0 {
                let piece = connection.receive();
                if piece.is_empty() {
                    return;
                }
                connection.send(&piece);
                left -= piece.len();
            }
        });
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        client.send(format!("POST /app HTTP/1.1\r\nHost: test\r\nContent-Length: {LARGE}\r\n\r\n"));
        let mut writer = client.stream.try_clone().expect("a clone");
        let sender = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &pattern(LARGE)));
        let response = client.response();
        sender.join().expect("no panic").expect("all is taken");
        assert!(response.complete && response.body == pattern(LARGE));
    }

    fn absolute_targets_are_forwarded_in_origin_form(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        client.send("GET http://real.example/app/x HTTP/1.1\r\nHost: other.example\r\n\r\n");
        assert_eq!(client.response().status, 200);
        let request = stub.requests().remove(0);
        assert_eq!(request.line, "GET /app/x HTTP/1.1");
        assert_eq!(request.fields.iter().filter(|(name, _)| name == "Host").count(), 1);
        assert_eq!(request.field("host"), Some("real.example"));
    }

    fn paths_choose_the_cluster_and_the_rest_is_told_which_there_are(driver) {
        let (one, two) = (Stub::named("one"), Stub::named("two"));
        let cluster = |stub: &Stub| json!({ "backends": [{ "address": stub.address.to_string() }], "probe": { "path": "/probe" } });
        let clusters = json!({ "cluster1": cluster(&one), "cluster2": cluster(&two) });
        let balancer = Balancer::start(driver, json!({ "listen": "127.0.0.1:0", "clusters": clusters }));
        for (path, expected) in [("/cluster1", "one"), ("/cluster2/a/b", "two"), ("/cluster1?q", "one")] {
            assert_eq!(balancer.get(path).text(), expected, "{path}");
        }
        let unknown = balancer.get("/cluster3");
        assert_eq!(unknown.status, 404);
        assert!(unknown.text().contains("cluster1") && unknown.text().contains("cluster2"));
        assert!(balancer.get("/").text().contains("href=\"/cluster2\""));
    }

    fn catch_all_takes_what_names_no_cluster(driver) {
        let (one, rest) = (Stub::named("one"), Stub::named("rest"));
        let cluster = |stub: &Stub| json!({ "backends": [{ "address": stub.address.to_string() }], "probe": { "path": "/probe" } });
        let clusters = json!({ "one": cluster(&one), "*": cluster(&rest) });
        let balancer = Balancer::start(driver, json!({ "listen": "127.0.0.1:0", "clusters": clusters }));
        for (path, expected) in [("/one", "one"), ("/", "rest"), ("/ones", "rest"), ("/deep/one", "rest")] {
            assert_eq!(balancer.get(path).text(), expected, "{path}");
        }
        assert_eq!(balancer.status()["clusters"]["*"]["backends"][0]["state"], "up");
    }

    fn many_clients_at_once_get_their_own_answers(driver) {
        let stub = Stub::start(|request, connection| connection.send(&ok(request.path())));
        let balancer = Balancer::over(driver, &[&stub, &stub], json!({}));
        let address = balancer.address;
        let clients: Vec<_> = (0..16)
            .map(|id| {
                std::thread::spawn(move || {
                    let mut client = Client::connect(address);
                    for n in 0..100 {
                        let path = format!("/app/{id}/{n}");
                        assert_eq!(client.get(&path).text(), path);
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().expect("every answer is the right one");
        }
    }
}

/// What a browser sends on a reload, with a few more.
const BROWSER: &str = "GET /app HTTP/1.1\r\nHost: test\r\nConnection: keep-alive\r\nCache-Control: max-age=0\r\n\
    sec-ch-ua: \"x\"\r\nsec-ch-ua-mobile: ?0\r\nsec-ch-ua-platform: \"Linux\"\r\nDNT: 1\r\n\
    Upgrade-Insecure-Requests: 1\r\nUser-Agent: browser\r\nAccept: text/html\r\nSec-Fetch-Site: none\r\n\
    Sec-Fetch-Mode: navigate\r\nSec-Fetch-User: ?1\r\nSec-Fetch-Dest: document\r\nAccept-Encoding: gzip\r\n\
    Accept-Language: en\r\nCookie: a=b\r\nReferer: http://test/\r\nIf-None-Match: \"e\"\r\nPriority: u=0\r\n\
    Pragma: no-cache\r\nOrigin: http://test\r\n\r\n";
