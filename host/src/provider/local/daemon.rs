//! The agent's process: one per lab, detached, asleep unless somebody asks.
//!
//! It boots what is on disk, answers requests on its socket, and ends when the lab expires, when it has had no
//! instance for a minute, on `Shutdown`, or on SIGTERM (which keeps the instances on disk). Killing it is a
//! power cut of all machines: its children die with it, and the next agent boots the same instances again.
//!
//! What it does for a request is in `agent`, and who may ask in `control`.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
};

use super::{agent::Agent, control, place::Place, process};
use crate::{Error, Kind, error::Context};

/// An agent without instances ends after this long: nobody needs to remember to stop it.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// How often time of expiry, idleness and socket are looked at.
const TICK: Duration = Duration::from_secs(1);

/// Whoever only looks whether an agent holds the lock has it for a moment; an agent has it for longer.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);

/// Runs the agent of the lab at `state_dir` until it ends; at once when one runs already.
///
/// It must be called on the main thread and outside a tokio runtime: children die with the thread that starts
/// them, which is the one that calls this.
pub fn agent_main(state_dir: &Path) -> Result<(), Error> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    process::raise_descriptor_limit();
    let place = Place::of(state_dir)?;
    place.make_runtime()?;
    let Some(_lock) = take_lock(&place.lock())? else {
        note!("an agent of lab {} runs already", place.lab);
        return Ok(());
    };
    make_private(&place.local())?;
    // The last agent may have left processes that were started by its children.
    for left in process::kill_marked(&[place.mark()]) {
        note!("process {} ({}) of an earlier agent cannot be killed", left.pid, left.name);
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(Kind::Host, || "start the agent".to_owned())?
        .block_on(serve(place))
}

async fn serve(place: Place) -> Result<(), Error> {
    let mut terminate =
        signal(SignalKind::terminate()).context(Kind::Host, || "watch for SIGTERM".to_owned())?;
    let agent = Arc::new(Agent::boot(place, IDLE_MAX).await?);
    let mut socket = Socket::bind(&agent)?;
    note!("lab {} runs at 127.77.{}.0/24 (process {})", agent.place.lab, agent.octet, std::process::id());
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            Ok((stream, _)) = socket.listener.accept() => control::serve(stream, agent.clone()),
            _ = tick.tick() => {
                agent.look_at_the_clock().await;
                // Cleaners of /tmp remove what is old.
                if !agent.is_leaving() && !socket.is_there() {
                    match Socket::bind(&agent) {
                        Ok(bound) => socket = bound,
                        Err(error) => note!("the socket is gone: {error}"),
                    }
                }
            }
            _ = terminate.recv() => {
                note!("told to end; the instances stay on disk");
                agent.power_off().await;
                agent.over.cancel();
            }
            () = agent.over.cancelled() => return Ok(()),
        }
    }
}

/// Takes the lock and writes this process's id into it; `None` when another process has it.
fn take_lock(path: &Path) -> Result<Option<File>, Error> {
    let failed = |cause: io::Error| Error::host(format!("lock {}: {cause}", path.display()));
    let mut options = OpenOptions::new();
    let mut file = options.create(true).truncate(false).write(true).mode(0o600).open(path).map_err(failed)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() > deadline => return Ok(None),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(5)),
            result => break result.map_err(|errno| failed(errno.into()))?,
        }
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(Some(file))
}

/// The agent's socket, and how to tell whether it is still the one at its path.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: Option<u64>,
}

impl Socket {
    /// Replaces a socket that a dead agent left; the lock says that it is dead. Notes the lab's addresses beside it.
    fn bind(agent: &Agent) -> Result<Self, Error> {
        agent.place.make_runtime()?;
        agent.place.note_block(agent.octet)?;
        let path = agent.place.socket();
        let failed = |cause: io::Error| Error::host(format!("listen on {}: {cause}", path.display()));
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(failed(cause)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { listener, inode: inode_of(&path), path })
    }

    fn is_there(&self) -> bool {
        inode_of(&self.path) == self.inode
    }
}

fn inode_of(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|meta| meta.ino())
}

fn make_private(directory: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o700)))
        .context(Kind::Host, || format!("create {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_agent_holds_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.lock");
        let first = take_lock(&path).unwrap();
        assert!(first.is_some());
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert!(take_lock(&path).unwrap().is_none());
        drop(first);
        assert!(take_lock(&path).unwrap().is_some());
    }
}
