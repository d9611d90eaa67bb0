//! The services of one instance, by name.
//!
//! Definitions lie in `services/NAME.json` and are started again when the instance boots, also those that were
//! stopped by hand (as systemd does with enabled units). What becomes of a single service is in `keeper`.
//! Services do not depend on each other and are started in no particular order.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{
    keeper::{Order, Unit},
    process::Surroundings,
    record::write_atomic,
    unit::{self, Definition, Status},
};
use crate::Error;

/// More services than this on one instance are a mistake.
const SERVICES_MAX: usize = 64;

/// All services of one instance.
#[derive(Debug)]
pub(super) struct Supervisor {
    around: Surroundings,
    definitions: PathBuf,
    logs: PathBuf,
    units: Mutex<BTreeMap<String, Unit>>,
}

impl Supervisor {
    /// `home` is the instance's directory, with `services/` and `logs/` in it.
    pub(super) fn new(home: &Path, around: Surroundings) -> Self {
        let (definitions, logs) = (home.join("services"), home.join("logs"));
        Self { around, definitions, logs, units: Mutex::default() }
    }

    /// Starts all services that were ever applied and not removed; unreadable ones are named on stderr.
    pub(super) async fn boot(&self) {
        let Ok(entries) = fs::read_dir(&self.definitions) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let Some(name) =
                path.file_stem().and_then(|it| it.to_str()).filter(|it| unit::check_name(it).is_ok())
            else {
                continue;
            };
            let definition = fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?));
            match definition {
                Ok(definition) => drop(self.create(name, definition).order(Order::Start).await),
                Err(cause) => note!("service {} is not started: {cause}", path.display()),
            }
        }
    }

    /// Makes the service exist as defined and run; `true` when something had to be done for that.
    pub(super) async fn apply(&self, name: &str, definition: Definition) -> Result<(bool, Status), Error> {
        let refused = |reason| Error::usage(format!("apply service {name}: {reason}"));
        unit::check_name(name).and_then(|()| definition.check()).map_err(refused)?;
        let unit = self.get(name);
        if unit.is_none() && self.lock().len() >= SERVICES_MAX {
            return Err(refused(format!(
                "the instance has {SERVICES_MAX} services, which is the most it may have"
            )));
        }
        let path = self.definitions.join(format!("{name}.json"));
        let old = fs::read(&path);
        serde_json::to_vec_pretty(&definition)
            .map_err(io::Error::from)
            .and_then(|text| write_atomic(&path, &text))
            .map_err(|cause| {
                Error::host(format!("apply service {name}: write {}: {cause}", path.display()))
            })?;
        let (unit, order) = match unit {
            Some(unit) => (unit, Order::Apply(Box::new(definition))),
            None => (self.create(name, definition), Order::Start),
        };
        let done = unit.order(order).await;
        if let (Err(_), Ok(old)) = (&done, old) {
            // What goes on as it was must come back like that after a boot, too. If the disk is full, it does not.
            let _ = write_atomic(&path, &old);
        }
        Ok((done?, unit.status()))
    }

    pub(super) async fn start(&self, name: &str) -> Result<Status, Error> {
        self.order(name, Order::Start).await
    }

    pub(super) async fn stop(&self, name: &str) -> Result<Status, Error> {
        self.order(name, Order::Stop).await
    }

    pub(super) async fn restart(&self, name: &str) -> Result<Status, Error> {
        self.order(name, Order::Restart).await
    }

    /// Sends SIGHUP to the service's main process; an error when it does not run.
    pub(super) async fn reload(&self, name: &str) -> Result<Status, Error> {
        let unit = self.existing(name)?;
        if unit.order(Order::Reload).await? {
            return Ok(unit.status());
        }
        Err(Error::host(format!("reload service {name}: it is not running")))
    }

    pub(super) fn status(&self, name: &str) -> Result<Status, Error> {
        Ok(self.existing(name)?.status())
    }

    pub(super) fn statuses(&self) -> Vec<Status> {
        self.lock().values().map(Unit::status).collect()
    }

    /// Stops and forgets; a service that does not exist is no error. Its log stays.
    pub(super) async fn remove(&self, name: &str) -> Result<(), Error> {
        let Some(unit) = self.get(name) else { return Ok(()) };
        let path = self.definitions.join(format!("{name}.json"));
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(Error::host(format!(
                    "remove service {name}: remove {}: {cause}",
                    path.display()
                )));
            }
            _ => {}
        }
        unit.order(Order::End(Duration::MAX)).await?;
        self.lock().remove(name);
        Ok(())
    }

    /// Stops all services at once, and waits no longer than `grace` for any of them before it is killed. Their
    /// definitions stay.
    pub(super) async fn shut_down(&self, grace: Duration) {
        let units = std::mem::take(&mut *self.lock());
        let answers: Vec<_> = units
            .into_values()
            .map(|unit| tokio::spawn(async move { unit.order(Order::End(grace)).await }))
            .collect();
        for answer in answers {
            // A service that has ended before is just as good.
            let _ = answer.await;
        }
    }

    pub(super) fn log_path(&self, name: &str) -> Result<PathBuf, Error> {
        unit::check_name(name).map_err(|reason| Error::usage(format!("show log: {reason}")))?;
        let path = self.logs.join(format!("{name}.log"));
        if path.exists() || self.get(name).is_some() {
            return Ok(path);
        }
        Err(self.unknown(name))
    }

    async fn order(&self, name: &str, order: Order) -> Result<Status, Error> {
        let unit = self.existing(name)?;
        unit.order(order).await?;
        Ok(unit.status())
    }

    fn create(&self, name: &str, definition: Definition) -> Unit {
        let log = self.logs.join(format!("{name}.log"));
        let unit = Unit::keep(name, definition, self.around.clone(), log);
        self.lock().insert(name.to_owned(), unit.clone());
        unit
    }

    fn get(&self, name: &str) -> Option<Unit> {
        self.lock().get(name).cloned()
    }

    fn existing(&self, name: &str) -> Result<Unit, Error> {
        self.get(name).ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> Error {
        let known: Vec<_> = self.lock().keys().cloned().collect();
        let hint =
            if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
        Error::host(format!("there is no service {name:?} on this instance")).with_hint(hint)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Unit>> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
