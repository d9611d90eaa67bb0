//! The journal: `artifacts/journal.ndjson`, append-only, synced to disk line by line. What is about to be done is
//! written before it is done, so that a labhost killed at any point leaves a trace that the next one can follow.
//!
//! It records steps; it does not decide what follows from them.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Mutex,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Kind, error::Context as _};

/// What a line says about its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The lab's first line; its `data.lab` is the lab's identity.
    Lab,
    /// A recipe starts; `data.command` is its command line.
    Start,
    /// About to do it.
    Intent,
    Done,
    Failed,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Counts from 1 over the life of the journal.
    pub line: u64,
    /// Milliseconds since the epoch.
    pub at_ms: u64,
    pub phase: Phase,
    /// What is done: `launch`, `terminate`, `upload`, ...
    pub step: String,
    /// For `Done` and `Failed`: the line of the intent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

/// The open journal. Lines are short; their number is bounded by what recipes do between two `stop`s.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    records: Vec<Record>,
    /// Lines that this process has written.
    written: u64,
    kill: Option<KillPoint>,
}

/// A step that has been announced. Dropped without `done` it stays open, which is what a crash looks like.
#[derive(Debug)]
#[must_use = "say how the step ended"]
pub struct Intent<'a> {
    journal: &'a Journal,
    line: u64,
    step: &'static str,
}

impl Journal {
    /// Opens or creates the journal. A torn last line (the process died while writing it) is cut off. A journal
    /// with any other damage is set aside and a new one begun: instances are found without it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let context = || format!("open {}", path.display());
        match Self::read(path) {
            Err(damage) if damage.kind == Kind::Recipe => {
                let aside = path.with_extension("ndjson.damaged");
                std::fs::rename(path, &aside).context(Kind::Internal, context)?;
                let journal = Self::read(path)?;
                let data = serde_json::json!({ "damage": damage.message, "set_aside": aside });
                journal.append(Phase::Start, "repair", None, data)?;
                Ok(journal)
            }
            read => read,
        }
    }

    fn read(path: &Path) -> Result<Self, Error> {
        let context = || format!("open {}", path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .context(Kind::Internal, context)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).context(Kind::Internal, context)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            file.set_len(whole as u64).context(Kind::Internal, context)?;
            file.seek(SeekFrom::End(0)).context(Kind::Internal, context)?;
        }
        let records = parse(&text[..whole], path)?;
        let inner = Inner { file, records, written: 0, kill: KillPoint::from_env() };
        Ok(Self { path: path.to_owned(), inner: Mutex::new(inner) })
    }

    /// Everything written so far, oldest first.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.lock().records.clone()
    }

    /// Announces a step; call [`Intent::done`] or [`Intent::failed`] when it has ended.
    pub fn intend(&self, step: &'static str, data: Value) -> Result<Intent<'_>, Error> {
        let line = self.append(Phase::Intent, step, None, data)?;
        Ok(Intent { journal: self, line, step })
    }

    /// Writes one line, synced. Returns its number.
    pub fn append(&self, phase: Phase, step: &str, of: Option<u64>, data: Value) -> Result<u64, Error> {
        let mut inner = self.lock();
        let line = inner.records.last().map_or(1, |last| last.line + 1);
        let at_ms =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_millis() as u64);
        let record = Record { line, at_ms, phase, step: step.to_owned(), of, data };
        let mut text =
            serde_json::to_vec(&record).context(Kind::Internal, || "write a journal line".to_owned())?;
        text.push(b'\n');
        inner.written += 1;
        let written = inner.written;
        KillPoint::strike(inner.kill, written, false);
        inner
            .file
            .write_all(&text)
            .and_then(|()| inner.file.sync_data())
            .context(Kind::Internal, || format!("write {}", self.path.display()))?;
        KillPoint::strike(inner.kill, written, true);
        inner.records.push(record);
        Ok(line)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Intent<'_> {
    /// Records that the step is done, and what came of it.
    pub fn done(self, data: Value) -> Result<(), Error> {
        self.journal.append(Phase::Done, self.step, Some(self.line), data).map(drop)
    }

    /// Records why the step failed and hands the error on.
    pub fn failed(self, error: Error) -> Error {
        let data = serde_json::json!({ "error": error.message });
        match self.journal.append(Phase::Failed, self.step, Some(self.line), data) {
            Ok(_) => error,
            Err(second) => error.with_hint(format!("The journal could not be written either: {second}.")),
        }
    }

    /// `done` or `failed`, by the result; `data` describes a success.
    pub fn end<T>(self, result: Result<T, Error>, data: impl FnOnce(&T) -> Value) -> Result<T, Error> {
        match result {
            Ok(value) => self.done(data(&value)).map(|()| value),
            Err(error) => Err(self.failed(error)),
        }
    }
}

fn parse(text: &[u8], path: &Path) -> Result<Vec<Record>, Error> {
    text.split(|byte| *byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(number, line)| {
            serde_json::from_slice(line).map_err(|cause| {
                // `Kind::Recipe` stands for damage here: every other failure of `read` is internal.
                Error::new(Kind::Recipe, format!("{} line {}: {cause}", path.display(), number + 1))
            })
        })
        .collect()
}

/// A line at which this process kills itself, from `LABHOST_KILL_AT_JOURNAL_LINE=before:N` or `after:N`: the
/// tests prove with it that a `kill -9` at every step is survived.
#[derive(Debug, Clone, Copy)]
struct KillPoint {
    line: u64,
    after: bool,
}

impl KillPoint {
    fn from_env() -> Option<Self> {
        let text = std::env::var("LABHOST_KILL_AT_JOURNAL_LINE").ok()?;
        let (when, line) = text.split_once(':')?;
        Some(Self { line: line.parse().ok()?, after: when == "after" })
    }

    fn strike(point: Option<Self>, written: u64, after: bool) {
        if point.is_some_and(|point| point.line == written && point.after == after) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn journal() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.ndjson");
        (dir, path)
    }

    #[test]
    fn intent_is_on_disk_before_the_step_ends() {
        let (_dir, path) = journal();
        let journal = Journal::open(&path).unwrap();
        let intent = journal.intend("launch", json!({"fleet": "micro"})).unwrap();
        let seen = Journal::open(&path).unwrap().records();
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].phase, seen[0].step.as_str()), (Phase::Intent, "launch"));
        intent.done(Value::Null).unwrap();
        let seen = Journal::open(&path).unwrap().records();
        assert_eq!((seen[1].phase, seen[1].of), (Phase::Done, Some(1)));
    }

    #[test]
    fn torn_last_line_is_cut_off() {
        let (_dir, path) = journal();
        Journal::open(&path).unwrap().append(Phase::Start, "run", None, Value::Null).unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"line\":2,\"at_").unwrap();
        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.records().len(), 1);
        journal.append(Phase::Start, "again", None, Value::Null).unwrap();
        assert_eq!(Journal::open(&path).unwrap().records()[1].line, 2);
    }

    #[test]
    fn damaged_journal_is_set_aside_and_said() {
        let (_dir, path) = journal();
        std::fs::write(&path, "garbage\n{}\n").unwrap();
        let records = Journal::open(&path).unwrap().records();
        assert!(records[0].data["damage"].as_str().unwrap().contains("line 1"), "{records:?}");
        assert!(path.with_extension("ndjson.damaged").exists());
    }
}
