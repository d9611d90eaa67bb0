//! hyper's reading of the same bytes, without a runtime: all that is to be read is there from the start.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::HeaderMap;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use hyper::{Request, Response, Uri, Version};

use super::Message;

/// Polls of one connection: far more than its bytes can need.
const POLLS_MAX: usize = 100_000;
/// At least as much as we take.
const FIELDS_MAX: usize = 256;

/// The messages that hyper found, and how the connection ended.
#[derive(Debug)]
pub struct Outcome {
    pub messages: Vec<Message>,
    pub end: Result<(), String>,
}

/// Serves a connection on which `bytes` come.
pub fn requests(bytes: &[u8]) -> Outcome {
    let found = Rc::new(RefCell::new(Vec::new()));
    let service = service_fn(|request: Request<Incoming>| {
        let found = Rc::clone(&found);
        async move {
            let (head, body) = request.into_parts();
            let body = content(body).await?;
            let mut message = Message {
                start: [head.method.as_str().as_bytes(), b" ", &target(&head.uri)].concat(),
                authority: None,
                version: minor(head.version),
                fields: fields(&head.headers),
                body,
            };
            message.authority = match head.uri.authority() {
                Some(authority) => Some(authority.as_str().as_bytes().to_vec()),
                None => message.field("host").map(<[u8]>::to_vec),
            };
            found.borrow_mut().push(message);
            Ok::<_, hyper::Error>(Response::new(Nothing))
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.half_close(true).max_headers(FIELDS_MAX).max_header_size(1 << 20);
    let io = Io { input: bytes.to_vec(), at: 0, open: true };
    let connection = builder.serve_connection(io, service);
    let end = block_on(connection).map_err(|error| format!("{error:?}"));
    Outcome { messages: found.take(), end }
}

/// Sends a request on a connection on which `bytes` come back.
pub fn response(bytes: &[u8], to_head: bool) -> Outcome {
    let mut messages = Vec::new();
    let end = block_on(exchange(bytes, to_head, &mut messages)).map_err(|error| format!("{error:?}"));
    Outcome { messages, end }
}

async fn exchange(bytes: &[u8], to_head: bool, messages: &mut Vec<Message>) -> hyper::Result<()> {
    let io = Io { input: bytes.to_vec(), at: 0, open: false };
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_headers(FIELDS_MAX);
    let (mut sender, connection) = builder.handshake(io).await?;
    let method = if to_head { "HEAD" } else { "GET" };
    let request = Request::builder().method(method).uri("/").header("host", "a").body(Nothing);
    let answered = async {
        let (head, body) = sender.send_request(request.expect("legal")).await?.into_parts();
        // Without it the connection ends once the body is read.
        drop(sender);
        let body = content(body).await?;
        let start = head.status.as_str().as_bytes().to_vec();
        let (version, fields) = (minor(head.version), fields(&head.headers));
        Ok::<_, hyper::Error>(Message { start, authority: None, version, fields, body })
    };
    let (mut answered, mut connection) = (pin!(answered), pin!(connection));
    let (mut answer, mut ended) = (None, None);
    poll_fn(|cx| {
        if answer.is_none()
            && let Poll::Ready(found) = answered.as_mut().poll(cx)
        {
            answer = Some(found);
        }
        if ended.is_none()
            && let Poll::Ready(found) = connection.as_mut().poll(cx)
        {
            ended = Some(found);
        }
        if answer.is_some() && ended.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    messages.push(answer.expect("ready")?);
    ended.expect("ready")
}

fn target(uri: &Uri) -> Vec<u8> {
    let mut target = uri.path().as_bytes().to_vec();
    if let Some(query) = uri.query() {
        target.push(b'?');
        target.extend_from_slice(query.as_bytes());
    }
    target
}

fn minor(version: Version) -> u8 {
    match version {
        Version::HTTP_10 => 0,
        Version::HTTP_11 => 1,
        other => panic!("not a version of HTTP/1: {other:?}"),
    }
}

fn fields(map: &HeaderMap) -> Vec<(Vec<u8>, Vec<u8>)> {
    let pair = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
        (name.as_str().as_bytes().to_vec(), value.as_bytes().to_vec())
    };
    Message::sorted(map.iter().map(pair).collect())
}

async fn content(mut body: Incoming) -> hyper::Result<Vec<u8>> {
    let mut content = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            content.extend_from_slice(&data);
        }
    }
    Ok(content)
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..POLLS_MAX {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
    }
    panic!("hyper waits for something that never comes");
}

/// A connection on which `input` comes, then the end. A closed one delivers nothing until something is sent.
struct Io {
    input: Vec<u8>,
    at: usize,
    open: bool,
}

impl Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.open {
            return Poll::Pending;
        }
        let count = into.remaining().min(self.input.len() - self.at);
        into.put_slice(&self.input[self.at..self.at + count]);
        self.at += count;
        Poll::Ready(Ok(()))
    }
}

impl Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.open = true;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// No body.
struct Nothing;

impl Body for Nothing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(0)
    }
}
