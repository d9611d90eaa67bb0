//! Backends that do exactly what a test says, on plain threads.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{DEADLINE, eventually};

/// A request as the stub read it.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub line: String,
    /// The head as it came.
    pub head: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// How many requests this connection carried before.
    pub before: usize,
}

impl Request {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or("")
    }
}

/// The stub's side of a connection.
pub struct Connection {
    pub stream: TcpStream,
    pending: Vec<u8>,
    served: usize,
}

type Handler = dyn Fn(&Request, &mut Connection) + Send + Sync;

/// A backend: answers `/probe` by itself (200 while healthy) and everything else by its handler. The connection
/// ends when the handler shuts it down or the balancer closes it.
pub struct Stub {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    handler: Box<Handler>,
    requests: Mutex<Vec<Request>>,
    healthy: AtomicBool,
    stopped: AtomicBool,
    connections: AtomicUsize,
    probes: AtomicUsize,
    /// Clones of the connections that are served, by the descriptor of the one that serves.
    open: Mutex<HashMap<RawFd, TcpStream>>,
    /// The handler reads the body itself.
    raw_bodies: bool,
}

impl Stub {
    pub fn start(handler: impl Fn(&Request, &mut Connection) + Send + Sync + 'static) -> Self {
        Self::start_on("127.0.0.1:0".parse().expect("an address"), false, handler)
    }

    /// The handler gets requests without their bodies, which it reads from the connection if it likes.
    pub fn start_raw(handler: impl Fn(&Request, &mut Connection) + Send + Sync + 'static) -> Self {
        Self::start_on("127.0.0.1:0".parse().expect("an address"), true, handler)
    }

    pub fn start_on(
        address: SocketAddr,
        raw_bodies: bool,
        handler: impl Fn(&Request, &mut Connection) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            requests: Mutex::default(),
            healthy: AtomicBool::new(true),
            stopped: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            probes: AtomicUsize::new(0),
            open: Mutex::default(),
            raw_bodies,
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.stopped.load(SeqCst) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, shared }
    }

    /// A backend in the place of one that was stopped.
    pub fn again(
        stopped: &Self,
        handler: impl Fn(&Request, &mut Connection) + Send + Sync + 'static,
    ) -> Self {
        // Its thread closes the listener in its own time.
        eventually("the port is free", || TcpListener::bind(stopped.address).is_ok());
        Self::start_on(stopped.address, false, handler)
    }

    /// A backend that says its name.
    pub fn named(name: &'static str) -> Self {
        Self::start(move |_, connection| connection.send(&ok(name)))
    }

    pub fn echo() -> Self {
        Self::start(|request, connection| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.body.len());
            connection.send(head.as_bytes());
            connection.send(&request.body);
        })
    }

    /// The requests so far, probes excepted.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().expect("requests").clone()
    }

    /// Connections that carried something else than probes.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }

    /// Probes answered so far.
    pub fn probes(&self) -> usize {
        self.shared.probes.load(SeqCst)
    }

    pub fn set_healthy(&self, healthy: bool) {
        self.shared.healthy.store(healthy, SeqCst);
    }

    /// Closes the listener and all connections, as a process that dies.
    pub fn stop(&self) {
        self.shared.stopped.store(true, SeqCst);
        // Wakes the accept.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        self.close_connections();
    }

    /// Closes all connections that carried something else than probes.
    pub fn close_connections(&self) {
        for (_, stream) in self.shared.open.lock().expect("open").drain() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A whole answer with a length.
pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nx-instance-id: stub\r\n\r\n{body}", body.len())
        .into_bytes()
}

fn serve(stream: TcpStream, shared: &Shared) {
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream.set_write_timeout(Some(DEADLINE)).expect("a timeout");
    stream.set_nodelay(true).expect("no delay");
    let mut connection = Connection { stream, pending: Vec::new(), served: 0 };
    while let Some(mut request) = connection.read_head() {
        if request.path() == "/probe" {
            let status = if shared.healthy.load(SeqCst) { "200 OK" } else { "503 Unwell" };
            connection.send(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes());
            shared.probes.fetch_add(1, SeqCst);
            continue;
        }
        if connection.served == 0 {
            shared.connections.fetch_add(1, SeqCst);
            let clone = connection.stream.try_clone().expect("a clone");
            shared.open.lock().expect("open").insert(connection.stream.as_raw_fd(), clone);
        }
        request.before = connection.served;
        connection.served += 1;
        // Accepted before the stop, but not among the connections that it closed.
        if shared.stopped.load(SeqCst) {
            break;
        }
        if !shared.raw_bodies {
            request.body = connection.read_body(&request);
        }
        shared.requests.lock().expect("requests").push(request.clone());
        (shared.handler)(&request, &mut connection);
    }
    if connection.served > 0 {
        shared.open.lock().expect("open").remove(&connection.stream.as_raw_fd());
    }
}

impl Connection {
    /// Failures to send are the balancer's choice to close.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub fn close(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Breaks off with a reset, whoever else holds the socket.
    pub fn reset(&mut self) {
        let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
        // SAFETY: the address lives through the call, and its length is given.
        let result = unsafe {
            libc::connect(self.stream.as_raw_fd(), &raw const nobody, size_of_val(&nobody) as libc::socklen_t)
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    /// What comes next, or what came with the head; empty at the end.
    pub fn receive(&mut self) -> Vec<u8> {
        if self.pending.is_empty() {
            self.fill();
        }
        std::mem::take(&mut self.pending)
    }

    fn fill(&mut self) -> bool {
        let mut piece = [0; 64 << 10];
        match self.stream.read(&mut piece) {
            Ok(count) if count > 0 => {
                self.pending.extend_from_slice(&piece[..count]);
                true
            }
            _ => false,
        }
    }

    fn read_head(&mut self) -> Option<Request> {
        let end = loop {
            if let Some(end) = self.pending.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            if !self.fill() {
                return None;
            }
        };
        let head: Vec<u8> = self.pending.drain(..end + 4).collect();
        let text = String::from_utf8_lossy(&head).into_owned();
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let line = lines.next().unwrap_or("").to_owned();
        let fields = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        Some(Request { line, fields, head: text, ..Request::default() })
    }

    pub fn read_body(&mut self, request: &Request) -> Vec<u8> {
        if let Some(length) = request.field("content-length") {
            return self.take(length.parse().expect("a length"));
        }
        if request.field("transfer-encoding").is_none() {
            return Vec::new();
        }
        let mut body = Vec::new();
        loop {
            let size =
                usize::from_str_radix(self.line().split(';').next().unwrap_or(""), 16).expect("a size");
            if size == 0 {
                while !self.line().is_empty() {}
                return body;
            }
            body.extend(self.take(size));
            assert_eq!(self.line(), "");
        }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        while self.pending.len() < count && self.fill() {}
        let count = count.min(self.pending.len());
        self.pending.drain(..count).collect()
    }

    fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.pending.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.pending.drain(..end + 2).collect();
                return String::from_utf8_lossy(&line[..end]).into_owned();
            }
            if !self.fill() {
                return String::new();
            }
        }
    }
}
