//! `artifacts/run.json`: what a later command needs to know of this lab before it can ask its provider anything.
//!
//! It is a view like the others, except that what it remembers (image, key) is read again by the next run.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::journal::{Phase, Record};
use crate::{Error, files};

/// Raised when a field changes its meaning.
const FORMAT: u32 = 1;

/// The file's content; fields that an older labhost did not write are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct RunFile {
    format: u32,
    pub(super) lab: Option<String>,
    pub(super) provider: Option<String>,
    pub(super) expires_at_s: Option<u64>,
    /// Name of the login key.
    pub(super) key: Option<String>,
    /// The private key's file, when it is not one of the lab's own.
    pub(super) identity: Option<PathBuf>,
    /// Security group by fleet.
    pub(super) groups: BTreeMap<String, String>,
    /// Id of each security group.
    pub(super) group_ids: BTreeMap<String, String>,
    /// Image id by the name that the recipe used; a re-run keeps it.
    pub(super) images: BTreeMap<String, String>,
}

impl RunFile {
    fn path(dir: &Path) -> PathBuf {
        dir.join("run.json")
    }

    /// What the last run wrote; empty when there is nothing to read.
    pub(super) fn read(dir: &Path) -> Self {
        let text = fs::read(Self::path(dir)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    pub(super) fn write(&self, dir: &Path) -> Result<(), Error> {
        files::write_json(&Self::path(dir), &Self { format: FORMAT, ..self.clone() })
    }
}

/// The provider of the lab at this state directory: from run.json, else from the last run in the journal that got
/// as far as asking it for something.
#[must_use]
pub fn provider_of(dir: &Path) -> Option<String> {
    RunFile::read(dir).provider.or_else(|| {
        let journal = fs::read_to_string(dir.join("journal.ndjson")).ok()?;
        let records = journal.lines().filter_map(|line| serde_json::from_str::<Record>(line).ok());
        let (mut started, mut asked) = (None, None);
        for record in records {
            match record.phase {
                Phase::Start => started = record.data["provider"].as_str().map(str::to_owned),
                Phase::Intent => asked.clone_from(&started),
                _ => {}
            }
        }
        asked
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provider_is_found_in_the_journal_when_run_json_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(provider_of(dir.path()), None);
        let start = |name| {
            format!(r#"{{"line":1,"at_ms":1,"phase":"start","step":"run","data":{{"provider":"{name}"}}}}"#)
        };
        let intent = r#"{"line":2,"at_ms":1,"phase":"intent","step":"key_pair"}"#;
        let journal = format!("{}\n{intent}\n{}\n{{\"torn", start("ec2"), start("local"));
        fs::write(dir.path().join("journal.ndjson"), journal).unwrap();
        assert_eq!(provider_of(dir.path()).as_deref(), Some("ec2"), "the second run asked for nothing");
        let file = RunFile { provider: Some("local".to_owned()), ..RunFile::default() };
        file.write(dir.path()).unwrap();
        assert_eq!(provider_of(dir.path()).as_deref(), Some("local"));
    }
}
