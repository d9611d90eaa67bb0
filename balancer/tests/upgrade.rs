//! Connections that change their protocol, and clients that leave before their answer.

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;

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
