//! Pseudo-terminals for `labhost ssh`.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags},
    pty::OpenptFlags,
    termios::Winsize,
};
use tokio::io::unix::AsyncFd;

/// What a client asked for before it started its command.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) term: String,
    pub(super) size: Winsize,
}

/// The longest TERM taken over from a client; terminfo names are far shorter.
const TERM_BYTES_MAX: usize = 64;

impl Wanted {
    pub(super) fn new(term: &str, columns: u32, rows: u32) -> Self {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-+._".contains(&byte);
        let usable = term.len() <= TERM_BYTES_MAX && !term.is_empty() && term.bytes().all(is_plain);
        let term = if usable { term.to_owned() } else { "dumb".to_owned() };
        Self { term, size: size(columns, rows) }
    }
}

pub(super) fn size(columns: u32, rows: u32) -> Winsize {
    let narrow = |count: u32| count.min(u32::from(u16::MAX)) as u16;
    Winsize { ws_col: narrow(columns), ws_row: narrow(rows), ws_xpixel: 0, ws_ypixel: 0 }
}

/// The master's end.
#[derive(Debug)]
pub(super) struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    /// Opens a pair; the second is the command's end.
    pub(super) fn open(size: Winsize) -> io::Result<(Self, OwnedFd)> {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let name = rustix::pty::ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name.as_c_str(), flags, Mode::empty())?;
        rustix::termios::tcsetwinsize(&master, size)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives.
        Ok((Self(unsafe { AsyncFd::register(master) }?), slave))
    }

    pub(super) fn resize(&self, size: Winsize) {
        // A terminal of the wrong size is still of use.
        let _ = rustix::termios::tcsetwinsize(self.0.get_ref(), size);
    }

    /// Reads what was printed; 0 when no process has the terminal open any more.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| Ok(rustix::io::read(fd.as_fd(), &mut *buffer)?)) {
                Ok(Err(cause)) if cause.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Ok(result) => return result,
                Err(_) => continue,
            }
        }
    }

    /// Types all of `data`.
    pub(super) async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let mut ready = self.0.writable().await?;
            if let Ok(result) = ready.try_io(|fd| Ok(rustix::io::write(fd.as_fd(), data)?)) {
                data = &data[result?..];
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strange_terminal_name_is_not_taken_over() {
        assert_eq!(Wanted::new("xterm-256color", 80, 24).term, "xterm-256color");
        assert_eq!(Wanted::new("x\nPATH=/tmp", 80, 24).term, "dumb");
        assert_eq!(Wanted::new("", 1 << 20, 24).size.ws_col, u16::MAX);
    }
}
