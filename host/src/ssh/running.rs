//! A command on its channel: opened, driven to its end, and killed on every path on which nobody waits for it.
//!
//! This module does not judge exit statuses and keeps no output.

use std::{io, pin::Pin, sync::Arc, time::Duration};

use openssh::{ChildStderr, ChildStdin, ChildStdout, Stdio};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    sync::OwnedSemaphorePermit,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    Inner,
    trailer::{Demux, Ending, Event},
};
use crate::{Error, Kind};

/// Most that is read at once from a stream; the pipes hold 64 KiB.
const READ_MAX: usize = 64 * 1024;
/// A server that has just ended a command may still count it for a moment and refuse the next channel.
const REFUSED_RETRIES: u32 = 20;
const REFUSED_WAIT: Duration = Duration::from_millis(25);
/// How long a finished command's channel may take to close. It stays open when a process in the background
/// holds its output; that must not hold us.
const CLOSE_WAIT: Duration = Duration::from_millis(200);
/// How long a command that is to be killed may take to say its process group: it does so in its first
/// milliseconds, so later means that the connection is gone.
const BEGIN_WAIT: Duration = Duration::from_secs(2);
/// Longest noise of a login script that is kept to explain a command that never began.
const NOISE_MAX: usize = 4 * 1024;

/// Where a command wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Takes the output as it comes; an error ends the command.
pub(crate) type Sink<'a> = &'a mut (dyn FnMut(Stream, &[u8]) -> Result<(), Error> + Send);

/// What the command reads.
pub(crate) enum Input<'a> {
    Nothing,
    Bytes(&'a [u8]),
    File(tokio::fs::File),
    /// These bytes, and then nothing until the future ends; only then its end.
    Held(&'a [u8], Pin<Box<dyn Future<Output = ()> + Send + 'a>>),
}

type Child = openssh::Child<Arc<openssh::Session>>;

struct Pipe<R> {
    /// `None` after end of file.
    read: Option<R>,
    demux: Demux,
}

impl<R: AsyncRead + Unpin> Pipe<R> {
    /// Waits for ever when there is nothing more to come. Safe to cancel.
    async fn next(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.read {
            Some(read) if !self.demux.ended() => read.read(buffer).await,
            _ => std::future::pending().await,
        }
    }

    fn take(&mut self, bytes: &[u8], on_event: &mut dyn FnMut(Event<'_>)) {
        if bytes.is_empty() {
            self.read = None;
            self.demux.finish(on_event);
        } else {
            self.demux.feed(bytes, on_event);
        }
    }

    fn over(&self) -> bool {
        self.read.is_none() || self.demux.ended()
    }
}

struct Channel {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Pipe<ChildStdout>,
    stderr: Pipe<ChildStderr>,
    group: Option<u32>,
    ending: Option<Ending>,
    noise: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

/// A command that has been sent. Dropped before its end, it is killed on the host by a task of the session.
pub(crate) struct Running {
    inner: Arc<Inner>,
    channel: Option<Channel>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Without a runtime there is nobody to kill with; the process is ending, and the server closes the pipes.
        if tokio::runtime::Handle::try_current().is_ok() {
            drop(self.kill());
        }
    }
}

impl Running {
    /// Opens a channel for `text`. Once sent it cannot be taken back, so this part runs as a task of its own: when
    /// the caller goes away, the task drops the result and thereby kills the command.
    pub(crate) async fn start(
        inner: &Arc<Inner>,
        text: String,
        label: String,
    ) -> Result<Self, openssh::Error> {
        // The semaphore is never closed.
        let permit =
            inner.channels.clone().acquire_owned().await.map_err(|_| openssh::Error::Disconnected)?;
        let task = tokio::spawn(Self::open(inner.clone(), permit, text, label));
        task.await.unwrap_or(Err(openssh::Error::Disconnected))
    }

    async fn open(
        inner: Arc<Inner>,
        permit: OwnedSemaphorePermit,
        text: String,
        label: String,
    ) -> Result<Self, openssh::Error> {
        let mut child = spawn(&inner, &text).await?;
        let stdin = child.stdin().take();
        let stdout = Pipe { read: child.stdout().take(), demux: Demux::new(&label) };
        let stderr = Pipe { read: child.stderr().take(), demux: Demux::new(&label) };
        let (group, ending, noise) = (None, None, Vec::new());
        let channel = Channel { child, stdin, stdout, stderr, group, ending, noise, _permit: permit };
        Ok(Self { inner, channel: Some(channel) })
    }

    /// Feeds the command and hands on its output until it has ended. `Ok(None)`: it broke off without saying how.
    ///
    /// What background processes write after the command's own end is not waited for.
    pub(crate) async fn drive(&mut self, input: Input<'_>, sink: Sink<'_>) -> Result<Option<Ending>, Error> {
        let Some(channel) = &mut self.channel else { return Ok(None) };
        let feeder = feed(channel.stdin.take(), input);
        tokio::pin!(feeder);
        let mut fed = false;
        let (mut out, mut err) = (vec![0; READ_MAX], vec![0; READ_MAX]);
        while !(channel.stdout.over() && channel.stderr.over()) {
            tokio::select! {
                read = channel.stdout.next(&mut out) => channel.pass(Stream::Stdout, &out[..read.unwrap_or(0)], &mut *sink)?,
                read = channel.stderr.next(&mut err) => channel.pass(Stream::Stderr, &err[..read.unwrap_or(0)], &mut *sink)?,
                result = &mut feeder, if !fed => {
                    result?;
                    fed = true;
                }
            }
        }
        Ok(channel.ending)
    }

    /// What was printed before the command began.
    pub(crate) fn noise(&self) -> Vec<u8> {
        self.channel.as_ref().map(|channel| channel.noise.clone()).unwrap_or_default()
    }

    /// After the end: gives the server the time to close the channel, so that it is not counted any more.
    pub(crate) async fn finish(mut self) {
        if let Some(channel) = self.channel.take() {
            let Channel { child, .. } = channel;
            let _ = timeout(CLOSE_WAIT, child.wait()).await;
        }
    }

    /// Lets go of a command whose connection is gone: there is no way left to kill it.
    pub(crate) fn abandon(&mut self) {
        self.channel = None;
    }

    /// Ends the command's process group on the host, unless the command has ended: its group's number may be
    /// another's by now. The task goes on when its handle is dropped.
    pub(crate) fn kill(&mut self) -> Option<JoinHandle<Result<(), String>>> {
        let mut channel = self.channel.take().filter(|channel| channel.ending.is_none())?;
        let inner = self.inner.clone();
        Some(tokio::spawn(async move {
            let _ = timeout(BEGIN_WAIT, channel.await_begin()).await;
            let Some(group) = channel.group else { return Err("its process group is not known".to_owned()) };
            inner.kill_group(group).await
        }))
    }
}

impl Channel {
    fn pass(&mut self, stream: Stream, bytes: &[u8], sink: Sink<'_>) -> Result<(), Error> {
        let mut result = Ok(());
        let (group, ending, noise) = (&mut self.group, &mut self.ending, &mut self.noise);
        let mut on_event = |event: Event<'_>| match event {
            Event::Noise(bytes) => {
                noise.extend_from_slice(&bytes[..bytes.len().min(NOISE_MAX - noise.len())]);
            }
            Event::Data(bytes) if result.is_ok() => result = sink(stream, bytes),
            Event::Data(_) => {}
            Event::Begin(number) => *group = Some(number),
            Event::End(how) => *ending = Some(how),
        };
        match stream {
            Stream::Stdout => self.stdout.take(bytes, &mut on_event),
            Stream::Stderr => self.stderr.take(bytes, &mut on_event),
        }
        result
    }

    async fn await_begin(&mut self) {
        let mut buffer = vec![0; READ_MAX];
        while self.group.is_none() && !self.stderr.over() {
            let read = self.stderr.next(&mut buffer).await.unwrap_or(0);
            let _ = self.pass(Stream::Stderr, &buffer[..read], &mut |_, _| Ok(()));
        }
    }
}

async fn spawn(inner: &Inner, text: &str) -> Result<Child, openssh::Error> {
    let mut retries = 0;
    loop {
        let mux = inner.mux().ok_or(openssh::Error::Disconnected)?;
        let mut command = mux.arc_raw_command(text);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        match command.spawn().await {
            Err(openssh::Error::SshMux(_)) if retries < REFUSED_RETRIES => {
                retries += 1;
                sleep(REFUSED_WAIT).await;
            }
            result => return result,
        }
    }
}

/// A command that does not read its input to the end is no failure; a local file that cannot be read is.
async fn feed(stdin: Option<ChildStdin>, input: Input<'_>) -> Result<(), Error> {
    let Some(mut stdin) = stdin else { return Ok(()) };
    match input {
        Input::Nothing => {}
        Input::Bytes(bytes) => drop(stdin.write_all(bytes).await),
        Input::Held(bytes, until) => {
            drop(stdin.write_all(bytes).await);
            until.await;
        }
        Input::File(mut file) => {
            let mut buffer = vec![0; READ_MAX];
            loop {
                let read = file.read(&mut buffer).await;
                let read = read.map_err(|error| Error::new(Kind::Internal, format!("read: {error}")))?;
                if read == 0 || stdin.write_all(&buffer[..read]).await.is_err() {
                    break;
                }
            }
        }
    }
    Ok(())
}
