//! Teardown: everything with this lab's tag, in the order in which AWS lets it go, and a last look.
//!
//! 1. terminate all instances in one call, those too that AWS does not list yet, and wait: until they are terminated
//!    their interfaces hold the groups;
//! 2. revoke rules that let groups into each other;
//! 3. delete the groups, again and again while something holds them, and say what;
//! 4. delete the key pair;
//! 5. look for anything that still has the tag; disks that no instance uses are deleted.
//!
//! A failure does not end it: all are reported. It does not touch what has no tag of this lab.

use std::collections::BTreeSet;

use aws_sdk_ec2::types::{Filter, Instance as Described, NetworkInterface, TagDescription};

use super::{Ec2, groups::Group, refusal::Refusal, tags, view};
use crate::{Error, instance::State};

/// A tagged thing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Thing {
    kind: String,
    id: String,
}

impl Thing {
    fn is_bootstrap(&self) -> bool {
        self.kind == "security-group" || self.kind == "key-pair"
    }

    fn in_words(&self) -> String {
        format!("{} {}", self.kind.replace('-', " "), self.id)
    }
}

/// What a teardown could not remove so far: a later failure hides nothing of it.
#[derive(Debug, Default)]
struct Left {
    failures: Vec<String>,
    hints: BTreeSet<String>,
    /// What is there, as far as is known.
    things: BTreeSet<Thing>,
}

impl Left {
    fn is_empty(&self) -> bool {
        self.failures.is_empty()
    }

    /// These are there until they are gone.
    fn expect(&mut self, kind: &str, ids: impl IntoIterator<Item = String>) {
        self.things.extend(ids.into_iter().map(|id| Thing { kind: kind.to_owned(), id }));
    }

    fn gone(&mut self, id: &str) {
        self.things.retain(|thing| thing.id != id);
    }

    /// With what to do about it, once.
    fn failed(&mut self, error: Error) {
        let hint = error.hint.filter(|hint| self.hints.insert(hint.clone()));
        self.failures.push(match hint {
            Some(hint) => format!("{}. {hint}", error.message),
            None => error.message,
        });
    }

    /// The failures, and the things that none of them names.
    fn in_words(self) -> Vec<String> {
        let is_named = |thing: &&Thing| self.failures.iter().any(|failure| failure.contains(&thing.id));
        let others = self.things.iter().filter(|thing| !is_named(thing)).map(Thing::in_words);
        let others: Vec<_> = others.collect();
        self.failures.into_iter().chain(others).collect()
    }
}

impl Ec2 {
    /// Everything with the lab's tag.
    async fn tagged(&self) -> Result<Vec<Thing>, Error> {
        let found = self.lab_tags().await?;
        let mut things: Vec<Thing> = found
            .iter()
            .filter_map(|tag| {
                let kind = tag.resource_type()?.as_str().to_owned();
                Some(Thing { kind, id: tag.resource_id()?.to_owned() })
            })
            .collect();
        things.sort();
        things.dedup();
        let kinds: BTreeSet<String> = things.iter().map(|thing| thing.kind.clone()).collect();
        for kind in kinds {
            if let Some(there) = self.existing(&kind).await? {
                things.retain(|thing| thing.kind != kind || there.contains(&thing.id));
            }
        }
        Ok(things)
    }

    /// What AWS says has the lab's tag, whether it is still there or not.
    pub(super) async fn lab_tags(&self) -> Result<Vec<TagDescription>, Error> {
        let call = self.client().await?.ec2.describe_tags();
        let call = call
            .filters(tags::filter("key", [tags::LAB]))
            .filters(tags::filter("value", [self.lab.as_str()]));
        let found = call.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
        found.map_err(|cause| Refusal::of("look for what has the lab's tag", cause).into())
    }

    /// Ids of the lab's things of this kind that are really there; `None` for a kind that labhost does not make.
    /// Tags outlive what they were on for a while.
    async fn existing(&self, kind: &str) -> Result<Option<BTreeSet<String>>, Error> {
        let ids = match kind {
            "instance" => {
                let all = self.describe(&[tags::of_lab(&self.lab)]).await?;
                not_terminated(&all).into_iter().collect()
            }
            "security-group" => self.list_groups().await?.into_iter().map(|group| group.id).collect(),
            "key-pair" => self.list_keys().await?.into_iter().filter_map(|key| key.key_pair_id).collect(),
            "volume" => self.disks(None).await?.into_iter().collect(),
            "network-interface" => {
                let found = self.interfaces(tags::of_lab(&self.lab)).await?;
                found.into_iter().filter_map(|it| it.network_interface_id).collect()
            }
            _ => return Ok(None),
        };
        Ok(Some(ids))
    }

    /// Ids of the lab's disks, of those in a state if one is given.
    pub(super) async fn disks(&self, state: Option<&str>) -> Result<Vec<String>, Error> {
        let mut filters = vec![tags::of_lab(&self.lab)];
        filters.extend(state.map(|state| tags::filter("status", [state])));
        let call = self.client().await?.ec2.describe_volumes().set_filters(Some(filters));
        let found = call.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
        let found = found.map_err(|cause| Refusal::of("list disks", cause))?;
        Ok(found.into_iter().filter_map(|it| it.volume_id).collect())
    }

    /// Disks that an instance has left behind, because somebody said so in AWS's console.
    async fn delete_free_disks(&self) -> Result<(), Error> {
        for id in self.disks(Some("available")).await? {
            let done = self.client().await?.ec2.delete_volume().volume_id(&id).send().await;
            match done.map_err(|cause| Refusal::of(format!("delete disk {id}"), cause)) {
                Err(refusal) if !refusal.is_not_found() => return Err(refusal.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// What there is, in words.
    pub(super) async fn what_remains(&self) -> Result<Vec<String>, Error> {
        Ok(self.tagged().await?.iter().map(Thing::in_words).collect())
    }

    /// Removes everything; returns what could not be removed. Errors only when nothing is known of what is there.
    pub(super) async fn remove_all(&self, keep_bootstrap: bool) -> Result<Vec<String>, Error> {
        let all = self.describe_when_settled(&self.store.attempts()).await?;
        let mut left = Left::default();
        let instances = not_terminated(&all);
        left.expect("instance", instances.iter().cloned());
        match self.terminate_all(&instances).await {
            Ok(()) => left.things.clear(),
            Err(error) => left.failed(error),
        }
        if !keep_bootstrap {
            // Groups cannot go before the instances, and trying would only take the time.
            if left.is_empty() {
                self.remove_groups(&mut left).await;
            }
            self.remove_keys(&mut left).await;
        }
        match self.sweep(keep_bootstrap, &mut left).await {
            Ok(things) => left.things = things.into_iter().collect(),
            Err(error) if left.is_empty() => return Err(error),
            Err(error) => left.failed(error),
        }
        Ok(left.in_words())
    }

    async fn remove_groups(&self, left: &mut Left) {
        let groups = match self.list_groups().await {
            Ok(groups) => groups,
            Err(error) => return left.failed(error),
        };
        left.expect("security-group", groups.iter().map(|group| group.id.clone()));
        for group in &groups {
            let references = Self::references(group);
            if !references.is_empty()
                && let Err(error) = self.revoke(group, &references).await
            {
                left.failed(error);
            }
        }
        for group in &groups {
            match self.remove_group(group).await {
                Ok(()) => left.gone(&group.id),
                Err(error) => left.failed(error),
            }
        }
    }

    /// Tries until nothing holds the group any more, and says meanwhile what does.
    async fn remove_group(&self, group: &Group) -> Result<(), Error> {
        let mut waiting = self.pace.waiting(self.pace.groups);
        let mut said = String::new();
        loop {
            let done = self.client().await?.ec2.delete_security_group().group_id(&group.id).send().await;
            let refusal = match done
                .map_err(|cause| Refusal::of(format!("delete security group {}", group.name), cause))
            {
                Ok(_) => return Ok(()),
                Err(refusal) if refusal.is_not_found() => return Ok(()),
                Err(refusal) if refusal.is("DependencyViolation") => refusal,
                Err(refusal) => return Err(refusal.into()),
            };
            let holders = self.holders(group).await?;
            if holders != said {
                let limit = waiting.limit().as_secs();
                self.say(&format!(
                    "security group {} ({}) is held by {holders}; waiting, {limit} s at most",
                    group.name, group.id
                ));
                said.clone_from(&holders);
            }
            self.terminate_latecomers().await?;
            if !waiting.go_on().await {
                let error = Error::from(refusal);
                return Err(Error {
                    message: format!("security group {} ({}) is held by {holders}", group.name, group.id),
                    ..error
                });
            }
        }
    }

    /// Instances of a lab whose files are lost can be listed so late that the first look did not see them.
    async fn terminate_latecomers(&self) -> Result<(), Error> {
        let all = self.describe(&[tags::of_lab(&self.lab)]).await?;
        self.terminate_all(&not_terminated(&all)).await
    }

    /// What still uses a group, in words.
    async fn holders(&self, group: &Group) -> Result<String, Error> {
        let interfaces = self.interfaces(tags::filter("group-id", [group.id.as_str()])).await?;
        let interface = |it: &NetworkInterface| {
            let id = it.network_interface_id().unwrap_or("unknown").to_owned();
            match it.attachment().and_then(|attachment| attachment.instance_id()) {
                Some(instance) => format!("network interface {id} of {instance}"),
                None => format!("network interface {id}"),
            }
        };
        let mut holders: Vec<String> = interfaces.iter().map(interface).collect();
        let filter = tags::filter("ip-permission.group-id", [group.id.as_str()]);
        let referring = self.find_groups("look at security groups", filter).await?;
        let others = referring.iter().filter_map(|it| it.group_id()).filter(|id| *id != group.id);
        holders.extend(others.map(|id| format!("a rule of security group {id}")));
        Ok(if holders.is_empty() {
            "something that AWS does not name".to_owned()
        } else {
            holders.join(", ")
        })
    }

    pub(super) async fn interfaces(&self, filter: Filter) -> Result<Vec<NetworkInterface>, Error> {
        let call = self.client().await?.ec2.describe_network_interfaces().filters(filter);
        let found = call.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
        found.map_err(|cause| Refusal::of("look at network interfaces", cause).into())
    }

    async fn remove_keys(&self, left: &mut Left) {
        let keys = match self.list_keys().await {
            Ok(keys) => keys,
            Err(error) => return left.failed(error),
        };
        left.expect("key-pair", keys.iter().filter_map(|key| key.key_pair_id().map(str::to_owned)));
        for key in keys {
            let Some(name) = key.key_name() else { continue };
            match self.delete_key(name).await {
                Ok(()) => left.gone(key.key_pair_id().unwrap_or_default()),
                Err(error) => {
                    left.failed(Error { message: format!("key pair {name}: {}", error.message), ..error });
                }
            }
        }
    }

    /// What still has the lab's tag. Disks go some time after their instance, and AWS forgets tags late; so, when
    /// everything went well until here, the look is repeated for a while; an instance that appears is terminated.
    async fn sweep(&self, keep_bootstrap: bool, left: &mut Left) -> Result<Vec<Thing>, Error> {
        let mut waiting = self.pace.waiting(self.pace.eventual);
        loop {
            let mut things = self.tagged().await?;
            things.retain(|thing| !(keep_bootstrap && thing.is_bootstrap()));
            if left.is_empty()
                && things.iter().any(|thing| thing.kind == "volume")
                && let Err(error) = self.delete_free_disks().await
            {
                left.failed(error);
            }
            if things.is_empty() || !left.is_empty() || !waiting.go_on().await {
                return Ok(things);
            }
            if things.iter().any(|thing| thing.kind == "instance") {
                self.terminate_latecomers().await?;
            }
        }
    }
}

/// Ids of those that are still there.
fn not_terminated(all: &[Described]) -> Vec<String> {
    let there = all.iter().filter(|it| view::state(it) != State::Terminated);
    there.filter_map(|it| it.instance_id().map(str::to_owned)).collect()
}
