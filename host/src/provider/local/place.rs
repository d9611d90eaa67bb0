//! Where a lab keeps things: everything follows from the path of its state directory.
//!
//! `STATE/local/` holds the instances; `/tmp/labhost-UID/LABID/` holds the agent's socket and lock, because a
//! socket's path is limited to 108 bytes and a state directory's is not. Both are found again from the path
//! alone, so a lab can be removed when all its files are lost.
//!
//! This module creates the runtime directory and checks who owns it; it starts and removes nothing else.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use super::mark::Mark;
use crate::{
    Error, Kind,
    error::Context,
    identity::{self, uid},
};

/// In the runtime directory: the X of the lab's addresses 127.77.X.Y.
const BLOCK: &str = "block";

/// The paths of one lab.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// See [`identity::lab_id`].
    pub(super) lab: String,
    /// The canonical state directory; it need not exist.
    pub(super) state: PathBuf,
    runtime_parent: PathBuf,
}

impl Place {
    /// Errors when the path cannot be resolved, or holds a character that a search path cannot.
    pub(super) fn of(state_dir: &Path) -> Result<Self, Error> {
        let state = canonical(state_dir)
            .context(Kind::Internal, || format!("find the state directory {}", state_dir.display()))?;
        if state.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b':' | b'\n' | b'\0')) {
            let message =
                format!("the state directory {} has a colon or a line break in its path", state.display());
            return Err(Error::usage(message).with_hint("choose another one with --state DIR"));
        }
        Ok(Self { lab: identity::lab_id(&state), state, runtime_parent: identity::runtime_parent() })
    }

    pub(super) fn local(&self) -> PathBuf {
        self.state.join("local")
    }

    pub(super) fn instance(&self, id: &str) -> PathBuf {
        self.local().join(id)
    }

    /// The programs that an instance finds on its search path besides the system's.
    pub(super) fn bin(&self) -> PathBuf {
        self.local().join("bin")
    }

    pub(super) fn agent_file(&self) -> PathBuf {
        self.local().join("agent.json")
    }

    pub(super) fn agent_log(&self) -> PathBuf {
        self.local().join("agent.log")
    }

    pub(super) fn runtime(&self) -> PathBuf {
        self.runtime_parent.join(&self.lab)
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.runtime().join("agent.sock")
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.runtime().join("agent.lock")
    }

    /// Remembers the lab's block of addresses for the time when no agent holds it.
    pub(super) fn note_block(&self, octet: u8) -> Result<(), Error> {
        let path = self.runtime().join(BLOCK);
        fs::write(&path, octet.to_string()).context(Kind::Host, || format!("write {}", path.display()))
    }

    /// The blocks that this user's other labs come back to.
    pub(super) fn blocks_of_others(&self) -> BTreeSet<u8> {
        let labs = fs::read_dir(&self.runtime_parent).into_iter().flatten().flatten();
        labs.filter(|entry| entry.file_name() != *self.lab)
            .filter_map(|entry| fs::read_to_string(entry.path().join(BLOCK)).ok()?.parse().ok())
            .collect()
    }

    /// What every process of this lab has.
    pub(super) fn mark(&self) -> Mark {
        Mark::of_lab(format!("{}={}", identity::MARK, self.lab), self.local())
    }

    /// Creates the runtime directory, private to this user.
    pub(super) fn make_runtime(&self) -> Result<(), Error> {
        for directory in [&self.runtime_parent, &self.runtime()] {
            match fs::DirBuilder::new().mode(0o700).create(directory) {
                Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::host(format!("create {}: {cause}", directory.display())));
                }
                _ => check_private(directory)?,
            }
        }
        Ok(())
    }

    /// Whether the runtime directory exists; an error when somebody else could have made it.
    pub(super) fn has_runtime(&self) -> Result<bool, Error> {
        for directory in [&self.runtime_parent, &self.runtime()] {
            match fs::symlink_metadata(directory) {
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(false),
                _ => check_private(directory)?,
            }
        }
        Ok(true)
    }

    /// Removes the runtime directory, and its parent when no other lab of this user is left in it.
    pub(super) fn remove_runtime(&self) -> io::Result<()> {
        remove_tree(&self.runtime())?;
        // Fails while another lab has its directory there, which is how it should be.
        let _ = fs::remove_dir(&self.runtime_parent);
        Ok(())
    }
}

/// How often a directory is tried again that gets new content while it is being removed.
const REMOVE_TRIES: usize = 5;

/// Removes a directory and what is in it; one that is not there is no error, and links are not followed.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let mut tries = 1..REMOVE_TRIES;
    loop {
        match fs::remove_dir_all(path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(cause) if cause.kind() == io::ErrorKind::DirectoryNotEmpty && tries.next().is_some() => {}
            other => return other,
        }
    }
}

/// Refuses a directory that another user could have put there: `/tmp` is everybody's.
fn check_private(directory: &Path) -> Result<(), Error> {
    let meta =
        fs::symlink_metadata(directory).context(Kind::Host, || format!("look at {}", directory.display()))?;
    let wrong = if !meta.is_dir() {
        "it is not a directory"
    } else if meta.uid() != uid() {
        "it belongs to another user"
    } else if meta.mode() & 0o777 != 0o700 {
        "others may enter it (its mode is not 0700)"
    } else {
        return Ok(());
    };
    Err(Error::host(format!("refusing to use {}: {wrong}", directory.display()))
        .with_hint("find out who made it, remove it, and try again"))
}

/// The canonical form of a path of which only the beginning need exist.
fn canonical(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    let mut missing: Vec<&OsStr> = Vec::new();
    let mut existing = absolute.as_path();
    loop {
        match fs::canonicalize(existing) {
            Ok(base) => return Ok(missing.iter().rev().fold(base, |path, name| path.join(name))),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                let (Some(name), Some(parent)) = (existing.file_name(), existing.parent()) else {
                    return Err(cause);
                };
                missing.push(name);
                existing = parent;
            }
            Err(cause) => return Err(cause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_lab_before_and_after_its_directory_exists() {
        let parent = tempfile::tempdir().unwrap();
        let state = parent.path().join("a folder/artifacts");
        let before = Place::of(&state).unwrap();
        fs::create_dir_all(&state).unwrap();
        let after = Place::of(&state.join(".")).unwrap();
        assert_eq!((before.lab, before.state), (after.lab, after.state));
    }

    #[test]
    fn two_directories_are_two_labs() {
        let parent = tempfile::tempdir().unwrap();
        let place = |name| Place::of(&parent.path().join(name)).unwrap();
        assert_ne!(place("one").runtime(), place("two").runtime());
    }

    #[test]
    fn a_colon_in_the_path_is_refused() {
        assert!(Place::of(Path::new("/tmp/a:b")).unwrap_err().message.contains("colon"));
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let parent = tempfile::tempdir().unwrap();
        let open = parent.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(check_private(&open).unwrap_err().message.contains("0700"));
        fs::set_permissions(&open, fs::Permissions::from_mode(0o700)).unwrap();
        check_private(&open).unwrap();
        let link = parent.path().join("link");
        symlink(&open, &link).unwrap();
        assert!(check_private(&link).unwrap_err().message.contains("not a directory"));
    }
}
