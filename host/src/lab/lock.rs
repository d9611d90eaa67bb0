//! One labhost at a time may change a lab. The lock is the kernel's (`flock`), so it ends with its holder however
//! that ends; the file's text only tells a second labhost who holds it.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use crate::{Error, Kind, error::Context as _, files::OTHER_FOLDER, identity, units::epoch_s};

/// Who holds the lock, as written into the file.
#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    machine: String,
    started_s: u64,
    command: String,
}

/// The lab's lock, held until dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

/// How often a lock file that was removed under our feet is opened anew; each time means that another labhost
/// finished a `stop` in between.
const REOPEN_MAX: u32 = 10;

impl Lock {
    /// Takes the lock `path` at once or names its holder in an error of `Kind::Locked`.
    pub fn acquire(path: &Path, command: &str) -> Result<Self, Error> {
        for _ in 0..REOPEN_MAX {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(|cause| not_opened(path, &cause))?;
            refuse_foreign(&file, path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(held(path, file)),
                Err(TryLockError::Error(cause)) => {
                    return Err(Error::internal(format!("lock {}: {cause}", path.display())));
                }
            }
            if is_still(&file, path) {
                let lock = Self { file, path: path.to_owned() };
                lock.describe(command)?;
                return Ok(lock);
            }
        }
        Err(Error::new(Kind::Locked, format!("lock {}: it is being removed again and again", path.display())))
    }

    fn describe(&self, command: &str) -> Result<(), Error> {
        let holder = Holder {
            pid: std::process::id(),
            machine: machine(),
            started_s: epoch_s(SystemTime::now()),
            command: command.to_owned(),
        };
        let write = || -> std::io::Result<()> {
            self.file.set_len(0)?;
            (&self.file).rewind()?;
            serde_json::to_writer(&self.file, &holder)?;
            (&self.file).write_all(b"\n")
        };
        write().context(Kind::Internal, || format!("write {}", self.path.display()))
    }

    /// Removes the file, then lets go; the next labhost makes a new one.
    pub fn remove(self) {
        // A file that cannot be removed is only untidy: the lock itself ends with this process.
        let _ = fs::remove_file(&self.path);
    }
}

fn not_opened(path: &Path, cause: &std::io::Error) -> Error {
    let message = format!("open {}: {cause}", path.display());
    match cause.kind() {
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            Error::usage(message).with_hint(OTHER_FOLDER)
        }
        _ => Error::internal(message),
    }
}

/// Root may open what is another user's. But an agent serves its own user only, so that a second one would be started
/// for the same lab, and what it writes the first could not read.
fn refuse_foreign(file: &File, path: &Path) -> Result<(), Error> {
    let owner = file.metadata().context(Kind::Internal, || format!("look at {}", path.display()))?.uid();
    if owner == identity::uid() {
        return Ok(());
    }
    Err(Error::usage(format!("this lab belongs to user {owner}: {} is theirs", path.display()))
        .with_hint(format!("Run the command as that user. {OTHER_FOLDER}")))
}

/// Whether `path` still names the file that was locked, and not a successor of it.
fn is_still(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => ours.ino() == there.ino() && ours.dev() == there.dev(),
        _ => false,
    }
}

fn held(path: &Path, mut file: File) -> Error {
    let mut text = String::new();
    let _ = file.read_to_string(&mut text);
    let who = serde_json::from_str::<Holder>(&text).map_or_else(
        |_| "another labhost".to_owned(),
        |holder| {
            let age = epoch_s(SystemTime::now()).saturating_sub(holder.started_s);
            format!("`{}` (process {} on {}, for {age} s)", holder.command, holder.pid, holder.machine)
        },
    );
    Error::new(Kind::Locked, format!("this lab is in use by {who}")).with_hint(format!(
        "Wait until it ends, or end it, and run the command again. The lock is {}.",
        path.display()
    ))
}

fn machine() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_holder_is_refused_with_the_name_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let _first = Lock::acquire(&path, "labhost run.rhai").unwrap();
        let error = Lock::acquire(&path, "labhost stop.rhai").unwrap_err();
        assert_eq!(error.kind, Kind::Locked);
        assert!(error.message.contains("`labhost run.rhai`"), "{error}");
        assert!(error.message.contains(&std::process::id().to_string()), "{error}");
    }

    #[test]
    fn lock_of_a_dead_holder_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        fs::write(&path, "{\"pid\":1,\"machine\":\"x\",\"started_s\":0,\"command\":\"dead\"}").unwrap();
        Lock::acquire(&path, "labhost run.rhai").unwrap();
    }

    #[test]
    fn another_users_lab_is_left_alone_even_by_root() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root can open what is another user's");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        Lock::acquire(&path, "a").unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        let error = Lock::acquire(&path, "b").unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
        assert!(error.message.contains("user 65534"), "{error}");
    }

    #[test]
    fn removed_lock_can_be_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        Lock::acquire(&path, "a").unwrap().remove();
        assert!(!path.exists());
        Lock::acquire(&path, "b").unwrap();
    }
}
