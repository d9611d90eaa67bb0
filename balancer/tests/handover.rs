//! A successor takes over from a running balancer, and nobody notices.

#![allow(clippy::disallowed_methods, reason = "deadlines of tests are on the real clock")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{Client, DEADLINE, Stub, admin, config_over, eventually, ok};
use serde_json::{Value, json};

/// A folder with a configuration, in which balancers follow each other.
struct Line {
    directory: tempfile::TempDir,
    driver: String,
}

impl Line {
    fn new(driver: &str, config: &Value) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let line = Self { directory, driver: driver.to_owned() };
        line.write(&config.to_string());
        line
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("balancer.json")
    }

    fn admin(&self) -> PathBuf {
        self.directory.path().join("balancer.json.sock")
    }

    fn write(&self, config: &str) {
        std::fs::write(self.config(), config).expect("written");
    }

    fn start(&self, arguments: &[&str]) -> Process {
        Process::start(&self.config(), &self.driver, arguments, &[])
    }

    fn succeed(&self) -> Process {
        self.start(&["--replace"])
    }
}

/// A balancer that was started; killed when dropped.
struct Process {
    child: Child,
    /// The lines of its log.
    log: mpsc::Receiver<String>,
    address: Option<SocketAddr>,
}

impl Process {
    fn start(config: &Path, driver: &str, arguments: &[&str], env: &[(&str, &Path)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_balancer"))
            .args(["--driver", driver, "--config"])
            .arg(config)
            .args(arguments)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let (lines, log) = mpsc::channel();
        let reader = BufReader::new(child.stderr.take().expect("piped"));
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, log, address: None }
    }

    /// Waits until it listens.
    #[track_caller]
    fn up(mut self) -> Self {
        let line = self.wait_log("listening on ");
        let address = line.split("listening on ").nth(1).and_then(|rest| rest.split(',').next());
        self.address = address.and_then(|address| address.parse().ok());
        self
    }

    fn address(&self) -> SocketAddr {
        self.address.expect("it is up")
    }

    /// The next line with `needle` in it.
    #[track_caller]
    fn wait_log(&self, needle: &str) -> String {
        let mut seen = Vec::new();
        let due = Instant::now() + DEADLINE;
        loop {
            match self.log.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(needle) => return line,
                Ok(line) => seen.push(line),
                Err(error) => panic!("no {needle:?} in {seen:?}: {error}"),
            }
        }
    }

    fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    #[track_caller]
    fn wait_exit(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the balancer exits", || {
            status = self.child.try_wait().expect("its status");
            status.is_some()
        });
        status.expect("exited")
    }

    fn get(&self, path: &str) -> common::Response {
        Client::connect(self.address()).get(path)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status();
    assert!(status.expect("kill runs").success());
}

/// systemd waits only for a main process that is its own child when it hears of it.
fn parent_of(pid: &str) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).expect("a parent").to_owned()
}

fn pid_at(address: SocketAddr) -> u32 {
    let status: Value = serde_json::from_slice(&Client::connect(address).get("/status").body).expect("JSON");
    status["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("a pid")
}

/// Requests that are due at fixed times, whatever became of those before: half on kept connections, half on fresh
/// ones.
struct OpenLoop {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl OpenLoop {
    const CLIENTS: usize = 12;
    /// Of one client; together they send 600 a second.
    const PERIOD: Duration = Duration::from_millis(20);

    fn start(address: SocketAddr) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |index: usize| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                let mut kept: Option<Client> = None;
                let mut due = Instant::now() + Self::PERIOD * index as u32 / Self::CLIENTS as u32;
                while !stop.load(SeqCst) {
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    due += Self::PERIOD;
                    match request(&mut kept, address, index.is_multiple_of(2)) {
                        Ok(()) => drop(answered.fetch_add(1, SeqCst)),
                        Err(failure) => failures.push(failure),
                    }
                }
                failures
            })
        };
        let threads = (0..Self::CLIENTS).map(client).collect();
        Self { stop, answered, threads }
    }

    /// Waits until `count` more requests were answered.
    fn passes(&self, count: usize) {
        let target = self.answered.load(SeqCst) + count;
        eventually("requests go on", || self.answered.load(SeqCst) >= target);
    }

    /// What failed, in words.
    fn finish(self) -> Vec<String> {
        self.stop.store(true, SeqCst);
        self.threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    }
}

/// One request. An answered `Connection: close` is followed, as every client does.
fn request(kept: &mut Option<Client>, address: SocketAddr, keeps: bool) -> Result<(), String> {
    let reused = kept.is_some();
    let mut client = match kept.take() {
        Some(client) => client,
        None => connect(address)?,
    };
    let sent = client.stream.write_all(b"GET /app/x HTTP/1.1\r\nHost: test\r\n\r\n");
    sent.map_err(|error| format!("send (reused: {reused}): {error}"))?;
    let response = client.try_response(false).ok_or_else(|| format!("no answer (reused: {reused})"))?;
    if response.status != 200 || !response.complete {
        return Err(response.head);
    }
    if keeps && response.field("connection") != Some("close") {
        *kept = Some(client);
    }
    Ok(())
}

fn connect(address: SocketAddr) -> Result<Client, String> {
    let stream = TcpStream::connect_timeout(&address, DEADLINE);
    stream.map(Client::over).map_err(|error| format!("connect: {error}"))
}

on_both_drivers! {
    fn fifty_restarts_under_load_fail_no_request(driver) {
        let stubs = [Stub::named("one"), Stub::named("two")];
        let line = Line::new(driver, &config_over(&[&stubs[0], &stubs[1]], json!({})));
        let mut current = line.start(&[]).up();
        let address = current.address();
        let load = OpenLoop::start(address);
        for _ in 0..50 {
            let mut idle: Vec<Client> = (0..4).map(|_| Client::connect(address)).collect();
            idle.iter_mut().for_each(|client| assert_eq!(client.get("/app").status, 200));
            let next = line.succeed().up();
            // Right now the old one stops accepting; some send at once, the others when it is known to drain.
            for (index, client) in idle.iter_mut().enumerate() {
                if index == 2 {
                    current.wait_log("draining");
                }
                assert_eq!(client.get("/app").status, 200);
            }
            load.passes(20);
            drop(idle);
            assert!(current.wait_exit().success());
            current = next;
        }
        assert_eq!(load.finish(), Vec::<String>::new());
    }

    fn kept_connection_is_closed_with_its_next_answer(driver) {
        let stub = Stub::named("a");
        let line = Line::new(driver, &config_over(&[&stub], json!({})));
        let mut old = line.start(&[]).up();
        let mut kept = Client::connect(old.address());
        assert_eq!(kept.get("/app").status, 200);
        let new = line.succeed().up();
        old.wait_log("draining");
        let response = kept.get("/app");
        assert_eq!((response.status, response.field("connection")), (200, Some("close")));
        assert!(kept.is_closed());
        assert!(old.wait_exit().success());
        assert_eq!(new.address(), old.address());
        assert_eq!(pid_at(new.address()), new.child.id());
    }

    fn answer_in_flight_outlives_the_hand_over(driver) {
        let (release, held) = mpsc::channel::<()>();
        let held = std::sync::Mutex::new(held);
        let stub = Stub::start(move |_, connection| {
            held.lock().expect("held").recv().expect("released");
            connection.send(&ok("late"));
        });
        let line = Line::new(driver, &config_over(&[&stub], json!({ "timeouts": { "drain_ms": 15_000 } })));
        let mut old = line.start(&[]).up();
        let mut client = Client::connect(old.address());
        client.send("GET /app HTTP/1.1\r\nHost: test\r\n\r\n");
        eventually("it is in flight", || stub.requests().len() == 1);
        let _new = line.succeed().up();
        old.wait_log("draining");
        release.send(()).expect("the stub waits");
        assert_eq!(client.response().text(), "late");
        assert!(old.wait_exit().success());
    }

    fn successor_that_cannot_start_changes_nothing(driver) {
        let stub = Stub::named("a");
        let config = config_over(&[&stub], json!({}));
        let line = Line::new(driver, &config);
        let old = line.start(&[]).up();
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut elsewhere = config.clone();
        elsewhere["listen"] = json!(taken.local_addr().expect("bound").to_string());
        for (bad, status) in [("{ nonsense".to_owned(), 2), (elsewhere.to_string(), 1)] {
            line.write(&bad);
            assert_eq!(line.succeed().wait_exit().code(), Some(status));
            assert_eq!(old.get("/app").text(), "a");
        }
        // One that dies after it was given the sockets.
        let mut half_way = UnixStream::connect(line.admin()).expect("the admin socket is still there");
        half_way.write_all(b"POST /handover HTTP/1.1\r\n\r\n").expect("sent");
        let mut answer = [0; 15];
        half_way.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        drop(half_way);
        old.wait_log("not handed over, this process goes on");
        assert_eq!(old.get("/app").text(), "a");
        line.write(&config.to_string());
        let new = line.succeed().up();
        assert_eq!(new.get("/app").text(), "a");
    }

    fn killed_balancer_does_not_block_the_next(driver) {
        let stub = Stub::named("a");
        let line = Line::new(driver, &config_over(&[&stub], json!({})));
        for arguments in [[].as_slice(), &["--replace"], &[]] {
            let process = line.start(arguments).up();
            assert_eq!(process.get("/app").status, 200);
            process.signal("KILL");
        }
        assert!(line.admin().exists());
    }

    fn second_balancer_takes_nothing_unless_it_is_told_to(driver) {
        let stub = Stub::named("a");
        let line = Line::new(driver, &config_over(&[&stub], json!({})));
        let first = line.start(&[]).up();
        let mut second = line.start(&[]);
        second.wait_log("with --replace");
        assert_eq!(second.wait_exit().code(), Some(1));
        // Another configuration is another balancer.
        let other = Line::new(driver, &config_over(&[&stub], json!({})));
        let third = other.succeed().up();
        assert_ne!(third.address(), first.address());
        assert_eq!(pid_at(first.address()), first.child.id());
    }

    fn number_of_threads_may_change(driver) {
        let stub = Stub::named("a");
        let config = |threads: usize| config_over(&[&stub], json!({ "threads": threads }));
        let line = Line::new(driver, &config(2));
        let mut current = line.start(&[]).up();
        let load = OpenLoop::start(current.address());
        for threads in [3, 1, 2] {
            line.write(&config(threads).to_string());
            let next = line.succeed().up();
            load.passes(50);
            assert!(current.wait_exit().success());
            current = next;
            let status: Value = serde_json::from_slice(&current.get("/status").body).expect("JSON");
            assert_eq!(status["threads"], threads);
        }
        assert_eq!(load.finish(), Vec::<String>::new());
    }

    fn successor_on_another_address_ends_the_old_one(driver) {
        let stub = Stub::named("a");
        let config = config_over(&[&stub], json!({}));
        let line = Line::new(driver, &config);
        let mut old = line.start(&[]).up();
        let mut moved = config;
        moved["listen"] = json!("127.0.0.2:0");
        line.write(&moved.to_string());
        let new = line.succeed().up();
        assert_eq!(new.address().ip().to_string(), "127.0.0.2");
        assert_eq!(new.get("/app").text(), "a");
        assert!(old.wait_exit().success());
        assert!(TcpStream::connect(old.address()).is_err());
    }

    fn signal_starts_the_successor_and_systemd_hears_of_it(driver) {
        let stub = Stub::named("a");
        let config = config_over(&[&stub], json!({}));
        let line = Line::new(driver, &config);
        let notify = line.directory.path().join("notify");
        let socket = UnixDatagram::bind(&notify).expect("bound");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let word = || {
            let mut text = [0; 64];
            let count = socket.recv(&mut text).expect("a word");
            String::from_utf8_lossy(&text[..count]).into_owned()
        };
        let mut old = Process::start(&line.config(), driver, &[], &[("NOTIFY_SOCKET", &notify)]).up();
        assert_eq!(word(), "READY=1");
        line.write("{ nonsense");
        old.signal("USR2");
        old.wait_log("did not take over; this process goes on");
        line.write(&config.to_string());
        old.signal("USR2");
        let main = word();
        assert_ne!(parent_of(main.strip_prefix("MAINPID=").expect("the main process")), old.child.id().to_string());
        assert_eq!(word(), "READY=1");
        assert!(old.wait_exit().success());
        // Until it has left the queue the old process may still answer who came to it.
        let successor: u32 = main.strip_prefix("MAINPID=").expect("the main process").parse().expect("a number");
        assert_ne!(successor, old.child.id());
        eventually("the successor answers", || pid_at(old.address()) == successor);
        // The successor is nobody's child that we know: once more over the same way, then end it.
        let mut last = line.succeed().up();
        assert_eq!(word(), format!("MAINPID={}", last.child.id()));
        eventually("the last one answers", || pid_at(old.address()) == last.child.id());
        last.signal("TERM");
        assert!(last.wait_exit().success());
    }

    fn drained_backend_stays_drained(driver) {
        let (one, two) = (Stub::named("one"), Stub::named("two"));
        let line = Line::new(driver, &config_over(&[&one, &two], json!({ "policy": "round-robin" })));
        let mut current = line.start(&[]).up();
        let said = admin(&line.admin(), "POST /clusters/app/backends/i-0/drain");
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        for _ in 0..2 {
            let next = line.succeed().up();
            for _ in 0..6 {
                assert_eq!(next.get("/app").text(), "two");
            }
            assert!(current.wait_exit().success());
            current = next;
        }
        let said = admin(&line.admin(), "POST /clusters/app/backends/i-0/readmit");
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        let last = line.succeed().up();
        eventually("it is used again", || last.get("/app").text() == "one");
    }

    fn stop_resets_nobody_who_has_connected(driver) {
        let stub = Stub::named("a");
        let config = config_over(&[&stub], json!({ "timeouts": { "drain_ms": 3000 } }));
        for _ in 0..10 {
            let line = Line::new(driver, &config);
            let mut process = line.start(&[]).up();
            let address = process.address();
            let answered = Arc::new(AtomicUsize::new(0));
            let clients: Vec<_> = (0..6)
                .map(|_| {
                    let answered = Arc::clone(&answered);
                    std::thread::spawn(move || {
                        // Until nobody listens any more.
                        while let Ok(stream) = TcpStream::connect_timeout(&address, DEADLINE) {
                            let mut client = Client::over(stream);
                            client.stream.write_all(b"GET /app HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                                .map_err(|error| error.to_string())?;
                            let response = client.try_response(false).ok_or("connected and not answered")?;
                            assert_eq!(response.status, 200);
                            answered.fetch_add(1, SeqCst);
                        }
                        Ok::<(), String>(())
                    })
                })
                .collect();
            eventually("requests go on", || answered.load(SeqCst) > 30);
            process.signal("TERM");
            assert!(process.wait_exit().success());
            for client in clients {
                assert_eq!(client.join().expect("no panic"), Ok(()));
            }
        }
    }

    fn those_who_wait_to_be_accepted_at_the_stop_are_answered(driver) {
        let stub = Stub::named("a");
        let line = Line::new(driver, &config_over(&[&stub], json!({})));
        let mut process = line.start(&[]).up();
        process.signal("STOP");
        let mut waiting: Vec<Client> = (0..20).map(|_| Client::connect(process.address())).collect();
        process.signal("TERM");
        process.signal("CONT");
        for client in &mut waiting {
            assert_eq!(client.get("/app").status, 200);
        }
        drop(waiting);
        assert!(process.wait_exit().success());
    }

    fn request_that_comes_at_the_very_end_of_the_drain_is_answered(driver) {
        let stub = Stub::named("a");
        let extra = json!({ "timeouts": { "drain_ms": 1000 } });
        let line = Line::new(driver, &config_over(&[&stub], extra));
        let mut process = line.start(&[]).up();
        let mut idle = Client::connect(process.address());
        assert_eq!(idle.get("/app").status, 200);
        process.signal("TERM");
        process.wait_log("draining");
        // It does not run while the request comes and the time for the drain passes, and finds both at once. Before,
        // it must have noticed the drain, which takes a tenth of a second.
        std::thread::sleep(Duration::from_millis(200));
        process.signal("STOP");
        idle.send("GET /app HTTP/1.1\r\nHost: test\r\n\r\n");
        std::thread::sleep(Duration::from_millis(1000));
        process.signal("CONT");
        let response = idle.response();
        assert_eq!((response.status, response.field("connection")), (200, Some("close")));
        assert!(process.wait_exit().success());
    }
}

#[test]
fn another_user_is_given_nothing() {
    let stub = Stub::named("a");
    let line = Line::new("epoll", &config_over(&[&stub], json!({})));
    let process = line.start(&[]).up();
    // Wide open, so that nothing but the check of the peer's user is left.
    for (path, mode) in [(line.directory.path(), 0o777), (&line.admin(), 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
    }
    let admin = line.admin();
    let asked = std::thread::spawn(move || {
        // SAFETY: the system call, unlike the library's function, changes the user of this thread alone.
        if unsafe { libc::syscall(libc::SYS_setresuid, -1, 65534, -1) } != 0 {
            return None;
        }
        let mut stream = UnixStream::connect(admin).expect("the socket is open to all");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.write_all(b"POST /handover HTTP/1.1\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer and the end");
        Some(answer)
    });
    match asked.join().expect("no panic") {
        Some(answer) => assert!(answer.starts_with("HTTP/1.1 403"), "{answer}"),
        None => return eprintln!("skipped: only root can become another user"),
    }
    process.wait_log("asked by user 65534");
    assert_eq!(process.get("/app").text(), "a");
}
