//! One command of an SSH client: its process, the streams between it and the channel, and its end.
//!
//! The order at the end is fixed: all output, then the exit status, then EOF and close. A command whose client
//! goes away gets SIGHUP and, when that does not help, SIGKILL. What a finished command left running in the
//! background is left alone, as on any machine.

use std::{ffi::OsString, io, process::Stdio, sync::Arc, time::Duration};

use russh::{ChannelWriteHalf, server::Msg};
use rustix::process::Signal;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Child,
    task::AbortHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    feed::{self, Feed, Source},
    machine::Guest,
    process::{self, Group},
    pty::{Terminal, Wanted},
};

/// From SIGHUP to SIGKILL when the client has gone.
const HANG_UP_GRACE: Duration = Duration::from_secs(1);

/// How long the last output on a terminal is waited for when the command has ended but others hold it open.
const TERMINAL_DRAIN: Duration = Duration::from_millis(200);

/// Read from a command at a time: one SSH packet.
const CHUNK_BYTES: usize = 32 << 10;

/// SSH's number for stderr (RFC 4254, section 5.2).
const STDERR: u32 = 1;

/// End of file, as a user types it on a terminal.
const CONTROL_D: &[u8] = b"\x04";

/// What the session keeps of a command.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) feed: Feed,
    pub(super) group: Arc<Group>,
    pub(super) terminal: Option<Arc<Terminal>>,
    gone: CancellationToken,
    /// Set before the client is told how the command ended.
    over: CancellationToken,
}

impl Running {
    /// Whether the command has ended. The channel is then closed from this side, which the session is not told.
    pub(super) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Ends the command because its client is gone.
    pub(super) fn hang_up(&self) {
        self.gone.cancel();
    }
}

/// Starts `line`, or a shell; everything else happens in tasks of its own.
pub(super) fn start(
    guest: &Guest,
    line: Option<OsString>,
    wanted: Option<Wanted>,
    channel: ChannelWriteHalf<Msg>,
) -> io::Result<Running> {
    let (feed, source) = feed::feed(guest.home.clone());
    let gone = CancellationToken::new();
    let mut command = shell(guest, line, wanted.is_some());
    let (child, group, terminal, streams) = match wanted {
        None => {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let (child, group) = spawn(&mut command)?;
            (child, group, None, Streams::Pipes)
        }
        Some(wanted) => {
            let (terminal, slave) = Terminal::open(wanted.size)?;
            command.env("TERM", wanted.term);
            command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
            // SAFETY: one system call, on the standard input that this command has by then.
            unsafe { command.pre_exec(|| Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)) };
            let (child, group) = spawn(&mut command)?;
            let terminal = Arc::new(terminal);
            (child, group, Some(terminal.clone()), Streams::Terminal(terminal))
        }
    };
    let over = CancellationToken::new();
    let ends = Ends { gone: gone.clone(), over: over.clone() };
    tokio::spawn(attend(child, group.clone(), streams, source, channel, ends));
    Ok(Running { feed, group, terminal, gone, over })
}

fn spawn(command: &mut tokio::process::Command) -> io::Result<(Child, Arc<Group>)> {
    let child = command.spawn()?;
    let group = Group::of(&child).ok_or_else(|| io::Error::other("it ended at once"))?;
    Ok((child, Arc::new(group)))
}

fn shell(guest: &Guest, line: Option<OsString>, is_interactive: bool) -> tokio::process::Command {
    let bash = "/bin/bash";
    let program = if std::path::Path::new(bash).exists() { bash } else { "/bin/sh" };
    match line {
        Some(line) => process::command("/bin/sh", &[OsString::from("-c"), line], &guest.around),
        // Not a login shell: /etc/profile would replace the search path.
        None if is_interactive => process::command(program, &["-i"], &guest.around),
        None => process::command::<&str>(program, &[], &guest.around),
    }
}

enum Streams {
    Pipes,
    Terminal(Arc<Terminal>),
}

/// The two ways in which a command's end is made known.
struct Ends {
    gone: CancellationToken,
    over: CancellationToken,
}

/// Follows the command to its end and tells the client.
async fn attend(
    mut child: Child,
    group: Arc<Group>,
    streams: Streams,
    source: Source,
    channel: ChannelWriteHalf<Msg>,
    ends: Ends,
) {
    let input = start_input(&mut child, &streams, source);
    let ended = tokio::select! {
        ended = output(&mut child, &streams, &channel) => Some(ended),
        () = ends.gone.cancelled() => None,
    };
    ends.over.cancel();
    if let Some(ended) = ended {
        group.set_reaped();
        // A failure means that the connection is gone, and with it the one to tell.
        let _ = report(&channel, ended.map_or(255, process::exit_code)).await;
    } else {
        end(&mut child, &group).await;
    }
    input.abort();
}

async fn report(channel: &ChannelWriteHalf<Msg>, status: i32) -> Result<(), russh::Error> {
    channel.exit_status(status.unsigned_abs()).await?;
    channel.eof().await?;
    channel.close().await
}

/// Ends a command whose client has gone, unless it has ended already and only others hold its output open.
async fn end(child: &mut Child, group: &Group) {
    if matches!(child.try_wait(), Ok(Some(_))) {
        group.set_reaped();
        return;
    }
    group.signal(Signal::HUP);
    if tokio::time::timeout(HANG_UP_GRACE, child.wait()).await.is_err() {
        group.signal(Signal::KILL);
        // Nothing to report to anyone; waiting only frees the process's entry.
        let _ = child.wait().await;
    }
    group.set_reaped();
}

/// Carries all output over and waits for the process, in this order for pipes: as long as it has not been
/// waited for, its process group cannot be mistaken.
async fn output(
    child: &mut Child,
    streams: &Streams,
    channel: &ChannelWriteHalf<Msg>,
) -> io::Result<std::process::ExitStatus> {
    match streams {
        Streams::Pipes => {
            let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
            tokio::join!(copy(stdout, channel, None), copy(stderr, channel, Some(STDERR)));
            child.wait().await
        }
        Streams::Terminal(terminal) => {
            let printed = copy_terminal(terminal, channel);
            tokio::pin!(printed);
            tokio::select! {
                () = &mut printed => child.wait().await,
                ended = child.wait() => {
                    // What is not there by now comes from a background process.
                    let _ = tokio::time::timeout(TERMINAL_DRAIN, printed).await;
                    ended
                }
            }
        }
    }
}

async fn copy(from: Option<impl AsyncRead + Unpin>, to: &ChannelWriteHalf<Msg>, kind: Option<u32>) {
    let Some(mut from) = from else { return };
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        let data = chunk[..count].to_vec();
        let sent = match kind {
            None => to.data_bytes(data).await,
            Some(kind) => to.extended_data_bytes(kind, data).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn copy_terminal(terminal: &Terminal, to: &ChannelWriteHalf<Msg>) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = terminal.read(&mut chunk).await {
        if to.data_bytes(chunk[..count].to_vec()).await.is_err() {
            return;
        }
    }
}

fn start_input(child: &mut Child, streams: &Streams, mut source: Source) -> AbortHandle {
    let stdin = child.stdin.take();
    let terminal = match streams {
        Streams::Terminal(terminal) => Some(terminal.clone()),
        Streams::Pipes => None,
    };
    let task = async move {
        if let Some(mut stdin) = stdin {
            while let Ok(Some(chunk)) = source.next().await {
                if stdin.write_all(&chunk).await.is_err() {
                    return;
                }
            }
        } else if let Some(terminal) = terminal {
            while let Ok(Some(chunk)) = source.next().await {
                if terminal.write_all(&chunk).await.is_err() {
                    return;
                }
            }
            // The terminal may have gone with its command.
            let _ = terminal.write_all(CONTROL_D).await;
        }
    };
    tokio::spawn(task).abort_handle()
}
