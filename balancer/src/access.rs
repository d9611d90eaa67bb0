//! A line per request, where somebody asks for it.
//!
//! A serving thread writes lines into a buffer of its own and hands it on when it is full, or at the next tick; a
//! thread of the log writes them out. When that one does not keep up, lines are dropped and counted: a disk must
//! never hold up a request. Without an access log a request costs nothing here.
//!
//! This module does not rotate files: after SIGHUP it opens the path again.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use crate::clock;
use crate::date::Date;
use crate::log::LogFormat;

/// A thread's lines are handed on when they are this long, which is some 300 requests.
const BUFFER_BYTES: usize = 48 << 10;
/// Buffers that wait to be written: 3 MiB, or 100 ms of a disk that is not quite dead.
const BUFFERS_MAX: usize = 64;
/// What is shown of a target.
const TARGET_BYTES_MAX: usize = 1 << 10;
/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Where lines go, as asked for at the start.
#[derive(Debug, Clone)]
pub struct AccessOptions {
    /// A file to append to, or `-` for standard output.
    pub path: PathBuf,
    pub format: LogFormat,
}

/// What a request came to. Kept by its client's connection, so that its memory is used again.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    /// Method and target, as they came.
    line: Vec<u8>,
    method_bytes: usize,
    began: Option<Instant>,
    /// Of the connection, before this answer.
    pub(crate) sent_before: u64,
    /// `None` when nothing was answered.
    pub(crate) status: Option<u16>,
    cluster: String,
    backend: String,
    error: String,
}

impl Entry {
    /// Begins a request with its head.
    pub(crate) fn begin(&mut self, head: &[u8], sent_before: u64) {
        self.clear(sent_before);
        let end = memchr::memchr(b'\r', head).unwrap_or(head.len());
        let line = &head[..memchr::memrchr(b' ', &head[..end]).unwrap_or(end)];
        self.method_bytes = memchr::memchr(b' ', line).unwrap_or(line.len());
        let shown = line.len().min(self.method_bytes + 1 + TARGET_BYTES_MAX);
        self.line.extend_from_slice(&line[..shown]);
        self.began = Some(clock::now());
    }

    fn clear(&mut self, sent_before: u64) {
        self.line.clear();
        (self.method_bytes, self.began, self.sent_before, self.status) = (0, None, sent_before, None);
        self.cluster.clear();
        self.backend.clear();
        self.error.clear();
    }

    pub(crate) fn set_backend(&mut self, cluster: &str, id: &str) {
        cluster.clone_into(&mut self.cluster);
        id.clone_into(&mut self.backend);
    }

    pub(crate) fn set_error(&mut self, error: &dyn std::fmt::Display) {
        self.error = error.to_string();
    }

    fn write(&self, out: &mut Vec<u8>, format: LogFormat, client: &str, sent: u64, now: SystemTime) {
        let mut fields = Fields { out, format, first: true };
        let latency = self.began.map(|began| clock::now().saturating_duration_since(began));
        let (method, target) = self.line.split_at(self.method_bytes);
        fields.text("time", Date::of(now).timestamp().as_bytes());
        fields.text("client", client.as_bytes());
        fields.text("method", method);
        fields.text("target", target.strip_prefix(b" ").unwrap_or(target));
        fields.number("status", self.status.map(u64::from));
        fields.text("cluster", self.cluster.as_bytes());
        fields.text("backend", self.backend.as_bytes());
        fields.number("latency_us", latency.map(|latency| latency.as_micros() as u64));
        fields.number("bytes", Some(sent.saturating_sub(self.sent_before)));
        fields.text("error", self.error.as_bytes());
        fields.end();
    }
}

/// One line being written. What there is not is left out.
struct Fields<'a> {
    out: &'a mut Vec<u8>,
    format: LogFormat,
    first: bool,
}

impl Fields<'_> {
    fn key(&mut self, key: &str) {
        let (before, after) = match (self.format, self.first) {
            (LogFormat::Text, true) => ("", "="),
            (LogFormat::Text, false) => (" ", "="),
            (LogFormat::Json, true) => ("{\"", "\":"),
            (LogFormat::Json, false) => (",\"", "\":"),
        };
        self.first = false;
        for part in [before, key, after] {
            self.out.extend_from_slice(part.as_bytes());
        }
    }

    /// As a word where it is one, else as a JSON string.
    fn text(&mut self, key: &str, value: &[u8]) {
        if value.is_empty() {
            return;
        }
        self.key(key);
        let is_word = value.iter().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'));
        if is_word && self.format == LogFormat::Text {
            self.out.extend_from_slice(value);
        } else {
            // Writing to a vector cannot fail.
            let _ = serde_json::to_writer(&mut *self.out, &String::from_utf8_lossy(value));
        }
    }

    fn number(&mut self, key: &str, value: Option<u64>) {
        if let Some(value) = value {
            self.key(key);
            let _ = write!(self.out, "{value}");
        }
    }

    fn end(self) {
        self.out.extend_from_slice(if self.format == LogFormat::Json { b"}\n" } else { b"\n" });
    }
}

enum Message {
    Lines { bytes: Vec<u8>, count: u64 },
    Flush(Sender<()>),
}

/// The log as all threads share it.
#[derive(Debug)]
pub(crate) struct AccessLog {
    messages: SyncSender<Message>,
    format: LogFormat,
    reopen: Arc<AtomicBool>,
    /// Lines that were dropped because they could not be written, or not in time.
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// Opens the log and starts the thread that writes it.
    pub(crate) fn open(options: &AccessOptions) -> io::Result<Self> {
        let (messages, received) = sync_channel(BUFFERS_MAX);
        let (reopen, dropped) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = Writer {
            output: Output::open(&options.path)?,
            path: options.path.clone(),
            reopen: Arc::clone(&reopen),
            dropped: Arc::clone(&dropped),
            failing: false,
        };
        std::thread::Builder::new().name("access".to_owned()).spawn(move || writer.run(&received))?;
        Ok(Self { messages, format: options.format, reopen, dropped })
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Has the file opened again before the next line, for one that was renamed.
    pub(crate) fn reopen(&self) {
        self.reopen.store(true, Relaxed);
    }

    /// Waits a bounded time until what was handed on is written.
    pub(crate) fn flush(&self) {
        let (done, finished) = channel();
        // A queue that is full will not be empty in time.
        if self.messages.try_send(Message::Flush(done)).is_ok() {
            let _ = finished.recv_timeout(LAST_LINES);
        }
    }
}

enum Output {
    File(File),
    Standard(io::Stdout),
}

impl Output {
    fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Standard(io::stdout()));
        }
        // Addresses of clients are nobody else's business.
        let file = File::options().append(true).create(true).mode(0o640).open(path)?;
        Ok(Self::File(file))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_all(bytes),
            Self::Standard(stdout) => stdout.write_all(bytes).and_then(|()| stdout.flush()),
        }
    }
}

struct Writer {
    output: Output,
    path: PathBuf,
    reopen: Arc<AtomicBool>,
    dropped: Arc<AtomicU64>,
    failing: bool,
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>) {
        for message in messages {
            match message {
                Message::Lines { bytes, count } => self.write(&bytes, count),
                Message::Flush(done) => drop(done),
            }
        }
    }

    fn write(&mut self, bytes: &[u8], count: u64) {
        if self.reopen.swap(false, Relaxed) {
            match Output::open(&self.path) {
                Ok(output) => self.output = output,
                Err(error) => self.complain(&error),
            }
        }
        match self.output.write(bytes) {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.dropped.fetch_add(count, Relaxed);
                self.complain(&error);
            }
        }
    }

    /// Once per trouble.
    fn complain(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.failing, true) {
            let path = self.path.display();
            tracing::warn!(%path, %error, "access log {path}: {error}; lines are lost until this is mended");
        }
    }
}

/// A thread's side of the log.
#[derive(Debug)]
pub(crate) struct Recorder {
    log: Arc<AccessLog>,
    buffer: RefCell<Vec<u8>>,
    lines: Cell<u64>,
}

impl Recorder {
    pub(crate) fn new(log: Arc<AccessLog>) -> Self {
        Self { log, buffer: RefCell::default(), lines: Cell::new(0) }
    }

    /// Writes the line of a request that is over. `sent` is what its connection has sent to the client so far.
    pub(crate) fn record(&self, entry: &mut Entry, client: &str, sent: u64) {
        let mut buffer = self.buffer.borrow_mut();
        entry.write(&mut buffer, self.log.format, client, sent, clock::date());
        entry.clear(sent);
        self.lines.set(self.lines.get() + 1);
        if buffer.len() >= BUFFER_BYTES {
            self.hand_on(&mut buffer);
        }
    }

    /// Hands on what there is.
    pub(crate) fn flush(&self) {
        let mut buffer = self.buffer.borrow_mut();
        if !buffer.is_empty() {
            self.hand_on(&mut buffer);
        }
    }

    fn hand_on(&self, buffer: &mut Vec<u8>) {
        let count = self.lines.take();
        let bytes = std::mem::take(buffer);
        if let Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) =
            self.log.messages.try_send(Message::Lines { bytes, count })
        {
            self.log.dropped.fetch_add(count, Relaxed);
            if let Message::Lines { bytes, .. } = message {
                *buffer = bytes;
                buffer.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn line(format: LogFormat) -> String {
        let mut entry = Entry::default();
        entry.begin(b"GET /a\\b?c=d HTTP/1.1\r\nHost: x\r\n\r\n", 100);
        entry.status = Some(200);
        entry.set_backend("app", "i \"1\"");
        let mut out = Vec::new();
        entry.write(&mut out, format, "127.0.0.1", 123, UNIX_EPOCH + Duration::from_millis(1));
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn json_lines_are_objects() {
        let line: serde_json::Value = serde_json::from_str(&line(LogFormat::Json)).expect("an object");
        assert_eq!(line["target"], "/a\\b?c=d");
        assert_eq!((&line["method"], &line["backend"]), (&"GET".into(), &"i \"1\"".into()));
        assert_eq!((&line["status"], &line["bytes"]), (&200.into(), &23.into()));
        assert!(line["latency_us"].is_u64() && line.get("error").is_none());
    }

    #[test]
    fn text_lines_are_words() {
        let line = line(LogFormat::Text);
        assert!(
            line.starts_with("time=1970-01-01T00:00:00.001Z client=127.0.0.1 method=GET target="),
            "{line}"
        );
        assert!(
            line.contains(" target=\"/a\\\\b?c=d\" status=200 cluster=app backend=\"i \\\"1\\\"\" "),
            "{line}"
        );
        assert!(line.ends_with(" bytes=23\n"), "{line}");
    }

    #[test]
    fn long_targets_are_cut() {
        let mut entry = Entry::default();
        entry.begin(format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(5000)).as_bytes(), 0);
        assert_eq!(entry.line.len(), "GET ".len() + TARGET_BYTES_MAX);
    }

    #[test]
    fn lines_that_cannot_be_written_in_time_are_dropped_and_counted() {
        let (messages, received) = sync_channel(1);
        let (reopen, dropped) = (Arc::default(), Arc::default());
        let log = Arc::new(AccessLog { messages, format: LogFormat::Text, reopen, dropped });
        let recorder = Recorder::new(Arc::clone(&log));
        for _ in 0..3 {
            recorder.record(&mut Entry::default(), "127.0.0.1", 0);
            recorder.record(&mut Entry::default(), "127.0.0.1", 0);
            recorder.flush();
        }
        assert_eq!(log.dropped(), 4);
        assert!(matches!(received.try_recv(), Ok(Message::Lines { count: 2, .. })));
        recorder.record(&mut Entry::default(), "127.0.0.1", 0);
        recorder.flush();
        assert_eq!(log.dropped(), 4, "there is room again");
    }
}
