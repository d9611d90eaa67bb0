//! Starting this program again at SIGUSR2, to replace this process.
//!
//! The successor is what lies at the program's path by now, with the same arguments, told where to take over. All
//! the rest is the hand-over that any successor does, however it was started.
//!
//! It becomes a child of whoever started this process, not of this process: systemd waits for the end only of a main
//! process that is its own child when it is named, and kills any other at once when the service is stopped.

use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};

/// The flag that makes a process a successor.
const FLAG: &str = "--replace";

/// The successor that this process has started, while that is not decided.
#[derive(Default)]
pub(crate) struct Successor(Option<Started>);

struct Started {
    pid: Pid,
    /// Readable when the process has ended. Kernels before 5.3 have none.
    end: Option<OwnedFd>,
}

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
        match spawn_apart(command) {
            Ok(started) => {
                let pid = started.pid.as_raw_nonzero();
                tracing::info!(pid, "started process {pid} to take over");
                self.0 = Some(started);
            }
            Err(error) => {
                let program = program.to_string_lossy();
                tracing::warn!(%error, "start {program} to take over: {error}; this process goes on");
            }
        }
    }

    /// Notices one that ended before it took over.
    pub(crate) fn check(&mut self) {
        if let Some(started) = self.0.take_if(|started| started.has_ended()) {
            let pid = started.pid.as_raw_nonzero();
            tracing::warn!(pid, "process {pid} ended and did not take over; this process goes on");
        }
    }
}

impl Started {
    fn has_ended(&self) -> bool {
        let Some(end) = &self.end else { return test_kill_process(self.pid).is_err() };
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&at_once)).is_ok_and(|ready| ready > 0)
    }
}

/// Starts `command` in a process whose parent is the one of this process, or who takes in orphans: a child in between
/// ends at once.
fn spawn_apart(mut command: Command) -> io::Result<Started> {
    let (mut reader, writer) = io::pipe()?;
    let pipe = writer.as_raw_fd();
    // SAFETY: between fork and exec the closure makes system calls and nothing else; the pipe is open in the child.
    unsafe { command.pre_exec(move || fork_once_more(pipe)) };
    let between = command.spawn();
    drop::<PipeWriter>(writer);
    // What it was for is done; that it ends well is all that it could say.
    between?.wait()?;
    let pid = read_pid(&mut reader)?;
    Ok(Started { pid, end: pidfd_open(pid, PidfdFlags::empty()).ok() })
}

fn fork_once_more(pipe: i32) -> io::Result<()> {
    // SAFETY: a plain fork, without the library's handlers, in a process that has one thread. The parent writes an
    // integer from its stack and ends without running anything of this program.
    unsafe {
        let pid = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as i32;
        match pid {
            0 => Ok(()),
            -1 => Err(io::Error::last_os_error()),
            pid => {
                let written = libc::write(pipe, (&raw const pid).cast(), size_of_val(&pid));
                libc::_exit(i32::from(written != size_of_val(&pid) as isize))
            }
        }
    }
}

fn read_pid(pipe: &mut PipeReader) -> io::Result<Pid> {
    let mut bytes = [0; size_of::<i32>()];
    pipe.read_exact(&mut bytes)?;
    Pid::from_raw(i32::from_ne_bytes(bytes)).ok_or_else(|| io::Error::other("no process was started"))
}
