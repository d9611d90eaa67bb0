//! What clients see when backends or other clients misbehave.

#![allow(clippy::disallowed_methods, reason = "one test must know how long it took")]

mod common;

use std::io::Write;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use common::{Balancer, Client, Stub, eventually, ok};
use serde_json::json;

/// Probes that change nothing while a test runs, so that only requests find out about a backend.
fn lazy_probes() -> serde_json::Value {
    json!({ "clusters": { "app": { "probe": { "interval_ms": 60_000, "fall": 100 } } } })
}

/// A cluster of one backend that breaks off as told by the path, over two balancer threads.
fn breaking() -> Stub {
    Stub::start(|request, connection| {
        let kind = request.path().rsplit('/').next().unwrap_or("").to_owned();
        let answer: &[u8] = match kind.as_str() {
            "before" => b"",
            "in-head" => b"HTTP/1.1 200 OK\r\nContent-",
            "in-length" => b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
            "in-chunk" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nwor",
            "garbage" => b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "both" => b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "two-lengths" => b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            "bare-lf" => b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
            "space" => b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
            "fold" => b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
            "switch" => b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            "bad-chunk" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            _ => return connection.send(&ok("fine")),
        };
        connection.send(answer);
        connection.close();
    })
}

on_both_drivers! {
    fn backend_that_dies_or_lies_before_its_answer_gives_502(driver) {
        let stub = breaking();
        let extra = json!({ "clusters": { "app": { "ejection": { "failures_in_row": 0 } } } });
        let balancer = Balancer::over(driver, &[&stub], extra);
        let kinds =
            ["before", "in-head", "garbage", "both", "two-lengths", "bare-lf", "space", "fold", "switch", "bad-chunk"];
        for kind in kinds {
            let mut client = balancer.client();
            let response = client.get(&format!("/app/{kind}"));
            assert_eq!(response.status, 502, "{kind}");
            assert_eq!(response.text(), "{\"error\":\"bad gateway\"}\n", "{kind}");
            // The request was read to its end, so the client's connection is as good as before.
            assert_eq!(client.get("/app/fine").text(), "fine", "{kind}");
        }
        assert_eq!(balancer.backend(0)["in_flight"], 0);
    }

    fn answer_that_is_cut_is_never_taken_for_a_whole_one(driver) {
        let stub = breaking();
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        for kind in ["in-length", "in-chunk"] {
            let mut client = balancer.client();
            client.send(format!("GET /app/{kind} HTTP/1.1\r\nHost: test\r\n\r\n"));
            // The reset may overtake what was sent before it.
            let response = client.try_response(false);
            assert!(response.is_none_or(|response| !response.complete), "{kind}");
        }
        assert_eq!(balancer.backend(0)["errors"], 2);
    }

    fn refused_connects_are_tried_elsewhere(driver) {
        let (dying, stub) = (Stub::named("dying"), Stub::named("alive"));
        let mut extra = lazy_probes();
        extra["policy"] = json!("round-robin");
        let balancer = Balancer::over(driver, &[&dying, &stub], extra);
        eventually("both were found up", || dying.probes() > 0 && stub.probes() > 0);
        dying.stop();
        for _ in 0..20 {
            let response = balancer.get("/app");
            assert_eq!((response.status, response.text().as_str()), (200, "alive"));
            let mut client = balancer.client();
            client.send("POST /app HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi");
            assert_eq!(client.response().status, 200, "nothing was sent, so any method may be tried again");
        }
        let retries = balancer.status()["retries"].as_u64();
        assert!(retries > Some(0), "{retries:?}");
    }

    fn backend_killed_under_load_costs_no_idempotent_request(driver) {
        let (one, two) = (Stub::named("one"), Stub::named("two"));
        let balancer = Balancer::over(driver, &[&one, &two], json!({ "policy": "round-robin" }));
        let address = balancer.address;
        let clients: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(move || {
                    let mut client = Client::connect(address);
                    let statuses = (0..200).map(|_| client.get("/app").status);
                    statuses.filter(|status| *status != 200).collect::<Vec<_>>()
                })
            })
            .collect();
        eventually("both are in use", || one.requests().len() > 20 && two.requests().len() > 20);
        one.stop();
        let failed: Vec<u16> = clients.into_iter().flat_map(|client| client.join().expect("no panic")).collect();
        let status = balancer.status();
        assert!(failed.is_empty(), "no answer had begun, so each could be sent again: {failed:?} {status}");
        eventually("the probe finds it", || balancer.backend(0)["state"] == "down");
        assert_eq!(balancer.get("/app").text(), "two");
    }

    fn request_whose_backend_dies_without_a_byte_is_sent_again_only_if_idempotent(driver) {
        let (dying, good) = (breaking(), Stub::named("good"));
        let extra = json!({ "threads": 1, "policy": "round-robin", "clusters": { "app": { "ejection": { "failures_in_row": 0 } } } });
        let balancer = Balancer::over(driver, &[&dying, &good], extra);
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
            for _ in 0..4 {
                let mut client = balancer.client();
                client.send(format!("{method} /app/before HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi"));
                let response = client.try_response(method == "HEAD").expect("an answer");
                assert_eq!(response.status, 200, "{method}");
            }
        }
        let tried = |stub: &Stub| stub.requests().iter().filter(|r| r.line.starts_with("POST")).count();
        let statuses: Vec<u16> = (0..8)
            .map(|_| {
                let mut client = balancer.client();
                client.send("POST /app/before HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi");
                client.response().status
            })
            .collect();
        let failed = statuses.iter().filter(|status| **status == 502).count();
        assert!(failed > 0, "{statuses:?}");
        assert_eq!((tried(&dying), tried(&good)), (failed, 8 - failed), "each POST went to one backend");
        // A byte of an answer came, so nothing is sent again.
        assert!((0..8).any(|_| balancer.get("/app/in-head").status == 502));
    }

    fn retries_stay_within_their_budget_when_everything_fails(driver) {
        let stubs = [breaking(), breaking(), breaking()];
        let extra = json!({ "threads": 1, "clusters": { "app": { "ejection": { "failures_in_row": 0 } } } });
        let balancer = Balancer::over(driver, &[&stubs[0], &stubs[1], &stubs[2]], extra);
        let began = Instant::now();
        let mut client = balancer.client();
        for _ in 0..400 {
            assert_eq!(client.get("/app/before").status, 502);
        }
        let retries = balancer.status()["retries"].as_u64().expect("a number");
        // 100 saved at the start, a fifth of the requests, ten per second; without a budget it were 800.
        let allowed = 100 + 400 / 5 + 10 * (1 + began.elapsed().as_secs());
        assert!((100..=allowed).contains(&retries), "{retries} retries, {allowed} allowed");
        let sent: usize = stubs.iter().map(|stub| stub.requests().len()).sum();
        assert_eq!(sent as u64, 400 + retries);
    }

    fn all_down_is_503_at_once_and_service_resumes_when_one_heals(driver) {
        let stub = Stub::named("a");
        stub.set_healthy(false);
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        eventually("the probe fails", || balancer.backend(0)["state"] == "down");
        let mut client = balancer.client();
        for _ in 0..3 {
            let response = client.get("/app");
            assert_eq!((response.status, response.field("retry-after")), (503, Some("1")));
        }
        assert!(stub.requests().is_empty());
        stub.set_healthy(true);
        eventually("it serves again", || client.get("/app").status == 200);
    }

    fn kept_connection_closed_by_its_backend_is_replaced_unnoticed(driver) {
        let stub = Stub::start(|_, connection| connection.send(&ok("a")));
        let balancer = Balancer::over(driver, &[&stub], json!({ "threads": 1 }));
        let mut client = balancer.client();
        for _ in 0..10 {
            assert_eq!(client.get("/app").status, 200);
            stub.close_connections();
            client.send("POST /app HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi");
            assert_eq!(client.response().status, 200, "not idempotent, so the connection is looked at first");
            stub.close_connections();
        }
    }

    fn connection_that_dies_at_the_moment_of_reuse_is_retried_for_get_only(driver) {
        // Answers the first request of a connection, and closes on the second without a word.
        let stub = Stub::start(|request, connection| {
            if request.before == 0 { connection.send(&ok("a")) } else { connection.close() }
        });
        let balancer = Balancer::over(driver, &[&stub], json!({ "threads": 1 }));
        let mut client = balancer.client();
        assert_eq!(client.get("/app").status, 200);
        assert_eq!(client.get("/app").status, 200, "sent again on a new connection");
        client.send("POST /app HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(client.response().status, 502, "may have been done, so it is not done again");
        let posts = stub.requests().iter().filter(|request| request.line.starts_with("POST")).count();
        assert_eq!(posts, 1);
        assert_eq!(balancer.status()["retries"], 1);
    }

    fn surplus_after_an_answer_never_reaches_another_client(driver) {
        let stub = Stub::start(|request, connection| {
            let mut answer = ok(request.path());
            answer.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison");
            connection.send(&answer);
        });
        let balancer = Balancer::over(driver, &[&stub], json!({ "threads": 1 }));
        for n in 0..20 {
            let path = format!("/app/{n}");
            assert_eq!(balancer.get(&path).text(), path);
        }
    }

    fn silent_backend_gives_504_and_others_notice_nothing(driver) {
        let stub = Stub::start(|request, connection| {
            if !request.path().ends_with("silent") {
                connection.send(&ok("a"));
            }
        });
        let extra = json!({ "threads": 1, "timeouts": { "response_ms": 300 } });
        let balancer = Balancer::over(driver, &[&stub], extra);
        let mut waiting = balancer.client();
        waiting.send("GET /app/silent HTTP/1.1\r\nHost: test\r\n\r\n");
        for _ in 0..10 {
            assert_eq!(balancer.get("/app").status, 200);
        }
        assert_eq!(waiting.response().status, 504);
        assert_eq!(waiting.get("/app").status, 200, "the client's connection goes on");
    }

    fn upload_may_take_longer_than_the_answer(driver) {
        let stub = Stub::echo();
        let extra = json!({ "timeouts": { "response_ms": 200, "body_idle_ms": 10_000 } });
        let balancer = Balancer::over(driver, &[&stub], extra);
        let mut client = balancer.client();
        client.send("POST /app HTTP/1.1\r\nHost: test\r\nContent-Length: 8\r\n\r\n");
        let began = Instant::now();
        for byte in b"slowness" {
            client.send([*byte]);
            // The pace is what is tested here: together the pauses are longer than the answer may take.
            std::thread::sleep(Duration::from_millis(60));
        }
        assert!(began.elapsed() > Duration::from_millis(400));
        assert_eq!(client.response().text(), "slowness");
    }

    fn slow_heads_and_bodies_are_cut_off(driver) {
        let stub = Stub::echo();
        let extra = json!({ "timeouts": { "head_ms": 300, "body_idle_ms": 300, "keepalive_ms": 300 } });
        let balancer = Balancer::over(driver, &[&stub], extra);
        let mut head = balancer.client();
        head.send("GET /app HTTP/1.1\r\nHo");
        let mut body = balancer.client();
        body.send("POST /app HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nfive.");
        let mut silent = balancer.client();
        let mut idle = balancer.client();
        assert_eq!(idle.get("/app").status, 200);
        assert_eq!(head.response().status, 408);
        assert!(head.is_closed());
        assert_eq!(body.response().status, 408);
        assert!(body.is_closed());
        assert!(silent.is_closed());
        assert!(idle.is_closed());
        eventually("nothing is left in flight", || balancer.backend(0)["in_flight"] == 0);
    }

    fn client_that_aborts_leaves_nothing_in_flight(driver) {
        let stub = Stub::start(|_, connection| {
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
            let piece = vec![0; 64 << 10];
            while connection.stream.write_all(&piece).is_ok() {}
        });
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        for _ in 0..5 {
            let mut client = balancer.client();
            client.send("GET /app HTTP/1.1\r\nHost: test\r\n\r\n");
            eventually("it has begun", || client.stream.peek(&mut [0; 1]).is_ok_and(|count| count > 0));
            drop(client);
        }
        let mut half = balancer.client();
        half.send("POST /app HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\npart");
        half.stream.shutdown(Shutdown::Both).expect("shut down");
        eventually("nothing is in flight", || balancer.backend(0)["in_flight"] == 0);
        assert_eq!(balancer.backend(0)["errors"], 0, "a client that leaves is not the backend's fault");
        assert_eq!(balancer.backend(0)["state"], "up");
    }

    fn connections_over_the_limit_are_told_503(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], json!({ "limits": { "connections": 3 } }));
        let mut kept: Vec<Client> = (0..3).map(|_| balancer.client()).collect();
        for client in &mut kept {
            assert_eq!(client.get("/app").status, 200);
        }
        let mut over = balancer.client();
        assert_eq!(over.response().status, 503);
        assert!(over.is_closed());
        for client in &mut kept {
            assert_eq!(client.get("/app").status, 200, "those within go on");
        }
        kept.pop();
        eventually("a place is free again", || {
            let mut client = balancer.client();
            client.send("GET /app HTTP/1.1\r\nHost: test\r\n\r\n");
            client.response().status == 200
        });
    }

    fn bodies_over_the_limit_are_told_503(driver) {
        let stub = Stub::echo();
        let balancer = Balancer::over(driver, &[&stub], json!({ "limits": { "bodies": 2 } }));
        let open = || {
            let mut client = balancer.client();
            client.send("POST /app HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n12345");
            client
        };
        let mut streaming = vec![open(), open()];
        eventually("both stream", || balancer.backend(0)["in_flight"] == 2);
        assert_eq!(open().response().status, 503);
        assert_eq!(balancer.get("/app").status, 200, "a request without a body goes through");
        for client in &mut streaming {
            client.send("67890");
            assert_eq!(client.response().text(), "1234567890");
        }
    }

    fn heads_over_the_limit_are_told_so(driver) {
        let stub = Stub::named("a");
        let extra = json!({ "limits": { "head_bytes": 2000, "target_bytes": 500, "fields": 10 } });
        let balancer = Balancer::over(driver, &[&stub], extra);
        let status = |request: String| {
            let mut client = balancer.client();
            client.send(request);
            let response = client.response();
            assert!(client.is_closed());
            response.status
        };
        let long = "x".repeat(3000);
        let fields = "A: b\r\n".repeat(20);
        assert_eq!(status(format!("GET /app HTTP/1.1\r\nHost: test\r\nLong: {long}\r\n\r\n")), 431);
        assert_eq!(status(format!("GET /app HTTP/1.1\r\nHost: test\r\nLong: {long}")), 431);
        assert_eq!(status(format!("GET /app HTTP/1.1\r\nHost: test\r\n{fields}\r\n")), 431);
        assert_eq!(status(format!("GET /app/{long} HTTP/1.1\r\nHost: test\r\n\r\n")), 414);
        assert_eq!(status(format!("GET /app/{} HTTP/1.1\r\nHost: test\r\n\r\n", &long[..600])), 414);
        assert!(stub.requests().is_empty());
    }

    fn fast_errors_attract_no_traffic_over_sockets_either(driver) {
        let sick = Stub::start(|_, connection| {
            connection.send(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n");
        });
        let good = Stub::named("good");
        let balancer = Balancer::over(driver, &[&sick, &good], json!({ "threads": 1 }));
        let mut client = balancer.client();
        let failed = (0..300).filter(|_| client.get("/app").status != 200).count();
        assert!(failed < 30, "{failed} of 300 failed");
    }

    fn backend_without_probe_success_is_left_alone_until_it_heals(driver) {
        let (sick, good) = (Stub::named("sick"), Stub::named("good"));
        sick.set_healthy(false);
        let balancer = Balancer::over(driver, &[&sick, &good], json!({ "policy": "round-robin" }));
        eventually("the probe fails", || balancer.backend(0)["state"] == "down");
        for _ in 0..10 {
            assert_eq!(balancer.get("/app").text(), "good");
        }
        sick.set_healthy(true);
        eventually("it is used again", || balancer.get("/app").text() == "sick");
    }

    fn first_probe_does_not_hold_up_the_first_request(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], lazy_probes());
        assert_eq!(balancer.get("/app").status, 200);
    }
}
