//! One plain HTTP GET, for status pages. The load generator is `bench`.
//!
//! It knows no TLS, no redirects and no kept connections.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// The largest answer accepted: status pages are small.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Fetches `path` and returns status and body. Errors in words.
pub async fn get(address: SocketAddr, path: &str, within: Duration) -> Result<(u16, Vec<u8>), String> {
    match timeout(within, fetch(address, path)).await {
        Ok(result) => result.map_err(|cause| format!("GET http://{address}{path}: {cause}")),
        Err(_) => Err(format!("GET http://{address}{path}: no answer within {} ms", within.as_millis())),
    }
}

async fn fetch(address: SocketAddr, path: &str) -> Result<(u16, Vec<u8>), String> {
    let words = |cause: std::io::Error| cause.to_string();
    let mut stream = TcpStream::connect(address).await.map_err(words)?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(words)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await.map_err(words)?;
    parse(&answer).ok_or_else(|| "the answer is no HTTP".to_owned())
}

fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut fields);
    let length = head.parse(answer).ok()?;
    Some((head.code?, answer[length.is_complete().then(|| length.unwrap())?..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_are_taken_apart() {
        assert_eq!(parse(b"HTTP/1.1 503 Busy\r\nA: b\r\n\r\nbody"), Some((503, b"body".to_vec())));
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\nA:"), None);
        assert_eq!(parse(b"SSH-2.0-x\r\n"), None);
    }
}
