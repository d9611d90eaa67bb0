//! What is said to the agent: one JSON line each way over its unix socket.
//!
//! This module knows the messages and the framing; what they do is in `agent`.

use std::{io, os::unix::net::UnixStream, path::Path, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

use super::unit::{Definition, Status};
use crate::{Error, Kind, instance::Instance, provider::Launch};

/// Raised when a message changes its meaning, so that a new labhost does not misread an old agent.
pub(super) const PROTOCOL: u32 = 1;

/// The longest request: a launch of all slots with many tags, or a service with a large environment.
pub(super) const REQUEST_BYTES_MAX: u64 = 1 << 20;

/// The longest answer: a listing of all instances at 4 KiB each, and more.
pub(super) const ANSWER_BYTES_MAX: u64 = 4 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(super) enum Request {
    Hello,
    Key {
        name: String,
        public_key: String,
    },
    Launch {
        launch: Launch,
    },
    List,
    Terminate {
        ids: Vec<String>,
    },
    Extend {
        expires_at_s: u64,
    },
    /// Terminates everything, removes the lab's files and ends the agent.
    Shutdown,
    /// For tests and experiments: closes all SSH listeners and connections; services go on.
    SshStop,
    SshStart,
    /// Gives an instance another SSH host key.
    HostKey {
        instance: String,
        secret: String,
    },
    Service {
        instance: String,
        act: Act,
    },
}

/// What `labhost-service` asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "snake_case")]
pub(super) enum Act {
    Apply { name: String, definition: Definition },
    Start { name: String },
    Stop { name: String },
    Restart { name: String },
    Reload { name: String },
    Status { name: Option<String> },
    Remove { name: String },
    Log { name: String },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(super) enum Answer {
    Done,
    Hello { protocol: u32, pid: u32 },
    Instances { instances: Vec<Instance> },
    Applied { changed: bool, service: Status },
    Service { service: Status },
    Services { services: Vec<Status> },
    Log { path: PathBuf },
    Failed { kind: String, message: String, hint: Option<String> },
}

impl From<Error> for Answer {
    fn from(error: Error) -> Self {
        Self::Failed { kind: error.kind.name().to_owned(), message: error.message, hint: error.hint }
    }
}

impl Answer {
    /// Turns a reported failure back into an error.
    pub(super) fn checked(self) -> Result<Self, Error> {
        match self {
            Self::Failed { kind, message, hint } => {
                let kinds = [Kind::Provider, Kind::Host, Kind::Usage];
                let kind = kinds.into_iter().find(|it| it.name() == kind).unwrap_or(Kind::Internal);
                Err(Error { kind, message, hint, detail: None })
            }
            answer => Ok(answer),
        }
    }
}

/// Reads one line of at most `bytes_max` bytes; `None` when the other side closed before saying anything.
pub(super) async fn read_line<R>(reader: R, bytes_max: u64) -> io::Result<Option<Vec<u8>>>
where
    R: AsyncBufRead + Unpin,
{
    let mut line = Vec::new();
    let count = reader.take(bytes_max).read_until(b'\n', &mut line).await?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if count as u64 == bytes_max => {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message over {bytes_max} bytes")))
        }
        Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

pub(super) fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Asks the agent and waits for its answer; an error is about the connection, not about the request.
pub(super) async fn ask(socket: &Path, request: &Request, patience: Duration) -> io::Result<Answer> {
    let exchange = async {
        let mut stream = tokio::net::UnixStream::connect(socket).await?;
        stream.write_all(&encode(request)?).await?;
        let line = read_line(tokio::io::BufReader::new(stream), ANSWER_BYTES_MAX).await?;
        decode(line)
    };
    tokio::time::timeout(patience, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// [`ask`] for programs without a runtime.
pub(super) fn ask_blocking(socket: &Path, request: &Request, patience: Duration) -> io::Result<Answer> {
    use std::io::{BufRead, BufReader, Read, Write};
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(&encode(request)?)?;
    let mut line = Vec::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_until(b'\n', &mut line)?;
    decode(line.ends_with(b"\n").then_some(line))
}

fn decode(line: Option<Vec<u8>>) -> io::Result<Answer> {
    let line = line.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    Ok(serde_json::from_slice(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded_and_whole() {
        let read = |text: &'static [u8]| read_line(text, 8);
        assert_eq!(read(b"").await.unwrap(), None);
        assert_eq!(read(b"1234567\nnext").await.unwrap().unwrap(), b"1234567\n");
        assert_eq!(read(b"12345678\n").await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read(b"1234").await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_failure_keeps_its_kind_and_hint() {
        let error = Error::provider("no").with_hint("yes");
        assert_eq!(Answer::from(error.clone()).checked().unwrap_err(), error);
    }
}
