//! Balancers that follow each other.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use serde_json::Value;

use crate::common::{self, Client, DEADLINE, eventually};

/// A folder with a configuration, in which balancers follow each other.
pub(crate) struct Line {
    pub(crate) directory: tempfile::TempDir,
    driver: String,
}

impl Line {
    pub(crate) fn new(driver: &str, config: &Value) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let line = Self { directory, driver: driver.to_owned() };
        line.write(&config.to_string());
        line
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.directory.path().join("balancer.json")
    }

    pub(crate) fn admin(&self) -> PathBuf {
        self.directory.path().join("balancer.json.sock")
    }

    pub(crate) fn write(&self, config: &str) {
        std::fs::write(self.config(), config).expect("written");
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Process {
        Process::start(&self.config(), &self.driver, arguments, &[])
    }

    pub(crate) fn succeed(&self) -> Process {
        self.start(&["--replace"])
    }
}

/// A balancer that was started; killed when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    /// The lines of its log.
    log: mpsc::Receiver<String>,
    address: Option<SocketAddr>,
}

impl Process {
    pub(crate) fn start(config: &Path, driver: &str, arguments: &[&str], env: &[(&str, &Path)]) -> Self {
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
    pub(crate) fn up(mut self) -> Self {
        let line = self.wait_log("listening on ");
        let address = line.split("listening on ").nth(1).and_then(|rest| rest.split(',').next());
        self.address = address.and_then(|address| address.parse().ok());
        self
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address.expect("it is up")
    }

    /// The next line with `needle` in it.
    #[track_caller]
    pub(crate) fn wait_log(&self, needle: &str) -> String {
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

    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    #[track_caller]
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the balancer exits", || {
            status = self.child.try_wait().expect("its status");
            status.is_some()
        });
        status.expect("exited")
    }

    pub(crate) fn get(&self, path: &str) -> common::Response {
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

pub(crate) fn pid_at(address: SocketAddr) -> u32 {
    let status: Value = serde_json::from_slice(&Client::connect(address).get("/status").body).expect("JSON");
    status["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("a pid")
}
