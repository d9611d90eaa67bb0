//! The services of one instance: each has a task that starts its process, waits for it, starts it again after
//! a failure, and collects what it prints.
//!
//! Definitions lie in `services/NAME.json` and are started again when the instance boots, also those that were
//! stopped by hand (as systemd does with enabled units). What follows from an exit is decided in `unit`.
//! Services do not depend on each other and are started in no particular order.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    process::Child,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

use rustix::process::Signal;

use super::{
    log::Log,
    process::{self, Group, Surroundings},
    record::write_atomic,
    unit::{self, Change, Definition, History, Next, State, Status},
};
use crate::{Error, provider::epoch_s};

/// More services than this on one instance are a mistake.
const SERVICES_MAX: usize = 64;

/// Orders waiting for one service while it stops; a caller waits when it is full.
const ORDERS_MAX: usize = 16;

/// How long the end of a process's output is waited for after its exit: a grandchild may hold the pipe.
const DRAIN_PATIENCE: Duration = Duration::from_millis(500);

/// What is wanted of a service; the answer says whether anything was done.
enum Order {
    Apply(Box<Definition>),
    Start,
    Stop,
    Restart,
    Reload,
    /// Stops and forgets the service; SIGKILL follows SIGTERM after at most this long.
    End(Duration),
}

type Envelope = (Order, oneshot::Sender<bool>);

/// All services of one instance.
#[derive(Debug)]
pub(super) struct Supervisor {
    around: Surroundings,
    definitions: PathBuf,
    logs: PathBuf,
    units: Mutex<BTreeMap<String, Unit>>,
}

#[derive(Debug, Clone)]
struct Unit {
    orders: mpsc::Sender<Envelope>,
    status: watch::Receiver<Status>,
}

impl Supervisor {
    /// `home` is the instance's directory, with `services/` and `logs/` in it.
    pub(super) fn new(home: &Path, around: Surroundings) -> Self {
        let (definitions, logs) = (home.join("services"), home.join("logs"));
        Self { around, definitions, logs, units: Mutex::default() }
    }

    /// Starts all services that were ever applied and not removed; unreadable ones are named on stderr.
    pub(super) async fn boot(&self) {
        let Ok(entries) = fs::read_dir(&self.definitions) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let Some(name) =
                path.file_stem().and_then(|it| it.to_str()).filter(|it| unit::check_name(it).is_ok())
            else {
                continue;
            };
            let definition = fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?));
            match definition {
                Ok(definition) => drop(self.create(name, definition).order(Order::Start).await),
                Err(cause) => eprintln!("service {} is not started: {cause}", path.display()),
            }
        }
    }

    /// Makes the service exist as defined and run; `true` when something had to be done for that.
    pub(super) async fn apply(&self, name: &str, definition: Definition) -> Result<(bool, Status), Error> {
        let refused = |reason| Error::usage(format!("apply service {name}: {reason}"));
        unit::check_name(name).and_then(|()| definition.check()).map_err(refused)?;
        let unit = self.get(name);
        if unit.is_none() && self.lock().len() >= SERVICES_MAX {
            return Err(refused(format!(
                "the instance has {SERVICES_MAX} services, which is the most it may have"
            )));
        }
        let path = self.definitions.join(format!("{name}.json"));
        serde_json::to_vec_pretty(&definition)
            .map_err(io::Error::from)
            .and_then(|text| write_atomic(&path, &text))
            .map_err(|cause| {
                Error::host(format!("apply service {name}: write {}: {cause}", path.display()))
            })?;
        let (unit, order) = match unit {
            Some(unit) => (unit, Order::Apply(Box::new(definition))),
            None => (self.create(name, definition), Order::Start),
        };
        Ok((unit.order(order).await?, unit.status()))
    }

    pub(super) async fn start(&self, name: &str) -> Result<Status, Error> {
        self.order(name, Order::Start).await
    }

    pub(super) async fn stop(&self, name: &str) -> Result<Status, Error> {
        self.order(name, Order::Stop).await
    }

    pub(super) async fn restart(&self, name: &str) -> Result<Status, Error> {
        self.order(name, Order::Restart).await
    }

    /// Sends SIGHUP to the service's main process; an error when it does not run.
    pub(super) async fn reload(&self, name: &str) -> Result<Status, Error> {
        let unit = self.existing(name)?;
        if unit.order(Order::Reload).await? {
            return Ok(unit.status());
        }
        Err(Error::host(format!("reload service {name}: it is not running")))
    }

    pub(super) fn status(&self, name: &str) -> Result<Status, Error> {
        Ok(self.existing(name)?.status())
    }

    pub(super) fn statuses(&self) -> Vec<Status> {
        self.lock().values().map(Unit::status).collect()
    }

    /// Stops and forgets; a service that does not exist is no error. Its log stays.
    pub(super) async fn remove(&self, name: &str) -> Result<(), Error> {
        let Some(unit) = self.get(name) else { return Ok(()) };
        let path = self.definitions.join(format!("{name}.json"));
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(Error::host(format!(
                    "remove service {name}: remove {}: {cause}",
                    path.display()
                )));
            }
            _ => {}
        }
        unit.order(Order::End(Duration::MAX)).await?;
        self.lock().remove(name);
        Ok(())
    }

    /// Stops all services at once, and waits no longer than `grace` for any of them before it is killed. Their
    /// definitions stay.
    pub(super) async fn shut_down(&self, grace: Duration) {
        let units = std::mem::take(&mut *self.lock());
        let answers: Vec<_> = units
            .into_values()
            .map(|unit| tokio::spawn(async move { unit.order(Order::End(grace)).await }))
            .collect();
        for answer in answers {
            // A service that has ended before is just as good.
            let _ = answer.await;
        }
    }

    pub(super) fn log_path(&self, name: &str) -> Result<PathBuf, Error> {
        unit::check_name(name).map_err(|reason| Error::usage(format!("show log: {reason}")))?;
        let path = self.logs.join(format!("{name}.log"));
        if path.exists() || self.get(name).is_some() {
            return Ok(path);
        }
        Err(self.unknown(name))
    }

    async fn order(&self, name: &str, order: Order) -> Result<Status, Error> {
        let unit = self.existing(name)?;
        unit.order(order).await?;
        Ok(unit.status())
    }

    fn create(&self, name: &str, definition: Definition) -> Unit {
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        let status = watch::Sender::new(Status {
            name: name.to_owned(),
            state: State::Stopped,
            pid: None,
            exit_status: None,
            restarts: 0,
            since_s: epoch_s(SystemTime::now()),
            hash: definition.hash.clone(),
        });
        let unit = Unit { orders, status: status.subscribe() };
        let log = self.logs.join(format!("{name}.log"));
        let around = self.around.clone();
        let keeper =
            Keeper { definition, around, log, status, life: Life::Down, history: History::default() };
        tokio::spawn(keeper.run(inbox));
        self.lock().insert(name.to_owned(), unit.clone());
        unit
    }

    fn get(&self, name: &str) -> Option<Unit> {
        self.lock().get(name).cloned()
    }

    fn existing(&self, name: &str) -> Result<Unit, Error> {
        self.get(name).ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> Error {
        let known: Vec<_> = self.lock().keys().cloned().collect();
        let hint =
            if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
        Error::host(format!("there is no service {name:?} on this instance")).with_hint(hint)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Unit>> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Unit {
    fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    async fn order(&self, order: Order) -> Result<bool, Error> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::host(format!("service {} is being removed", self.status.borrow().name));
        self.orders.send((order, reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

/// One service's task.
struct Keeper {
    definition: Definition,
    around: Surroundings,
    log: PathBuf,
    status: watch::Sender<Status>,
    life: Life,
    history: History,
}

enum Life {
    Down,
    /// Until it is started again.
    Waiting(Instant),
    Up(Box<Process>),
}

struct Process {
    child: Child,
    group: Group,
    output: JoinHandle<()>,
    started: Instant,
}

enum Event {
    Due,
    Exited(i32),
}

impl Keeper {
    async fn run(mut self, mut inbox: mpsc::Receiver<Envelope>) {
        loop {
            tokio::select! {
                envelope = inbox.recv() => {
                    let Some((order, reply)) = envelope else { return self.stop(Duration::ZERO).await };
                    let is_end = matches!(order, Order::End(_));
                    let done = self.obey(order).await;
                    // The one who asked may have gone away.
                    let _ = reply.send(done);
                    if is_end {
                        return;
                    }
                }
                event = self.life.event() => match event {
                    Event::Due => self.spawn(),
                    Event::Exited(status) => self.on_exit(status).await,
                },
            }
        }
    }

    async fn obey(&mut self, order: Order) -> bool {
        match order {
            Order::Apply(definition) => return self.apply(*definition).await,
            Order::Start if matches!(self.life, Life::Up(_)) => return false,
            Order::Start => self.start(),
            Order::Stop => self.stop(Duration::MAX).await,
            Order::Restart => {
                self.stop(Duration::MAX).await;
                self.start();
            }
            Order::Reload => return self.reload(),
            Order::End(grace) => self.stop(grace).await,
        }
        true
    }

    async fn apply(&mut self, definition: Definition) -> bool {
        let is_meant_to_run = matches!(self.life, Life::Up(_) | Life::Waiting(_));
        match self.definition.change_to(&definition) {
            Change::Nothing if is_meant_to_run => return false,
            Change::Reload if is_meant_to_run => {
                self.definition = definition;
                // One that waits for its start reads the new files then.
                self.reload();
                return true;
            }
            _ => {}
        }
        self.stop(Duration::MAX).await;
        self.status.send_modify(|status| status.hash.clone_from(&definition.hash));
        self.definition = definition;
        self.start();
        true
    }

    /// Starts on request: what happened before is forgotten.
    fn start(&mut self) {
        self.history = History::default();
        self.status.send_modify(|status| status.restarts = 0);
        self.spawn();
    }

    fn spawn(&mut self) {
        if matches!(self.life, Life::Waiting(_)) {
            self.status.send_modify(|status| status.restarts += 1);
        }
        match self.try_spawn() {
            Ok(process) => {
                let pid = process.group.id();
                self.life = Life::Up(Box::new(process));
                self.publish(State::Running, Some(pid));
            }
            Err(cause) => {
                self.note(&format!("labhost: the service cannot be started: {cause}\n"));
                self.decide(126, Duration::ZERO);
            }
        }
    }

    fn try_spawn(&self) -> io::Result<Process> {
        let (reader, writer) = io::pipe()?;
        let log = Log::open(self.log.clone())?;
        let script = format!("exec {}", self.definition.exec);
        let mut command = process::command("/bin/sh", &["-c", &script], &self.around);
        command.envs(&self.definition.env);
        command.stdout(Stdio::from(writer.try_clone()?)).stderr(Stdio::from(writer));
        let child = command.spawn()?;
        let group = Group::of(&child).ok_or_else(|| io::Error::other("it ended at once"))?;
        let reader = pipe::Receiver::from_owned_fd(reader.into())?;
        Ok(Process { child, group, output: tokio::spawn(collect(reader, log)), started: Instant::now() })
    }

    async fn on_exit(&mut self, status: i32) {
        let Life::Up(process) = std::mem::replace(&mut self.life, Life::Down) else { return };
        let lived = process.started.elapsed();
        process.finish().await;
        self.decide(status, lived);
    }

    /// Publishes what follows from the end of a process, and waits or rests.
    fn decide(&mut self, status: i32, lived: Duration) {
        self.status.send_modify(|it| it.exit_status = Some(status));
        let (life, state) = match self.history.on_exit(self.definition.restart, status, lived) {
            Next::Wait(wait) => (Life::Waiting(Instant::now() + wait), State::Starting),
            Next::Stopped => (Life::Down, State::Stopped),
            Next::Failed => (Life::Down, State::Failed),
        };
        self.life = life;
        self.publish(state, None);
    }

    /// SIGTERM, and SIGKILL after the service's own time or `grace`, whichever is shorter.
    async fn stop(&mut self, grace: Duration) {
        if let Life::Up(mut process) = std::mem::replace(&mut self.life, Life::Down) {
            process.group.signal(Signal::TERM);
            let grace = grace.min(self.definition.stop_timeout.0);
            let ended = match tokio::time::timeout(grace, process.child.wait()).await {
                Ok(ended) => ended,
                Err(_) => {
                    process.group.signal(Signal::KILL);
                    process.child.wait().await
                }
            };
            process.finish().await;
            self.status.send_modify(|status| status.exit_status = ended.ok().map(process::exit_code));
        }
        self.publish(State::Stopped, None);
    }

    fn reload(&self) -> bool {
        let Life::Up(process) = &self.life else { return false };
        process.group.signal_leader(Signal::HUP);
        true
    }

    fn publish(&self, state: State, pid: Option<u32>) {
        self.status.send_modify(|status| {
            if status.state != state || status.pid != pid {
                status.since_s = epoch_s(SystemTime::now());
            }
            (status.state, status.pid) = (state, pid);
        });
    }

    fn note(&self, text: &str) {
        // When the log cannot be written there is nowhere else to say it.
        let _ = Log::open(self.log.clone()).and_then(|mut log| log.write(text.as_bytes()));
    }
}

impl Life {
    async fn event(&mut self) -> Event {
        match self {
            Self::Down => std::future::pending().await,
            Self::Waiting(due) => {
                tokio::time::sleep_until(*due).await;
                Event::Due
            }
            Self::Up(process) => Event::Exited(process.child.wait().await.map_or(255, process::exit_code)),
        }
    }
}

impl Process {
    /// After the process was waited for: ends what it left behind and takes in the last of its output.
    async fn finish(self) {
        self.group.signal(Signal::KILL);
        self.group.set_reaped();
        let abort = self.output.abort_handle();
        if tokio::time::timeout(DRAIN_PATIENCE, self.output).await.is_err() {
            abort.abort();
        }
    }
}

/// Appends what comes from the pipe to the log until nobody holds the other end.
async fn collect(mut pipe: pipe::Receiver, mut log: Log) {
    let mut chunk = vec![0; 8192];
    while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
        // A full disk must not block the service: what cannot be written is lost.
        let _ = log.write(&chunk[..count]);
    }
}
