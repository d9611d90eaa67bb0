//! The process: start, reload, stop.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config::{Config, ConfigError};
use crate::driver::{self, Driver, DriverChoice};
use crate::listen::{self, ListenError};
use crate::signals::{Signal, Signals};
use crate::site::{Shared, lock};
use crate::{admin, clock, log, probe, server};

/// How often the main thread looks whether the others are still there.
const CHECK: Duration = Duration::from_millis(100);
/// Latencies are reported over the last one to two periods of this length.
const LATENCY_PERIOD: Duration = Duration::from_secs(10);
/// Descriptors beside client and backend connections: listeners, rings, probes, the admin socket, standard streams.
const DESCRIPTORS_OTHER: u64 = 256;

/// Why the balancer does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("set up {what}")]
    SetUp { what: &'static str, source: io::Error },
    #[error("admin socket {path}: {problem}")]
    Admin { path: PathBuf, problem: String },
    #[error("a thread ended before it was told to")]
    ThreadLost,
}

fn set_up(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::SetUp { what, source }
}

/// Runs the balancer with the configuration at `path` until SIGTERM or SIGINT, and drains. SIGHUP reads the
/// configuration again.
pub fn run(path: &Path, choice: DriverChoice) -> Result<(), StartError> {
    let config = Config::read(path)?;
    let signals = Signals::block().map_err(set_up("signals"))?;
    raise_descriptor_limit(&config);
    let listeners = match listen::inherited(config.threads)? {
        Some(listeners) => listeners,
        None => listen::bind(config.listen, config.threads)?,
    };
    let listen = listeners[0].local_addr().map_err(set_up("listener"))?;
    let admin_path = config.admin.clone();
    let shared = Arc::new(Shared::new(config, listen));
    let _admin = admin::open(&admin_path, Arc::clone(&shared))?;
    let threads = start_threads(listeners, choice, &shared)?;
    let prober = Arc::clone(&shared);
    std::thread::Builder::new()
        .name("probe".to_owned())
        .spawn(move || probe::run(&prober))
        .map_err(set_up("probe thread"))?;
    announce(&shared);
    supervise(path, &signals, &shared, &threads)
}

fn announce(shared: &Shared) {
    let drivers = lock(&shared.drivers);
    let driver = drivers.first().map_or(String::new(), ToString::to_string);
    let policy = shared.generation().config.policy.name();
    log(format_args!("listening on {}, {} threads, {driver}, policy {policy}", shared.listen, drivers.len()));
}

fn start_threads(
    listeners: Vec<std::net::TcpListener>,
    choice: DriverChoice,
    shared: &Arc<Shared>,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    let (report, reports) = mpsc::channel();
    let count = listeners.len();
    let mut threads = Vec::with_capacity(count);
    for (index, listener) in listeners.into_iter().enumerate() {
        let (shared, report) = (Arc::clone(shared), report.clone());
        let body = move || serve(listener, choice, shared, index as u64, &report);
        let thread = std::thread::Builder::new().name(format!("serve-{index}")).spawn(body);
        threads.push(thread.map_err(set_up("serving thread"))?);
    }
    drop(report);
    let drivers: Result<Vec<Driver>, io::Error> = reports.iter().take(count).collect();
    *lock(&shared.drivers) = drivers.map_err(set_up("runtime (try --driver epoll)"))?;
    Ok(threads)
}

/// A ring belongs to the thread that builds it.
fn serve(
    listener: std::net::TcpListener,
    choice: DriverChoice,
    shared: Arc<Shared>,
    seed: u64,
    report: &mpsc::Sender<io::Result<Driver>>,
) {
    match driver::build(choice) {
        Ok((runtime, driver)) => {
            // The main thread waits for all reports before it does anything else.
            let _ = report.send(Ok(driver.clone()));
            if let Err(error) = server::run(runtime, &driver, listener, shared, seed) {
                log(format_args!("serving thread {seed}: {error}"));
            }
        }
        Err(error) => {
            let _ = report.send(Err(error));
        }
    }
}

/// Waits for signals, and sees to it that no thread dies unnoticed.
fn supervise(
    path: &Path,
    signals: &Signals,
    shared: &Arc<Shared>,
    threads: &[JoinHandle<()>],
) -> Result<(), StartError> {
    let mut rotated = clock::now();
    loop {
        match signals.next(CHECK) {
            Some(Signal::Reload) => reload(path, shared),
            Some(Signal::Stop) => return drain(signals, shared, threads),
            None => {}
        }
        if threads.iter().any(JoinHandle::is_finished) {
            return Err(StartError::ThreadLost);
        }
        rotate_latencies(shared, &mut rotated);
    }
}

fn rotate_latencies(shared: &Shared, rotated: &mut Instant) {
    let now = clock::now();
    if now.saturating_duration_since(*rotated) >= LATENCY_PERIOD {
        *rotated = now;
        shared.generation().members().for_each(|member| member.stats.rotate());
    }
}

/// Reads the configuration again. One that does not check, or that changes what only a start can, is not taken.
fn reload(path: &Path, shared: &Shared) {
    let config = match Config::read(path) {
        Ok(config) => config,
        Err(error) => {
            return log(format_args!("reload refused, the old configuration stays: {}", Chain(&error)));
        }
    };
    let old = shared.generation();
    let fixed = [
        ("listen", old.config.listen != config.listen),
        ("threads", old.config.threads != config.threads),
        ("admin", old.config.admin != config.admin),
    ];
    if let Some((key, _)) = fixed.iter().find(|(_, changed)| *changed) {
        return log(format_args!(
            "reload refused, the old configuration stays: `{key}` changes only with a restart"
        ));
    }
    shared.replace(config);
    let generation = shared.generation();
    let backends = generation.members().count();
    log(format_args!("reloaded: {} clusters, {backends} backends", generation.clusters.len()));
}

/// Waits until every client is gone or the time for it is over. A second signal does not wait.
fn drain(signals: &Signals, shared: &Shared, threads: &[JoinHandle<()>]) -> Result<(), StartError> {
    shared.draining.store(true, Relaxed);
    log(format_args!("draining"));
    let due = server::drain_due(shared, clock::now());
    while threads.iter().any(|thread| !thread.is_finished()) && clock::now() < due {
        if signals.next(CHECK / 4) == Some(Signal::Stop) {
            break;
        }
    }
    log(format_args!("stopped"));
    Ok(())
}

/// Each client may need a connection to a backend as well, and an ordinary user's soft limit is often 1024.
fn raise_descriptor_limit(config: &Config) {
    let needed = 2 * config.limits.connections as u64 + DESCRIPTORS_OTHER;
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return;
    }
    limit.current = Some(limit.maximum.map_or(needed, |maximum| needed.min(maximum)));
    // Refused or cut, the limit is as it is: said below, and accepting pauses when it is reached.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
    let current = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    if current < needed {
        log(format_args!(
            "only {current} descriptors for {} connections; raise `ulimit -n` to {needed}",
            config.limits.connections
        ));
    }
}

/// An error with its causes on one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}
