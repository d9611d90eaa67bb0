//! A service's log file, bounded: at 10 MB it becomes `NAME.log.1` and a new one begins.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Two files of this size per service are kept: enough for an hour of a talkative program.
const LOG_BYTES_MAX: u64 = 10_000_000;

#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    size_max: u64,
}

impl Log {
    /// Opens for appending; 0600.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size, size_max: LOG_BYTES_MAX })
    }

    /// Appends; a chunk is never split between two files.
    pub(super) fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + chunk.len() as u64 > self.size_max {
            fs::rename(&self.path, older(&self.path))?;
            self.file = open(&self.path)?;
            self.size = 0;
        }
        self.file.write_all(chunk)?;
        self.size += chunk.len() as u64;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// The file that the log was before it was last rotated.
pub(super) fn older(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_rotated_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.log");
        let mut log = Log::open(path.clone()).unwrap();
        log.size_max = 10;
        for chunk in ["one 1", "two 2", "three", "four 4", "five 5"] {
            log.write(chunk.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "five 5");
        assert_eq!(fs::read_to_string(older(&path)).unwrap(), "four 4");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
