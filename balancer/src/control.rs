//! The process: start, reload, stop.

use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Barrier, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::access::{AccessLog, AccessOptions};
use crate::admin::{Admin, AdminError};
use crate::config::{Config, ConfigError};
use crate::driver::{self, Driver, DriverChoice};
use crate::handover::{HandoverError, Predecessor};
use crate::listen::{ListenError, Listeners};
use crate::signals::{Signal, Signals};
use crate::site::{Shared, lock};
use crate::successor::Successor;
use crate::watch::TICK;
use crate::{clock, notify, probe, server};

/// How often the main thread looks whether the others are still there.
const CHECK: Duration = Duration::from_millis(100);
/// Latencies are reported over the last one to two periods of this length.
const LATENCY_PERIOD: Duration = Duration::from_secs(10);
/// Descriptors beside client and backend connections: listeners, rings, probes, the admin socket, standard streams.
const DESCRIPTORS_OTHER: u64 = 256;
/// How long a successor waits for its first probes before it takes over all the same.
const FIRST_PROBES: Duration = Duration::from_secs(1);
const FIRST_PROBES_CHECK: Duration = Duration::from_millis(10);

/// Why the balancer does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Handover(#[from] HandoverError),
    #[error("set up {what}")]
    SetUp { what: &'static str, source: io::Error },
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("a thread ended before it was told to")]
    ThreadLost,
}

fn set_up(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::SetUp { what, source }
}

/// What a balancer is started with.
#[derive(Debug)]
pub struct Options {
    /// The configuration's file.
    pub config: PathBuf,
    pub driver: DriverChoice,
    /// Take over from the balancer that runs, if one does; the path of its admin socket if it is not that of the
    /// configuration.
    pub replace: Option<Option<PathBuf>>,
    /// A log of requests.
    pub access: Option<AccessOptions>,
}

/// Runs the balancer until SIGTERM, SIGINT or a successor, and drains. SIGHUP reads the configuration again.
pub fn run(options: &Options) -> Result<(), StartError> {
    let config = Config::read(&options.config)?;
    let signals = Signals::block().map_err(set_up("signals"))?;
    raise_descriptor_limit(&config);
    let (admin_path, thread_count) = (config.admin.clone(), config.threads);
    let place = options.replace.as_ref().map(|place| place.as_deref().unwrap_or(&admin_path));
    let mut predecessor = place.map(Predecessor::ask).transpose()?.flatten();
    let listeners = obtain(&config, predecessor.as_mut())?;
    let admin = Admin::open(&admin_path, predecessor.is_some() && place == Some(&admin_path))?;
    let shares = listeners.shares(thread_count).map_err(set_up("listener"))?;
    let listen = listeners.local_addr().map_err(set_up("listener"))?;
    let access = options.access.as_ref().map(AccessLog::open).transpose().map_err(set_up("access log"))?;
    let shared = Arc::new(Shared::new(config, listen, listeners, access));
    let gate = Arc::new(Barrier::new(thread_count + 1));
    let threads = start_threads(shares, options.driver, &shared, &gate)?;
    start_prober(&shared)?;
    let replaces = predecessor.is_some();
    if let Some(predecessor) = predecessor {
        await_first_probes(&shared);
        shared.drain_backends(&predecessor.replace()?);
    }
    gate.wait();
    let admin = admin.publish(&admin_path, &shared);
    // The predecessor accepts no more, so there is no way back.
    if let (true, Err(error)) = (replaces, &admin) {
        tracing::warn!("going on without it: {}", Chain(error));
    }
    let _admin = if replaces { admin.ok() } else { Some(admin?) };
    announce(&shared);
    notify::send("READY=1");
    supervise(&options.config, &signals, &shared, &threads)
}

/// The predecessor's listeners if they are where the configuration wants them; else systemd's; else new ones.
fn obtain(config: &Config, predecessor: Option<&mut Predecessor>) -> Result<Listeners, ListenError> {
    if let Some(sockets) = predecessor.and_then(|predecessor| predecessor.listeners_at(config.listen)) {
        return Listeners::adopt(sockets);
    }
    match Listeners::inherited()? {
        Some(listeners) => Ok(listeners),
        None => Listeners::bind(config.listen, config.threads),
    }
}

fn start_prober(shared: &Arc<Shared>) -> Result<(), StartError> {
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new().name("probe".to_owned()).spawn(move || probe::run(&shared));
    thread.map(drop).map_err(set_up("probe thread"))
}

/// A predecessor knows which backends are down, and so should its successor.
fn await_first_probes(shared: &Shared) {
    let due = clock::now() + FIRST_PROBES;
    while clock::now() < due && !shared.generation().members().all(|member| member.probed.load(Relaxed)) {
        std::thread::sleep(FIRST_PROBES_CHECK);
    }
}

fn announce(shared: &Shared) {
    let drivers = lock(&shared.drivers);
    let driver = drivers.first().map_or(String::new(), ToString::to_string);
    let policy = shared.generation().config.policy.name();
    let (address, threads) = (shared.listen, drivers.len());
    tracing::info!(
        %address,
        threads,
        driver,
        policy,
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        "listening on {address}, {threads} threads, {driver}, policy {policy}"
    );
}

fn start_threads(
    shares: Vec<Vec<TcpListener>>,
    choice: DriverChoice,
    shared: &Arc<Shared>,
    gate: &Arc<Barrier>,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    let (report, reports) = mpsc::channel();
    let count = shares.len();
    let mut threads = Vec::with_capacity(count);
    for (index, listeners) in shares.into_iter().enumerate() {
        let (shared, report, gate) = (Arc::clone(shared), report.clone(), Arc::clone(gate));
        let body = move || serve(listeners, choice, shared, index as u64, &report, &gate);
        let thread = std::thread::Builder::new().name(format!("serve-{index}")).spawn(body);
        threads.push(thread.map_err(set_up("serving thread"))?);
    }
    drop(report);
    let drivers: Result<Vec<Driver>, io::Error> = reports.iter().take(count).collect();
    *lock(&shared.drivers) = drivers.map_err(set_up("runtime (try --driver epoll)"))?;
    Ok(threads)
}

/// A ring belongs to the thread that builds it. Nothing is accepted before the `gate` opens.
fn serve(
    listeners: Vec<TcpListener>,
    choice: DriverChoice,
    shared: Arc<Shared>,
    seed: u64,
    report: &mpsc::Sender<io::Result<Driver>>,
    gate: &Barrier,
) {
    match driver::build(choice) {
        Ok((runtime, driver)) => {
            // The main thread waits for all reports before it does anything else.
            let _ = report.send(Ok(driver.clone()));
            gate.wait();
            if let Err(error) = server::run(runtime, &driver, listeners, shared, seed) {
                tracing::error!(thread = seed, %error, "serving thread {seed}: {error}");
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
    let mut successor = Successor::default();
    loop {
        match signals.next(CHECK) {
            Some(Signal::Reload) => {
                shared.access.iter().for_each(|log| log.reopen());
                reload(path, shared);
            }
            Some(Signal::Replace) => successor.start(&shared.generation().config.admin),
            Some(Signal::Stop) => shared.drain(),
            None => {}
        }
        if shared.is_draining() {
            let drained = drain(signals, shared, threads);
            shared.access.iter().for_each(|log| log.flush());
            return drained;
        }
        successor.check();
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
            return tracing::warn!("reload refused, the old configuration stays: {}", Chain(&error));
        }
    };
    let old = shared.generation();
    let fixed = [
        ("listen", old.config.listen != config.listen),
        ("threads", old.config.threads != config.threads),
        ("admin", old.config.admin != config.admin),
    ];
    if let Some((key, _)) = fixed.iter().find(|(_, changed)| *changed) {
        return tracing::warn!(
            key,
            "reload refused, the old configuration stays: `{key}` changes only with a restart"
        );
    }
    shared.replace(config);
    let generation = shared.generation();
    let (clusters, backends) = (generation.clusters.len(), generation.members().count());
    let number = generation.number;
    tracing::info!(
        generation = number,
        clusters,
        backends,
        "reloaded: {clusters} clusters, {backends} backends"
    );
}

/// Waits until every client is gone or the time for it is over. Another signal to stop does not wait.
fn drain(signals: &Signals, shared: &Shared, threads: &[JoinHandle<()>]) -> Result<(), StartError> {
    tracing::info!("draining");
    if !shared.is_handed_over() {
        notify::send("STOPPING=1");
    }
    // The threads' own time, with what they may be late by, and then that of the last answers.
    for time in [shared.generation().config.timeouts.drain, server::LAST_ANSWERS + 3 * TICK] {
        let due = clock::now() + time;
        while threads.iter().any(|thread| !thread.is_finished()) && clock::now() < due {
            if signals.next(CHECK / 4) == Some(Signal::Stop) {
                return Ok(());
            }
        }
    }
    tracing::info!("stopped");
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
        let connections = config.limits.connections;
        tracing::warn!(
            current,
            needed,
            "only {current} descriptors for {connections} connections; raise `ulimit -n` to {needed}"
        );
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
