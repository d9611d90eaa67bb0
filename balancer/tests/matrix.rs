//! Faults of backends and of the machine: what clients see, and that nothing is left behind. Where the fault is a
//! broken message see `faults`; where it is a slow peer of a large body, `memory`.

#![allow(clippy::disallowed_methods, reason = "one test measures CPU time over a given time")]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::{Balancer, Client, Load, Stub, config_over, eventually, ok};
use serde_json::{Value, json};

/// Probes that change nothing while a test runs, and no ejection: only requests find out about a backend.
fn undisturbed() -> Value {
    let app =
        json!({ "probe": { "interval_ms": 60_000, "fall": 100 }, "ejection": { "failures_in_row": 0 } });
    json!({ "policy": "round-robin", "threads": 1, "clusters": { "app": app } })
}

fn undisturbed_with(timeouts: Value) -> Value {
    let mut extra = undisturbed();
    extra["timeouts"] = timeouts;
    extra
}

fn post(balancer: &Balancer, path: &str) -> Client {
    let mut client = balancer.client();
    client.send(format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi"));
    client
}

/// A listener whose queue is full, so that the kernel ignores who else wants to connect. What fills it is kept.
fn full_listener() -> (TcpListener, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    // On a socket that listens this sets the queue's length: 0 holds one.
    rustix::net::listen(&listener, 0).expect("set");
    let address = listener.local_addr().expect("bound");
    let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
    let waiting: Vec<_> = std::iter::from_fn(connect).take(8).collect();
    assert!(waiting.len() < 8, "the queue never fills");
    (listener, waiting)
}

on_both_drivers! {
    fn stopped_backend_is_found_by_the_probe_and_used_again_when_it_goes_on(driver) {
        let (release, held) = channel::<()>();
        let held = Mutex::new(held);
        let behind = Stub::start(move |request, connection| {
            if request.path() == "/app/held" {
                // The test ends first if it fails.
                let _ = held.lock().expect("held").recv();
            }
            connection.send(&ok("stopped"));
        });
        // The backend must be a process of its own: another balancer is.
        let stopped = Balancer::over(driver, &[&behind], json!({}));
        let good = Stub::named("good");
        let mut config = config_over(&[&good, &good], json!({ "policy": "round-robin", "threads": 1,
            "timeouts": { "response_ms": 400 }, "clusters": { "app": {
                "probe": { "path": "/app/probe", "interval_ms": 200, "fall": 2 }, "ejection": { "failures_in_row": 0 } } } }));
        config["clusters"]["app"]["backends"][0]["address"] = json!(stopped.address.to_string());
        let balancer = Balancer::start(driver, config);
        eventually("both answer", || balancer.get("/app").text() == "stopped");
        let level = balancer.level();
        let mut waiting: Vec<Client> = (0..2).map(|_| balancer.client()).collect();
        for client in &mut waiting {
            client.send("GET /app/held HTTP/1.1\r\nHost: test\r\n\r\n");
        }
        eventually("one came to the backend", || behind.requests().iter().any(|r| r.path() == "/app/held"));
        stopped.freeze();
        drop(release);
        let mut statuses: Vec<u16> = waiting.iter_mut().map(|client| client.response().status).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 504], "the backend accepts and does not answer");
        eventually("the probe finds it", || balancer.backend(0)["state"] == "down");
        for _ in 0..6 {
            assert_eq!(balancer.get("/app").text(), "good");
        }
        stopped.signal("CONT");
        eventually("it is used again", || balancer.get("/app").text() == "stopped");
        drop(waiting);
        balancer.returns_to(&level);
    }

    fn full_backlog_gives_504_or_another_backend(driver) {
        let (full, _waiting) = full_listener();
        let good = Stub::named("good");
        let mut config = config_over(&[&good], undisturbed_with(json!({ "connect_ms": 300 })));
        let backend = json!({ "id": "full", "address": full.local_addr().expect("bound").to_string() });
        config["clusters"]["app"]["backends"].as_array_mut().expect("an array").push(backend.clone());
        config["clusters"]["alone"] = config["clusters"]["app"].clone();
        config["clusters"]["alone"]["backends"] = json!([backend]);
        let balancer = Balancer::start(driver, config);
        // The probes of the full backend hang as well, and hold a descriptor each: by now they have begun.
        assert_eq!(balancer.get("/alone").status, 504);
        let level = balancer.level();
        for _ in 0..2 {
            assert_eq!(balancer.get("/app").text(), "good");
            assert_eq!(post(&balancer, "/app").response().text(), "good", "nothing was sent, so any method may go on");
        }
        assert_eq!(balancer.get("/alone").status, 504);
        assert!(balancer.status()["retries"].as_u64() > Some(0));
        balancer.returns_to(&level);
    }

    fn reset_before_and_in_the_head_is_502_unless_it_may_be_sent_again(driver) {
        let reset = Stub::start(|request, connection| {
            if request.path().ends_with("in-head") {
                connection.send(b"HTTP/1.1 200 OK\r\nContent-");
            }
            connection.reset();
        });
        let good = Stub::named("good");
        let balancer = Balancer::over(driver, &[&reset, &good], undisturbed());
        let level = balancer.level();
        for _ in 0..4 {
            assert_eq!(balancer.get("/app/before").text(), "good", "no byte came, and a GET may be sent again");
        }
        for path in ["/app/before", "/app/in-head"] {
            let posts = |stub: &Stub| stub.requests().iter().filter(|r| r.line.starts_with("POST")).count();
            let (reset_before, good_before) = (posts(&reset), posts(&good));
            let failed = (0..4).filter(|_| post(&balancer, path).response().status == 502).count();
            assert_eq!((posts(&reset) - reset_before, posts(&good) - good_before), (failed, 4 - failed), "{path}");
            assert!(failed > 0, "{path}");
        }
        balancer.returns_to(&level);
    }

    fn reset_in_the_body_cuts_the_answer(driver) {
        let (go, told) = channel::<()>();
        let told = Mutex::new(told);
        let stub = Stub::start(move |request, connection| {
            let whole = request.path() == "/app";
            let framing = if request.path().ends_with("chunked") {
                "Transfer-Encoding: chunked\r\n\r\n64\r\npart"
            } else {
                "Content-Length: 100\r\n\r\npart"
            };
            if whole {
                return connection.send(&ok("whole"));
            }
            connection.send(format!("HTTP/1.1 200 OK\r\n{framing}").as_bytes());
            told.lock().expect("told").recv_timeout(common::DEADLINE).expect("the client has the head");
            connection.reset();
        });
        let balancer = Balancer::over(driver, &[&stub], undisturbed());
        let level = balancer.level();
        for path in ["/app/length", "/app/chunked"] {
            let mut client = balancer.client();
            client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
            eventually("the head is there", || client.stream.peek(&mut [0; 200]).is_ok_and(|count| count > 40));
            go.send(()).expect("the stub waits");
            // The reset may overtake what the client has not read.
            assert!(client.try_response(false).is_none_or(|response| !response.complete), "{path}");
            assert_eq!(balancer.get("/app").text(), "whole", "others notice nothing");
        }
        assert_eq!(stub.requests().len(), 4, "a request whose answer has begun is not sent again");
        balancer.returns_to(&level);
    }

    fn flapping_backend_costs_no_idempotent_request(driver) {
        let good = Stub::named("good");
        let mut flapping = Stub::named("flapping");
        let balancer = Balancer::over(driver, &[&flapping, &good], json!({}));
        let level = balancer.level();
        let load = Load::start(balancer.address, 4);
        for _ in 0..4 {
            flapping.stop();
            eventually("it is found down", || balancer.backend(0)["state"] == "down");
            flapping = Stub::again(&flapping, |_, connection| connection.send(&ok("flapping")));
            eventually("it is found up", || balancer.backend(0)["state"] == "up");
            eventually("it is used", || !flapping.requests().is_empty());
        }
        assert_eq!(load.finish(), Vec::<String>::new());
        balancer.returns_to(&level);
    }

    fn refused_connects_are_retried_within_the_budget(driver) {
        let stubs = [Stub::named("a"), Stub::named("b"), Stub::named("c")];
        let balancer = Balancer::over(driver, &[&stubs[0], &stubs[1], &stubs[2]], undisturbed());
        eventually("all were found up", || stubs.iter().all(|stub| stub.probes() > 0));
        stubs.iter().for_each(Stub::stop);
        eventually("none listens", || stubs.iter().all(|stub| TcpStream::connect(stub.address).is_err()));
        let level = balancer.level();
        let began = Instant::now();
        let mut client = balancer.client();
        for _ in 0..400 {
            assert_eq!(client.get("/app").status, 503);
        }
        let retries = balancer.status()["retries"].as_u64().expect("a number");
        // 100 saved at the start, a fifth of the requests, ten per second; without a budget it were 800.
        let allowed = 100 + 400 / 5 + 10 * (1 + began.elapsed().as_secs());
        assert!((100..=allowed).contains(&retries), "{retries} retries, {allowed} allowed");
        drop(client);
        balancer.returns_to(&level);
    }

    fn clients_for_whom_there_is_no_descriptor_are_told_503(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        assert_eq!(balancer.get("/app").status, 200);
        let level = balancer.level();
        balancer.limit_descriptors(Some(balancer.descriptors() as u64 + 8));
        let mut clients: Vec<Client> = (0..60).map(|_| balancer.client()).collect();
        let statuses: Vec<u16> = clients
            .iter_mut()
            .map(|client| {
                // One that is turned away need not have been read.
                let _ = client.stream.write_all(b"GET /app HTTP/1.1\r\nHost: test\r\n\r\n");
                client.response().status
            })
            .collect();
        assert!(statuses.iter().all(|status| matches!(status, 200 | 503)), "{statuses:?}");
        assert!(statuses.contains(&503), "{statuses:?}");
        drop(clients);
        eventually("there is room again", || balancer.get("/app").status == 200);
        balancer.limit_descriptors(None);
        let down = balancer.log().iter().any(|line| line.contains("is down"));
        assert!(!down, "that probes cannot connect is not the backend's doing");
        balancer.returns_to(&level);
    }

    fn without_a_single_descriptor_clients_wait_and_nothing_spins(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        assert_eq!(balancer.get("/app").status, 200);
        let level = balancer.level();
        // Below all that are open, so that the spare ones do not help.
        balancer.limit_descriptors(Some(3));
        let mut waiting: Vec<Client> = (0..10).map(|_| balancer.client()).collect();
        for client in &mut waiting {
            client.send("GET /app HTTP/1.1\r\nHost: test\r\n\r\n");
        }
        let mut operator = UnixStream::connect(balancer.directory.path().join("balancer.json.sock")).expect("it waits");
        operator.set_read_timeout(Some(common::DEADLINE)).expect("a timeout");
        operator.write_all(b"GET /status HTTP/1.1\r\n\r\n").expect("sent");
        let before = balancer.cpu_ticks();
        std::thread::sleep(Duration::from_secs(1));
        let used = balancer.cpu_ticks() - before;
        assert!(used < 50, "{used} hundredths of a second of CPU time in one second of waiting");
        balancer.limit_descriptors(None);
        for client in &mut waiting {
            assert_eq!(client.response().text(), "a");
        }
        let mut answer = String::new();
        operator.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        drop(waiting);
        balancer.returns_to(&level);
    }
}
