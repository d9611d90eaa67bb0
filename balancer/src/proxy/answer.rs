//! Answers of the balancer's own.

use std::io::Write;
use std::time::SystemTime;

use super::plan::Meta;
use crate::date::Date;

/// A short answer that is known as a whole.
#[derive(Debug)]
pub(crate) struct Answer {
    status: u16,
    content_type: &'static str,
    /// Field lines to add, each with its end.
    extra: &'static str,
    body: Vec<u8>,
}

impl Answer {
    pub(crate) fn ok(content_type: &'static str, body: String) -> Self {
        Self { status: 200, content_type, extra: "", body: body.into_bytes() }
    }

    /// An error in the words of its status, and nothing of what happened inside.
    pub(crate) fn error(status: u16) -> Self {
        let body = format!("{{\"error\":\"{}\"}}\n", reason(status).to_ascii_lowercase()).into_bytes();
        let extra = match status {
            405 => "Allow: GET, HEAD\r\n",
            // Probes bring a backend back within a second or so.
            503 => "Retry-After: 1\r\n",
            _ => "",
        };
        Self { status, content_type: "application/json", extra, body }
    }

    /// The path names no cluster; says which there are.
    pub(crate) fn no_cluster(names: &[&str]) -> Self {
        let body = serde_json::json!({ "error": "no such cluster", "clusters": names });
        Self {
            status: 404,
            content_type: "application/json",
            extra: "",
            body: format!("{body}\n").into_bytes(),
        }
    }

    /// What `OPTIONS *` is answered with.
    pub(crate) fn options() -> Self {
        let extra = "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n";
        Self { status: 200, content_type: "text/plain", extra, body: Vec::new() }
    }

    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// Appends the whole answer, without its body if the request was HEAD.
    pub(crate) fn write(&self, out: &mut Vec<u8>, meta: &Meta, now: SystemTime) {
        let connection = match (meta.persists, meta.version) {
            (false, _) => "Connection: close\r\n",
            (true, 0) => "Connection: keep-alive\r\n",
            (true, _) => "",
        };
        let Self { status, content_type, extra, body } = self;
        let (length, reason, date) = (body.len(), reason(*status), Date::of(now).http());
        // Writing to a vector cannot fail.
        let _ = write!(
            out,
            "HTTP/1.1 {status} {reason}\r\nDate: {date}\r\nContent-Type: {content_type}\r\n\
             Content-Length: {length}\r\n{extra}{connection}\r\n"
        );
        if !meta.is_head {
            out.extend_from_slice(body);
        }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Internal Server Error",
    }
}
