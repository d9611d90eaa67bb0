//! What tells the processes of a lab from all others, also those that wipe their environment.
//!
//! Each starts with an entry in its environment, and with an open descriptor of its instance's directory. A program
//! that shows a title in lists of processes (the workers of nginx, PostgreSQL) writes it over its environment; then
//! the descriptor counts. Both are inherited, neither depends on parents, groups, sessions or files of ours, and
//! neither can be had by accident: a shell that stands in the directory has no descriptor of it, and a program that
//! reads it (a backup) has its environment.
//!
//! A program that wipes its environment *and* closes descriptors that it did not open is not found once its group has
//! lost its leader (OpenSSH's server is one). This module judges one process; `process` looks for them and kills.

use std::{
    ffi::OsStr,
    fs,
    io::Read,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use crate::identity::uid;

/// The largest environment that is searched for a mark; the kernel's own limit is of this order.
const ENVIRON_BYTES_MAX: u64 = 4 << 20;

/// What the kernel appends to the path of an open directory that was removed.
const DELETED: &[u8] = b" (deleted)";

/// The mark of a whole lab or of one instance.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    entry: String,
    directory: Directory,
}

#[derive(Debug, Clone)]
enum Directory {
    This(PathBuf),
    AnyInstanceIn(PathBuf),
}

impl Mark {
    /// The processes of the instance at `directory`; `entry` is `NAME=VALUE`.
    pub(super) fn of_instance(entry: String, directory: PathBuf) -> Self {
        Self { entry, directory: Directory::This(directory) }
    }

    /// The processes of all instances in `directory`, and others with the entry (the agent).
    pub(super) fn of_lab(entry: String, directory: PathBuf) -> Self {
        Self { entry, directory: Directory::AnyInstanceIn(directory) }
    }

    /// Whether the process is this user's and has the entry, or has wiped its environment and has the descriptor.
    ///
    /// The second needs no look at the user: who may read the descriptors of others is root, whose services may have
    /// become other users. A zombie has neither.
    pub(super) fn is_on(&self, pid: u32) -> bool {
        let Some(environ) = environ(pid) else { return false };
        if is_wiped(&environ) {
            return self.is_held_by(pid);
        }
        is_of_this_user(pid) && entries(&environ).any(|entry| entry == self.entry.as_bytes())
    }

    fn is_held_by(&self, pid: u32) -> bool {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        descriptors
            .flatten()
            .filter_map(|it| fs::read_link(it.path()).ok())
            .any(|target| self.directory.is_at(&target))
    }
}

impl Directory {
    fn is_at(&self, target: &Path) -> bool {
        let bytes = target.as_os_str().as_bytes();
        let target = Path::new(OsStr::from_bytes(bytes.strip_suffix(DELETED).unwrap_or(bytes)));
        match self {
            Self::This(directory) => target == directory,
            Self::AnyInstanceIn(directory) => {
                let name = target.file_name().unwrap_or_default();
                target.parent() == Some(directory) && name.as_bytes().starts_with(b"i-")
            }
        }
    }
}

/// The descriptor that the processes of an instance inherit. It gives no access that they do not have anyway.
pub(super) fn descriptor(directory: &Path) -> std::io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory, flags, Mode::empty())?)
}

/// `None` when it may not be read.
fn environ(pid: u32) -> Option<Vec<u8>> {
    let mut environ = Vec::new();
    let file = fs::File::open(format!("/proc/{pid}/environ")).ok()?;
    file.take(ENVIRON_BYTES_MAX).read_to_end(&mut environ).ok()?;
    Some(environ)
}

fn entries(environ: &[u8]) -> impl Iterator<Item = &[u8]> {
    environ.split(|byte| *byte == 0)
}

/// Whether there was an environment and nothing of it is left: zeros, or words of a title. One that was empty from the
/// beginning (a zombie's, a kernel thread's, `env -i`) is not wiped: ours never is.
fn is_wiped(environ: &[u8]) -> bool {
    !environ.is_empty() && !entries(environ).any(is_variable)
}

fn is_variable(entry: &[u8]) -> bool {
    let name = entry.split(|byte| *byte == b'=').next().unwrap_or_default();
    name.len() < entry.len()
        && !name.is_empty()
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

fn is_of_this_user(pid: u32) -> bool {
    fs::metadata(format!("/proc/{pid}")).is_ok_and(|meta| meta.uid() == uid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_wiped_when_no_variable_is_left() {
        let title = b"worker process of shop.example -o a=b\0\0\0";
        for wiped in [&b"\0"[..], b"\0\0\0", title, b"=x\0", b"-p\0.\0"] {
            assert!(is_wiped(wiped), "{:?}", String::from_utf8_lossy(wiped));
        }
        for whole in [&b""[..], b"A=b", b"title\0\0HOME=/\0", b"_=\0"] {
            assert!(!is_wiped(whole), "{:?}", String::from_utf8_lossy(whole));
        }
    }

    #[test]
    fn only_the_directory_itself_counts_removed_or_not() {
        let instance = Mark::of_instance(String::new(), "/a/local/i-1".into()).directory;
        let lab = Mark::of_lab(String::new(), "/a/local".into()).directory;
        for held in ["/a/local/i-1", "/a/local/i-1 (deleted)"] {
            assert!(instance.is_at(Path::new(held)) && lab.is_at(Path::new(held)), "{held}");
        }
        for other in
            ["/a/local", "/a/local/i-1/root", "/a/local/agent.log", "/a", "/a/locals/i-1", "pipe:[1]"]
        {
            assert!(!instance.is_at(Path::new(other)) && !lab.is_at(Path::new(other)), "{other}");
        }
        assert!(!instance.is_at(Path::new("/a/local/i-2")) && lab.is_at(Path::new("/a/local/i-2")));
    }
}
