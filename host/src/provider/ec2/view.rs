//! An instance as EC2 describes it, in labhost's words. PURE.

use std::{collections::BTreeMap, net::Ipv4Addr};

use aws_sdk_ec2::types::{Instance as Described, InstanceStateName};

use super::{
    pace::Reach,
    store::{Attempt, Store},
    tags,
};
use crate::instance::{Instance, State};

/// What is known here about host keys.
#[derive(Debug, Default)]
pub(super) struct HostKeys {
    own: BTreeMap<String, String>,
    attempts: BTreeMap<String, Attempt>,
}

impl HostKeys {
    pub(super) fn of(store: &Store) -> Self {
        let attempts = store.attempts().into_iter().map(|it| (it.client_token(), it)).collect();
        Self { own: store.own_keys(), attempts }
    }

    /// The keys to accept, one per line: the instance's own alone once it is in place, else either of the two.
    fn accepted(&self, described: &Described) -> String {
        if let Some(own) = described.instance_id().and_then(|id| self.own.get(id)) {
            return own.clone();
        }
        let attempt = described.client_token().and_then(|token| self.attempts.get(token));
        let own = attempt.and_then(|attempt| attempt.own.get(launch_index(described)));
        match (attempt, own) {
            (Some(attempt), Some(own)) => format!("{}\n{}", attempt.first.public, own.public),
            (Some(attempt), None) => attempt.first.public.clone(),
            (None, _) => String::new(),
        }
    }
}

pub(super) fn launch_index(described: &Described) -> usize {
    described.ami_launch_index().and_then(|index| usize::try_from(index).ok()).unwrap_or(0)
}

/// `None` when its tags are not those of a member of a fleet.
pub(super) fn instance(described: &Described, keys: &HostKeys, reach: &Reach) -> Option<Instance> {
    let tags = tags::map(described.tags());
    let fleet = (*tags.get(tags::FLEET)?).to_owned();
    let slot: u32 = tags.get(tags::SLOTS)?.split(',').nth(launch_index(described))?.parse().ok()?;
    let text = |key: &str| tags.get(key).map(|text| (*text).to_owned());
    let address = |text: Option<&str>| text.and_then(|text| text.parse::<Ipv4Addr>().ok());
    Some(Instance {
        id: described.instance_id()?.to_owned(),
        instance_type: described.instance_type()?.as_str().to_owned(),
        state: state(described),
        public_ip: address(described.public_ip_address()),
        private_ip: address(described.private_ip_address()),
        cluster: text(tags::CLUSTER),
        name: format!("{fleet}-{slot}"),
        fleet,
        slot,
        role: text(tags::ROLE),
        user: text(tags::USER).unwrap_or_else(|| super::image::USER_DEFAULT.to_owned()),
        ssh_port: reach.ssh_port,
        http_port: reach.http_port,
        host_key: keys.accepted(described),
        emulated: false,
        launched_at_s: described.launch_time().map_or(0, |at| u64::try_from(at.secs()).unwrap_or(0)),
        expires_at_s: tags.get(tags::EXPIRES).and_then(|at| at.parse().ok()).unwrap_or(0),
    })
}

/// An unknown state counts as pending: it is looked at again.
pub(super) fn state(described: &Described) -> State {
    match described.state().and_then(|state| state.name()) {
        Some(InstanceStateName::Running) => State::Running,
        Some(InstanceStateName::ShuttingDown) => State::ShuttingDown,
        Some(InstanceStateName::Terminated) => State::Terminated,
        Some(InstanceStateName::Stopping) => State::Stopping,
        Some(InstanceStateName::Stopped) => State::Stopped,
        _ => State::Pending,
    }
}

/// Why an instance is in its state, in AWS's words; empty when AWS does not say.
pub(super) fn reason(described: &Described) -> String {
    let reason = described.state_reason().and_then(|reason| reason.message());
    reason.or_else(|| described.state_transition_reason()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{InstanceState, InstanceType, Tag};

    use super::*;

    fn described(index: i32, slots: &str) -> Described {
        let tag = |key: &str, value: &str| Tag::builder().key(key).value(value).build();
        Described::builder()
            .instance_id("i-1")
            .instance_type(InstanceType::T2Micro)
            .ami_launch_index(index)
            .state(InstanceState::builder().name(InstanceStateName::Running).build())
            .public_ip_address("203.0.113.5")
            .tags(tag(tags::FLEET, "micro"))
            .tags(tag(tags::SLOTS, slots))
            .tags(tag(tags::EXPIRES, "99"))
            .build()
    }

    fn reach() -> Reach {
        Reach { ssh_port: 22, http_port: 80, user: None }
    }

    #[test]
    fn launch_index_gives_the_slot() {
        let second = instance(&described(1, "2,4"), &HostKeys::default(), &reach()).unwrap();
        assert_eq!((second.name.as_str(), second.slot, second.expires_at_s), ("micro-4", 4, 99));
        assert_eq!(second.host_key, "", "nothing is known of its key");
        assert_eq!(instance(&described(2, "2,4"), &HostKeys::default(), &reach()), None);
    }

    #[test]
    fn own_key_alone_is_accepted_once_it_is_in_place() {
        let keys = HostKeys {
            own: BTreeMap::from([("i-1".to_owned(), "ssh-ed25519 OWN".to_owned())]),
            attempts: BTreeMap::new(),
        };
        assert_eq!(keys.accepted(&described(0, "1")), "ssh-ed25519 OWN");
    }
}
