//! One machine of a lab, whoever made it.
//!
//! It is plain data: providers fill it in, `lab` keeps it, `ssh` logs in by it. Nothing here launches,
//! asks or connects.

use std::{
    net::Ipv4Addr,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::units::{Span, epoch_s};

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
    /// Public host keys to pin before first contact, one per line (`ssh-ed25519 AAAA...`); any of them is accepted.
    /// Empty when they were lost with the lab's state: nobody can log in safely any more.
    pub host_key: String,
    /// Whether the type's capacity is emulated by the worker rather than being the machine's own.
    pub emulated: bool,
    /// Seconds since the epoch.
    pub launched_at_s: u64,
    /// Seconds since the epoch; the provider removes the instance then by itself.
    pub expires_at_s: u64,
}

/// Whether an instance can be reached: it runs and has an address.
#[must_use]
pub fn is_running(instance: &Instance) -> bool {
    instance.state == State::Running && instance.public_ip.is_some()
}

/// When a lab ends by itself, in words that follow "they".
#[must_use]
pub fn ends(expires_at_s: u64) -> String {
    let left = expires_at_s.saturating_sub(epoch_s(SystemTime::now()));
    format!("end by themselves in {}", Span(Duration::from_secs(left)))
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A running instance with a recognisable id.
    pub(crate) fn instance(fleet: &str, slot: u32, instance_type: &str, cluster: Option<&str>) -> Instance {
        let address = Some(Ipv4Addr::new(127, 77, 0, 10 + slot as u8));
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
