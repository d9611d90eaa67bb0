//! What the balancer writes about itself and about requests.

mod common;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Balancer, Stub, config_over, eventually, ok};
use serde_json::{Value, json};

/// A balancer with an access log in JSON.
fn logging(driver: &str, path: &Path, config: Value) -> Balancer {
    let access = format!("--access-log={}", path.display());
    Balancer::start_with(driver, &[&access, "--log-format", "json"], config)
}

/// The lines of a log, once there are `count`.
#[track_caller]
fn lines(path: &Path, count: usize) -> Vec<Value> {
    let read = || std::fs::read_to_string(path).unwrap_or_default();
    eventually("the lines are written", || read().lines().count() >= count);
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
    let lines: Vec<Value> = read().lines().map(parse).collect();
    assert_eq!(lines.len(), count, "{lines:?}");
    lines
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("access.log");
    (directory, path)
}

fn dropped(balancer: &Balancer) -> u64 {
    let metrics = balancer.get("/metrics").text();
    let line = metrics.lines().find_map(|line| line.strip_prefix("balancer_access_log_dropped_total "));
    line.and_then(|count| count.parse().ok()).expect("a counter")
}

on_both_drivers! {
    fn each_request_has_its_line(driver) {
        let (_directory, path) = place();
        let stub = Stub::start(|request, connection| match request.path() {
            "/app/die" => connection.close(),
            "/app/large" => {
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
                connection.send(&vec![b'x'; 1_000_000]);
            }
            _ => connection.send(&ok("fine")),
        });
        let balancer = logging(driver, &path, config_over(&[&stub], json!({})));
        let mut client = balancer.client();
        let mut expected = Vec::new();
        for (request, method, target, status, backend, error) in [
            ("GET /app/x?y=1 HTTP/1.1\r\nHost: t\r\n\r\n", "GET", "/app/x?y=1", 200, Some("i-0"), None),
            ("GET /app/large HTTP/1.1\r\nHost: t\r\n\r\n", "GET", "/app/large", 200, Some("i-0"), None),
            ("GET /nowhere HTTP/1.1\r\nHost: t\r\n\r\n", "GET", "/nowhere", 404, None, None),
            ("POST /app/die HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\nhi", "POST", "/app/die", 502, Some("i-0"),
             Some("backend closed the connection before its answer")),
            ("GET http://h/app/y HTTP/1.1\r\nHost: t\r\n\r\n", "GET", "http://h/app/y", 200, Some("i-0"), None),
        ] {
            client.send(request);
            let response = client.response();
            assert_eq!(response.status, status, "{target}");
            let bytes = response.head.len() + response.body.len();
            expected.push((json!(method), json!(target), json!(status), json!(backend), json!(error), json!(bytes)));
        }
        client.send("GET /app HTTP/1.1\r\nHost: a b\r\n\r\n");
        let response = client.response();
        let bytes = response.head.len() + response.body.len();
        let malformed = json!("request refused: malformed: host");
        expected.push((Value::Null, Value::Null, json!(400), Value::Null, malformed, json!(bytes)));
        let lines = lines(&path, expected.len());
        let found: Vec<_> = lines
            .iter()
            .map(|line| {
                let field = |key: &str| line[key].clone();
                (field("method"), field("target"), field("status"), field("backend"), field("error"), field("bytes"))
            })
            .collect();
        assert_eq!(found, expected);
        for line in &lines {
            assert_eq!(line["client"], "127.0.0.1");
            assert_eq!(line["cluster"].is_null(), line["backend"].is_null());
            assert_eq!(line["latency_us"].is_null(), line["method"].is_null(), "{line}");
            assert!(line["time"].as_str().is_some_and(|time| time.ends_with('Z')));
        }
    }

    fn last_lines_are_written_before_the_end(driver) {
        let (_directory, path) = place();
        let stub = Stub::named("a");
        let mut balancer = logging(driver, &path, config_over(&[&stub], json!({})));
        for _ in 0..20 {
            assert_eq!(balancer.get("/app").status, 200);
        }
        balancer.signal("TERM");
        assert!(balancer.wait_exit().success());
        lines(&path, 20);
    }

    fn renamed_log_is_opened_again_at_the_signal(driver) {
        let (directory, path) = place();
        let stub = Stub::named("a");
        let config = config_over(&[&stub], json!({}));
        let balancer = logging(driver, &path, config.clone());
        assert_eq!(balancer.get("/app/old").status, 200);
        lines(&path, 1);
        let old = directory.path().join("access.log.1");
        std::fs::rename(&path, &old).expect("renamed");
        balancer.reload(&config);
        assert_eq!(balancer.get("/app/new").status, 200);
        let is_new = |line: &Value| line["target"] == "/app/new";
        let read = || std::fs::read_to_string(&path).unwrap_or_default();
        eventually("the new file has the new line", || read().lines().any(|line| line.contains("/app/new")));
        assert!(!std::fs::read_to_string(&old).expect("read").lines().any(|l| is_new(&serde_json::from_str(l).expect("JSON"))));
    }

    fn log_that_nobody_takes_holds_up_no_request(driver) {
        let (_directory, path) = place();
        let made = Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
        assert!(made.success());
        // Open for both, so that neither side waits for the other; nobody reads yet.
        let mut reader = std::fs::File::options().read(true).write(true).open(&path).expect("open");
        let stub = Stub::named("a");
        // Each thread hands on its lines at each tick, so that the queue is soon full.
        let balancer = logging(driver, &path, config_over(&[&stub], json!({ "threads": 8 })));
        let mut clients: Vec<_> = (0..16).map(|_| balancer.client()).collect();
        let target = format!("/app/{}", "x".repeat(2000));
        eventually("lines are dropped", || {
            for client in &mut clients {
                assert_eq!(client.get(&target).status, 200);
            }
            dropped(&balancer) > 0
        });
        let mut piece = [0; 4096];
        let count = reader.read(&mut piece).expect("the first lines");
        assert!(piece[..count].starts_with(b"{\"time\":"), "the first lines were kept");
    }

    fn log_that_cannot_be_written_ends_nothing(driver) {
        let stub = Stub::named("a");
        for json in [&[][..], &["--log-format", "json"]] {
            let mut balancer = Balancer::start_with(driver, json, config_over(&[&stub], json!({})));
            balancer.close_log();
            for path in ["/app/one", "/app/two"] {
                // Both are events: one for the main thread, one for that of the probes.
                balancer.reload(&config_over(&[&stub], json!({})));
                stub.set_healthy(false);
                eventually("the probe has found it down", || balancer.backend(0)["state"] == "down");
                stub.set_healthy(true);
                eventually("the probe has found it up", || balancer.backend(0)["state"] == "up");
                assert_eq!(balancer.get(path).status, 200);
            }
            balancer.signal("TERM");
            assert!(balancer.wait_exit().success());
        }
    }

    fn json_log_has_its_facts_in_fields(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::start_with(driver, &["--log-format", "json"], config_over(&[&stub], json!({})));
        stub.set_healthy(false);
        let down = balancer.wait_log(&["is down"]);
        let event: Value = serde_json::from_str(&down).expect("an object");
        let fields = ["level", "cluster", "backend", "state", "error"].map(|key| event[key].as_str().unwrap_or("none"));
        assert_eq!(fields, ["WARN", "app", "i-0", "down", "status 503"]);
        for line in balancer.log() {
            let event: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
            assert!(event["timestamp"].is_string() && event["message"].is_string(), "{line}");
        }
    }
}

#[test]
fn exit_code_is_the_same_when_nobody_can_read_why() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let program = env!("CARGO_BIN_EXE_balancer");
    let status = Command::new(program).args(["--check", "--config", "/missing"]).stderr(full).status();
    assert_eq!(status.expect("it runs").code(), Some(2));
}

#[test]
fn less_important_events_are_left_out() {
    let stub = Stub::named("a");
    let config = config_over(&[&stub], json!({}));
    let [info, debug] =
        ["info", "debug"].map(|level| Balancer::start_with("epoll", &["--log-level", level], config.clone()));
    stub.set_healthy(false);
    debug.wait_log(&[" DEBUG probe of i-0 of app: status 503"]);
    info.wait_log(&[" WARN backend i-0 of app is down: status 503"]);
    assert!(!info.log().iter().any(|line| line.contains("probe of")));
}

#[test]
fn help_says_what_a_stranger_needs_and_its_configuration_checks() {
    let program = env!("CARGO_BIN_EXE_balancer");
    let output = Command::new(program).arg("--help").output().expect("it runs");
    let help = String::from_utf8(output.stdout).expect("text");
    for word in
        ["HUP", "USR2", "TERM", "Exit codes", "--check", "FILE.sock", "/status", "/metrics", "--access-log"]
    {
        assert!(help.contains(word), "{word}");
    }
    let start = help.find("{ \"listen\"").expect("an example");
    let example = &help[start..start + help[start..].find("\n\n").expect("its end")];
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("balancer.json");
    std::fs::write(&path, example).expect("written");
    let checked = Command::new(program).args(["--check", "--config"]).arg(&path).output().expect("it runs");
    assert!(checked.status.success(), "{example}: {}", String::from_utf8_lossy(&checked.stderr));
}
