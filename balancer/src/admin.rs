//! The admin socket: what only the balancer's own user may ask.
//!
//! A unix socket of mode 0600. `GET /status` and `GET /metrics` as on the public address, `GET /decisions`,
//! `POST /clusters/NAME/backends/ID/drain` or `/readmit`, and `POST /handover` for a successor. One request per
//! connection, one connection at a time: it is for an operator, not for load.

use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::place::{self, Place};
use crate::site::{Member, Shared};
use crate::{clock, config, handover, status};

/// Whoever connects must be done within this, or others wait for it.
const TIMEOUT: Duration = Duration::from_secs(2);
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Between two attempts to accept when there are no descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Others may be served first, each for up to twice [`TIMEOUT`].
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Beyond what the status of thousands of backends takes.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Why the admin socket cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("admin socket {path}: {problem}")]
pub struct AdminError {
    path: PathBuf,
    problem: String,
}

impl AdminError {
    fn at(path: &Path, problem: impl ToString) -> Self {
        Self { path: path.to_owned(), problem: problem.to_string() }
    }
}

/// The open socket. Its file is removed on drop, unless a successor has put its own there.
pub(crate) struct Admin {
    listener: UnixListener,
    /// Where the file is now.
    path: PathBuf,
    identity: (u64, u64),
}

impl Admin {
    /// Opens a socket that will be at `path` once it is [published](Self::publish). A socket that nobody listens on
    /// any more does not matter; one that somebody listens on is an error unless it is `replaced`.
    pub(crate) fn open(path: &Path, replaced: bool) -> Result<Self, AdminError> {
        check_free(path, replaced).map_err(|problem| AdminError::at(path, problem))?;
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}", std::process::id()));
        let own = PathBuf::from(name);
        bind(&own).map_err(|error| AdminError::at(path, error))
    }

    /// Moves the socket to `path`, and serves it on a thread.
    pub(crate) fn publish(mut self, path: &Path, shared: &Arc<Shared>) -> Result<Self, AdminError> {
        let failed = |error: io::Error| AdminError::at(path, error);
        std::fs::rename(&self.path, path).map_err(failed)?;
        path.clone_into(&mut self.path);
        let (listener, shared) = (self.listener.try_clone().map_err(failed)?, Arc::clone(shared));
        let serve = move || {
            for stream in listener.incoming() {
                match stream {
                    // A client that breaks off is its own problem.
                    Ok(stream) => drop(answer(stream, &shared)),
                    // Who waits goes on waiting for a descriptor, and asking again at once would spin.
                    Err(_) => std::thread::sleep(ACCEPT_PAUSE),
                }
            }
        };
        std::thread::Builder::new().name("admin".to_owned()).spawn(serve).map_err(failed)?;
        Ok(self)
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // Gone already is as good.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Why a running balancer's admin socket gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    #[error("ask the balancer at {path}: nobody answers there; is it running, with this configuration?")]
    Unreached { path: PathBuf, source: io::Error },
    #[error(
        "ask the balancer at {path} for {target}: it says `{answer}`; there are /status, /metrics and /decisions"
    )]
    Refused { path: PathBuf, target: String, answer: String },
}

/// What the balancer that runs with this configuration answers on its admin socket to `GET target`.
pub fn ask(config: &Path, target: &str) -> Result<String, AskError> {
    let path = config::Config::read(config)?.admin;
    let answer =
        exchange(&path, target).map_err(|source| AskError::Unreached { path: path.clone(), source })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.starts_with("HTTP/1.1 200 ") {
        return Ok(body.to_owned());
    }
    let answer = head.lines().next().unwrap_or("").to_owned();
    Err(AskError::Refused { path, target: target.to_owned(), answer })
}

fn exchange(path: &Path, target: &str) -> io::Result<String> {
    let mut stream = place::connect(path)?;
    stream.set_read_timeout(Some(ASK_TIMEOUT))?;
    stream.set_write_timeout(Some(ASK_TIMEOUT))?;
    write!(stream, "GET {target} HTTP/1.1\r\nHost: balancer\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

/// Whether `path` may become ours. What is no socket is not ours to replace.
fn check_free(path: &Path, replaced: bool) -> Result<(), String> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.to_string()),
        Ok(found) if !found.file_type().is_socket() => Err("something that is no socket is there".to_owned()),
        Ok(_) if replaced => Ok(()),
        Ok(_) => match place::connect(path) {
            Ok(_) => Err("another balancer answers there; give each its own `admin`, or take over from it \
                          with --replace"
                .to_owned()),
            Err(_) => Ok(()),
        },
    }
}

/// The file is never there with other permissions than 0600: it is made under a mask, before anybody can connect.
fn bind(path: &Path) -> io::Result<Admin> {
    let place = Place::of(path)?;
    // Of a process that had our number and was killed while it started.
    let _ = std::fs::remove_file(path);
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(place.path());
    rustix::process::umask(before);
    let listener = listener?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(Admin { listener, identity: identity(path)?, path: path.to_owned() })
}

/// A connection on which everything must be done by one time: a timeout per read or write would let a client that
/// moves a byte now and then keep others waiting for as long as it likes.
struct Hurried<'a> {
    stream: &'a UnixStream,
    due: Instant,
}

impl<'a> Hurried<'a> {
    fn new(stream: &'a UnixStream) -> Self {
        Self { stream, due: clock::now() + TIMEOUT }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.due.saturating_duration_since(clock::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Hurried<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(into)
    }
}

impl Write for Hurried<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn answer(stream: UnixStream, shared: &Arc<Shared>) -> io::Result<()> {
    let head = read_head(&mut Hurried::new(&stream))?;
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    if (method, path) == ("POST", "/handover") {
        // A successor takes a while; others need not wait for it.
        let shared = Arc::clone(shared);
        let give = move || handover::give(stream, &shared);
        return std::thread::Builder::new().name("handover".to_owned()).spawn(give).map(drop);
    }
    let (status, content_type, body) = respond(method, path, shared);
    let length = body.len();
    write!(
        Hurried::new(&stream),
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

fn read_head(stream: &mut Hurried<'_>) -> io::Result<String> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let count = stream.read(&mut piece)?;
        if count == 0 || head.len() + count > HEAD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.extend_from_slice(&piece[..count]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn respond(method: &str, path: &str, shared: &Arc<Shared>) -> (&'static str, &'static str, String) {
    match (method, path) {
        ("GET", "/status") => {
            let render = |report: Option<&_>| status::json(shared, report);
            ("200 OK", status::JSON, shared.insight.beliefs(shared.uptime(clock::now()), render))
        }
        ("GET", "/decisions") => ("200 OK", status::JSON, status::decisions(shared)),
        ("GET", "/metrics") => ("200 OK", status::METRICS, status::metrics(shared)),
        ("POST", _) => match act(path, shared) {
            Some(done) => ("200 OK", status::JSON, format!("{{\"done\":\"{done}\"}}\n")),
            None => ("404 Not Found", status::JSON, "{\"error\":\"no such backend or action\"}\n".to_owned()),
        },
        _ => ("404 Not Found", status::JSON, "{\"error\":\"not found\"}\n".to_owned()),
    }
}

/// `/clusters/NAME/backends/ID/ACTION`.
fn act(path: &str, shared: &Shared) -> Option<&'static str> {
    let parts: Vec<&str> = path.split('/').collect();
    let ["", "clusters", cluster, "backends", id, action] = parts.as_slice() else { return None };
    let generation = shared.generation();
    let is_meant = |member: &&Arc<Member>| member.cluster == *cluster && member.backend.id() == *id;
    let member = generation.members().find(is_meant)?;
    let done = match *action {
        "drain" => {
            member.backend.set_draining(true);
            "drain"
        }
        "readmit" => {
            member.backend.set_draining(false);
            member.backend.readmit();
            "readmit"
        }
        _ => return None,
    };
    tracing::info!(cluster, backend = id, action = done, "admin: {done} {id} of {cluster}");
    Some(done)
}
