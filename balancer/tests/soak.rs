//! Random faults for a while: no answer is lost unexplained, none is swapped, and nothing is left behind.
//! `LABHOST_SOAK_SECONDS` says for how long. Not here: backends that stop as processes, and restarts.

#![allow(clippy::disallowed_methods, reason = "a soak lasts for a given time")]

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::{Balancer, Client, Connection, Request, Stub, eventually};
use serde_json::json;

const SECONDS_DEFAULT: u64 = 3;
const CLIENTS: u64 = 6;
/// Clients whose backend hangs each time.
const HANGING: u64 = 2;
/// When the balancer gives up on it; far more than any other answer takes on a machine that does other things as well.
const HANGS_MS: u64 = 8_000;
/// Requests sent at once on one connection.
const PIPELINED: u64 = 4;
const LARGE: usize = 300_000;
const SEED: u64 = 0x9E37_79B9_7F4A_7C15;

/// xorshift64: the same seed, the same kinds of requests.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// What an answer to `id` of a kind must hold.
fn content(kind: &str, id: &str) -> Vec<u8> {
    match kind {
        "large" => id.bytes().cycle().take(LARGE).collect(),
        _ => id.as_bytes().to_vec(),
    }
}

fn answer(request: &Request, connection: &mut Connection) {
    let kind = request.path().rsplit('/').next().unwrap_or("").to_owned();
    let id = request.field("x-id").unwrap_or("none").to_owned();
    let body = if kind == "upload" { request.body.clone() } else { content(&kind, &id) };
    let head = format!("HTTP/1.1 200 OK\r\nx-id: {id}\r\n");
    match kind.as_str() {
        "die" => return connection.close(),
        "hang" => return hang(connection),
        "hang-in-body" => {
            connection.send(format!("{head}Content-Length: 1000\r\n\r\n{id}").as_bytes());
            return hang(connection);
        }
        "cut" => {
            connection.send(format!("{head}Content-Length: 1000\r\n\r\n{id}").as_bytes());
            return connection.close();
        }
        "chunked" => {
            let chunk =
                format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{id}\r\n0\r\n\r\n", id.len());
            return connection.send(chunk.as_bytes());
        }
        _ => connection.send(format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes()),
    }
    if !request.line.starts_with("HEAD") {
        connection.send(&body);
    }
}

/// Until the balancer has had enough.
fn hang(connection: &mut Connection) {
    while !connection.receive().is_empty() {}
    connection.close();
}

/// Sends several requests before it reads the first answer. Each must come in its turn.
fn pipeline(client: &mut Client, number: u64, from: u64) {
    let ids: Vec<String> = (from..from + PIPELINED).map(|count| format!("{number}-{count}")).collect();
    let kinds = ["plain", "upload", "chunked", "large"];
    let requests = kinds.iter().zip(&ids).map(|(kind, id)| match *kind {
        "upload" => format!(
            "POST /app/upload HTTP/1.1\r\nHost: t\r\nx-id: {id}\r\nContent-Length: {}\r\n\r\n{id}",
            id.len()
        ),
        kind => format!("GET /app/{kind} HTTP/1.1\r\nHost: t\r\nx-id: {id}\r\n\r\n"),
    });
    client.send(requests.collect::<String>());
    for (kind, id) in kinds.iter().zip(&ids) {
        check(client.try_response(false), kind, id);
    }
}

/// Checks that an answer is whole, and the one to `id`.
#[track_caller]
fn check(response: Option<common::Response>, kind: &str, id: &str) {
    let response = response.unwrap_or_else(|| panic!("{kind} {id}: no answer, seed {SEED}"));
    assert_eq!((response.status, response.field("x-id")), (200, Some(id)), "{kind}: seed {SEED}");
    let expected = if kind == "head" { Vec::new() } else { content(kind, id) };
    assert!(response.complete && response.body == expected, "{kind} {id}: seed {SEED}");
}

/// Sends requests to which a backend does not answer, and others to which it does not answer to the end, until `end`.
fn hanging_client(address: SocketAddr, number: u64, end: Instant) -> u64 {
    let mut count = 0;
    while count == 0 || Instant::now() < end {
        let ask = |kind: &str| {
            let mut client = Client::connect(address);
            client.send(format!("GET /app/{kind} HTTP/1.1\r\nHost: t\r\n\r\n"));
            client
        };
        let (mut silent, mut cut) = (ask("hang"), ask("hang-in-body"));
        assert_eq!(silent.response().status, 504, "{number}-{count}");
        // The reset may overtake what was sent before it.
        assert!(cut.try_response(false).is_none_or(|response| !response.complete), "{number}-{count}");
        count += 2;
    }
    count
}

/// Sends requests until `end`; how many were answered as they must be.
fn client(address: SocketAddr, number: u64, end: Instant) -> u64 {
    let mut random = SEED ^ (number + 1);
    let mut kept = None;
    let mut count = 0;
    while Instant::now() < end {
        let mut client = kept.take().unwrap_or_else(|| Client::connect(address));
        let id = format!("{number}-{count}");
        let kind =
            ["plain", "plain", "chunked", "large", "upload", "head", "die", "cut", "abort", "pipelined"]
                [(next(&mut random) % 10) as usize];
        if kind == "pipelined" {
            pipeline(&mut client, number, count);
            count += PIPELINED;
            kept = Some(client);
            continue;
        }
        let (method, body) = match kind {
            "upload" => ("POST", id.as_str()),
            "head" => ("HEAD", ""),
            "die" => ("POST", "x"),
            _ => ("GET", ""),
        };
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        client.send(format!("{method} /app/{kind} HTTP/1.1\r\nHost: t\r\nx-id: {id}\r\n{length}\r\n{body}"));
        count += 1;
        if kind == "abort" {
            continue;
        }
        let response = client.try_response(kind == "head");
        if kind == "cut" {
            // The reset may overtake what was sent before it.
            assert!(response.is_none_or(|response| !response.complete), "{id}: seed {SEED}");
            continue;
        }
        if kind == "die" {
            assert_eq!(response.map(|response| response.status), Some(502), "{id}: seed {SEED}");
        } else {
            check(response, kind, &id);
        }
        kept = Some(client);
    }
    count
}

/// Has `hanging` clients among others send requests for a while, and returns how many were sent.
fn load(balancer: &Balancer, hanging: u64, seconds: u64) -> u64 {
    let (address, end) = (balancer.address, Instant::now() + Duration::from_secs(seconds));
    let clients = (0..CLIENTS).map(|number| std::thread::spawn(move || client(address, number, end)));
    let hanging = (0..hanging).map(|number| std::thread::spawn(move || hanging_client(address, number, end)));
    let threads: Vec<_> = clients.chain(hanging).collect();
    threads.into_iter().map(|thread| thread.join().expect("no answer lost or swapped")).sum()
}

on_both_drivers! {
    fn random_faults_lose_and_swap_no_answer(driver) {
        let seconds = std::env::var("LABHOST_SOAK_SECONDS").ok();
        let seconds = seconds.map_or(SECONDS_DEFAULT, |text| text.parse().expect("whole seconds"));
        let stubs = [Stub::start(answer), Stub::start(answer), Stub::start(answer)];
        let timeouts = json!({ "response_ms": HANGS_MS, "body_idle_ms": HANGS_MS });
        let extra =
            json!({ "timeouts": timeouts, "clusters": { "app": { "ejection": { "failures_in_row": 0 } } } });
        let balancer = Balancer::over(driver, &[&stubs[0], &stubs[1], &stubs[2]], extra);
        load(&balancer, 0, 1);
        let (open, memory) = (balancer.descriptors(), balancer.resident_kb());
        let count = load(&balancer, HANGING, seconds);
        // Connections kept for the next request may be a few more than after the first second.
        eventually("descriptors are back", || balancer.descriptors() <= open + 2 * (CLIENTS + HANGING) as usize);
        let grown = balancer.resident_kb().saturating_sub(memory);
        eprintln!("{driver}: {count} requests in {seconds} s, {grown} KB more");
        assert!(grown < 20_000, "{grown} KB more after {count} requests");
    }
}
