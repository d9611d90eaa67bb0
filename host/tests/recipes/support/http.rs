//! One HTTP request as a browser or curl would send it.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use super::PATIENCE;

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Status line and fields.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|cause| panic!("{cause}: {self:?}"))
    }
}

/// GETs `http://ADDRESS/PATH`; the connection is closed afterwards.
#[track_caller]
pub(crate) fn get(url: &str) -> Answer {
    let (address, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL");
    let mut stream =
        TcpStream::connect(address).unwrap_or_else(|cause| panic!("connect to {address}: {cause}"));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap_or_else(|cause| panic!("GET {url}: {cause} after {text:?}"));
    let (head, body) =
        text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("GET {url}: no head in {text:?}"));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Answer {
        status: status.unwrap_or_else(|| panic!("GET {url}: no status in {head:?}")),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}
