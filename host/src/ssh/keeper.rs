//! Ties a master to the life of this process, however it ends.
//!
//! `ssh` ends by itself only when it has no channel left, and a server may keep the channel of a command open until
//! the command ends. So a shell waits at the end of a pipe that only this process holds, and ends the master when
//! the pipe closes.
//!
//! This module ends no commands: what a killed labhost ran on a host may go on there.

use std::{
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use tokio::net::UnixStream;

/// Argument: the master's directory. Ctrl-C at a terminal reaches only groups in its foreground, and what else may
/// tell labhost to end must not end this before it.
const WATCH: &str = r#"trap '' HUP INT TERM; read -r _
[ -S "$1/master" ] && ssh -F /dev/null -S "$1/master" -O exit labhost; rm -rf -- "$1""#;

/// Dropped after the session or before, it leaves ending the master to it.
pub(crate) struct Keeper {
    /// Keeps the master from counting itself idle.
    _socket: UnixStream,
    watch: Child,
}

impl Keeper {
    /// `directory` holds the master's socket and is removed when this process is killed.
    pub(crate) async fn start(directory: &Path) -> io::Result<Self> {
        let socket = UnixStream::connect(directory.join("master")).await?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", WATCH, "labhost-keeper"]).arg(directory).current_dir("/").process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { _socket: socket, watch: command.spawn()? })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // It has not been waited for, so it is there; the wait takes as long as the kernel needs to end it. The pipe
        // must not close before, or the shell would begin its work.
        let stdin = self.watch.stdin.take();
        let _ = self.watch.kill();
        let _ = self.watch.wait();
        drop(stdin);
    }
}
