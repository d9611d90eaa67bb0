//! One service: a task that starts its process, waits for it, starts it again after a failure, and collects what
//! it prints.
//!
//! What follows from an exit is decided in `unit`. Nothing is kept on disk here but the log.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};

use rustix::process::Signal;
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    process::Child,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

use super::{
    log::Log,
    process::{self, Group, Surroundings},
    unit::{Change, Definition, History, Next, State, Status},
};
use crate::{Error, units::epoch_s};

/// Orders waiting for one service while it stops; a caller waits when it is full.
const ORDERS_MAX: usize = 16;

/// How long the end of a process's output is waited for after its exit: a grandchild may hold the pipe.
const DRAIN_PATIENCE: Duration = Duration::from_millis(500);

/// How long a successor may take until it has taken over, beside the time that the old process has to stop.
pub(super) const HAND_OVER_PATIENCE: Duration = Duration::from_secs(30);

/// What is wanted of a service; the answer says whether anything was done, or why it could not be.
pub(super) enum Order {
    Apply(Box<Definition>),
    Start,
    Stop,
    Restart,
    Reload,
    /// Stops and forgets the service; SIGKILL follows SIGTERM after at most this long.
    End(Duration),
}

type Done = Result<bool, String>;
type Envelope = (Order, oneshot::Sender<Done>);

/// A handle of one service's task; the task ends when the last handle is gone.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    orders: mpsc::Sender<Envelope>,
    status: watch::Receiver<Status>,
}

impl Unit {
    /// Starts a service's task; the service itself is down until it is ordered to start.
    pub(super) fn keep(name: &str, definition: Definition, around: Surroundings, log: PathBuf) -> Self {
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
        let unit = Self { orders, status: status.subscribe() };
        let keeper =
            Keeper { definition, around, log, status, life: Life::Down, history: History::default() };
        tokio::spawn(keeper.run(inbox));
        unit
    }

    pub(super) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    pub(super) async fn order(&self, order: Order) -> Result<bool, Error> {
        let (reply, answer) = oneshot::channel();
        let failed = |why: &str| Error::host(format!("service {} {why}", self.status.borrow().name));
        let gone = "is being removed";
        self.orders.send((order, reply)).await.map_err(|_| failed(gone))?;
        answer.await.map_err(|_| failed(gone))?.map_err(|why| failed(&why))
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

    async fn obey(&mut self, order: Order) -> Done {
        match order {
            Order::Apply(definition) => return self.apply(*definition).await,
            Order::Start if matches!(self.life, Life::Up(_)) => return Ok(false),
            Order::Start => self.start(),
            Order::Stop => self.stop(Duration::MAX).await,
            Order::Restart if self.definition.handover => {
                return self.hand_over(self.definition.clone()).await;
            }
            Order::Restart => self.renew(self.definition.clone()).await,
            Order::Reload => return Ok(self.reload()),
            Order::End(grace) => self.stop(grace).await,
        }
        Ok(true)
    }

    async fn apply(&mut self, next: Definition) -> Done {
        let is_meant_to_run = matches!(self.life, Life::Up(_) | Life::Waiting(_));
        match self.definition.change_to(&next) {
            Change::Nothing if is_meant_to_run => return Ok(false),
            Change::Reload if is_meant_to_run => {
                self.definition = next;
                // One that waits for its start reads the new files then.
                self.reload();
            }
            Change::HandOver => return self.hand_over(next).await,
            _ => self.renew(next).await,
        }
        Ok(true)
    }

    /// Stops what runs, and starts it as `next` says.
    async fn renew(&mut self, next: Definition) {
        self.stop(Duration::MAX).await;
        self.define(next);
        self.start();
    }

    fn define(&mut self, definition: Definition) {
        self.status.send_modify(|status| status.hash.clone_from(&definition.hash));
        self.definition = definition;
    }

    /// Starts `next` beside the running process, which ends because of that. A successor that ends first changes
    /// nothing; one that does neither in time is no successor, and the old process is stopped for it.
    async fn hand_over(&mut self, next: Definition) -> Done {
        let Life::Up(old) = &mut self.life else {
            self.renew(next).await;
            return Ok(true);
        };
        let cannot = |cause| format!("goes on as it was: its successor cannot be started: {cause}");
        let mut successor = try_spawn(&next, &self.around, &self.log).map_err(cannot)?;
        let patience = HAND_OVER_PATIENCE + self.definition.stop_timeout.0;
        let has_ended = tokio::select! {
            _ = old.child.wait() => true,
            () = tokio::time::sleep(patience) => false,
            ended = successor.child.wait() => {
                successor.finish().await;
                let status = ended.map_or(255, process::exit_code);
                return Err(format!("goes on as it was: its successor ended with status {status}; its log says why"));
            }
        };
        match std::mem::replace(&mut self.life, Life::Down) {
            Life::Up(old) if has_ended => old.finish().await,
            life => {
                self.life = life;
                self.stop(Duration::MAX).await;
            }
        }
        self.define(next);
        self.history = History::default();
        self.status.send_modify(|status| status.restarts = 0);
        self.rise(successor);
        Ok(true)
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
        match try_spawn(&self.definition, &self.around, &self.log) {
            Ok(process) => self.rise(process),
            Err(cause) => {
                self.note(&format!("labhost: the service cannot be started: {cause}\n"));
                self.decide(126, Duration::ZERO);
            }
        }
    }

    fn rise(&mut self, process: Process) {
        let pid = process.group.id();
        self.life = Life::Up(Box::new(process));
        self.publish(State::Running, Some(pid));
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

fn try_spawn(definition: &Definition, around: &Surroundings, log: &Path) -> io::Result<Process> {
    let (reader, writer) = io::pipe()?;
    let log = Log::open(log.to_owned())?;
    let script = format!("exec {}", definition.exec);
    let mut command = process::command("/bin/sh", &["-c", &script], around);
    command.envs(&definition.env);
    command.stdout(Stdio::from(writer.try_clone()?)).stderr(Stdio::from(writer));
    let child = command.spawn()?;
    let group = Group::of(&child).ok_or_else(|| io::Error::other("it ended at once"))?;
    let reader = pipe::Receiver::from_owned_fd(reader.into())?;
    Ok(Process { child, group, output: tokio::spawn(collect(reader, log)), started: Instant::now() })
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
