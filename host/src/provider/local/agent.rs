//! The state behind the agent's answers, and what each request does to it.
//!
//! Requests that change something run one after the other, so that a listing after a launch whose client was
//! killed shows what that launch made. What instances are lies in `machine`, what is remembered in `record`.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    address::Block,
    machine::{self, Keys, Machine},
    place::{Place, remove_tree},
    process,
    record::Roster,
};
use crate::{
    Error, Kind,
    error::Context,
    instance::{Instance, State},
    provider::Launch,
    units::epoch_s,
};

/// A lab needs one key; EC2 allows names of this length.
const KEYS_MAX: usize = 64;
const KEY_NAME_BYTES_MAX: usize = 255;

/// From SIGTERM to SIGKILL for services of an instance that is being terminated.
const TERMINATE_GRACE: Duration = Duration::from_secs(1);

/// From SIGTERM to SIGKILL when the agent itself is asked to end.
const EXIT_GRACE: Duration = Duration::from_secs(5);

/// The agent's state; requests that change it run one after the other.
pub(super) struct Agent {
    pub(super) place: Place,
    pub(super) octet: u8,
    keys: Keys,
    lab: tokio::sync::Mutex<Lab>,
    idle_since: Mutex<Instant>,
    idle_max: Duration,
    /// Set when the lab's files are being removed.
    is_leaving: AtomicBool,
    /// Set when the agent is to end.
    pub(super) over: CancellationToken,
}

struct Lab {
    roster: Roster,
    block: Block,
    machines: BTreeMap<String, Arc<Machine>>,
    with_ssh: bool,
}

impl Agent {
    pub(super) async fn boot(place: Place, idle_max: Duration) -> Result<Self, Error> {
        let mut roster = Roster::load(&place);
        let block = claim(&roster, &place)?;
        roster.octet = Some(block.octet);
        let is_over = roster.expires_at_s.is_some_and(|end| end <= epoch_s(SystemTime::now()));
        let gone = |id: &String| is_over || !place.instance(id).is_dir();
        let gone: Vec<_> = roster.live().into_iter().map(|it| it.id).filter(gone).collect();
        roster.set_state(&gone, State::Terminated);
        roster.save(&place)?;
        remove_strays(&place, &roster);
        let keys = Keys::default();
        for (name, key) in &roster.keys {
            admit(&keys, name, key)?;
        }
        let octet = block.octet;
        let mut lab = Lab { roster, block, machines: BTreeMap::new(), with_ssh: true };
        boot_all(&place, &mut lab, &keys).await;
        Ok(Self {
            place,
            octet,
            keys,
            lab: tokio::sync::Mutex::new(lab),
            idle_since: Mutex::new(Instant::now()),
            idle_max,
            is_leaving: AtomicBool::new(false),
            over: CancellationToken::new(),
        })
    }

    pub(super) async fn ensure_key(&self, name: &str, public_key: &str) -> Result<(), Error> {
        let mut lab = self.lab.lock().await;
        let is_full = lab.roster.keys.len() >= KEYS_MAX && !lab.roster.keys.contains_key(name);
        if is_full || name.len() > KEY_NAME_BYTES_MAX {
            let limits =
                format!("a lab has up to {KEYS_MAX} keys with names of up to {KEY_NAME_BYTES_MAX} bytes");
            return Err(Error::provider(format!("ensure key: {limits}")));
        }
        admit(&self.keys, name, public_key)?;
        lab.roster.keys.insert(name.to_owned(), public_key.trim().to_owned());
        lab.roster.save(&self.place)
    }

    /// Makes and boots the instances; all of them or none. See [`crate::provider::Provider::launch`].
    pub(super) async fn launch(&self, launch: Launch) -> Result<Vec<Instance>, Error> {
        let mut lab = self.lab.lock().await;
        if let Some(made) = lab.roster.made_by(&launch)? {
            return Ok(made);
        }
        let now_s = epoch_s(SystemTime::now());
        lab.roster.check(&launch, now_s)?;
        let mut instances = Vec::new();
        let mut machines = Vec::new();
        let mut made = self.make(&lab, &launch, now_s, &mut instances, &mut machines).await;
        if made.is_ok() {
            lab.roster.add(launch.clone(), instances.clone());
            made = lab.roster.save(&self.place);
        }
        if let Err(error) = made {
            lab.roster.launches.retain(|it| it.launch.token != launch.token);
            shut_down_all(machines, Duration::ZERO).await;
            for instance in &instances {
                // What cannot be removed now is a stray for the next agent.
                let _ = remove_tree(&self.place.instance(&instance.id));
            }
            return Err(error);
        }
        lab.machines.extend(instances.iter().map(|it| it.id.clone()).zip(machines));
        Ok(lab.roster.made_by(&launch)?.unwrap_or(instances))
    }

    async fn make(
        &self,
        lab: &Lab,
        launch: &Launch,
        now_s: u64,
        instances: &mut Vec<Instance>,
        machines: &mut Vec<Arc<Machine>>,
    ) -> Result<(), Error> {
        let failed = |slot, cause| Error::host(format!("launch {}-{slot}: {cause}", launch.fleet));
        let addresses = lab.block.free(&lab.roster.addresses(), launch.slots.len());
        for (&slot, &address) in launch.slots.iter().zip(&addresses) {
            let instance = machine::create(&self.place, launch, slot, address, now_s)
                .map_err(|cause| failed(slot, cause))?;
            instances.push(instance.clone());
            let machine = Machine::boot(&self.place, &instance, &launch.key, self.keys.clone(), lab.with_ssh)
                .await
                .map_err(|cause| failed(slot, cause))?;
            machines.push(Arc::new(machine));
        }
        Ok(())
    }

    /// Live instances; those whose directory has vanished are terminated first.
    pub(super) async fn list(&self) -> Result<Vec<Instance>, Error> {
        let mut lab = self.lab.lock().await;
        let vanished: Vec<_> = lab
            .roster
            .live()
            .into_iter()
            .map(|it| it.id)
            .filter(|id| !self.place.instance(id).is_dir())
            .collect();
        if !vanished.is_empty() {
            self.terminate_in(&mut lab, &vanished).await?;
        }
        Ok(lab.roster.live())
    }

    pub(super) async fn terminate(&self, ids: &[String]) -> Result<(), Error> {
        let mut lab = self.lab.lock().await;
        self.terminate_in(&mut lab, ids).await
    }

    async fn terminate_in(&self, lab: &mut Lab, ids: &[String]) -> Result<(), Error> {
        let mut ids = ids.to_vec();
        ids.retain(|id| lab.roster.live().iter().any(|instance| instance.id == *id));
        lab.roster.set_state(&ids, State::Terminated);
        lab.roster.save(&self.place)?;
        let machines: Vec<_> = ids.iter().filter_map(|id| lab.machines.remove(id)).collect();
        shut_down_all(machines, TERMINATE_GRACE).await;
        let marks: Vec<_> = ids.iter().map(|id| machine::mark(&self.place, id)).collect();
        let left = process::kill_marked(&marks);
        for id in &ids {
            let directory = self.place.instance(id);
            remove_tree(&directory)
                .context(Kind::Host, || format!("terminate {id}: remove {}", directory.display()))?;
        }
        self.touch();
        match left.first() {
            None => Ok(()),
            Some(left) => {
                Err(Error::host(format!("terminate: process {} ({}) cannot be killed", left.pid, left.name)))
            }
        }
    }

    pub(super) async fn extend(&self, expires_at_s: u64) -> Result<(), Error> {
        let mut lab = self.lab.lock().await;
        lab.roster.expires_at_s = Some(expires_at_s);
        lab.roster.save(&self.place)
    }

    /// Terminates everything and removes the lab's files; the caller then cancels `over`.
    pub(super) async fn destroy(&self) -> Result<(), Error> {
        let mut lab = self.lab.lock().await;
        self.is_leaving.store(true, Ordering::Release);
        let ids: Vec<_> = lab.roster.live().into_iter().map(|it| it.id).collect();
        let terminated = self.terminate_in(&mut lab, &ids).await;
        let local = self.place.local();
        remove_tree(&local).context(Kind::Host, || format!("remove {}", local.display()))?;
        self.place
            .remove_runtime()
            .context(Kind::Host, || format!("remove {}", self.place.runtime().display()))?;
        terminated
    }

    pub(super) async fn set_ssh(&self, with_ssh: bool) -> Result<(), Error> {
        let mut lab = self.lab.lock().await;
        lab.with_ssh = with_ssh;
        for machine in lab.machines.values() {
            if with_ssh {
                machine.open_ssh().await.context(Kind::Host, || "start SSH again".to_owned())?;
            } else {
                machine.close_ssh().await;
            }
        }
        Ok(())
    }

    pub(super) async fn machine(&self, id: &str) -> Result<Arc<Machine>, Error> {
        let lab = self.lab.lock().await;
        lab.machines
            .get(id)
            .cloned()
            .ok_or_else(|| Error::host(format!("there is no running instance {id:?}")))
    }

    /// Ends the lab when its time has come, and the agent when it has nothing to do.
    pub(super) async fn look_at_the_clock(&self) {
        // A request is being carried out; the next tick will do.
        let Ok(lab) = self.lab.try_lock() else { return };
        let is_over = lab.roster.expires_at_s.is_some_and(|end| end <= epoch_s(SystemTime::now()));
        let is_empty = lab.roster.live().is_empty();
        drop(lab);
        if !is_empty && !self.is_leaving() && !self.place.local().exists() {
            note!("the lab's folder was moved or removed: its machines end");
            self.power_off().await;
            self.over.cancel();
            return;
        }
        if !is_empty {
            self.touch();
        }
        if is_over && !is_empty {
            note!("the lab's time is over");
            if let Err(error) = self.destroy().await {
                note!("{error}");
            }
            self.over.cancel();
        } else if self.idle_since.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= self.idle_max {
            self.over.cancel();
        }
    }

    /// Whether the lab's files are being removed.
    pub(super) fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Acquire)
    }

    /// Says that somebody is there.
    pub(super) fn touch(&self) {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Ends all processes and keeps everything on disk.
    pub(super) async fn power_off(&self) {
        let mut lab = self.lab.lock().await;
        let machines = std::mem::take(&mut lab.machines).into_values().collect();
        shut_down_all(machines, EXIT_GRACE).await;
        process::kill_marked(&[self.place.mark()]);
    }
}

async fn shut_down_all(machines: Vec<Arc<Machine>>, grace: Duration) {
    let ends: Vec<_> = machines
        .into_iter()
        .map(|machine| tokio::spawn(async move { machine.shut_down(grace).await }))
        .collect();
    for end in ends {
        // What it left is killed by its mark.
        let _ = end.await;
    }
}

/// Boots what is on disk. One that cannot boot is listed as stopped, with the reason in the agent's log.
async fn boot_all(place: &Place, lab: &mut Lab, keys: &Keys) {
    for instance in lab.roster.live() {
        let key_name = lab.roster.key_of(&instance.id).unwrap_or_default().to_owned();
        let state = match Machine::boot(place, &instance, &key_name, keys.clone(), true).await {
            Ok(machine) => {
                machine.services.boot().await;
                lab.machines.insert(instance.id.clone(), Arc::new(machine));
                State::Running
            }
            Err(cause) => {
                note!("boot {}: {cause}", instance.name);
                State::Stopped
            }
        };
        lab.roster.set_state(std::slice::from_ref(&instance.id), state);
    }
}

/// The block that the instances' addresses are in, or any when there are none yet.
fn claim(roster: &Roster, place: &Place) -> Result<Block, Error> {
    let preferred = roster.octet.map(Block::claim);
    match preferred {
        Some(Ok(block)) => Ok(block),
        Some(Err(cause)) if !roster.live().is_empty() => {
            let octet = roster.octet.unwrap_or_default();
            Err(Error::host(format!("claim the lab's addresses 127.77.{octet}.0/24: {cause}"))
                .with_hint(format!("another program holds the abstract unix socket labhost-127.77.{octet}; `ss -xlp` shows it")))
        }
        _ => Block::claim_any(&place.lab, &place.blocks_of_others()),
    }
}

/// Removes directories of launches that were never completed.
fn remove_strays(place: &Place, roster: &Roster) {
    let live = roster.live();
    let Ok(entries) = fs::read_dir(place.local()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("i-") && live.iter().all(|instance| instance.id != name) {
            // It is tried again by the next agent.
            let _ = remove_tree(&entry.path());
        }
    }
}

fn admit(keys: &Keys, name: &str, public_key: &str) -> Result<(), Error> {
    let key = russh::keys::PublicKey::from_openssh(public_key.trim())
        .context(Kind::Provider, || format!("ensure key {name:?}: it is not an OpenSSH public key"))?;
    keys.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), key);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_agent_without_instances_ends_and_keeps_its_keys() {
        let state = tempfile::tempdir().unwrap();
        let place = Place::of(state.path()).unwrap();
        let agent = Agent::boot(place.clone(), Duration::from_secs(3600)).await.unwrap();
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPgmNc8kBk4mxSxZNAQvDs2OVYxjtyJgm8hXUzZRB5pb";
        agent.ensure_key("lab", key).await.unwrap();
        assert!(agent.ensure_key("bad", "ssh-ed25519 nonsense").await.is_err());
        agent.look_at_the_clock().await;
        assert!(!agent.over.is_cancelled());
        let octet = agent.octet;
        drop(agent);
        let agent = Agent::boot(place, Duration::ZERO).await.unwrap();
        assert_eq!(agent.octet, octet);
        agent.look_at_the_clock().await;
        assert!(agent.over.is_cancelled());
        assert_eq!(agent.lab.lock().await.roster.keys["lab"], key);
    }
}
