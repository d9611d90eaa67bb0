//! The end of a lab: what the provider has of it, then its own files, the lock last.
//!
//! It does not decide what belongs to the lab at the provider, and touches no benchmark results.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::json;

use super::{Lab, lock};
use crate::{Error, Kind, identity, ssh};

impl Lab {
    /// What [`Lab::destroy`] would remove, in words, one line each.
    pub async fn remains(&self) -> Result<Vec<String>, Error> {
        let mut remains = self.provider.remains().await?;
        // A labhost that was killed at the very end of its `stop` leaves the lock alone.
        let files = own_files(&self.dir).count() + usize::from(self.dir.join("lock").exists());
        if files > 0 {
            remains.push(format!("state in {} ({files} entries)", self.dir.display()));
        }
        Ok(remains)
    }

    /// Removes everything this lab made except benchmark results. Errors with `Kind::Teardown` and the names of
    /// what is left; the state is then kept for another try.
    pub async fn destroy(&self, keep_bootstrap: bool) -> Result<(), Error> {
        if self.is_planning() {
            self.rehearse_destruction(self.remains().await?);
            return Ok(());
        }
        let ledger = self.ledger()?;
        let intent = ledger.journal.intend("destroy", json!({ "keep_bootstrap": keep_bootstrap }))?;
        let left = match self.provider.destroy(keep_bootstrap).await {
            Ok(left) => left,
            Err(error) => return Err(intent.failed(Error { kind: Kind::Teardown, ..error })),
        };
        if !left.is_empty() {
            let error = Error::new(Kind::Teardown, format!("teardown is incomplete: {} left", left.len()))
                .with_detail(left.join("\n"))
                .with_hint("Run stop again; it goes on where it ended.");
            return Err(intent.failed(error));
        }
        intent.done(json!(null))?;
        drop(ledger);
        self.forget(keep_bootstrap)
    }

    /// Removes the lab's own files, the lock last.
    fn forget(&self, keep_bootstrap: bool) -> Result<(), Error> {
        // What is kept at the provider must be found again.
        let kept = ["keys", "machine-id"].map(|name| self.dir.join(name));
        for path in own_files(&self.dir).filter(|path| !(keep_bootstrap && kept.contains(path))) {
            let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match gone {
                Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::new(Kind::Teardown, format!("remove {}: {cause}", path.display())));
                }
                _ => {}
            }
        }
        ssh::remove_control_dir(&identity::runtime_dir(&self.dir));
        if let Some(ledger) = lock(&self.ledger).take().and_then(Arc::into_inner) {
            ledger.lock.remove();
        }
        // Benchmark results may be there; then the folder stays.
        let _ = fs::remove_dir(&self.dir);
        Ok(())
    }
}

/// What a lab leaves under its state directory, apart from its lock and from benchmark results: also what a labhost
/// left that was killed while it wrote one of them (`.NAME.` and something more).
fn own_files(dir: &Path) -> impl Iterator<Item = PathBuf> {
    const NAMES: [&str; 13] = [
        "instances.json",
        "lb.json",
        "run.json",
        "ssh_config",
        "known_hosts",
        "journal.ndjson",
        "journal.ndjson.damaged",
        "keys",
        "logs",
        "local",
        "ec2",
        "state",
        "machine-id",
    ];
    let half_written = |name: &str| {
        let rest = name.strip_prefix('.').unwrap_or_default();
        let is_result = rest.starts_with("bench-") && rest.ends_with(".tmp");
        is_result || NAMES.iter().any(|own| rest.strip_prefix(own).is_some_and(|end| end.starts_with('.')))
    };
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let names: Vec<_> = names.filter(|name| NAMES.contains(&name.as_str()) || half_written(name)).collect();
    names.into_iter().map(|name| dir.join(name))
}
