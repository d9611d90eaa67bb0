//! What the agent remembers: `agent.json`, the truth about the lab, and `instance.json` in each instance's
//! directory, from which it is put together again should it be lost.
//!
//! PURE but for reading and writing these files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::Ipv4Addr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{address::INSTANCES_MAX, place::Place, types, unit};
use crate::{
    Error,
    instance::{Instance, State},
    provider::Launch,
};

/// Launches whose instances are all gone are remembered up to this number, so that a repeated token is
/// answered as on EC2 instead of launching again.
const PAST_LAUNCHES_MAX: usize = 256;

/// EC2's limit for a client token.
const TOKEN_BYTES_MAX: usize = 64;

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Roster {
    /// The block 127.77.OCTET.0/24 that the instances' addresses are in.
    pub(super) octet: Option<u8>,
    /// When the whole lab ends; `None` until something was launched.
    pub(super) expires_at_s: Option<u64>,
    /// Login keys by name, in OpenSSH's one-line form.
    pub(super) keys: BTreeMap<String, String>,
    pub(super) launches: Vec<Launched>,
}

/// A launch that was carried out.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Launched {
    pub(super) launch: Launch,
    pub(super) instances: Vec<Instance>,
}

/// `instance.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct InstanceFile {
    pub(super) launch: Launch,
    pub(super) instance: Instance,
}

impl Roster {
    /// Reads `agent.json`; without a readable one, finds the instances by their directories.
    pub(super) fn load(place: &Place) -> Self {
        match fs::read(place.agent_file()).and_then(|text| Ok(serde_json::from_slice(&text)?)) {
            Ok(roster) => roster,
            Err(cause) => {
                if cause.kind() != io::ErrorKind::NotFound {
                    note!(
                        "{} is not readable ({cause}): its content is put together again",
                        place.agent_file().display()
                    );
                }
                Self::from_directories(place)
            }
        }
    }

    fn from_directories(place: &Place) -> Self {
        let mut roster = Self::default();
        for file in instance_files(place) {
            let octet = file.instance.private_ip.map(|address| address.octets()[2]);
            roster.octet = roster.octet.or(octet);
            roster.expires_at_s = roster.expires_at_s.max(Some(file.instance.expires_at_s));
            match roster.launches.iter_mut().find(|it| it.launch.token == file.launch.token) {
                Some(launched) => launched.instances.push(file.instance),
                None => {
                    roster.launches.push(Launched { launch: file.launch, instances: vec![file.instance] });
                }
            }
        }
        roster
    }

    pub(super) fn save(&self, place: &Place) -> Result<(), Error> {
        let path = place.agent_file();
        serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .and_then(|text| write_atomic(&path, &text))
            .map_err(|cause| Error::host(format!("write {}: {cause}", path.display())))
    }

    /// The instances that an earlier launch with this token made, terminated ones included.
    ///
    /// Errors when that launch asked for something else. The time of expiry may differ: it says when the
    /// request was made rather than what was wanted.
    pub(super) fn made_by(&self, launch: &Launch) -> Result<Option<Vec<Instance>>, Error> {
        let Some(past) = self.launches.iter().find(|it| it.launch.token == launch.token) else {
            return Ok(None);
        };
        if (Launch { expires_at_s: launch.expires_at_s, ..past.launch.clone() }) != *launch {
            let message = format!("launch {}: its token was used for another launch", launch.fleet);
            return Err(Error::provider(message).with_hint("make a new token for each new request"));
        }
        Ok(Some(past.instances.iter().map(|instance| self.shown(instance)).collect()))
    }

    /// Instances that are not terminated, by fleet and slot.
    pub(super) fn live(&self) -> Vec<Instance> {
        let all = self.launches.iter().flat_map(|it| &it.instances);
        let mut live: Vec<_> =
            all.filter(|it| it.state != State::Terminated).map(|instance| self.shown(instance)).collect();
        live.sort_by(|one, other| {
            (&one.fleet, one.slot, &one.id).cmp(&(&other.fleet, other.slot, &other.id))
        });
        live
    }

    pub(super) fn addresses(&self) -> BTreeSet<Ipv4Addr> {
        self.live().iter().filter_map(|instance| instance.private_ip).collect()
    }

    /// The name of the key that opens this instance.
    pub(super) fn key_of(&self, id: &str) -> Option<&str> {
        let launched =
            self.launches.iter().find(|it| it.instances.iter().any(|instance| instance.id == id))?;
        Some(&launched.launch.key)
    }

    /// Adds a launch; the lab then lives at least until its instances expire.
    pub(super) fn add(&mut self, launch: Launch, instances: Vec<Instance>) {
        let earlier = self.expires_at_s.filter(|_| !self.live().is_empty());
        self.expires_at_s = earlier.max(Some(launch.expires_at_s));
        self.launches.push(Launched { launch, instances });
        self.forget();
    }

    pub(super) fn set_state(&mut self, ids: &[String], state: State) {
        for instance in self.launches.iter_mut().flat_map(|it| &mut it.instances) {
            if ids.contains(&instance.id) && instance.state != State::Terminated {
                instance.state = state;
            }
        }
    }

    fn shown(&self, instance: &Instance) -> Instance {
        let expires_at_s = self.expires_at_s.unwrap_or(instance.expires_at_s);
        Instance { expires_at_s, ..instance.clone() }
    }

    /// Drops the oldest launches that have no instance left.
    fn forget(&mut self) {
        let is_past = |it: &Launched| it.instances.iter().all(|instance| instance.state == State::Terminated);
        let mut surplus =
            self.launches.iter().filter(|it| is_past(it)).count().saturating_sub(PAST_LAUNCHES_MAX);
        self.launches.retain(|it| {
            let drop = surplus > 0 && is_past(it);
            surplus -= usize::from(drop);
            !drop
        });
    }

    /// Refuses what cannot be launched, before anything is done.
    pub(super) fn check(&self, launch: &Launch, now_s: u64) -> Result<(), Error> {
        let refuse = |reason: String| Err(Error::provider(format!("launch {:?}: {reason}", launch.fleet)));
        types::check(&launch.instance_type)?;
        if let Err(reason) = unit::check_name(&launch.fleet) {
            return refuse(format!("the fleet's name {reason}"));
        }
        if launch.token.is_empty() || launch.token.len() > TOKEN_BYTES_MAX || !launch.token.is_ascii() {
            return refuse(format!("a token is 1 to {TOKEN_BYTES_MAX} ASCII characters"));
        }
        if launch.slots.is_empty() || launch.slots.contains(&0) {
            return refuse("slots are counted from 1, and there must be one".to_owned());
        }
        if launch.slots.iter().collect::<BTreeSet<_>>().len() < launch.slots.len() {
            return refuse("a slot is named twice".to_owned());
        }
        if launch.cluster.as_ref().is_some_and(|name| name.contains('\0')) {
            return refuse("the cluster's name has a null character".to_owned());
        }
        if launch.expires_at_s <= now_s {
            return refuse("it would have expired already".to_owned());
        }
        if !self.keys.contains_key(&launch.key) {
            return refuse(format!("there is no key {:?}; make it with ec2::key_pair first", launch.key));
        }
        let count = self.live().len() + launch.slots.len();
        if count > INSTANCES_MAX {
            return refuse(format!(
                "that would make {count} local instances; a lab may have {INSTANCES_MAX}"
            ));
        }
        Ok(())
    }
}

/// The instances on disk, by fleet and slot, for when no agent runs.
pub(super) fn on_disk(place: &Place) -> Vec<Instance> {
    if !place.local().is_dir() {
        return Vec::new();
    }
    let mut live = Roster::load(place).live();
    live.retain(|instance| place.instance(&instance.id).is_dir());
    for instance in &mut live {
        instance.state = State::Stopped;
    }
    live
}

/// All readable `instance.json` of the lab.
fn instance_files(place: &Place) -> Vec<InstanceFile> {
    let Ok(entries) = fs::read_dir(place.local()) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join("instance.json")).ok())
        .filter_map(|text| serde_json::from_slice(&text).ok())
        .collect()
}

/// Replaces a file as a whole: after a crash there is the old or the new content, never a part. 0600.
pub(super) fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(directory)?;
    let temporary = path.with_extension("tmp");
    let mut file =
        fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_data()?;
    fs::rename(&temporary, path)?;
    fs::File::open(directory)?.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(token: &str, slots: &[u32]) -> Launch {
        Launch {
            token: token.to_owned(),
            fleet: "app".to_owned(),
            instance_type: "t2.micro".to_owned(),
            slots: slots.to_vec(),
            cluster: Some("cluster1".to_owned()),
            role: None,
            key: "lab".to_owned(),
            group: None,
            image: None,
            tags: BTreeMap::new(),
            expires_at_s: 100,
        }
    }

    fn instance(id: &str, slot: u32) -> Instance {
        Instance {
            id: id.to_owned(),
            instance_type: "t2.micro".to_owned(),
            state: State::Running,
            public_ip: Some(Ipv4Addr::new(127, 77, 3, 10 + slot as u8)),
            private_ip: Some(Ipv4Addr::new(127, 77, 3, 10 + slot as u8)),
            cluster: None,
            name: format!("app-{slot}"),
            fleet: "app".to_owned(),
            slot,
            role: None,
            user: "lab".to_owned(),
            ssh_port: 2222,
            http_port: 8080,
            host_key: String::new(),
            emulated: true,
            launched_at_s: 1,
            expires_at_s: 100,
        }
    }

    fn roster() -> Roster {
        let keys = BTreeMap::from([("lab".to_owned(), "ssh-ed25519 AAAA".to_owned())]);
        Roster { keys, ..Roster::default() }
    }

    #[test]
    fn a_repeated_token_returns_what_was_made() {
        let mut roster = roster();
        let asked = launch("t", &[1, 2]);
        assert_eq!(roster.made_by(&asked).unwrap(), None);
        roster.add(asked.clone(), vec![instance("i-1", 1), instance("i-2", 2)]);
        let later = Launch { expires_at_s: 200, ..asked.clone() };
        assert_eq!(roster.made_by(&later).unwrap().unwrap().len(), 2);
        roster.set_state(&["i-1".to_owned()], State::Terminated);
        let states: Vec<_> = roster.made_by(&asked).unwrap().unwrap().iter().map(|it| it.state).collect();
        assert_eq!(states, [State::Terminated, State::Running]);
        assert_eq!(roster.live().len(), 1);
    }

    #[test]
    fn the_lab_lives_as_long_as_its_last_launch_asked() {
        let mut roster = roster();
        roster.add(Launch { expires_at_s: 300, ..launch("a", &[1]) }, vec![instance("i-1", 1)]);
        roster.add(Launch { expires_at_s: 200, ..launch("b", &[2]) }, vec![instance("i-2", 2)]);
        assert!(roster.live().iter().all(|instance| instance.expires_at_s == 300));
        roster.set_state(&["i-1".to_owned(), "i-2".to_owned()], State::Terminated);
        roster.add(Launch { expires_at_s: 200, ..launch("c", &[3]) }, vec![instance("i-3", 3)]);
        assert_eq!(roster.live()[0].expires_at_s, 200);
    }

    #[test]
    fn a_token_used_for_something_else_is_refused() {
        let mut roster = roster();
        roster.add(launch("t", &[1]), vec![instance("i-1", 1)]);
        let error = roster.made_by(&launch("t", &[1, 2])).unwrap_err();
        assert!(error.message.contains("another launch"), "{error}");
    }

    #[test]
    fn what_cannot_be_launched_is_refused() {
        let roster = roster();
        roster.check(&launch("t", &[1]), 0).unwrap();
        #[track_caller]
        fn check(roster: &Roster, launch: Launch, now_s: u64, part: &str) {
            let error = roster.check(&launch, now_s).unwrap_err();
            assert!(error.message.contains(part), "{error}");
        }
        check(&roster, launch("t", &[]), 0, "there must be one");
        check(&roster, launch("t", &[0]), 0, "counted from 1");
        check(&roster, launch("t", &[2, 2]), 0, "twice");
        check(&roster, launch("", &[1]), 0, "token");
        check(&roster, launch(&"t".repeat(65), &[1]), 0, "token");
        check(&roster, launch("t", &[1]), 100, "expired");
        check(&roster, Launch { fleet: "../x".to_owned(), ..launch("t", &[1]) }, 0, "name");
        check(&roster, Launch { key: "other".to_owned(), ..launch("t", &[1]) }, 0, "no key");
        check(&roster, Launch { instance_type: "t2.big".to_owned(), ..launch("t", &[1]) }, 0, "type");
        check(&roster, launch("t", &(1..=201).collect::<Vec<_>>()), 0, "may have 200");
    }

    #[test]
    fn only_so_many_past_launches_are_remembered() {
        let mut roster = roster();
        roster.add(launch("live", &[1]), vec![instance("i-live", 1)]);
        for number in 0..PAST_LAUNCHES_MAX + 10 {
            let gone = Instance { state: State::Terminated, ..instance("i-gone", 1) };
            roster.add(launch(&number.to_string(), &[1]), vec![gone]);
        }
        assert_eq!(roster.launches.len(), PAST_LAUNCHES_MAX + 1);
        assert_eq!(roster.live()[0].id, "i-live");
    }

    #[test]
    fn a_lost_roster_is_put_together_again() {
        let state = tempfile::tempdir().unwrap();
        let place = Place::of(state.path()).unwrap();
        for (id, slot) in [("i-1", 1), ("i-2", 2)] {
            let file = InstanceFile { launch: launch("t", &[1, 2]), instance: instance(id, slot) };
            let text = serde_json::to_vec(&file).unwrap();
            write_atomic(&place.instance(id).join("instance.json"), &text).unwrap();
        }
        let roster = Roster::load(&place);
        assert_eq!((roster.octet, roster.expires_at_s), (Some(3), Some(100)));
        assert_eq!(roster.launches.len(), 1);
        assert_eq!(on_disk(&place).len(), 2);
        assert!(on_disk(&place).iter().all(|it| it.state == State::Stopped));
    }
}
