//! Requests that wait in the balancer for a backend with room.

mod common;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use common::{Balancer, Client, DEADLINE, Stub, eventually, ok};
use serde_json::{Value, json};

/// A backend that holds each answer until it is told to give one.
struct Holding {
    stub: Stub,
    give: Sender<()>,
}

impl Holding {
    fn start() -> Self {
        let (give, told) = channel();
        let told: Arc<Mutex<Receiver<()>>> = Arc::new(Mutex::new(told));
        let stub = Stub::start(move |request, connection| {
            // One answer per word, whichever request asks first.
            if told.lock().expect("told").recv_timeout(DEADLINE).is_ok() {
                connection.send(&ok(request.path()));
            }
        });
        Self { stub, give }
    }

    fn give(&self) {
        self.give.send(()).expect("the stub runs");
    }

    fn has(&self, count: usize) {
        eventually("the backend has its requests", || self.stub.requests().len() == count);
    }

    fn paths(&self) -> Vec<String> {
        self.stub.requests().iter().map(|request| request.path().to_owned()).collect()
    }
}

/// One request at a time, and a deadline that no test comes near; `extra` on top.
fn one_at_a_time(driver: &str, backends: &[&Stub], queue: usize, extra: Value) -> Balancer {
    let mut config = common::config_over(backends, json!({}));
    config["clusters"]["app"]["in_flight_max"] = json!(1);
    config["limits"] = json!({ "queue": queue });
    config["timeouts"] = json!({ "deadline_ms": 1_000_000 });
    for (key, value) in extra.as_object().expect("an object") {
        config[key] = value.clone();
    }
    Balancer::start(driver, config)
}

fn queued(balancer: &Balancer) -> u64 {
    balancer.status()["clusters"]["app"]["queue"].as_u64().expect("a number")
}

/// Sends a request that is expected to be the `count`-th to wait.
fn join(balancer: &Balancer, path: &str, count: u64) -> Client {
    let mut client = balancer.client();
    client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
    eventually("it waits", || queued(balancer) == count);
    client
}

fn hold(balancer: &Balancer, backend: &Holding) -> Client {
    let mut client = balancer.client();
    client.send("GET /app/held HTTP/1.1\r\nHost: test\r\n\r\n");
    backend.has(1);
    client
}

on_both_drivers! {
    fn requests_wait_in_the_order_of_their_arrival(driver) {
        let backend = Holding::start();
        let balancer = one_at_a_time(driver, &[&backend.stub], 8, json!({ "threads": 4 }));
        let held = hold(&balancer, &backend);
        // Whichever threads they come to.
        let waiting: Vec<Client> =
            (1..=6).map(|n| join(&balancer, &format!("/app/{n}"), n)).collect();
        assert_eq!((balancer.backend(0)["in_flight"].clone(), balancer.backend(0)["limit"].clone()), (json!(1), json!(1)));
        for (index, mut client) in std::iter::once(held).chain(waiting).enumerate() {
            backend.give();
            assert_eq!(client.response().status, 200);
            backend.has((index + 2).min(7));
        }
        let expected: Vec<String> = std::iter::once("/app/held".to_owned()).chain((1..=6).map(|n| format!("/app/{n}"))).collect();
        assert_eq!(backend.paths(), expected);
        assert_eq!((queued(&balancer), balancer.status()["overloaded"].clone()), (0, json!(0)));
    }

    fn backend_is_chosen_when_one_has_room(driver) {
        let (one, two) = (Holding::start(), Holding::start());
        let balancer = one_at_a_time(driver, &[&one.stub, &two.stub], 8, json!({}));
        let mut clients = vec![balancer.client(), balancer.client()];
        for client in &mut clients {
            client.send("GET /app/held HTTP/1.1\r\nHost: test\r\n\r\n");
        }
        one.has(1);
        two.has(1);
        let mut waiting = join(&balancer, "/app/late", 1);
        // Not bound to either before: it goes where room is.
        two.give();
        two.has(2);
        two.give();
        assert_eq!(waiting.response().text(), "/app/late");
        one.give();
        assert!(clients.iter_mut().all(|client| client.response().status == 200));
        assert_eq!(one.stub.requests().len(), 1);
    }

    fn full_queue_refuses_at_once_and_says_when_to_come_again(driver) {
        let backend = Holding::start();
        let balancer = one_at_a_time(driver, &[&backend.stub], 1, json!({}));
        let mut held = hold(&balancer, &backend);
        let mut waiting = join(&balancer, "/app/waits", 1);
        let mut client = balancer.client();
        let refused = client.get("/app/refused");
        assert_eq!((refused.status, refused.field("retry-after")), (503, Some("1")));
        // The connection is as good as before.
        assert_eq!(client.get("/status").status, 200);
        assert_eq!(balancer.status()["overloaded"], 1);
        let metrics = balancer.get("/metrics").text();
        for line in [
            "balancer_requests_overloaded_total 1",
            "balancer_cluster_queue{cluster=\"app\"} 1",
            "balancer_backend_limit{cluster=\"app\",backend=\"i-0\"} 1",
        ] {
            assert!(metrics.lines().any(|found| found == line), "{line} in {metrics}");
        }
        backend.give();
        backend.give();
        assert_eq!((held.response().status, waiting.response().status), (200, 200));
        assert_eq!(backend.paths(), ["/app/held", "/app/waits"]);
    }

    fn no_queue_refuses_whatever_is_beyond_the_limit(driver) {
        let backend = Holding::start();
        let balancer = one_at_a_time(driver, &[&backend.stub], 0, json!({}));
        let mut held = hold(&balancer, &backend);
        assert_eq!(balancer.get("/app/refused").status, 503);
        backend.give();
        assert_eq!(held.response().status, 200);
    }

    fn client_that_goes_away_leaves_the_queue(driver) {
        let backend = Holding::start();
        let balancer = one_at_a_time(driver, &[&backend.stub], 8, json!({}));
        let mut held = hold(&balancer, &backend);
        let impatient = join(&balancer, "/app/impatient", 1);
        let mut patient = join(&balancer, "/app/patient", 2);
        drop(impatient);
        eventually("its place is free", || queued(&balancer) == 1);
        backend.give();
        backend.give();
        assert_eq!((held.response().status, patient.response().text().as_str()), (200, "/app/patient"));
        assert_eq!(backend.paths(), ["/app/held", "/app/patient"]);
        eventually("it is counted", || balancer.status()["cancelled"] == 1);
    }

    fn place_of_a_request_that_is_given_up_by_its_client_is_free_for_the_next(driver) {
        let backend = Holding::start();
        let balancer = one_at_a_time(driver, &[&backend.stub], 8, json!({}));
        let held = hold(&balancer, &backend);
        let mut waiting = join(&balancer, "/app/next", 1);
        // Its backend still works, and nobody waits for it: a connection closed before the answer.
        drop(held);
        backend.has(2);
        backend.give();
        backend.give();
        assert_eq!(waiting.response().text(), "/app/next");
    }

    fn backend_that_comes_to_hand_is_used_by_who_waits(driver) {
        let (busy, late) = (Holding::start(), Holding::start());
        late.stub.set_healthy(false);
        let balancer = one_at_a_time(driver, &[&busy.stub, &late.stub], 8, json!({}));
        eventually("the probe finds it", || balancer.backend(1)["state"] == "down");
        let mut held = hold(&balancer, &busy);
        let mut waiting = join(&balancer, "/app/waits", 1);
        late.stub.set_healthy(true);
        late.give();
        assert_eq!(waiting.response().text(), "/app/waits");
        assert_eq!(late.stub.requests().len(), 1);
        busy.give();
        assert_eq!(held.response().status, 200);
    }

    fn who_waits_when_the_last_backend_goes_is_refused(driver) {
        let backend = Holding::start();
        let mut config = json!({});
        config["threads"] = json!(1);
        let balancer = one_at_a_time(driver, &[&backend.stub], 8, config);
        let mut held = hold(&balancer, &backend);
        let mut waiting = join(&balancer, "/app/waits", 1);
        backend.stub.set_healthy(false);
        assert_eq!(waiting.response().status, 503);
        backend.give();
        assert_eq!(held.response().status, 200);
    }

    fn requests_that_wait_are_served_while_draining(driver) {
        let backend = Holding::start();
        let timeouts = json!({ "timeouts": { "deadline_ms": 1_000_000, "drain_ms": 20_000 } });
        let mut balancer = one_at_a_time(driver, &[&backend.stub], 8, timeouts);
        let mut held = hold(&balancer, &backend);
        let mut waiting = join(&balancer, "/app/waits", 1);
        balancer.signal("TERM");
        balancer.wait_log(&["draining"]);
        backend.give();
        backend.give();
        assert_eq!((held.response().status, waiting.response().text().as_str()), (200, "/app/waits"));
        drop((held, waiting));
        assert!(balancer.wait_exit().success());
    }

    fn requests_that_wait_when_the_drain_time_is_over_are_refused(driver) {
        let backend = Holding::start();
        let timeouts = json!({ "timeouts": { "deadline_ms": 1_000_000, "drain_ms": 200 } });
        let mut balancer = one_at_a_time(driver, &[&backend.stub], 8, timeouts);
        let _held = hold(&balancer, &backend);
        let mut waiting = join(&balancer, "/app/waits", 1);
        balancer.signal("TERM");
        assert_eq!(waiting.response().status, 503);
        assert!(waiting.is_closed());
        assert!(balancer.wait_exit().success());
    }

    fn reload_serves_who_waits(driver) {
        let backend = Holding::start();
        let balancer = one_at_a_time(driver, &[&backend.stub], 8, json!({}));
        let mut held = hold(&balancer, &backend);
        let mut waiting = join(&balancer, "/app/waits", 1);
        let text = std::fs::read(balancer.config_path()).expect("read");
        balancer.reload(&serde_json::from_slice(&text).expect("JSON"));
        backend.give();
        backend.give();
        assert_eq!((held.response().status, waiting.response().text().as_str()), (200, "/app/waits"));
    }

    fn limit_is_learnt_and_what_cannot_be_answered_in_time_is_refused_at_once(driver) {
        let backend = Holding::start();
        // No answer is in time, so a backend gets the least, which is four at once; and nobody may wait.
        let mut config = common::config_over(&[&backend.stub], json!({ "timeouts": { "deadline_ms": 1 } }));
        config["limits"] = json!({ "queue": 8 });
        let balancer = Balancer::start(driver, config);
        let mut first = hold(&balancer, &backend);
        assert_eq!(balancer.backend(0)["limit"], Value::Null, "nothing is known of it");
        backend.give();
        assert_eq!(first.response().status, 200);
        eventually("it is learnt", || balancer.backend(0)["limit"] == 4);
        let mut held: Vec<Client> = (0..4)
            .map(|_| {
                let mut client = balancer.client();
                client.send("GET /app/held HTTP/1.1\r\nHost: test\r\n\r\n");
                client
            })
            .collect();
        backend.has(5);
        assert_eq!(balancer.get("/app/refused").status, 503);
        (0..4).for_each(|_| backend.give());
        assert!(held.iter_mut().all(|client| client.response().status == 200));
        assert_eq!(balancer.status()["overloaded"], 1);
        balancer.reload(&common::config_over(&[&backend.stub], json!({})));
        assert_eq!(balancer.backend(0)["limit"], Value::Null, "without a deadline nothing is learnt");
    }
}
