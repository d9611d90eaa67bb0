//! Files of a lab's state: readable by their owner only, and never seen half written.
//!
//! It does not know what is in them.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use serde::Serialize;

use crate::{Error, Kind, error::Context as _};

/// What to do when the state folder cannot be used.
pub const OTHER_FOLDER: &str = "The lab's state must lie in a folder of yours; choose one with --state DIR.";

/// Makes a directory and its parents, readable by the owner only.
pub fn make_dir(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .context(Kind::Usage, || format!("create {}", path.display()))
        .map_err(|error| error.with_hint(OTHER_FOLDER))
}

/// Writes JSON under a temporary name, syncs it and renames it, so that readers see the old file or the new one.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let mut text =
        serde_json::to_vec_pretty(value).context(Kind::Internal, || format!("write {}", path.display()))?;
    text.push(b'\n');
    write_whole(path, &text)
}

/// As [`write_json`], for any bytes. The file is readable by the owner only.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = path.with_file_name(format!(
        ".{}.{}",
        path.file_name().unwrap_or_default().to_string_lossy(),
        std::process::id()
    ));
    let write = || -> std::io::Result<()> {
        let mut file: File =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    };
    write().context(Kind::Internal, || format!("write {}", path.display())).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("view.json");
        write_json(&path, &1).unwrap();
        assert!(write_json(&dir.path().join("missing/view.json"), &2).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
