//! The process: start, check, reload, drain, status, admin.

mod common;

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc::RecvTimeoutError;

use common::{Balancer, Client, Stub, admin, config_over, eventually, ok};
use serde_json::{Value, json};

/// Runs the program to its end on a configuration that is written as it is.
fn run(arguments: &[&str], config: &str) -> Output {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("balancer.json");
    std::fs::write(&path, config).expect("written");
    let program = env!("CARGO_BIN_EXE_balancer");
    Command::new(program).args(arguments).arg("--config").arg(&path).output().expect("it runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

on_both_drivers! {
    fn backend_removed_by_a_reload_finishes_what_it_has(driver) {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Mutex::new(held);
        let old = Stub::start(move |_, connection| {
            held.lock().expect("held").recv().expect("released");
            connection.send(&ok("old"));
        });
        let new = Stub::named("new");
        let balancer = Balancer::over(driver, &[&old], json!({}));
        let mut waiting = balancer.client();
        waiting.send("GET /app HTTP/1.1\r\nHost: test\r\n\r\n");
        eventually("the old backend has it", || old.requests().len() == 1);
        let config = json!({ "clusters": { "app": { "backends": [{ "id": "new", "address": new.address.to_string() }] } } });
        balancer.reload(&config_over(&[], config));
        assert_eq!(balancer.get("/app").text(), "new");
        let states: Vec<_> = (0..2).map(|n| (balancer.backend(n)["id"].clone(), balancer.backend(n)["state"].clone())).collect();
        assert_eq!(states, [(json!("new"), json!("up")), (json!("i-0"), json!("draining"))]);
        release.send(()).expect("the stub waits");
        assert_eq!(waiting.response().text(), "old");
        eventually("it is gone", || balancer.backend(1).is_null());
    }

    fn drain_loses_no_answer_and_exits_0(driver) {
        let stub = Stub::start(|_, connection| connection.send(&ok("a")));
        let mut balancer = Balancer::over(driver, &[&stub], json!({ "timeouts": { "drain_ms": 10_000 } }));
        let mut kept: Vec<Client> = (0..8).map(|_| balancer.client()).collect();
        for client in &mut kept {
            assert_eq!(client.get("/app").status, 200);
        }
        balancer.signal("TERM");
        balancer.wait_log(&["draining"]);
        for client in &mut kept {
            let response = client.get("/app");
            assert_eq!((response.status, response.field("connection")), (200, Some("close")));
            assert!(response.complete && client.is_closed());
        }
        assert!(balancer.wait_exit().success());
    }

    fn drain_waits_for_what_is_in_flight(driver) {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Mutex::new(held);
        let stub = Stub::start(move |_, connection| {
            held.lock().expect("held").recv().expect("released");
            connection.send(&ok("late"));
        });
        let mut balancer = Balancer::over(driver, &[&stub], json!({}));
        let mut client = balancer.client();
        client.send("GET /app HTTP/1.1\r\nHost: test\r\n\r\n");
        eventually("it is in flight", || stub.requests().len() == 1);
        balancer.signal("TERM");
        balancer.wait_log(&["draining"]);
        release.send(()).expect("the stub waits");
        assert_eq!(client.response().text(), "late");
        assert!(balancer.wait_exit().success());
    }

    fn idle_clients_do_not_hold_up_the_end_beyond_the_drain_time(driver) {
        let stub = Stub::named("a");
        let mut balancer = Balancer::over(driver, &[&stub], json!({ "timeouts": { "drain_ms": 300 } }));
        let mut idle = balancer.client();
        assert_eq!(idle.get("/app").status, 200);
        balancer.signal("TERM");
        assert!(balancer.wait_exit().success());
        assert!(idle.is_closed());
    }

    fn taken_port_is_a_clear_error(driver) {
        let stub = Stub::named("a");
        let first = Balancer::over(driver, &[&stub], json!({}));
        let config = config_over(&[&stub], json!({ "listen": first.address.to_string() }));
        let output = run(&["--driver", driver], &config.to_string());
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("another process listens there"), "{}", stderr(&output));
        assert_eq!(first.get("/app").status, 200);
    }

    fn status_is_what_jq_reads(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub, &stub], json!({ "policy": "least-outstanding" }));
        for _ in 0..10 {
            assert_eq!(balancer.get("/app").status, 200);
        }
        let status = balancer.status();
        assert_eq!((&status["driver"], &status["threads"]), (&json!(driver), &json!(2)));
        assert_eq!((&status["policy"], &status["draining"]), (&json!("least-outstanding"), &json!(false)));
        assert!(status["version"].is_string() && status["uptime_s"].is_u64());
        let backends = status["clusters"]["app"]["backends"].as_array().expect("an array");
        let sum = |key: &str| backends.iter().map(|b| b[key].as_f64().expect("a number")).sum::<f64>();
        assert_eq!((sum("requests"), sum("share"), sum("errors"), sum("in_flight")), (10.0, 1.0, 0.0, 0.0));
        let used = backends.iter().find(|b| b["requests"].as_u64() > Some(0)).expect("one was used");
        assert!(used["latency_ms"]["p50"].as_f64() <= used["latency_ms"]["p99"].as_f64());
        assert!(used["estimate_ms"].as_f64() > Some(0.0));
        let metrics = balancer.get("/metrics").text();
        assert!(metrics.contains("balancer_backend_requests_total{cluster=\"app\",backend=\"i-0\"} "), "{metrics}");
        assert!(metrics.contains("# TYPE balancer_connections gauge"));
    }

    fn slow_client_of_the_admin_socket_keeps_nobody_waiting_for_long(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let socket = balancer.directory.path().join("balancer.json.sock");
        let mut slow = UnixStream::connect(&socket).expect("the admin socket");
        slow.write_all(b"G").expect("sent");
        let (answered, until_answered) = std::sync::mpsc::channel::<()>();
        let dripping = std::thread::spawn(move || {
            let pause = std::time::Duration::from_millis(100);
            while until_answered.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let _ = slow.write_all(b"G");
            }
        });
        assert!(admin(&socket, "GET /status").contains("\"clusters\""));
        answered.send(()).expect("it drips");
        dripping.join().expect("no panic");
    }

    fn admin_socket_is_private_and_drains_a_backend(driver) {
        let (one, two) = (Stub::named("one"), Stub::named("two"));
        let balancer = Balancer::over(driver, &[&one, &two], json!({ "policy": "round-robin" }));
        let socket = balancer.directory.path().join("balancer.json.sock");
        let mode = std::fs::metadata(&socket).expect("beside the configuration").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(admin(&socket, "POST /clusters/app/backends/i-0/drain").starts_with("HTTP/1.1 200"));
        for _ in 0..6 {
            assert_eq!(balancer.get("/app").text(), "two");
        }
        balancer.reload(&config_over(&[&one, &two], json!({ "policy": "round-robin" })));
        assert_eq!(balancer.backend(0)["state"], "draining", "a reload does not undo what an operator said");
        let (moved, elsewhere) = (Stub::named("one"), Stub::named("elsewhere"));
        balancer.reload(&config_over(&[&moved, &two], json!({ "policy": "round-robin" })));
        assert_eq!(balancer.backend(0)["state"], "draining", "nor does another address");
        balancer.reload(&config_over(&[], json!({ "clusters": { "app": { "backends": [
            { "id": "i-1", "address": two.address.to_string() } ] } } })));
        balancer.reload(&config_over(&[&elsewhere, &two], json!({ "policy": "round-robin" })));
        eventually("one that was gone is wanted again", || balancer.get("/app").text() == "elsewhere");
        assert!(admin(&socket, "POST /clusters/app/backends/i-0/drain").starts_with("HTTP/1.1 200"));
        balancer.reload(&config_over(&[&one, &two], json!({ "policy": "round-robin" })));
        assert_eq!(balancer.backend(0)["state"], "draining");
        assert!(admin(&socket, "POST /clusters/app/backends/i-0/readmit").starts_with("HTTP/1.1 200"));
        eventually("it is used again", || balancer.get("/app").text() == "one");
        assert!(admin(&socket, "POST /clusters/app/backends/nobody/drain").starts_with("HTTP/1.1 404"));
        assert!(admin(&socket, "GET /status").contains("\"clusters\""));
        let mut client = balancer.client();
        client.send("POST /clusters/app/backends/i-0/drain HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client.response().status, 404, "not on the public address");
    }
}

#[test]
fn idle_balancer_is_small() {
    let balancer = Balancer::start("auto", config_over(&[], json!({})));
    let status = std::fs::read_to_string(format!("/proc/{}/status", balancer.pid())).expect("its status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("resident size");
    let kilobytes: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    assert!(kilobytes < 20_000, "{line}");
}

#[test]
fn bad_configurations_are_named_and_mended() {
    let with = |rest: &str| format!("{{ \"listen\": \"127.0.0.1:0\", {rest} }}");
    let app = |rest: &str| with(&format!("\"clusters\": {{ \"app\": {{ \"backends\": [] {rest} }} }}"));
    let cases = [
        ("{ \"listen\": ".to_owned(), vec!["not JSON"]),
        ("[]".to_owned(), vec!["expected an object"]),
        ("{}".to_owned(), vec!["listen: is missing"]),
        ("{ \"listen\": \"localhost:80\" }".to_owned(), vec!["listen", "`localhost:80` is not an address"]),
        (with("\"policy\": \"ours\""), vec!["clusters: is missing"]),
        (with("\"clusters\": {}"), vec!["names no cluster"]),
        (
            with("\"clusters\": { \"status\": { \"backends\": [] } }"),
            vec!["clusters.status", "answers this path itself"],
        ),
        (with("\"clusters\": { \"a/b\": { \"backends\": [] } }"), vec!["clusters.a/b", "path segment"]),
        (with("\"clusters\": { \"app\": {} }"), vec!["clusters.app.backends: is missing"]),
        (app(", \"prob\": {}"), vec!["clusters.app.prob", "did you mean `probe`", "known: backends, probe"]),
        (
            app(", \"probe\": { \"intervall_ms\": 5 }"),
            vec!["clusters.app.probe.intervall_ms", "`interval_ms`"],
        ),
        (
            app(", \"probe\": { \"interval_ms\": \"2s\" }"),
            vec!["probe.interval_ms", "a whole number", "\"2s\""],
        ),
        (app(", \"probe\": { \"path\": \"health\" }"), vec!["probe.path", "`health` is not a path"]),
        (app(", \"x_forwarded_for\": \"no\""), vec!["x_forwarded_for", "append, replace, off"]),
        (app(", \"fields_not_forwarded\": [\"sec *\"]"), vec!["fields_not_forwarded", "prefixes"]),
        (app(", \"via\": 1"), vec!["clusters.app.via", "true or false"]),
        (
            app("}, \"x\": { \"backends\": [ { \"addres\": \"1.2.3.4:5\" } ]"),
            vec!["clusters.x.backends[0].addres: unknown key, did you mean `address`?"],
        ),
        (
            app(
                "}, \"x\": { \"backends\": [ { \"address\": \"1.2.3.4:5\" }, { \"address\": \"1.2.3.4:5\" } ]",
            ),
            vec!["clusters.x.backends", "occurs twice"],
        ),
        (app("}, \"y\": { \"backends\": 3"), vec!["clusters.y.backends", "expected an array, found 3"]),
        (
            app(&format!("}}, \"y\": {{ \"backends\": \"{}\"", "x".repeat(1000))),
            vec!["found \"xxx", "xxx...\n"],
        ),
        (
            app("}, \"x\": { \"backends\": [ { \"address\": \"1.2.3.4:0\" } ]"),
            vec!["clusters.x.backends[0].address", "port 0"],
        ),
        (
            app("}, \"x\": { \"backends\": [ { \"id\": \"a/b\", \"address\": \"1.2.3.4:5\" } ]"),
            vec!["clusters.x.backends[0].id", "path segment"],
        ),
        (
            app("}, \"x\": { \"backends\": [ { \"id\": \"a\\nb\", \"address\": \"1.2.3.4:5\" } ]"),
            vec!["clusters.x.backends[0].id", "path segment"],
        ),
        (
            app("}, \"x\": { \"backends\": [ { \"id\": \"\", \"address\": \"1.2.3.4:5\" } ]"),
            vec!["clusters.x.backends[0].id", "path segment"],
        ),
        (
            with("\"timeouts\": { \"connect\": 3 }, \"clusters\": {}"),
            vec!["timeouts.connect", "`connect_ms`"],
        ),
        (with("\"threads\": 0, \"clusters\": {}"), vec!["threads", "from 1 to 256"]),
        (with("\"limits\": { \"connections\": -1 }, \"clusters\": {}"), vec!["limits.connections"]),
        (
            with("\"policy\": \"round-robbin\", \"clusters\": {}"),
            vec!["policy", "did you mean `round-robin`?"],
        ),
        (
            format!("{{ \"lissten\": 1, {}", &app("")[1..]),
            vec!["lissten", "did you mean `listen`?", "known: listen"],
        ),
    ];
    for (config, expected) in cases {
        for arguments in [["--check"].as_slice(), &[]] {
            let output = run(arguments, &config);
            assert_eq!(output.status.code(), Some(2), "{config}");
            for part in &expected {
                assert!(stderr(&output).contains(part), "{part:?} not in {:?} for {config}", stderr(&output));
            }
        }
    }
}

#[test]
fn check_takes_the_smallest_configuration_and_starts_nothing() {
    let config = json!({ "listen": "127.0.0.1:80",
        "clusters": { "cluster1": { "backends": [ { "id": "i-0a1", "address": "10.0.0.5:8000" } ] } } });
    let output = run(&["--check"], &config.to_string());
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn missing_configuration_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_balancer")).args(["--config", "/nowhere.json"]).output();
    let output = output.expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("/nowhere.json"), "{}", stderr(&output));
}

/// Starts on a configuration at `path` and reads the status, or gives what the program said.
fn start_at(path: &Path, config: &Value) -> Result<(), String> {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    std::fs::write(path, config.to_string()).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_balancer"));
    let mut child =
        command.arg("--config").arg(path).stderr(std::process::Stdio::piped()).spawn().expect("it starts");
    let mut log = std::io::BufReader::new(child.stderr.take().expect("piped"));
    let mut said = String::new();
    while !said.contains("listening on")
        && std::io::BufRead::read_line(&mut log, &mut said).expect("its log") > 0
    {}
    child.kill().expect("killed");
    child.wait().expect("ended");
    if said.contains("listening on") { Ok(()) } else { Err(said) }
}

#[test]
fn admin_socket_fits_in_a_deep_folder_and_replaces_only_a_dead_socket() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let deep = directory.path().join("a-folder-with-a-long-name/".repeat(8)).join("balancer.json");
    let config = config_over(&[], json!({}));
    assert_eq!(start_at(&deep, &config), Ok(()));
    let socket = deep.with_file_name("balancer.json.sock");
    assert!(socket.exists(), "killed, it left its socket");
    assert_eq!(start_at(&deep, &config), Ok(()));
    std::fs::remove_file(&socket).expect("removed");
    std::fs::write(&socket, "precious").expect("written");
    let refused = start_at(&deep, &config).expect_err("a file that is no socket");
    assert!(refused.contains("no socket"), "{refused}");
    assert_eq!(std::fs::read_to_string(&socket).expect("still there"), "precious");
}

#[test]
fn inherited_listener_is_used() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("balancer.json");
    let config = json!({ "listen": "127.0.0.1:1", "threads": 2, "clusters": { "app": { "backends": [] } } });
    std::fs::write(&path, config.to_string()).expect("written");
    // The shell puts the listener on descriptor 3 and names itself as the receiver before it becomes the balancer.
    let fd = std::os::fd::AsRawFd::as_raw_fd(&listener);
    let script = format!("exec 3<&{fd}; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" --config \"$1\"");
    let clear = clear_close_on_exec(fd);
    assert!(clear, "the listener is passed on");
    let mut child = Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_balancer")])
        .arg(&path)
        .spawn()
        .expect("it starts");
    let status = Client::connect(address).get("/status").status;
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert_eq!(status, 200);
}

fn clear_close_on_exec(fd: i32) -> bool {
    // SAFETY: changes a flag of a descriptor that this test owns.
    unsafe { libc::fcntl(fd, libc::F_SETFD, 0) == 0 }
}

#[test]
fn unit_for_systemd_has_arguments_that_the_program_takes() {
    let unit = include_str!("../balancer.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("a command");
    let arguments: Vec<&str> =
        line.split(' ').skip(1).filter(|word| !word.contains("balancer.json")).collect();
    let arguments: Vec<&str> =
        arguments.into_iter().filter(|word| *word != "--config").chain(["--check"]).collect();
    let output = run(&arguments, &config_over(&[], json!({})).to_string());
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
}
