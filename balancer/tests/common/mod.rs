//! A balancer process, stub backends and a plain client, each with a deadline on everything.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "shared by several test programs, each of which uses a part"
)]
#![allow(clippy::disallowed_methods, reason = "deadlines of tests are on the real clock")]

mod client;
mod level;
mod load;
mod stub;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

pub use client::{Client, Response};
pub use level::Level;
pub use load::Load;
pub use stub::{Connection, Request, Stub, ok};

/// A field of chunked messages in spellings that are all legal.
pub const CHUNKED_FIELDS: [&str; 7] = [
    "Transfer-Encoding: chunked",
    "transfer-encoding: chunked",
    "Transfer-Encoding: Chunked",
    "Transfer-Encoding: chunked\t",
    "Transfer-Encoding:\tchunked",
    "TRANSFER-ENCODING:chunked",
    "Transfer-Encoding:  chunked ",
];

/// No wait in a test is longer.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Runs a test on both drivers; where the kernel offers no ring, the first says so and passes.
#[macro_export]
macro_rules! on_both_drivers {
    ($(fn $name:ident($driver:ident) $body:block)*) => {
        $(mod $name {
            #[allow(unused_imports)]
            use super::*;
            fn claim($driver: &str) $body
            #[test]
            fn on_io_uring() {
                if common::has_io_uring() {
                    claim("io_uring");
                } else {
                    eprintln!("skipped: this kernel gives no ring");
                }
            }
            #[test]
            fn on_epoll() {
                claim("epoll");
            }
        })*
    };
}

/// Whether a balancer starts with a ring here.
pub fn has_io_uring() -> bool {
    use std::sync::OnceLock;
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let config = serde_json::json!({ "listen": "127.0.0.1:0", "threads": 1,
            "clusters": { "a": { "backends": [] } } });
        Balancer::try_start("io_uring", config).is_some()
    })
}

/// Waits until `holds`, asking again and again.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let due = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < due, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    grown: Condvar,
    unread: AtomicBool,
}

/// A running balancer; killed when dropped.
pub struct Balancer {
    child: Child,
    pub address: SocketAddr,
    pub directory: tempfile::TempDir,
    log: Arc<Log>,
}

impl Balancer {
    /// One cluster `app` over `backends`, with `extra` merged into the configuration.
    pub fn over(driver: &str, backends: &[&Stub], extra: serde_json::Value) -> Self {
        Self::start(driver, config_over(backends, extra))
    }

    #[track_caller]
    pub fn start(driver: &str, config: serde_json::Value) -> Self {
        Self::try_start(driver, config).expect("the balancer starts")
    }

    /// With more arguments.
    #[track_caller]
    pub fn start_with(driver: &str, arguments: &[&str], config: serde_json::Value) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_balancer"));
        command.args(arguments);
        Self::try_launch(command, driver, config).expect("the balancer starts")
    }

    pub fn try_start(driver: &str, config: serde_json::Value) -> Option<Self> {
        Self::try_launch(Command::new(env!("CARGO_BIN_EXE_balancer")), driver, config)
    }

    /// Starts `command`, which is the program or becomes it with the arguments that are added.
    pub fn try_launch(mut command: Command, driver: &str, config: serde_json::Value) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("balancer.json");
        std::fs::write(&path, config.to_string()).expect("write the configuration");
        let mut child = command
            .args(["--driver", driver, "--config"])
            .arg(&path)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let log = Arc::new(Log::default());
        let reader = BufReader::new(child.stderr.take().expect("piped"));
        let writer = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                writer.lines.lock().expect("log").push(line);
                writer.grown.notify_all();
                if writer.unread.load(SeqCst) {
                    break;
                }
            }
            writer.lines.lock().expect("log").push("(end of log)".to_owned());
            writer.grown.notify_all();
        });
        let address = "0.0.0.0:0".parse().expect("an address");
        let mut balancer = Self { child, address, directory, log };
        let line = balancer.wait_log(&["listening on ", "(end of log)"]);
        let address = line.split("listening on ").nth(1)?.split(',').next()?.to_owned();
        balancer.address = address.parse().expect("an address");
        Some(balancer)
    }

    /// The first line of the log that contains one of `needles`, waited for.
    #[track_caller]
    pub fn wait_log(&self, needles: &[&str]) -> String {
        let due = Instant::now() + DEADLINE;
        let mut lines = self.log.lines.lock().expect("log");
        loop {
            let found = lines.iter().find(|line| needles.iter().any(|needle| line.contains(needle)));
            if let Some(line) = found {
                return line.clone();
            }
            let left = due.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "none of {needles:?} in {lines:?}");
            lines = self.log.grown.wait_timeout(lines, left).expect("log").0;
        }
    }

    pub fn log(&self) -> Vec<String> {
        self.log.lines.lock().expect("log").clone()
    }

    /// The next line is the last one that is read: to write any other fails.
    pub fn close_log(&self) {
        self.log.unread.store(true, SeqCst);
        self.signal("HUP");
        self.wait_log(&["(end of log)"]);
    }

    pub fn config_path(&self) -> PathBuf {
        self.directory.path().join("balancer.json")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Stops the process with SIGSTOP, and waits until none of its threads runs any more.
    pub fn freeze(&self) {
        self.signal("STOP");
        let state = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().and_then(|rest| rest.chars().next())
        };
        eventually("every thread is stopped", || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("its threads");
            tasks.flatten().all(|task| state(task) == Some('T'))
        });
    }

    /// Replaces the configuration and waits until it is in force.
    pub fn reload(&self, config: &serde_json::Value) {
        let before = self.status()["generation"].as_u64().expect("a number");
        std::fs::write(self.config_path(), config.to_string()).expect("write the configuration");
        self.signal("HUP");
        eventually("the new configuration is in force", || {
            self.status()["generation"].as_u64() > Some(before)
        });
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// One GET on a connection of its own.
    pub fn get(&self, path: &str) -> Response {
        self.client().get(path)
    }

    pub fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&self.get("/status").body).expect("JSON")
    }

    /// The backend at `index` of cluster `app` in the status.
    pub fn backend(&self, index: usize) -> serde_json::Value {
        self.status()["clusters"]["app"]["backends"][index].clone()
    }

    pub fn wait_exit(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the balancer exits", || {
            status = self.child.try_wait().expect("its status");
            status.is_some()
        });
        status.expect("exited")
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The answer of the admin socket at `path`.
pub fn admin(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).expect("the admin socket");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    write!(stream, "{request} HTTP/1.1\r\nHost: admin\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

/// One cluster `app` over `backends`, probed on a path that stubs always answer, with `extra` merged in.
pub fn config_over(backends: &[&Stub], extra: serde_json::Value) -> serde_json::Value {
    let backends: Vec<_> = backends
        .iter()
        .enumerate()
        .map(|(n, stub)| serde_json::json!({ "id": format!("i-{n}"), "address": stub.address.to_string() }))
        .collect();
    let mut config = serde_json::json!({
        "listen": "127.0.0.1:0",
        "threads": 2,
        "clusters": { "app": { "backends": backends, "probe": { "path": "/probe", "interval_ms": 200 } } },
    });
    merge(&mut config, extra);
    config
}

fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    match (into, from) {
        (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}
