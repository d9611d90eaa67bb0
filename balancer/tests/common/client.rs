//! A client that sends what it is told and reads answers strictly.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::DEADLINE;

/// An answer; `complete` is false when the connection ended before the body did.
#[derive(Debug, Clone, Default)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    pub complete: bool,
}

impl Response {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub struct Client {
    pub stream: TcpStream,
    pending: Vec<u8>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect_timeout(&address, DEADLINE).expect("the balancer listens"))
    }

    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_write_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        Self { stream, pending: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("sent");
    }

    pub fn get(&mut self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
        self.response()
    }

    /// The next answer to a request that was not HEAD.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        self.try_response(false).expect("an answer")
    }

    #[track_caller]
    pub fn response_to_head(&mut self) -> Response {
        self.try_response(true).expect("an answer")
    }

    /// `None` when the connection ends before a head.
    pub fn try_response(&mut self, to_head: bool) -> Option<Response> {
        let end = loop {
            if let Some(end) = self.pending.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if !self.fill() {
                return None;
            }
        };
        let head = String::from_utf8(self.pending.drain(..end).collect()).expect("a head in ASCII");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let mut response = Response { status, head, ..Response::default() };
        let bodiless = to_head || status < 200 || status == 204 || status == 304;
        response.complete = bodiless || self.read_body(&mut response);
        Some(response)
    }

    fn read_body(&mut self, response: &mut Response) -> bool {
        if let Some(length) = response.field("content-length") {
            let length: usize = length.parse().expect("a length");
            while self.pending.len() < length && self.fill() {}
            let count = length.min(self.pending.len());
            response.body.extend(self.pending.drain(..count));
            return count == length;
        }
        if response.field("transfer-encoding").is_none() {
            while self.fill() {}
            response.body.append(&mut self.pending);
            return true;
        }
        loop {
            let Some(line) = self.line() else { return false };
            let size = usize::from_str_radix(line.split(';').next().unwrap_or(""), 16).expect("a size");
            if size == 0 {
                while let Some(line) = self.line() {
                    if line.is_empty() {
                        return true;
                    }
                }
                return false;
            }
            while self.pending.len() < size + 2 && self.fill() {}
            if self.pending.len() < size + 2 {
                return false;
            }
            response.body.extend(self.pending.drain(..size));
            assert_eq!(self.line().as_deref(), Some(""));
        }
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.pending.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.pending.drain(..end + 2).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    fn fill(&mut self) -> bool {
        let mut piece = [0; 64 << 10];
        match self.stream.read(&mut piece) {
            Ok(0) => false,
            Ok(count) => {
                self.pending.extend_from_slice(&piece[..count]);
                true
            }
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
            {
                panic!("no answer within the deadline")
            }
            Err(_) => false,
        }
    }

    /// Whether the balancer has ended the connection, without anything before; waits for it.
    #[track_caller]
    pub fn is_closed(&mut self) -> bool {
        self.pending.is_empty() && !self.fill()
    }
}
