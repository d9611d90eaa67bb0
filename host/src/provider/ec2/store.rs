//! The provider's own files, `artifacts/ec2/`: what each launch was asked with, and the host keys.
//!
//! ```text
//! launch-TOKEN.json   written before the call, so that it can be repeated word for word after a crash
//! host-keys.json      the host key of each instance after its first login
//! caller.json         this machine's public address, as the security groups know it
//! ```
//! Lost files lose logins and nothing else: instances are found by their tags.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use aws_sdk_ec2::types::Instance as Described;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Error, Kind, error::Context as _, files, keys, provider::Launch};

/// An SSH host key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HostKey {
    /// OpenSSH's private form; empty once the key is in place.
    pub(super) secret: String,
    /// OpenSSH's one-line form.
    pub(super) public: String,
}

impl HostKey {
    fn draw() -> Result<Self, Error> {
        let key = keys::draw()?;
        let public = key.public_key().to_openssh();
        Ok(Self {
            secret: keys::secret(&key)?,
            public: public.context(Kind::Internal, || "write a host key".to_owned())?,
        })
    }
}

/// What is particular about a launch call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attempt {
    /// The lab's token.
    pub(super) token: String,
    #[serde(default)]
    pub(super) fleet: String,
    /// Raised when the instances of the last call with this token are gone.
    pub(super) generation: u32,
    /// Subnets in the order in which they are tried, and which one it is at.
    pub(super) subnets: Vec<String>,
    pub(super) at: usize,
    /// The key that the user data brings; all members of a launch have the same.
    pub(super) first: HostKey,
    /// The key that each member gets at its first login, by launch index.
    pub(super) own: Vec<HostKey>,
    /// When the call was last made, in seconds since the epoch; 0 once AWS has said that it made nothing.
    #[serde(default)]
    pub(super) asked_at_s: u64,
    /// What the call made, and when, in seconds since the epoch; empty until it was answered.
    pub(super) ids: Vec<String>,
    pub(super) made_at_s: u64,
}

impl Attempt {
    pub(super) fn new(launch: &Launch, subnets: Vec<String>) -> Result<Self, Error> {
        let own = launch.slots.iter().map(|_| HostKey::draw()).collect::<Result<_, _>>()?;
        Ok(Self {
            token: launch.token.clone(),
            fleet: launch.fleet.clone(),
            generation: 0,
            subnets,
            at: 0,
            first: HostKey::draw()?,
            own,
            asked_at_s: 0,
            ids: Vec::new(),
            made_at_s: 0,
        })
    }

    /// Another call than the last, which made nothing that is still there.
    pub(super) fn next_generation(&mut self) {
        self.generation += 1;
        self.ids.clear();
        self.made_at_s = 0;
    }

    /// What this launch may have made since that time and `listed` does not show, in words. A listing lags behind,
    /// and a labhost that was killed during the call never learnt what it made.
    pub(super) fn unseen(&self, since_s: u64, listed: &[Described]) -> Vec<String> {
        if self.asked_at_s.max(self.made_at_s) < since_s {
            return Vec::new();
        }
        if self.ids.is_empty() {
            let token = self.client_token();
            let is_there = listed.iter().any(|it| it.client_token() == Some(&token));
            return if is_there { Vec::new() } else { vec![format!("a launch of {}", self.fleet)] };
        }
        let is_there = |id: &&String| listed.iter().any(|it| it.instance_id() == Some(id));
        self.ids.iter().filter(|id| !is_there(id)).cloned().collect()
    }

    /// The client token of the call: another one for each generation and zone, because a token stands for one call.
    pub(super) fn client_token(&self) -> String {
        let text = format!("{}|{}|{}", self.token, self.generation, self.at);
        Sha256::digest(text).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    pub(super) fn subnet(&self) -> Option<&str> {
        self.subnets.get(self.at).map(String::as_str)
    }
}

/// The files; one process at a time writes them, under the lab's lock. Only `caller.json` is also written by a command
/// that does no more than log in: the last one to log in is right about the address.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    writing: Mutex<()>,
}

impl Store {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("ec2"), writing: Mutex::default() }
    }

    fn attempt_path(&self, token: &str) -> PathBuf {
        self.dir.join(format!("launch-{token}.json"))
    }

    /// What an earlier call for this launch was asked with.
    pub(super) fn attempt(&self, token: &str) -> Option<Attempt> {
        read(&self.attempt_path(token))
    }

    pub(super) fn save(&self, attempt: &Attempt) -> Result<(), Error> {
        let _turn = self.turn();
        files::make_dir(&self.dir)?;
        files::write_json(&self.attempt_path(&attempt.token), attempt)
    }

    /// All launches that are remembered.
    pub(super) fn attempts(&self) -> Vec<Attempt> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let is_attempt = |name: &str| name.starts_with("launch-") && name.ends_with(".json");
        let paths = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_attempt));
        paths.filter_map(|entry| read(&entry.path())).collect()
    }

    fn keys_path(&self) -> PathBuf {
        self.dir.join("host-keys.json")
    }

    /// Public host keys by instance id, of those that have their own in place.
    pub(super) fn own_keys(&self) -> BTreeMap<String, String> {
        read(&self.keys_path()).unwrap_or_default()
    }

    /// Remembers that an instance has its own key in place, and forgets the key's secret.
    pub(super) fn settle(&self, id: &str, client_token: &str, index: usize) -> Result<(), Error> {
        let Some(mut attempt) = self.attempts().into_iter().find(|it| it.client_token() == client_token)
        else {
            return Ok(());
        };
        let _turn = self.turn();
        let mut keys = self.own_keys();
        // Read again in turn: another member may have settled meanwhile.
        attempt = self.attempt(&attempt.token).unwrap_or(attempt);
        let Some(key) = attempt.own.get_mut(index) else { return Ok(()) };
        keys.insert(id.to_owned(), key.public.clone());
        files::write_json(&self.keys_path(), &keys)?;
        key.secret.clear();
        files::write_json(&self.attempt_path(&attempt.token), &attempt)
    }

    fn caller_path(&self) -> PathBuf {
        self.dir.join("caller.json")
    }

    /// The address that rules for the caller let in, if there are such rules.
    pub(super) fn caller(&self) -> Option<Ipv4Addr> {
        read(&self.caller_path())
    }

    pub(super) fn set_caller(&self, address: Ipv4Addr) -> Result<(), Error> {
        let _turn = self.turn();
        files::make_dir(&self.dir)?;
        files::write_json(&self.caller_path(), &address)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch() -> Launch {
        Launch {
            token: "t".into(),
            fleet: "app".into(),
            instance_type: "t2.micro".into(),
            slots: vec![1, 3],
            cluster: None,
            role: None,
            key: "lab".into(),
            group: None,
            image: None,
            tags: BTreeMap::new(),
            expires_at_s: 1,
        }
    }

    #[test]
    fn token_changes_with_generation_and_zone_only() {
        let attempt = Attempt::new(&launch(), vec!["a".into(), "b".into()]).unwrap();
        let again = Attempt::new(&launch(), vec!["a".into()]).unwrap();
        assert_eq!(attempt.client_token(), again.client_token());
        let mut tokens = vec![attempt.client_token()];
        tokens.push(Attempt { at: 1, ..attempt.clone() }.client_token());
        tokens.push(Attempt { generation: 1, ..attempt }.client_token());
        tokens.dedup();
        assert_eq!(tokens.len(), 3);
        assert!(tokens.iter().all(|token| token.len() <= 64 && token.is_ascii()));
    }

    #[test]
    fn launch_is_unseen_until_its_instances_are_listed() {
        let mut attempt = Attempt::new(&launch(), Vec::new()).unwrap();
        let listed =
            |id: &str, token: String| [Described::builder().instance_id(id).client_token(token).build()];
        assert!(attempt.unseen(50, &[]).is_empty(), "it was not asked for");
        attempt.asked_at_s = 60;
        assert_eq!(attempt.unseen(50, &listed("i-9", "other".into())), ["a launch of app"]);
        assert!(attempt.unseen(61, &[]).is_empty(), "AWS knows by now what it has made");
        assert!(attempt.unseen(50, &listed("i-1", attempt.client_token())).is_empty());
        attempt.ids = vec!["i-1".into(), "i-2".into()];
        assert_eq!(attempt.unseen(50, &listed("i-1", attempt.client_token())), ["i-2"]);
        attempt.next_generation();
        assert_eq!(attempt.unseen(50, &listed("i-1", "of the last".into())), ["a launch of app"]);
    }

    #[test]
    fn settled_key_is_kept_without_its_secret() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let attempt = Attempt::new(&launch(), Vec::new()).unwrap();
        store.save(&attempt).unwrap();
        store.settle("i-1", &attempt.client_token(), 1).unwrap();
        assert_eq!(store.own_keys()["i-1"], attempt.own[1].public);
        let kept = store.attempt("t").unwrap();
        assert_eq!((kept.own[1].secret.as_str(), &kept.own[0]), ("", &attempt.own[0]));
        store.settle("i-9", "unknown", 0).unwrap();
        assert_eq!(store.own_keys().len(), 1);
    }
}
