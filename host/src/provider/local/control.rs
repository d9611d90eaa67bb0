//! The agent's side of its socket: who may ask, how much at once, and which request does what.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::UnixStream,
};

use super::{
    agent::Agent,
    wire::{Act, Answer, PROTOCOL, REQUEST_BYTES_MAX, Request, encode, read_line},
};
use crate::{Error, identity::uid};

/// Connections at once; a run uses one at a time, and every `labhost-service` one.
const CONNECTIONS_MAX: usize = 256;

/// From connecting to the end of the request.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);

/// How long a client may take to read its answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Counts an open connection until it is dropped.
struct Admission;

impl Admission {
    fn take() -> Option<Self> {
        let admission = Self;
        (OPEN.fetch_add(1, Ordering::AcqRel) < CONNECTIONS_MAX).then_some(admission)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Answers one connection in a task of its own. A request that has been read is carried out even if the client
/// dies meanwhile.
pub(super) fn serve(stream: UnixStream, agent: Arc<Agent>) {
    if !stream.peer_cred().is_ok_and(|peer| peer.uid() == uid()) {
        return;
    }
    let Some(admission) = Admission::take() else {
        let full = Error::host(format!("the agent answers {CONNECTIONS_MAX} others; try again"));
        if let Ok(line) = encode(&Answer::from(full)) {
            // The socket's buffer is empty; should it not be, the client sees the end.
            let _ = stream.try_write(&line);
        }
        return;
    };
    tokio::spawn(async move {
        // The client has gone, or sent nonsense: nobody is left to tell.
        let _ = attend(stream, &agent).await;
        drop(admission);
    });
}

async fn attend(stream: UnixStream, agent: &Arc<Agent>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let line = tokio::time::timeout(REQUEST_PATIENCE, read_line(&mut stream, REQUEST_BYTES_MAX)).await??;
    let Some(line) = line else { return Ok(()) };
    agent.touch();
    let (answer, is_last) = match serde_json::from_slice::<Request>(&line) {
        Ok(request) => {
            let is_last = matches!(request, Request::Shutdown);
            (obey(agent, request).await.unwrap_or_else(Answer::from), is_last)
        }
        Err(cause) => {
            (Error::internal(format!("the agent does not understand the request: {cause}")).into(), false)
        }
    };
    let sent = tokio::time::timeout(ANSWER_PATIENCE, stream.write_all(&encode(&answer)?)).await;
    if is_last {
        agent.over.cancel();
    }
    sent?
}

async fn obey(agent: &Arc<Agent>, request: Request) -> Result<Answer, Error> {
    match request {
        Request::Hello => return Ok(Answer::Hello { protocol: PROTOCOL, pid: std::process::id() }),
        Request::Key { name, public_key } => agent.ensure_key(&name, &public_key).await?,
        Request::Launch { launch } => {
            return Ok(Answer::Instances { instances: agent.launch(launch).await? });
        }
        Request::List => return Ok(Answer::Instances { instances: agent.list().await? }),
        Request::Terminate { ids } => agent.terminate(&ids).await?,
        Request::Extend { expires_at_s } => agent.extend(expires_at_s).await?,
        Request::Shutdown => agent.destroy().await?,
        Request::SshStop => agent.set_ssh(false).await?,
        Request::SshStart => agent.set_ssh(true).await?,
        Request::HostKey { instance, secret } => agent.machine(&instance).await?.set_host_key(&secret)?,
        Request::Service { instance, act } => return serve_instance(agent, &instance, act).await,
    }
    Ok(Answer::Done)
}

async fn serve_instance(agent: &Agent, id: &str, act: Act) -> Result<Answer, Error> {
    let machine = agent.machine(id).await?;
    let services = &machine.services;
    let service = match act {
        Act::Apply { name, definition } => {
            let (changed, service) = services.apply(&name, definition).await?;
            return Ok(Answer::Applied { changed, service });
        }
        Act::Start { name } => services.start(&name).await?,
        Act::Stop { name } => services.stop(&name).await?,
        Act::Restart { name } => services.restart(&name).await?,
        Act::Reload { name } => services.reload(&name).await?,
        Act::Status { name: Some(name) } => services.status(&name)?,
        Act::Status { name: None } => return Ok(Answer::Services { services: services.statuses() }),
        Act::Log { name } => return Ok(Answer::Log { path: services.log_path(&name)? }),
        Act::Remove { name } => {
            services.remove(&name).await?;
            return Ok(Answer::Done);
        }
    };
    Ok(Answer::Service { service })
}
