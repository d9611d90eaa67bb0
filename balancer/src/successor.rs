//! Starting this program again at SIGUSR2, to replace this process.
//!
//! The successor is what lies at the program's path by now, with the same arguments, told where to take over. All
//! the rest is the hand-over that any successor does, however it was started.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command};

/// The flag that makes a process a successor.
const FLAG: &str = "--replace";

/// The successor that this process has started, while that is not decided.
#[derive(Default)]
pub(crate) struct Successor(Option<Child>);

impl Successor {
    /// Starts one that takes over from the admin socket at `admin`.
    pub(crate) fn start(&mut self, admin: &Path) {
        if self.0.is_some() {
            return tracing::warn!("a successor is starting already");
        }
        let mut arguments = std::env::args_os();
        let Some(program) = arguments.next() else { return };
        let mut command = Command::new(&program);
        command.args(arguments.filter(|argument| !argument.as_bytes().starts_with(FLAG.as_bytes())));
        let mut flag = OsString::from(format!("{FLAG}="));
        flag.push(admin);
        command.arg(flag).env_remove("LISTEN_PID").env_remove("LISTEN_FDS");
        match command.spawn() {
            Ok(child) => {
                tracing::info!(pid = child.id(), "started process {} to take over", child.id());
                self.0 = Some(child);
            }
            Err(error) => {
                let program = program.to_string_lossy();
                tracing::warn!(%error, "start {program} to take over: {error}; this process goes on");
            }
        }
    }

    /// Notices one that ended before it took over.
    pub(crate) fn check(&mut self) {
        let Some(child) = &mut self.0 else { return };
        if let Ok(Some(status)) = child.try_wait() {
            self.0 = None;
            tracing::warn!("the successor ended with {status} and did not take over; this process goes on");
        }
    }
}
