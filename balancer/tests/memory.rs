//! Large bodies pass in bounded memory, however slow whoever is to take them.

mod common;

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use common::{Balancer, Client, Connection, Level, Stub, eventually, ok};
use serde_json::json;

/// A hundred mebibytes: more than sockets' buffers and what all connections together may hold.
const LARGE: u64 = 100 << 20;
const PIECE: usize = 64 << 10;
/// Connections that get stuck half way, and one that goes through.
const STUCK: usize = 24;
/// What one connection that streams may hold.
const CONNECTION_KB_MAX: u64 = 256;

/// What all of them may hold.
const HELD_KB_MAX: u64 = (STUCK as u64 + 1) * CONNECTION_KB_MAX;

fn one_thread() -> serde_json::Value {
    json!({ "threads": 1, "timeouts": { "body_idle_ms": 60_000 } })
}

/// Answers with `LARGE` bytes, in chunks where the path says so.
fn large(request: &common::Request, connection: &mut Connection) {
    let chunked = request.path().ends_with("chunked");
    let framing =
        if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {LARGE}") };
    connection.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n").as_bytes());
    let mut piece = vec![b'x'; PIECE];
    if chunked {
        piece = [format!("{PIECE:x}\r\n").as_bytes(), &piece, b"\r\n"].concat();
    }
    for _ in 0..LARGE / PIECE as u64 {
        if std::io::Write::write_all(&mut connection.stream, &piece).is_err() {
            return;
        }
    }
    if chunked {
        connection.send(b"0\r\n\r\n");
    }
}

/// Reads to the end of the stream and returns how many bytes came.
fn drain(client: &mut Client) -> u64 {
    let mut piece = vec![0; PIECE];
    let mut count = 0;
    loop {
        match client.stream.read(&mut piece).expect("within the deadline") {
            0 => return count,
            more => count += more as u64,
        }
    }
}

/// Streams one answer to a client that reads all, and begins `STUCK` others.
fn answers(balancer: &Balancer, path: &str) -> Vec<Client> {
    let ask = |connection: &str| {
        let mut client = balancer.client();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: {connection}\r\n\r\n"));
        client
    };
    let stuck: Vec<Client> = (0..STUCK).map(|_| ask("keep-alive")).collect();
    for client in &stuck {
        eventually("its answer has begun", || client.stream.peek(&mut [0; 1]).is_ok_and(|count| count > 0));
    }
    assert!(drain(&mut ask("close")) > LARGE, "the head and all of the body");
    stuck
}

/// A backend that reads an upload only to `limit`, until `released`.
fn reader(limit: u64, released: &Arc<AtomicBool>, read: &Arc<AtomicU64>) -> Stub {
    let (released, read) = (Arc::clone(released), Arc::clone(read));
    Stub::start_raw(move |request, connection| {
        if request.field("content-length").is_none() && request.field("transfer-encoding").is_none() {
            return connection.send(&ok("small"));
        }
        let limit = if request.path().ends_with("stuck") { limit } else { LARGE };
        let mut count = 0;
        while count < limit {
            let piece = connection.receive();
            if piece.is_empty() {
                return;
            }
            count += piece.len() as u64;
        }
        read.fetch_add(count, SeqCst);
        if limit < LARGE {
            eventually("the test is done", || released.load(SeqCst));
            return connection.close();
        }
        connection.send(&ok("taken"));
        connection.close();
    })
}

#[track_caller]
fn check_held(balancer: &Balancer, before_kb: u64, what: &str) {
    let most = balancer.resident_kb_max();
    println!("{what}: {before_kb} KB before, at most {most} KB with {STUCK} stuck and one that streams");
    assert!(most < before_kb + HELD_KB_MAX, "{what}: {most} KB, {before_kb} KB before");
}

/// Starts over a stub, warms up, and gives what is resident.
fn start(driver: &str, stub: &Stub) -> (Balancer, Level, u64) {
    let balancer = Balancer::over(driver, &[stub], one_thread());
    let level = balancer.level();
    balancer.resident_kb_max();
    let before = balancer.resident_kb_max();
    (balancer, level, before)
}

on_both_drivers! {
    fn answers_of_100_mib_stream_in_bounded_memory(driver) {
        let stub = Stub::start(large);
        let (balancer, level, before) = start(driver, &stub);
        for path in ["/app/length", "/app/chunked"] {
            let stuck = answers(&balancer, path);
            check_held(&balancer, before, path);
            assert_eq!(balancer.in_flight(), STUCK as u64);
            drop(stuck);
            balancer.returns_to(&level);
        }
    }

    fn uploads_of_100_mib_stream_in_bounded_memory(driver) {
        let (released, read) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let stub = reader(PIECE as u64, &released, &read);
        let (balancer, level, before) = start(driver, &stub);
        let upload = |path: &str| {
            let mut client = balancer.client();
            client.send(format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {LARGE}\r\n\r\n"));
            let mut writer = client.stream.try_clone().expect("a clone");
            let sender = std::thread::spawn(move || {
                let piece = vec![b'x'; PIECE];
                (0..LARGE / PIECE as u64).all(|_| std::io::Write::write_all(&mut writer, &piece).is_ok())
            });
            (client, sender)
        };
        let stuck: Vec<_> = (0..STUCK).map(|_| upload("/app/stuck")).collect();
        eventually("each has begun", || read.load(SeqCst) >= STUCK as u64 * PIECE as u64);
        let (mut client, sender) = upload("/app/whole");
        assert_eq!(client.response().text(), "taken");
        assert!(sender.join().expect("no panic"));
        check_held(&balancer, before, "uploads");
        released.store(true, SeqCst);
        for (client, sender) in stuck {
            // The balancer may have ended it by now.
            let _ = client.stream.shutdown(std::net::Shutdown::Both);
            assert!(!sender.join().expect("no panic"), "it was stuck");
        }
        drop(client);
        balancer.returns_to(&level);
    }

    fn client_that_does_not_read_is_cut_off_and_others_notice_nothing(driver) {
        let stub = Stub::start(|request, connection| {
            if request.path().ends_with("small") { connection.send(&ok("small")) } else { large(request, connection) }
        });
        let balancer = Balancer::over(driver, &[&stub], json!({ "threads": 1, "timeouts": { "body_idle_ms": 500 } }));
        let level = balancer.level();
        let mut slow = balancer.client();
        slow.send("GET /app/length HTTP/1.1\r\nHost: test\r\n\r\n");
        eventually("it has begun", || balancer.in_flight() == 1);
        while balancer.in_flight() == 1 {
            assert_eq!(balancer.get("/app/small").text(), "small");
        }
        assert_eq!(balancer.backend(0)["errors"], 0, "a client that does not read is not the backend's fault");
        let mut count = 0;
        let mut piece = vec![0; PIECE];
        while let Ok(more) = slow.stream.read(&mut piece) {
            assert!(more > 0, "a cut answer ends with a reset, so that nobody takes it for a whole one");
            count += more as u64;
        }
        assert!(count < LARGE);
        balancer.returns_to(&level);
    }
}
