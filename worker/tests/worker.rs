//! The worker's program over real sockets: what it answers, refuses and counts. Timings are measured by
//! `worker/measure.py` and not asserted here.

mod support;

use std::net::TcpListener;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use support::{TOKEN, Worker, command, run_to_end};

const FAULTS: [&str; 2] = ["--faults", TOKEN];

#[test]
fn health_and_the_own_cluster_answer_with_the_instance() {
    let worker = Worker::start(&[]);
    let health = worker.get("/");
    assert_eq!(health.status, 200);
    assert_eq!(health.json(), json!({ "status": "ok", "cluster": "cluster1", "instance_id": "i-1" }));
    for path in ["/cluster1", "/cluster1/", "/cluster1/a/b", "/cluster1?x=/cluster2", "/cluster1/?"] {
        let answer = worker.get(path);
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.json(), json!({ "cluster": "cluster1", "instance_id": "i-1" }), "{path}");
        assert_eq!(answer.field("x-instance-id"), Some("i-1"));
        assert_eq!(answer.field("content-type"), Some("application/json"));
    }
}

#[test]
fn other_paths_are_not_found_and_not_counted() {
    let worker = Worker::start(&[]);
    for path in [
        "/cluster2",
        "/cluster12",
        "/cluster",
        "//cluster1",
        "/Cluster1",
        "/admin",
        "/admin/x",
        "/x/cluster1",
    ] {
        let answer = worker.get(path);
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.json()["error"].is_string());
    }
    assert_eq!(worker.stats()["requests"], 0);
}

#[test]
fn a_request_id_is_echoed_escaped_and_cut() {
    let worker = Worker::start(&[]);
    let long = "x".repeat(1000);
    let cut = "x".repeat(128);
    for (sent, echoed) in [("abc-1", "abc-1"), ("a\"b\\c\td", "a\"b\\c\td"), (&long, &cut), ("é", "é")] {
        let answer = worker.connect().ask(&format!("GET /cluster1 HTTP/1.1\r\nX-Request-Id: {sent}\r\n\r\n"));
        let expected = json!({ "cluster": "cluster1", "instance_id": "i-1", "request_id": echoed });
        assert_eq!(answer.json(), expected);
    }
}

#[test]
fn a_body_is_read_and_never_taken_for_a_request() {
    let worker = Worker::start(&[]);
    let mut client = worker.connect();
    let body = "GET /cluster1 HTTP/1.1\r\n\r\n".repeat(5000);
    let head = format!("POST /cluster1 HTTP/1.1\r\ncontent-length: {}\r\nx-request-id: ", body.len());
    for id in ["first", "second"] {
        let answer = client.ask(&format!("{head}{id}\r\n\r\n{body}"));
        assert_eq!(answer.json()["request_id"], id);
    }
    assert_eq!(client.ask("GET / HTTP/1.1\r\n\r\n").status, 200);
    assert_eq!(worker.stats()["requests"], 2);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let worker = Worker::start(&["--work", "1ms", "--emulate", "t2.large"]);
    let mut client = worker.connect();
    let all: String =
        (0..20).map(|id| format!("GET /cluster1 HTTP/1.1\r\nx-request-id: {id}\r\n\r\n")).collect();
    client.send(all.as_bytes());
    for id in 0..20 {
        assert_eq!(client.answer().json()["request_id"], id.to_string());
    }
}

#[test]
fn head_gets_the_head_only_and_the_connection_stays_usable() {
    let worker = Worker::start(&[]);
    let mut client = worker.connect();
    client.send(b"HEAD /cluster1 HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n");
    let head = client.head();
    assert_eq!((head.status, head.field("x-instance-id")), (200, Some("i-1")));
    assert_eq!(client.answer().json()["status"], "ok");
}

#[test]
fn a_connection_is_closed_when_the_client_asks_for_it() {
    let worker = Worker::start(&[]);
    for request in [
        "GET /cluster1 HTTP/1.1\r\nconnection: close\r\n\r\n",
        "GET /cluster1 HTTP/1.1\r\nConnection: x, Close\r\n\r\n",
        "GET /cluster1 HTTP/1.0\r\n\r\n",
    ] {
        let mut client = worker.connect();
        let answer = client.ask(request);
        assert_eq!((answer.status, answer.field("connection")), (200, Some("close")), "{request}");
        assert_eq!(client.rest(), "");
    }
    let mut client = worker.connect();
    for _ in 0..2 {
        let answer = client.ask("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n");
        assert_eq!(answer.field("connection"), Some("keep-alive"));
    }
}

#[test]
fn what_cannot_be_framed_is_refused_and_the_connection_closed() {
    let worker = Worker::start(&[]);
    let smuggled = "GET /cluster1 HTTP/1.1\r\n\r\n";
    for (fields, status) in [
        ("content-length: abc", 400),
        ("content-length: -1", 400),
        ("content-length: +5", 400),
        ("content-length: 5\r\ncontent-length: 6", 400),
        ("content-length: 99999999999999999999999999", 413),
        ("transfer-encoding: chunked", 411),
        ("transfer-encoding: chunked\r\ncontent-length: 5", 411),
    ] {
        let mut client = worker.connect();
        let answer = client.ask(&format!("POST /cluster1 HTTP/1.1\r\n{fields}\r\n\r\n{smuggled}"));
        assert_eq!((answer.status, answer.field("connection")), (status, Some("close")), "{fields}");
        assert_eq!(client.rest(), "", "{fields}");
    }
    assert_eq!(worker.stats()["requests"], 0);
}

#[test]
fn a_body_that_ends_early_is_refused_and_not_served() {
    let worker = Worker::start(&[]);
    let mut client = worker.connect();
    client.send(b"POST /cluster1 HTTP/1.1\r\ncontent-length: 10\r\n\r\n12345");
    client.end_of_requests();
    // may_minihttp answers nothing where the end comes together with the request.
    let rest = client.rest();
    assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 400 "), "{rest}");
    assert_eq!(worker.stats()["requests"], 0);
}

#[test]
fn a_broken_connection_leaves_the_worker_serving() {
    let worker = Worker::start(&[]);
    for bytes in [&b"\x16\x03\x01\x02\x00"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"] {
        let mut client = worker.connect();
        client.send(bytes);
        client.end_of_requests();
        client.rest();
    }
    assert_eq!(worker.get("/").status, 200);
}

#[test]
fn a_taken_port_is_named_and_the_worker_ends() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    check_refusal(&address, &address);
}

/// may sets SO_REUSEPORT, with which the system would let both run.
#[test]
fn a_port_taken_by_another_worker_is_named_and_the_worker_ends() {
    let first = Worker::start(&[]);
    let address = first.address.to_string();
    check_refusal(&address, "in use");
    assert_eq!(first.get("/").status, 200);
}

#[test]
fn an_address_of_another_machine_is_named_and_the_worker_ends() {
    check_refusal("192.0.2.1:8000", "no such address");
}

#[track_caller]
fn check_refusal(listen: &str, said: &str) {
    let output = run_to_end(&["--listen", listen, "--cluster", "cluster1", "--instance-id", "i-2"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(listen) && stderr.contains(said), "{stderr}");
    assert!(output.stdout.is_empty());
}

#[test]
fn wrong_arguments_exit_with_2_and_say_what_to_write() {
    for (option, value, said) in [
        ("--emulate", "t2.mirco", "t2.micro"),
        ("--emulate", "m5.large", "t3.2xlarge"),
        ("--work", "fast", "1ms"),
        ("--work", "5", "5ms"),
        ("--work", "2h", "not a duration"),
        ("--listen", "localhost", "127.0.0.1:8000"),
        ("--listen", "127.0.0.1:99999", "127.0.0.1:8000"),
        ("--cluster", "a/b", "letters"),
        ("--cluster", "admin", "another name"),
        ("--instance-id", "a\r\nb", "letters"),
        ("--faults", "short", "8"),
    ] {
        let mut arguments = vec!["--listen", "127.0.0.1:0", "--cluster", "c", "--instance-id", "i"];
        match arguments.iter().position(|argument| *argument == option) {
            Some(at) => arguments[at + 1] = value,
            None => arguments.extend([option, value]),
        }
        let output = run_to_end(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{option} {value}: {stderr}");
        assert!(stderr.contains(option) && stderr.contains(said), "{option} {value}: {stderr}");
    }
}

#[test]
fn a_wrong_type_in_the_environment_is_an_error_too() {
    let output = command(&["--listen", "127.0.0.1:0", "--cluster", "c", "--instance-id", "i"])
        .env("LABHOST_EMULATE", "t2.larg")
        .output()
        .expect("the worker runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("t2.large"));
}

#[test]
fn the_environment_chooses_the_type_and_the_option_wins() {
    let env = [("LABHOST_EMULATE", "t2.micro")];
    let stats = Worker::start_with_env(&["--work", "1ms"], &env).stats();
    assert_eq!((&stats["type"], &stats["emulated"]), (&json!("t2.micro"), &json!(true)));
    assert_eq!((&stats["slots"], &stats["work_ms"]), (&json!(1), &json!(1.0)));
    let stats = Worker::start_with_env(&["--emulate", "t2.large"], &env).stats();
    assert_eq!((&stats["type"], &stats["slots"]), (&json!("t2.large"), &json!(2)));
}

#[test]
fn sigterm_ends_the_worker_with_0_even_while_it_serves() {
    let mut worker = Worker::start(&["--work", "60s", "--emulate", "t2.micro"]);
    let mut client = worker.connect();
    client.send(b"GET /cluster1 HTTP/1.1\r\n\r\n");
    worker.wait_for_stats("a request in service", |stats| stats["in_service"] == 1);
    kill_process(Pid::from_child(&worker.child), Signal::TERM).expect("the worker runs");
    assert_eq!(worker.wait_for_exit().code(), Some(0));
}

#[test]
fn the_descriptor_limit_is_raised_as_far_as_allowed() {
    let worker = Worker::start(&[]);
    let limits =
        std::fs::read_to_string(format!("/proc/{}/limits", worker.child.id())).expect("the worker runs");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
    let numbers: Vec<_> = line.split_whitespace().filter(|word| word.parse::<u64>().is_ok()).collect();
    assert_eq!(numbers[0], numbers[1], "{line}");
}

#[test]
fn requests_wait_for_one_queue_across_connections() {
    let worker = Worker::start(&["--work", "60s", "--emulate", "t2.large"]);
    let mut clients: Vec<_> = (0..5).map(|_| worker.connect()).collect();
    for client in &mut clients {
        client.send(b"GET /cluster1 HTTP/1.1\r\n\r\n");
    }
    worker.wait_for_stats("two in service and three queued", |stats| {
        (&stats["in_service"], &stats["queued"], &stats["open"]) == (&json!(2), &json!(3), &json!(5))
    });
    assert_eq!(worker.get("/").status, 200, "health does not queue");
}

#[test]
fn every_request_of_many_connections_is_counted() {
    let worker = Worker::start(&["--work", "200us", "--emulate", "t2.large"]);
    let mut clients: Vec<_> = (0..50).map(|_| worker.connect()).collect();
    for _ in 0..3 {
        clients.iter_mut().for_each(|client| client.send(b"GET /cluster1 HTTP/1.1\r\n\r\n"));
        clients.iter_mut().for_each(|client| assert_eq!(client.answer().status, 200));
    }
    let stats = worker.stats();
    assert_eq!((&stats["requests"], &stats["errors"], &stats["open"]), (&json!(150), &json!(0), &json!(0)));
    assert_eq!((&stats["in_service"], &stats["queued"]), (&json!(0), &json!(0)));
    assert!(stats["cpu_s"].as_f64().expect("a number") > 0.0);
}

#[test]
fn work_that_is_not_emulated_is_burnt_as_cpu_time() {
    let worker = Worker::start(&["--work", "2ms"]);
    for _ in 0..10 {
        assert_eq!(worker.get("/cluster1").status, 200);
    }
    let stats = worker.stats();
    assert!(stats["cpu_s"].as_f64().expect("a number") >= 0.02, "{stats}");
    assert_eq!((&stats["type"], &stats["emulated"]), (&json!(null), &json!(false)));
}

#[test]
fn credits_are_shown_where_they_are_emulated() {
    let worker = Worker::start(&["--emulate", "t2.large", "--work", "1ms", "--credits"]);
    assert!(worker.stats()["credits"].as_f64().expect("a number") >= 60.0, "launch credits of two vCPUs");
    let real = Worker::start(&["--work", "1ms", "--credits"]);
    assert_eq!(real.stats()["credits"], json!(null), "a real machine has its own");
}

#[test]
fn without_a_token_of_its_own_the_fault_switch_does_not_exist() {
    let worker = Worker::start(&[]);
    assert_eq!(worker.fault("error_rate=1").status, 404);
    assert_eq!(worker.get("/cluster1").status, 200);
}

#[test]
fn the_fault_switch_wants_the_token_in_every_call() {
    let worker = Worker::start(&FAULTS);
    let wrong = TOKEN.replace("token", "tokem");
    for fields in ["", &format!("x-fault-token: {wrong}\r\n"), "x-fault-token: \r\n", "authorization: x\r\n"]
    {
        let request = format!("POST /admin/fault?error_rate=1 HTTP/1.1\r\n{fields}\r\n");
        assert_eq!(worker.connect().ask(&request).status, 404, "{fields}");
    }
    assert_eq!(worker.get("/cluster1").status, 200);
    let answer = worker.fault("delay=1ms&speed=0.5");
    let expected = json!({ "delay_ms": 1.0, "speed": 0.5, "error_rate": 0.0, "stall": false });
    assert_eq!((answer.status, answer.json()), (200, expected));
    assert_eq!(worker.get("/cluster1").status, 200);
    assert_eq!(worker.stats()["speed"], 0.5);
}

#[test]
fn the_token_can_come_from_the_environment() {
    let worker = Worker::start_with_env(&[], &[("LABHOST_FAULTS", TOKEN)]);
    assert_eq!(worker.fault("").status, 200);
}

#[test]
fn a_wrong_fault_is_refused_and_changes_nothing() {
    let worker = Worker::start(&FAULTS);
    let answer = worker.fault("error_rate=1&dealy=1ms");
    assert_eq!(answer.status, 400);
    assert!(answer.json()["error"].as_str().expect("text").contains("delay"), "{answer:?}");
    assert_eq!(worker.get("/cluster1").status, 200);
}

#[test]
fn injected_errors_are_answered_and_counted_but_leave_health_alone() {
    let worker = Worker::start(&FAULTS);
    worker.fault("error_rate=0.5");
    let statuses: Vec<_> = (0..4).map(|_| worker.get("/cluster1").status).collect();
    assert_eq!(statuses, [200, 500, 200, 500]);
    assert_eq!(worker.get("/").status, 200);
    worker.fault("clear");
    assert_eq!(worker.get("/cluster1").status, 200);
    let stats = worker.stats();
    assert_eq!((&stats["requests"], &stats["errors"]), (&json!(5), &json!(2)));
}

#[test]
fn a_stall_holds_requests_and_health_until_it_is_cleared() {
    let worker = Worker::start(&FAULTS);
    worker.fault("stall=true");
    let (mut request, mut health) = (worker.connect(), worker.connect());
    request.send(b"GET /cluster1 HTTP/1.1\r\n\r\n");
    health.send(b"GET / HTTP/1.1\r\n\r\n");
    worker.wait_for_stats("a held request", |stats| stats["open"] == 1);
    worker.fault("clear");
    assert_eq!(request.answer().status, 200);
    assert_eq!(health.answer().status, 200);
    assert_eq!(worker.stats()["open"], 0);
}
