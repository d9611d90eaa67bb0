//! `--plan` on EC2: real reads, and for every call that would change something a trial (DryRun), so that a missing
//! permission is found before the run.

use aws_sdk_ec2::{primitives::Blob, types::ResourceType};

use super::{
    Ec2, groups, image,
    launch::Resolved,
    refusal::Refusal,
    rules::{self, Rule, Source},
    store::Attempt,
    tags,
};
use crate::{
    Error,
    instance::Instance,
    provider::{Change, Ingress, Launch, LoginKey, Step, Verb},
};

fn change(verb: Verb, what: impl Into<String>) -> Change {
    Change { verb, what: what.into() }
}

/// A trial succeeds by failing with a certain code.
fn allowed<T>(trial: Result<T, Refusal>) -> Result<(), Error> {
    match trial {
        Err(refusal) if !refusal.is_dry_run_success() => Err(refusal.into()),
        _ => Ok(()),
    }
}

impl Ec2 {
    pub(super) async fn rehearse_step(&self, step: &Step) -> Result<Vec<Change>, Error> {
        match step {
            Step::Key(key) => self.rehearse_key(key).await,
            Step::Group { name, ingress } => self.rehearse_group(name, ingress).await,
            Step::Launch(launch) => self.rehearse_launch(launch).await,
            Step::Terminate(instances) => self.rehearse_termination(instances).await,
        }
    }

    async fn rehearse_key(&self, key: &LoginKey) -> Result<Vec<Change>, Error> {
        let what = format!("key pair {}", key.name);
        if key.adopt {
            self.settle_key(key).await?;
            return Ok(vec![change(Verb::Keep, format!("{what} (adopted)"))]);
        }
        let full = tags::full_name(&self.lab, &key.name);
        let verb = match self.find_key(key).await? {
            Some(true) => {
                self.known().keys.insert(key.name.clone(), full);
                return Ok(vec![change(Verb::Keep, what)]);
            }
            Some(false) => Verb::Replace,
            None => Verb::Add,
        };
        let tags = self.mine().await?.named(&key.name, ResourceType::KeyPair);
        let call =
            self.client().await?.ec2.import_key_pair().dry_run(true).key_name(&full).tag_specifications(tags);
        let trial = call.public_key_material(Blob::new(key.public.as_bytes())).send().await;
        allowed(trial.map_err(|cause| Refusal::of(format!("import key {}", key.name), cause)))?;
        Ok(vec![change(verb, what)])
    }

    async fn rehearse_group(&self, name: &str, ingress: &[Ingress]) -> Result<Vec<Change>, Error> {
        let found = self.list_groups().await?.into_iter().find(|group| group.name == name);
        let Some(group) = found else {
            let vpc = &self.network().await?.vpc;
            let full = tags::full_name(&self.lab, name);
            let tags = self.mine().await?.named(name, ResourceType::SecurityGroup);
            let call = self.client().await?.ec2.create_security_group().dry_run(true).group_name(full);
            let call = call.description(format!("labhost: {name}")).vpc_id(vpc).tag_specifications(tags);
            let trial = call.send().await;
            allowed(trial.map_err(|cause| Refusal::of(format!("create security group {name}"), cause)))?;
            self.known().planned_groups.insert(name.to_owned());
            return Ok(vec![change(Verb::Add, format!("security group {name} ({} rules)", ingress.len()))]);
        };
        let wanted = self.wanted_rules(name, ingress).await?;
        let (missing, surplus) = rules::differences(&wanted, &group.rules);
        if missing.is_empty() && surplus.is_empty() {
            return Ok(vec![change(Verb::Keep, format!("security group {name}"))]);
        }
        self.try_rules(name, &group.id, &missing, &surplus).await?;
        let more = missing.iter().map(|rule| format!("+ {rule}"));
        let words: Vec<_> = more.chain(surplus.iter().map(|rule| format!("- {rule}"))).collect();
        Ok(vec![change(Verb::Change, format!("security group {name}: {}", words.join(", ")))])
    }

    async fn try_rules(&self, name: &str, id: &str, missing: &[Rule], surplus: &[Rule]) -> Result<(), Error> {
        let ec2 = &self.client().await?.ec2;
        // AWS cannot try a rule that names a group which is not there yet.
        let is_planned =
            |rule: &&Rule| matches!(&rule.source, Source::Group(id) if id.starts_with(groups::PLANNED));
        let missing: Vec<_> = missing.iter().filter(|rule| !is_planned(rule)).collect();
        if !missing.is_empty() {
            let permissions = missing.iter().map(|rule| rules::permission(rule)).collect();
            let call = ec2.authorize_security_group_ingress().dry_run(true).group_id(id);
            let trial = call.set_ip_permissions(Some(permissions)).send().await;
            allowed(trial.map_err(|cause| Refusal::of(format!("open security group {name}"), cause)))?;
        }
        if !surplus.is_empty() {
            let permissions = surplus.iter().map(rules::permission).collect();
            let call = ec2.revoke_security_group_ingress().dry_run(true).group_id(id);
            let trial = call.set_ip_permissions(Some(permissions)).send().await;
            allowed(trial.map_err(|cause| Refusal::of(format!("close security group {name}"), cause)))?;
        }
        Ok(())
    }

    /// The trial names only what exists: key and group may be part of the same plan.
    async fn rehearse_launch(&self, launch: &Launch) -> Result<Vec<Change>, Error> {
        let group = match &launch.group {
            Some(name) => self.list_groups().await?.into_iter().find(|it| it.name == *name).map(|it| it.id),
            None => None,
        };
        let image = match &launch.image {
            Some(id) => id.clone(),
            None => self.find_image(image::NAME_DEFAULT, None).await?,
        };
        let (user, disks) = (self.user_for(&image), self.lasting_disks(&image).await?);
        let resolved = Resolved { key: self.key_name(&launch.key).ok(), group, image, user, disks };
        let attempt = Attempt::new(launch, self.network().await?.subnets.clone())?;
        let trial = self.request(launch, &resolved, &attempt).await?.dry_run(true).send().await;
        allowed(trial.map_err(|cause| Refusal::of(format!("launch {}", launch.fleet), cause)))?;
        let what =
            |slot| change(Verb::Add, format!("instance {}-{slot} ({})", launch.fleet, launch.instance_type));
        Ok(launch.slots.iter().map(what).collect())
    }

    async fn rehearse_termination(&self, instances: &[Instance]) -> Result<Vec<Change>, Error> {
        let real: Vec<_> = instances.iter().map(|it| it.id.clone()).collect();
        if real.is_empty() {
            return Ok(Vec::new());
        }
        let call = self.client().await?.ec2.terminate_instances().dry_run(true).set_instance_ids(Some(real));
        allowed(call.send().await.map_err(|cause| Refusal::of("terminate instances", cause)))?;
        let what = |it: &Instance| {
            change(Verb::Remove, format!("instance {} ({}, {})", it.name, it.instance_type, it.id))
        };
        Ok(instances.iter().map(what).collect())
    }
}
