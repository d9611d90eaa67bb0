//! A lab's ledger: what exists, what is being done, and who may do it.
//!
//! The order is always the same: take the lock, write the intent, act through the provider, write the result,
//! renew the views. It knows providers only by their trait, writes the configuration for SSH but opens no session, and
//! does not know recipes.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use serde_json::json;
use tokio::time::Instant;

mod fleet;
pub mod journal;
mod limits;
pub mod lock;
pub mod plan;
mod record;
mod rehearsal;
mod teardown;
mod views;

pub use fleet::{Fleet, LaunchOptions};
pub use limits::Limits;
pub use record::provider_of;
pub use rehearsal::Rehearsal;

use crate::{
    Error, files,
    instance::Instance,
    keys,
    provider::{Ingress, LoginKey, Provider},
    ssh,
    units::{Span, epoch_s},
};
use journal::{Journal, Phase, Record};
use lock::Lock;
use record::RunFile;

/// One lab: a state directory and the provider of its instances.
pub struct Lab {
    dir: PathBuf,
    provider: Arc<dyn Provider>,
    command: String,
    limits: Limits,
    ledger: Mutex<Option<Arc<Ledger>>>,
    session: Mutex<Declared>,
    /// Present when the lab only plans.
    rehearsal: Option<Mutex<Rehearsal>>,
}

/// The right to change the lab, and the journal to say so in.
#[derive(Debug)]
pub struct Ledger {
    lock: Lock,
    pub journal: Journal,
    /// Identity of the lab, drawn when its journal began.
    lab: String,
}

/// What this run's recipe has asked for so far.
#[derive(Debug, Default)]
struct Declared {
    fleets: BTreeSet<String>,
    /// What is kept for later commands.
    run: RunFile,
    retiring: Vec<(Instance, String)>,
    started: bool,
    /// All instances as last seen; empty when nothing was looked at yet.
    last: Vec<Instance>,
}

impl Lab {
    /// `dir` is the absolute state directory; nothing is created until a step needs it.
    pub fn new(dir: PathBuf, provider: Arc<dyn Provider>, command: String, limits: Limits) -> Self {
        let mut run = RunFile::read(&dir);
        run.provider = Some(provider.name().to_owned());
        let session = Mutex::new(Declared { run, ..Declared::default() });
        Self { dir, provider, command, limits, ledger: Mutex::default(), session, rehearsal: None }
    }

    /// The state directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the instances come from.
    #[must_use]
    pub fn provider(&self) -> &Arc<dyn Provider> {
        &self.provider
    }

    /// Takes the lock at the first call and keeps it until the lab is dropped. Errors with `Kind::Locked` when
    /// another labhost has it.
    pub fn ledger(&self) -> Result<Arc<Ledger>, Error> {
        let mut slot = lock(&self.ledger);
        if let Some(ledger) = &*slot {
            return Ok(Arc::clone(ledger));
        }
        files::make_dir(&self.dir)?;
        let held = Lock::acquire(&self.dir.join("lock"), &self.command)?;
        let journal = Journal::open(&self.dir.join("journal.ndjson"))?;
        let lab = identity(&journal)?;
        let data =
            json!({ "command": self.command, "provider": self.provider.name(), "pid": std::process::id() });
        journal.append(Phase::Start, "run", None, data)?;
        lock(&self.session).run.lab = Some(lab.clone());
        let ledger = Arc::new(Ledger { lock: held, journal, lab });
        *slot = Some(Arc::clone(&ledger));
        Ok(ledger)
    }

    /// The ledger, with the provider ready for changes.
    async fn active(&self) -> Result<Arc<Ledger>, Error> {
        let ledger = self.ledger()?;
        if self.prepare().await? {
            // A later command must know the provider however early this one ends.
            lock(&self.session).run.write(&self.dir)?;
        }
        Ok(ledger)
    }

    /// Makes the provider ready, once. Returns whether it was not before.
    async fn prepare(&self) -> Result<bool, Error> {
        if lock(&self.session).started {
            return Ok(false);
        }
        if self.is_planning() {
            self.provider.look_around().await?;
        } else {
            self.provider.start().await?;
        }
        lock(&self.session).started = true;
        Ok(true)
    }

    /// Makes the login key exist here and at the provider; with `adopt`, the file of a private key, the provider's
    /// key of this name is used as it is.
    pub async fn ensure_key(&self, name: &str, adopt: Option<&Path>) -> Result<keys::KeyPair, Error> {
        if self.is_planning() {
            let pair = adopt.map_or_else(|| self.trial_key(name), keys::adopt)?;
            self.rehearse_key(login_key(name, &pair, adopt)).await?;
            return Ok(pair);
        }
        let ledger = self.active().await?;
        let intent = ledger.journal.intend("key_pair", json!({ "name": name }))?;
        let result = async {
            let pair = adopt.map_or_else(|| keys::ensure(&self.dir.join("keys"), name), keys::adopt)?;
            self.provider.ensure_key(&login_key(name, &pair, adopt)).await?;
            Ok(pair)
        };
        let pair = intent.end(result.await, |pair| json!({ "fingerprint": pair.fingerprint }))?;
        let mut session = lock(&self.session);
        session.run.key = Some(name.to_owned());
        session.run.identity = adopt.map(|_| pair.path.clone());
        Ok(pair)
    }

    /// Makes the security group have exactly these rules. Returns its id.
    pub async fn ensure_group(&self, name: &str, ingress: &[Ingress]) -> Result<String, Error> {
        if self.is_planning() {
            return self.rehearse_group(name, ingress).await;
        }
        let ledger = self.active().await?;
        let intent = ledger.journal.intend("security_group", json!({ "name": name, "ingress": ingress }))?;
        let id = intent.end(self.provider.ensure_group(name, ingress).await, |id| json!({ "id": id }))?;
        lock(&self.session).run.group_ids.insert(name.to_owned(), id.clone());
        Ok(id)
    }

    /// The id of the image called `name`; the one that an earlier run found, if any.
    pub async fn image(&self, name: &str) -> Result<String, Error> {
        let before = lock(&self.session).run.images.get(name).cloned();
        let id = self.provider.image(name, before.as_deref()).await?;
        lock(&self.session).run.images.insert(name.to_owned(), id.clone());
        Ok(id)
    }

    /// Every instance of the lab, fresh from the provider.
    pub async fn list(&self) -> Result<Vec<Instance>, Error> {
        let listed = self.provider.list().await?;
        lock(&self.session).last.clone_from(&listed);
        Ok(listed)
    }

    /// Every instance of the lab as last seen by this process, for what need not be fresh.
    pub async fn last_seen(&self) -> Result<Vec<Instance>, Error> {
        let last = lock(&self.session).last.clone();
        if last.is_empty() { self.list().await } else { Ok(last) }
    }

    /// Waits until these run, and renews the views; see [`Provider::wait_running`].
    pub async fn wait_running(&self, ids: &[String], deadline: Instant) -> Result<Vec<Instance>, Error> {
        let running = self.provider.wait_running(ids, deadline).await?;
        let all = merged(self.last_seen().await?, &running);
        self.renew_views(&all)?;
        Ok(running)
    }

    /// Takes over the members that this recipe's fleets no longer need, and those of fleets that it does not
    /// name. The second list is empty unless the recipe named any fleet.
    pub async fn leftovers(&self) -> Result<(Vec<(Instance, String)>, Vec<Instance>), Error> {
        let (retiring, fleets) = {
            let mut session = lock(&self.session);
            (std::mem::take(&mut session.retiring), session.fleets.clone())
        };
        if fleets.is_empty() {
            return Ok((retiring, Vec::new()));
        }
        let mut unnamed = self.list().await?;
        unnamed.retain(|instance| !fleets.contains(&instance.fleet));
        Ok((retiring, unnamed))
    }

    /// Terminates these instances and waits until they are gone.
    pub async fn retire(&self, instances: &[Instance]) -> Result<(), Error> {
        if instances.is_empty() {
            return Ok(());
        }
        if self.is_planning() {
            return self.rehearse_retirement(instances).await;
        }
        let ledger = self.active().await?;
        let ids = ids(instances);
        let intent = ledger.journal.intend("terminate", json!({ "ids": ids }))?;
        intent.end(self.provider.terminate(&ids).await, |()| json!(null))?;
        self.renew_views(&self.list().await?)
    }

    /// Moves the time at which the lab ends by itself to `ttl` from now. Returns it in seconds since the epoch. Errors
    /// when that is longer than allowed.
    pub async fn extend(&self, ttl: Span) -> Result<u64, Error> {
        self.limits.check_ttl(ttl)?;
        let ledger = self.active().await?;
        let expires_at_s = epoch_s(SystemTime::now() + ttl.0);
        let intent = ledger.journal.intend("extend", json!({ "expires_at_s": expires_at_s }))?;
        intent.end(self.provider.extend(expires_at_s).await, |()| json!(null))?;
        self.renew_views(&self.list().await?)?;
        Ok(expires_at_s)
    }

    /// Writes instances.json, lb.json, run.json and the SSH configuration anew.
    pub fn renew_views(&self, instances: &[Instance]) -> Result<(), Error> {
        if self.is_planning() {
            return Ok(());
        }
        let mut session = lock(&self.session);
        session.last = instances.to_vec();
        let run = &mut session.run;
        files::write_json(&self.dir.join("instances.json"), &instances)?;
        let balancer = instances.iter().rev().find(|instance| instance.role.as_deref() == Some("balancer"));
        if let Some(instance) = balancer {
            let group = run.groups.get(&instance.fleet);
            let group = group.map(|name| run.group_ids.get(name).unwrap_or(name).as_str());
            if let Some(view) = views::BalancerView::of(instance, group) {
                files::write_json(&self.dir.join("lb.json"), &view)?;
            }
        } else {
            // It may not be there at all.
            let _ = fs::remove_file(self.dir.join("lb.json"));
        }
        run.expires_at_s = instances.iter().map(|instance| instance.expires_at_s).max();
        run.write(&self.dir)?;
        drop(session);
        self.write_ssh_config(instances)
    }

    /// Writes the SSH configuration anew.
    pub fn write_ssh_config(&self, instances: &[Instance]) -> Result<(), Error> {
        let run = lock(&self.session).run.clone();
        let own = || keys::path(&self.dir.join("keys"), run.key.as_deref().unwrap_or("lab"));
        ssh::write_config(&self.dir, instances, &run.identity.clone().unwrap_or_else(own))
    }
}

/// The lab's identity: from the first line of its journal, or drawn now.
fn identity(journal: &Journal) -> Result<String, Error> {
    let known = |record: &Record| record.data.get("lab").and_then(|lab| lab.as_str()).map(str::to_owned);
    if let Some(lab) = journal.records().iter().find(|record| record.phase == Phase::Lab).and_then(known) {
        return Ok(lab);
    }
    let lab = format!("{:016x}", rand::random::<u64>());
    journal.append(Phase::Lab, "lab", None, json!({ "lab": lab }))?;
    Ok(lab)
}

fn login_key(name: &str, pair: &keys::KeyPair, adopt: Option<&Path>) -> LoginKey {
    LoginKey { name: name.to_owned(), public: pair.public.clone(), adopt: adopt.is_some() }
}

/// `all` with newer sights of some of them, ordered by fleet and slot.
fn merged(mut all: Vec<Instance>, newer: &[Instance]) -> Vec<Instance> {
    all.retain(|instance| newer.iter().all(|it| it.id != instance.id));
    all.extend_from_slice(newer);
    all.sort_by(|one, other| (&one.fleet, one.slot, &one.id).cmp(&(&other.fleet, other.slot, &other.id)));
    all
}

fn ids(instances: &[Instance]) -> Vec<String> {
    instances.iter().map(|instance| instance.id.clone()).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
