//! Random faults for a while: no answer is lost unexplained, none is swapped, and nothing is left behind.
//! `LABHOST_SOAK_SECONDS` says for how long. Not here: backends that stop or hang, and pipelining.

#![allow(clippy::disallowed_methods, reason = "a soak lasts for a given time")]

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::{Balancer, Client, Connection, Request, Stub, eventually};
use serde_json::json;

const SECONDS_DEFAULT: u64 = 3;
const CLIENTS: u64 = 6;
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

/// Sends requests until `end`; how many were answered as they must be.
fn client(address: SocketAddr, number: u64, end: Instant) -> u64 {
    let mut random = SEED ^ (number + 1);
    let mut kept = None;
    let mut count = 0;
    while Instant::now() < end {
        let mut client = kept.take().unwrap_or_else(|| Client::connect(address));
        let id = format!("{number}-{count}");
        let kind = ["plain", "plain", "chunked", "large", "upload", "head", "die", "cut", "abort"]
            [(next(&mut random) % 9) as usize];
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
        let response = response.unwrap_or_else(|| panic!("{kind} {id}: no answer, seed {SEED}"));
        if kind == "die" {
            assert_eq!(response.status, 502, "{id}: seed {SEED}");
        } else {
            assert_eq!(
                (response.status, response.field("x-id")),
                (200, Some(id.as_str())),
                "{kind}: seed {SEED}"
            );
            let expected = if kind == "head" { Vec::new() } else { content(kind, &id) };
            assert!(response.complete && response.body == expected, "{kind} {id}: seed {SEED}");
        }
        kept = Some(client);
    }
    count
}

fn load(balancer: &Balancer, seconds: u64) -> u64 {
    let (address, end) = (balancer.address, Instant::now() + Duration::from_secs(seconds));
    let threads: Vec<_> =
        (0..CLIENTS).map(|number| std::thread::spawn(move || client(address, number, end))).collect();
    threads.into_iter().map(|thread| thread.join().expect("no answer lost or swapped")).sum()
}

on_both_drivers! {
    fn random_faults_lose_and_swap_no_answer(driver) {
        let seconds = std::env::var("LABHOST_SOAK_SECONDS").ok();
        let seconds = seconds.map_or(SECONDS_DEFAULT, |text| text.parse().expect("whole seconds"));
        let stubs = [Stub::start(answer), Stub::start(answer), Stub::start(answer)];
        let extra = json!({ "clusters": { "app": { "ejection": { "failures_in_row": 0 } } } });
        let balancer = Balancer::over(driver, &[&stubs[0], &stubs[1], &stubs[2]], extra);
        load(&balancer, 1);
        let (open, memory) = (balancer.descriptors(), balancer.resident_kb());
        let count = load(&balancer, seconds);
        // Connections kept for the next request may be a few more than after the first second.
        eventually("descriptors are back", || balancer.descriptors() <= open + 2 * CLIENTS as usize);
        let grown = balancer.resident_kb().saturating_sub(memory);
        eprintln!("{driver}: {count} requests in {seconds} s, {grown} KB more");
        assert!(grown < 20_000, "{grown} KB more after {count} requests");
    }
}
