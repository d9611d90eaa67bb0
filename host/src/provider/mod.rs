//! Where instances come from. A provider creates, lists and removes instances; everything that happens *on* an
//! instance goes over SSH (`ssh`) and is the same for all providers.
//!
//! This module does not know Rhai, keeps no journal and opens no SSH connection.

use std::{collections::BTreeMap, net::Ipv4Addr, pin::Pin, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::Error;

pub mod local;

/// What a provider's operation returns; boxed so that `dyn Provider` works.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// The life of an instance, in EC2's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Pending,
    Running,
    ShuttingDown,
    Terminated,
    Stopping,
    Stopped,
}

/// One machine, as `artifacts/instances.json` and recipes show it.
///
/// The first six fields are the shape that the original lab's scripts wrote; the others are ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// `i-` and 17 hexadecimal digits.
    pub id: String,
    #[serde(rename = "type")]
    pub instance_type: String,
    pub state: State,
    pub public_ip: Option<Ipv4Addr>,
    pub private_ip: Option<Ipv4Addr>,
    pub cluster: Option<String>,
    /// `FLEET-SLOT`: the name a user types (`labhost ssh large-3`).
    pub name: String,
    pub fleet: String,
    /// Counts from 1 within the fleet.
    pub slot: u32,
    pub role: Option<String>,
    /// Login for SSH.
    pub user: String,
    pub ssh_port: u16,
    /// The port a public service takes here: 80 on EC2, 8080 where low ports need root.
    pub http_port: u16,
    /// Public host key to pin before first contact: `ssh-ed25519 AAAA...`.
    pub host_key: String,
    /// Whether the type's capacity is emulated by the worker rather than being the machine's own.
    pub emulated: bool,
    /// Seconds since the epoch.
    pub launched_at_s: u64,
    /// Seconds since the epoch; the provider removes the instance then by itself.
    pub expires_at_s: u64,
}

/// A request for new members of one fleet: all of them or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// At most 64 ASCII characters. The same token with the same request returns the instances already made.
    pub token: String,
    pub fleet: String,
    pub instance_type: String,
    /// Slots to fill, counted from 1; one instance each.
    pub slots: Vec<u32>,
    pub cluster: Option<String>,
    pub role: Option<String>,
    /// Names of the key pair, security group and image as the recipe ensured them before.
    pub key: String,
    pub group: Option<String>,
    pub image: Option<String>,
    /// Further tags, shown in listings.
    pub tags: BTreeMap<String, String>,
    pub expires_at_s: u64,
}

/// One rule of a security group: who may reach a TCP port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ingress {
    pub port: u16,
    /// `me`, `any`, `group:NAME` or a CIDR block.
    pub from: String,
}

/// Creates, lists and removes instances. Every call is idempotent: repeating it after a crash is safe.
///
/// Errors are of `Kind::Provider` when the provider refused and `Kind::Host` when it broke.
pub trait Provider: Send + Sync {
    /// `local` or `ec2`.
    fn name(&self) -> &'static str;

    /// Makes the provider ready for mutating calls (the local one starts its agent).
    fn start(&self) -> Pending<'_, ()>;

    /// The instance types this provider knows, for suggestions; an unknown type is refused by `launch`.
    fn instance_types(&self) -> &'static [&'static str];

    /// Makes `public_key` (OpenSSH's one-line form) the login key called `name`.
    fn ensure_key<'a>(&'a self, name: &'a str, public_key: &'a str) -> Pending<'a, ()>;

    /// Makes the group exist with exactly these rules.
    fn ensure_group<'a>(&'a self, name: &'a str, ingress: &'a [Ingress]) -> Pending<'a, ()>;

    /// The id of the image that instances boot from, found by name.
    fn image<'a>(&'a self, name: &'a str) -> Pending<'a, String>;

    /// Launches and returns at once; the instances may still be pending. Order follows `slots`.
    fn launch<'a>(&'a self, launch: &'a Launch) -> Pending<'a, Vec<Instance>>;

    /// All instances of this lab that are not terminated, ordered by fleet and slot. Never starts anything: a
    /// provider that is not running has no instances.
    fn list(&self) -> Pending<'_, Vec<Instance>>;

    /// Terminates these instances and waits until they are gone; unknown ids are not an error.
    fn terminate<'a>(&'a self, ids: &'a [String]) -> Pending<'a, ()>;

    /// Moves the time at which instances end by themselves.
    fn extend(&self, expires_at_s: u64) -> Pending<'_, ()>;

    /// What [`Provider::destroy`] would remove, in words for the user, one line each; empty when nothing is left.
    fn remains(&self) -> Pending<'_, Vec<String>>;

    /// Removes everything this lab made with this provider, also when its state is lost, and returns what could
    /// not be removed, in words. `keep_bootstrap` keeps the key pair and the groups.
    fn destroy(&self, keep_bootstrap: bool) -> Pending<'_, Vec<String>>;
}

/// Seconds since the epoch.
#[must_use]
pub fn epoch_s(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
