//! By what a machine is told from others with the same paths and users, which may share an AWS account.
//!
//! That is `/etc/machine-id`, which outlives a lab's state. Where there is none, as in many containers, one is drawn
//! and kept in the state directory: two containers of one image never take each other's labs for their own, and a
//! container that is made anew finds its lab as long as it has the same state. A machine id that is part of an image is
//! not recognised as such.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Error, files};

/// The file in the state directory.
const FILE: &str = "machine-id";

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) id: String,
    /// Where it is kept when it is not the machine's own.
    kept: Option<PathBuf>,
    is_new: bool,
}

impl Machine {
    /// The id in `file`, or the one that this lab has drawn before, or a new one, which nothing keeps yet.
    pub(super) fn of(file: &Path, state_dir: &Path) -> Self {
        if let Some(id) = read(file) {
            return Self { id, kept: None, is_new: false };
        }
        let kept = state_dir.join(FILE);
        let known = read(&kept);
        let is_new = known.is_none();
        let id = known.unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
        Self { id, kept: Some(kept), is_new }
    }

    /// Keeps an id that was drawn; to be called under the lab's lock.
    pub(super) fn keep(&self) -> Result<(), Error> {
        match &self.kept {
            Some(path) if self.is_new => files::write_whole(path, format!("{}\n", self.id).as_bytes()),
            _ => Ok(()),
        }
    }

    /// What the user must know; the option that names the lab follows it.
    pub(super) fn warning(&self) -> Option<String> {
        let path = self.kept.as_ref()?.display();
        let state = if self.is_new { "is drawn now" } else { "was drawn" };
        Some(format!(
            "this machine has no /etc/machine-id: the lab's name {state} and is kept in {path}. Should that be lost, \
             the lab is found by nothing but"
        ))
    }
}

/// An id as systemd writes it; `None` for an empty file, and for one that says `uninitialized`.
fn read(file: &Path) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let id = text.trim();
    (id.len() == 32 && id.chars().all(|c| c.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::ec2::tags::lab_tag;

    #[test]
    fn identical_containers_without_an_id_have_labs_of_their_own() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for text in ["", "uninitialized\n", "00"] {
            let file = one.path().join("etc-machine-id");
            fs::write(&file, text).unwrap();
            let tag = |dir: &Path| lab_tag(Path::new("/lab/artifacts"), &Machine::of(&file, dir).id);
            assert_ne!(tag(one.path()), tag(other.path()), "{text:?}");
        }
    }

    #[test]
    fn drawn_id_is_kept_with_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let (nothing, state) = (dir.path().join("nothing"), dir.path().join("artifacts"));
        let first = Machine::of(&nothing, &state);
        assert!(!state.exists() && first.warning().unwrap().contains("is drawn now"));
        files::make_dir(&state).unwrap();
        first.keep().unwrap();
        let again = Machine::of(&nothing, &state);
        assert_eq!(again.id, first.id);
        assert!(again.warning().unwrap().contains("was drawn"));
    }

    #[test]
    fn machine_that_has_an_id_is_known_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("etc-machine-id");
        fs::write(&file, "0123456789abcdef0123456789abcdef\n").unwrap();
        let machine = Machine::of(&file, &dir.path().join("artifacts"));
        assert_eq!((machine.id.as_str(), machine.warning()), ("0123456789abcdef0123456789abcdef", None));
        machine.keep().unwrap();
        assert!(!dir.path().join("artifacts").exists());
    }
}
