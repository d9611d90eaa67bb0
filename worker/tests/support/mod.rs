//! A worker process and a plain HTTP client, both with deadlines.
//!
//! Does not check what the worker answers.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// Long enough for a machine that is busy with other things; nothing waits that long otherwise.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) const TOKEN: &str = "a-token-for-tests";

/// A running worker `i-1` of `cluster1`, killed when dropped.
pub(crate) struct Worker {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
}

impl Worker {
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_with_env(options, &[])
    }

    pub(crate) fn start_with_env(options: &[&str], env: &[(&str, &str)]) -> Self {
        let arguments = ["--listen", "127.0.0.1:0", "--cluster", "cluster1", "--instance-id", "i-1"];
        let mut child = command(&arguments)
            .args(options)
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the worker starts");
        let line = first_line(&mut child);
        let address = line.strip_prefix("listening on ").and_then(|rest| rest.split_once(": "));
        let address = address.unwrap_or_else(|| panic!("{line:?} names no address")).0;
        Self { address: address.parse().expect("an address"), child }
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.connect().ask(&format!("GET {path} HTTP/1.1\r\nhost: w\r\n\r\n"))
    }

    pub(crate) fn stats(&self) -> Value {
        self.get("/admin/stats").json()
    }

    /// Asks for the counters until they are as wanted.
    pub(crate) fn wait_for_stats(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let end = Instant::now() + DEADLINE;
        let mut client = self.connect();
        let mut stats = Value::Null;
        while Instant::now() < end {
            stats = client.ask("GET /admin/stats HTTP/1.1\r\n\r\n").json();
            if wanted(&stats) {
                return;
            }
        }
        panic!("{what} within {DEADLINE:?}: {stats}");
    }

    pub(crate) fn fault(&self, query: &str) -> Answer {
        self.connect()
            .ask(&format!("POST /admin/fault?{query} HTTP/1.1\r\nhost: w\r\nx-fault-token: {TOKEN}\r\n\r\n"))
    }

    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            thread::yield_now();
        }
        panic!("the worker ends within {DEADLINE:?}");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The worker's program, free of the variables that this shell may have set.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_worker"));
    command.args(arguments).env_remove("LABHOST_EMULATE").env_remove("LABHOST_FAULTS");
    command
}

/// Runs the worker where it is expected to end by itself; killed after the deadline.
pub(crate) fn run_to_end(arguments: &[&str]) -> Output {
    let mut child =
        command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the worker starts");
    let end = Instant::now() + DEADLINE;
    while child.try_wait().expect("the child can be waited for").is_none() {
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{arguments:?} did not end");
        }
        thread::yield_now();
    }
    child.wait_with_output().expect("the output can be read")
}

fn first_line(child: &mut Child) -> String {
    let stdout = child.stdout.take().expect("stdout is piped");
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(stdout).read_line(&mut line);
        let _ = send.send(line);
    });
    let line = receive.recv_timeout(DEADLINE);
    if line.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    line.expect("the worker prints its address")
}

/// One connection.
pub(crate) struct Client(BufReader<TcpStream>);

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|why| panic!("{why}: {self:?}"))
    }
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, DEADLINE).expect("the worker accepts");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout can be set");
        stream.set_write_timeout(Some(DEADLINE)).expect("a timeout can be set");
        Self(BufReader::new(stream))
    }

    pub(crate) fn ask(&mut self, request: &str) -> Answer {
        self.send(request.as_bytes());
        self.answer()
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).expect("the worker reads");
    }

    pub(crate) fn end_of_requests(&mut self) {
        self.0.get_mut().shutdown(std::net::Shutdown::Write).expect("the connection is open");
    }

    /// The next answer, with a body as long as its content-length says.
    pub(crate) fn answer(&mut self) -> Answer {
        let mut answer = self.head();
        let length = answer.field("content-length").expect("a content-length").parse().expect("a number");
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("the whole body");
        answer.body = String::from_utf8(body).expect("text");
        answer
    }

    /// The next answer's head alone.
    pub(crate) fn head(&mut self) -> Answer {
        let status_line = self.line();
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.unwrap_or_else(|| panic!("{status_line:?} is no status line"));
        let mut fields = Vec::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                return Answer { status, fields, body: String::new() };
            }
            let (name, value) = line.split_once(':').expect("a field has a colon");
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// What comes until the worker closes; a reset counts as closed.
    pub(crate) fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Err(why) if why.kind() != std::io::ErrorKind::ConnectionReset => panic!("still open: {why}"),
            _ => String::from_utf8(rest).expect("text"),
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line of an answer");
        assert!(line.ends_with("\r\n"), "the connection ended within a head: {line:?}");
        line.truncate(line.len() - 2);
        line
    }
}
