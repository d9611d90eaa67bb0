//! Paths of unix sockets, however long.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A way to a socket's path that fits in an address, which holds 107 bytes; labs lie in deep folders.
pub(crate) struct Place {
    path: PathBuf,
    /// Open while `path` leads through its descriptor.
    _folder: Option<OwnedFd>,
}

impl Place {
    const BYTES_MAX: usize = 107;

    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= Self::BYTES_MAX {
            return Ok(Self { path: path.to_owned(), _folder: None });
        }
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let folder = rustix::fs::open(folder, flags, rustix::fs::Mode::empty())?;
        let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
        Ok(Self { path, _folder: Some(folder) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(Place::of(path)?.path())
}
