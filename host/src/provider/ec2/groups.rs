//! Security groups: made, and kept to exactly the rules that the recipe names.

use aws_sdk_ec2::types::{Filter, ResourceType, SecurityGroup};

use super::{
    Ec2, address,
    refusal::Refusal,
    rules::{self, Meaning, Rule, Source},
    tags,
};
use crate::{Error, provider::Ingress};

/// What the id of a group begins with that a plan would make.
pub(super) const PLANNED: &str = "new ";

/// One of the lab's groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) id: String,
    /// The name that recipes use.
    pub(super) name: String,
    pub(super) rules: Vec<Rule>,
}

impl Group {
    fn of(described: &SecurityGroup) -> Option<Self> {
        let tags = tags::map(described.tags());
        Some(Self {
            id: described.group_id()?.to_owned(),
            name: tags.get(tags::NAME).map(|name| (*name).to_owned())?,
            rules: rules::present(described.ip_permissions()),
        })
    }
}

impl Ec2 {
    /// The lab's groups, fresh from AWS.
    pub(super) async fn list_groups(&self) -> Result<Vec<Group>, Error> {
        let found = self.find_groups("list security groups", tags::of_lab(&self.lab)).await?;
        Ok(found.iter().filter_map(Group::of).collect())
    }

    /// All groups, this lab's or not, that pass a filter.
    pub(super) async fn find_groups(
        &self,
        operation: &str,
        filter: Filter,
    ) -> Result<Vec<SecurityGroup>, Error> {
        let call = self.client().await?.ec2.describe_security_groups().filters(filter);
        let found = call.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
        found.map_err(|cause| Refusal::of(operation, cause).into())
    }

    /// The lab's groups as this process knows them; listed once.
    async fn groups(&self) -> Result<Vec<Group>, Error> {
        if let Some(groups) = &self.known().groups {
            return Ok(groups.clone());
        }
        let groups = self.list_groups().await?;
        self.known().groups = Some(groups.clone());
        Ok(groups)
    }

    fn remember(&self, group: &Group) {
        let mut known = self.known();
        let groups = known.groups.get_or_insert_default();
        groups.retain(|other| other.id != group.id);
        groups.push(group.clone());
    }

    /// The id of the lab's group with this name in recipes.
    pub(super) async fn group_id(&self, name: &str) -> Result<String, Error> {
        let group = self.groups().await?.into_iter().find(|group| group.name == name);
        group.map(|group| group.id).ok_or_else(|| {
            Error::provider(format!("there is no security group `{name}`"))
                .with_hint("Make it with ec2::security_group before ec2::instances.")
        })
    }

    /// What the recipe's rules are in AWS's words.
    pub(super) async fn wanted_rules(&self, name: &str, ingress: &[Ingress]) -> Result<Vec<Rule>, Error> {
        let me = if rules::names_caller(ingress) { Some(self.caller().await?) } else { None };
        let groups = self.groups().await?;
        let planned = self.known().planned_groups.clone();
        let find = |name: &str| {
            let there = groups.iter().find(|group| group.name == name).map(|group| group.id.clone());
            there.or_else(|| planned.contains(name).then(|| format!("{PLANNED}{name}")))
        };
        rules::wanted(name, ingress, &Meaning { me, group: &find })
    }

    /// Where the lab's groups let in the address that this machine had, lets in the one that it has now. Without rules
    /// for the caller nothing is asked.
    pub(super) async fn follow_caller(&self) -> Result<(), Error> {
        let Some(before) = self.store.caller() else { return Ok(()) };
        // Where nobody tells the address, it is taken to be the same: the login shows whether it is.
        let Ok(now) = self.caller().await else { return Ok(()) };
        if before == now {
            return Ok(());
        }
        for mut group in self.groups().await? {
            let (surplus, missing) = rules::moved(&group.rules, before, now);
            if surplus.is_empty() {
                continue;
            }
            self.authorize(&group, &missing).await?;
            self.revoke(&group, &surplus).await?;
            self.say(&format!(
                "security group {}: this machine is now {now}, no longer {before}",
                group.name
            ));
            group.rules.retain(|rule| !surplus.contains(rule));
            group.rules.extend(missing);
            self.remember(&group);
        }
        self.store.set_caller(now)
    }

    async fn caller(&self) -> Result<std::net::Ipv4Addr, Error> {
        self.caller
            .get_or_try_init(|| address::caller(self.settings.my_ip, &self.settings.say))
            .await
            .copied()
    }

    /// Makes the group exist with exactly these rules; new ones are let in before old ones are shut out.
    pub(super) async fn settle_group(&self, name: &str, ingress: &[Ingress]) -> Result<String, Error> {
        let names_caller = rules::names_caller(ingress);
        if names_caller {
            self.follow_caller().await?;
        }
        let found = self.groups().await?.into_iter().find(|group| group.name == name);
        let mut group = match found {
            Some(group) => group,
            None => self.create_group(name).await?,
        };
        self.remember(&group);
        let wanted = self.wanted_rules(name, ingress).await?;
        let (missing, surplus) = rules::differences(&wanted, &group.rules);
        if !missing.is_empty() {
            self.authorize(&group, &missing).await?;
        }
        if !surplus.is_empty() {
            self.revoke(&group, &surplus).await?;
            let words: Vec<_> = surplus.iter().map(ToString::to_string).collect();
            self.say(&format!("security group {name}: no longer {}", words.join(", ")));
        }
        group.rules = wanted;
        self.remember(&group);
        if names_caller && self.store.caller().is_none() {
            self.store.set_caller(self.caller().await?)?;
        }
        Ok(group.id)
    }

    async fn create_group(&self, name: &str) -> Result<Group, Error> {
        let full = tags::full_name(&self.lab, name);
        let vpc = &self.network().await?.vpc;
        let tags = self.mine().await?.named(name, ResourceType::SecurityGroup);
        let call = self.client().await?.ec2.create_security_group();
        let call = call
            .group_name(&full)
            .description(format!("labhost: {name}"))
            .vpc_id(vpc)
            .tag_specifications(tags);
        match call.send().await.map_err(|cause| Refusal::of(format!("create security group {name}"), cause)) {
            Ok(made) => {
                let id = made.group_id().unwrap_or_default().to_owned();
                Ok(Group { id, name: name.to_owned(), rules: Vec::new() })
            }
            Err(refusal) if refusal.is("InvalidGroup.Duplicate") => {
                self.adopt_group(name, &full, refusal).await
            }
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// A group of our name exists that was not listed: made a moment ago by a labhost that was killed, or foreign.
    async fn adopt_group(&self, name: &str, full: &str, refusal: Refusal) -> Result<Group, Error> {
        let mut waiting = self.pace.waiting(self.pace.eventual);
        let found = loop {
            let operation = format!("look at security group {name}");
            let found = self.find_groups(&operation, tags::filter("group-name", [full])).await?;
            // It exists, so it will be listed.
            if !found.is_empty() || !waiting.go_on().await {
                break found;
            }
        };
        let ours =
            |group: &&SecurityGroup| tags::map(group.tags()).get(tags::LAB) == Some(&self.lab.as_str());
        found.iter().find(ours).and_then(Group::of).ok_or_else(|| {
            Error::from(refusal).with_hint(format!(
                "A group called {full} exists without this lab's tags, so it is left alone: rename or remove it."
            ))
        })
    }

    async fn authorize(&self, group: &Group, rules: &[Rule]) -> Result<(), Error> {
        let mut waiting = self.pace.waiting(self.pace.eventual);
        loop {
            let call = self.client().await?.ec2.authorize_security_group_ingress().group_id(&group.id);
            let call = call.set_ip_permissions(Some(rules.iter().map(rules::permission).collect()));
            let done = call.send().await;
            match done.map_err(|cause| Refusal::of(format!("open security group {}", group.name), cause)) {
                Ok(_) => return Ok(()),
                Err(refusal) if refusal.is("InvalidPermission.Duplicate") => return Ok(()),
                // Made a moment ago: not every part of AWS knows it yet.
                Err(refusal) if refusal.is_not_found() => {
                    if !waiting.go_on().await {
                        return Err(refusal.into());
                    }
                }
                Err(refusal) => return Err(refusal.into()),
            }
        }
    }

    /// Rules that are gone already are no error.
    pub(super) async fn revoke(&self, group: &Group, rules: &[Rule]) -> Result<(), Error> {
        let call = self.client().await?.ec2.revoke_security_group_ingress().group_id(&group.id);
        let call = call.set_ip_permissions(Some(rules.iter().map(rules::permission).collect()));
        let done = call.send().await;
        match done.map_err(|cause| Refusal::of(format!("close security group {}", group.name), cause)) {
            Err(refusal) if !refusal.is_not_found() => Err(refusal.into()),
            _ => Ok(()),
        }
    }

    /// The rules of a group that let in other groups.
    pub(super) fn references(group: &Group) -> Vec<Rule> {
        group.rules.iter().filter(|rule| matches!(rule.source, Source::Group(_))).cloned().collect()
    }
}
