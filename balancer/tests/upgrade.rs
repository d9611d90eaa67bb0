//! Connections that change their protocol, and clients that leave before their answer.

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};

use common::{Balancer, Client, Connection, Request, Stub, eventually, ok};
use serde_json::json;

const ASK: &str = "GET /app HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";

/// Changes to a protocol that sends back what comes, and ends when the client does.
fn echo(request: &Request, connection: &mut Connection) {
    if request.field("upgrade") != Some("echo") {
        return connection.send(&ok("plain"));
    }
    connection.send(SWITCH);
    let mut piece = [0; 4096];
    while let Ok(count) = connection.stream.read(&mut piece) {
        if count == 0 {
            break;
        }
        connection.send(&piece[..count]);
    }
    connection.send(b"bye");
    connection.close();
}

fn read_exactly(client: &mut Client, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    client.stream.read_exact(&mut bytes).expect("bytes from the tunnel");
    bytes
}

on_both_drivers! {
    fn tunnel_carries_both_ways_and_passes_the_end_on(driver) {
        let stub = Stub::start(echo);
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        client.send(ASK);
        assert_eq!(client.response().status, 101);
        for round in 0..3u8 {
            client.send(vec![round; 100_000]);
            assert_eq!(read_exactly(&mut client, 100_000), vec![round; 100_000]);
        }
        assert_eq!(balancer.status()["tunnels"], 1);
        client.stream.shutdown(Shutdown::Write).expect("half closed");
        assert_eq!(read_exactly(&mut client, 3), b"bye");
        assert!(client.is_closed());
        eventually("the tunnel is gone", || balancer.status()["tunnels"] == 0);
        assert_eq!(balancer.backend(0)["in_flight"], 0);
    }

    fn quiet_tunnel_is_closed(driver) {
        let stub = Stub::start(echo);
        let balancer = Balancer::over(driver, &[&stub], json!({ "timeouts": { "body_idle_ms": 300 } }));
        let mut client = balancer.client();
        client.send(ASK);
        assert_eq!(client.response().status, 101);
        assert!(client.is_closed());
    }

    fn backend_that_does_not_upgrade_answers_as_usual(driver) {
        let stub = Stub::named("plain");
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        client.send(ASK);
        assert_eq!(client.response().text(), "plain");
        assert_eq!(client.get("/app").text(), "plain");
    }

    fn answer_that_wants_another_protocol_names_it(driver) {
        let stub = Stub::start(|request, connection| match request.path() {
            "/app" if request.field("upgrade").is_some() => echo(request, connection),
            "/app" => connection.send(
                b"HTTP/1.1 426 Upgrade Required\r\nKeep-Alive: timeout=9\r\nUpgrade: echo, h2c\r\n\
                  Connection: Upgrade, X-Hop\r\nX-Hop: 1\r\nUpgrade: TLS/1.0\r\nContent-Length: 4\r\n\r\necho",
            ),
            _ => connection.send(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n"),
        });
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        let response = client.get("/app");
        assert_eq!(
            (response.head.as_str(), response.text().as_str()),
            (
                "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 4\r\nConnection: upgrade\r\nUpgrade: echo, h2c\r\n\
                 Upgrade: TLS/1.0\r\n\r\n",
                "echo"
            )
        );
        let unnamed = client.get("/app/unnamed");
        assert_eq!((unnamed.status, unnamed.field("connection")), (426, None));
        client.send("GET /app HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let response = client.response();
        assert_eq!(response.field("connection"), Some("close, upgrade"));
        assert!(client.is_closed());
        // What it names can be had here.
        let mut client = balancer.client();
        assert_eq!(client.get("/app").status, 426);
        client.send(ASK);
        assert_eq!(client.response().status, 101);
        client.send("hello");
        assert_eq!(read_exactly(&mut client, 5), b"hello");
    }

    fn protocols_of_the_backends_connection_stay_out_of_other_answers(driver) {
        let stub = Stub::start(|_, connection| {
            connection.send(
                b"HTTP/1.1 200 OK\r\nUpgrade: h2,h2c\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nok",
            );
        });
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let response = balancer.get("/app");
        assert_eq!(response.head, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
    }

    fn backend_that_speaks_another_protocol_alone_is_found_up(driver) {
        let status = Arc::new(AtomicU16::new(404));
        let answered = Arc::clone(&status);
        let stub = Stub::start(move |_, connection| {
            let status = answered.load(SeqCst);
            connection.send(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").as_bytes());
        });
        let probe = json!({ "path": "/", "interval_ms": 50 });
        let balancer = Balancer::over(driver, &[&stub], json!({ "clusters": { "app": { "probe": probe } } }));
        eventually("it is found down", || balancer.backend(0)["state"] == "down");
        status.store(426, SeqCst);
        eventually("it is found up", || balancer.backend(0)["state"] == "up");
    }

    fn h2c_is_not_forwarded(driver) {
        let stub = Stub::named("plain");
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        client.send(ASK.replace("echo", "h2c"));
        assert_eq!(client.response().status, 200);
        assert_eq!(stub.requests()[0].field("upgrade"), None);
    }

    fn switch_that_nobody_asked_for_is_502(driver) {
        let stub = Stub::start(|_, connection| connection.send(SWITCH));
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        assert_eq!(balancer.get("/app").status, 502);
    }

    fn client_that_leaves_frees_its_backend(driver) {
        let stub = Stub::start(|request, connection| {
            if request.path() == "/app/quick" {
                return connection.send(&ok("quick"));
            }
            // Silent until the balancer closes.
            let _ = connection.stream.read(&mut [0; 16]);
            connection.close();
        });
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        client.send("GET /app HTTP/1.1\r\nHost: a\r\n\r\n");
        eventually("the request is in flight", || balancer.backend(0)["in_flight"] == 1);
        drop(client);
        eventually("the request is cancelled", || balancer.status()["cancelled"] == 1);
        let backend = balancer.backend(0);
        assert_eq!((&backend["in_flight"], &backend["errors"]), (&json!(0), &json!(0)));
        assert_eq!(balancer.get("/app/quick").text(), "quick");
    }

    fn pipelined_request_waits_behind_a_slow_one(driver) {
        let stub = Stub::start(|request, connection| {
            if request.path() == "/app/slow" {
                // Longer than clients are left unwatched.
                std::thread::sleep(std::time::Duration::from_millis(400));
            }
            connection.send(&ok(request.path()));
        });
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        client.send("GET /app/slow HTTP/1.1\r\nHost: a\r\n\r\n");
        client.stream.write_all(b"GET /app/next HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
        assert_eq!(client.response().text(), "/app/slow");
        assert_eq!(client.response().text(), "/app/next");
    }
}
