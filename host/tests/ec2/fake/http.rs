//! As much HTTP/1.1 as an AWS client needs: requests with a length, answers with a length, kept connections.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Heads and bodies of a query API are small; user data is the largest part.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// One request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) authorization: String,
    pub(crate) body: String,
}

/// One answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// A kept connection.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// `None` when the client has closed or sends what cannot be read.
    pub(crate) async fn request(&mut self) -> Option<Request> {
        loop {
            if let Some((request, length)) = parse(&self.buffer)? {
                self.buffer.drain(..length);
                return Some(request);
            }
            let mut chunk = [0; 16 * 1024];
            let count = self.stream.read(&mut chunk).await.ok()?;
            if count == 0 || self.buffer.len() > REQUEST_BYTES_MAX {
                return None;
            }
            self.buffer.extend_from_slice(&chunk[..count]);
        }
    }

    pub(crate) async fn answer(&mut self, answer: &Answer) -> Option<()> {
        let head = format!(
            "HTTP/1.1 {} X\r\nContent-Type: text/xml;charset=UTF-8\r\nContent-Length: {}\r\n\r\n",
            answer.status,
            answer.body.len()
        );
        self.stream.write_all(head.as_bytes()).await.ok()?;
        self.stream.write_all(answer.body.as_bytes()).await.ok()
    }
}

/// The first request in the buffer and its length; `Some(None)` when it is not whole yet.
fn parse(buffer: &[u8]) -> Option<Option<(Request, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(start) = head.parse(buffer).ok()? else { return Some(None) };
    let field = |name: &str| {
        let found = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        found.map(|field| String::from_utf8_lossy(field.value).into_owned())
    };
    let length: usize = field("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let Some(body) = buffer.get(start..start + length) else { return Some(None) };
    let body = String::from_utf8_lossy(body).into_owned();
    Some(Some((Request { authorization: field("authorization").unwrap_or_default(), body }, start + length)))
}
