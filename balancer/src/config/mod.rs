//! The configuration: parsed and checked once, then immutable.
//!
//! The smallest one that is whole names an address to listen on and one cluster:
//! ```json
//! { "listen": "0.0.0.0:80",
//!   "clusters": { "app": { "backends": [ { "id": "i-1", "address": "10.0.0.5:8000" } ] } } }
//! ```
//! Every key is documented at its field below. This module does not open sockets and does not know what is running.

mod cluster;
mod object;
mod strict;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use select::PolicyKind;
use serde_json::Value;

pub use cluster::{BROWSER_FIELDS, BackendConfig, CATCH_ALL, ClusterConfig, Probe};
pub use object::ConfigError;
use object::Object;

use crate::http::{FIELDS_MAX, HeadLimits};

/// A thread costs a ring and half a megabyte; nobody has more cores than this in one balancer.
const THREADS_MAX: u64 = 256;

/// A whole configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `listen`: address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// `threads`: runtimes, each on a thread of its own; by default one per core.
    pub threads: usize,
    /// `policy`: see [`PolicyKind::NAMES`].
    pub policy: PolicyKind,
    /// `admin`: path of a unix socket, mode 0600; by default the config's path with `.sock` appended.
    pub admin: PathBuf,
    pub timeouts: Timeouts,
    pub limits: Limits,
    /// `clusters`: in the order of their names.
    pub clusters: Vec<ClusterConfig>,
}

/// `timeouts`. They are checked ten times a second, so an effective one is up to 100 ms longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// `connect_ms`: until a backend accepts.
    pub connect: Duration,
    /// `head_ms`: for a whole request head, from its first byte (or from the connection's start).
    pub head: Duration,
    /// `response_ms`: from the sent request to the response's whole head.
    pub response: Duration,
    /// `body_idle_ms`: without progress in a body, in either direction.
    pub body_idle: Duration,
    /// `deadline_ms`: an answer after this is of no use. Backends then get no more requests at once than they are found
    /// to answer long before, and what would wait too long is refused; what a backend has is not ended. By default
    /// nothing is learnt and requests wait as if it were `response_ms`. Not for clusters some of whose requests are
    /// long by nature, such as long polls among quick ones.
    pub deadline: Option<Duration>,
    /// `keepalive_ms`: an idle client connection.
    pub keepalive: Duration,
    /// `drain_ms`: from SIGTERM to the end, whatever is still open.
    pub drain: Duration,
}

/// `limits`. Each bounds memory or descriptors that a stranger could otherwise use up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// `head_bytes`, `target_bytes`, `fields`: of one head; beyond are 431, 414 and 431.
    pub head: HeadLimits,
    /// `connections`: client connections of the whole process; beyond is 503.
    pub connections: usize,
    /// `bodies`: messages streamed at once because they do not fit in one buffer; beyond is 503.
    pub bodies: usize,
    /// `queue`: requests of one cluster that wait for a backend with room; beyond is 503. With 0 none waits.
    pub queue: usize,
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let shown = || path.display().to_string();
        let text = std::fs::read(path).map_err(|source| ConfigError::Read { path: shown(), source })?;
        let value =
            strict::from_slice(&text).map_err(|source| ConfigError::Json { path: shown(), source })?;
        Self::parse(value, path)
    }

    /// Checks a configuration that was read from `path`.
    pub fn parse(value: Value, path: &Path) -> Result<Self, ConfigError> {
        let mut top = Object::new("", value)?;
        let listen = address(&mut top, "listen")?;
        let policy = policy(&mut top)?;
        let threads = top.number("threads", cores(), 1..=THREADS_MAX)? as usize;
        let admin = top.string("admin")?.map_or_else(|| beside(path), PathBuf::from);
        let timeouts = Timeouts::take(top.object("timeouts")?)?;
        let limits = Limits::take(top.object("limits")?)?;
        let clusters = cluster::take_all(&mut top)?;
        top.finish()?;
        Ok(Self { listen, threads, policy, admin, timeouts, limits, clusters })
    }
}

impl Timeouts {
    fn take(mut object: Object) -> Result<Self, ConfigError> {
        let seconds = Duration::from_secs;
        let response = object.duration("response_ms", seconds(30))?;
        let timeouts = Self {
            connect: object.duration("connect_ms", seconds(2))?,
            head: object.duration("head_ms", seconds(10))?,
            response,
            deadline: object.optional_duration("deadline_ms")?,
            body_idle: object.duration("body_idle_ms", seconds(30))?,
            keepalive: object.duration("keepalive_ms", seconds(60))?,
            drain: object.duration("drain_ms", seconds(5))?,
        };
        object.finish()?;
        Ok(timeouts)
    }
}

impl Limits {
    fn take(mut object: Object) -> Result<Self, ConfigError> {
        let head_bytes = object.number("head_bytes", 16 << 10, 512..=256 << 10)? as usize;
        let target_bytes = object.number("target_bytes", 8 << 10, 64..=256 << 10)? as usize;
        let fields = object.number("fields", 100, 1..=FIELDS_MAX as u64)? as usize;
        let limits = Self {
            head: HeadLimits { head_bytes, target_bytes: target_bytes.min(head_bytes), fields },
            connections: object.number("connections", 8192, 1..=1_000_000)? as usize,
            bodies: object.number("bodies", 1024, 1..=1_000_000)? as usize,
            queue: object.number("queue", 1024, 0..=1_000_000)? as usize,
        };
        object.finish()?;
        Ok(limits)
    }
}

fn policy(top: &mut Object) -> Result<PolicyKind, ConfigError> {
    let Some(name) = top.string("policy")? else { return Ok(PolicyKind::default()) };
    name.parse().map_err(|_| {
        let hint = object::nearest(&name, &PolicyKind::NAMES)
            .map_or(String::new(), |near| format!(", did you mean `{near}`?"));
        top.error("policy", format!("no policy `{name}`{hint} (known: {})", PolicyKind::NAMES.join(", ")))
    })
}

fn address(object: &mut Object, key: &'static str) -> Result<SocketAddr, ConfigError> {
    let text = object.required_string(key)?;
    text.parse().map_err(|_| {
        object.error(
            key,
            format!("`{text}` is not an address and port such as 127.0.0.1:8080 (names are not resolved)"),
        )
    })
}

fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() as u64).min(THREADS_MAX))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sock");
    PathBuf::from(name)
}
