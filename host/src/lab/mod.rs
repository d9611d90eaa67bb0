//! A lab's ledger: what exists, what is being done, and who may do it.
//!
//! The order is always the same: take the lock, write the intent, act through the provider, write the result,
//! renew the views. It knows providers only by their trait, and neither recipes nor SSH.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use serde_json::json;
use sha2::{Digest as _, Sha256};

pub mod journal;
pub mod keys;
pub mod lock;
pub mod plan;
pub mod views;

use crate::{
    Error, Kind,
    provider::{Ingress, Instance, Launch, Provider, State, epoch_s},
    ssh,
};
use journal::{Journal, Phase, Record};
use lock::Lock;
use plan::Wish;

/// What a run may cost: how long instances live and how many there may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub ttl: Duration,
    pub instances_max: usize,
}

/// One lab: a state directory and the provider of its instances.
pub struct Lab {
    dir: PathBuf,
    provider: Box<dyn Provider>,
    command: String,
    limits: Limits,
    ledger: Mutex<Option<Arc<Ledger>>>,
    session: Mutex<Declared>,
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
    key: Option<String>,
    groups: BTreeMap<String, String>,
    retiring: Vec<(Instance, String)>,
    started: bool,
}

/// What became of a fleet.
#[derive(Debug)]
pub struct Fleet {
    /// Its members, ordered by slot.
    pub instances: Vec<Instance>,
    /// Names of those that were launched now.
    pub launched: Vec<String>,
    /// Those that will be drained and terminated when the recipe has ended, with the reason.
    pub retiring: Vec<(Instance, String)>,
}

/// The parts of a launch that are not the wish itself.
#[derive(Debug, Clone, Default)]
pub struct LaunchOptions {
    pub key: String,
    pub group: Option<String>,
    pub image: Option<String>,
    pub tags: BTreeMap<String, String>,
}

impl Lab {
    /// `dir` is the absolute state directory; nothing is created until a step needs it.
    pub fn new(dir: PathBuf, provider: Box<dyn Provider>, command: String, limits: Limits) -> Self {
        Self { dir, provider, command, limits, ledger: Mutex::default(), session: Mutex::default() }
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    #[must_use]
    pub fn provider(&self) -> &dyn Provider {
        &*self.provider
    }

    /// Takes the lock at the first call and keeps it until the lab is dropped. Errors with `Kind::Locked` when
    /// another labhost has it.
    pub fn ledger(&self) -> Result<Arc<Ledger>, Error> {
        let mut slot = lock(&self.ledger);
        if let Some(ledger) = &*slot {
            return Ok(Arc::clone(ledger));
        }
        views::make_dir(&self.dir)?;
        let held = Lock::acquire(&self.dir.join("lock"), &self.command)?;
        let journal = Journal::open(&self.dir.join("journal.ndjson"))?;
        let lab = identity(&journal)?;
        let data =
            json!({ "command": self.command, "provider": self.provider.name(), "pid": std::process::id() });
        journal.append(Phase::Start, "run", None, data)?;
        let ledger = Arc::new(Ledger { lock: held, journal, lab });
        *slot = Some(Arc::clone(&ledger));
        Ok(ledger)
    }

    /// The ledger, with the provider ready for changes.
    async fn active(&self) -> Result<Arc<Ledger>, Error> {
        let ledger = self.ledger()?;
        if !lock(&self.session).started {
            self.provider.start().await?;
            lock(&self.session).started = true;
        }
        Ok(ledger)
    }

    /// Makes the login key exist here and at the provider. Returns the path of the private key.
    pub async fn ensure_key(&self, name: &str) -> Result<keys::KeyPair, Error> {
        let ledger = self.active().await?;
        let intent = ledger.journal.intend("key_pair", json!({ "name": name }))?;
        let result = async {
            let pair = keys::ensure(&self.dir.join("keys"), name)?;
            self.provider.ensure_key(name, &pair.public).await?;
            Ok(pair)
        };
        let pair = intent.end(result.await, |pair| json!({ "fingerprint": pair.fingerprint }))?;
        lock(&self.session).key = Some(name.to_owned());
        Ok(pair)
    }

    pub async fn ensure_group(&self, name: &str, ingress: &[Ingress]) -> Result<(), Error> {
        let ledger = self.active().await?;
        let intent = ledger.journal.intend("security_group", json!({ "name": name, "ingress": ingress }))?;
        intent.end(self.provider.ensure_group(name, ingress).await, |()| json!(null))
    }

    /// Makes the fleet be as wished, except that members to go only go in [`Lab::retire`].
    pub async fn ensure_fleet(&self, wish: &Wish, options: LaunchOptions) -> Result<Fleet, Error> {
        let ledger = self.active().await?;
        let existing = self.provider.list().await?;
        let plan = wish.plan(&existing);
        self.check_ceiling(existing.len(), &plan.launch)?;
        let mut instances = plan.keep;
        let mut launched = Vec::new();
        if !plan.launch.is_empty() {
            let launch = launch_of(&ledger, wish, plan.launch, options.clone(), self.expiry(&existing));
            let intent = ledger.journal.intend("launch", json!(launch))?;
            let result = self.provider.launch(&launch).await;
            let made = intent.end(result, |made| json!({ "ids": ids(made) }))?;
            launched = made.iter().map(|instance| instance.name.clone()).collect();
            instances.extend(made);
            instances.sort_by_key(|instance| instance.slot);
        }
        self.note_fleet(wish, options.group, &plan.retire);
        self.renew_views(&self.provider.list().await?)?;
        Ok(Fleet { instances, launched, retiring: plan.retire })
    }

    fn note_fleet(&self, wish: &Wish, group: Option<String>, retire: &[(Instance, String)]) {
        let mut session = lock(&self.session);
        session.fleets.insert(wish.fleet.clone());
        if let Some(group) = group {
            session.groups.insert(wish.fleet.clone(), group);
        }
        session.retiring.extend_from_slice(retire);
    }

    fn check_ceiling(&self, existing: usize, launch: &[u32]) -> Result<(), Error> {
        let total = existing + launch.len();
        if launch.is_empty() || total <= self.limits.instances_max {
            return Ok(());
        }
        let message = format!(
            "launch {} instances: with the {existing} that exist there would be {total}, and the ceiling is {}",
            launch.len(),
            self.limits.instances_max
        );
        Err(Error::provider(message)
            .with_hint(format!("Raise it with --max-instances {total} if that is meant.")))
    }

    /// All members of a lab end together, so a later launch takes the time of the first.
    fn expiry(&self, existing: &[Instance]) -> u64 {
        let fresh = epoch_s(SystemTime::now() + self.limits.ttl);
        existing.iter().map(|instance| instance.expires_at_s).max().unwrap_or(fresh)
    }

    /// Every instance of the lab, fresh from the provider.
    pub async fn list(&self) -> Result<Vec<Instance>, Error> {
        self.provider.list().await
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
        let ledger = self.active().await?;
        let ids = ids(instances);
        let intent = ledger.journal.intend("terminate", json!({ "ids": ids }))?;
        intent.end(self.provider.terminate(&ids).await, |()| json!(null))?;
        self.renew_views(&self.provider.list().await?)
    }

    /// Moves the time at which the lab ends by itself to `ttl` from now. Returns it in seconds since the epoch.
    pub async fn extend(&self, ttl: Duration) -> Result<u64, Error> {
        let ledger = self.active().await?;
        let expires_at_s = epoch_s(SystemTime::now() + ttl);
        let intent = ledger.journal.intend("extend", json!({ "expires_at_s": expires_at_s }))?;
        intent.end(self.provider.extend(expires_at_s).await, |()| json!(null))?;
        self.renew_views(&self.provider.list().await?)?;
        Ok(expires_at_s)
    }

    /// Writes instances.json, lb.json, run.json and the SSH configuration anew.
    pub fn renew_views(&self, instances: &[Instance]) -> Result<(), Error> {
        let session = lock(&self.session);
        views::write_json(&self.dir.join("instances.json"), &instances)?;
        let balancer = instances.iter().rev().find(|instance| instance.role.as_deref() == Some("balancer"));
        if let Some(instance) = balancer {
            let group = session.groups.get(&instance.fleet).map(String::as_str);
            if let Some(view) = views::BalancerView::of(instance, group) {
                views::write_json(&self.dir.join("lb.json"), &view)?;
            }
        }
        let expires_at_s = instances.iter().map(|instance| instance.expires_at_s).max();
        let lab = lock(&self.ledger).as_ref().map(|ledger| ledger.lab.clone());
        let run = json!({
            "format": 1, "lab": lab, "provider": self.provider.name(), "expires_at_s": expires_at_s,
            "key": session.key, "groups": session.groups,
        });
        views::write_json(&self.dir.join("run.json"), &run)?;
        let identity = keys::path(&self.dir.join("keys"), session.key.as_deref().unwrap_or("lab"));
        ssh::write_config(&self.dir, instances, &identity)
    }

    /// What [`Lab::destroy`] would remove, in words, one line each.
    pub async fn remains(&self) -> Result<Vec<String>, Error> {
        let mut remains = self.provider.remains().await?;
        let files: Vec<_> = own_files(&self.dir).filter(|path| path.exists()).collect();
        if !files.is_empty() {
            remains.push(format!("state: {} files and folders in {}", files.len(), self.dir.display()));
        }
        Ok(remains)
    }

    /// Removes everything this lab made except benchmark results. Errors with `Kind::Teardown` and the names of
    /// what is left; the state is then kept for another try.
    pub async fn destroy(&self, keep_bootstrap: bool) -> Result<(), Error> {
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
        let keys = self.dir.join("keys");
        for path in own_files(&self.dir).filter(|path| !(keep_bootstrap && *path == keys)) {
            let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match gone {
                Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::new(Kind::Teardown, format!("remove {}: {cause}", path.display())));
                }
                _ => {}
            }
        }
        if let Some(ledger) = lock(&self.ledger).take().and_then(Arc::into_inner) {
            ledger.lock.remove();
        }
        // Benchmark results may be there; then the folder stays.
        let _ = fs::remove_dir(&self.dir);
        Ok(())
    }
}

/// What a lab leaves under its state directory, apart from its lock and from benchmark results.
fn own_files(dir: &Path) -> impl Iterator<Item = PathBuf> {
    const NAMES: [&str; 11] = [
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
        "state",
    ];
    NAMES.into_iter().map(|name| dir.join(name))
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

/// The request for these slots. Its token depends on the launches of this fleet that are known to be done, so a
/// launch whose answer was lost is asked for again with the same token and made only once.
fn launch_of(
    ledger: &Ledger,
    wish: &Wish,
    slots: Vec<u32>,
    options: LaunchOptions,
    expires_at_s: u64,
) -> Launch {
    let records = ledger.journal.records();
    let ours = |of: Option<u64>| {
        records.iter().any(|record| Some(record.line) == of && record.data["fleet"] == wish.fleet.as_str())
    };
    let generation = records
        .iter()
        .filter(|record| record.phase == Phase::Done && record.step == "launch" && ours(record.of))
        .count();
    let text = format!("{}|{}|{}|{slots:?}|{generation}", ledger.lab, wish.fleet, wish.instance_type);
    let token = Sha256::digest(text).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    Launch {
        token,
        fleet: wish.fleet.clone(),
        instance_type: wish.instance_type.clone(),
        slots,
        cluster: wish.cluster.clone(),
        role: wish.role.clone(),
        key: options.key,
        group: options.group,
        image: options.image,
        tags: options.tags,
        expires_at_s,
    }
}

fn ids(instances: &[Instance]) -> Vec<String> {
    instances.iter().map(|instance| instance.id.clone()).collect()
}

/// Whether an instance can be reached: it runs and has an address.
#[must_use]
pub fn is_running(instance: &Instance) -> bool {
    instance.state == State::Running && instance.public_ip.is_some()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A running instance with a recognisable id.
    pub(crate) fn instance(fleet: &str, slot: u32, instance_type: &str, cluster: Option<&str>) -> Instance {
        let address = Some(std::net::Ipv4Addr::new(127, 77, 0, 10 + slot as u8));
        Instance {
            id: format!("i-{fleet}{slot}"),
            instance_type: instance_type.to_owned(),
            state: State::Running,
            public_ip: address,
            private_ip: address,
            cluster: cluster.map(str::to_owned),
            name: format!("{fleet}-{slot}"),
            fleet: fleet.to_owned(),
            slot,
            role: None,
            user: "lab".to_owned(),
            ssh_port: 2222,
            http_port: 8080,
            host_key: "ssh-ed25519 AAAA".to_owned(),
            emulated: true,
            launched_at_s: 1_000,
            expires_at_s: 2_000,
        }
    }
}
